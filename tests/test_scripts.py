"""The scripts as a user runs them: what a run leaves behind, evaluation that repeats it, resumption, mistakes."""

import json

import numpy as np
import pytest
import torch
from conftest import ids, one_line_error, write_cityscapes, write_gta5
from PIL import Image

import models
from datasets import cityscapes
from datasets.labels import CITYSCAPES_PALETTE, CLASS_NAMES
from utils.adabn import adapt_batch_norm
from utils.appearance import Appearance
from utils.arguments import parse, training_parser
from utils.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint
from utils.run import Run

SMALL = ("--size", "48x32", "--weights", "none", "--batch-size", 2, "--workers", 0, "--device", "cpu", "--lr", 0.01)
SOURCE = ("--source-size", "48x32")


def upper(city, run_dir, *more):
    return ("train_cityscapes", "--cityscapes", city, *SMALL, "--epochs", 2, "--run-dir", run_dir, *more)


def source_only(game, city, run_dir, *more):
    return ("train_gta5", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2, "--run-dir", run_dir,
            *more)  # fmt: skip


def table(out):
    """Figures of the rows of the per-class table: name -> first column."""
    rows = [line.strip("| \n").split("|") for line in out.splitlines() if line.startswith("|")]
    return {row[0].strip(): row[1].strip() for row in rows if row[0].strip() in (*CLASS_NAMES, "mean")}


def test_a_run_leaves_what_the_readme_says_and_eval_repeats_its_figures(script, city, tmp_path):
    run_dir = tmp_path / "a run"
    done = script(*upper(city, run_dir))
    assert done.status == 0, done.err
    assert {path.name for path in run_dir.iterdir()} == {
        "config.json", "metrics.jsonl", "result.json", "checkpoint_last.pt", "checkpoint_best.pt", "tensorboard",
    }  # fmt: skip
    result = json.loads((run_dir / "result.json").read_text())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert (result["step"], result["epoch"]) == (4, 2)
    assert list(result["iou"]) == list(CLASS_NAMES)
    assert result["miou"] == lines[-1]["target"]["miou"]
    assert result["oracle"]["miou"] == max(line["target"]["miou"] for line in lines)
    present = [value for value in result["iou"].values() if value is not None]
    assert len(present) == result["classes_evaluated"]
    assert abs(sum(present) / len(present) - result["miou"]) < 1e-12
    assert 0 <= result["entropy"] <= 1
    config = json.loads((run_dir / "config.json").read_text())
    assert config["arguments"]["batch_size"] == 2
    assert set(config["versions"]) == {"python", "torch", "torchvision", "numpy", "pillow"}
    assert "oracle" in done.out

    figures = tmp_path / "eval.json"
    again = script("eval", run_dir / "checkpoint_last.pt", "--json", figures, "--workers", 0, "--device", "cpu")
    assert again.status == 0, again.err
    (measured,) = json.loads(figures.read_text())["evaluations"]
    for key in ("accuracy", "miou", "mean_class_accuracy", "iou", "classes_evaluated", "entropy", "pictures"):
        assert measured[key] == result[key], key
    assert table(again.out) == table(done.out)


def test_source_only_evaluates_the_target_and_what_it_held_out(script, game, city, tmp_path):
    run_dir = tmp_path / "run"
    options = ("--source-holdout", 0.3, "--jitter", "--blur", "--flip", 0.15)
    done = script(*source_only(game, city, run_dir, *options))
    assert done.status == 0, done.err
    result = json.loads((run_dir / "result.json").read_text())
    assert result["source"]["pictures"] == 2
    assert result["pictures"] == 2
    figures = tmp_path / "eval.json"
    again = script(
        "eval", run_dir / "checkpoint_last.pt", "--gta5", game, "--json", figures, "--workers", 0, "--device", "cpu"
    )
    assert again.status == 0, again.err
    (measured,) = json.loads(figures.read_text())["evaluations"]
    assert measured["iou"] == result["source"]["iou"]


