"""Networks and what belongs to one: segmenters, discriminators, their weights, deployment, ensembles, Grad-CAM.

Data are not known here: `datasets` may not be imported. Losses and optimizers are elsewhere too.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .bisenet import BiSeNet
from .deeplab_vgg16 import DeepLabVGG16
from .deeplabv2 import DeepLabV2
from .discriminator import DISCRIMINATORS, Discriminator
from .lraspp import LRASPP
from .pidnet import PIDNet
from .segmenter import Segmenter
from .weights import UNREADABLE, WeightsError

SEGMENTERS: dict[str, type[Segmenter]] = {
    "bisenet": BiSeNet,
    "deeplabv2": DeepLabV2,
    "lraspp": LRASPP,
    "deeplab_vgg16": DeepLabVGG16,
    "pidnet": PIDNet,
}
"""--model's name -> network; the first is the default. What a network says of itself: `models.segmenter`."""

__all__ = [
    "DISCRIMINATORS",
    "SEGMENTERS",
    "UNREADABLE",
    "Segmenter",
    "WeightsError",
    "build_discriminator",
    "build_segmenter",
]


def build_segmenter(name: str, num_classes: int = 19, **options: Any) -> Segmenter:
    """A network by its name; `options` are its constructor's.

    module(images in [0, 1], [B, 3, H, W]) -> logits [B, num_classes, H, W] in evaluation; in training
    (logits, auxiliary logits). `module.options` holds what builds the same network again, weights apart. Its weights
    lie channels-last in memory, which makes its convolutions faster and leaves the mathematics as it is.
    Raises ValueError for an unknown name or option value, `WeightsError` for weights that do not fit.
    """
    if name not in SEGMENTERS:
        raise ValueError(f"network {name!r}: expected one of {', '.join(SEGMENTERS)}")
    module = SEGMENTERS[name](num_classes=num_classes, **options)
    defaults = {key: p.default for key, p in inspect.signature(SEGMENTERS[name]).parameters.items()}
    kept = {
        key: value for key, value in (defaults | options).items() if key not in ("weights", "allow_partial_weights")
    }
    module.options = {"name": name} | kept | {"num_classes": num_classes}
    return module.to(memory_format=torch.channels_last)


def build_discriminator(kind: str, in_channels: int = 19, num_classes: int = 19) -> Discriminator:
    """One of `DISCRIMINATORS`; [B, in_channels, H, W] -> logits [B, 1, H/32, W/32], or as the kind has it; its weights
    channels-last. num_classes: of the segmenter. Raises ValueError for another kind."""
    return Discriminator(kind, in_channels, num_classes).to(memory_format=torch.channels_last)
