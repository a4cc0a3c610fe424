"""Pictures for people: coloured labels, and panels side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from datasets.geometry import resize_label
from datasets.labels import colourise

TITLE_HEIGHT = 18


def panel(image: Tensor, titled: Sequence[tuple[str, Tensor]]) -> np.ndarray:
    """A picture and train-id maps side by side, each under its title -> uint8 [H + 18, W * n, 3].

    image: uint8 [3, H, W]; maps: uint8 [h, w] of any size (nearest neighbour brings them to the picture's).
    """
    height, width = image.shape[-2:]
    parts = [("picture", image.permute(1, 2, 0).cpu().numpy())]
    parts += [(title, colourise(resize_label(ids.cpu(), (width, height)).numpy())) for title, ids in titled]
    return np.concatenate([_titled(title, pixels) for title, pixels in parts], axis=1)


def _titled(title: str, pixels: np.ndarray) -> np.ndarray:
    canvas = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + TITLE_HEIGHT), "white")
    canvas.paste(Image.fromarray(pixels), (0, TITLE_HEIGHT))
    ImageDraw.Draw(canvas).text((4, 3), title, fill="black")
    return np.array(canvas)
