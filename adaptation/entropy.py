"""The entropy of predictions: what AdvEnt shows its discriminator, what MinEnt and FDA minimise, what a run logs.

Everything is computed from the log-softmax, so that a probability of exactly 0 gives 0 and a finite gradient.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def weighted_self_information(logits: Tensor) -> Tensor:
    """[B, C, H, W] -> the same shape: I_c = -p_c log2 p_c / log2 C (ADVENT, Vu et al., CVPR 2019, equation 8)."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return -log_p.exp() * log_p / math.log(logits.shape[1])


def prediction_entropy(logits: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W]: -sum_c p_c log p_c / log C, from 0 (sure) to 1 (all classes alike)."""
    return weighted_self_information(logits).sum(dim=1)


def min_entropy_loss(logits: Tensor, share: float = 1.0) -> Tensor:
    """MinEnt (ADVENT, equations 2 and 3): the mean entropy over pixels, from 0 to 1. A share below 1 takes so many of
    each picture's pixels, those of the highest entropy (ADVENT's entropy range, 0.3)."""
    entropy = prediction_entropy(logits)
    if share < 1:
        each = entropy.flatten(1)
        entropy = each.topk(max(1, int(share * each.shape[1])), dim=1).values
    return entropy.mean()


def class_prior_loss(logits: Tensor, least: Tensor) -> Tensor:
    """ADVENT's class prior: what each class lacks of its share of a picture, sum_c max(0, least_c - P_c), the mean over
    pictures; P_c is the picture's mean probability. Logits [B, C, H, W]; least [C]: mu times the class's share of the
    source's pixels. Per picture, so mu (0.5) is what lets a picture have less of a class."""
    mean = logits.float().softmax(dim=1).mean(dim=(2, 3))
    return (least - mean).clamp(min=0).sum(dim=1).mean()


def charbonnier_entropy_loss(logits: Tensor, eta: float = 2.0) -> Tensor:
    """FDA's regulariser (Yang and Soatto, CVPR 2020, equation 5): mean over pixels of (entropy^2 + 1e-8)^eta."""
    return (prediction_entropy(logits).square() + 1e-8).pow(eta).mean()
