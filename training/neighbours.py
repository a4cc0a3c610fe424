"""`adaptation.neighbours` of a network's features on two data sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptation.neighbours import mixing
from datasets import SegmentationSet
from datasets.appearance import to_float
from models.gradcam import layer_named
from utils.bar import tracked
from utils.errors import UserError

from .exported import spread


def domain_mixing(
    model: nn.Module, source: SegmentationSet, target: SegmentationSet, k: int, device: torch.device
) -> tuple[float, int]:
    """`mixing` on as many pictures of each set as the smaller has, evenly over it, and how many these are. Leaves the
    network in evaluation mode. Raises `UserError` for too few pictures."""
    n = min(len(source), len(target))
    if n <= k:
        raise UserError(f"--neighbours {k} needs more pictures of each domain than that, found {n}; name a smaller one")
    return mixing(*(pooled(model, data, n, device) for data in (source, target)), k), n


@torch.no_grad()
def pooled(model: nn.Module, data: SegmentationSet, n: int, device: torch.device) -> Tensor:
    """The features of `cam_layer`, the deepest, averaged over each picture: [n, D]."""
    found: list[Tensor] = []
    layer = layer_named(model, model.cam_layer)
    handle = layer.register_forward_hook(lambda module, inputs, output: found.append(output.mean(dim=(2, 3))[0]))
    model.eval()
    try:
        for number in tracked(spread(data, n), n, f"features of {data.name}", "picture"):
            model(to_float(data.image(number)[None].to(device)))
    finally:
        handle.remove()
    return torch.stack(found)