def weights(run_dir):
    checkpoint = load_checkpoint(run_dir / "checkpoint_last.pt")
    return checkpoint["weights"], checkpoint["training"]["optimizer"], checkpoint["history"]


def same_run(first, second):
    """Bit for bit: weights, momentum, figures."""
    (w1, o1, h1), (w2, o2, h2) = weights(first), weights(second)
    assert all(torch.equal(w1[key], w2[key]) for key in w1)
    for p in o1["state"]:
        assert torch.equal(o1["state"][p]["momentum_buffer"], o2["state"][p]["momentum_buffer"])
    assert o1["param_groups"] == o2["param_groups"]
    assert h1 == h2


def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(script, game, city, tmp_path):
    for name, workers, seed in (("a", 0, 0), ("b", 2, 0), ("c", 0, 1)):
        more = ("--jitter", "--blur", "--workers", workers, "--seed", seed)
        assert script(*source_only(game, city, tmp_path / name, *more)).status == 0
    same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        same_run(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("kind", ["upper", "source"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(script, game, city, tmp_path, monkeypatch, kind):
    def command(run_dir, *more):
        if kind == "upper":
            return upper(city, run_dir, *more)
        return source_only(game, city, run_dir, "--jitter", "--source-holdout", 0.3, *more)

    assert script(*command(tmp_path / "straight")).status == 0
    evaluate = Run.evaluate

    def interrupted(self, *arguments, **sets):
        evaluate(self, *arguments, **sets)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script(*command(tmp_path / "broken"))
    monkeypatch.setattr(Run, "evaluate", evaluate)
    assert not (tmp_path / "broken/result.json").exists()
    done = script(*command(tmp_path / "broken", "--resume"))
    assert done.status == 0, done.err
    same_run(tmp_path / "straight", tmp_path / "broken")
    assert (tmp_path / "straight/metrics.jsonl").read_text() == (tmp_path / "broken/metrics.jsonl").read_text()


def test_resume_refuses_another_experiment_and_a_new_run_never_overwrites(script, city, tmp_path):
    run_dir = tmp_path / "run"
    assert script(*upper(city, run_dir)).status == 0
    before = (run_dir / "checkpoint_last.pt").read_bytes()
    assert "holds a run already" in one_line_error(script(*upper(city, run_dir)))
    stripped = write_cityscapes(tmp_path / "train ids", encoding="labelTrainIds")
    assert "holds other pictures" in one_line_error(script(*upper(stripped, run_dir, "--resume")))
    message = one_line_error(script(*upper(city, run_dir, "--resume", "--seed", 7, "--lr", 0.5)))
    assert "--lr was 0.01, is 0.5" in message
    assert "--seed was 0, is 7" in message
    other = write_cityscapes(tmp_path / "other", counts=(("train", 3), ("val", 2)))
    assert "holds other pictures" in one_line_error(script(*upper(other, run_dir, "--resume")))
    assert (run_dir / "checkpoint_last.pt").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    assert "is not empty" in one_line_error(script(*upper(city, tmp_path / "mine")))
    assert "--run-dir" in one_line_error(script("train_cityscapes", "--cityscapes", city, "--resume"))
    done = script(*upper(city, run_dir, "--resume"))  # a finished run says its row again
    assert done.status == 0
    assert "headline" in done.out


def test_init_starts_from_another_runs_network(script, game, city, tmp_path):
    assert script(*source_only(game, city, tmp_path / "first")).status == 0
    start = load_checkpoint(tmp_path / "first/checkpoint_last.pt")["weights"]
    more = ("--init", tmp_path / "first/checkpoint_last.pt", "--max-steps", 1, "--lr", 0)
    assert script(*upper(city, tmp_path / "second", *more)).status == 0
    after = load_checkpoint(tmp_path / "second/checkpoint_last.pt")["weights"]
    assert all(torch.equal(start[k], after[k]) for k in start if "running" not in k and "num_batches" not in k)
    more = ("--init", tmp_path / "first/checkpoint_last.pt", "--backbone", "resnet101")
    message = one_line_error(script(*upper(city, tmp_path / "third", *more)))
    assert "resnet18" in message
    assert "resnet101" in message


def test_a_loss_that_is_not_finite_stops_the_run(script, city, tmp_path, monkeypatch):
    monkeypatch.setattr("train_cityscapes.segmentation_loss", lambda outputs, *a: outputs[0].sum() * float("nan"))
    message = one_line_error(script(*upper(city, tmp_path / "run")))
    assert "loss is nan at step 1" in message


def test_max_steps_alone_decides_and_with_epochs_the_earlier(city, monkeypatch):
    def total(*flags):
        monkeypatch.setattr("sys.argv", ["train_cityscapes.py", "--cityscapes", str(city), "--batch-size", "2", *flags])
        return Run(parse(training_parser("", source=False)), cityscapes(city, "train")).total_steps

    assert total() == 50 * 2
    assert total("--max-steps", "500") == 500
    assert total("--max-steps", "500", "--epochs", "3") == 6
    assert total("--max-steps", "5", "--epochs", "3") == 5


def test_defaults_are_the_papers_and_the_reports(city, monkeypatch):
    def parsed(*flags):
        monkeypatch.setattr("sys.argv", ["train_cityscapes.py", "--cityscapes", str(city), *flags])
        args = parse(training_parser("", source=False))
        return args.batch_size, args.lr, args.weight_decay, args.flip, args.scales, args.aux_weight, args.backbone

    scales = (0.75, 1.0, 1.5, 1.75, 2.0)
    assert parsed() == (16, 2.5e-2, 1e-4, 0.5, scales, 1.0, "resnet18")
    assert parsed("--settings", "report") == (4, 2.5e-4, 1e-4, 0.0, (1.0,), 1.0, "resnet18")
    assert parsed("--model", "deeplabv2") == (4, 2.5e-4, 5e-4, 0.5, scales, 0.1, "resnet101")
    assert parsed("--model", "deeplabv2", "--settings", "report")[:3] == (4, 1e-4, 5e-4)
    flags = ("--batch-size", "2", "--lr", "1", "--weight-decay", "0", "--flip", "0.15", "--scales", "1,2",
             "--aux-weight", "0.4", "--backbone", "resnet101")  # fmt: skip
    assert parsed("--settings", "report", *flags) == (2, 1.0, 0.0, 0.15, (1.0, 2.0), 0.4, "resnet101")


def test_jitter_and_blur_have_the_reports_constants_and_differ_between_pictures():
    jitter, blur = Appearance(jitter=True, blur=True).transforms
    assert (jitter.brightness, jitter.contrast, jitter.saturation) == ((0.5, 1.5),) * 3
    assert jitter.hue == (-0.05, 0.05)
    assert (tuple(blur.kernel_size), tuple(blur.sigma)) == ((3, 3), (0.2, 0.8))
    pictures = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8).expand(3, -1, -1, -1)
    assert torch.equal(Appearance()(pictures), pictures.float() / 255)
    torch.manual_seed(0)
    looks = Appearance(jitter=True)(pictures)
    assert 0 <= float(looks.min()) <= float(looks.max()) <= 1
    assert not torch.equal(looks[0], looks[1])


def test_demo_writes_its_scenes_and_runs(script, tmp_path, monkeypatch):
    small = {"size": (64, 32), "source": 10, "target": 6, "val": 4}
    monkeypatch.setattr("utils.arguments.DEMO_SCENES", small)
    monkeypatch.setattr("utils.arguments.DEMO_ROOT", tmp_path / "scenes")
    flags = ("--demo", "--size", "64x32", "--source-size", "64x32", "--max-steps", 2, "--device", "cpu", "--workers", 0)
    for name in ("train_cityscapes", "train_gta5"):
        done = script(name, *flags, "--run-dir", tmp_path / name)
        assert done.status == 0, done.err
    assert json.loads((tmp_path / "train_gta5/result.json").read_text())["source"]["pictures"] == 2
    monkeypatch.setattr("utils.arguments.DEMO_ROOT", tmp_path / "train_gta5/config.json")
    assert "--demo" in one_line_error(script("train_cityscapes", *flags, "--run-dir", tmp_path / "never"))


def test_deeplabv2_trains_through_the_same_flags(script, city, tmp_path):
    more = ("--model", "deeplabv2", "--max-steps", 1, "--limit", 2, "--size", "33x33")
    assert script(*upper(city, tmp_path / "run", *more)).status == 0
    network = load_checkpoint(tmp_path / "run/checkpoint_last.pt")["network"]
    assert network == {"name": "deeplabv2", "num_classes": 19, "backbone": "resnet101", "multi_level": False,
                       "frozen_batch_norm": False}  # fmt: skip
    assert script("eval", tmp_path / "run/checkpoint_last.pt", "--workers", 0, "--device", "cpu").status == 0
    message = one_line_error(script(*upper(city, tmp_path / "no", "--model", "deeplabv2", "--backbone", "resnet18")))
    assert "resnet101" in message


def test_gta5_lists_mappings_and_limits_reach_the_script(script, game, city, tmp_path):
    listed, mapping = tmp_path / "list.txt", tmp_path / "map.json"
    listed.write_text("00001\n00002\n00003\n00005\n")
    mapping.write_text(json.dumps({"label2train": [[i, 0] for i in range(35)]}))  # everything is road
    flags = ("--gta5-list", listed, "--gta5-mapping", mapping, "--limit", 3, "--source-holdout", 0.34, "--max-steps", 1)
    done = script(*source_only(game, city, tmp_path / "run", *flags))
    assert done.status == 0, done.err
    assert "GTA5: 3 pictures" in done.out
    source = json.loads((tmp_path / "run/result.json").read_text())["source"]
    assert source["pictures"] == 1
    assert [name for name, value in source["iou"].items() if value is not None] == ["road"]


def test_max_steps_ends_the_run_and_the_schedule(script, city, tmp_path):
    assert script(*upper(city, tmp_path / "run", "--max-steps", 3)).status == 0
    checkpoint = load_checkpoint(tmp_path / "run/checkpoint_last.pt")
    assert checkpoint["step"] == 3
    assert checkpoint["training"]["optimizer"]["param_groups"][0]["lr"] == 0
    assert checkpoint["config"]["total_steps"] == 3


def test_poly_schedule_and_weight_decay():
    from argparse import Namespace

    from utils.arguments import poly, sgd

    model = models.build_segmenter("bisenet")
    optimizer = sgd(model, Namespace(weight_decay=1e-4, lr=0.025))
    plain = {id(p) for p in optimizer.param_groups[1]["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in plain) == (name.endswith("bias") or "bn" in name or parameter.ndim == 1), name
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    schedule = poly(optimizer, 10)
    for step in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025 * (1 - step / 10) ** 0.9, rel=1e-9)
        optimizer.step()
        schedule.step()


# eval.py


@pytest.fixture
def trained(script, city, tmp_path):
    assert script(*upper(city, tmp_path / "run", "--max-steps", 2)).status == 0
    return tmp_path / "run/checkpoint_last.pt"


def test_eval_saves_pictures_and_ids(script, city, trained, tmp_path):
    out = {name: tmp_path / name for name in ("predictions", "ids", "side-by-side")}
    flags = [part for name, path in out.items() for part in (f"--save-{name}", path)]
    assert script("eval", trained, *flags, "--workers", 0, "--device", "cpu").status == 0
    for name in ("aachen_000004_000019", "bochum_000005_000019"):
        saved = np.array(Image.open(out["ids"] / f"{name}_pred_labelIds.png"))
        colours = np.array(Image.open(out["predictions"] / f"{name}.png"))
        assert saved.shape == (32, 48)
        assert np.array_equal(CITYSCAPES_PALETTE[saved], colours)
        assert set(np.unique(saved).tolist()) <= {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33}
        assert Image.open(out["side-by-side"] / f"{name}.png").size == (3 * 48, 32 + 18)
    message = one_line_error(script("eval", trained, "--save-ids", out["ids"]))
    assert "nothing is overwritten" in message


def test_eval_predicts_without_labels(script, city, trained, tmp_path):
    bare = write_cityscapes(tmp_path / "bare", counts=(("test", 3),), labels=False)
    common = ("--cityscapes", bare, "--split", "test", "--workers", 0, "--device", "cpu")
    done = script("eval", trained, *common, "--unlabelled", "--save-ids", tmp_path / "ids")
    assert done.status == 0, done.err
    assert len(list((tmp_path / "ids").iterdir())) == 3
    assert "no gtFine/test" in one_line_error(script("eval", trained, *common))


def test_eval_refuses_to_compare_networks_on_different_pictures(script, city, trained, tmp_path):
    assert script(*upper(city, tmp_path / "other", "--max-steps", 1, "--limit", 1)).status == 0
    both = ("eval", trained, tmp_path / "other/checkpoint_last.pt", "--workers", 0, "--device", "cpu")
    assert "do not compare" in one_line_error(script(*both))
    done = script(*both, "--limit", 2, "--save-predictions", tmp_path / "out")
    assert done.status == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run", "other"}


def test_runs_of_one_name_are_told_apart(script, city, trained, tmp_path):
    twin = tmp_path / "twin/run/checkpoint_last.pt"
    twin.parent.mkdir(parents=True)
    twin.write_bytes(trained.read_bytes())
    done = script("eval", trained, twin, "--save-ids", tmp_path / "ids", "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    names = {path.name for path in (tmp_path / "ids").iterdir()}
    assert names == {"run checkpoint_last", "run checkpoint_last (2)"}


def test_a_target_without_labels_is_trained_for_and_evaluated_by_entropy(script, game, tmp_path):
    bare = write_cityscapes(tmp_path / "bare", labels=False)
    run_dir = tmp_path / "unlabelled"
    assert "no gtFine/val" in one_line_error(script(*source_only(game, bare, run_dir)))
    done = script(*source_only(game, bare, run_dir, "--unlabelled-val", "--source-holdout", 0.3))
    assert done.status == 0, done.err
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["miou"], result["accuracy"], result["oracle"]) == (None, None, None)
    assert 0 <= result["entropy"] <= 1
    assert result["source"]["miou"] is not None
    assert not (run_dir / "checkpoint_best.pt").exists()


def test_eval_compares_several_checkpoints(script, city, trained, tmp_path):
    best = trained.with_name("checkpoint_best.pt")
    done = script("eval", trained, best, "--save-side-by-side", tmp_path / "both", "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    assert "run checkpoint_last" in done.out
    assert "run checkpoint_best" in done.out
    assert Image.open(next((tmp_path / "both").iterdir())).size[0] == 4 * 48


def test_adabn_changes_statistics_alone_and_equals_the_plain_average(script, city, trained, tmp_path):
    checkpoint = load_checkpoint(trained)
    model, before = build_from_checkpoint(checkpoint, trained), checkpoint["weights"]
    pictures = torch.randint(0, 256, (6, 3, 32, 48), dtype=torch.uint8)
    first = []
    hook = model.context_path.bn1.register_forward_pre_hook(lambda module, inputs: first.append(inputs[0]))
    assert adapt_batch_norm(model, [pictures[:2], pictures[2:4], pictures[4:6], pictures[:1]], torch.device("cpu")) == 6
    hook.remove()
    after = model.state_dict()
    for key, value in before.items():
        assert torch.equal(value, after[key]) == ("running" not in key and "num_batches" not in key), key
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in first]).mean(0)
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in first]).mean(0)
    assert torch.allclose(after["context_path.bn1.running_mean"], means, atol=1e-5)
    assert torch.allclose(after["context_path.bn1.running_var"], variances, rtol=1e-4)
    assert all(module.momentum == 0.1 for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    for file in (city / "gtFine/train").rglob("*.png"):
        file.unlink()  # AdaBN must not need the target's labels
    done = script("eval", trained, "--adapt-bn", "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    assert "re-estimated on 4 pictures" in done.out
    checkpoint["config"]["arguments"]["batch_size"] = 16  # larger than the set: one batch of all of it
    save_checkpoint(trained, checkpoint)
    assert "on 4 pictures" in script("eval", trained, "--adapt-bn", "--workers", 0, "--device", "cpu").out
    assert "+ AdaBN" in done.out
    with pytest.raises(ValueError, match="at least two"):
        adapt_batch_norm(model, [pictures[:1]], torch.device("cpu"))


# Mistakes: one clear line, status 2


def test_mistakes_in_data_are_one_line(script, city, game, tmp_path):
    run = tmp_path / "never"
    assert "no such folder" in one_line_error(script(*upper(tmp_path / "nowhere", run)))
    assert "no such folder" in one_line_error(script(*source_only(tmp_path / "nowhere", city, run)))
    assert "--cityscapes DIR is missing" in one_line_error(script("train_cityscapes", "--weights", "none"))
    assert "--gta5 DIR is missing" in one_line_error(script("train_gta5", "--cityscapes", city))
    empty = write_cityscapes(tmp_path / "empty", counts=(("train", 2),))
    (empty / "leftImg8bit/val").mkdir()
    assert "split is empty" in one_line_error(script(*upper(empty, run)))
    lonely = write_cityscapes(tmp_path / "lonely")
    next((lonely / "gtFine/train").rglob("*.png")).unlink()
    assert "without label" in one_line_error(script(*upper(lonely, run)))
    lonely = write_cityscapes(tmp_path / "lonely 2")
    next((lonely / "leftImg8bit/train").rglob("*.png")).unlink()
    assert "without picture" in one_line_error(script(*upper(lonely, run)))
    grey = write_gta5(tmp_path / "grey", encoding="trainIds")
    assert "probably train ids" in one_line_error(script(*source_only(grey, city, run)))
    assert "expected train ids" in one_line_error(script(*source_only(game, city, run, "--gta5-encoding", "trainIds")))
    colours = write_gta5(tmp_path / "colours", encoding="rgb")
    for file in (colours / "labels").iterdir():
        Image.fromarray(np.full((32, 48, 3), 9, dtype=np.uint8)).save(file)
    assert "have colours that are in no" in one_line_error(script(*source_only(colours, city, run)))
    torn = write_gta5(tmp_path / "torn")
    file = torn / "labels/00001.png"
    file.write_bytes(file.read_bytes()[:-40])
    assert "labels/00001.png" in one_line_error(script(*source_only(torn, city, run)))
    file.write_bytes(b"")
    assert "0 bytes" in one_line_error(script(*source_only(torn, city, run)))
    shape = write_cityscapes(tmp_path / "shape")
    Image.fromarray(ids(0, (40, 40))).save(next((shape / "gtFine/train").rglob("*.png")))
    assert "is 40 x 40 but its picture" in one_line_error(script(*upper(shape, run)))
    assert not run.exists()


def test_a_start_that_fails_leaves_no_directory(script, city, tmp_path):
    for flags in (("--weights", "missing.pth"), ("--init", "missing.pt")):
        one_line_error(script(*upper(city, tmp_path / "run", *flags)))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--size", "1024"), "WIDTHxHEIGHT"), (("--size", "0x512"), "32 to 8192"), (("--size", "99999x99999"), "32 to"),
     (("--size=-4x9",), "WIDTHxHEIGHT"), (("--batch-size", "0"), "at least 1"), (("--batch-size", "1"), "at least 2"),
     (("--lr", "fast"), "from 0 to 100"), (("--device", "cuda:99"), "CUDA device"), (("--device", "tpu9"), "cpu, cuda"),
     (("--device", "meta"), "cpu, cuda"),
     (("--flip", "2"), "from 0 to 1"), (("--scales", "1,x"), "from 0.1 to 10"), (("--epochs", "-1"), "at least 1"),
     (("--weights", "missing.pth"), "does not exist"), (("--init", "missing.pt"), "no such file"),
     (("--frobnicate",), "unrecognized arguments"), (("--cityscapes-list", "none.txt"), "cannot be read")],
)  # fmt: skip
def test_mistakes_in_flags_are_one_line(script, city, tmp_path, flags, said):
    assert said in one_line_error(script(*upper(city, tmp_path / "run", *flags)))


