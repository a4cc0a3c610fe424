"""How far features mix two domains: whether a picture's nearest neighbours are of the other one.

AdaptSegNet's authors look for a picture of one domain among those of both, before and after adaptation. This is a
figure of it, without labels. It is no quality of a segmentation: aligned statistics alone raise it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mixing(source: Tensor, target: Tensor, k: int) -> float:
    """Features [n, D] of n pictures of each domain -> the share of each picture's k nearest others (cosine) that are of
    the other domain, over its chance level n / (2n - 1): 0 where the domains are apart, 1 where they are mixed.

    Raises ValueError unless there are as many of each, and more than k.
    """
    n = len(source)
    if source.shape != target.shape or n <= k:
        raise ValueError(f"{k} neighbours need as many pictures of each domain, and more than {k}, found {n}")
    features = F.normalize(torch.cat((source, target)).double(), dim=1)
    likeness = (features @ features.T).fill_diagonal_(-torch.inf)
    others = (likeness.topk(k, dim=1).indices < n) != (torch.arange(2 * n, device=source.device) < n)[:, None]
    return float(others.double().mean()) / chance(n)


def chance(n: int) -> float:
    """Of 2n - 1 others, n are of the other domain."""
    return n / (2 * n - 1)
