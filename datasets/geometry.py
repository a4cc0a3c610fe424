"""Where pixels go: resizing, random scale, crop and horizontal flip, for a picture and its label alike.

Appearance never changes here (it does on the device, in `datasets/appearance.py`), and no state is kept: every random
number comes from the generator that is passed in.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .labels import IGNORE

PADDING = (124, 116, 104)
"""What surrounds a picture scaled down: ImageNet's mean colour, so that it is near 0 once normalised."""


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, h, w] -> uint8 [3, H, W], `size` = (W, H); bilinear, antialiased. Channels last in memory, where that
    resizes twice as fast."""
    width, height = size
    image = image[None].contiguous(memory_format=torch.channels_last)
    return F.resize(image, [height, width], InterpolationMode.BILINEAR, antialias=True)[0]


def resizing() -> int:
    """What `resize_image` makes of a fixed picture here. Torch resizes bytes in whole numbers or by way of floats,
    as the processor's instructions and the versions have it: values may differ by 1."""
    noise = (np.arange(3 * 120 * 200, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8)
    picture = torch.from_numpy(noise).view(120, 200, 3).permute(2, 0, 1)
    return zlib.crc32(resize_image(picture, (128, 72)).contiguous().numpy())


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [h, w] -> uint8 [H, W], `size` = (W, H); nearest neighbour, pixel centres aligned with the picture's."""
    width, height = size
    return F.resize(label[None], [height, width], InterpolationMode.NEAREST_EXACT)[0]


@dataclass(frozen=True)
class Geometry:
    """Random scale, crop back to the working size, horizontal flip.

    size: (width, height), of what comes in and of what goes out. scales: one is drawn per picture (BiSeNet paper:
    0.75, 1.0, 1.5, 1.75, 2.0). flip: probability. Where a scaled picture is smaller than `size`, the label is padded
    with `IGNORE`.
    """

    size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: float = 0.0

    def __call__(self, image: Tensor, label: Tensor | None, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """uint8 [3, H, W] and uint8 [H, W] (or None) at the working size -> the same, moved alike."""
        width, height = self.size
        scale = self.scales[rng.integers(len(self.scales))]
        across, down = rng.random(2)
        flipped = rng.random() < self.flip
        if scale != 1.0:
            scaled = (max(1, round(width * scale)), max(1, round(height * scale)))
            left = round(across * (scaled[0] - width))
            top = round(down * (scaled[1] - height))
            image = _scaled_window(image, scale, scaled, left, top, self.size)
            if label is not None:
                label = _scaled_label_window(label, scaled, left, top, self.size)
        if flipped:
            image = image.flip(-1)
            label = None if label is None else label.flip(-1)
        return image, label


MARGIN = 2
"""Source pixels beyond a window that a bilinear enlargement may look at."""


def _scaled_window(
    image: Tensor, scale: float, scaled: tuple[int, int], left: int, top: int, size: tuple[int, int]
) -> Tensor:
    """The window of `size` at (left, top) of the image [3, h, w] resized to `scaled`, padded where it is smaller.

    An enlargement by a ratio of small whole numbers is made of the piece under the window alone, cut at multiples of
    the ratio's denominator, where the grids of both sizes meet: the same pixels for a fraction of the work. (In torch
    2.4 some values differ by 1.)
    """
    height, width = image.shape[-2:]
    ratio = Fraction(scale).limit_denominator(16)
    if ratio <= 1 or scaled != (width * ratio, height * ratio):
        return _window(resize_image(image, scaled), left, top, size, PADDING)
    x0, x1 = _source_range(left, size[0], width, ratio)
    y0, y1 = _source_range(top, size[1], height, ratio)
    piece = resize_image(image[:, y0:y1, x0:x1], (int((x1 - x0) * ratio), int((y1 - y0) * ratio)))
    return _window(piece, left - int(x0 * ratio), top - int(y0 * ratio), size, PADDING)


def _source_range(first: int, length: int, whole: int, ratio: Fraction) -> tuple[int, int]:
    """What of a side of `whole` pixels lies under [first, first + length) of the enlarged side, and a margin."""
    step = ratio.denominator
    start = max(0, (int(first / ratio) - MARGIN) // step * step)
    end = min(whole, -(-(int((first + length) / ratio) + 1 + MARGIN) // step) * step)
    return start, end


def _scaled_label_window(label: Tensor, scaled: tuple[int, int], left: int, top: int, size: tuple[int, int]) -> Tensor:
    """`resize_label` to `scaled`, then the window of `size` at (left, top), `IGNORE` beyond: only its pixels."""
    columns = _nearest(label.shape[-1], scaled[0], max(0, left), min(scaled[0], left + size[0]))
    rows = _nearest(label.shape[-2], scaled[1], max(0, top), min(scaled[1], top + size[1]))
    inside = torch.from_numpy(label.numpy()[rows].take(columns, axis=1))
    return _window(inside[None], min(0, left), min(0, top), size, (IGNORE,))[0]


def _nearest(length: int, scaled: int, first: int, last: int) -> np.ndarray:
    """The source pixels of [first, last) of a side of `length` resized to `scaled`, nearest-exact."""
    centres = (np.arange(first, last, dtype=np.float32) + np.float32(0.5)) * np.float32(length / scaled)
    return np.minimum(centres.astype(np.int64), length - 1)


def _window(picture: Tensor, left: int, top: int, size: tuple[int, int], fill: tuple[int, ...]) -> Tensor:
    """The window of `size` at (left, top) of [C, h, w]; what lies outside is `fill`, one value a channel."""
    width, height = size
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(picture.shape[-1], left + width), min(picture.shape[-2], top + height)
    inside = picture[:, y0:y1, x0:x1]
    if inside.shape[-2:] == (height, width):
        return inside
    row = picture.new_tensor(fill).repeat(width)
    out = row.expand(height, -1).contiguous().view(height, width, -1).permute(2, 0, 1)
    out[:, y0 - top : y1 - top, x0 - left : x1 - left] = inside
    return out
