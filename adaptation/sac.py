"""SAC: which pixels of a view get which label, and how much each counts (Araslanov and Roth, CVPR 2021, section 3).

A class is common or rare by the moving average of its probability, chi_c. A rare class's threshold is low, so that its
labels are kept though they are unsure; and in the loss its pixels count more. The constants are those of the public
code for ResNet-101.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.labels import IGNORE
from utils.distributed import mean_over_ranks

from .losses import pixelwise
from .pseudo_labels import confidences

KEPT = 0.99
"""Of chi at each step."""
SHARE, RARE = 0.75, 1e-3
"""zeta, of a picture's highest probability of the class, and beta, the chi at which a class's threshold is 0.63 of
that."""
LEAST = 0.2
"""Threshold of any class at least (0.1 for VGG-16)."""
FOCUS = 3
"""lambda, the exponent of 1 - chi."""


class ClassPrior(nn.Module):
    """chi. A module, so that checkpoints keep it."""

    def __init__(self, num_classes: int, kept: float = KEPT) -> None:
        super().__init__()
        self.kept = kept
        self.register_buffer("chi", torch.full((num_classes,), -1.0))  # below 0: not known yet

    @torch.no_grad()
    def follow(self, probabilities: Tensor) -> Tensor:
        """chi_c <- kept * chi_c + (1 - kept) * mean p_c over all pixels [B, C, H, W], of all processes; at first the
        mean itself. Returns chi, [C]."""
        mean = mean_over_ranks(probabilities.mean(dim=(0, 2, 3)))
        self.chi.copy_(torch.where(self.chi < 0, mean, torch.lerp(mean, self.chi, self.kept)))
        return self.chi


def thresholds(prediction: Tensor, confidence: Tensor, chi: Tensor, least: float = LEAST) -> Tensor:
    """max(least, zeta * (1 - exp(-chi_c / beta)) * m_c), [B, C]. m_c is the highest probability of class c in the
    picture, among the pixels where it is the most probable class; 0 where there are none.

    prediction, confidence: of every pixel the most probable class, int64 [B, H, W], and its probability.
    """
    highest = [torch.where(prediction == number, confidence, 0).amax(dim=(1, 2)) for number in range(len(chi))]
    return (-SHARE * torch.expm1(-chi / RARE) * torch.stack(highest, dim=1)).clamp(min=least)


def labels_by_threshold(probabilities: Tensor, chi: Tensor, least: float = LEAST) -> tuple[Tensor, Tensor]:
    """Probabilities [B, C, H, W] -> (uint8 [B, H, W], the most probable class where its probability exceeds its
    threshold, else 255; the highest probabilities [B, H, W])."""
    prediction, confidence = confidences(probabilities)
    needed = thresholds(prediction, confidence, chi, least).gather(1, prediction.flatten(1)).view_as(confidence)
    return torch.where(confidence > needed, prediction, IGNORE).to(torch.uint8), confidence


def confident_focal_loss(logits: Tensor, labels: Tensor, confidence: Tensor, chi: Tensor) -> Tensor:
    """Mean over all pixels, 0 for those without a label, of (1 - chi_y)^lambda * confidence * cross-entropy.

    logits [B, C, H, W]; labels uint8 [B, H, W], 255 for none; the teacher's confidence [B, H, W]; chi [C].
    """
    focus = F.pad((1 - chi) ** FOCUS, (0, IGNORE + 1 - len(chi)))
    return (pixelwise(logits, labels) * focus[labels.long()] * confidence).mean()
