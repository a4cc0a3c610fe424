"""Grad-CAM as a user asks for it: of a class by its name, at a place of the picture."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from datasets.labels import Classes
from models.gradcam import grad_cam
from utils.errors import UserError


def class_named(text: str, classes: Classes) -> int:
    """`traffic light` or `traffic-light` -> its train id. Raises `UserError` for none of the classes."""

    def plain(name: str) -> str:
        return name.replace("-", " ").replace("_", " ").lower()

    found = [train_id for train_id, name in enumerate(classes.names) if plain(name) == plain(text)]
    if not found:
        raise UserError(f"--cam {text!r} is none of the classes: {', '.join(classes.names)}")
    return found[0]


def point(text: str) -> tuple[int, int]:
    """`640,300` -> (640, 300)."""
    x, _, y = text.partition(",")
    if not (x.isdecimal() and y.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels from the top left, such as 640,300, found {text!r}")
    return int(x), int(y)


def explanation(
    model: nn.Module, layer: nn.Module, inputs: Tensor, logits: Tensor, explained: int, at: tuple[int, int] | None,
    size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Grad-CAM of the class `explained`: float [h, w] from 0 to 1; `size` = (H, W), the picture's own, in which `at` is
    given. Raises LookupError where the picture has nothing to explain, `UserError` for a layer that has none."""
    height, width = size
    if at is None:
        chosen = logits.argmax(dim=1)[0] == explained
        if not chosen.any():
            raise LookupError("no pixel is predicted so; ask about a place with --at X,Y")
    else:
        x, y = at
        if x >= width or y >= height:
            raise LookupError(f"--at {x},{y} lies outside its {width} x {height} pixels")
        chosen = torch.zeros(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        chosen[y * logits.shape[2] // height, x * logits.shape[3] // width] = True
    try:
        return grad_cam(model, layer, inputs, lambda out: out[0, explained][chosen].sum())
    except ValueError as error:
        raise UserError(f"--cam-layer: {error}") from None
