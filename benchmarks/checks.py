"""What does it cost that prepared arrays vouch for their content: at a run's start, and at each reading?

    python benchmarks/checks.py
    python benchmarks/checks.py --scenes 300 --rounds 3

Draws small scenes once, under --out, prepares them at the working size (5 GB for 3,000 at 1024x512), and opens the
arrays anew in every round, as a run's start does. Each round reads every picture twice: the first reading compares its
checksum. The files are in the system's memory before, so that no disk is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets import gta5, street_scenes  # noqa: E402
from datasets.arrays import CONTENT  # noqa: E402
from datasets.prepared import prepared  # noqa: E402
from datasets.segmentation import SegmentationSet  # noqa: E402
from utils.errors import Parser, run_script  # noqa: E402
from utils.flags import cores, positive, size  # noqa: E402
from utils.tables import markdown  # noqa: E402

DRAWN = (64, 32)
"""Of the scenes' files, which are enlarged: only the arrays count here."""


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(1024, 512), metavar="WxH", help="working size (1024x512)")
    parser.add_argument("--scenes", type=positive, default=3000, metavar="N", help="(3000)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="(5)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-checks"), metavar="DIR", help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    home = args.out / str(args.scenes)
    if not (home / "drawn").exists():
        street_scenes.write_gta5(home, args.scenes, DRAWN, workers=cores())
        (home / "drawn").touch()
    data = gta5(home, args.size)
    prepared(data, [home / "prepared"], cores() - 1)
    for file in (home / "prepared").rglob(CONTENT):
        with file.open("rb") as content:
            while content.read(2**24):
                pass
    rounds = [one_round(data, home / "prepared") for _ in range(args.rounds)]
    start, first, later = (statistics.median(values) for values in zip(*rounds, strict=True))
    width, height = args.size
    print(f"{args.scenes} pictures at {width}x{height}, {args.rounds} rounds, medians; torch {torch.__version__}\n")
    print(markdown(("opening both arrays (s)", "a picture's first reading (ms)", "a later one (ms)"),
                   [[f"{start:.2f}", f"{1e3 * first:.2f}", f"{1e3 * later:.2f}"]]))  # fmt: skip


def one_round(data: SegmentationSet, place: Path) -> tuple[float, float, float]:
    """Seconds: of a start from arrays that are there, of a picture's first reading, of a later one."""
    began = time.perf_counter()
    ready = prepared(data, [place], 0)
    opened = time.perf_counter()
    readings = []
    for _ in range(2):
        before = time.perf_counter()
        for index in range(len(ready)):
            ready.images[index].sum()  # the pixels, not their map alone
        readings.append((time.perf_counter() - before) / len(ready))
    return opened - began, *readings


if __name__ == "__main__":
    run_script(main)
