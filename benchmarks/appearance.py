"""How fast are jitter, blur and the strong augmentation, beside torchvision's own transforms picture by picture?

    python benchmarks/appearance.py

Both run in this process, in turn, on the same pictures and with the same draws; the figure is the ratio of medians. The
results are compared as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adaptation.mixing import StrongAugmentation  # noqa: E402
from benchmarks.fda import seconds  # noqa: E402
from datasets.appearance import Appearance, to_float  # noqa: E402
from training.provenance import device_name  # noqa: E402
from utils.errors import Parser, run_script  # noqa: E402
from utils.flags import default_device, device, positive, size  # noqa: E402
from utils.tables import markdown  # noqa: E402

REPORT = v2.ColorJitter(0.5, 0.5, 0.5, 0.05), v2.GaussianBlur(3, (0.2, 0.8))
STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.25, 0.25, 0.25, 0.25)], p=0.8),
        v2.RandomApply([v2.GaussianBlur(9, (0.15, 1.15))], p=0.5),
    ]
)


def one_by_one(pictures: Tensor, *transforms: v2.Transform) -> Tensor:
    for transform in transforms:
        pictures = torch.stack([transform(picture) for picture in pictures])
    return pictures


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "jitter and blur (--jitter --blur)": (
        Appearance(jitter=True, blur=True),
        lambda images: one_by_one(to_float(images), *REPORT),
    ),
    "strong augmentation (train_dacs.py)": (
        lambda images: StrongAugmentation()(to_float(images)),
        lambda images: one_by_one(to_float(images), STRONG),
    ),
}


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(1024, 512), metavar="WxH", help="of the pictures (1024x512)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="(8)")
    parser.add_argument("--runs", type=positive, default=7, metavar="N", help="of each, in turn (7)")
    parser.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    width, height = args.size
    torch.manual_seed(0)
    images = torch.randint(256, (args.batch_size, 3, height, width), dtype=torch.uint8).to(args.device)
    rows = []
    for name, ways in WAYS.items():
        times: tuple[list[float], list[float]] = ([], [])
        largest = 0.0
        for run in range(args.runs):
            results = []
            for way, measured in zip(ways, times, strict=True):
                torch.manual_seed(run)
                measured.append(seconds(lambda way=way, kept=results: kept.append(way(images)), args.device))
            largest = max(largest, float((results[0] - results[1]).abs().max()))
        ours, theirs = map(statistics.median, times)
        rows.append([name, f"{1e3 * ours:.0f}", f"{1e3 * theirs:.0f}", f"{theirs / ours:.2g}", f"{largest:.1e}"])
    print(f"{args.batch_size} pictures of {width}x{height}, {args.runs} runs of each in turn, medians; "
          f"{device_name(args.device)}, torch {torch.__version__}\n")  # fmt: skip
    header = ("augmentation", "ours (ms)", "torchvision, one by one (ms)", "times faster", "largest difference")
    print(markdown(header, rows))


if __name__ == "__main__":
    run_script(main)
