"""Every script as it runs on a GPU, on a simulated one: no tensor of the wrong device, no type that CUDA would refuse,
and from a run's second step on the host waits for the device at readings alone."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, SOURCE, picture, run_once, save, write_cityscapes, write_gta5
from simulated_cuda import DEVICE, HostWaits, Record, WrongDevice, reading, simulated_cuda, watched

import training.adabn
from training.checkpoint import load_checkpoint
from training.evaluator import Evaluator
from training.run import Run
from utils.flags import default_device, device
from utils.interruption import Interruption, Stop
from utils.metrics import ConfusionMatrix

pytestmark = pytest.mark.slow

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

READINGS = ((Run, "_read"), (Run, "pause"), (ConfusionMatrix, "update"))
"""Where the host may wait within steps and evaluations: losses, every tenth step; checkpoints, now and then; what is
counted of a picture."""

METHODS = {
    "upper bound": ("train_cityscapes", "--loss", "focal"),
    "source only": ("train_gta5", "--loss", "ohem", "--jitter", "--blur", "--recolour", 0.7),
    "in parts": ("train_gta5", "--loss", "weighted", "--batch-size", 4, "--accumulate", 2),
    "LR-ASPP": ("train_gta5", "--model", "lraspp"),
    "PIDNet": ("train_adversarial", "--model", "pidnet", "--level", "multi", "--discriminator", "depthwise"),
    "DeepLab-VGG16": ("train_gta5", "--model", "deeplab_vgg16"),
    "adversarial": ("train_adversarial", "--jitter", "--recolour", 0.7),
    "AdvEnt": ("train_adversarial", "--discriminator", "depthwise", "--input", "entropy", "--gan", "least-squares"),
    "MinEnt": ("train_adversarial", "--discriminator", "none", "--min-entropy", "--bn-statistics", "target"),
    "multi-level": ("train_adversarial", "--level", "multi", "--discriminator", "depthwise"),
    "MinEnt, all": ("train_adversarial", "--level", "multi", "--discriminator", "none", "--min-entropy",
                    "--entropy-range", 0.3, "--class-prior", 0.5, "--lambda-entropy-aux", 2e-4),
    "feature": ("train_adversarial", "--level", "feature", "--discriminator", "depthwise", "--size", "256x256",
                "--source-size", "256x256"),
    "FADA": ("train_adversarial", "--discriminator", "class", "--level", "feature"),
    "IntraDA": ("train_adversarial", "--input", "entropy", "--discriminator", "depthwise"),
    "FDA": ("train_fda", "--beta", 0.09, "--entropy-from", 1),
    "LAB": ("train_fda", "--translation", "lab", "--blur", "--recolour", 0.7),
    "pseudo-labels": ("train_pseudo_labels", "--adapt-bn", "--bn-statistics", "target", "--recolour", 0.7),
    "pseudo-labels, two": ("train_pseudo_labels", "--beta", 0.09, "--rounds", 2),
    "CBST": ("train_pseudo_labels", "--rule", "cbst", "--label-flip", "--target-loss", "sce"),
    "IAST": ("train_pseudo_labels", "--rule", "iast", "--lambda-source", 0, "--lambda-entropy", 0.465, "--mrkld", 0.1,
             "--max-class-share", 1),
    "DACS": ("train_dacs", "--recipe", "labels", "--source-size", "64x48"),
    "DACS, all": ("train_dacs", "--rare-classes", "--lambda-mask", 1, "--beta", 0.09, "--jitter", "--blur",
                  "--recolour", 0.7),
    "DACS, frozen": ("train_dacs", "--loss", "ohem", "--lambda-mask", 1),
    "DACS, given labels": ("train_dacs", "--lambda-mask", 1),
    "SAC": ("train_sac", "--views", 2, "--confidence", 0, "--jitter", "--recolour", 0.7),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Pictures, and a network trained on the CPU."""
    root = tmp_path_factory.mktemp("cuda")
    found = SimpleNamespace(
        city=write_cityscapes(root / "cityscapes", counts=(("train", 6), ("val", 6))),
        labels=write_cityscapes(root / "labels", counts=(("train", 6),), encoding="labelTrainIds") / "gtFine",
        game=write_gta5(root / "gta5"),
        checkpoint=root / "source/checkpoint_last.pt",
    )
    run_once("train_gta5", *on(found, "train_gta5"), "--max-steps", 2, "--run-dir", root / "source", "--device", "cpu")
    return found


def on(place: SimpleNamespace, script: str) -> tuple:
    """A script's flags for these pictures."""
    source = () if script == "train_cityscapes" else ("--gta5", place.game, *SOURCE)
    return (*SMALL, "--cityscapes", place.city, *source)


