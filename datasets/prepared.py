"""Prepared data: a set at its working size as memory-mapped arrays, so that no picture is decoded twice.

    PLACE/images-KEY/    uint8 [N, H, W, 3], RGB
    PLACE/labels-KEY/    uint8 [N, H, W], train ids

KEY is a hash of every file's path, size and time and of how they are read and resized, so that a change of any of
these prepares anew. The arrays (`datasets/arrays.py`) hold what `SegmentationSet` would compute from the files, bit for
bit; one that is damaged is made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.bar import tracked
from utils.errors import UserError
from utils.files import sync

from . import labels
from .arrays import Array, write
from .files import stamp
from .geometry import resize_label, resizing
from .loading import loader
from .segmentation import SegmentationSet
from .stream import batches

RESIZING = "torchvision v2, uint8, bilinear antialias; labels nearest-exact"
"""Named in the key; to be changed with `datasets/geometry.py`."""

ROOM = 1.05
"""Free space asked for, over what is written: other processes write too."""


def prepared(
    data: SegmentationSet,
    places: Sequence[Path],
    workers: int,
    with_labels: bool = True,
    skip: bool = False,
    pause: Callable[[], None] = lambda: None,
    on_worker: Callable[[int], None] | None = None,
) -> SegmentationSet:
    """`data`, read from arrays below the first of `places` that can be written to; made first where they are not there.

    with_labels: labels too, at the working size, as training needs them. skip: a file that cannot be read is noted and
    raises `UserError` when it is asked for; else at once. Says what it does; where no place has room the files
    themselves are read on, and that is said. `pause` is called between two files, `on_worker` in every loader worker.
    """

    def array(kind: str) -> Array | None:
        rows = _Rows(data, kind, skip)
        size = data.size[0] * data.size[1] * (3 if kind == "images" else 1)
        reading = loader(rows, workers, size, 1, on_worker=on_worker, batch_size=None)
        return _array(data, kind, places, reading, pause)

    return dataclasses.replace(
        data, images=array("images"), labels=array("labels") if with_labels and data.labelled else None
    )


def _array(
    data: SegmentationSet, kind: str, places: Sequence[Path], reading: DataLoader, pause: Callable[[], None]
) -> Array | None:
    text = json.dumps(_made_from(data, kind), sort_keys=True)
    name, made_from = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}", json.loads(text)
    width, height = data.size
    shape = (len(data), height, width, 3) if kind == "images" else (len(data), height, width)
    gigabytes = np.prod(shape, dtype=float) / 1e9
    opened = partial(Array, shape=shape, made_from=made_from, read=reading.dataset.read)
    free, refused = [], []
    for place in places:
        home = place / name
        try:
            try:
                array = opened(home)
                if all(isinstance(reading.dataset.read(index), UserError) for index in array.bad):
                    return array
                problem = "what could not be read can be read now"
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
                problem = getattr(error, "strerror", None) or error
            if home.exists():
                print(f"{data.name}: {home} is of no use ({problem}); it is made anew", flush=True)
                _remove(home)
            free.append(place)
        except OSError as error:  # another user's, who does not share it: theirs to keep
            refused.append(f"{home}: {error.strerror or error}")
    for place in free:
        try:
            place.mkdir(parents=True, exist_ok=True)
            _keep_from_git(place)
            room = shutil.disk_usage(place).free / 1e9
            if room < ROOM * gigabytes:
                refused.append(f"{place} has {room:.1f} GB free")
                continue
            print(f"{data.name}: preparing {kind} at {width}x{height}, {gigabytes:.2f} GB in {place}", flush=True)
            shown = tracked(_paused(reading, pause), len(reading), f"{data.name}: preparing {kind}", "picture")
            _build(place / name, opened, partial(write, shape=shape, made_from=made_from, rows=iter(shown)))
            return opened(place / name)
        except (OSError, ValueError) as error:
            refused.append(f"{place}: {getattr(error, 'strerror', None) or error}")
    print(f"{data.name}: no place for {gigabytes:.2f} GB of prepared {kind} ({'; '.join(refused)}); the files are read")
    return None


def _keep_from_git(place: Path) -> None:
    """What nobody chose a place for stays out of the repository that it lies in: gigabytes of pixels, and paths."""
    if place.name == ".prepared" and not (place / ".gitignore").exists():
        (place / ".gitignore").write_text("*\n", encoding="utf-8")


def _made_from(data: SegmentationSet, kind: str) -> dict[str, Any]:
    """What the array depends on. Raises `UserError` for a file that is gone."""
    stamps = [stamp(sample.image if kind == "images" else sample.label) for sample in data.samples]
    found = {"files": stamps, "size": list(data.size), "resizing": RESIZING}
    if kind == "images":
        return found | {"reading": None, "resized": resizing()}
    mapping = sorted((data.mapping or {}).items())
    return found | {"reading": [data.encoding, mapping, labels.VERSION, *data.table.key()]}


def _paused(reading: DataLoader, pause: Callable[[], None]) -> Iterator[Tensor | str]:
    for row in batches(reading):
        pause()
        yield row


def _build(home: Path, opened: Callable[[Path], Array], make: Callable[[Path], None]) -> None:
    """Writes beside `home` and moves there when whole: two runs may do so at once, and a killed one leaves no `home`.

    Raises `UserError` for a file that cannot be read, OSError when the disk refuses.
    """
    _remove_abandoned(home)
    building = _beside(home)
    building.mkdir()
    try:
        make(building)
        sync(building)
        try:
            building.rename(home)
        except OSError:
            try:
                opened(home)  # another run was faster, with the same content
            except (OSError, ValueError):
                _remove(home)
                building.rename(home)
        sync(home.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _beside(home: Path, more: str = "") -> Path:
    return home.with_name(f"{home.name}.{socket.gethostname()}{more}.{os.getpid()}")


def _remove(home: Path) -> None:
    """At once, so that nobody finds half of it. Raises OSError."""
    removed = _beside(home, ".old")
    shutil.rmtree(removed, ignore_errors=True)
    home.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _remove_abandoned(home: Path) -> None:
    """What a killed process of this host left of the same array. In a container the next one often has its number."""
    for left in home.parent.glob(f"{home.name}.{socket.gethostname()}.*"):
        process = left.suffix.removeprefix(".")
        if process.isdecimal() and (int(process) == os.getpid() or not _works(int(process))):
            shutil.rmtree(left, ignore_errors=True)


def _works(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Rows(Dataset):
    """Every picture, or every label at the working size, once; with `skip` a message in place of one that cannot be
    read."""

    def __init__(self, data: SegmentationSet, kind: str, skip: bool) -> None:
        self.data, self.kind, self.skip = data, kind, skip

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor | str | UserError:
        row = self.read(index)
        return str(row) if self.skip and isinstance(row, UserError) else row

    def read(self, index: int) -> Tensor | UserError:
        """[H, W, 3] or [H, W]."""
        try:
            if self.kind == "images":
                return self.data.image(index).permute(1, 2, 0)
            return resize_label(self.data.label(index), self.data.size)
        except UserError as error:
            return error
