"""What a network costs, counted: parameters, MACs, FLOPs; and the figures of measure_flops.py, read from its JSON.

Three conventions meet in the published figures. fvcore's count is one per multiply-accumulate of a convolution plus
what it charges for batch normalisation and bilinear upsampling; the convolutions' MACs are those alone; FLOPs are twice
the MACs.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import DISCRIMINATORS, SEGMENTERS, Segmenter, build_discriminator, build_segmenter
from utils.files import read_json

from .results import DAMAGED
from .sanity import cost_is_sane

Costs = dict[str, dict[str, Any]]
"""Network -> its figures, with `counted_at` and, where it was timed, `timed_at`, in words."""

SIZE = (1024, 512)
"""Width and height at which networks are counted unless another size is named: the assignment's."""
FEATURES = 1024
"""Channels of BiSeNet's features on ResNet-18, at 1/8: what a discriminator of features is counted on."""
FEATURES_NOTE = f"A discriminator by class is counted on {FEATURES:,} channels at 1/8, the features of BiSeNet-18."


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Every network on every backbone, its variants, and every discriminator: name -> what builds it."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name, network in SEGMENTERS.items():
        for backbone in network.backbones:
            for title, options in {"": {}, **network.variants}.items():
                build = partial(build_segmenter, name, backbone=backbone, **options)
                found[f"{name} {backbone} {title}".rstrip()] = build
    for kind, of in DISCRIMINATORS.items():
        found[f"discriminator {kind}"] = partial(build_discriminator, kind, *([FEATURES] if of.by_class else []))
    return found


def example(model: nn.Module, size: tuple[int, int], batch_size: int = 1) -> Tensor:
    """Zeros of the shape that the network takes for a picture of this size: three channels, or as many classes or
    features as the discriminator sees, the latter at 1/8."""
    shrunk = 8 if getattr(model, "by_class", False) else 1
    width, height = (math.ceil(side / shrunk) for side in size)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = 3 if isinstance(model, Segmenter) else first.in_channels
    return torch.zeros(batch_size, channels, height, width)


def count(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Parameters in training and in inference (the auxiliary heads exist in training only), fvcore's count, the
    convolutions' MACs, FLOPs = 2 x MACs, and the operators that fvcore does not count with their number of calls."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis  # here, where the warnings of its import are silenced too

        analysis = FlopCountAnalysis(model, example(model, size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total, macs = analysis.total(), analysis.by_operator()["conv"]
        uncounted = dict(analysis.unsupported_ops())
    training = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters_training": training,
        "parameters_inference": model.inference_parameters() if isinstance(model, Segmenter) else training,
        "fvcore": int(total),
        "conv_macs": int(macs),
        "conv_flops": 2 * int(macs),
        "not_counted_by_fvcore": uncounted,
    }


def read_costs(path: Path, costs: Costs) -> bool:
    """Adds what a JSON file of measure_flops.py holds: counts of the first file that has a network, latency of the
    first that timed it. False for another file."""
    try:
        content = read_json(path)
        size = "x".join(str(side) for side in content["size"])
        if not all(cost_is_sane(cost) for cost in content["networks"].values()):
            return False
        for name, cost in content["networks"].items():
            own = costs.setdefault(name, {"counted_at": counted_at(size)} | cost | {"timing": {}})
            if not own["timing"] and cost.get("timing"):
                variant = next(iter(cost["timing"]))
                own["timing"] = cost["timing"]
                own["timed_at"] = (
                    f"Latency: median at {size}, batch {content['batch_size']}, {variant}, {content['device']}, torch "
                    f"{content['torch']}."
                )
    except DAMAGED:
        return False
    return True


def count_missing(costs: Costs, names: Iterable[str]) -> None:
    """Counts those of the networks that no file of costs had, at `SIZE`; nothing is timed."""
    known = networks()
    for name in names:
        if name not in costs and name in known:
            size = "x".join(map(str, SIZE))
            costs[name] = {"counted_at": counted_at(size)} | count(known[name]().eval(), SIZE) | {"timing": {}}


def counted_at(size: str) -> str:
    return f"Counts at {size}, one picture."
