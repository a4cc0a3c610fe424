"""Small data sets on disk, in every layout and encoding, with labels that are known pixel by pixel."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny  # noqa: F401  the network that SMALL names
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from datasets.domains import SOURCES, TARGETS
from datasets.labels import CITYSCAPES_ID_TO_TRAIN_ID, CITYSCAPES_PALETTE
from measure_flops import peak_memory
from reporting.costs import networks
from training.checkpoint import load_checkpoint
from utils.errors import run_script
from utils.interruption import Interruption, Stop

torch.set_num_threads(1)  # the tests' pictures are small: a second thread costs more than it brings
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so for the scripts that tests start
for variable in map(str.upper, SOURCES | TARGETS):  # a user's own data
    os.environ.pop(variable, None)
os.fsync = lambda descriptor: None  # no test pulls the plug; in which order files are synced, one test records
# Boards of one second are read in the order of these numbers, as text: the tests' runs are that short.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)
CITIES = ("aachen", "bochum")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that parallel processes end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported: a script collects garbage after a mistake, and would look through all of it


def each_network() -> list[Any]:
    """Parameters of a test: what builds each network, as measure_flops.py names it; PIDNet's larger sizes are slow."""
    slow = ("pidnet m", "pidnet l")
    return [
        pytest.param(build, id=name, marks=[pytest.mark.slow] if name in slow else [])
        for name, build in networks().items()
        if not name.startswith("discriminator")
    ]