def test_mistakes_in_checkpoints_are_one_line(script, city, trained, tmp_path):
    assert "no such file" in one_line_error(script("eval", tmp_path / "none.pt"))
    whole = trained.read_bytes()
    bad = tmp_path / "bad.pt"
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        assert "no checkpoint of this project" in one_line_error(script("eval", bad))
    torch.save({"weights": {}}, bad)
    assert "lacks the network" in one_line_error(script("eval", bad))
    torch.save(torch.zeros(3), bad)
    assert "no checkpoint of this project" in one_line_error(script("eval", bad))
    checkpoint = torch.load(trained, weights_only=True)
    save_checkpoint(bad, checkpoint | {"network": checkpoint["network"] | {"backbone": "resnet101"}})
    assert "do not fit" in one_line_error(script("eval", bad))
    save_checkpoint(bad, checkpoint | {"network": checkpoint["network"] | {"name": "unet"}})
    assert "unet" in one_line_error(script("eval", bad))
    assert "does not exist" in one_line_error(script("eval", trained, "--json", tmp_path / "no/where.json"))
    mine = tmp_path / "mine.json"
    mine.write_text("[1]")
    assert "name another file" in one_line_error(script("eval", trained, "--json", mine))


def test_a_malicious_checkpoint_executes_nothing(script, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"format": 1, "network": Evil(), "weights": {}, "config": {}}, tmp_path / "evil.pt")
    one_line_error(script("eval", tmp_path / "evil.pt"))
    assert not (tmp_path / "owned").exists()


