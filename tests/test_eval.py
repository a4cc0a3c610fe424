"""eval.py: evaluation repeats what training printed; AdaBN; pictures; tables."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, SOURCE, one_line_error, source_only, upper, write_cityscapes, write_gta5
from PIL import Image
from soak import INTRA

from adaptation.adabn import adapt_batch_norm
from datasets import cityscapes
from datasets.labels import CITYSCAPES_PALETTE, CLASS_NAMES
from models.ensemble import MeanSoftmax
from training.adabn import adapt_to
from training.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint
from training.evaluation import predict
from training.prediction import Eager
from utils.errors import UserError
from utils.metrics import ConfusionMatrix


def table(out):
    """Figures of the rows of the per-class table: name -> first column."""
    rows = [line.strip("| \n").split("|") for line in out.splitlines() if line.startswith("|")]
    return {row[0].strip(): row[1].strip() for row in rows if row[0].strip() in (*CLASS_NAMES, "mean")}


def test_a_network_whose_outputs_are_no_numbers_has_no_figures(script, city, trained, tmp_path):
    """Its argmax is the first class, road, which has a figure everywhere."""
    content = load_checkpoint(trained)
    last = next(name for name in reversed(content["weights"]) if name.endswith("running_var"))
    content["weights"][last] = torch.full_like(content["weights"][last], -1.0)  # finite, and the output is not
    diverged = tmp_path / "diverged.pt"
    save_checkpoint(diverged, content)
    labelled = ("--cityscapes", city, *SMALL, "--max-steps", 1)
    game = ("--gta5", write_gta5(tmp_path / "game"), *SOURCE)
    machine = ("--workers", 0, "--device", "cpu")
    done = script("eval", diverged, *machine, "--json", tmp_path / "figures.json")
    assert done.status == 0, done.err
    assert "note: the network's outputs are no numbers (NaN or infinite), so it predicts nothing" in done.out
    (found,) = json.loads((tmp_path / "figures.json").read_text())["evaluations"]
    assert (found["accuracy"], found["miou"], found["entropy"], {*found["iou"].values()}) == (None, None, None, {None})
    on_frames = Eager(build_from_checkpoint(content, diverged).eval(), (48, 32), torch.device("cpu"))
    with pytest.raises(UserError, match="no numbers"):
        on_frames(torch.zeros(3, 32, 48, dtype=torch.uint8))
    for name, command in {
        "train_pseudo_labels": (*labelled, *game, "--labeller", diverged, "--run-dir", tmp_path / "self"),
        "train_adversarial": (*labelled, *INTRA, diverged, "--run-dir", tmp_path / "intra"),
        "predict": (diverged, city / "leftImg8bit/val", "--out", tmp_path / "out", "--device", "cpu"),
    }.items():
        assert "the network's outputs are no numbers (NaN or infinite)" in one_line_error(script(name, *command)), name


def test_a_run_leaves_what_the_readme_says_and_eval_repeats_its_figures(script, city, tmp_path):
    run_dir = tmp_path / "a run"
    done = script(*upper(city, run_dir))
    assert done.status == 0, done.err
    assert {path.name for path in run_dir.iterdir()} == {
        "config.json", "metrics.jsonl", "result.json", "checkpoint_last.pt", "checkpoint_best.pt", "tensorboard",
        "model_card.md",
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
    common = ("eval", run_dir / "checkpoint_last.pt", "--json", figures, "--force", "--workers", 0, "--device", "cpu")
    fewer = script(*common, "--gta5", game, "--limit", 1)  # of those that were held out
    assert "GTA5 held out: 1 picture" in fewer.out
    other = write_gta5(tmp_path / "other", count=8)
    said = script(*common, "--gta5", other).out
    assert "was trained on other pictures than these of GTA5; all of them are evaluated" in said
    assert "GTA5: 8 pictures" in said
    assert "--split does nothing here: a source has no splits" in one_line_error(
        script(*common, "--gta5", game, "--split", "val")
    )


def test_eval_reads_another_size_on_request_and_says_when_a_set_is_not_the_runs(script, city, trained, tmp_path):
    figures = ("--json", tmp_path / "figures.json", "--force", "--workers", 0, "--device", "cpu")
    plain = script("eval", trained, *figures)
    assert "note" not in plain.out
    whole = json.loads((tmp_path / "figures.json").read_text())["evaluations"][0]
    small = script("eval", trained, *figures, "--size", "96x64")
    assert small.status == 0, small.err
    assert json.loads((tmp_path / "figures.json").read_text())["evaluations"][0]["iou"] != whole["iou"]
    assert whole["read"]["Cityscapes val"]["pictures"] == 2


def test_adabn_sees_the_pictures_that_the_run_may_see(script, city, tmp_path):
    names = sorted(path.name.removesuffix("_leftImg8bit.png") for path in (city / "leftImg8bit/train").rglob("*.png"))
    (tmp_path / "list").write_text("\n".join(names[:2]))
    assert script(*upper(city, tmp_path / "run", "--max-steps", 1, "--cityscapes-list", tmp_path / "list")).status == 0
    done = script("eval", tmp_path / "run", "--adapt-bn", "--workers", 0, "--device", "cpu")
    assert "re-estimated on 2 pictures" in done.out, done.err


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


@pytest.mark.parametrize("kinds", [("predictions", "side-by-side"), ("ids", "side-by-side"), ("predictions", "ids")])
def test_eval_saves_no_two_kinds_of_pictures_in_one_folder(script, trained, tmp_path, kinds):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    flags = (f"--save-{kinds[0]}", tmp_path / "out", f"--save-{kinds[1]}", tmp_path / "link")
    said = one_line_error(script("eval", trained, *flags, "--workers", 0, "--device", "cpu"))
    assert f"{tmp_path / 'link'}: two kinds of pictures would be saved there" in said
    assert not (tmp_path / "out").exists()


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
    assert "do not compare" in one_line_error(script(*both, "--save-predictions", tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "the first was evaluated before the second was looked at"
    done = script(*both, "--limit", 2, "--save-predictions", tmp_path / "out")
    assert done.status == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run", "other"}


def test_runs_of_one_name_are_told_apart(script, city, trained, tmp_path):
    twin = tmp_path / "twin/run/checkpoint_last.pt"
    twin.parent.mkdir(parents=True)
    twin.write_bytes(trained.read_bytes())
    done = script("eval", trained, twin, "--no-mean", "--save-ids", tmp_path / "ids", "--workers", 0)
    assert done.status == 0, done.err
    names = {path.name for path in (tmp_path / "ids").iterdir()}
    assert names == {"run checkpoint_last", "run checkpoint_last (2)"}


def test_eval_compares_several_checkpoints(script, city, trained, tmp_path):
    best = trained.with_name("checkpoint_best.pt")
    command = ("eval", trained, best, "--workers", 0, "--device", "cpu")
    done = script(*command, "--save-side-by-side", tmp_path / "both")
    assert done.status == 0, done.err
    assert "mean of 2" not in done.out
    assert "ask for it with --mean" in done.out
    assert "run checkpoint_last" in done.out
    assert "run checkpoint_best" in done.out
    assert Image.open(next((tmp_path / "both").iterdir())).size[0] == 4 * 48


def test_eval_reports_each_network_and_the_mean_of_their_softmax(script, city, trained, tmp_path):
    paths = [trained]
    for seed in (1, 2):
        assert script(*upper(city, tmp_path / f"seed{seed}", "--max-steps", 3, "--seed", seed)).status == 0
        paths.append(tmp_path / f"seed{seed}/checkpoint_last.pt")
    figures = tmp_path / "eval.json"
    done = script("eval", *paths, "--mean", "--json", figures, "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    records = json.loads(figures.read_text())["evaluations"]
    assert [record["name"] for record in records] == ["run", "seed1", "seed2", "mean of 3"]
    assert records[3]["checkpoint"] == [str(path) for path in paths]
    networks = [build_from_checkpoint(load_checkpoint(path), path).eval() for path in paths]
    data, matrix = cityscapes(city, "val", (48, 32)), ConfusionMatrix(19)
    for image, label in (data[0], data[1]):
        with torch.no_grad():
            softmax = [network(image[None] / 255).double().softmax(1) for network in networks]
            mean = sum(softmax) / 3
            found = MeanSoftmax(networks)(image[None] / 255).softmax(1)
        assert torch.allclose(found.double(), mean, atol=1e-6)
        matrix.update(mean.argmax(1)[0], label)
    assert records[3]["miou"] == pytest.approx(matrix.miou(), abs=1e-3)
    assert len({record["miou"] for record in records}) == 4

    assert script(*upper(city, tmp_path / "large", "--max-steps", 1, "--size", "64x32")).status == 0
    done = script("eval", trained, tmp_path / "large", "--mean", "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    assert "different working sizes" in done.out


CPU = ("--workers", 0, "--device", "cpu")


def test_figures_are_replaced_on_request_alone(script, trained, tmp_path):
    figures = tmp_path / "eval.json"
    assert script("eval", trained, "--json", figures, *CPU).status == 0
    before = figures.read_text()
    said = one_line_error(script("eval", trained, "--adapt-bn", "--json", figures, *CPU))
    assert "holds an earlier evaluation; name another file, or replace it with --force" in said
    assert figures.read_text() == before
    assert script("eval", trained, "--adapt-bn", "--json", figures, "--force", *CPU).status == 0
    assert figures.read_text() != before
    figures.write_text("[]")
    assert "no evaluation" in one_line_error(script("eval", trained, "--json", figures, "--force", *CPU))


def test_a_run_stands_for_its_last_checkpoint(script, city, trained, tmp_path):
    figures = [tmp_path / "file.json", tmp_path / "run.json"]
    for place, file in zip((trained, trained.parent), figures, strict=True):
        assert script("eval", place, "--json", file, *CPU).status == 0
    assert figures[0].read_text() == figures[1].read_text()
    (picture, *_) = (city / "leftImg8bit/val").rglob("*.png")
    assert script("predict", trained.parent, picture, "--out", tmp_path / "seen", "--device", "cpu").status == 0
    assert script(*upper(city, tmp_path / "next", "--max-steps", 1, "--init", trained.parent)).status == 0

    config = json.loads((tmp_path / "next/config.json").read_text())
    assert config["arguments"]["init"] == str(trained)
    said = one_line_error(script("eval", tmp_path, *CPU))
    assert f"no checkpoint_last.pt is there; name one of its runs: {tmp_path / 'next'}, {trained.parent}" in said
    assert "or the directory of a run" in one_line_error(script("eval", city, *CPU))


def test_bands_of_one_experiment_are_averaged_and_other_networks_on_request(script, game, city, tmp_path):
    fda = ("train_fda", *source_only(game, city, tmp_path / "fda", "--max-steps", 1, "--beta", 0.05, 0.1)[1:])
    assert script(*fda).status == 0
    bands = [tmp_path / "fda/beta-0.05", tmp_path / "fda/beta-0.1"]
    assert "mean of 2" in script("eval", *bands, *CPU).out
    assert "mean of 2" not in script("eval", *bands, "--no-mean", *CPU).out
    last_and_best = script("eval", bands[0], bands[0] / "checkpoint_best.pt", *CPU)
    assert "ask for it with --mean" in last_and_best.out

    for name, flags in (("other", ("--beta", 0.1, "--seed", 1)), ("lab", ("--translation", "lab"))):
        run = ("train_fda", *source_only(game, city, tmp_path / name, "--max-steps", 1, *flags)[1:])
        assert script(*run).status == 0
        done = script("eval", bands[0], tmp_path / name, *CPU)
        assert done.status == 0, done.err
        assert "mean of 2" not in done.out
        assert "no mean of the networks: they are no bands of one FDA experiment; ask for it with --mean" in done.out
        assert "mean of 2" in script("eval", bands[0], tmp_path / name, "--mean", *CPU).out


def test_a_run_without_a_source_is_evaluated_on_one_as_it_lies_there(script, game, trained):
    done = script("eval", trained, "--gta5", game, *CPU)
    assert done.status == 0, done.err
    assert f"note: {trained} had no source; GTA5 is read as training does without further flags" in done.out
    assert "GTA5, 6 pictures" in done.out


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


def test_predictions_are_enlarged_before_the_class_is_taken():
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 4, 6)
    enlarged = F.interpolate(logits, size=(9, 11), mode="bilinear", align_corners=False)
    assert torch.equal(predict(logits, (9, 11)), enlarged.argmax(1)[0].byte())


def test_adabn_takes_the_evaluated_size_and_the_runs_batch_size(script, trained, monkeypatch):
    seen, content = [], load_checkpoint(trained)
    monkeypatch.setattr("eval.adapt_to", lambda model, data, batch, *more:
                        seen.append((data.size, batch)) or adapt_to(model, data, batch, *more))  # fmt: skip
    content["config"]["arguments"]["batch_size"] = 3
    save_checkpoint(trained, content)
    assert script("eval", trained, "--adapt-bn", "--size", "96x64", "--workers", 0, "--device", "cpu").status == 0
    assert seen == [((96, 64), 3)]
