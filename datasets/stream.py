"""The order in which training sees pictures, and the loaders.

A training stream is one long list of draws: draw k is picture `order[k % n]` of pass `k // n`, moved by a random
generator that knows only (seed, stream, k). Of a set of several parts (`datasets/mixed.py`) draw k is of part k mod the
number of parts, and each part has passes of its own. With rare-class sampling there are no passes, and another
generator that knows no more draws the picture. Nothing depends on the number of workers or on what was drawn before, so
a run that stops after any step goes on exactly where it was, and no picture is lost or doubled where one pass ends and
the next begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import UserError

from .files import picture_size
from .geometry import Geometry
from .loading import loaded, loader
from .rare_classes import TRIES, RareClasses
from .segmentation import SegmentationSet

EVALUATION_BATCH = 4
"""Fixed, so that training and eval.py compute the same convolutions and print the same digits."""


class Replaced(NamedTuple):
    """An item that stands for pictures that cannot be read: their names, and why."""

    item: Any
    problems: dict[str, str]


class TrainingStream(Dataset):
    """Draws of a training set: item k is (image, label) or, for a set without labels, the image alone.

    With `skip` a picture that cannot be read is replaced by the next one of its part that can, the same one every time.
    `rare` draws the pictures of a labelled set by their classes.
    """

    def __init__(
        self,
        data: SegmentationSet,
        geometry: Geometry,
        seed: int,
        stream: int,
        draws: int,
        skip: bool = False,
        rare: RareClasses | None = None,
    ) -> None:
        self.data, self.geometry, self.seed, self.stream, self.draws = data, geometry, seed, stream, draws
        self._passes: dict[int, tuple[int, np.ndarray]] = {}  # of each part
        self.skip, self.rare = skip, rare

    def __len__(self) -> int:
        return self.draws

    def index(self, draw: int) -> int:
        """The picture that this draw takes; every pass is a new permutation."""
        if self.rare is not None:
            return self._class_and_picture(draw)[1]
        spans = self.data.spans
        own, part = divmod(draw, len(spans))
        number, position = divmod(own, len(spans[part]))
        if self._passes.get(part, (None,))[0] != number:
            knows = (self.seed, self.stream, 0, number, *([part] if part else []))
            self._passes[part] = (number, np.random.default_rng(knows).permutation(len(spans[part])))
        return spans[part][int(self._passes[part][1][position])]

    def _class_and_picture(self, draw: int) -> tuple[int, int]:
        return self.rare.draw(np.random.default_rng((self.seed, self.stream, 2, draw)))

    def __getitem__(self, draw: int) -> tuple[Tensor, Tensor] | Tensor | Replaced | UserError:
        index, problems = self.index(draw), {}
        own = next(span for span in self.data.spans if index in span)
        while True:
            try:
                image, label = self.data.training_pair(index)
                break
            except UserError as error:  # given back, not raised: a worker's traceback is no message for a person
                problems[self.data.samples[index].name] = str(error)
                if not self.skip or len(problems) == len(own):
                    return error
                index = own[(index + 1 - own.start) % len(own)]
        rng = np.random.default_rng((self.seed, self.stream, 1, draw))
        item = self._moved(image, label, draw, rng)
        return Replaced(item, problems) if problems else item

    def _moved(self, image: Tensor, label: Tensor | None, draw: int, rng: np.random.Generator) -> Any:
        """Through the geometry; with rare-class sampling until the drawn class is in the crop, a few times at most."""
        moved = self.geometry(image, label, rng)
        if self.rare is not None:
            chosen, tries = self._class_and_picture(draw)[0], 1
            while tries < TRIES and not self.rare.shows(moved[1], chosen):
                moved, tries = self.geometry(image, label, rng), tries + 1
        return moved[0] if label is None else moved


class Share(Sampler[int]):
    """One rank's draws: of every batch, from draw `first` on, the rank-th of `ranks` equal shares."""

    def __init__(self, first: int, last: int, batch: int, rank: int = 0, ranks: int = 1) -> None:
        self.first, self.last, self.batch, self.rank, self.own = first, last, batch, rank, batch // ranks

    def __iter__(self) -> Iterator[int]:
        for start in range(self.first, self.last - self.batch + 1, self.batch):
            yield from range(start + self.rank * self.own, start + (self.rank + 1) * self.own)

    def __len__(self) -> int:
        return (self.last - self.first) // self.batch * self.own


def training_loader(
    stream: TrainingStream,
    batch_size: int,
    draws: Share | range,
    workers: int,
    pin: bool,
    on_worker: Callable[[int], None] | None = None,
) -> DataLoader:
    """The draws in batches, (batch, problems): the batch is (uint8 [B, 3, H, W], uint8 [B, H, W]), or the images alone;
    problems names the pictures that were replaced, and says why. `on_worker` is called in every worker at its start."""
    width, height = stream.data.size
    tensors = 2 if stream.data.labelled else 1
    size = batch_size * width * height * (4 if stream.data.labelled else 3)
    return loader(
        stream, workers, size, tensors, _stack, on_worker, batch_size=batch_size, sampler=draws, pin_memory=pin,
        drop_last=True,
    )  # fmt: skip


def evaluation_loader(
    data: SegmentationSet,
    workers: int,
    on_worker: Callable[[int], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> DataLoader:
    """Batches of (uint8 [B, 3, H, W] at the working size, B labels uint8 [h, w] at their own size, or B None).

    share: (rank, ranks); of the batches that one process would see a rank gets every ranks-th whole."""
    indices = range(len(data))
    whole = [indices[start : start + EVALUATION_BATCH] for start in indices[::EVALUATION_BATCH]]
    rank, ranks = share
    size = EVALUATION_BATCH * 3 * data.size[0] * data.size[1]
    if data.labelled and workers:
        size += EVALUATION_BATCH * math.prod(picture_size(data.samples[0].label))
    return loader(
        _Reported(data), workers, size, 1 + EVALUATION_BATCH, _stack_images, on_worker,
        batch_sampler=whole[rank::ranks],
    )  # fmt: skip


def batches(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches; a `UserError` from a worker is raised here, as the one line it is."""
    for batch in loaded(loader):
        if isinstance(batch, UserError):
            try:
                raise batch
            finally:
                del batch  # else its traceback, this frame and itself hold one another, and the loader's workers
        yield batch


class _Reported(Dataset):
    def __init__(self, data: SegmentationSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None] | UserError:
        try:
            return self.data[index]
        except UserError as error:
            return error


def _first_error(items: list[Any]) -> UserError | None:
    return next((item for item in items if isinstance(item, UserError)), None)


def _stack(items: list[Any]) -> Any:
    problems: dict[str, str] = {}
    for item in items:
        if isinstance(item, Replaced):
            problems |= item.problems
    whole = [item.item if isinstance(item, Replaced) else item for item in items]
    return _first_error(items) or (_batch(whole), problems)


def _batch(items: list[Any]) -> Any:
    """Stacked; pictures channels last in memory, as they come and as the networks want them."""
    if isinstance(items[0], tuple):
        return _batch([image for image, _ in items]), torch.utils.data.default_collate([label for _, label in items])
    return torch.utils.data.default_collate([image.permute(1, 2, 0) for image in items]).permute(0, 3, 1, 2)


def _stack_images(items: list[Any]) -> Any:
    return _first_error(items) or (_batch([item[0] for item in items]), [item[1] for item in items])
