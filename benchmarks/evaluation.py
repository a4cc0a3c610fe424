"""How fast is a picture's prediction counted into the confusion matrix, beside NumPy's bincount?

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --size 1024x512 --device cuda

The NumPy side is the usual one of this field: mask what is ignored, 19 * label + prediction, bincount. Both get the
same predictions, where they lie: from a GPU NumPy has to fetch them first. The counts are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets.labels import IGNORE  # noqa: E402
from training.provenance import device_name  # noqa: E402
from utils.errors import Parser, run_script  # noqa: E402
from utils.flags import default_device, device, positive, size  # noqa: E402
from utils.metrics import ConfusionMatrix  # noqa: E402
from utils.tables import markdown  # noqa: E402

CLASSES = 19


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(2048, 1024), metavar="WxH", help="of a label (2048x1024)")
    parser.add_argument("--rounds", type=positive, default=31, metavar="N", help="(31)")
    parser.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prediction, label = example(args.size, args.device)
    counts = {"ours": lambda: ours(prediction, label), "NumPy": lambda: plain(prediction, label)}
    if not torch.equal(*(count() for count in counts.values())):  # the warm-up too
        raise AssertionError("the two counts differ")
    seconds: dict[str, list[float]] = {name: [] for name in counts}
    for _ in range(args.rounds):
        for name, count in counts.items():
            seconds[name].append(timed(count))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    width, height = args.size
    print(f"one prediction of {width}x{height}, {args.rounds} rounds in turn, medians, equal counts; "
          f"{device_name(args.device)}, torch {torch.__version__}, NumPy {np.__version__}\n")  # fmt: skip
    rows = [[name, f"{1e3 * value:.2f}", f"{median['NumPy'] / value:.1f}"] for name, value in median.items()]
    print(markdown(("count", "ms", "times NumPy"), rows))


def example(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(prediction, label) uint8 [H, W]: blocks of classes, a twentieth ignored, an eighth of the blocks predicted
    wrong."""
    width, height = size
    generator = torch.Generator().manual_seed(0)
    shape = (-(-height // 16), -(-width // 16))
    label = torch.randint(0, CLASSES, shape, generator=generator)
    other = torch.randint(0, CLASSES, shape, generator=generator)
    prediction = torch.where(torch.rand(shape, generator=generator) < 1 / 8, other, label)
    label[torch.rand(shape, generator=generator) < 1 / 20] = IGNORE
    whole = [part.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width] for part in (prediction, label)]
    return tuple(part.to(torch.uint8).contiguous().to(device) for part in whole)


def ours(prediction: Tensor, label: Tensor) -> Tensor:
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(prediction, label)
    return matrix.matrix.cpu()


def plain(prediction: Tensor, label: Tensor) -> Tensor:
    p, g = prediction.cpu().numpy().flatten(), label.cpu().numpy().flatten()
    valid = (g >= 0) & (g < CLASSES)
    counts = np.bincount(CLASSES * g[valid].astype(int) + p[valid], minlength=CLASSES**2)
    return torch.from_numpy(counts.reshape(CLASSES, CLASSES))


def timed(count: Callable[[], Tensor]) -> float:
    """Seconds; both ways end with the counts on the CPU, so nothing is left to wait for."""
    start = time.perf_counter()
    count()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_script(main)
