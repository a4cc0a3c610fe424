"""Several labelled sets as one source: each is read by its own encoding, and prepared on its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.utils.data import Dataset

from .labels import Classes
from .pairs import Sample
from .segmentation import SegmentationSet, shared_classes


@dataclass(frozen=True)
class MixedSet(Dataset):
    """One part's pictures after the other's; training draws from the parts in turn (`datasets/stream.py`), whatever
    their numbers of pictures. It stands for a `SegmentationSet` wherever a source does. Parts have one working size.
    """

    parts: tuple[SegmentationSet, ...]

    @property
    def name(self) -> str:
        return " and ".join(part.name for part in self.parts)

    @property
    def size(self) -> tuple[int, int]:
        """The working size (width, height)."""
        return self.parts[0].size

    @property
    def classes(self) -> Classes:
        """Raises `UserError` where the parts have not the same."""
        return shared_classes(*self.parts)

    @property
    def labelled(self) -> bool:
        """Whether label files may be opened at all."""
        return all(part.labelled for part in self.parts)

    @cached_property
    def samples(self) -> list[Sample]:
        """Their names begin with their part's: GTA5/00001."""
        return [Sample(f"{part.name}/{s.name}", s.image, s.label) for part in self.parts for s in part.samples]

    @cached_property
    def spans(self) -> tuple[range, ...]:
        """Which numbers each part's pictures have."""
        ends = list(itertools.accumulate(len(part) for part in self.parts))
        return tuple(range(end - len(part), end) for part, end in zip(self.parts, ends, strict=True))

    def _at(self, index: int) -> tuple[SegmentationSet, int]:
        place = next(place for place, span in enumerate(self.spans) if index in span)
        return self.parts[place], index - self.spans[place].start

    def __len__(self) -> int:
        return self.spans[-1].stop

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        part, own = self._at(index)
        return part[own]

    def training_pair(self, index: int) -> tuple[Tensor, Tensor | None]:
        """As `SegmentationSet` has it; so are the next two."""
        part, own = self._at(index)
        return part.training_pair(own)

    def image(self, index: int) -> Tensor:
        part, own = self._at(index)
        return part.image(own)

    def label(self, index: int) -> Tensor | None:
        part, own = self._at(index)
        return part.label(own)

    def hold_out(self, share: float) -> tuple[MixedSet, MixedSet | None]:
        """(the rest, the held-out share of each part; None for a share of 0)."""
        kept, held = zip(*(part.hold_out(share) for part in self.parts), strict=True)
        return MixedSet(kept), None if None in held else MixedSet(held)

    def limited(self, limit: int | None) -> MixedSet:
        """At most `limit` pictures of each part, as --limit takes them."""
        return MixedSet(tuple(part.limited(limit) for part in self.parts))
