"""Arrays of a prepared set on disk, which vouch for their content.

    HOME/array.npy    uint8 [N, H, W, 3] or [N, H, W]
    HOME/files.json   what it was made from, the CRC-32 of every row, and which files could not be read

Nothing of what stands there is believed: the record must name what the array should be made from, and a row is compared
with its checksum when a run first reads it. A row that is not what was written comes from its file.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import MAX_JSON, read_json

CONTENT, RECORD = "array.npy", "files.json"


class Array:
    """Pictures or labels of a prepared set. shape: [N, ...]; made_from: what `write` was told; read(index): a row from
    its file, or why it cannot be had.

    Raises OSError when it is not there or cannot be read, ValueError when it is not whole, or another's.
    """

    def __init__(
        self, home: Path, shape: tuple[int, ...], made_from: dict[str, Any], read: Callable[[int], Tensor | UserError]
    ) -> None:
        self.home, self.shape, self.read = home, shape, read
        record = read_json(home / RECORD, MAX_JSON + 1000 * len(self))
        if not isinstance(record, dict) or not made_from.items() <= record.items():
            raise ValueError(f"{RECORD} is another set's, or torn")
        self._checksums, bad, self._bytes = (record.get(key) for key in ("checksums", "bad", "bytes"))
        if not isinstance(self._checksums, list) or len(self._checksums) != len(self) or not isinstance(bad, dict):
            raise ValueError(f"{RECORD} does not vouch for every row")
        self.bad = {int(index): str(said) for index, said in bad.items()}
        if not self.bad.keys() <= set(range(len(self))):
            raise ValueError(f"{RECORD} names rows that are not there")
        self._good: mmap.mmap | None = None
        self._open()

    def _open(self) -> None:
        """Once a run: processes that are forked share the map, and what each has found to be good."""
        self._good = self._good or mmap.mmap(-1, len(self) + 1)  # a byte a row; the last: whether damage was reported
        with open(self.home / CONTENT, "rb") as file:
            # Copy-on-write: torch asks for arrays that can be written to, and the file never is.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._require_whole()
        start = self._bytes - int(np.prod(self.shape))
        self._rows = np.frombuffer(self._map, np.uint8, offset=start).reshape(self.shape)

    def _require_whole(self) -> None:
        """The system ends a process that reads a map beyond its file's end."""
        if self._map.size() != self._bytes:
            raise ValueError(f"{CONTENT} has another length than it was written with")

    def __getstate__(self) -> dict[str, Any]:
        mapped = dict.fromkeys(("_map", "_rows", "_good"))
        return self.__dict__ | mapped  # a memory map would be copied to another process whole

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, H, W] or [H, W]. Raises `UserError` for a file that could not be read."""
        if index in self.bad:
            raise UserError(self.bad[index])
        try:
            row = self._row(index)
        except (OSError, ValueError) as error:
            self._withdraw(error)
            row = self.read(index)
            if isinstance(row, UserError):
                raise row from None
        return row.permute(2, 0, 1) if row.ndim == 3 else row

    def _row(self, index: int) -> Tensor:
        if self._rows is None:
            self._open()
        self._require_whole()
        row = self._rows[index]
        if not self._good[index]:
            if zlib.crc32(row) != self._checksums[index]:
                raise ValueError(f"row {index} is not what was written")
            self._good[index] = 1
        return torch.from_numpy(row)

    def _withdraw(self, error: Exception) -> None:
        """The next start makes it anew; said once a run."""
        if not self._good[-1]:
            self._good[-1] = 1
            why = getattr(error, "strerror", None) or error
            print(
                f"note: {self.home} is damaged ({why}): what is not right there is read from the files, and the next "
                "start prepares it anew",
                flush=True,
            )
            with contextlib.suppress(OSError):
                (self.home / RECORD).unlink()


def write(home: Path, shape: tuple[int, ...], made_from: dict[str, Any], rows: Iterator[Tensor | str]) -> None:
    """A new folder `home` with an array of those rows, on the disk when this returns; text in place of a row says why
    there is none. Raises OSError."""
    array = np.lib.format.open_memmap(home / CONTENT, mode="w+", dtype=np.uint8, shape=shape)
    _take_blocks(home / CONTENT)
    bad, checksums = {}, []
    for index, row in enumerate(rows):
        if isinstance(row, str):
            bad[index] = row
            checksums.append(None)
        else:
            array[index] = row.numpy()  # [H, W, 3] or [H, W]
            checksums.append(zlib.crc32(array[index]))
    array.flush()
    size = _sync(home / CONTENT)
    record = made_from | {"bytes": size, "checksums": checksums, "bad": bad}
    (home / RECORD).write_text(json.dumps(record), encoding="utf-8")
    _sync(home / RECORD)


def _sync(path: Path) -> int:
    """The file's size, once it is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _take_blocks(path: Path) -> None:
    """Takes the file's blocks now: a disk that fills up under a memory map kills the process that writes."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
