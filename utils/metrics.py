"""One confusion matrix, and every figure that is read off it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
        if label.numel() == 0:
            return
        wrong = f"labels and predictions must be 0 to {self.num_classes - 1} (or label {IGNORE})"
        extremes = torch.stack([*prediction.aminmax(), *label.to(prediction.device).aminmax()]).tolist()
        if min(extremes) < 0 or extremes[1] >= self.num_classes or extremes[3] > IGNORE:
            raise ValueError(wrong)
        # One number for each pair: the prediction above the label's byte, in the narrowest type that holds it.
        pairs = prediction.flatten().to(torch.int16 if self.num_classes <= 128 else torch.int32) * 256
        counts = self._count(pairs.add_(label.flatten())).view(self.num_classes, 256)
        if bool(counts[:, self.num_classes : IGNORE].any()):
            raise ValueError(wrong)
        self.matrix = self.matrix.to(counts.device) + counts[:, : self.num_classes].T

    def _count(self, pairs: Tensor) -> Tensor:
        """int64 [num_classes * 256]: how often each pair occurs. torch's bincount takes one core; here each counts a
        part."""
        bins = self.num_classes * 256
        if pairs.device.type != "cpu" or torch.get_num_threads() == 1:
            return torch.bincount(pairs, minlength=bins)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = pool.map(lambda part: torch.bincount(part, minlength=bins), pairs.chunk(torch.get_num_threads()))
            return sum(parts)

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
