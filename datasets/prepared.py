"""Prepared data: a set at its working size as memory-mapped arrays, so that no picture is decoded twice.

    PLACE/images-KEY/array.npy    uint8 [N, H, W, 3], RGB
    PLACE/labels-KEY/array.npy    uint8 [N, H, W], train ids
    .../files.json                what it was made from, and which files could not be read

KEY is a hash of every file's path, size and time and of how they are read and resized, so that a change of any of
these prepares anew. The arrays hold what `SegmentationSet` would compute from the files, bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.errors import UserError

from . import labels
from .files import stamp
from .geometry import resize_label
from .segmentation import SegmentationSet
from .stream import batches

RESIZING = "torchvision v2, uint8, bilinear antialias; labels nearest-exact"
"""Named in the key; to be changed with `datasets/geometry.py`."""

ROOM = 1.05
"""Free space asked for, over what is written: other processes write too."""


class Array:
    """Pictures or labels of a prepared set; opened by each process that reads it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bad = {int(index): said for index, said in json.loads((home / "files.json").read_text())["bad"].items()}
        self._rows: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}  # a worker opens its own: a memory map would be copied to it whole

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, H, W] or [H, W]. Raises `UserError` for a file that could not be read."""
        if index in self.bad:
            raise UserError(self.bad[index])
        if self._rows is None:
            # Mode c is copy-on-write: torch asks for arrays that can be written to, and the file never is.
            self._rows = np.load(self.home / "array.npy", mmap_mode="c")
        row = torch.from_numpy(self._rows[index])
        return row.permute(2, 0, 1) if row.ndim == 3 else row


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
        loader = DataLoader(rows, batch_size=None, num_workers=workers, worker_init_fn=on_worker)
        return _array(data, kind, places, loader, pause)

    return dataclasses.replace(
        data, images=array("images"), labels=array("labels") if with_labels and data.labelled else None
    )


def _array(
    data: SegmentationSet, kind: str, places: Sequence[Path], loader: DataLoader, pause: Callable[[], None]
) -> Array | None:
    made_from = _made_from(data, kind)
    name = f"{kind}-{hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]}"
    for place in places:
        if (place / name / "files.json").is_file():
            found = Array(place / name)
            if all(isinstance(loader.dataset.read(index), UserError) for index in found.bad):
                return found
            shutil.rmtree(place / name)  # what could not be read then, by rights or by luck, can be read now
    width, height = data.size
    shape = (len(data), height, width, 3) if kind == "images" else (len(data), height, width)
    gigabytes = np.prod(shape, dtype=float) / 1e9
    refused = []
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            _keep_from_git(place)
            free = shutil.disk_usage(place).free / 1e9
            if free < ROOM * gigabytes:
                refused.append(f"{place} has {free:.1f} GB free")
                continue
            print(f"{data.name}: preparing {kind} at {width}x{height}, {gigabytes:.2f} GB in {place}", flush=True)
            _build(loader, place / name, shape, made_from, pause)
            return Array(place / name)
        except OSError as error:
            refused.append(f"{place}: {error.strerror or error}")
    print(f"{data.name}: no room for {gigabytes:.2f} GB of prepared {kind} ({'; '.join(refused)}); the files are read")
    return None


def _keep_from_git(place: Path) -> None:
    """What nobody chose a place for stays out of the repository that it lies in: gigabytes of pixels, and paths."""
    if place.name == ".prepared" and not (place / ".gitignore").exists():
        (place / ".gitignore").write_text("*\n", encoding="utf-8")


def _made_from(data: SegmentationSet, kind: str) -> dict[str, Any]:
    """What the array depends on. Raises `UserError` for a file that is gone."""
    stamps = [stamp(sample.image if kind == "images" else sample.label) for sample in data.samples]
    mapping = sorted((data.mapping or {}).items())
    reading = None if kind == "images" else [data.encoding, mapping, labels.VERSION, *data.table.key()]
    return {"files": stamps, "size": list(data.size), "reading": reading, "resizing": RESIZING}


def _build(
    loader: DataLoader, home: Path, shape: tuple[int, ...], made_from: dict[str, Any], pause: Callable[[], None]
) -> None:
    """Writes beside `home` and moves there when whole: two runs may do so at once, and a killed one leaves no `home`.

    Raises `UserError` for a file that cannot be read, OSError when the disk refuses.
    """
    _remove_abandoned(home)
    building = home.with_name(f"{home.name}.{socket.gethostname()}.{os.getpid()}")
    building.mkdir()
    try:
        array = np.lib.format.open_memmap(building / "array.npy", mode="w+", dtype=np.uint8, shape=shape)
        _take_blocks(building / "array.npy")
        bad = {}
        shown = tqdm(batches(loader), total=len(loader), desc=home.name, disable=None, leave=False)
        for index, row in enumerate(shown):
            pause()
            if isinstance(row, str):
                bad[index] = row
            else:
                array[index] = row.numpy()  # [H, W, 3] or [H, W]
        array.flush()
        (building / "files.json").write_text(json.dumps(made_from | {"bad": bad}), encoding="utf-8")
        try:
            building.rename(home)
        except OSError:
            if not (home / "files.json").is_file():  # another run was faster, with the same content
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _take_blocks(path: Path) -> None:
    """Takes the file's blocks now: a disk that fills up under a memory map kills the process that writes."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _remove_abandoned(home: Path) -> None:
    """What a killed process of this host left of the same array."""
    for left in home.parent.glob(f"{home.name}.{socket.gethostname()}.*"):
        process = left.suffix.removeprefix(".")
        if process.isdecimal() and not _works(int(process)):
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
