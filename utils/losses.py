"""Losses of the segmentation networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.labels import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that have a label; 0, with a zero gradient, when none has.

    logits [B, C, H, W], labels uint8 or int64 [B, H, W] with 255 = ignore -> scalar.
    """
    labels = labels.long()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / torch.count_nonzero(labels != IGNORE).clamp(min=1)


def segmentation_loss(
    outputs: tuple[Tensor, tuple[Tensor, ...]], labels: Tensor, auxiliary_weight: float = 1.0
) -> Tensor:
    """Cross-entropy on the main logits plus `auxiliary_weight` times that on each auxiliary output.

    BiSeNet, equation 1: L = l_p + alpha * sum_i l_i, with alpha = 1. `outputs` is what a segmenter gives in training.
    """
    logits, auxiliary = outputs
    loss = cross_entropy(logits, labels)
    for extra in auxiliary:
        loss = loss + auxiliary_weight * cross_entropy(extra, labels)
    return loss
