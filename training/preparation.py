"""Where a run reads its sets from: arrays that hold every picture decoded, or the files themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import SegmentationSet
from datasets.mixed import MixedSet
from datasets.prepared import prepared
from utils.distributed import first_then_others
from utils.interruption import worker_signals


@dataclass(frozen=True)
class Preparation:
    """The arrays lie below `cache`. Where none is named they lie below the data's own root or, where that cannot be
    written to, in the folder `beside`. With `off` the files are read. `pause` is called between two of them, on all
    ranks at once."""

    cache: Path | None
    beside: Path
    off: bool
    workers: int
    pause: Callable[[], None]

    def __call__(self, data: SegmentationSet, with_labels: bool, skip: bool = False) -> SegmentationSet:
        """The set as the run reads it; made by rank 0 where it is not there. Arguments as of `prepared`."""
        if self.off:
            return data
        if len(data.parts) > 1:
            return MixedSet(tuple(self(part, with_labels, skip) for part in data.parts))
        own = [place / ".prepared" for place in (data.root, self.beside) if place is not None]
        places = own if self.cache is None else [self.cache]
        with first_then_others(self.pause) as pause:
            return prepared(data, places, self.workers, with_labels, skip, pause, worker_signals)
