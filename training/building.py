"""What a training script builds from its flags: data sets, network, loss, optimizer, schedule."""

from __future__ import annotations

import argparse
import functools

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR

import models
from adaptation.losses import PixelLoss, cross_entropy, focal, median_frequency_weights, ohem
from datasets import SegmentationSet
from datasets.check import check
from datasets.domains import open_source, open_target
from datasets.frequencies import class_counts, class_frequencies
from datasets.geometry import Geometry
from utils import distributed
from utils.errors import UserError

from .checkpoint import LAST, PREVIOUS


def source_sets(args: argparse.Namespace) -> tuple[SegmentationSet, SegmentationSet | None]:
    """(training frames of the source, the held-out ones or None), checked."""
    data = open_source(vars(args))
    print(check(data))
    return data.hold_out(args.source_holdout)


def target_set(args: argparse.Namespace, split: str, labelled: bool = True) -> SegmentationSet:
    """A split of the target, checked; val without labels where --unlabelled-val says so."""
    labelled = labelled and not (split == "val" and args.unlabelled_val)
    data = open_target(vars(args), split, labelled, listed=split == "train")
    print(check(data))
    return data


def geometry(args: argparse.Namespace, size: tuple[int, int]) -> Geometry:
    """Random scale, crop and flip at a working size."""
    return Geometry(size, args.scales, args.flip)


def segmenter(args: argparse.Namespace, num_classes: int, multi_level: bool = False) -> models.Segmenter:
    """The network of --model, --backbone and --weights, on the run's device; says what it starts from.

    With `multi_level`, in the form that multi-level adaptation needs. Raises `UserError` for weights that do not fit.
    """
    network = models.SEGMENTERS[args.model]
    options = network.pretrained_options if args.weights != "none" else {}
    if multi_level and network.multi_level_options:
        options = options | network.multi_level_options
    resumed = args.resume and any((args.run_dir / name).exists() for name in (LAST, PREVIOUS))
    replaced = args.init is not None or resumed
    try:
        model = models.build_segmenter(
            args.model,
            num_classes,
            backbone=args.backbone,
            weights="none" if replaced else args.weights,
            allow_partial_weights=args.allow_partial_weights,
            **options,
        )
    except ValueError as error:  # WeightsError is one
        raise UserError(str(error)) from None
    trained = sum(parameter.numel() for parameter in model.parameters())
    start = f"weights of {args.run_dir if resumed else args.init}" if replaced else model.weights_report
    print(f"{args.model}, {trained:,} parameters in training; {start}")
    return distributed.synchronised(model.to(args.device), args.device)


def pixel_loss(args: argparse.Namespace, data: SegmentationSet, counts: Tensor | None = None) -> PixelLoss:
    """What --loss names; `weighted` counts the classes of `data`, the labelled training set, where `counts` does not
    say them (`class_counts`), and prints its weights."""
    if args.loss != "weighted":
        return {"ce": cross_entropy, "ohem": ohem, "focal": focal}[args.loss]
    counts = class_counts(data, args.workers) if counts is None else counts
    weights = median_frequency_weights(*class_frequencies(counts))
    shown = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(data.classes.names, weights.tolist(), strict=True))
    print(f"class weights by median frequency in {data.name}: {shown}")
    return functools.partial(cross_entropy, weight=weights.to(args.device))


def sgd(model: nn.Module, args: argparse.Namespace) -> SGD:
    """SGD with momentum 0.9; no weight decay on biases and on normalisation layers (all one-dimensional); the parts
    that the network names in `rate_factors` at a multiple of the rate."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.ndim > 1) == decayed:
                factor = model.rate_factors.get(name.partition(".")[0], 1.0)
                groups.setdefault((factor, decayed), []).append(parameter)
    return SGD(
        [
            {"params": parameters, "lr": args.lr * factor, "weight_decay": args.weight_decay * decayed}
            for (factor, decayed), parameters in groups.items()
        ],
        lr=args.lr,
        momentum=0.9,
        fused=fused(model),
    )


def fused(model: nn.Module) -> bool | None:
    """Whether an optimizer of the model's parameters steps in one kernel: on a GPU; elsewhere torch's own choice."""
    return True if next(model.parameters()).is_cuda else None


def poly(optimizer: torch.optim.Optimizer, total_steps: int) -> PolynomialLR:
    """The poly schedule, rate * (1 - step / total_steps)^0.9, stepped once an iteration."""
    return PolynomialLR(optimizer, total_steps, power=0.9)
