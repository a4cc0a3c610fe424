"""The pieces that every network here begins or ends with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalise(nn.Module):
    """Pictures in [0, 1] -> ImageNet-normalised; the first step of every network, so that methods see pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> the same shape."""
        return (images - self.mean) / self.deviation


def resize(features: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """[B, C, h, w] -> [B, C, *size], bilinear, corners not aligned (torch's default)."""
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


def enlarge(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """`resize` of what leaves the network, in float32 where gradients are taken, under autocast too: the gradient of a
    pixel of [h, w] is a sum over all pixels it was spread to, which a GPU takes in the tensor's own type."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    return resize(logits.float() if half and torch.is_grad_enabled() else logits, size)
