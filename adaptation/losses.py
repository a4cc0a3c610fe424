"""Losses of the segmentation networks. `LOSSES`, at the end, is what `--loss` chooses from.

A pixel loss takes logits [B, C, H, W] and labels uint8 or int64 [B, H, W] with 255 = ignore. It gives a scalar in
float32: 0, with a zero gradient, where no pixel has a label. Where several processes, or the parts of --accumulate,
share a batch, each sums over its own and divides so that the mean over them is the loss of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.labels import IGNORE
from utils.distributed import mean_over_batch, mean_over_ranks

PixelLoss = Callable[[Tensor, Tensor], Tensor]
Outputs = tuple[Tensor, tuple[Tensor, ...]]
"""What a segmenter gives in training: logits [B, C, H, W], and those of its auxiliary heads; [B, 1, H, W] of one that
says where boundaries are."""
SegmentationLoss = Callable[[Outputs, Tensor], Tensor]
"""`segmentation_loss` with its weight and pixel loss bound: (outputs, labels) -> a scalar."""


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the labelled pixels; with class weights [C], their weighted mean (ce, weighted)."""
    total = pixelwise(logits, labels, weight).sum()
    if weight is None:
        return total / labelled_pixels(labels)
    table = F.pad(weight, (0, IGNORE + 1 - len(weight)))
    weights = mean_over_batch(lambda part: table[part.long()].sum(), labels)
    return total / weights.clamp(min=torch.finfo(total.dtype).tiny)


def pixelwise(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of each pixel [B, H, W], 0 where it has no label.

    Not reduced here, where a GPU would sum in no fixed order; and one row a pixel, as channels-last memory has it:
    faster on a CPU.
    """
    rows = full_precision(logits.permute(0, 2, 3, 1).flatten(0, 2))
    losses = F.cross_entropy(rows, labels.long().flatten(), weight, ignore_index=IGNORE, reduction="none")
    return losses.view(labels.shape)


def full_precision(values: Tensor) -> Tensor:
    """What autocast left in half precision as float32; anything else as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def pixels(mask: Tensor) -> Tensor:
    """How many are set, float32."""
    return torch.count_nonzero(mask).float()


def labelled_pixels(labels: Tensor) -> Tensor:
    """What a sum over the labelled pixels is divided by: their number. Where processes or parts share a batch, it is
    the mean over them, so that every pixel of the batch counts alike. Never 0."""
    return mean_over_batch(lambda part: pixels(part != IGNORE), labels).clamp(min=1e-3)


def ohem(logits: Tensor, labels: Tensor, threshold: float = 0.7, at_least: float = 1 / 16) -> Tensor:
    """Online hard example mining (Shrivastava et al., CVPR 2016), by pixels: the mean cross-entropy over the labelled
    pixels whose own class has a probability below `threshold`; where fewer than `at_least` of the batch's pixels are
    so hard, over the hardest that many (both constants as in BiSeNet's public implementations). Each of several
    processes finds the hardest of its own share. So does each part of a batch; it counts by its labelled pixels."""
    losses = pixelwise(logits, labels)
    hardest = losses.detach().flatten().topk(max(1, int(at_least * losses.numel()))).values[-1]
    hard = (labels != IGNORE) & ((losses > -math.log(threshold)) | (losses >= hardest))
    share = mean_over_ranks(pixels(labels != IGNORE)) / labelled_pixels(labels)  # of the batch's parts; 1 without parts
    return share * (losses * hard).sum() / mean_over_ranks(pixels(hard)).clamp(min=1e-3)


hard_pixels: PixelLoss = partial(ohem, threshold=0.9, at_least=1 / 48)
"""OHEM with PIDNet's constants: its public configuration keeps at least 131,072 pixels of 6 pictures of 1024x1024."""


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of (1 - p)^gamma times the cross-entropy, p the probability of the pixel's own class (Lin et al., ICCV
    2017, equation 4, gamma 2); without class weights."""
    losses = pixelwise(logits, labels)
    # expm1 keeps 1 - p exact where p is nearly 1.
    total = ((-torch.expm1(-losses)).clamp(min=0).pow(gamma) * losses).sum()
    return total / labelled_pixels(labels)


def symmetric(logits: Tensor, labels: Tensor, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """Symmetric cross-entropy (Wang et al., ICCV 2019) with ProDA's weights (Zhang et al., CVPR 2021): the mean over
    the labelled pixels of alpha times the cross-entropy plus beta times the reverse one, -sum_c p_c log max(y_c, 1e-4).
    The latter is 9.21 (1 - p), p the probability of the pixel's own class: bounded, so that wrong labels pull less."""
    losses = pixelwise(logits, labels)
    reverse = -math.log(1e-4) * -torch.expm1(-losses)
    return (alpha * losses + beta * reverse).sum() / labelled_pixels(labels)


