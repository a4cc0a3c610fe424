"""What only a GPU can show. Skipped without one; `make gpu` runs this file."""

import json
import math
import os
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_resumes_exactly, assert_same_runs, run_once, write_cityscapes, write_gta5
from PIL import Image
from soak import commands, finished, killed_and_resumed

from adaptation.fda import fda
from adaptation.lab import match_lab
from adaptation.masking import masked
from adaptation.mixing import StrongAugmentation
from adaptation.recolouring import Recolouring
from datasets.appearance import Appearance
from models import SEGMENTERS, build_segmenter
from models.deployment import Deployed
from training.checkpoint import load_checkpoint
from utils.interruption import Interruption, Stop
from utils.metrics import ConfusionMatrix

GPU, SIZE = "cuda", (128, 96)
LARGER = ("--size", "128x96", "--source-size", "128x96")
"""Of pictures so large batch normalisation makes little of rounding."""
SHARES = ("accuracy_source", "accuracy_target", "sure", "labelled", "overflows")
SCRIPTS = tuple(commands("", "", ""))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic; read at cuBLAS's first use


@pytest.fixture(autouse=True)
def settings_of_torch():
    """float32 is float32, as `run_script` sets it too; what a test changes is taken back."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, a labeller trained on a CPU, and every script's command, which takes a run directory and more flags."""
    home = tmp_path_factory.mktemp("gpu")
    game = write_gta5(home / "gta5", count=6, size=SIZE)
    city = write_cityscapes(home / "cityscapes", counts=(("train", 6), ("val", 2)), size=SIZE)
    labeller = home / "labeller/checkpoint_last.pt"
    named = {name: lambda run_dir, *more, file=file, flags=flags: (file[:-3], *flags, "--run-dir", run_dir, *more)
             for name, (file, *flags) in commands(game, city, labeller, "bisenet").items()}  # fmt: skip
    run_once(*map(str, named["train_cityscapes"](labeller.parent, "--max-steps", 1, "--lr", 1e-4, *LARGER[:2])))
    return SimpleNamespace(game=game, city=city, labeller=labeller, commands=named)


def losses(run_dir):
    """What the first epoch logged, by run and name, less shares."""
    found = {}
    for path in sorted(run_dir.rglob("metrics.jsonl")):
        logged = json.loads(path.read_text().splitlines()[0])["train"]
        named = {f"{path.parent.relative_to(run_dir)} {key}": value for key, value in logged.items()}
        found |= {key: value for key, value in named.items() if not key.endswith(SHARES)}
    assert found
    return found


# Runs


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_stopped_deterministic_run_ends_as_one_that_was_not(script, monkeypatch, world, tmp_path, name):
    one = {"train_fda": ("--beta", 0.05), "train_pseudo_labels": ("--rounds", 1)}.get(name, ())  # run, not several

    def command(run_dir, *more):
        return world.commands[name](run_dir, "--device", GPU, "--workers", 0, "--deterministic", *one, *more)

    assert_resumes_exactly(script, monkeypatch, tmp_path, command)