def picture(number: int, size=(48, 32)) -> np.ndarray:
    """uint8 [H, W, 3], different for every number."""
    return np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def ids(number: int, size=(48, 32)) -> np.ndarray:
    """uint8 [H, W] Cityscapes ids in 4x4 blocks; every id from 0 to 33 may occur."""
    blocks = np.random.default_rng(1000 + number).integers(0, 34, (size[1] // 4, size[0] // 4), dtype=np.uint8)
    return blocks.repeat(4, axis=0).repeat(4, axis=1)


def train_ids(number: int, size=(48, 32)) -> np.ndarray:
    """The same labels, by the table."""
    return np.vectorize(CITYSCAPES_ID_TO_TRAIN_ID.get)(ids(number, size)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.fromarray(pixels, mode="P") if pixels.ndim == 2 else image
        image.putpalette(CITYSCAPES_PALETTE.tobytes())
    image.save(path)


def write_cityscapes(
    root: Path,
    *,
    images: str = "leftImg8bit",
    inner: str = "",
    cities: bool = True,
    encoding: str = "labelIds",
    suffix: str = ".png",
    counts=(("train", 4), ("val", 2)),
    size=(48, 32),
    labels: bool = True,
) -> Path:
    """Pictures numbered 0, 1, ... through the splits; returns the root that a user names."""
    number = 0
    for split, count in counts:
        for _ in range(count):
            city = CITIES[number % 2]
            stem = f"{city}_{number:06d}_000019"
            folder = Path(split, city) if cities else Path(split)
            save(root / inner / images / folder / f"{stem}_leftImg8bit{suffix}", picture(number, size))
            if labels:
                label = ids(number, size) if encoding == "labelIds" else train_ids(number, size)
                save(root / inner / "gtFine" / folder / f"{stem}_gtFine_{encoding}.png", label)
            number += 1
    return root


def write_gta5(root: Path, *, encoding: str = "palette", count: int = 6, inner: str = "", size=(48, 32)) -> Path:
    """encoding: palette, grey, rgb, or trainIds (grey)."""
    for number in range(count):
        name = f"{number + 1:05d}.png"
        save(root / inner / "images" / name, picture(number, size))
        label = train_ids(number, size) if encoding == "trainIds" else ids(number, size)
        if encoding == "rgb":
            label = CITYSCAPES_PALETTE[label]
        save(root / inner / "labels" / name, label, palette=encoding == "palette")
    return root


class Done(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def city(tmp_path: Path) -> Path:
    return write_cityscapes(tmp_path / "cityscapes")


@pytest.fixture
def game(tmp_path: Path) -> Path:
    return write_gta5(tmp_path / "gta5")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a script's `main` as `run_script` does: script("eval", "x.pt") -> (status, out, err)."""

    def run(name: str, *arguments: object) -> Done:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name.split('.')[-1]}.py", *(str(argument) for argument in arguments)])
        capsys.readouterr()
        status = 0
        try:
            run_script(module.main)
        except SystemExit as stop:
            status = stop.code
        return Done(status, *capsys.readouterr())

    return run


def run_once(name: str, *arguments: object) -> None:
    """Runs a script's `main` for a fixture of a whole module, where `script` cannot be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *(str(argument) for argument in arguments)])
        importlib.import_module(name).main()


def one_line_error(done: Done) -> str:
    """The message of a user's mistake; fails unless it is one line, with status 2 and no traceback."""
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert done.status == 2, done.err[-2000:]
    assert len(lines) == 1, done.err[-2000:]
    assert lines[0].startswith("error: ")
    return lines[0]


SMALL = ("--model", "tiny", "--size", "48x32", "--weights", "none", "--batch-size", 2, "--workers", 0,
         "--device", "cpu", "--lr", 0.01)  # fmt: skip
SOURCE = ("--source-size", "48x32")


def upper(city, run_dir, *more):
    return ("train_cityscapes", "--cityscapes", city, *SMALL, "--epochs", 2, "--run-dir", run_dir, *more)


def source_only(game, city, run_dir, *more):
    return ("train_gta5", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2, "--run-dir", run_dir,
            *more)  # fmt: skip


@pytest.fixture
def trained(script, city, tmp_path):
    assert script(*upper(city, tmp_path / "run", "--max-steps", 2)).status == 0
    return tmp_path / "run/checkpoint_last.pt"


def peak_growth(action: Callable[[], object]) -> float | None:
    """MiB that the process takes meanwhile beyond what it holds before; None where the system does not tell."""
    return peak_memory(lambda _: action(), torch.empty(0))


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, through dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_resumes_exactly(script, monkeypatch, folder: Path, command: Callable[..., tuple]) -> dict[str, Any]:
    """A run stopped again and again, in epochs and in evaluations, and resumed, leaves what a straight one leaves, bit
    for bit.

    command(run directory, *more flags) gives the script's name and arguments. Returns the straight run's checkpoint; of
    several runs', the last.
    """
    assert script(*command(folder / "straight")).status == 0
    # Between steps, and between batches of an evaluation, a labelling, a preparation. The gaps grow, since what an
    # interrupted labelling did is done again.
    pauses, at = itertools.count(1), set(itertools.accumulate(range(4, 40)))

    def stop(self: Interruption) -> Stop | None:
        return Stop("stopped by a test", 99) if next(pauses) in at else None

    stops, done = 0, None
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "stop", stop)
        while done is None or done.status == 99:
            assert stops < 36
            done = script(*command(folder / "broken", *(["--resume"] if stops else [])))
            stops += 1
    assert done.status == 0, done.err
    assert stops > 2
    assert_same_runs(folder / "straight", folder / "broken")
    return load_checkpoint(sorted((folder / "straight").rglob("checkpoint_last.pt"))[-1])


def assert_same_runs(one: Path, other: Path) -> None:
    """Checkpoints, metrics and logged values, bit for bit; times and rates aside. Of scripts of several runs, all."""
    inner = [path.parent.relative_to(one) for path in one.glob("*/result.json")]
    assert inner == [path.parent.relative_to(other) for path in other.glob("*/result.json")]
    for name in inner:
        assert_same_runs(one / name, other / name)
    if inner:
        return
    parts = ("weights", "training", "history", "best", "step", "epoch", "closed", "epoch_losses")
    for name, compared in (("last", parts), ("best", ("weights", "step", "epoch", "closed", "metrics"))):
        a, b = (load_checkpoint(run / f"checkpoint_{name}.pt") for run in (one, other))
        for part in compared:
            assert same(a[part], b[part]), (name, part)
    assert history_of(one) == history_of(other)
    results = [without_costs(json.loads((run / "result.json").read_text())) for run in (one, other)]
    assert results[0] == results[1]
    assert logged(one) == logged(other)


def without_costs(figures: dict[str, Any]) -> dict[str, Any]:
    """Less the run's seconds and memory, which no two runs have alike."""
    return {key: value for key, value in figures.items() if key not in ("seconds", "peak_memory_mib")}


def history_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, `without_costs`."""
    return [without_costs(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: tag -> (step, value), less the speed."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that was trained for two steps."""
    folder = tmp_path_factory.mktemp("trained")
    run_once(*upper(write_cityscapes(folder / "city"), folder / "run", "--max-steps", 2))
    return folder / "run/checkpoint_last.pt"


@pytest.fixture
def predicted(script, checkpoint, tmp_path):
    """predicted(*arguments) runs predict.py into tmp_path / "out"."""
    return lambda *more: script("predict", checkpoint, *more, "--out", tmp_path / "out", "--device", "cpu")