def test_the_check_runs_alone(script, city, game):
    done = script("datasets.check", "--gta5", game, "--cityscapes", city)
    assert done.status == 0, done.err
    assert "GTA5: 6 pictures" in done.out
    assert "Cityscapes val: 2 pictures" in done.out
    assert "nothing to check" in one_line_error(script("datasets.check"))


def test_report_groups_seeds_and_tells_settings_apart(script, city, tmp_path):
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run, more in zip(runs, (("--seed", 0), ("--seed", 1), ("--flip", 0)), strict=True):
        assert script(*upper(city, run, "--max-steps", 2, *more)).status == 0
    done = script("report", *runs)
    assert done.status == 0, done.err
    first, second = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines()[2:4]]
    assert (first[1], second[1]) == ("2", "1")
    assert "flip=0.5" in first[0]
    assert "flip=0.0" in second[0]
    mious = [100 * json.loads((run / "result.json").read_text())["miou"] for run in runs]
    assert first[3] == f"{np.mean(mious[:2]):.1f} ± {np.std(mious[:2], ddof=1):.1f}"
    assert second[3] == f"{mious[2]:.1f}"
    (runs[1] / "result.json").write_text("{}")
    assert "damaged" in one_line_error(script("report", *runs))
    (runs[1] / "result.json").unlink()
    assert "not ended" in one_line_error(script("report", *runs))


def test_resuming_what_never_wrote_a_checkpoint_still_loads_the_weights_asked_for(script, city, tmp_path, monkeypatch):
    loaded = []
    original = models.build_segmenter
    monkeypatch.setattr(models, "build_segmenter", lambda *a, **k: loaded.append(k["weights"]) or original(*a, **k))
    resnet = tmp_path / "resnet.pth"
    state = original("bisenet").context_path.state_dict()
    torch.save(state, resnet)
    run = upper(city, tmp_path / "run", "--max-steps", 1, "--weights", resnet, "--resume")
    assert script(*run).status == 0
    assert script(*run).status == 0
    assert loaded == [str(resnet), "none"]
