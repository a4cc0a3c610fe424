"""Masked image consistency (MIC: Hoyer et al., CVPR 2023): square blocks of target pictures are hidden from the
student, who has to say there, from the context, what the teacher says of the whole picture."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from datasets.geometry import PADDING

RATIO = 0.7
"""Probability of each block to be hidden (MIC, section 4.1)."""

BLOCK = 64, 2048 * 1024
"""Side of a block, and pixels of the pictures for which it is meant: Cityscapes at full size (MIC, section 4.1; its
public code takes 32 at half size)."""


def block_side(height: int, width: int) -> int:
    """64 at 2048x1024, 32 at 1024x512; at other sizes a block is the same share of the picture."""
    side, pixels = BLOCK
    return max(1, round(side * math.sqrt(height * width / pixels)))


def block_mask(batch: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """bool [B, H, W], true where a picture is hidden: blocks from the upper left corner on, each drawn on its own (MIC,
    equation 4). Draws from torch's generator on the CPU; waits for no device."""
    side = block_side(height, width)
    blocks = torch.rand(batch, math.ceil(height / side), math.ceil(width / side)) < RATIO
    whole = blocks.to(device, non_blocking=True).repeat_interleave(side, 1).repeat_interleave(side, 2)
    return whole[:, :height, :width]


def masked(images: Tensor) -> Tensor:
    """Pictures float [B, 3, H, W] in [0, 1] -> the same with blocks in ImageNet's mean colour, near 0 to a network."""
    hidden = block_mask(len(images), *images.shape[-2:], images.device)[:, None]
    return torch.where(hidden, _colour(images.device, images.dtype), images)


@lru_cache(maxsize=4)
def _colour(device: torch.device, dtype: torch.dtype) -> Tensor:
    """`PADDING`, [1, 3, 1, 1] from 0 to 1; made once on each device."""
    return torch.tensor(PADDING, device=device, dtype=dtype).view(1, 3, 1, 1) / 255
