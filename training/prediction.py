"""A picture of any size through a network, and what the network says of every pixel at that size again.

Networks that give the classes of a frame are called alike, whatever runs them: uint8 [3, H, W] in, uint8 [H, W] out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.entropy import prediction_entropy
from datasets.appearance import to_float
from datasets.geometry import resize_image, resize_label
from datasets.labels import Classes
from models.runtime import OnnxNetwork

from .evaluation import predict, require_numbers

SAME_SHAPE = 0.05
"""A picture whose aspect ratio is this near the training's is brought to the training's size, as in evaluation."""

BAND_PIXELS = 4_000_000
"""Logits are enlarged in bands of rows of about so many pixels, whatever the picture's size: a pixel takes a float for
each class."""

MIN_SIDE = 32
"""No picture goes through the network smaller than this, however thin it is."""


class Maps(NamedTuple):
    """What is known of every pixel, each [H, W]: uint8 train ids, and float from 0 to 1."""

    classes: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray


def working_size(width: int, height: int, trained: tuple[int, int]) -> tuple[int, int]:
    """(width, height) at which a picture goes through the network: the training's, or for another shape one of as
    many pixels."""
    if abs(width * trained[1] / (height * trained[0]) - 1) <= SAME_SHAPE:
        return trained
    pixels = trained[0] * trained[1]
    factor = math.sqrt(pixels / (width * height))
    across, down = (min(max(MIN_SIDE, round(side * factor)), pixels // MIN_SIDE) for side in (width, height))
    return across, down


def network_input(image: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """uint8 [3, H, W] -> float [1, 3, h, w] in [0, 1]."""
    height, width = image.shape[-2:]
    return to_float(resize_image(image, working_size(width, height, size))[None].to(device))


def maps(logits: Tensor, size: tuple[int, int]) -> Maps:
    """Logits [1, C, h, w] -> the maps at `size` = (H, W), computed band by band."""
    parts = [
        (
            predict(band, band.shape[-2:]).cpu().numpy(),
            band.softmax(1).amax(1)[0].cpu().numpy(),
            prediction_entropy(band)[0].cpu().numpy(),
        )
        for band in bands(logits.float(), size)
    ]
    return Maps(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def bands(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """[1, C, h, w] enlarged bilinearly to `size` = (H, W), as `training.evaluation.predict` does, in bands of rows."""
    height, width = size
    rows = max(1, BAND_PIXELS // width)
    if rows >= height:
        yield F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        return
    for first in range(0, height, rows):
        out = torch.arange(first, min(first + rows, height), device=logits.device, dtype=torch.float32)
        at = ((out + 0.5) * logits.shape[2] / height - 0.5).clamp(min=0)
        above = at.long().clamp(max=logits.shape[2] - 1)
        below = (above + 1).clamp(max=logits.shape[2] - 1)
        share = (at - above)[:, None]
        band = logits[:, :, above] * (1 - share) + logits[:, :, below] * share
        yield F.interpolate(band, size=(len(out), width), mode="bilinear", align_corners=False)


class Eager:
    """A network of torch. seconds: what its forward passes took so far."""

    def __init__(self, model: nn.Module, size: tuple[int, int], device: torch.device) -> None:
        """size: (width, height) that it was trained at."""
        self.model, self.size, self.device = model, size, device
        self.seconds = 0.0

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Of what `network_input` gave: [1, C, h, w]. Raises `UserError` where they are no numbers."""
        start = time.perf_counter()
        logits = self.model(inputs)
        logits[0, 0, 0, 0].item()  # a GPU is done only now
        self.seconds += time.perf_counter() - start
        require_numbers(logits)
        return logits

    def __call__(self, image: Tensor) -> np.ndarray:
        logits = self.logits(network_input(image, self.size, self.device)).float()
        return np.concatenate(
            [predict(band, band.shape[-2:]).cpu().numpy() for band in bands(logits, image.shape[-2:])]
        )


class Exported:
    """A file of export.py, in ONNX Runtime. seconds: what it took so far."""

    def __init__(self, network: OnnxNetwork) -> None:
        self.network, self.classes = network, Classes(network.names, network.colours)
        self.seconds = 0.0

    def __call__(self, image: Tensor) -> np.ndarray:
        """Its ids are enlarged by the nearest: it keeps its logits to itself. A picture of another shape than a file of
        fixed size is stretched to it."""
        height, width = image.shape[-2:]
        size = working_size(width, height, self.network.size) if self.network.dynamic else self.network.size
        pixels = resize_image(image, size).permute(1, 2, 0)[None].contiguous().numpy()
        start = time.perf_counter()
        ids = self.network(pixels)
        self.seconds += time.perf_counter() - start
        return resize_label(torch.from_numpy(ids[0]), (width, height)).numpy()
