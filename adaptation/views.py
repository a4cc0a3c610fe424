"""Views of a picture, and what a network says of them, brought together: SAC's augmentation consistency (Araslanov and
Roth, CVPR 2021, section 3).

A view is a crop of the picture's own shape, enlarged to its size, and perhaps mirrored. In the frame of a picture, and
of a view, the sides stand at -1 and 1. The view's point (x, y) is the picture's at scale * (x, y) + shift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 0.5
"""Side of a view at least, as a share of the picture's (SAC's public code; at most all of it)."""
MIRRORED = 0.5
"""Probability of a view to be mirrored (the same)."""


class Views(NamedTuple):
    """`of_each` views of each of N pictures, picture by picture."""

    scale: Tensor
    """float32 [N * of_each, 2], across and down; across it is negative where the view is mirrored."""
    shift: Tensor
    """float32 [N * of_each, 2]."""
    of_each: int


def draw_views(pictures: int, of_each: int, device: torch.device | str = "cpu") -> Views:
    """The first view of each picture is all of it, the others are random crops. Draws from torch's generator on the
    CPU; waits for no device."""
    side = SMALLEST + (1 - SMALLEST) * torch.rand(pictures, of_each, 1)
    side[:, 0] = 1
    place = 2 * torch.rand(pictures, of_each, 2) - 1
    across = torch.where(torch.rand(pictures, of_each, 1) < MIRRORED, -1.0, 1.0)
    drawn = torch.cat((across * side, side, (1 - side) * place), dim=-1).flatten(0, 1)
    scale, shift = drawn.to(device, non_blocking=True).split(2, dim=-1)
    return Views(scale, shift, of_each)


def warp(pictures: Tensor, views: Views) -> Tensor:
    """Pictures or maps float [N, C, H, W] -> their views [N * of_each, C, H, W], bilinear."""
    repeated = pictures[:, None].expand(-1, views.of_each, -1, -1, -1).flatten(0, 1)
    return _sampled(repeated, views.scale, views.shift, "border")


def unwarp(maps: Tensor, views: Views) -> Tensor:
    """Maps of views float [N * of_each, C, H, W] -> the same shape, each in its picture's frame, 0 where the view does
    not reach."""
    return _sampled(maps, 1 / views.scale, -views.shift / views.scale, "zeros")


def averaged(probabilities: Tensor, views: Views) -> Tensor:
    """A network's probabilities for views [N * of_each, C, H, W] -> their mean over the views that show a place, as
    each view sees it, of the same shape. Probabilities of a place sum to the views' coverage, by which they are
    divided."""
    total = unwarp(probabilities, views).unflatten(0, (-1, views.of_each)).sum(dim=1)
    coverage = total.sum(dim=1, keepdim=True)  # at least 1: the first view is the whole picture
    return warp(total / coverage, views)


def _sampled(maps: Tensor, scale: Tensor, shift: Tensor, outside: str) -> Tensor:
    """Each map [C, H, W] at scale * (x, y) + shift for every point (x, y)."""
    height, width = maps.shape[-2:]
    across, down = (
        scale[:, side, None] * _centres(length, maps.device) + shift[:, side, None]
        for side, length in enumerate((width, height))
    )
    points = torch.stack(
        (across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)), dim=-1
    )  # not affine_grid, whose product autocast would take in half precision
    return F.grid_sample(maps, points, mode="bilinear", padding_mode=outside, align_corners=False)


def _centres(length: int, device: torch.device) -> Tensor:
    """Where the pixels of a side lie, from -1 to 1."""
    return (2 * torch.arange(length, device=device) + 1) / length - 1