@contextmanager
def cuda() -> Iterator[Record]:
    """A simulated device, on which steps, evaluations and AdaBN may not wait beside `READINGS`."""
    steps, pictures, adapt = Run.steps, Evaluator._paused, training.adabn.adapt_batch_norm
    with pytest.MonkeyPatch.context() as patch, simulated_cuda() as record:
        patch.setattr(Run, "steps", lambda *args: watched(steps(*args)))
        patch.setattr(Evaluator, "_paused", lambda *args: watched(pictures(*args)))
        patch.setattr(training.adabn, "adapt_batch_norm", lambda model, images, on: adapt(model, watched(images), on))
        for owner, name in READINGS:
            patch.setattr(owner, name, reading(getattr(owner, name)))
        low = partial(torch.amp.GradScaler, init_scale=2.0**8)  # at which these gradients are finite from the start
        patch.setattr(torch.amp, "GradScaler", low)
        yield record


def train(place: SimpleNamespace, method: str, run_dir: Path, *more: Any, device: Any = "cuda") -> dict[str, Any]:
    """Three steps and an evaluation; returns what metrics.jsonl says of them."""
    script, *flags = METHODS[method]
    if script == "train_pseudo_labels":
        labellers = [place.checkpoint] * (2 if "two" in method else 1)
        flags += ["--max-class-share", 1, "--labeller", *labellers]
    if method == "IntraDA":
        flags += ["--intra", place.checkpoint]
    if method == "DACS, frozen":
        flags += ["--teacher-checkpoint", place.checkpoint]
    if method == "DACS, given labels":
        flags += ["--labels", place.labels]
    reads = "train_cityscapes" if method == "IntraDA" else script  # the target alone
    command = (*on(place, reads), "--max-steps", 3, *flags, *more, "--run-dir", run_dir, "--device", device)
    run_once(script, *command)
    found = sorted(run_dir.rglob("metrics.jsonl"))[-1]
    return json.loads(found.read_text().splitlines()[-1])


# At 1/64 these pictures are one pixel: PIDNet's gradients are then beyond fp16, and its convolutions on a CPU slow.
CASES = [case for case in itertools.product(METHODS, PRECISIONS) if case != ("PIDNet", "fp16")]


@pytest.mark.parametrize(("method", "precision"), CASES)
def test_a_method_runs_on_a_gpu(method: str, precision: str, place: SimpleNamespace, tmp_path: Path) -> None:
    with cuda() as record:
        entry = train(place, method, tmp_path / "run", "--precision", precision)
    assert record.convolutions == {torch.float32, PRECISIONS[precision]}
    assert entry["target"]["pictures"] == 6
    assert entry["train"]["gradient"] > 0
    assert entry["train"].get("overflows", 0) == 0


def test_a_gpu_is_named_with_or_without_its_index() -> None:
    with cuda():
        assert device("cuda") == device("cuda:0") == default_device() == DEVICE


