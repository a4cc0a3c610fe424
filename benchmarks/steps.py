"""The steps of a training script, timed: the script runs as a user calls it, in this process, and is left after enough.

The epochs are made as long as those of the real data sets, so that what a run does once an epoch does not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets import SegmentationSet  # noqa: E402
from training.gradients import PRECISIONS, default_precision  # noqa: E402
from training.run import Run  # noqa: E402
from utils.errors import Parser  # noqa: E402
from utils.flags import cores, default_device, device, positive, size, whole  # noqa: E402

BASELINE = "source only"
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    BASELINE: ("train_gta5", ()),
    "adversarial, standard": ("train_adversarial", ()),
    "adversarial, depthwise": ("train_adversarial", ("--discriminator", "depthwise")),
    "FDA": ("train_fda", ("--beta", "0.01")),  # its first third
    "FDA with entropy": ("train_fda", ("--beta", "0.01", "--entropy-from", "0")),
    "DACS": ("train_dacs", ()),
    "DACS, recipe best": ("train_dacs", ("--recipe", "best")),
    "DACS, recipe labels": ("train_dacs", ("--recipe", "labels")),
    "SAC": ("train_sac", ()),
}
"""Name -> script and flags."""
LONG = 10_000
"""Steps of an epoch, and of the run that is left early."""


def parse_args(doc: str, methods: Iterable[str]) -> argparse.Namespace:
    """What is timed and how: the flags of benchmarks that time steps."""
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


class Timing(NamedTuple):
    """Of a step: its seconds and the share of them that it waited for data, medians over rounds; MiB allocated on a GPU
    at most; and its seconds in each round."""

    seconds: float
    waiting: float
    memory: float | None = None
    rounds: tuple[float, ...] = ()


class Done(Exception):
    """Enough steps are timed."""


class Watch:
    """Takes the time after `warm` steps and after each of `rounds` times `steps` more; then it raises `Done`."""

    def __init__(self, device: torch.device, warm: int, steps: int, rounds: int) -> None:
        self.device, self.steps, self.rounds = device, steps, rounds
        self.marks_at = range(warm, warm + steps * rounds + 1, steps)
        self.waits: list[float] = []
        self.marks: list[tuple[float, float]] = []  # the clock, and seconds waited until then

    def at(self, step: int) -> None:
        """After so many steps, and before the next one."""
        if step not in self.marks_at:
            return
        finish(self.device)
        if not self.marks and self.device.type == "cuda":  # what choosing kernels and compiling took is left out
            torch.cuda.reset_peak_memory_stats(self.device)
        self.marks.append((time.perf_counter(), sum(self.waits)))
        if len(self.marks) > self.rounds:
            raise Done

    def timing(self) -> Timing:
        """Of the rounds that are done."""
        passed, waited = ([b - a for a, b in pairwise(column)] for column in zip(*self.marks, strict=True))
        seconds = [time / self.steps for time in passed]
        shares = [wait / time for wait, time in zip(waited, passed, strict=True)]
        memory = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None
        return Timing(statistics.median(seconds), statistics.median(shares), memory, tuple(seconds))


def ours(
    script: str,
    home: Path,
    args: argparse.Namespace,
    flags: Sequence[str] = (),
    *,
    warm: int = 1,
    rounds: int = 1,
    resident: bool = False,
) -> Timing:
    """Times `rounds` rounds of `args.steps` steps of a training script on the scenes in `home`, after `warm` steps.

    args: size, batch_size, precision, compile, workers, device, as `parse_args` has them. With `resident` every step
    has the first step's batch, which stays on the device.
    """
    side, folder = f"{args.size[0]}x{args.size[1]}", home / "run"
    shutil.rmtree(folder, ignore_errors=True)
    source = [] if script == "train_cityscapes" else ["--gta5", str(home / "source"), "--source-size", side]
    sys.argv = [f"{script}.py", *source, "--cityscapes", str(home / "target"), "--size", side,
                "--weights", "none", "--batch-size", str(args.batch_size), "--max-steps", str(LONG),
                "--eval-every", str(LONG), "--workers", str(args.workers), "--device", str(args.device),
                "--precision", args.precision, "--run-dir", str(folder),
                *(["--compile"] if args.compile else []), *flags]  # fmt: skip
    module, watch = importlib.import_module(script), Watch(args.device, warm, args.steps, rounds)

    class Timed(Run):
        def __init__(self, args: argparse.Namespace, epoch_of: SegmentationSet, *others: SegmentationSet) -> None:
            times = 1 + LONG * args.batch_size // len(epoch_of)
            super().__init__(args, dataclasses.replace(epoch_of, samples=epoch_of.samples * times), *others)

        def steps(self, *streams: Iterator[Any]) -> Iterator[Any]:
            streams = [waited_for(repeated(stream) if resident else stream, watch.waits) for stream in streams]
            for batch in super().steps(*streams):
                watch.at(self.step)
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
    return watch.timing()


def waited_for(stream: Iterator[Any], waits: list[float]) -> Iterator[Any]:
    """The stream, each wait for it noted."""
    while True:
        start = time.perf_counter()
        item = next(stream)
        waits.append(time.perf_counter() - start)
        yield item


def repeated(stream: Iterator[Any]) -> Iterator[Any]:
    """The stream's first batch, without end."""
    first = next(stream)
    while True:
        yield first


def finish(device: torch.device) -> None:
    """Waits for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
