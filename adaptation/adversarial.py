"""The losses of adversarial adaptation in output space: what discriminator and segmenter say to each other.

AdaptSegNet (Tsai et al., CVPR 2018), ADVENT (Vu et al., CVPR 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .entropy import weighted_self_information
from .losses import full_precision

SOURCE, TARGET = 0.0, 1.0
"""The domain labels, as AdaptSegNet has them."""


def softmax(logits: Tensor) -> Tensor:
    """AdaptSegNet's discriminator input: logits [B, C, H, W] -> probabilities of the same shape."""
    return logits.float().softmax(dim=1)


INPUTS = {"softmax": softmax, "entropy": weighted_self_information}


def vanilla(scores: Tensor, domain: float) -> Tensor:
    """Binary cross-entropy of the score map against one domain label, on logits; the mean over all scores."""
    scores = full_precision(scores)
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


def least_squares(scores: Tensor, domain: float) -> Tensor:
    """LSGAN (Mao et al., ICCV 2017): the mean of (score - domain)^2, on the scores themselves."""
    scores = full_precision(scores)
    return F.mse_loss(scores, torch.full_like(scores, domain))


GANS = {"vanilla": vanilla, "least-squares": least_squares}


def domain_accuracy(scores: Tensor, domain: float, gan: str) -> Tensor:
    """Share of the score map that names the right domain: 0.5 is a discriminator that cannot tell."""
    boundary = 0.0 if gan == "vanilla" else 0.5
    return ((scores > boundary) == (domain == TARGET)).float().mean()
