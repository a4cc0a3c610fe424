"""FDA, Fourier domain adaptation (Yang and Soatto, CVPR 2020): the low frequencies' amplitude is the style.

Per picture and channel: the amplitude of the source's 2-D spectrum within the centred square of half-width
b = floor(min(H, W) * beta) is replaced by the target's; the phase stays the source's (equations 1 to 3). Of the two
published definitions of the square this is the demo code's, -b ... b, which keeps a real picture's spectrum symmetric
(the training code's -b ... b - 1 does not, and is the identity at b = 0).

The swap touches (2b + 1)^2 coefficients of H * W, so only those are computed: the transform of the square is two thin
matrix products, and the result is the source plus the inverse transform of what changed there, two more.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

ROUNDING = 1e-7
"""Coefficients below this share of the largest possible (the sum of the picture's distances from its mean) are
float32's rounding. They have no phase, like an exact zero, whose phase is 0. Those of noise are 1e-3 at 1280x720."""
FLAT = 1e-9
"""The same as a share of the picture's sum: what is left of a picture of one colour once its mean is off."""


def half_width(height: int, width: int, beta: float) -> int:
    """b of the swapped square, in frequencies. Raises ValueError for a beta outside 0 <= beta < 0.5."""
    if not 0 <= beta < 0.5:
        raise ValueError(f"beta {beta}: expected 0 <= beta < 0.5 (the papers' bands: 0.01, 0.05, 0.09)")
    return math.floor(min(height, width) * beta)


@torch.no_grad()
def fda(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """Source pictures in the target pictures' low-frequency style, pair by pair.

    source, target: float [B, 3, H, W] in [0, 1]; a target of another size is resized to the source's (bilinear,
    antialiased). Returns float32 of the source's shape on its device, not clipped (it may leave [0, 1] a little).
    Raises ValueError for a wrong beta or batches of different length.
    """
    if source.shape[:2] != target.shape[:2]:
        raise ValueError(f"source {tuple(source.shape)} and target {tuple(target.shape)} differ in batch or channels")
    height, width = source.shape[-2:]
    if target.shape[-2:] != source.shape[-2:]:
        target = F.resize(target, [height, width], antialias=True)
    b = half_width(height, width, beta)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would cost three digits
    try:
        with torch.autocast(source.device.type, enabled=False):
            return _swap(source.float().contiguous(), target.float().contiguous(), b)
    finally:
        torch.set_float32_matmul_precision(precision)


def _swap(source: Tensor, target: Tensor, b: int) -> Tensor:
    height, width = source.shape[-2:]
    mean, goal = source.mean((-2, -1), keepdim=True), target.mean((-2, -1), keepdim=True)
    centred = source - mean  # frequency (0, 0) by itself: it would cost all others their last digits
    old, new = _low_frequencies(centred, b), _low_frequencies(target - goal, b)
    distances = torch.linalg.vector_norm(centred, 1, dim=(-2, -1), keepdim=True)
    rounding = ROUNDING * distances + FLAT * mean.abs() * (height * width)
    amplitude = old.abs()
    phase = torch.where(amplitude > rounding, old / amplitude.clamp(min=1e-30), torch.ones_like(old))
    change = (new.abs() * phase - old) / (height * width)
    change[..., b : b + 1, :1] = goal.abs() * torch.where(mean < 0, -1.0, 1.0) - mean
    change[..., 1:] *= 2  # columns 1 ... b stand for -b ... -1 too: the spectrum of a real picture is symmetric
    rows = _waves(height, -b, b, source.device).mT @ change  # [B, 3, H, b + 1], complex
    columns = _waves(width, 0, b, source.device)
    thin = torch.cat((rows.real, -rows.imag), dim=-1).flatten(0, 2)
    wide = torch.cat((columns.real, columns.imag), dim=0)
    return torch.addmm(source.view(-1, width), thin, wide).view(source.shape)


def _low_frequencies(pictures: Tensor, b: int) -> Tensor:
    """complex64 [B, 3, 2b + 1, b + 1]: the DFT's rows -b ... b and columns 0 ... b."""
    height, width = pictures.shape[-2:]
    columns = _waves(width, 0, b, pictures.device)
    thin = torch.cat((columns.real, -columns.imag), dim=0) @ pictures.mT  # [B, 3, 2 (b + 1), H]
    rows = _waves(height, -b, b, pictures.device).conj()
    return (torch.complex(*thin.chunk(2, dim=-2)) @ rows.mT).mT


@lru_cache(maxsize=32)
def _waves(length: int, first: int, last: int, device: torch.device) -> Tensor:
    """complex64 [last - first + 1, length]: exp(2 pi i k x / length) for k = first ... last, from float64."""
    k = torch.arange(first, last + 1, dtype=torch.float64)[:, None]
    x = torch.arange(length, dtype=torch.float64)
    angle = 2 * math.pi * torch.remainder(k * x, length) / length
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)
