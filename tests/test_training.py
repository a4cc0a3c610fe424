"""The training scripts as a user runs them: same seed same run, resumption, flags that mean what they say."""

import importlib
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import assert_resumes_exactly, one_line_error, same, source_only, upper, write_cityscapes
from PIL import Image

import models
from adaptation.losses import LOSSES, cross_entropy
from datasets import cityscapes
from datasets.appearance import Appearance
from datasets.geometry import Geometry
from training.building import adam, poly, sgd, supervised_loss
from training.checkpoint import load_checkpoint
from training.flags import parse, training_parser
from training.run import Run


def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(script, game, city, tmp_path):
    for name, workers, seed in (("a", 0, 0), ("b", 2, 0), ("c", 0, 1)):
        more = ("--jitter", "--blur", "--workers", workers, "--seed", seed, *(["--no-cache"] if workers else []))
        assert script(*source_only(game, city, tmp_path / name, *more)).status == 0
    a, b, c = (load_checkpoint(tmp_path / name / "checkpoint_last.pt") for name in ("a", "b", "c"))
    for part in ("weights", "training", "history"):
        assert same(a[part], b[part])
        assert not same(a[part], c[part])


def test_an_interrupted_upper_bound_goes_on_as_if_it_had_not_been(script, city, tmp_path, monkeypatch):
    def command(run_dir, *more):
        return upper(city, run_dir, "--epochs", 4, "--eval-every", 2, *more)

    straight = assert_resumes_exactly(script, monkeypatch, tmp_path, command)
    assert [entry["epoch"] for entry in straight["history"]] == [2, 4]


def test_an_interrupted_source_only_run_goes_on_as_if_it_had_not_been(script, game, city, tmp_path, monkeypatch):
    def command(run_dir, *more):
        return source_only(game, city, run_dir, "--jitter", "--source-holdout", 0.3, *more)

    assert_resumes_exactly(script, monkeypatch, tmp_path, command)


def test_resume_refuses_another_experiment_and_a_new_run_never_overwrites(script, city, tmp_path):
    run_dir = tmp_path / "run"
    assert script(*upper(city, run_dir)).status == 0
    before = (run_dir / "checkpoint_last.pt").read_bytes()
    assert "already holds a run" in one_line_error(script(*upper(city, run_dir)))
    stripped = write_cityscapes(tmp_path / "train ids", encoding="labelTrainIds")
    assert "holds other pictures" in one_line_error(script(*upper(stripped, run_dir, "--resume")))
    message = one_line_error(script(*upper(city, run_dir, "--resume", "--seed", 7, "--lr", 0.5)))
    assert "--lr was 0.01, is 0.5" in message
    assert "--seed was 0, is 7" in message
    other = write_cityscapes(tmp_path / "other", counts=(("train", 3), ("val", 2)))
    assert "holds other pictures" in one_line_error(script(*upper(other, run_dir, "--resume")))
    translated = write_cityscapes(tmp_path / "translated")
    first, *rest = sorted((translated / "leftImg8bit").rglob("*.png"))
    Image.open(first).convert("L").save(first)  # one that was mended is no other set
    assert script(*upper(translated, run_dir, "--resume")).status == 0
    for path in rest:
        Image.open(path).convert("L").save(path)
    assert "holds other pictures" in one_line_error(script(*upper(translated, run_dir, "--resume")))
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
    more = ("--init", tmp_path / "first/checkpoint_last.pt", "--backbone", "wide")
    message = one_line_error(script(*upper(city, tmp_path / "third", *more)))
    assert "narrow" in message
    assert "wide" in message


def test_a_loss_that_is_not_finite_stops_the_run(script, city, tmp_path, monkeypatch):
    def no_number(outputs, *_, **__):
        return outputs[0].sum() * float("nan")

    monkeypatch.setattr("training.building.segmentation_loss", no_number)
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


