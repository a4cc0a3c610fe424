"""Regularisers of training on pseudo-labels: one by which a network doubts its labels, one by which it decides where it
has none. Both are means over their own pixels of the whole batch, and 0 where there are none.

CRST (Zou et al., ICCV 2019), IAST (Mei et al., ECCV 2020).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from datasets.labels import IGNORE
from utils.distributed import mean_over_batch

from .entropy import prediction_entropy
from .losses import PixelLoss, full_precision, labelled_pixels, pixels


def uniform_divergence(logits: Tensor, labels: Tensor) -> Tensor:
    """CRST's MRKLD, which IAST has too: the mean over labelled pixels of -(1/C) sum_c log p_c, the divergence of the
    prediction from the uniform distribution plus log C. Logits [B, C, H, W], labels [B, H, W].

    Cross-entropy + a times this is (1 + a) times the cross-entropy with labels smoothed by a / (1 + a)."""
    each = -F.log_softmax(full_precision(logits), dim=1).mean(dim=1)
    return (each * (labels != IGNORE)).sum() / labelled_pixels(labels)


def ignored_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """IAST's: the mean entropy, from 0 to 1, over the pixels without a label. The border of a picture that was scaled
    down is among them."""
    ignored = mean_over_batch(lambda part: pixels(part == IGNORE), labels).clamp(min=1e-3)
    return (prediction_entropy(logits) * (labels == IGNORE)).sum() / ignored


def regularised(logits: Tensor, labels: Tensor, pixel_loss: PixelLoss, mrkld: float, entropy: float) -> Tensor:
    """The pixel loss plus `mrkld` times `uniform_divergence` plus `entropy` times `ignored_entropy`; a pixel loss."""
    loss = pixel_loss(logits, labels)
    if mrkld > 0:
        loss = loss + mrkld * uniform_divergence(logits, labels)
    if entropy > 0:
        loss = loss + entropy * ignored_entropy(logits, labels)
    return loss
