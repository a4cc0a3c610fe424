"""Runs the training scripts in this process, or in each of those that torchrun starts; for tests/test_distributed.py.

    torchrun --nproc-per-node=2 tests/processes.py GAME CITY LABELLER OUT

OUT/SCRIPT-gradients.pt holds the gradients of a script's first step, with batch normalisation in evaluation mode (as
torch synchronises it on GPUs only) and with what the ranks draw for themselves fixed; OUT/SCRIPT is a whole run;
OUT/SCRIPT-interrupted one that was stopped and resumed; OUT/rounds two rounds of self-training.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import SMALL, SOURCE  # noqa: E402
from soak import FADA, INTRA  # noqa: E402

import train_dacs  # noqa: E402
import train_sac  # noqa: E402
from adaptation.mixing import pseudo_label_weight  # noqa: E402
from adaptation.views import Views  # noqa: E402
from training.checkpoint import save_checkpoint  # noqa: E402
from training.gradients import norm_of  # noqa: E402
from utils import distributed  # noqa: E402
from utils.interruption import Interruption, Stop  # noqa: E402

torch.set_num_threads(1)


def commands(game: str, city: str, labeller: str) -> dict[str, list[str]]:
    """Each script's flags, less --run-dir, after a dash for another method; pictures of 5 batches, of which ranks get
    unequal numbers of labelled pixels."""
    common = [*SMALL, "--batch-size", 4, "--cityscapes", city, "--eval-every", 1]
    both = [*common, *SOURCE, "--gta5", game]
    found = {
        "train_cityscapes": [*common, "--loss", "weighted"],
        "train_gta5": [*both, "--source-holdout", 0.3],
        "train_adversarial": [*both, "--size", "64x32", "--level", "multi", "--discriminator", "depthwise"],
        "train_adversarial-FADA": [*both, *FADA],
        "train_adversarial-IntraDA": [*common, *INTRA, labeller],
        "train_fda": [*both, "--beta", 0.05, "--entropy-from", 0],
        "train_pseudo_labels": [*both, "--labeller", labeller, "--percentile", 0, "--confidence", 0,
                                "--max-class-share", 1],
        "train_pseudo_labels-losses": [*both, "--labeller", labeller, "--mrkld", 0.1, "--lambda-entropy", 0.4,
                                       "--target-loss", "sce", "--max-class-share", 1],
        "train_dacs": [*both, "--lambda-mask", 1, "--confidence", 0.1],
        "train_sac": [*both, "--views", 2, "--confidence", 0.05],
    }
    return {name: [str(flag) for flag in flags] for name, flags in found.items()}


INTERRUPTED = ("train_adversarial", "train_adversarial-FADA", "train_adversarial-IntraDA", "train_dacs", "train_sac")
OPTIMIZERS = {"train_adversarial": 3, "train_adversarial-FADA": 2, "train_adversarial-IntraDA": 2}
"""Of a command, where there is more than the segmenter's."""


def fixed_views(pictures: int, of_each: int, device: torch.device) -> Views:
    """Of each picture all of it, mirrored, and its upper left part."""
    scale = torch.tensor([[-1.0, 1.0], [0.6, 0.6]]).repeat(pictures, 1)
    shift = torch.tensor([[0.0, 0.0], [-0.4, -0.4]]).repeat(pictures, 1)
    return Views(scale, shift, of_each)


class FirstStepDone(Exception):
    """Ends a script once its gradients are known."""


def first_step(name: str, flags: list[str], out: Path) -> None:
    """Saves the averaged gradients of every optimizer of the first step."""
    kept: list[list[torch.Tensor]] = []

    def noted(gradients: list[torch.Tensor]) -> torch.Tensor:
        kept.append([gradient.clone() for gradient in gradients])
        if len(kept) == OPTIMIZERS.get(name, 1):
            raise FirstStepDone
        return norm_of(gradients)

    def weight(confidence: torch.Tensor, threshold: float) -> torch.Tensor:
        sure = pseudo_label_weight(confidence, threshold)
        assert 0 < sure < 1, "the threshold lies between no pixel and all"
        return sure

    with (
        patch.object(_BatchNorm, "train", lambda self, mode=True: nn.Module.train(self, False)),
        patch("training.gradients.norm_of", noted),
        patch.object(train_dacs, "class_mask", lambda labels: (labels % 2 == 0) & (labels != 255)),
        patch.object(train_dacs, "StrongAugmentation", lambda: lambda images: images),
        patch.object(train_dacs, "masked", lambda images: images * (torch.arange(images.shape[-1]) % 8 < 4)),
        patch.object(train_dacs, "pseudo_label_weight", weight),
        patch.object(train_sac, "draw_views", fixed_views),
        patch.object(train_sac, "StrongAugmentation", lambda: lambda images: images),
        contextlib.suppress(FirstStepDone),
    ):
        call(name, [*flags, "--epochs", "1", "--run-dir", str(out / f"{name}-first")])
    torch.save(kept, out / f"{name}-gradients-{distributed.rank()}.pt")


def rounds(flags: list[str], run_dir: Path) -> None:
    """Two rounds, where rank 0 takes its time to write what labels for the second."""

    def late(*arguments: Any) -> None:
        time.sleep(0.5)
        save_checkpoint(*arguments)

    more = ["--rounds", "2", "--continue", "--adapt-bn", "--epochs", "2", "--run-dir", str(run_dir)]
    with patch("training.archive.save_checkpoint", late):
        call("train_pseudo_labels", [*flags, *more])


def call(name: str, flags: list[str]) -> None:
    sys.argv = [f"{name.partition('-')[0]}.py", *flags]
    importlib.import_module(name.partition("-")[0]).main()


def main() -> None:
    game, city, labeller, home = sys.argv[1:]
    out = Path(home)
    out.mkdir(exist_ok=True)
    todo = commands(game, city, labeller)
    for name, flags in todo.items():
        first_step(name, flags, out)
    for name, flags in todo.items():
        call(name, [*flags, "--epochs", "2", "--run-dir", str(out / name)])
    rounds(todo["train_pseudo_labels"], out / "rounds")

    # Only the last rank is told to stop, once within an epoch and once at its end; all have to.
    last = distributed.rank() == distributed.ranks() - 1
    for name in INTERRUPTED:
        told = (Stop("stopped by a test", 99) if last and pause in (2, 5) else None for pause in itertools.count())
        with patch.object(Interruption, "stop", lambda self, told=told: next(told)):
            for _ in range(3):
                try:
                    call(
                        name, [*todo[name], "--epochs", "2", "--resume", "--run-dir", str(out / f"{name}-interrupted")]
                    )
                except SystemExit as ended:
                    # In one write: the ranks share the launcher's stream.
                    os.write(2, f"{name} stopped {distributed.rank()} with {ended.code}\n".encode())
    distributed.end()


if __name__ == "__main__":
    main()
