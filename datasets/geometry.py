"""Where pixels go: resizing, random scale, crop and horizontal flip, for a picture and its label alike.

Appearance never changes here (it does on the device, in `utils/appearance.py`), and no state is kept: every random
number comes from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .labels import IGNORE

PADDING = (124, 116, 104)
"""What surrounds a picture scaled down: ImageNet's mean colour, so that it is near 0 once normalised."""


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, h, w] -> uint8 [3, H, W], `size` = (W, H); bilinear, antialiased."""
    width, height = size
    return F.resize(image, [height, width], InterpolationMode.BILINEAR, antialias=True)


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
            image = _window(resize_image(image, scaled), left, top, self.size, PADDING)
            if label is not None:
                label = _window(resize_label(label, scaled)[None], left, top, self.size, (IGNORE,))[0]
        if flipped:
            image = image.flip(-1)
            label = None if label is None else label.flip(-1)
        return image, label


def _window(picture: Tensor, left: int, top: int, size: tuple[int, int], fill: tuple[int, ...]) -> Tensor:
    """The window of `size` at (left, top) of [C, h, w]; what lies outside is `fill`, one value a channel."""
    width, height = size
    out = picture.new_tensor(fill).view(-1, 1, 1).expand(-1, height, width).contiguous()
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(picture.shape[-1], left + width), min(picture.shape[-2], top + height)
    out[:, y0 - top : y1 - top, x0 - left : x1 - left] = picture[:, y0:y1, x0:x1]
    return out
