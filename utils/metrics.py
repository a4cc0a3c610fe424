"""One confusion matrix, and every figure that is read off it."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.labels import IGNORE


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
        valid = label != IGNORE
        label, prediction = label[valid].long(), prediction[valid].long()
        pairs = label * self.num_classes + prediction
        # One bincount settles both: whatever is out of range lands outside the square or is a negative pair.
        wrong = (label < 0) | (label >= self.num_classes) | (prediction < 0) | (prediction >= self.num_classes)
        if bool(wrong.any()):
            raise ValueError(f"labels and predictions must be 0 to {self.num_classes - 1} (or label {IGNORE})")
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        self.matrix = self.matrix.to(counts.device) + counts.view(self.num_classes, self.num_classes)

    def present(self) -> Tensor:
        """bool [C]: classes with at least one ground-truth pixel; only these are evaluated."""
        return self.matrix.sum(dim=1) > 0

    def iou(self) -> Tensor:
        """float64 [C]: intersection over union per class, NaN for a class that the ground truth lacks."""
        hits = self.matrix.diagonal().double()
        union = (self.matrix.sum(dim=0) + self.matrix.sum(dim=1)).double() - hits
        return torch.where(self.present(), hits / union, torch.nan)

    def miou(self) -> float:
        """Mean IoU over the classes present in the ground truth, in [0, 1]; NaN without a single valid pixel."""
        return float(self.iou()[self.present()].mean())

    def accuracy(self) -> float:
        """Share of the valid pixels that are predicted right; NaN without a single one."""
        return float(self.matrix.diagonal().sum().double() / self.matrix.sum())

    def mean_class_accuracy(self) -> float:
        """Mean over the present classes of the share of their pixels that are predicted right."""
        recall = self.matrix.diagonal().double() / self.matrix.sum(dim=1)
        return float(recall[self.present()].mean())
