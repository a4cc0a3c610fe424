"""Pseudo-labels: a network's own sure predictions as labels of the target. `RULES`, at the end, is what `--rule`
chooses from.

BDL (Li et al., CVPR 2019) keeps a pixel when its probability is at least the smaller of 0.9 and the median probability
of its class over the target set. FDA's rounds (Yang and Soatto, CVPR 2020) take the 66th percentile for the median.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from datasets.labels import IGNORE

BINS = 10_000
"""Of the histogram of confidences over [0, 1]: a percentile is known to 1e-4."""


def class_probabilities(logits: Tensor) -> Tensor:
    """Logits [B, C, H, W] -> probabilities float32 of the same shape, channels-last in memory."""
    return logits.permute(0, 2, 3, 1).float().softmax(dim=-1).permute(0, 3, 1, 2)


def confidences(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [B, C, H, W] -> (the most probable classes int64 [B, H, W], their probabilities [B, H, W])."""
    confidence, prediction = probabilities.permute(0, 2, 3, 1).max(dim=-1)
    return prediction, confidence


class ConfidenceHistogram:
    """How sure a network is of each class over a whole set; its size does not depend on the set's."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, BINS, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, confidence: Tensor) -> None:
        """Classes int64 and their probabilities in [0, 1], of one shape."""
        bins = (confidence.double() * BINS).long().clamp(0, BINS - 1)
        cells = (prediction * BINS + bins).flatten()
        self.counts += torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)

    def thresholds(self, percentile: float, at_most: float) -> Tensor:
        """float32 [C]: the smaller of `at_most` and the class's percentile (0 to 100), as the published code has it:
        element round(n * percentile / 100) of the n sorted confidences, to 1 / `BINS`. `at_most` for a class that is
        never predicted."""
        totals = self.counts.sum(dim=1)
        rank = (totals.double() * percentile / 100).round().long().minimum(totals - 1)
        bins = (self.counts.cumsum(dim=1) <= rank[:, None]).sum(dim=1)  # the first bin that reaches past the rank
        found = torch.where(totals > 0, bins.double() / BINS, at_most)
        return found.clamp(max=at_most).float()


def pseudo_label(prediction: Tensor, confidence: Tensor, thresholds: Tensor) -> Tensor:
    """Classes and probabilities [B, H, W], thresholds [C] -> uint8 [B, H, W]: the class where its probability is at
    least its threshold, else 255."""
    kept = confidence >= thresholds[prediction]
    return torch.where(kept, prediction, IGNORE).to(torch.uint8)


class Rule(Protocol):
    """Which pixels of the target get which label. First it sees the whole set (`observe`), then it labels the set
    (`label`), both times batch by batch in the order of the set; probabilities are float32 [B, C, H, W] in [0, 1].

    `settings` says what the constructor takes beside the number of classes and the device: its name there -> the flag
    that gives it. `title` names the method in reports, `help` stands in the flag's help.
    """

    title: ClassVar[str]
    help: ClassVar[str]
    settings: ClassVar[dict[str, str]]

    def observe(self, probabilities: Tensor) -> None:
        """Takes note of one batch of the set."""

    def label(self, probabilities: Tensor) -> Tensor:
        """-> uint8 [B, H, W]: classes, 255 for a pixel that is left out."""

    @property
    def thresholds(self) -> Tensor:
        """float32 [C], for the summary: the probability from which a pixel of each class was labelled."""


class BDL:
    """BDL's rule: a threshold for each class, the smaller of `at_most` and a percentile of the class's probabilities
    over the set."""

    title = "pseudo-labels"
    help = "a threshold for each class, the smaller of --confidence and a percentile of its probabilities, as in BDL"
    settings: ClassVar = {"percentile": "percentile", "at_most": "confidence"}

    def __init__(self, num_classes: int, device: torch.device | str, percentile: float, at_most: float) -> None:
        self.histogram = ConfidenceHistogram(num_classes, device)
        self.percentile, self.at_most = percentile, at_most

    def observe(self, probabilities: Tensor) -> None:
        self.histogram.update(*confidences(probabilities))

    def label(self, probabilities: Tensor) -> Tensor:
        return pseudo_label(*confidences(probabilities), self.thresholds)

    @cached_property
    def thresholds(self) -> Tensor:
        return self.histogram.thresholds(self.percentile, self.at_most)


RULES: dict[str, type[Rule]] = {"bdl": BDL}
