"""ClassMix (Olsson et al., WACV 2021) as DACS has it (Tranheden et al., WACV 2021): half of a source picture's classes
pasted onto a target picture, labels and weights likewise; and the strong augmentation of what comes out. DACS's
public code counts what has no label as one more class to draw; here it is none."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.appearance import ColourJitter, GaussianBlur
from datasets.labels import IGNORE
from utils.distributed import mean_over_batch, mean_over_ranks

SURE = 0.968
"""A pixel whose pseudo-label has more than this probability counts as sure (DACS)."""


def class_mask(labels: Tensor) -> Tensor:
    """uint8 [B, H, W] train ids -> bool [B, H, W]: the pixels of a random half, rounded up, of each picture's classes.

    `IGNORE` is no class and is never taken. Draws from torch's generator on the CPU; waits for no device.
    """
    flat = labels.flatten(1).long()
    present = torch.zeros(len(flat), IGNORE + 1, device=labels.device).scatter_(1, flat, 1.0)
    present[:, IGNORE] = 0
    drawn = torch.rand(present.shape).to(labels.device, non_blocking=True)
    order = (drawn + 1) * present  # those that are not present come last
    place = order.argsort(dim=1, descending=True).argsort(dim=1)
    chosen = place < (present.sum(dim=1, keepdim=True) + 1) // 2
    return chosen.gather(1, flat).view_as(labels)


def mix(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """`source` where the mask [B, H, W] is set, `target` elsewhere; pictures [B, 3, H, W], or labels or weights
    [B, H, W]."""
    return torch.where(mask[:, None] if source.ndim == 4 else mask, source, target)


def pseudo_label_weight(confidence: Tensor, threshold: float = SURE) -> Tensor:
    """Share of the batch's target pixels that are sure, with --accumulate of a part's: the weight of every one of them
    (DACS; the batch's share, as in its public code)."""
    return mean_over_ranks((confidence > threshold).float().mean())


def labelled_share(labels: Tensor) -> Tensor:
    """The same weight where the labels are given and each is sure: the share of the batch's pixels that have one."""
    return mean_over_batch(lambda part: (part != IGNORE).float().mean(), labels)


class StrongAugmentation:
    """Colour jitter (brightness, contrast, saturation, hue 0.25, with probability 0.8) and Gaussian blur (sigma 0.15 to
    1.15, with probability 0.5), each picture by draws of its own; DACS's public code."""

    def __init__(self) -> None:
        self.jitter, self.blur = ColourJitter(0.25, 0.25, 0.25, 0.25), GaussianBlur(9, (0.15, 1.15))

    def __call__(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W], clipped to [0, 1] -> the same shape in [0, 1]; `images` stay as they are."""
        drawn = [
            (self.jitter.draw() if torch.rand(1) < 0.8 else None, self.blur.draw() if torch.rand(1) < 0.5 else None)
            for _ in images
        ]
        pictures = images.contiguous().clamp(0, 1)
        pictures = self.jitter(pictures, [jitter for jitter, _ in drawn])
        return self.blur(pictures, [sigma for _, sigma in drawn])
