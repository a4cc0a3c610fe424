"""How fast is a training step, data included, beside the plain loop of this field? And does it wait for data?

    python benchmarks/training.py
    python benchmarks/training.py --precision bf16 --steps 50 --rounds 5

Street scenes at the data sets' own sizes are drawn once, under --out. Plain: PIL loaders that decode every picture,
contiguous fp32 networks, every loss read at every step; FDA by NumPy in the loader, as published. Ours: the training
scripts themselves, with prepared data. Both read the same files with the same number of workers, in turn; medians over
rounds of --steps steps each, of which the first of all is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adaptation.fda import half_width  # noqa: E402
from benchmarks.fda import by_numpy  # noqa: E402
from benchmarks.loading import Plain, draw  # noqa: E402
from benchmarks.steps import Timing, finish, ours, parse_args, waited_for  # noqa: E402
from datasets import cityscapes, gta5  # noqa: E402
from datasets.labels import IGNORE  # noqa: E402
from models import build_discriminator, build_segmenter  # noqa: E402
from training.provenance import device_name  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.tables import markdown  # noqa: E402

BETA = 0.01


def main() -> None:
    args = parse_args(__doc__, METHODS)
    home = draw(args.out, args.scenes)
    rows = []
    for name in args.only:
        script, loop = METHODS[name]
        found: dict[str, list[Timing]] = {"plain": [], "ours": []}
        for _ in range(args.rounds):
            found["plain"].append(timed(loop(home, args), args))
            found["ours"].append(ours(script, home, args))
        seconds = {way: statistics.median(one.seconds for one in rounds) for way, rounds in found.items()}
        for way, rounds in found.items():
            waiting = statistics.median(one.waiting for one in rounds)
            rows.append([name, way, f"{seconds[way]:.3f}", f"{args.batch_size / seconds[way]:.2f}",
                         f"{seconds['plain'] / seconds[way]:.2f}", f"{100 * waiting:.1f}"])  # fmt: skip
    width, height = args.size
    print(f"batches of {args.batch_size} at {width}x{height}, {args.workers} worker(s) a stream, {args.rounds} rounds "
          f"of {args.steps} steps in turn, medians; ours in {args.precision}{', compiled' if args.compile else ''}; "
          f"{device_name(args.device)}, torch {torch.__version__}\n")  # fmt: skip
    print(markdown(("training", "loop", "s a step", "pictures/s", "times plain", "waiting for data (%)"), rows))


def timed(steps: Iterator[float], args: argparse.Namespace) -> Timing:
    """Of steps that each say how long they waited; the first one, in which workers start and kernels are chosen, is
    left out."""
    next(steps)
    finish(args.device)
    start, waited = time.perf_counter(), 0.0
    for _ in range(args.steps):
        waited += next(steps)
    finish(args.device)
    passed = time.perf_counter() - start
    steps.close()
    return Timing(passed / args.steps, waited / passed)


# The plain loops: each step yields the seconds that it waited for data.


def plain_supervised(data: Dataset, args: argparse.Namespace) -> Iterator[float]:
    model, optimizer = plain_network(args)
    waits: list[float] = []
    for images, labels in waited_for(plain_batches(data, args), waits):
        loss = plain_loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        yield waits[-1]


def plain_source_only(home: Path, args: argparse.Namespace) -> Iterator[float]:
    return plain_supervised(Plain(gta5(home / "source", args.size)), args)


def plain_adversarial(home: Path, args: argparse.Namespace) -> Iterator[float]:
    model, optimizer = plain_network(args)
    discriminator = build_discriminator("standard").to(args.device, memory_format=torch.contiguous_format)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-4, betas=(0.9, 0.99))
    waits: list[float] = []
    source = waited_for(plain_batches(Plain(gta5(home / "source", args.size)), args), waits)
    target = waited_for(plain_batches(Plain(cityscapes(home / "target", "train", args.size)), args), waits)
    for (images, labels), (target_images, _) in zip(source, target, strict=False):
        optimizer.zero_grad()
        discriminator.requires_grad_(False)
        outputs = model(images)
        loss = plain_loss(outputs, labels)
        loss.backward()
        target_outputs = model(target_images)
        adversarial = plain_gan(discriminator(target_outputs[0].softmax(1)), 0.0)
        (1e-3 * adversarial).backward()
        optimizer.step()
        discriminator.requires_grad_(True)
        optimizer_d.zero_grad()
        for logits, domain in ((outputs[0], 0.0), (target_outputs[0], 1.0)):
            loss_d = plain_gan(discriminator(logits.detach().softmax(1)), domain) / 2
            loss_d.backward()
            loss_d.item()
        optimizer_d.step()
        loss.item(), adversarial.item()
        yield sum(waits[-2:])


def plain_fda(home: Path, args: argparse.Namespace) -> Iterator[float]:
    source, target = gta5(home / "source", args.size), cityscapes(home / "target", "train", args.size)
    return plain_supervised(PlainFDA(Plain(source), Plain(target)), args)


class PlainFDA(Dataset):
    """Source pictures in the style of random target pictures, translated where they are loaded."""

    def __init__(self, source: Plain, target: Plain) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        (image, label), (style, _) = self.source[index], self.target[index % len(self.target)]
        b = half_width(*image.shape[-2:], BETA)
        translated = by_numpy(image[None].double().numpy(), style[None].double().numpy(), b)
        return torch.from_numpy(translated[0]).float(), label


def plain_batches(data: Dataset, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """On the device, without end."""
    gpu = args.device.type == "cuda"
    endless = ConcatDataset([data] * 10_000)
    loader = DataLoader(endless, args.batch_size, shuffle=True, num_workers=args.workers, pin_memory=gpu)
    for images, labels in loader:
        yield images.to(args.device), labels.to(args.device)


def plain_network(args: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_segmenter("bisenet").to(args.device, memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.5e-2, momentum=0.9, weight_decay=1e-4)
    return model, optimizer


def plain_loss(outputs: tuple[Tensor, tuple[Tensor, ...]], labels: Tensor) -> Tensor:
    return sum(F.cross_entropy(logits, labels, ignore_index=IGNORE) for logits in (outputs[0], *outputs[1]))


def plain_gan(scores: Tensor, domain: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


METHODS: dict[str, tuple[str, Callable[[Path, argparse.Namespace], Iterator[float]]]] = {
    "source only": ("train_gta5", plain_source_only),
    "adversarial": ("train_adversarial", plain_adversarial),
    "FDA": ("train_fda", plain_fda),
}


if __name__ == "__main__":
    run_script(main)
