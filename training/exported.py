"""Exported files beside the network they were made of, on real pictures: do they compute the same?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datasets import SegmentationSet
from datasets.appearance import to_float
from models.exporting import Coarse, FromPixels, OnnxLogits
from models.runtime import OnnxNetwork, repeated
from utils.errors import UserError

from .evaluation import require_numbers

PICTURES = 16
"""On so many, evenly over a set, files are compared."""

LOGITS_MAY_DIFFER = 1e-3
"""Of the largest logit, in floating point."""

IDS_EQUAL, IDS_EQUAL_INT8 = 0.999, 0.9
"""The least share of pixels whose class is the network's own. Less in int8 is no rounding, but a fault."""


class Compared(NamedTuple):
    """The share of pixels with the network's class, and the largest difference of a logit as a share of the largest
    logit (None for torch's program of class ids)."""

    ids: float
    logits: float | None


def spread(data: SegmentationSet, most: int) -> list[int]:
    """The numbers of at most so many pictures, evenly over the set."""
    return np.linspace(0, len(data) - 1, min(most, len(data))).round().astype(int).tolist()


def pixels_of(data: SegmentationSet, number: int) -> Tensor:
    """uint8 [1, H, W, 3] at the set's working size, as exported files take it. Raises `UserError`."""
    return data.image(number)[None].permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def compare(model: nn.Module, coarse: Coarse, grid: int, file: Path, data: SegmentationSet) -> Compared:
    """A file beside the network, on pictures of the set. Raises `UserError` where they are not the same."""
    run = OnnxNetwork(file) if file.suffix == ".onnx" else Program(file, grid)
    logits_of = OnnxLogits(file.read_bytes(), file) if file.suffix == ".onnx" else None
    sampled = FromPixels(coarse, "logits", grid)
    equal, differ = [], []
    for number in spread(data, PICTURES):
        pixels = pixels_of(data, number)
        images = to_float(pixels.permute(0, 3, 1, 2))
        expected = model(images)
        require_numbers(expected)
        if logits_of is not None:
            differ.append(float((logits_of(images) - expected).abs().max() / expected.abs().max()))
        ids = (expected if grid == 1 else sampled(pixels)).argmax(dim=1).to(torch.uint8).numpy()
        equal.append(float((run(pixels.numpy()) == repeated(ids, grid, pixels.shape)).mean()))
    found = Compared(float(np.mean(equal)), max(differ) if differ else None)
    int8 = isinstance(run, OnnxNetwork) and run.int8
    if found.ids < (IDS_EQUAL_INT8 if int8 else IDS_EQUAL) or (not int8 and (found.logits or 0) > LOGITS_MAY_DIFFER):
        logits = "" if found.logits is None else f", logits differ by up to {found.logits:.2g} of the largest"
        raise UserError(
            f"{file.name} does not compute what the network does, and was not kept: {found.ids:.2%} of the class ids "
            f"are equal{logits}"
            + ("; calibrate on pictures like those it is for, with --calibrate DIR" if int8 else "")
        )
    return found


class Program:
    """torch's exported program: uint8 [1, H, W, 3] -> uint8 ids [1, H, W]."""

    def __init__(self, file: Path, grid: int) -> None:
        self.module: Callable[[Tensor], Tensor] = torch.export.load(file).module()
        self.grid = grid

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        found = self.module(torch.from_numpy(pixels))
        ids = found if found.dtype == torch.uint8 else found.argmax(dim=1).to(torch.uint8)
        return repeated(ids.numpy(), self.grid, pixels.shape)