PUBLISHED = {
    "train_adversarial": {"lambda_adv": 1e-3, "lambda_adv_aux": 2e-4, "lr_d": 1e-4, "lambda_entropy": 1e-3,
                          "entropy_range": 1.0, "class_prior": 0.0, "gan": "vanilla"},
    "train_pseudo_labels": {"rule": "bdl", "percentile": 50.0, "confidence": 0.9, "portion": 0.2, "portion_step": 0.05,
                            "portion_max": 0.5, "lambda_source": 1.0, "lambda_target": 1.0, "mrkld": 0.0,
                            "max_class_share": 0.9},
    "train_dacs": {"decay": 0.99, "confidence": 0.968, "lambda_mix": 1.0, "lambda_mask": 0.0},
    "train_sac": {"decay": 0.9999, "confidence": 0.2, "lambda_target": 5.0, "views": 4},
}  # fmt: skip
"""AdaptSegNet's and ADVENT's; BDL's and CBST's; DACS's; SAC's."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_methods_defaults_are_the_published_ones(name, city, game, trained, monkeypatch):
    labeller = ["--labeller", str(trained)] if name == "train_pseudo_labels" else []
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--gta5", str(game), "--cityscapes", str(city), *labeller])
    args = vars(importlib.import_module(name).parse_args())
    assert {flag: args[flag] for flag in PUBLISHED[name]} == PUBLISHED[name]


def test_a_run_without_a_place_is_called_as_reports_call_it(city, game, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("train_gta5.py", "--gta5", game, "--cityscapes", city, "--jitter", "--init", trained)
    monkeypatch.setattr("sys.argv", [*map(str, words)])
    args = importlib.import_module("train_gta5").parse_args()
    assert args.run_dir == Path("runs/source-only-jitter-init-upper-bound-seed0")


def test_jitter_and_blur_have_the_reports_constants_and_differ_between_pictures():
    jitter, blur = Appearance(jitter=True, blur=True).transforms
    assert jitter.ranges == [(0.5, 1.5)] * 3 + [(-0.05, 0.05)]
    assert (blur.size, blur.sigma) == (3, (0.2, 0.8))
    pictures = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8).expand(3, -1, -1, -1)
    assert torch.equal(Appearance()(pictures), pictures.float() / 255)
    torch.manual_seed(0)
    looks = Appearance(jitter=True)(pictures)
    assert 0 <= float(looks.min()) <= float(looks.max()) <= 1
    assert not torch.equal(looks[0], looks[1])


@pytest.mark.slow
def test_demo_writes_its_scenes_and_runs(script, tmp_path, monkeypatch):
    small = {"size": (64, 32), "source": 10, "target": 6, "val": 4}
    monkeypatch.setattr("training.flags.DEMO_SCENES", small)
    monkeypatch.setattr("training.flags.DEMO_ROOT", tmp_path / "scenes")
    flags = ("--demo", "--size", "64x32", "--source-size", "64x32", "--max-steps", 2, "--device", "cpu", "--workers", 0)
    for name in ("train_cityscapes", "train_gta5"):
        done = script(name, *flags, "--run-dir", tmp_path / name)
        assert done.status == 0, done.err
    assert json.loads((tmp_path / "train_gta5/result.json").read_text())["source"]["pictures"] == 2
    monkeypatch.setattr("training.flags.DEMO_ROOT", tmp_path / "train_gta5/config.json")
    assert "--demo" in one_line_error(script("train_cityscapes", *flags, "--run-dir", tmp_path / "never"))


@pytest.mark.slow
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
    model = models.build_segmenter("bisenet")
    optimizer = sgd(model, lr=0.025, weight_decay=1e-4)
    plain = {id(p) for p in optimizer.param_groups[1]["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in plain) == (name.endswith("bias") or "bn" in name or parameter.ndim == 1), name
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    schedule = poly(optimizer, 10)
    for step in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025 * (1 - step / 10) ** 0.9, rel=1e-9)
        optimizer.step()
        schedule.step()


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


def test_resuming_what_never_wrote_a_checkpoint_still_loads_the_weights_asked_for(script, city, tmp_path, monkeypatch):
    loaded = []
    original = models.build_segmenter
    monkeypatch.setattr(models, "build_segmenter", lambda *a, **k: loaded.append(k["weights"]) or original(*a, **k))
    backbone = tmp_path / "backbone.pth"
    torch.save(original("tiny").context_path.state_dict(), backbone)
    run = upper(city, tmp_path / "run", "--max-steps", 1, "--weights", backbone, "--resume")
    assert script(*run).status == 0
    assert script(*run).status == 0
    assert loaded == [str(backbone), "none"]


# From flags to what trains


@pytest.mark.parametrize("name", ["train_gta5", "train_fda", "train_dacs"])
def test_appearance_and_the_held_out_source_are_the_flags(name, script, game, city, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(f"{name}.Appearance", lambda *given: made.append(given) or Appearance(*given))
    flags = ("--max-steps", 1, "--jitter", "--source-holdout", 0.3)
    done = script(name, *source_only(game, city, tmp_path / "run", *flags)[1:])
    assert done.status == 0, done.err
    assert made == [(True, False)]
    (result,) = (tmp_path / "run").rglob("result.json")
    assert json.loads(result.read_text())["source"]["pictures"] == 2


def test_the_sources_geometry_is_the_flags(script, game, city, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("training.building.Geometry", lambda *given: made.append(given) or Geometry(*given))
    flags = ("--size", "64x32", "--scales", "1,2", "--flip", 0.25, "--max-steps", 1)
    assert script(*source_only(game, city, tmp_path / "run", *flags)).status == 0
    assert made == [((48, 32), (1.0, 2.0), 0.25)]


def test_optimizers_have_the_published_momenta():
    assert {group["momentum"] for group in sgd(models.build_segmenter("tiny"), 0.1, 1e-4).param_groups} == {0.9}
    assert adam(torch.nn.Conv2d(1, 1, 1), 1e-4).defaults["betas"] == (0.9, 0.99)


def test_auxiliary_outputs_have_their_weight_and_their_loss():
    torch.manual_seed(0)
    main, extra = 5 * torch.randn(2, 2, 5, 16, 16)
    labels = torch.randint(0, 5, (2, 16, 16), dtype=torch.uint8)

    def loss(name, weight):
        return supervised_loss(Namespace(loss=name, aux_weight=weight, workers=0, device="cpu"), None)

    expected = cross_entropy(main, labels) + 2 * 0.25 * cross_entropy(extra, labels)
    torch.testing.assert_close(loss("ce", 0.25)((main, (extra, extra)), labels), expected)
    expected = LOSSES["pidnet"].function(main, labels) + 0.4 * cross_entropy(extra, labels)  # not the hard pixels'
    torch.testing.assert_close(loss("pidnet", 0.4)((main, (extra,)), labels), expected)
