"""Several networks as one: the mean of their softmax (multi-band transfer of FDA, Yang and Soatto, CVPR 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanSoftmax(nn.Module):
    """Networks over the same classes. images [B, 3, H, W] in [0, 1] -> logits [B, C, H, W] whose softmax is the mean
    of the networks' softmax: its logarithm."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        total = None
        for network in self.networks:
            log_p = F.log_softmax(network(images).float(), dim=1)
            total = log_p if total is None else torch.logaddexp(total, log_p)
        return total - math.log(len(self.networks))


class Mirrored(nn.Module):
    """A network that sees pictures as in a mirror; its logits are turned back."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.flip(-1)).flip(-1)
