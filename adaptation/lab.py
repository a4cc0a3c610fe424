"""LAB translation (He et al., CVPR 2021, section 3.1): match mean and deviation per channel in CIELAB.

sRGB (IEC 61966-2-1) -> linear RGB -> XYZ -> CIELAB under D65 (2 degree observer), and back.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
D65 = (0.95047, 1.0, 1.08883)
DELTA = 6 / 29


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB in [0, 1], [B, 3, H, W] -> L* in [0, 100], a*, b*, of the same shape."""
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055).clamp(min=0) ** 2.4, images / 12.92)
    xyz = _mix(linear, torch.tensor(XYZ_FROM_RGB, dtype=torch.float64)) / _column(D65, images.dtype, images.device)
    f = torch.where(xyz > DELTA**3, xyz.clamp(min=DELTA**3) ** (1 / 3), xyz / (3 * DELTA**2) + 4 / 29)
    x, y, z = f.unbind(dim=1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours that sRGB cannot show are clipped to [0, 1]."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16) / 116
    f = torch.stack((y + a / 500, y, y - b / 200), dim=1)
    xyz = torch.where(f > DELTA, f**3, 3 * DELTA**2 * (f - 4 / 29)) * _column(D65, lab.dtype, lab.device)
    linear = _mix(xyz, torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64)))
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, linear * 12.92)
    return rgb.clamp(0, 1)


@torch.no_grad()
def match_lab(source: Tensor, target: Tensor) -> Tensor:
    """Source pictures with the target pictures' colour statistics, pair by pair: (x - mean_s) / std_s * std_t + mean_t.

    source, target: float [B, 3, H, W] in [0, 1], of any two sizes. Returns float32 of the source's shape, clipped to
    [0, 1]. A channel without deviation only has its mean moved. Raises ValueError for batches of different length.
    """
    if source.shape[:2] != target.shape[:2]:
        raise ValueError(f"source {tuple(source.shape)} and target {tuple(target.shape)} differ in batch or channels")
    with torch.autocast(source.device.type, enabled=False):
        lab, goal = rgb_to_lab(source.float()), rgb_to_lab(target.float())
        (std_s, mean_s), (std_t, mean_t) = (
            torch.std_mean(x, dim=(-2, -1), correction=0, keepdim=True) for x in (lab, goal)
        )
        scale = torch.where(std_s > 1e-4, std_t / std_s.clamp(min=1e-4), torch.ones_like(std_s))
        return lab_to_rgb((lab - mean_s) * scale + mean_t)


def _mix(images: Tensor, matrix: Tensor) -> Tensor:
    """A 3x3 matrix applied to the channels, by sums and products alone: no TF32, whatever the settings."""
    red, green, blue = images.unbind(dim=1)
    return torch.stack([row[0] * red + row[1] * green + row[2] * blue for row in matrix.tolist()], dim=1)


@lru_cache(maxsize=4)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 3, 1, 1]; made once on each device."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, 3, 1, 1)
