"""Pictures for people: coloured labels, and panels side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from datasets.geometry import resize_label
from datasets.labels import colourise
from models.layers import resize

TITLE_HEIGHT = 18


def panel(image: Tensor, titled: Sequence[tuple[str, Tensor]]) -> np.ndarray:
    """A picture and train-id maps side by side, each under its title -> uint8 [H + 18, W * n, 3].

    image: uint8 [3, H, W]; maps: uint8 [h, w] of any size (nearest neighbour brings them to the picture's).
    """
    height, width = image.shape[-2:]
    parts = [("picture", image.permute(1, 2, 0).cpu().numpy())]
    parts += [(title, colourise(resize_label(ids.cpu(), (width, height)).numpy())) for title, ids in titled]
    return np.concatenate([_titled(title, pixels) for title, pixels in parts], axis=1)


def row(images: Sequence[Tensor]) -> Tensor:
    """Pictures float [3, h, w], clipped to [0, 1], and train-id maps uint8 [h, w], coloured, side by side at the first
    one's size -> float [3, H, W * n]."""
    height, width = images[0].shape[-2:]
    parts = []
    for image in (image.detach().cpu() for image in images):
        if image.ndim == 2:
            colours = torch.from_numpy(colourise(resize_label(image, (width, height)).numpy()))
            parts.append(colours.permute(2, 0, 1).float() / 255)
        else:
            parts.append(resize(image.float()[None], (height, width))[0].clamp(0, 1))
    return torch.cat(parts, dim=-1)


def _titled(title: str, pixels: np.ndarray) -> np.ndarray:
    canvas = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + TITLE_HEIGHT), "white")
    canvas.paste(Image.fromarray(pixels), (0, TITLE_HEIGHT))
    ImageDraw.Draw(canvas).text((4, 3), title, fill="black")
    return np.array(canvas)
