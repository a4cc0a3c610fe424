"""Rare-class sampling of labelled pictures (DAFormer: Hoyer et al., CVPR 2022, section 3.2): a class is drawn first, a
rare one more often, then a picture that shows it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from utils.errors import UserError

from .labels import Classes

TEMPERATURE = 0.01
"""T of P(c) = exp((1 - f_c) / T) / sum_c' exp((1 - f_c') / T) (DAFormer, equation 8)."""

SHARE = 3000 / (1914 * 1052)
"""Of a picture's pixels: so many must a class have for the picture to show it. DAFormer asks for 3000 in GTA5's labels;
taken as a share it means the same at every size."""

TRIES = 10
"""Random crops at most that are drawn until one shows the class too (DAFormer's public code, which asks for 1500 pixels
at 1280x720: nearly the same share)."""


class RareClasses:
    """Draws (class, picture) by what `datasets.frequencies.class_counts` counted, int64 [N, C + 1]: P(c) over the
    classes that occur, f_c their share of the labelled pixels, then any picture of the class with one probability. A
    class that no picture shows to `SHARE` is drawn from all that have a pixel of it. Raises `UserError` where no class
    occurs."""

    def __init__(self, counts: Tensor, classes: Classes) -> None:
        pixels, self.names = counts.numpy(), classes.names
        shares = pixels[:, :-1] / np.maximum(1, pixels.sum(1, keepdims=True))
        if not pixels[:, :-1].any():
            raise UserError("rare-class sampling: no label of the source holds a class")
        frequency = pixels[:, :-1].sum(0) / pixels[:, :-1].sum()
        # Less the rarest's exponent, which cancels: the largest of all is 0.
        weight = np.exp((frequency[frequency > 0].min() - frequency) / TEMPERATURE) * (frequency > 0)
        self.probability = weight / weight.sum()  # float64 [C]
        shown = np.where((shares >= SHARE).any(0), shares >= SHARE, shares > 0)
        self.pictures = [np.flatnonzero(column) for column in shown.T]

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """(class, index of the picture)."""
        chosen = int(rng.choice(len(self.probability), p=self.probability))
        return chosen, int(rng.choice(self.pictures[chosen]))

    @staticmethod
    def shows(label: Tensor, chosen: int) -> bool:
        """Whether a crop, uint8 [H, W], shows the class."""
        return int((label == chosen).sum()) >= SHARE * label.numel()

    def __str__(self) -> str:
        """The probabilities, in words."""
        rows = [(p, name, len(of)) for p, name, of in zip(self.probability, self.names, self.pictures, strict=True)]
        return ", ".join(f"{name} {100 * p:.1f}% of {n} pictures" for p, name, n in sorted(rows, reverse=True) if p > 0)
