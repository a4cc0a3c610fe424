"""Whose statistics batch normalisation keeps. AdaBN (Li et al., 2016): the target's, re-estimated after training and
nothing else changed; or, in a training that sees both domains, the target's alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.appearance import to_float


@torch.no_grad()
def adapt_batch_norm(model: nn.Module, images: Iterable[Tensor], device: torch.device) -> int:
    """Replaces the running mean and variance of every batch normalisation by the plain average over the batches.

    images: batches uint8 [B, 3, H, W] of unlabelled target pictures; a batch of one is passed over (a variance over
    one pooled value does not exist). Returns the number of pictures used. Raises ValueError when none was, and for a
    network without batch normalisation.
    The model is left in evaluation mode; layers that only training uses are reset, and stay so.
    """
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        raise ValueError("this network has no batch normalisation, so AdaBN has nothing to adapt")
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    used = passes = 0
    for batch in images:
        if len(batch) > 1:
            passes += 1
            for layer in layers:
                layer.momentum = 1 / passes  # the cumulative average; torch's own would read its count off the device
            model(to_float(batch.to(device, non_blocking=True)))
            used += len(batch)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
        layer.eval()
    if used == 0:
        raise ValueError("AdaBN needs at least two target pictures in a batch")
    return used


@contextlib.contextmanager
def statistics_kept(model: nn.Module, kept: bool = True) -> Iterator[None]:
    """Within it, forward passes in training mode normalise by their batch as always, and leave the running mean and
    variance as they are. With `kept=False` nothing is different."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)] if kept else []
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
