"""IntraDA (Pan et al., CVPR 2020): adaptation within the target, from its easy pictures to its hard ones.

A network ranks the target's pictures by how unsure it is of them. Of the easy ones its predictions serve as labels, and
they become the source of a second adaptation; the hard ones are its target. Pictures with few classes rank as easy.

Two things of the public code are not done here. It chooses the first network by the target's val labels. And it has a
factor for SYNTHIA, by which pictures with many rare classes rank as easier. Whoever follows its README has it for GTA5
too, since `--normalize False` is parsed as true.
"""

from __future__ import annotations

from torch import Tensor

from .entropy import prediction_entropy


def mean_entropy(logits: Tensor) -> Tensor:
    """Logits [B, C, H, W] -> [B]: each picture's mean entropy over its pixels, from 0 (sure) to 1 (all classes alike);
    the paper's R, of which only the order counts."""
    return prediction_entropy(logits).mean(dim=(1, 2))


def easy_and_hard(entropies: Tensor, share: float) -> tuple[list[int], list[int]]:
    """Mean entropies [N] -> the numbers of the pictures, both parts from sure to unsure: the first int(N * share), and
    the rest. Equal ones keep their order. The published share is 0.67."""
    ranked = entropies.argsort(stable=True).tolist()
    easy = int(len(ranked) * share)
    return ranked[:easy], ranked[easy:]
