"""A list of samples as a data set; what Cityscapes and GTA5 share once their files are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from .files import read_image, read_label
from .geometry import resize_image, resize_label
from .labels import Classes, LabelTable, require_same_classes
from .pairs import Sample, limited, split_off


@dataclass(frozen=True)
class SegmentationSet(Dataset):
    """Pictures at the working size, labels at their own.

    name: what messages call it; of a split, TITLE SPLIT. size: working size (width, height). encoding, mapping, table:
    see `files.read_label`. same_shape: whether a picture and its label must have one aspect ratio (a few pairs of GTA5
    have not). root: what the user named, where prepared arrays may lie. images, labels: those arrays
    (`datasets/prepared.py`), where there are any; else the files are read. encoding_flag: with which the user says the
    encoding, where there is a choice.
    """

    name: str
    samples: list[Sample]
    size: tuple[int, int]
    encoding: str = "ids"
    mapping: dict[int, int] | None = field(default=None, repr=False)
    same_shape: bool = True
    root: Path | None = None
    images: Sequence[Tensor] | None = field(default=None, repr=False)
    labels: Sequence[Tensor] | None = field(default=None, repr=False)
    table: LabelTable = field(kw_only=True, repr=False)
    encoding_flag: str | None = None

    @property
    def classes(self) -> Classes:
        """What its labels tell apart."""
        return self.table.classes

    @property
    def parts(self) -> tuple[SegmentationSet, ...]:
        """The sets that it is of: itself alone, where a `MixedSet` has several."""
        return (self,)

    @property
    def spans(self) -> tuple[range, ...]:
        """Which numbers each part's pictures have."""
        return (range(len(self)),)

    @property
    def labelled(self) -> bool:
        """Whether label files may be opened at all."""
        return self.samples[0].label is not None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        """For evaluation: uint8 [3, H, W] at the working size, uint8 [h, w] train ids at the label's own size."""
        return self.image(index), self.label(index)

    def training_pair(self, index: int) -> tuple[Tensor, Tensor | None]:
        """For training: uint8 [3, H, W] and uint8 [H, W] train ids, both at the working size."""
        image = self.image(index)
        if self.labels is not None:
            return image, self.labels[index]
        label = self.label(index)
        return image, None if label is None else resize_label(label, self.size)

    def image(self, index: int) -> Tensor:
        """uint8 [3, H, W] RGB at the working size."""
        if self.images is not None:
            return self.images[index]
        return resize_image(read_image(self.samples[index].image), self.size)

    def label(self, index: int) -> Tensor | None:
        """uint8 [h, w] train ids at the file's own size, None where the set is used without labels."""
        path = self.samples[index].label
        return None if path is None else read_label(path, self.encoding, self.table, self.mapping)

    def hold_out(self, share: float) -> tuple[SegmentationSet, SegmentationSet | None]:
        """(the rest, the held-out share, the same for every run; None for a share of 0)."""
        kept, held = split_off(self.samples, share)
        files = replace(self, images=None, labels=None)  # arrays hold all samples
        held_out = replace(files, name=f"{self.name} held out", samples=held) if held else None
        return replace(files, samples=kept), held_out

    def limited(self, limit: int | None) -> SegmentationSet:
        """At most `limit` of its pictures, as --limit takes them."""
        return replace(self, images=None, labels=None, samples=limited(self.samples, limit))


def shared_classes(*sets: SegmentationSet) -> Classes:
    """The classes that the sets have in common. Raises `UserError` where one has others: a network has one list."""
    for other in sets[1:]:
        require_same_classes(sets[0].name, sets[0].classes, other.name, other.classes)
    return sets[0].classes
