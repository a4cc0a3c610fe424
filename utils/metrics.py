"""One confusion matrix, and every figure that is read off it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

IGNORE = 255
"""A pixel of this label counts nowhere."""

LANES = 4


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, on the device of the first update, in int64: exact for any set.

    `matrix[i, j]` is the number of pixels with label i that were predicted j. Pixels with label 255 count nowhere.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds pixels: both of any integer type and of one shape; predictions in 0 ... num_classes - 1.

        Raises ValueError for differing shapes, and for a label or prediction that is no class.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
        if label.numel() == 0:
            return
        wrong = f"labels and predictions must be 0 to {self.num_classes - 1} (or label {IGNORE})"
        ends = list(prediction.aminmax())
        if label.dtype != torch.uint8:  # whose labels are counted first and looked at then
            ends += label.aminmax()
        if min(ends) < 0 or ends[1] >= self.num_classes or ends[-1] > IGNORE:
            raise ValueError(wrong)
        # A pair is one number, the prediction above the label's byte; neighbours, which are mostly alike, count in
        # different lanes, so that no count waits for the one before it.
        lanes = lanes_of(label.numel(), self.num_classes * 256, prediction.device)
        pairs = prediction.flatten().to(lanes.dtype).mul_(256).add_(label.flatten()).add_(lanes)
        counts = torch.bincount(pairs, minlength=LANES * self.num_classes * 256)
        counts = counts.view(LANES, self.num_classes, 256).sum(dim=0)
        if bool(counts[:, self.num_classes : IGNORE].any()):
            raise ValueError(wrong)
        self.matrix = self.matrix.to(counts.device) + counts[:, : self.num_classes].T

    def present(self) -> Tensor:
        """bool [C]: classes with at least one ground-truth pixel; only these are evaluated."""
        return self.matrix.sum(dim=1) > 0

    def iou(self) -> Tensor:
        """float64 [C]: intersection over union per class, NaN for a class that the ground truth lacks."""
        hits = self.matrix.diagonal().double()
        union = (self.matrix.sum(dim=0) + self.matrix.sum(dim=1)).double() - hits
        return torch.where(self.present(), hits / union, torch.nan)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean IoU over the classes (all of them) present in the ground truth, in [0, 1]; NaN without one."""
        chosen = slice(None) if classes is None else list(classes)
        iou = self.iou()[chosen]
        return float(iou[~iou.isnan()].mean())

    def of_labels(self, labels: Sequence[int]) -> ConfusionMatrix:
        """The pixels with those labels alone. What they were predicted as stays, whatever class that is."""
        rows = torch.zeros(self.num_classes, 1, dtype=torch.int64, device=self.matrix.device)
        rows[list(labels)] = 1
        found = ConfusionMatrix(self.num_classes)
        found.matrix = self.matrix * rows
        return found

    def accuracy(self) -> float:
        """Share of the valid pixels that are predicted right; NaN without a single one."""
        return float(self.matrix.diagonal().sum().double() / self.matrix.sum())

    def mean_class_accuracy(self) -> float:
        """Mean over the present classes of the share of their pixels that are predicted right."""
        recall = self.matrix.diagonal().double() / self.matrix.sum(dim=1)
        return float(recall[self.present()].mean())


@functools.lru_cache(maxsize=2)
def lanes_of(pixels: int, bins: int, device: torch.device) -> Tensor:
    """[pixels]: where each pixel's lane of `bins` begins, in the narrowest type that holds all lanes."""
    kind = torch.int16 if LANES * bins <= torch.iinfo(torch.int16).max else torch.int32
    return (torch.arange(LANES, device=device) * bins).to(kind).repeat(pixels // LANES + 1)[:pixels]
