"""The parts of `make gpu` that train: how fast the scripts' steps are, and how much memory they take.

A cell is a dict that says what is measured; so is what was found. Everything in them can be written as JSON.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loading import SOURCE_SIZE, TARGET_SIZE, draw  # noqa: E402
from benchmarks.steps import BASELINE, METHODS, ours  # noqa: E402
from training.gradients import PRECISIONS  # noqa: E402
from utils.tables import markdown  # noqa: E402

Cell = dict[str, Any]
Found = dict[str, Any]

DATA = {"device": (), "prepared": (), "files": ("--no-cache",)}
"""Where batches come from: one that stays on the device, prepared arrays, the files; and the flags that ask for it."""

LABELLER = "LABELLER"
"""In flags: a checkpoint that labels the target."""
ENTROPY = ("--entropy-from", "0")
"""The entropy term from the first step on; by default it comes after a third of the run."""
TRAINED = {
    "upper bound": ("train_cityscapes", ()),
    BASELINE: METHODS[BASELINE],
    "source only, ResNet-101": ("train_gta5", ("--backbone", "resnet101")),
    "source only, DeepLabV2": ("train_gta5", ("--model", "deeplabv2")),
    "adversarial, standard": METHODS["adversarial, standard"],
    "adversarial, depthwise": METHODS["adversarial, depthwise"],
    "AdvEnt": ("train_adversarial", ("--input", "entropy")),
    "MinEnt": ("train_adversarial", ("--discriminator", "none", "--min-entropy")),
    "FDA, with its entropy term": ("train_fda", ("--beta", "0.01", *ENTROPY)),
    "LAB, with its entropy term": ("train_fda", ("--translation", "lab", *ENTROPY)),
    "pseudo-labels": ("train_pseudo_labels", ("--max-class-share", "1", "--labeller", LABELLER)),
    "DACS": METHODS["DACS"],
    "DACS, recipe best": METHODS["DACS, recipe best"],
    "DACS, masked consistency": ("train_dacs", ("--lambda-mask", "1")),
    "DACS, frozen labeller": ("train_dacs", ("--teacher-checkpoint", LABELLER)),
    "SAC": METHODS["SAC"],
}
"""Name -> script and flags: of each the memory is measured."""
TIMED = (BASELINE, "adversarial, standard", "adversarial, depthwise", "FDA, with its entropy term", "DACS")


@dataclass(frozen=True)
class Settings:
    """Of all parts; what is measured under others is another measurement. precision: as the scripts choose it."""

    device: str
    precision: str
    batch_size: int
    workers: int
    scenes_in: Path
    scenes: int = 24
    scene_sizes: tuple[tuple[int, int], ...] = (SOURCE_SIZE, TARGET_SIZE)
    source_size: tuple[int, int] = (1280, 720)
    size: tuple[int, int] = (1024, 512)
    warm: int = 5
    steps: int = 10  # with one reading of the losses among them
    rounds: int = 3
    batches: tuple[int, ...] = (1, 8)
    sizes: tuple[tuple[int, int], ...] = ((1024, 512), (2048, 1024))
    passes: int = 50
    small: bool = False

    @classmethod
    def in_small(cls, **others: Any) -> Settings:
        """For seconds on a CPU: everything happens, and no figure means anything."""
        tiny = (64, 32)
        return cls(scenes=4, scene_sizes=((96, 48), (96, 48)), source_size=tiny, size=tiny, warm=1, steps=1, rounds=2,
                   batches=(1,), sizes=(tiny,), passes=1, small=True, **others)  # fmt: skip

    def scene_folder(self) -> Path:
        """The street scenes, drawn at the first call."""
        return draw(self.scenes_in, self.scenes, *self.scene_sizes)

    def train(self, script: str, flags: tuple[str, ...], precision: str, batch: int, compiled: bool = False,
              **how: Any) -> Found:  # fmt: skip
        """A training script's steps, as a user runs it with its default sizes."""
        home = self.scene_folder()
        args = argparse.Namespace(size=self.size, batch_size=batch, precision=precision, compile=compiled,
                                  workers=self.workers, device=torch.device(self.device), steps=self.steps)  # fmt: skip
        flags = tuple(str(labeller(home, self)) if flag == LABELLER else flag for flag in flags)
        source = ("--source-size", side(self.source_size))
        timing = ours(script, home, args, (*source, *flags), warm=self.warm, **how)
        return {"seconds": timing.seconds, "images_per_second": batch / timing.seconds,
                "waiting": timing.waiting, "memory_mib": timing.memory, "seconds_by_round": timing.rounds}  # fmt: skip


# The steps of training


