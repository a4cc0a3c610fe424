"""FADA (Wang et al., ECCV 2020): a discriminator that tells the domains apart class by class.

For every place of the feature map it has 2K scores, K classes of the source and then the same of the target. What a
place shows, nobody says on the target; the segmenter's own softmax stands for it, softened. So features of a road are
drawn to the source's roads, where AdaptSegNet draws features of the target to those of the source, whatever they show.

The constants are those of the public code (JDAI-CV/FADA, train_adv.py). It enlarges the 2K scores to the picture's
size. Here they are compared where they are made, at 1/8, and the logits are brought there: 64 times less memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .adversarial import TARGET, Gan

TEMPERATURE = 1.8
"""That the segmenter's logits are divided by in its soft labels. The public code divides them in its cross-entropy on
the source too, which the paper does not say. Here that loss is as in every other method: a network that learnt divided
logits would be too sure for the thresholds of those that label with it."""
SUREST = 0.9
"""Larger entries of a soft label are this. The rest is left as it is, so that a sure place counts less."""


@torch.no_grad()
def soft_labels(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits [B, K, H, W] -> float32 [B, K, *size]: their softmax at `TEMPERATURE`, at most `SUREST`. No gradient
    passes."""
    small = F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return (small / TEMPERATURE).softmax(dim=1).clamp(max=SUREST)


def class_level(scores: Tensor, domain: float, soft: Tensor) -> Tensor:
    """The mean over places of -sum_c a_c log q_c: q is the softmax over all 2K scores [B, 2K, h, w], of which the
    domain's half counts; a = soft, [B, K, h, w]. The discriminator's loss, and with the source's label for the target's
    features the segmenter's."""
    source, target = F.log_softmax(scores.float(), dim=1).chunk(2, dim=1)
    return -(soft * (target if domain == TARGET else source)).sum(dim=1).mean()


def margin(scores: Tensor) -> Tensor:
    """[B, 2K, h, w] -> [B, h, w]: by how much the target's classes together are likelier than the source's, in
    nats."""
    source, target = scores.float().chunk(2, dim=1)
    return target.logsumexp(dim=1) - source.logsumexp(dim=1)


CLASS_LEVEL = Gan(class_level, margin, "cross-entropy with soft labels of class and domain (FADA)", by_class=True)
