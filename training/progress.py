"""Where a run stands: its steps and epochs, done and planned."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

DEFAULT_EPOCHS = 50


@dataclass
class Progress:
    """The counters that all parts of a run read. `Run` alone moves them on.

    step: steps done. epoch: the one in progress, from 1. closed: epochs done and evaluated.
    """

    total_steps: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    closed: int = 0

    @classmethod
    def planned(cls, pictures: int, batch_size: int, epochs: int | None, max_steps: int | None) -> Progress:
        """A run over so many training pictures. An epoch is as many whole batches as one pass has; the pictures that
        are left over open the next pass. With `epochs` and `max_steps` the earlier one ends the run."""
        steps_per_epoch = max(1, pictures // batch_size)
        epochs = epochs or (sys.maxsize if max_steps else DEFAULT_EPOCHS)
        return cls(min(epochs * steps_per_epoch, max_steps or sys.maxsize), steps_per_epoch)

    def __str__(self) -> str:
        """`step 5 of 40 (epoch 2)`."""
        return f"step {self.step} of {self.total_steps}" + (f" (epoch {self.epoch})" if self.epoch else "")

    @property
    def epochs(self) -> int:
        """How many there are in all."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def first_step(self) -> int:
        """The steps that are done when the epoch in progress begins."""
        return (self.epoch - 1) * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The steps that are done when the epoch in progress ends."""
        return min(self.epoch * self.steps_per_epoch, self.total_steps)

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.total_steps

    @property
    def all_closed(self) -> bool:
        """Whether no epoch is left."""
        return self.closed * self.steps_per_epoch >= self.total_steps

    @property
    def waits_for_evaluation(self) -> bool:
        """Whether the epoch's steps are done and its evaluation is not."""
        return self.closed < self.epoch and self.step == self.last_step

    def recount(self, evaluated: bool) -> None:
        """Counts closed epochs anew, since another batch size or set makes other epochs. One that ends at the present
        step stays open unless it was evaluated."""
        self.closed = (self.step if evaluated else max(0, self.step - 1)) // self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"step": self.step, "epoch": self.epoch, "closed": self.closed}

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        self.step, self.epoch, self.closed = checkpoint["step"], checkpoint["epoch"], checkpoint["closed"]
