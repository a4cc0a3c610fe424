"""How fast do training batches come: from the files, from prepared arrays, and by the plain loader of this field?

    python benchmarks/loading.py
    python benchmarks/loading.py --scenes 200 --workers 8

Draws street scenes at the data sets' own sizes (source 1914x1052, target 2048x1024), once, under --out, and loads
batches at the working size. All loaders read the same files with the same number of workers, in turn; the figures are
medians over the rounds. The plain loader decodes with PIL, resizes, maps labels through a table and flips; ours also
scale by BiSeNet's factors and crop.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets import SegmentationSet, cityscapes, gta5, street_scenes  # noqa: E402
from datasets.geometry import Geometry  # noqa: E402
from datasets.prepared import prepared  # noqa: E402
from datasets.stream import TrainingStream, batches, training_loader  # noqa: E402
from models.bisenet import BiSeNet  # noqa: E402
from utils.errors import Parser, run_script  # noqa: E402
from utils.flags import cores, positive, size, whole  # noqa: E402
from utils.tables import markdown  # noqa: E402

SOURCE_SIZE, TARGET_SIZE = (1914, 1052), (2048, 1024)


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(1024, 512), metavar="WxH", help="working size (1024x512)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="(4)")
    parser.add_argument("--scenes", type=positive, default=24, metavar="N", help="of each look (24)")
    parser.add_argument("--workers", type=whole, default=min(8, cores() - 1), metavar="N", help="(%(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="(5)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-scenes"), metavar="DIR", help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    home = draw(args.out, args.scenes)
    rows = []
    for data in (gta5(home / "source", args.size), cityscapes(home / "target", "train", args.size)):
        ready = prepared(data, [home / "prepared"], args.workers)
        loaders = {
            "plain, PIL": lambda data=data: plain(data, args),
            "ours, files": lambda data=data: ours(data, args, 2 * args.scenes),
            "ours, prepared": lambda ready=ready: ours(ready, args, 20 * args.scenes),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(args.rounds):
            for name, make in loaders.items():
                seconds[name].append(seconds_per_picture(make()))
        median = {name: statistics.median(values) for name, values in seconds.items()}
        for name, value in median.items():
            rows.append([data.name, name, f"{1 / value:.1f}", f"{median['plain, PIL'] / value:.1f}"])
    width, height = args.size
    print(f"batches of {args.batch_size} at {width}x{height}, {args.workers} worker(s), {args.rounds} rounds in turn, "
          f"medians; torch {torch.__version__}\n")  # fmt: skip
    print(markdown(("set", "loader", "pictures/s", "times the plain loader"), rows))


def draw(
    out: Path, scenes: int, source_size: tuple[int, int] | None = None, target_size: tuple[int, int] | None = None
) -> Path:
    """Street scenes of both looks at the data sets' own sizes or at those named, OUT/SCENES/source and target; drawn
    once."""
    home = out / str(scenes)
    if not (home / "drawn").exists():
        counts = {"train": scenes, "val": 1}
        street_scenes.write_gta5(home / "source", scenes, source_size or SOURCE_SIZE, workers=cores())
        street_scenes.write_cityscapes(home / "target", counts, target_size or TARGET_SIZE, workers=cores())
        (home / "drawn").touch()
    return home


def ours(data: SegmentationSet, args: argparse.Namespace, draws: int) -> Iterable[Tensor]:
    """Pictures of each batch, as training gets them."""
    paper = BiSeNet.settings["paper"]
    geometry = Geometry(args.size, paper.scales, paper.flip)
    stream = TrainingStream(data, geometry, seed=0, stream=0, draws=draws)
    for (images, _), _ in batches(training_loader(stream, args.batch_size, range(draws), args.workers, pin=False)):
        yield images


def plain(data: SegmentationSet, args: argparse.Namespace) -> Iterable[Tensor]:
    """The same through what most code of this field does."""
    for images, _ in DataLoader(Plain(data), args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True):
        yield images


class Plain(Dataset):
    """PIL, float pictures in [0, 1]."""

    def __init__(self, data: SegmentationSet) -> None:
        self.data, self.table = data, data.table.by_id()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.data.samples[index]
        image = Image.open(sample.image).convert("RGB").resize(self.data.size, Image.Resampling.BILINEAR)
        label = Image.open(sample.label).resize(self.data.size, Image.Resampling.NEAREST)
        pixels, ids = np.asarray(image, dtype=np.float32) / 255, self.table[np.asarray(label)].astype(np.int64)
        if np.random.rand() < 0.5:
            pixels, ids = pixels[:, ::-1], ids[:, ::-1]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(ids.copy())


def seconds_per_picture(loader: Iterable[Tensor]) -> float:
    """From the first batch on, so that the workers' start does not count."""
    iterator = iter(loader)
    next(iterator)
    start, seen = time.perf_counter(), 0
    for images in iterator:
        seen += len(images)
    return (time.perf_counter() - start) / seen


if __name__ == "__main__":
    run_script(main)
