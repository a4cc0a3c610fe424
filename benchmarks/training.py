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
import importlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adaptation.fda import half_width  # noqa: E402
from benchmarks.fda import by_numpy  # noqa: E402
from benchmarks.loading import Plain, draw  # noqa: E402
from datasets import cityscapes, gta5  # noqa: E402
from datasets.labels import IGNORE  # noqa: E402
from models import build_discriminator, build_segmenter  # noqa: E402
from training.gradients import PRECISIONS, default_precision  # noqa: E402
from training.provenance import device_name  # noqa: E402
from training.run import Run  # noqa: E402
from utils.errors import Parser, run_script  # noqa: E402
from utils.flags import cores, default_device, device, positive, size, whole  # noqa: E402
from utils.tables import markdown  # noqa: E402

BETA = 0.01


def parse_args(doc: str, methods: Iterable[str]) -> argparse.Namespace:
    """What is timed and how; of benchmarks/methods.py too."""
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=methods, nargs="+", default=list(methods), help="methods to time (all)")
    parser.add_argument("--size", type=size, default=(1024, 512), metavar="WxH", help="of both domains (1024x512)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="(4)")
    parser.add_argument("--scenes", type=positive, default=24, metavar="N", help="of each look (24)")
    parser.add_argument("--steps", type=positive, default=6, metavar="N", help="of a round (6)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of ours (as the training scripts choose it)")
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--workers", type=whole, default=min(8, cores() - 1), metavar="N", help="(%(default)s)")
    parser.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-scenes"), metavar="DIR", help="(%(default)s)")
    args = parser.parse_args()
    args.precision = args.precision or default_precision(args.device)
    return args


def main() -> None:
    args = parse_args(__doc__, METHODS)
    home = draw(args.out, args.scenes)
    rows = []
    for name in args.only:
        script, loop = METHODS[name]
        found: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
        for _ in range(args.rounds):
            found["plain"].append(timed(loop(home, args), args))
            found["ours"].append(ours(script, home, args))
        seconds = {way: statistics.median(second for second, _ in rounds) for way, rounds in found.items()}
        for way, rounds in found.items():
            waiting = statistics.median(share for _, share in rounds)
            rows.append([name, way, f"{seconds[way]:.3f}", f"{args.batch_size / seconds[way]:.2f}",
                         f"{seconds['plain'] / seconds[way]:.2f}", f"{100 * waiting:.1f}"])  # fmt: skip
    width, height = args.size
    print(f"batches of {args.batch_size} at {width}x{height}, {args.workers} worker(s) a stream, {args.rounds} rounds "
          f"of {args.steps} steps in turn, medians; ours in {args.precision}{', compiled' if args.compile else ''}; "
          f"{device_name(args.device)}, torch {torch.__version__}\n")  # fmt: skip
    print(markdown(("training", "loop", "s a step", "pictures/s", "times plain", "waiting for data (%)"), rows))


def timed(steps: Iterator[float], args: argparse.Namespace) -> tuple[float, float]:
    """(seconds a step, share of them waited for data) of steps that each say how long they waited; the first one, in
    which workers start and kernels are chosen, is left out."""
    next(steps)
    finish(args.device)
    start, waited = time.perf_counter(), 0.0
    for _ in range(args.steps):
        waited += next(steps)
    finish(args.device)
    passed = time.perf_counter() - start
    steps.close()
    return passed / args.steps, waited / passed


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Done(Exception):
    """Enough steps of a training script are timed."""


def ours(script: str, home: Path, args: argparse.Namespace, flags: tuple[str, ...] = ()) -> tuple[float, float]:
    """The same figures of a training script, called as a user calls it and left after enough steps."""
    side, folder = f"{args.size[0]}x{args.size[1]}", home / "run"
    shutil.rmtree(folder, ignore_errors=True)
    sys.argv = [f"{script}.py", "--gta5", str(home / "source"), "--cityscapes", str(home / "target"), "--size", side,
                "--source-size", side, "--weights", "none", "--batch-size", str(args.batch_size), "--max-steps", "1000",
                "--eval-every", "1000", "--workers", str(args.workers), "--device", str(args.device), "--precision",
                args.precision, "--run-dir", str(folder), *(["--compile"] if args.compile else []), *flags]  # fmt: skip
    module, waits, marks = importlib.import_module(script), [], []

    class Timed(Run):
        def steps(self, *streams: Iterator[Any]) -> Iterator[Any]:
            for batch in super().steps(*(waited_for(stream, waits) for stream in streams)):
                if self.step in (1, 1 + args.steps):
                    finish(self.device)
                    marks.append((time.perf_counter(), sum(waits)))
                if len(marks) == 2:
                    raise Done
                yield batch

    plain, module.Run = module.Run, Timed
    try:
        with redirect_stdout(None):
            module.main()
    except Done:
        pass
    finally:
        module.Run = plain
        shutil.rmtree(folder, ignore_errors=True)
    (start, before), (end, after) = marks
    return (end - start) / args.steps, (after - before) / (end - start)


def waited_for(stream: Iterator[Any], waits: list[float]) -> Iterator[Any]:
    """The stream, each wait for it noted."""
    while True:
        start = time.perf_counter()
        item = next(stream)
        waits.append(time.perf_counter() - start)
        yield item


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