def weighted_by_pixel(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over the labelled pixels of weight times cross-entropy; weights [B, H, W] (DACS)."""
    total = (pixelwise(logits, labels) * weights).sum()
    return total / labelled_pixels(labels)


def median_frequency_weights(pixels: Tensor, pixels_where_present: Tensor) -> Tensor:
    """Class weights by median-frequency balancing (Eigen and Fergus, ICCV 2015): float32 [C].

    pixels: a class's labelled pixels [C]; pixels_where_present: all labelled pixels of the pictures that show it [C].
    The weight is the median class's frequency over its own; a class that never occurs has weight 1, which no pixel
    uses.
    """
    present = pixels > 0
    frequency = pixels[present].double() / pixels_where_present[present].double()
    weights = torch.ones(len(pixels))
    weights[present] = (frequency.quantile(0.5) / frequency).float()
    return weights


def tempered_weights(pixels: Tensor, pixels_where_present: Tensor) -> Tensor:
    """The square roots of `median_frequency_weights`: float32 [C]. A class a hundred times as rare as another weighs
    ten times as much, not a hundred."""
    return median_frequency_weights(pixels, pixels_where_present).sqrt()


def boundaries(labels: Tensor) -> Tensor:
    """Where a label of another class is at most two pixels away: bool [B, H, W]. Nowhere that a pixel without a label
    is so near: what a random scale leaves empty, and what nobody labelled, has no boundary."""
    ids = labels[:, None].float()
    highest, lowest = F.max_pool2d(ids, 5, stride=1, padding=2), -F.max_pool2d(-ids, 5, stride=1, padding=2)
    return ((highest != lowest) & (highest != IGNORE))[:, 0]


def boundary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """PIDNet's 20 l_1 (Xu et al., CVPR 2023): 20 times the mean binary cross-entropy of boundary logits [B, 1, H, W]
    and `boundaries`. A pixel of a boundary weighs as much as the batch has others, each of those as much as it has
    boundary."""
    edges = boundaries(labels).float()
    share = mean_over_batch(lambda part: boundaries(part).float().mean(), labels)
    weight = share + (1 - 2 * share) * edges
    losses = F.binary_cross_entropy_with_logits(full_precision(logits[:, 0]), edges, reduction="none")
    return 20 * (weight * losses).mean()


def boundary_aware_loss(logits: Tensor, boundary: Tensor, labels: Tensor) -> Tensor:
    """PIDNet's l_3: `hard_pixels` where the boundary logits [B, 1, H, W] are surer than 0.8 of a boundary. Each
    part of a batch is taken by itself, and counts like any other, however few such pixels it has: what later parts hold
    is not known yet."""
    near = torch.sigmoid(boundary.detach()[:, 0]) > 0.8
    return hard_pixels(logits, torch.where(near, labels, torch.full_like(labels, IGNORE)))


def segmentation_loss(
    outputs: Outputs,
    labels: Tensor,
    auxiliary_weight: float = 1.0,
    pixel_loss: PixelLoss = cross_entropy,
    auxiliary_loss: PixelLoss | None = None,
    with_boundaries: bool = True,
) -> Tensor:
    """`pixel_loss` on the main logits plus `auxiliary_weight` times `auxiliary_loss` (None: the same) on each auxiliary
    output. Those of one channel say where boundaries are: they have losses of their own, or none, which suits labels
    that a network made.

    BiSeNet, equation 1: L = l_p + alpha * sum_i l_i, with alpha = 1. PIDNet: L = 0.4 l_0 + 20 l_1 + l_2 + l_3, of the
    extra head, the boundaries, the main logits, and those near boundaries.
    """
    logits, auxiliary = outputs
    loss = pixel_loss(logits, labels)
    for extra in auxiliary:
        if extra.shape[1] > 1:
            loss = loss + auxiliary_weight * (auxiliary_loss or pixel_loss)(extra, labels)
        elif with_boundaries:
            loss = loss + boundary_loss(extra, labels) + boundary_aware_loss(logits, extra, labels)
    return loss


@dataclass(frozen=True)
class Loss:
    """An entry of `LOSSES`: a pixel loss and what `--loss` says of it.

    class_weights: the weights [C] that the function takes as `weight`, from the class frequencies of the training set
    (pixels, pixels_where_present: int64 [C] each). None for a loss that has no such weights. auxiliary: the pixel loss
    of auxiliary logits, where it is another.
    """

    function: Callable[..., Tensor]
    help: str
    class_weights: Callable[[Tensor, Tensor], Tensor] | None = None
    auxiliary: PixelLoss | None = None


LOSSES = {
    "ce": Loss(cross_entropy, "cross-entropy"),
    "ohem": Loss(ohem, "cross-entropy on the hardest pixels only"),
    "focal": Loss(focal, "cross-entropy that counts easy pixels less"),
    "sce": Loss(symmetric, "symmetric cross-entropy, which trusts labels less"),
    "weighted": Loss(cross_entropy, "cross-entropy that counts rare classes more", median_frequency_weights),
    "tempered": Loss(cross_entropy, "as weighted, by the square roots of its weights", tempered_weights),
    "pidnet": Loss(hard_pixels, "as ohem, with PIDNet's constants; auxiliary logits as ce", auxiliary=cross_entropy),
}
