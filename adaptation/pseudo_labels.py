"""Pseudo-labels: a network's own sure predictions as labels of the target. `RULES`, at the end, is what `--rule`
chooses from.

BDL (Li et al., CVPR 2019) keeps a pixel when its probability is at least the smaller of 0.9 and the median probability
of its class over the target set. FDA's rounds (Yang and Soatto, CVPR 2020) take the 66th percentile for the median.

CBST (Zou et al., ECCV 2018) keeps the same share of every class, its surest pixels: of easy classes and of hard ones.
IAST (Mei et al., ECCV 2020) lets each class's threshold follow the pictures. A class that is seldom sure keeps less.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from datasets.labels import IGNORE

FINE = 1e-4
"""A confidence below 0.99 is known to this. Above it what is left to 1 is known to half a percent: a network that is
sure of most of a class gives most of its pixels more than 0.9999, and a share of them has to be told apart."""


def edges() -> Tensor:
    """float64 [B]: the lower edge of each bin of the histogram of confidences over [0, 1]. The last is of 1 alone, as
    float32 rounds it."""
    left = 0.01 * torch.exp(-0.005 * torch.arange(2406, dtype=torch.float64))
    return torch.cat([torch.arange(9900, dtype=torch.float64) * FINE, 1 - left, torch.ones(1, dtype=torch.float64)])


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
        self.edges = edges().to(device)
        self.counts = torch.zeros(num_classes, len(self.edges), dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, confidence: Tensor) -> None:
        """Classes int64 and their probabilities in [0, 1], of one shape."""
        bins = torch.bucketize(confidence.double(), self.edges, right=True) - 1
        cells = (prediction * len(self.edges) + bins).flatten()
        self.counts += torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)

    def thresholds(self, percentile: float, at_most: float) -> Tensor:
        """float32 [C]: the smaller of `at_most` and the class's percentile (0 to 100), as the published code has it:
        element round(n * percentile / 100) of the n sorted confidences, down to a bin's edge. `at_most` for a class
        that is never predicted."""
        totals = self.counts.sum(dim=1)
        rank = (totals.double() * percentile / 100).round().long().minimum(totals - 1)
        return self._at(rank, at_most).clamp(max=at_most).float()

    def surest(self, share: float) -> Tensor:
        """float32 [C]: the least of so large a share of the class's confidences, the highest; rounded down to whole
        pixels, down to a bin's edge. 1 for a class of which that is no pixel (CBST's public code)."""
        totals = self.counts.sum(dim=1)
        number = (totals.double() * share + 1e-9).floor().long()  # a share of 0.3 of ten is three
        return self._at(torch.where(number > 0, totals - number, -1), 1.0).float()

    def _at(self, rank: Tensor, otherwise: float) -> Tensor:
        """float64 [C]: the confidence of each class at this rank, from 0 for the least; `otherwise` below 0."""
        bins = (self.counts.cumsum(dim=1) <= rank[:, None]).sum(dim=1)  # the first bin that reaches past the rank
        return torch.where(rank >= 0, self.edges[bins.clamp(max=len(self.edges) - 1)], otherwise)


def pseudo_label(prediction: Tensor, confidence: Tensor, thresholds: Tensor) -> Tensor:
    """Classes and probabilities [B, H, W], thresholds [C] -> uint8 [B, H, W]: the class where its probability is at
    least its threshold, else 255."""
    kept = confidence >= thresholds[prediction]
    return torch.where(kept, prediction, IGNORE).to(torch.uint8)


class Rule(Protocol):
    """Which pixels of the target get which label. First it sees the whole set (`observe`), then it labels the set
    (`label`), both times batch by batch in the order of the set; probabilities are float32 [B, C, H, W] in [0, 1].
    A rule without `observe` learns as it labels: there is one pass, in a random order that is always the same.

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


class CBST:
    """CBST's rule, and CRST's (Zou et al., ICCV 2019). The threshold k_c leaves class c the surest `portion` of the
    set's pixels where it is the most probable class. The label is the class with the largest p_c / k_c, where that is
    at least 1: a class with a low threshold can overrule the most probable one."""

    title = "pseudo-labels by CBST's rule"
    help = "of each class the surest --portion of its pixels, weighed by the class's threshold, as in CBST"
    settings: ClassVar = {"portion": "portion"}

    def __init__(self, num_classes: int, device: torch.device | str, portion: float) -> None:
        self.histogram, self.portion = ConfidenceHistogram(num_classes, device), portion

    def observe(self, probabilities: Tensor) -> None:
        self.histogram.update(*confidences(probabilities))

    def label(self, probabilities: Tensor) -> Tensor:
        classes, ratio = confidences(probabilities / self.thresholds[:, None, None])
        return torch.where(ratio >= 1, classes, IGNORE).to(torch.uint8)

    @cached_property
    def thresholds(self) -> Tensor:
        return self.histogram.surest(self.portion).clamp(min=FINE)


class IAST:
    """IAST's instance-adaptive selector, picture by picture. theta_c starts at 0.9. Of theta_c and the picture's
    probabilities of pixels of class c the quantile 1 - portion * theta_c^8 is taken, and theta_c moves a tenth of the
    way to it. Then the picture's pixels of at least theta_c are labelled.

    The public code takes two pictures at a time for one, in its loader's order, and rounds to float16."""

    title = "pseudo-labels by IAST's rule"
    help = "a threshold for each class that follows the pictures, and --portion of each, as in IAST"
    settings: ClassVar = {"portion": "portion"}
    first, kept, power, highest = 0.9, 0.9, 8, 0.999

    def __init__(self, num_classes: int, device: torch.device | str, portion: float) -> None:
        self.thresholds = torch.full((num_classes,), self.first, dtype=torch.float64, device=device)
        self.portion = portion

    def label(self, probabilities: Tensor) -> Tensor:
        return torch.stack([self._one(*picture) for picture in zip(*confidences(probabilities), strict=True)])

    def _one(self, prediction: Tensor, confidence: Tensor) -> Tensor:
        """Of one picture, [H, W] each."""
        number = torch.arange(len(self.thresholds), device=self.thresholds.device)
        values = torch.cat((confidence.flatten().double(), self.thresholds))
        classes = torch.cat((prediction.flatten(), number))
        order = values.argsort()
        order = order[classes[order].argsort(stable=True)]  # by class, and within it by confidence
        values, counts = values[order], torch.bincount(classes)
        last = counts.cumsum(dim=0) - 1
        place = last - self.portion * self.thresholds**self.power * (counts - 1)
        below = place.floor().long()
        found = torch.lerp(values[below], values[(below + 1).minimum(last)], place - below)
        moved = self.kept * self.thresholds + (1 - self.kept) * found
        self.thresholds = torch.where(moved >= 1, self.highest, moved)
        return pseudo_label(prediction, confidence, self.thresholds)


class Argmax:
    """IntraDA's rule (Pan et al., CVPR 2020), and FADA's in its self-distillation: every pixel is labelled."""

    title = "pseudo-labels of every pixel"
    help = "every pixel its most probable class, however unsure, as in IntraDA"
    settings: ClassVar = {}

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        self.thresholds = torch.zeros(num_classes, device=device)

    def label(self, probabilities: Tensor) -> Tensor:
        return confidences(probabilities)[0].to(torch.uint8)


RULES: dict[str, type[Rule]] = {"bdl": BDL, "cbst": CBST, "iast": IAST, "argmax": Argmax}
