"""What does a step of each method cost, in steps of source only?

    python benchmarks/methods.py
    python benchmarks/methods.py --size 240x176 --batch-size 8 --precision bf16 --steps 8 --rounds 5

The training scripts themselves on street scenes, prepared data included, one method after the other in each round;
the ratio to source only is taken within a round, and its median over rounds is printed, beside the least and the most.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.loading import draw  # noqa: E402
from benchmarks.steps import BASELINE, METHODS, ours, parse_args  # noqa: E402
from training.provenance import device_name  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.tables import markdown  # noqa: E402


def main() -> None:
    args = parse_args(__doc__, METHODS)  # source only is always timed beside them
    home = draw(args.out, args.scenes)
    names = [name for name in METHODS if name == BASELINE or name in args.only]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            script, flags = METHODS[name]
            found[name].append(ours(script, home, args, flags).seconds)
    rows = []
    for name in names:
        ratios = [seconds / base for seconds, base in zip(found[name], found[BASELINE], strict=True)]
        rows.append([name, f"{statistics.median(found[name]):.3f}", f"{statistics.median(ratios):.2f}",
                     f"{min(ratios):.2f} to {max(ratios):.2f}"])  # fmt: skip
    width, height = args.size
    print(f"batches of {args.batch_size} at {width}x{height}, {args.workers} worker(s) a stream, {args.rounds} rounds "
          f"of {args.steps} steps in turn; {args.precision}{', compiled' if args.compile else ''}; "
          f"{device_name(args.device)}, torch {torch.__version__}\n")  # fmt: skip
    print(markdown(("method", "s a step, median", "steps of source only, median", "least and most"), rows))


if __name__ == "__main__":
    run_script(main)
