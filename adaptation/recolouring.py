"""Recolouring classes: domain randomisation after rendering, with the source's labels for its objects.

Where things stand and what shape they have stays; their colour stops being evidence. Renderers have drawn objects in
random textures for this end (Tobin et al., IROS 2017). Of finished pictures others changed the whole or random parts,
by style transfer: Yue et al. (ICCV 2019), Kim and Byun (CVPR 2020, who then train on pseudo-labels), Peng et al. (TIP
2021). Here each class of each picture is changed by itself, and nothing but labels is needed. We know of no paper that
does just this. The ranges are our own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.appearance import GaussianBlur, contrast, saturation
from datasets.labels import IGNORE

CONTRAST, SATURATION = (0.5, 1.3), (0.0, 1.3)
"""Factors: about the picture's mean grey, and about each pixel's grey."""
GAIN, OFFSET = (0.3, 1.7), (-0.25, 0.25)
"""Of each channel, drawn apart: x -> gain * x + offset."""
TEXTURE = (0.0, 0.25)
"""How strong the picture's texture is on the class."""
CELLS = 8
"""Of the texture along the picture's shorter side; they are square."""
RANGES = torch.tensor([CONTRAST, SATURATION, *[GAIN] * 3, *[OFFSET] * 3, TEXTURE])
UNCHANGED = torch.tensor([1.0, 1.0, *[1.0] * 3, *[0.0] * 3, 0.0])
BLURRED = 0.5
"""Probability of a picture to be blurred as a whole, after its classes were changed."""


class Recolouring:
    """Each class of each picture is changed with this probability, by draws of its own; 0 draws nothing.

    In this order: contrast, saturation, gain and offset, plus the class's strength times the picture's texture; clipped
    to [0, 1]. Then half of the pictures are blurred (kernel 9, sigma 0.15 to 1.15, as in DACS). Without blur, pixels of
    other classes and those without a label keep every bit. Draws from torch's generator on the CPU; waits for no
    device.
    """

    def __init__(self, probability: float) -> None:
        self.probability, self.blur = probability, GaussianBlur(9, (0.15, 1.15))

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1], changed in place, and labels uint8 [B, H, W] -> the same shape in [0, 1]."""
        if self.probability == 0:
            return images
        images = images.contiguous()  # contrast, saturation and blur take channels apart
        count, height, width = labels.shape
        drawn = self.draw(count).to(images.device, non_blocking=True)
        picture = torch.arange(count, device=images.device).view(-1, 1, 1)
        columns = drawn.flatten(0, 1).mT  # row by row, the classes of all pictures
        of_pixel = labels.long() + drawn.shape[1] * picture

        def maps(*numbers: int) -> Tensor:
            """The drawn values as every pixel has them, [B, n, H, W]."""
            return torch.stack([columns[number][of_pixel] for number in numbers], dim=1)

        images = saturation(contrast(images, maps(0)), maps(1))
        images.mul_(maps(2, 3, 4)).add_(maps(5, 6, 7))
        images.addcmul_(texture(count, height, width, images.device), maps(8)).clamp_(0, 1)
        return self.blur(images, [self.blur.draw() if torch.rand(1) < BLURRED else None for _ in range(count)])

    def draw(self, pictures: int) -> Tensor:
        """float32 [B, 256, 9]: for each class that a label may name the values in the order of `RANGES`."""
        low, high = RANGES.unbind(dim=1)
        values = low + (high - low) * torch.rand(pictures, IGNORE + 1, len(RANGES))
        due = torch.rand(pictures, IGNORE + 1, 1) < self.probability
        due[:, IGNORE] = False
        return torch.where(due, values, UNCHANGED)


def texture(pictures: int, height: int, width: int, device: torch.device) -> Tensor:
    """float32 [B, 3, H, W] in [-1, 1]: a random value in each cell and channel, bilinear between the cells."""
    side = min(height, width) / CELLS
    cells = 2 * torch.rand(pictures, 3, round(height / side), round(width / side)) - 1
    return F.interpolate(cells.to(device, non_blocking=True), (height, width), mode="bilinear")
