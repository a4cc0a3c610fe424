"""How often each class occurs in a labelled set."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.errors import UserError

from .labels import CLASS_NAMES
from .segmentation import SegmentationSet
from .stream import batches


def class_frequencies(data: SegmentationSet, workers: int) -> tuple[Tensor, Tensor]:
    """(labelled pixels of each class, labelled pixels of all pictures that show the class): int64 [19] each.

    Every label file is read once, at its own size. Raises `UserError` for a label that cannot be read.
    """
    loader = DataLoader(_Counts(data), batch_size=None, num_workers=workers)
    shown = tqdm(batches(loader), total=len(data), desc=f"class frequencies of {data.name}", disable=None, leave=False)
    pixels = torch.zeros(len(CLASS_NAMES), dtype=torch.int64)
    where_present = torch.zeros_like(pixels)
    for counts in shown:
        pixels += counts
        where_present += (counts > 0) * counts.sum()
    return pixels, where_present


class _Counts(Dataset):
    def __init__(self, data: SegmentationSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor | UserError:
        try:
            label = self.data.label(index)
        except UserError as error:
            return error
        return torch.bincount(label.flatten().long(), minlength=256)[: len(CLASS_NAMES)]
