"""What `make gpu` measures: its parts, the cells of each, how a cell is measured, and the table they make.

Those that train are in `gpu_training.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_training import (  # noqa: E402
    Cell,
    Found,
    Settings,
    gib,
    measure_memory,
    measure_training,
    memory_cells,
    memory_table,
    side,
    training_cells,
    training_table,
)
from benchmarks.inference import WAYS, medians  # noqa: E402
from models import build_segmenter  # noqa: E402
from training.gradients import PRECISIONS  # noqa: E402
from utils.flags import cores  # noqa: E402
from utils.tables import markdown  # noqa: E402


@dataclass(frozen=True)
class Part:
    """One of `PARTS`. cells(settings, full): name -> cell, the most wanted first. estimate: seconds that a cell takes,
    and one that compiles; guessed. minutes: for all its cells; limit: of these for one. table: of found cells."""

    title: str
    cells: Callable[[Settings, bool], dict[str, Cell]]
    measure: Callable[[Cell, Settings], Found]
    table: Callable[[list[Found], Settings], str]
    said: Callable[[Found], str]
    minutes: float
    estimate: tuple[float, float]
    limit: float = 4.0
    scenes: bool = False

    def estimated(self, cells: dict[str, Cell]) -> float:
        """Minutes."""
        return sum(self.estimate[bool(cell.get("compiled"))] for cell in cells.values()) / 60


# The tests that need a GPU


def tests_cells(settings: Settings, full: bool) -> dict[str, Cell]:
    return {"tests/test_gpu.py": {"file": "tests/test_gpu.py"}}


def measure_tests(cell: Cell, settings: Settings) -> Found:
    """Several at once where pytest-xdist is there, each said in the log. Raises RuntimeError, which names those that
    failed."""
    several = ["--numprocesses", str(min(8, cores()))] if find_spec("xdist") else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        pytest = [sys.executable, "-m", "pytest", cell["file"], "-vv", "--tb=short", "-p", "no:cacheprovider", *several]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if settings.device == "cpu" else {}
        subprocess.run([*pytest, f"--junitxml={report}"], cwd=ROOT, env=os.environ | hidden, stdin=subprocess.DEVNULL)
        if not report.exists():
            raise RuntimeError("pytest did not come to its end")
        cases = list(xml.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cases)} tests failed: {', '.join(failed)}")
    return {"passed": len(cases) - skipped, "skipped": skipped}


def tests_table(found: list[Found], settings: Settings) -> str:
    rows = [[one["file"], str(one["passed"]), str(one["skipped"])] for one in found]
    return markdown(("tests", "passed", "skipped"), rows)


# Inference


def inference_cells(settings: Settings, full: bool) -> dict[str, Cell]:
    """fp32 as it is and folded, half precision in all ways; with `full` every precision in all ways."""
    half = "bf16" if settings.device == "cpu" else "fp16"
    wanted = [("fp32", way) for way in ("eager", "folded")]
    wanted += [(half, way) for way in (("eager", "folded") if settings.small else WAYS)]
    if full:
        wanted += [(precision, way) for precision in PRECISIONS for way in WAYS]
    compiled = ("compiled", "CUDA graphs")
    return {
        f"{side(size)}, batch {batch}, {precision}, {way}":
            {"size": list(size), "batch": batch, "precision": precision, "way": way, "compiled": way in compiled}
        for precision, way in wanted for size in settings.sizes for batch in settings.batches
    }  # fmt: skip


def measure_inference(cell: Cell, settings: Settings) -> Found:
    """In turn with the plain network in fp32, so that the ratio is of one moment."""
    device = torch.device(settings.device)
    plain = build_segmenter("bisenet").to(device, memory_format=torch.contiguous_format).eval()
    network = WAYS[cell["way"]](plain, PRECISIONS[cell["precision"]])
    width, height = cell["size"]
    images = torch.rand(cell["batch"], 3, height, width, device=device)
    seconds = medians({"plain": plain, "this": network}, images, settings.passes)
    return {"milliseconds": 1e3 * seconds["this"], "images_per_second": cell["batch"] / seconds["this"],
            "times_plain": seconds["plain"] / seconds["this"]}  # fmt: skip


def inference_table(found: list[Found], settings: Settings) -> str:
    """A row a size, batch and precision, a column a way."""
    rows: dict[tuple[Any, ...], dict[str, Found]] = {}
    for one in found:
        rows.setdefault((tuple(one["size"]), one["batch"], one["precision"]), {})[one["way"]] = one

    def cell(one: Found | None) -> str:
        return "-" if one is None else f"{one['milliseconds']:.2f} ({one['times_plain']:.2f}x)"

    order = {name: place for place, name in enumerate(PRECISIONS)}
    return markdown(
        ("ms (times plain fp32)", "batch", "precision", *WAYS),
        [
            [side(key[0]), str(key[1]), key[2], *(cell(rows[key].get(way)) for way in WAYS)]
            for key in sorted(rows, key=lambda key: (key[0], key[1], order[key[2]]))
        ],
    )


PARTS = {
    "tests": Part(
        "Tests on the device", tests_cells, measure_tests, tests_table,
        lambda one: f"{one['passed']} passed, {one['skipped']} skipped", 20, (300, 300), limit=20,
    ),
    "training": Part(
        "Training, data included", training_cells, measure_training, training_table,
        lambda one: f"{one['seconds']:.3f} s a step, {one['images_per_second']:.1f} images/s, waiting for data "
        f"{100 * one['waiting']:.1f} %, {gib(one['memory_mib'])} GiB", 18, (12, 45), scenes=True,
    ),
    "memory": Part(
        "Memory of training", memory_cells, measure_memory, memory_table,
        lambda one: f"{gib(one['memory_mib'])} GiB", 8, (7, 7), scenes=True,
    ),
    "inference": Part(
        "Inference, BiSeNet with ResNet-18", inference_cells, measure_inference, inference_table,
        lambda one: f"{one['milliseconds']:.2f} ms, {one['images_per_second']:.1f} images/s", 8, (4, 25),
    ),
}  # fmt: skip
