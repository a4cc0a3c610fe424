"""Image translation: the source's pictures in the target's style. `--translation` chooses from `TRANSLATIONS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .fda import fda
from .lab import match_lab


@dataclass(frozen=True)
class Translation:
    """translate(source, target, **settings): float [B, 3, H, W] in [0, 1], pair by pair -> the source's shape.

    settings: the flags that it takes, by name. `title` names it in reports.
    """

    translate: Callable[..., Tensor]
    title: str
    help: str
    settings: tuple[str, ...] = ()


TRANSLATIONS = {
    "fda": Translation(fda, "FDA", "take over the amplitude of the low frequencies", settings=("beta",)),
    "lab": Translation(match_lab, "LAB", "take over mean and deviation of each channel in CIELAB"),
}