def training_cells(settings: Settings, full: bool) -> dict[str, Cell]:
    """What most users run first: the default precision on all data, then other precisions and compiled. Data make the
    same difference in every precision, and a network compiles alike in most methods; `full` measures that too."""
    own, others = settings.precision, [name for name in PRECISIONS if name != settings.precision]
    wanted = [(method, data, own, False) for data in DATA for method in TIMED]
    if settings.small:
        wanted = [cell for cell in wanted if cell[0] == BASELINE or cell[:2] == ("DACS", "device")]
    else:
        wanted += [(method, "device", precision, False) for precision in others for method in TIMED]
        wanted += [(method, "device", own, True) for method in TIMED]
        wanted += [(BASELINE, "device", precision, True) for precision in others]
        wanted += [(BASELINE, data, own, True) for data in ("prepared", "files")]
    if full:
        wanted += [(method, data, precision, compiled) for precision in PRECISIONS for method in TIMED
                   for compiled in (False, True) for data in DATA]  # fmt: skip
    return {
        f"{method}, {data}, {precision}{', compiled' if compiled else ''}":
            {"method": method, "data": data, "precision": precision, "compiled": compiled}
        for method, data, precision, compiled in wanted
    }  # fmt: skip


def measure_training(cell: Cell, settings: Settings) -> Found:
    script, flags = TRAINED[cell["method"]]
    return settings.train(script, (*flags, *DATA[cell["data"]]), cell["precision"], settings.batch_size,
                          cell["compiled"], rounds=settings.rounds, resident=cell["data"] == "device")  # fmt: skip


def training_table(found: list[Found], settings: Settings) -> str:
    """A row a method, data and precision; what was measured compiled stands in the last columns."""
    rows: dict[tuple[str, ...], dict[bool, Found]] = {}
    for one in found:
        rows.setdefault((one["method"], one["data"], one["precision"]), {})[one["compiled"]] = one
    order = [list(TIMED), list(DATA), list(PRECISIONS)]
    figures = ("s a step", "images/s", "waiting for data (%)", "peak memory (GiB)")
    return markdown(
        ("method", "batches from", "precision", *figures, *(f"compiled: {name}" for name in figures)),
        [
            [*key, *training_figures(rows[key].get(False)), *training_figures(rows[key].get(True))]
            for key in sorted(rows, key=lambda key: [known.index(part) for known, part in zip(order, key, strict=True)])
        ],
    )


def training_figures(one: Found | None) -> list[str]:
    if one is None:
        return ["-"] * 4
    speed = [f"{one['seconds']:.3f}", f"{one['images_per_second']:.1f}", f"{100 * one['waiting']:.1f}"]
    return [*speed, gib(one["memory_mib"])]


# Memory


def memory_cells(settings: Settings, full: bool) -> dict[str, Cell]:
    own = [(settings.precision, settings.batch_size), (settings.precision, min(4, settings.batch_size))]
    more = [(name, batch) for name in PRECISIONS for _, batch in own] if full else [("fp32", own[1][1])]
    methods = ["upper bound", BASELINE, "pseudo-labels"] if settings.small else list(TRAINED)
    return {
        f"{method}, {precision}, batch {batch}": {"method": method, "precision": precision, "batch": batch}
        for precision, batch in own + ([] if settings.small else more)
        for method in methods
    }


def measure_memory(cell: Cell, settings: Settings) -> Found:
    return settings.train(*TRAINED[cell["method"]], cell["precision"], cell["batch"])


def memory_table(found: list[Found], settings: Settings) -> str:
    """A row a method, a column a precision and batch."""
    columns = list(dict.fromkeys((one["precision"], one["batch"]) for one in found))
    cells = {(one["method"], one["precision"], one["batch"]): gib(one["memory_mib"]) for one in found}
    methods = [name for name in TRAINED if any(one["method"] == name for one in found)]
    rows = [[method, *(cells.get((method, *column), "-") for column in columns)] for method in methods]
    return markdown(("peak memory of training (GiB)", *(f"{name}, batch {batch}" for name, batch in columns)), rows)


def labeller(home: Path, settings: Settings) -> Path:
    """A checkpoint of one step of source only, for methods that need a network that labels; made once."""
    path = home / "networks" / "labeller" / "checkpoint_last.pt"  # deeper than report.py looks for runs
    if not path.exists():
        command = [sys.executable, str(ROOT / "train_gta5.py"), "--gta5", home / "source", "--cityscapes",
                   home / "target", "--weights", "none", "--size", "64x32", "--source-size", "64x32", "--batch-size", 2,
                   "--max-steps", 1, "--no-cache", "--workers", 0, "--device", settings.device,
                   "--run-dir", path.parent, "--resume"]  # fmt: skip
        subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL)
    return path


def side(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def gib(mib: float | None) -> str:
    return "-" if mib is None else f"{mib / 1024:.2f}"
