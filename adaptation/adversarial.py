"""The losses of adversarial adaptation: what discriminator and segmenter say to each other.

AdaptSegNet (Tsai et al., CVPR 2018), ADVENT (Vu et al., CVPR 2019). FADA's are in `class_level`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .entropy import weighted_self_information
from .losses import full_precision

SOURCE, TARGET = 0.0, 1.0
"""The domain labels, as AdaptSegNet has them."""


def softmax(logits: Tensor) -> Tensor:
    """AdaptSegNet's discriminator input: logits [B, C, H, W] -> probabilities of the same shape."""
    return logits.float().softmax(dim=1)


@dataclass(frozen=True)
class Input:
    """What a discriminator sees of logits [B, C, H, W]; `title` names the method in reports."""

    function: Callable[[Tensor], Tensor]
    title: str
    help: str


INPUTS = {
    "softmax": Input(softmax, "adversarial", "the probabilities, as in AdaptSegNet"),
    "entropy": Input(weighted_self_information, "AdvEnt", "their weighted self-information, as in AdvEnt"),
}


def vanilla(scores: Tensor, domain: float) -> Tensor:
    """Binary cross-entropy of the score map against one domain label, on logits; the mean over all scores."""
    scores = full_precision(scores)
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def least_squares(scores: Tensor, domain: float) -> Tensor:
    """LSGAN (Mao et al., ICCV 2017): the mean of (score - domain)^2, on the scores themselves."""
    scores = full_precision(scores)
    return F.mse_loss(scores, torch.full_like(scores, domain))


@dataclass(frozen=True)
class Gan:
    """A loss of score maps against a domain label (and, by class, against soft labels), and how far the scores lie on
    the target's side of what is between the two domains."""

    loss: Callable[..., Tensor]
    margin: Callable[[Tensor], Tensor]
    help: str
    by_class: bool = False

    def accuracy(self, scores: Tensor, domain: float) -> Tensor:
        """Share of the score map that names the right domain. 0.5: the discriminator cannot tell them apart."""
        return ((self.margin(scores) > 0) == (domain == TARGET)).float().mean()


GANS = {
    "vanilla": Gan(vanilla, lambda scores: scores, "binary cross-entropy"),
    "least-squares": Gan(least_squares, lambda scores: scores - 0.5, "squared distance to the domain label (LSGAN)"),
}


class View(NamedTuple):
    """What a discriminator sees of one domain: maps [B, C, h, w], and where its scores are by class the soft labels
    [B, K, h, w] of these places."""

    maps: Tensor
    soft: Tensor | None = None

    def detached(self) -> View:
        """Without a way back to the segmenter; soft labels have none."""
        return View(self.maps.detach(), self.soft)

    def loss(self, gan: Gan, scores: Tensor, domain: float) -> Tensor:
        """Of the scores that a discriminator gave to this view, against a domain label."""
        return gan.loss(scores, domain) if self.soft is None else gan.loss(scores, domain, self.soft)
