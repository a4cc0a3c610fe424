"""Pictures for people: coloured labels, what is wrong in them, legends, and panels side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .geometry import resize_label
from .labels import IGNORE, Classes

TITLE_HEIGHT = 18
LEGEND_WIDTH = 240
"""A legend is at least so wide, also below a smaller picture."""

WRONG = (240, 228, 66)
"""Okabe and Ito's yellow: seen by colour-blind readers, and the brightest in grey."""


Draw = Callable[[np.ndarray, np.ndarray, Classes], np.ndarray]
"""How a prediction is shown: `overlay`, or `beside`."""


def panel(image: Tensor, titled: Sequence[tuple[str, Tensor]], classes: Classes) -> np.ndarray:
    """A picture and train-id maps side by side, each under its title -> uint8 [H + 18, W * n, 3].

    image: uint8 [3, H, W]; maps: uint8 [h, w] of any size (nearest neighbour brings them to the picture's).
    """
    height, width = image.shape[-2:]
    parts = [("picture", image.permute(1, 2, 0).cpu().numpy())]
    parts += [(title, classes.colourise(resize_label(ids.cpu(), (width, height)).numpy())) for title, ids in titled]
    return np.concatenate([under_title(title, pixels) for title, pixels in parts], axis=1)


def row(images: Sequence[Tensor], classes: Classes) -> Tensor:
    """Pictures float [3, h, w], clipped to [0, 1], and train-id maps uint8 [h, w], coloured, side by side at the first
    one's size -> float [3, H, W * n]."""
    height, width = images[0].shape[-2:]
    parts = []
    for image in (image.detach().cpu() for image in images):
        if image.ndim == 2:
            colours = torch.from_numpy(classes.colourise(resize_label(image, (width, height)).numpy()))
            parts.append(colours.permute(2, 0, 1).float() / 255)
        else:
            enlarged = F.interpolate(image.float()[None], (height, width), mode="bilinear", align_corners=False)
            parts.append(enlarged[0].clamp(0, 1))
    return torch.cat(parts, dim=-1)


def under_title(title: str, pixels: np.ndarray, height: int = TITLE_HEIGHT) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [H + height, W, 3], the title above, as large as fits."""
    canvas = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + height), "white")
    canvas.paste(Image.fromarray(pixels), (0, height))
    sizes = (ImageFont.load_default(size=size) for size in range(round(0.7 * height), 6, -1))
    font = next((font for font in sizes if font.getlength(title) < pixels.shape[1] - 4), ImageFont.load_default(size=6))
    ImageDraw.Draw(canvas).text((4, height // 8), title, fill="black", font=font)
    return np.array(canvas)


def errors(image: np.ndarray, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The picture in dark grey, and `WRONG` where a labelled pixel is predicted otherwise -> uint8 [H, W, 3].

    image: uint8 [H, W, 3]; prediction, label: uint8 [H, W] train ids, 255 in the label where nothing is known.
    """
    grey = (image.mean(axis=2, keepdims=True) * 0.45).astype(np.uint8).repeat(3, axis=2)
    grey[(prediction != label) & (label != IGNORE)] = WRONG
    return grey


OPACITY = 0.55
"""Of the classes' colours over a picture."""


def overlay(image: np.ndarray, prediction: np.ndarray, classes: Classes) -> np.ndarray:
    """The classes' colours over the picture: uint8 [H, W, 3] and uint8 [H, W] -> uint8 [H, W, 3]."""
    mixed = (1 - OPACITY) * image.astype(np.float32) + OPACITY * classes.colourise(prediction).astype(np.float32)
    return (mixed + 0.5).astype(np.uint8)


def beside(image: np.ndarray, prediction: np.ndarray, classes: Classes) -> np.ndarray:
    """The picture, and right of it the classes' colours: uint8 [H, W, 3] and uint8 [H, W] -> uint8 [H, 2 W, 3]."""
    return np.concatenate((image, classes.colourise(prediction)), axis=1)


def heated(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] in grey under float [H, W] from 0 (blue) to 1 (yellow; cividis) -> uint8 [H, W, 3]."""
    import matplotlib

    grey = picture.mean(axis=2, keepdims=True, dtype=np.float32)
    colours = 255 * matplotlib.colormaps["cividis"](heat)[..., :3].astype(np.float32)
    return (0.4 * grey + 0.6 * colours + 0.5).astype(np.uint8)


def legend(shown: Sequence[int], classes: Classes, width: int, shares: Sequence[float] | None = None) -> np.ndarray:
    """Colour and name of each class in `shown`, in as many columns as fit -> uint8 [h, width, 3]; with shares, how much
    of the picture each fills."""
    text = max(11, min(40, width // 64))
    font = ImageFont.load_default(size=text)
    words = [classes.names[c] + ("" if shares is None else f" {shares[i]:.1%}") for i, c in enumerate(shown)]
    row, swatch = round(1.6 * text), round(1.5 * text)
    column = swatch + text + max([round(font.getlength(word)) for word in words], default=0) + text
    columns = max(1, width // column)
    canvas = Image.new("RGB", (width, row * -(-len(words) // columns) + text // 2), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (class_id, word) in enumerate(zip(shown, words, strict=True)):
        left, top = place % columns * column + text // 2, place // columns * row + text // 3
        draw.rectangle((left, top, left + swatch, top + text), fill=classes.colours[class_id], outline="black")
        draw.text((left + swatch + text // 2, top - 1), word, fill="black", font=font)
    return np.array(canvas)


def stacked(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Two pictures uint8 [h, w, 3], the second below the first, white where one is narrower."""
    width = max(upper.shape[1], lower.shape[1])
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in (upper, lower)]
    return np.concatenate(padded)
