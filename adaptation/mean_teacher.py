"""A mean teacher (Tarvainen and Valpola, NeurIPS 2017): the moving average of a student."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .pseudo_labels import class_probabilities, confidences

DECAY = 0.99
"""Of the average, once it has run long enough (DACS): it then stands for the last 100 steps, about 1 / (1 - decay)."""


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy without gradients."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, step: int, decay: float = DECAY, warm_up: bool = True) -> None:
    """teacher <- d * teacher + (1 - d) * student with d = min(1 - 1 / (step + 1), decay), `step` from 0.

    So at first it is the plain mean of all students, as in DACS, and forgets the network that it was before the first.
    warm_up=False: d is `decay` from the first step on, as in SAC, whose teacher starts as an adapted network.

    Parameters only. Batch normalisation's running statistics are the teacher's own: it is in training mode when it
    labels the target, so they become the target's, which is where it is evaluated.
    """
    kept = min(1 - 1 / (step + 1), decay) if warm_up else decay
    means, parameters = list(teacher.parameters()), list(student.parameters())
    torch._foreach_mul_(means, kept)
    torch._foreach_add_(means, parameters, alpha=1 - kept)


def decay_over(steps: float) -> float:
    """The decay of an average that stands for about the last `steps` steps, a whole number of them and at least one.
    In a share of the run: 1,000 of 40,000 steps in DAFormer (Hoyer et al., CVPR 2022), 2.5 %."""
    return 1 - 1 / max(1, round(steps))


def main_output(network: nn.Module, images: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] -> the main logits [B, C, H, W] of a network in training: its batch normalisation
    trains, its auxiliary heads are left out."""
    network.training = False  # the network's own flag alone
    logits = network(images)
    network.training = True
    return logits


@torch.no_grad()
def label(network: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] in [0, 1] -> (the network's classes uint8 [B, H, W], their probabilities [B, H, W])."""
    prediction, confidence = confidences(class_probabilities(network(images)))
    return prediction.to(torch.uint8), confidence


def teach(teacher: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """`label` with the statistics of this batch, which the teacher's running statistics follow."""
    teacher.train()
    return label(partial(main_output, teacher), images)


@torch.no_grad()
def taught_probabilities(teacher: nn.Module, images: Tensor) -> Tensor:
    """As `teach`, but the probabilities of all classes, float32 [B, C, H, W]."""
    teacher.train()
    return class_probabilities(main_output(teacher, images))
