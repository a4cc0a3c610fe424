"""What a run trains on: the batches of every step, and which pictures they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from datasets import SegmentationSet
from datasets.geometry import Geometry
from datasets.rare_classes import RareClasses
from datasets.stream import Share, TrainingStream, batches, training_loader
from utils.distributed import rank, ranks
from utils.interruption import worker_signals
from utils.tables import counted

from .bad_samples import BadSamples
from .preparation import Preparation
from .progress import Progress


class Streams:
    """A run's training streams. Of every batch each rank reads its share, in `accumulate` parts.

    skip: a picture that cannot be read is replaced, and listed in `bad`; else it stops the run.
    """

    def __init__(
        self,
        progress: Progress,
        prepare: Preparation,
        bad: BadSamples,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        skip: bool,
        workers: int,
        device: torch.device,
    ) -> None:
        self.progress, self.prepare, self.bad = progress, prepare, bad
        self.batch_size, self.accumulate, self.seed, self.skip = batch_size, accumulate, seed, skip
        self.workers, self.device = workers, device
        self._streams: list[TrainingStream] = []

    def add(
        self, data: SegmentationSet, geometry: Geometry, rare: RareClasses | None = None, pictures: int | None = None
    ) -> Iterator[Any]:
        """The set's batches on the device, from the run's present step to its last, as `datasets.stream` draws them.
        pictures: of a batch, where it is not the run's batch size; divisible as that is."""
        pictures = pictures or self.batch_size
        for part in data.parts:
            in_turn = len(part) * len(data.parts)
            if in_turn < pictures:
                fewer = max(2, in_turn) * self.batch_size // pictures
                print(
                    f"note: {part.name} has {counted(len(part), 'picture')} and a batch {pictures}: some come twice "
                    f"in it; take more pictures, or --batch-size {fewer}"
                )
        data = self.prepare(data, with_labels=True, skip=self.skip)
        draws = self.progress.total_steps * pictures
        stream = TrainingStream(data, geometry, self.seed, len(self._streams), draws, self.skip, rare)
        self._streams.append(stream)
        return self._batches(stream)

    def _batches(self, stream: TrainingStream) -> Iterator[Any]:
        batch = len(stream) // self.progress.total_steps
        share = Share(self.progress.step * batch, len(stream), batch, rank(), ranks())
        part = batch // ranks() // self.accumulate
        loader = training_loader(stream, part, share, self.workers, self.device.type == "cuda", worker_signals)
        for drawn, problems in batches(loader):
            if problems:
                self.bad.note(stream.data, problems)
            yield _to(drawn, self.device)

    def pictures(self, step: int) -> str:
        """What the batch of a step (from 1) was drawn from, by name."""

        def names(stream: TrainingStream) -> Iterator[str]:
            batch = len(stream) // self.progress.total_steps
            for draw in range((step - 1) * batch, step * batch):
                yield stream.data.samples[stream.index(draw)].name

        return "; ".join(f"{stream.data.name} {', '.join(names(stream))}" for stream in self._streams)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(part.to(device, non_blocking=True) for part in batch)