@pytest.mark.parametrize("method", ["multi-level", "FADA", "DACS, all", "SAC"])
def test_a_gpu_computes_what_a_cpu_does(method: str, place: SimpleNamespace, tmp_path: Path) -> None:
    with cuda() as record:
        there = train(place, method, tmp_path / "cuda", "--precision", "fp32")
    assert record.pinned.count(True) == 2  # the memory of both streams
    here = train(place, method, tmp_path / "cpu", "--precision", "fp32", device="cpu")
    assert there["train"] == pytest.approx(here["train"], rel=1e-4)
    assert there["target"]["entropy"] == pytest.approx(here["target"]["entropy"], rel=1e-4)
    weights = [load_checkpoint(tmp_path / run / "checkpoint_last.pt")["weights"] for run in ("cuda", "cpu")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("devices", [("cpu", DEVICE), (DEVICE, "cpu")], ids=["to a GPU", "from a GPU"])
def test_a_run_goes_on_on_another_device(
    devices: tuple, place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = itertools.count(1)
    monkeypatch.setattr(Interruption, "stop", lambda _: Stop("by a test", 99) if next(pauses) == 3 else None)
    first, second = devices
    with cuda() if first == DEVICE else nullcontext(), pytest.raises(SystemExit, match="99"):
        train(place, "adversarial", tmp_path / "run", "--precision", "fp32", device=first)
    with cuda() if second == DEVICE else nullcontext():
        train(place, "adversarial", tmp_path / "run", "--precision", "fp32", "--resume", device=second)
    assert load_checkpoint(tmp_path / "run/checkpoint_last.pt")["step"] == 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_evaluation_runs_on_a_gpu(precision: str, place: SimpleNamespace, tmp_path: Path) -> None:
    with cuda() as record:
        run_once(
            "eval", place.checkpoint, place.checkpoint, "--mean", "--adapt-bn", "--precision", precision,
            "--workers", 0, "--save-predictions", tmp_path / "seen", "--save-ids", tmp_path / "ids",
            "--save-side-by-side", tmp_path / "both", "--json", tmp_path / "out.json", "--device", DEVICE,
        )  # fmt: skip
    assert record.convolutions == {torch.float32, PRECISIONS[precision]}  # AdaBN's are in float32
    assert len(json.loads((tmp_path / "out.json").read_text())["evaluations"]) == 3


def test_prediction_runs_on_a_gpu(place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.prediction.BAND_PIXELS", 600)  # less than the picture's
    save(tmp_path / "street.png", picture(1, (61, 45)))
    with cuda():
        run_once(
            "predict", place.checkpoint, tmp_path / "street.png", "--out", tmp_path / "seen", "--confidence",
            "--entropy", "--cam", "car", "--at", "20,20", "--device", DEVICE,
        )  # fmt: skip
    assert len(list((tmp_path / "seen").iterdir())) == 5


def test_a_video_is_predicted_and_adapted_to_on_a_gpu(place: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("av")
    for number in range(3):
        save(tmp_path / f"drive/{number}.png", picture(number, (61, 45)))
    more = ("--out", tmp_path / "seen", "--fps", 10, "--adapt-bn", "--window", 2, "--device", DEVICE)
    with cuda():
        run_once("predict", place.checkpoint, tmp_path / "drive", *more)
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["drive_overlay.mp4"]


# What is found


def edited(module: str, function: str, before: str, after: str) -> Callable[..., Any]:
    """A module's function with a part of its text replaced."""
    source = dedent(inspect.getsource(getattr(importlib.import_module(module), function)))
    assert source.count(before) == 1, f"{module}.{function} does not hold {before!r} once"
    names = dict(vars(importlib.import_module(module)))
    exec(f"from __future__ import annotations\n{source.replace(before, after)}", names)
    return names[function]


MISTAKES = {
    "a batch": (WrongDevice, "source only", "training.streams._to", "training.streams", (
        "tuple(part.to(device, non_blocking=True) for part in batch)", "tuple(batch)")),
    "an evaluation's label": (WrongDevice, "source only", "training.evaluation.evaluate", "training.evaluator", (
        "label.to(device, non_blocking=True)", "label")),
    "what ClassMix draws": (WrongDevice, "DACS, all", "adaptation.mixing.class_mask", "train_dacs", (
        ".to(labels.device, non_blocking=True)", "")),
    "what MIC hides": (WrongDevice, "DACS, all", "adaptation.masking.block_mask", "adaptation.masking", (
        ".to(device, non_blocking=True)", "")),
    "a loss's weights": (WrongDevice, "in parts", "training.building.pixel_loss", "training.building", (
        "weights.to(device)", "weights")),
    "which pictures are blurred": (WrongDevice, "source only", "datasets.appearance.together", "datasets.appearance", (
        "view(-1, 1, 1, 1).to(images.device, non_blocking=True)", "view(-1, 1, 1, 1)")),
    "which views are drawn": (WrongDevice, "SAC", "adaptation.views.draw_views", "train_sac", (
        "drawn.to(device, non_blocking=True)", "drawn")),
    "what recolouring draws": (WrongDevice, "source only", "adaptation.recolouring.texture", "adaptation.recolouring", (
        ".to(device, non_blocking=True)", "")),
    "AdaBN's pictures": (WrongDevice, "pseudo-labels", "adaptation.adabn.adapt_batch_norm", "training.adabn", (
        "batch.to(device, non_blocking=True)", "batch")),
    "FDA's waves": (WrongDevice, "FDA", "adaptation.fda._waves", "adaptation.fda", (".to(device)", "")),
    "a loss read at once": (HostWaits, "source only", "train_gta5.main", "train_gta5", (
        "loss=loss", "loss=loss.item()")),
    "a batch that is waited for": (HostWaits, "source only", "training.streams._to", "training.streams", (
        "part.to(device, non_blocking=True)", "part.to(device)")),
    "a loss by mask": (HostWaits, "DACS", "adaptation.losses.weighted_by_pixel", "train_dacs", (
        "* weights).sum()", "* weights)[labels != IGNORE].sum()")),
    "a constant made anew": (HostWaits, "DACS, all", "adaptation.masking.masked", "train_dacs", (
        "_colour(", "_colour.__wrapped__(")),
}  # fmt: skip
"""What is missing or done too often -> how it is found: the error, the method that meets it, the function, the module
that calls it, and the change of its text."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(
    mistake: str, place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, method, path, caller, change = MISTAKES[mistake]
    module, _, name = path.rpartition(".")
    monkeypatch.setattr(importlib.import_module(caller), name, edited(module, name, *change))
    with cuda(), pytest.raises(error):
        train(place, method, tmp_path / "run", "--precision", "fp32")
