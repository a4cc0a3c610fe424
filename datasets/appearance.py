"""How pictures look: from uint8 to float in [0, 1], colour jitter and blur; on the device, pictures only.

The constants are the student report's. Random numbers come from torch's global generator, which a run seeds anew
at every step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
BLUR = {"kernel_size": 3, "sigma": (0.2, 0.8)}


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [0, 1]."""
    return images.float() / 255


class Appearance:
    """uint8 [B, 3, H, W] -> float32 [B, 3, H, W] in [0, 1], each picture jittered and blurred by draws of its own."""

    def __init__(self, jitter: bool = False, blur: bool = False) -> None:
        self.transforms: list[Callable[[Tensor], Tensor]] = []
        if jitter:
            self.transforms.append(v2.ColorJitter(**JITTER))
        if blur:
            self.transforms.append(v2.GaussianBlur(**BLUR))

    def __call__(self, images: Tensor) -> Tensor:
        pictures = to_float(images)
        for transform in self.transforms:
            pictures = torch.stack([transform(picture) for picture in pictures])
        return pictures