def test_a_killed_deterministic_run_ends_as_one_that_was_not(world, tmp_path):
    command = commands(world.game, world.city, world.labeller, "bisenet")["train_adversarial"]
    command = [*command, "--device", GPU, "--deterministic"]
    finished(command, tmp_path / "straight")
    assert killed_and_resumed(command, tmp_path / "killed", 1, lambda: 0.1)["all"] == 1
    assert_same_runs(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_first_step_is_that_of_a_cpu(script, world, tmp_path, name):
    """All draws are the CPU's, so losses and norms of gradients agree but for rounding: in fp32 nearly, in half
    precision roughly."""
    found = {}
    for run, device in {"cpu": "cpu", "fp32": GPU, "bf16": GPU, "fp16": GPU}.items():
        command = world.commands[name](tmp_path / run, "--max-steps", 1, "--device", device, *LARGER)
        done = script(*command, "--precision", "fp32" if run == "cpu" else run)
        assert done.status == 0, done.err
        found[run] = losses(tmp_path / run)
    assert found["fp32"] == pytest.approx(found["cpu"], rel=1e-2, abs=1e-4)
    for precision in ("bf16", "fp16"):
        assert found[precision].keys() == found["cpu"].keys()
        for key, value in found[precision].items():
            if "gradient" not in key:  # in fp16 those of a first step may overflow, which lowers the scale
                assert value == pytest.approx(found["cpu"][key], rel=0.1, abs=1e-3), (precision, key)


def test_a_compiled_run_learns_the_same(script, world, tmp_path):
    for run, flags in {"eager": (), "compiled": ("--compile",)}.items():
        command = world.commands["train_dacs"](tmp_path / run, "--max-steps", 1, "--device", GPU, *LARGER)
        done = script(*command, "--precision", "fp32", *flags)
        assert done.status == 0, done.err
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("changes", [(), ("--precision", "fp16", "--allow-changes")], ids=["as it was", "in fp16"])
@pytest.mark.parametrize("name", ["train_adversarial", "train_dacs"])
def test_a_run_begun_on_a_cpu_goes_on_on_the_gpu(script, monkeypatch, world, tmp_path, name, changes):
    command = world.commands[name](tmp_path / "run", "--precision", "fp32", "--no-cache")
    with monkeypatch.context() as patch:
        pauses = count(1)
        patch.setattr(Interruption, "stop", lambda self: Stop("stopped by a test", 99) if next(pauses) == 5 else None)
        assert script(*command).status == 99
    assert load_checkpoint(tmp_path / "run/checkpoint_last.pt")["step"] > 0
    done = script(*command, "--resume", "--device", GPU, *changes)
    assert done.status == 0, done.err
    assert all(math.isfinite(value) for value in losses(tmp_path / "run").values())


# A trained network


def test_evaluation_is_that_of_a_cpu(script, world, tmp_path):
    """In fp32 to rounding: with TF32 the entropy would differ in its fourth digit."""
    figures = {}
    for device, precision in (("cpu", "fp32"), (GPU, "fp32"), (GPU, "fp16")):
        path = tmp_path / f"{device}-{precision}.json"
        done = script("eval", world.labeller, "--device", device, "--precision", precision, "--json", path)
        assert done.status == 0, done.err
        (figures[device, precision],) = json.loads(path.read_text())["evaluations"]
    plain = figures["cpu", "fp32"]
    assert figures[GPU, "fp32"]["entropy"] == pytest.approx(plain["entropy"], rel=1e-5)
    assert figures[GPU, "fp32"]["accuracy"] == pytest.approx(plain["accuracy"], abs=2e-3)
    assert figures[GPU, "fp16"]["entropy"] == pytest.approx(plain["entropy"], rel=1e-2)


def test_adabn_and_predictions_are_those_of_a_cpu(script, world, tmp_path):
    picture = next(world.city.rglob("*_leftImg8bit.png"))
    entropies, labels = {}, {}
    for device in ("cpu", GPU):
        path = tmp_path / f"{device}.json"
        assert script("eval", world.labeller, "--adapt-bn", "--device", device, "--json", path).status == 0
        entropies[device] = json.loads(path.read_text())["evaluations"][0]["entropy"]
        done = script("predict", world.labeller, picture, "--confidence", "--cam", "car", "--device", device,
                      "--out", tmp_path / device)  # fmt: skip
        assert done.status == 0, done.err
        with Image.open(next((tmp_path / device).glob("*_labelTrainIds.png"))) as image:
            labels[device] = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    assert entropies[GPU] == pytest.approx(entropies["cpu"], rel=1e-3)
    assert (labels[GPU] == labels["cpu"]).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_a_graph_leaves_the_results_that_it_gave(dtype):
    model = build_segmenter("bisenet").to(GPU).eval()
    deployed = Deployed(model, dtype, compiled=True)
    for _ in range(3):  # to warm up, to record, to replay
        images = torch.rand(3, 1, 3, 64, 64, device=GPU)
        found = [deployed(one) for one in images]
    tolerance = (1e-3 if dtype == torch.float32 else 5e-2) * float(model(images[0]).abs().max())
    for one, logits in zip(images, found, strict=True):
        torch.testing.assert_close(logits, model(one), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_networks_give_the_logits_of_a_cpu(name):
    model, images = build_segmenter(name).eval(), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        found = model.to(GPU)(images.to(GPU)).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


# Pictures and counts


PICTURES = {
    "FDA": lambda images: fda(images, images.flip(0), 0.05),
    "LAB": lambda images: match_lab(images, images.flip(0)),
    "jitter and blur": lambda images: Appearance(True, True)((255 * images).byte()),
    "strong augmentation": StrongAugmentation(),
    "masked": masked,
    "recolouring": lambda images: Recolouring(0.7)(images, (19 * images[:, 0]).byte()),
}


@pytest.mark.parametrize("change", PICTURES.values(), ids=PICTURES)
def test_pictures_are_changed_as_on_a_cpu(change):
    torch.manual_seed(0)
    images = torch.rand(4, 3, 48, 64)
    results = []
    for device in ("cpu", GPU):
        torch.manual_seed(1)
        results.append(change(images.to(device, copy=True)).cpu())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1 / 255)


def test_pixels_are_counted_as_on_a_cpu():
    prediction, label = torch.randint(0, 19, (2, 50, 70), dtype=torch.uint8), torch.randint(0, 20, (2, 50, 70))
    label = torch.where(label == 19, 255, label).to(torch.uint8)
    counts = []
    for device in ("cpu", GPU):
        matrix = ConfusionMatrix(19)
        matrix.update(prediction.to(device), label.to(device))
        counts.append(matrix.matrix.cpu())
    assert torch.equal(*counts)
