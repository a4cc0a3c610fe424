"""Runs the training scripts in this process, or in each of those that torchrun starts; for tests/test_distributed.py.

    torchrun --nproc-per-node=2 tests/processes.py GAME CITY LABELLER OUT

OUT/SCRIPT-gradients.pt holds the gradients of a script's first step, with batch normalisation in evaluation mode (as
torch synchronises it on GPUs only); OUT/SCRIPT is a whole run; OUT/interrupted one that was stopped and resumed.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import SMALL, SOURCE  # noqa: E402

from utils import distributed  # noqa: E402
from utils.gradients import Gradients  # noqa: E402
from utils.interruption import Interruption, Stop  # noqa: E402

torch.set_num_threads(1)


def commands(game: str, city: str, labeller: str) -> dict[str, list[str]]:
    """Each script's flags, less --run-dir; pictures of 5 batches, of which ranks get unequal numbers of labelled
    pixels."""
    common = [*SMALL, "--batch-size", 4, "--cityscapes", city, "--eval-every", 1]
    both = [*common, *SOURCE, "--gta5", game]
    found = {
        "train_cityscapes": [*common, "--loss", "weighted"],
        "train_gta5": [*both, "--source-holdout", 0.3],
        "train_adversarial": [*both, "--size", "64x32", "--level", "multi", "--discriminator", "depthwise"],
        "train_fda": [*both, "--beta", 0.05, "--entropy-from", 0],
        "train_pseudo_labels": [*both, "--labeller", labeller, "--percentile", 0, "--confidence", 0],
        "train_dacs": both,
    }
    return {name: [str(flag) for flag in flags] for name, flags in found.items()}


class FirstStepDone(Exception):
    """Ends a script once its gradients are known."""


def first_step(name: str, flags: list[str], out: Path) -> None:
    """Saves the averaged gradients of every optimizer of the first step."""
    kept: list[list[torch.Tensor]] = []

    def update(self: Gradients, optimizer: Any, *schedules: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        distributed.average_gradients(parameters)
        kept.append([p.grad.clone() for p in parameters])
        if len(kept) == (3 if name == "train_adversarial" else 1):
            raise FirstStepDone

    train, stepped = _BatchNorm.train, Gradients.update
    _BatchNorm.train = lambda self, mode=True: nn.Module.train(self, False)
    Gradients.update = update
    try:
        call(name, [*flags, "--epochs", "1", "--run-dir", str(out / f"{name}-first")])
    except FirstStepDone:
        pass
    finally:
        _BatchNorm.train, Gradients.update = train, stepped
    torch.save(kept, out / f"{name}-gradients-{distributed.rank()}.pt")


def call(name: str, flags: list[str]) -> None:
    sys.argv = [f"{name}.py", *flags]
    importlib.import_module(name).main()


def main() -> None:
    game, city, labeller, home = sys.argv[1:]
    out = Path(home)
    out.mkdir(exist_ok=True)
    todo = commands(game, city, labeller)
    for name, flags in todo.items():
        if name != "train_dacs":  # whose random masks are each rank's own
            first_step(name, flags, out)
    for name, flags in todo.items():
        call(name, [*flags, "--epochs", "2", "--run-dir", str(out / name)])

    # Only the last rank is told to stop, once within an epoch and once at its end; all have to.
    pauses, stop = itertools.count(), Interruption.stop
    last = distributed.rank() == distributed.ranks() - 1
    Interruption.stop = lambda self: Stop("stopped by a test", 99) if last and next(pauses) in (2, 5) else None
    for _ in range(3):
        try:
            call("train_adversarial", [*todo["train_adversarial"], "--epochs", "2", "--resume", "--run-dir",
                                       str(out / "interrupted")])  # fmt: skip
        except SystemExit as ended:
            print("stopped", distributed.rank(), "with", ended.code, file=sys.stderr)
    Interruption.stop = stop
    distributed.end()


if __name__ == "__main__":
    main()
