"""How often each class occurs in a labelled set."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.bar import tracked
from utils.errors import UserError

from .loading import loader
from .segmentation import SegmentationSet
from .stream import batches


def class_counts(data: SegmentationSet, workers: int, skip: bool = False) -> Tensor:
    """Pixels of each class in each picture, last the pixels without a label: int64 [N, C + 1].

    Every label file is read once, at its own size. Raises `UserError` for a label that cannot be read; with `skip` its
    row is 0.
    """
    reading = loader(_Counts(data, skip), workers, 8 * (len(data.classes) + 1), 1, batch_size=None)
    counted = tracked(batches(reading), len(data), f"class frequencies of {data.name}", "picture")
    return torch.stack(list(counted))


def class_frequencies(counts: Tensor) -> tuple[Tensor, Tensor]:
    """What `class_counts` gave -> (labelled pixels of each class, labelled pixels of all pictures that show the class):
    int64 [C] each."""
    labelled = counts[:, :-1]
    return labelled.sum(0), ((labelled > 0) * labelled.sum(1, keepdim=True)).sum(0)


def class_shares(counts: Tensor) -> Tensor:
    """What `class_counts` gave -> each class's share of all labelled pixels, float32 [C]; they sum to 1."""
    pixels = counts[:, :-1].sum(0).double()
    return (pixels / pixels.sum().clamp(min=1)).float()


class _Counts(Dataset):
    def __init__(self, data: SegmentationSet, skip: bool) -> None:
        self.data, self.skip = data, skip

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor | UserError:
        classes = len(self.data.classes)
        try:
            label = self.data.label(index)
        except UserError as error:
            return torch.zeros(classes + 1, dtype=torch.int64) if self.skip else error
        return torch.bincount(label.flatten().long().clamp(max=classes), minlength=classes + 1)
