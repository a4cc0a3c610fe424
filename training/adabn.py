"""AdaBN on a data set: the pass over its pictures whose statistics `adaptation/adabn.py` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from adaptation.adabn import adapt_batch_norm
from datasets import SegmentationSet
from datasets.geometry import Geometry
from datasets.stream import TrainingStream, batches, training_loader
from utils.errors import UserError
from utils.interruption import worker_signals


def adapt_to(
    model: nn.Module,
    data: SegmentationSet,
    batch_size: int,
    workers: int,
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
) -> int:
    """`adapt_batch_norm` on one pass over an unlabelled set. The rest that fills no batch is left out: it would count
    as much as a whole batch. `pause` is called between two batches. Returns the number of pictures used. Raises
    `UserError` for a set of fewer than two."""
    batch = min(batch_size, len(data))
    stream = TrainingStream(data, Geometry(data.size), seed=0, stream=0, draws=len(data) // batch * batch)
    loader = training_loader(stream, batch, range(len(stream)), workers=workers, pin=False, on_worker=worker_signals)

    def images() -> Iterator[Tensor]:
        for drawn, _ in batches(loader):
            pause()
            yield drawn

    try:
        return adapt_batch_norm(model, images(), device)
    except ValueError as error:
        raise UserError(f"--adapt-bn: {error}") from None
