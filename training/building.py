"""What a training script builds from its flags: data sets, network, loss, optimizer, schedule."""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import PolynomialLR

import models
from adaptation.losses import LOSSES, PixelLoss, SegmentationLoss, segmentation_loss
from adaptation.regularisation import regularised
from datasets import SegmentationSet
from datasets.check import check
from datasets.domains import open_source, open_target
from datasets.frequencies import class_counts, class_frequencies
from datasets.geometry import Geometry
from datasets.given_labels import digest, labelled_from
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


class BothDomains(NamedTuple):
    """What an adaptation reads. target: without labels; held_out: frames kept out of the source, or None."""

    source: SegmentationSet
    held_out: SegmentationSet | None
    target: SegmentationSet
    val: SegmentationSet


def both_domains(args: argparse.Namespace) -> BothDomains:
    """The labelled source, the unlabelled target and the target's val, checked."""
    return BothDomains(*source_sets(args), target_set(args, "train", labelled=False), target_set(args, "val"))


def given_labels(args: argparse.Namespace, target: SegmentationSet) -> SegmentationSet:
    """The target's train pictures with the labels of --labels, checked, and their digest in the arguments; without
    --labels as they are."""
    args.labels_sha256 = None
    if args.labels is None:
        return target
    labelled = labelled_from(target, args.labels)
    print(check(labelled))
    args.labels_sha256 = digest(labelled)
    return labelled


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
    if getattr(args, "bn_statistics", "both") == "target":
        layers = model.train().batch_norms()
        if not layers:
            raise UserError(f"--bn-statistics target: {network.title} has no batch normalisation, and so no statistics")
        if not any(layer.training for layer in layers):
            raise UserError(
                f"--bn-statistics target: {network.title} keeps the statistics of its pretrained weights; leave the "
                "flag out, or take --weights none"
            )
    trained = sum(parameter.numel() for parameter in model.parameters())
    start = f"weights of {args.run_dir if resumed else args.init}" if replaced else model.weights_report
    print(f"{args.model}, {trained:,} parameters in training; {start}")
    return distributed.synchronised(model.to(args.device), args.device)


def supervised_loss(
    args: argparse.Namespace, train: SegmentationSet, counts: Tensor | None = None
) -> SegmentationLoss:
    """`segmentation_loss` with --loss and --aux-weight. train: the labelled training set; see `pixel_loss`. Labels that
    --intra's network makes teach no boundary."""
    loss = pixel_loss(args.loss, train, args.workers, args.device, counts)
    extra = LOSSES[args.loss].auxiliary
    given = getattr(args, "intra", None) is None
    return partial(segmentation_loss, auxiliary_weight=args.aux_weight, pixel_loss=loss, auxiliary_loss=extra,
                   with_boundaries=given)  # fmt: skip


def pseudo_label_loss(
    args: argparse.Namespace, criterion: SegmentationLoss, train: SegmentationSet
) -> SegmentationLoss:
    """`criterion`, the source's loss, as it is on pseudo-labels: with --target-loss, --mrkld and --lambda-entropy. They
    teach no boundary."""
    loss = criterion.keywords["pixel_loss"]
    if args.target_loss not in (None, args.loss):
        loss = pixel_loss(args.target_loss, train, args.workers, args.device)
    regularise = partial(regularised, mrkld=args.mrkld, entropy=args.lambda_entropy)
    extra = LOSSES[args.target_loss or args.loss].auxiliary
    return partial(
        criterion,
        pixel_loss=partial(regularise, pixel_loss=loss),
        auxiliary_loss=extra and partial(regularise, pixel_loss=extra),
        with_boundaries=False,
    )


def pixel_loss(
    name: str, train: SegmentationSet, workers: int, device: torch.device, counts: Tensor | None = None
) -> PixelLoss:
    """A loss of `LOSSES`. Where it has class weights, they are printed; they come from the classes of `train`, the
    labelled training set, or from its `counts` (`class_counts`) where these are known already."""
    loss = LOSSES[name]
    if loss.class_weights is None:
        return loss.function
    counts = class_counts(train, workers) if counts is None else counts
    weights = loss.class_weights(*class_frequencies(counts))
    named = zip(train.classes.names, weights.tolist(), strict=True)
    print(f"class weights from {train.name}: {', '.join(f'{title} {weight:.2f}' for title, weight in named)}")
    return partial(loss.function, weight=weights.to(device))


def sgd(model: nn.Module, lr: float, weight_decay: float) -> SGD:
    """SGD with momentum 0.9. Biases and normalisation layers (all one-dimensional) have no weight decay. Parts that the
    network names in `rate_factors` have a multiple of the rate."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for decayed in (True, False):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.ndim > 1) == decayed:
                factor = model.rate_factors.get(name.partition(".")[0], 1.0)
                groups.setdefault((factor, decayed), []).append(parameter)
    optimizer = SGD(
        [
            {"params": parameters, "lr": lr * factor, "weight_decay": weight_decay * decayed}
            for (factor, decayed), parameters in groups.items()
        ],
        lr=lr,
        momentum=0.9,
        fused=fused(model),
    )
    if fused(model):
        # In fp16 torch's fused kernel leaves out a step whose gradients overflow, but takes the momentum that it made
        # for it, which is whatever lay in memory, for the last step's. From zero the first step is the same.
        for parameter in itertools.chain.from_iterable(groups.values()):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adam(discriminator: nn.Module, lr: float) -> Adam:
    """AdaptSegNet's for its discriminators."""
    return Adam(discriminator.parameters(), lr=lr, betas=(0.9, 0.99), fused=fused(discriminator))


def fused(model: nn.Module) -> bool | None:
    """Whether an optimizer of the model's parameters steps in one kernel: on a GPU; elsewhere torch's own choice."""
    return True if next(model.parameters()).is_cuda else None


def poly(optimizer: torch.optim.Optimizer, total_steps: int) -> PolynomialLR:
    """The poly schedule, rate * (1 - step / total_steps)^0.9, stepped once an iteration."""
    return PolynomialLR(optimizer, total_steps, power=0.9)
