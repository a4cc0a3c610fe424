"""Scalars of the steps, read seldom: a reading waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.distributed import mean_over_ranks


class Scalars:
    """name -> the values of each step since the last reading. All ranks add the same names in the same steps."""

    def __init__(self) -> None:
        self._values: dict[str, dict[int, list[Tensor]]] = {}

    def add(self, step: int, values: dict[str, Tensor | float]) -> None:
        """A name that comes several times in a step, as the parts of its batch do, stands for the mean."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            self._values.setdefault(name, {}).setdefault(step, []).append(value)

    def read(self) -> dict[str, dict[int, float]]:
        """name -> step -> value, the mean over ranks; begins anew. Waits for the device and for all ranks."""
        found, self._values = self._values, {}
        stacked = {name: torch.stack([mean(parts) for parts in steps.values()]) for name, steps in found.items()}
        read = {name: mean_over_ranks(values).tolist() for name, values in stacked.items()}
        return {name: dict(zip(steps, read[name], strict=True)) for name, steps in found.items()}


def mean(values: list[Tensor]) -> Tensor:
    """Of scalars; one alone is itself, to the bit."""
    return values[0] if len(values) == 1 else torch.stack(values).mean()
