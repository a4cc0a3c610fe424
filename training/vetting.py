"""A checkpoint file is vetted before it is read: it may come from anywhere.

torch reads files with `weights_only=True`, so nothing in one is run. But a few bytes can claim a tensor of terabytes,
or a list that holds itself. What was vetted holds plain values and dense tensors, in a bounded multiple of its size.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets import domains
from datasets.labels import CITYSCAPES
from utils.files import DEEPEST
from utils.flags import MAX_SIDE, MIN_SIDE

NAMES = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch Size"}
"""What a checkpoint of ours calls upon, and the types of torch's storages."""

DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}

MOST = 8
"""Values that are read for each byte of the file, and bytes: ours name some tensors and tables more than once."""


def vet(path: Path) -> None:
    """Raises ValueError saying what is wrong, OSError, and whatever torch and zipfile raise for a damaged file."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("it claims to hold more than it does")
        (values,) = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        for opcode, argument, _ in pickletools.genops(archive.read(values)):
            storage = str(argument).startswith("torch ") and str(argument).endswith("Storage")
            if opcode.name == "GLOBAL" and argument not in NAMES and not storage:
                raise ValueError(f"it calls upon {argument}")
    tensors = _tensors(torch.load(path, map_location="meta", weights_only=True), MOST * size)
    storages = [tensor.untyped_storage().nbytes() for tensor in tensors]
    if sum(storages) + sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 2 * MOST * size:
        raise ValueError("its tensors are larger than the file")
    if not {entry.file_size for entry in entries if "/data/" in entry.filename}.issuperset(storages):
        raise ValueError("its tensors are others than the file holds")


def _tensors(content: Any, most: int) -> list[Tensor]:
    """Every tensor, as often as it is named. Raises ValueError for anything that is not plain."""
    level, seen, found = [content], 0, []
    for _ in range(DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if not all(isinstance(key, str | int) for key in value):
                    raise ValueError("a table's keys are no names")
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            elif isinstance(value, Tensor):
                if value.dtype not in DTYPES or value.is_neg() or value.is_conj():
                    raise ValueError(f"it holds a tensor of {value.dtype}")
                found.append(value)
            elif not isinstance(value, str | int | float | None):
                raise ValueError(f"it holds a {type(value).__name__}")
            if seen + len(below) > most:
                raise ValueError("it names its parts too often")
        level, seen = below, seen + len(below)
        if not level:
            return found
    raise ValueError("nested too deeply")


def require_sound(content: Any) -> None:
    """Raises ValueError where an entry that its readers rely on is of another kind."""
    if not isinstance(content, dict):
        raise ValueError("it holds no table")
    for name, kind in KINDS.items():
        if name in content and not kind(content[name]):
            raise ValueError(f"its {name} cannot be used")
    names, colours = content.get("class_names", CITYSCAPES.names), content.get("class_colours", CITYSCAPES.colours)
    if len(names) != len(colours):  # earlier checkpoints lack one of them, or both
        raise ValueError("its classes have not one colour each")


def _whole(value: Any, low: int = 0, high: int = 2**62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(value: Any, kind: Any = lambda item: True) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and kind(item) for key, item in value.items())


def _list(value: Any, kind: Any = lambda item: True) -> bool:
    return isinstance(value, list | tuple) and all(kind(item) for item in value)


def _size(value: Any) -> bool:
    return _list(value, lambda side: _whole(side, MIN_SIDE, MAX_SIDE)) and len(value) == 2


def _plain(value: Any) -> bool:
    return _table(value, _plain) or _list(value, _plain) or isinstance(value, str | int | float | None)


def _configuration(value: Any) -> bool:
    if not _plain(value) or not _table(value) or not _table(value.get("arguments", {})):
        return False
    given = value.get("arguments", {})
    return (
        all(_size(given[name]) for name in ("size", "source_size") if name in given)
        and _whole(given.get("batch_size", 1), 1, 2**20)
        and (given.get("limit") is None or _whole(given["limit"], 1))
        and _number(given.get("source_holdout", 0)) and 0 <= given.get("source_holdout", 0) < 1
        and all(isinstance(given.get(name), str | None) for name in domains.arguments())
        and given.get("intra_protocol") in (None, *domains.SOURCES)
        and all(given.get(name, known[0]) in known for name, known in domains.chosen_values().items())
    )  # fmt: skip


def _entry(value: Any) -> bool:
    if not (_plain(value) and _table(value) and _whole(value.get("step")) and _whole(value.get("epoch"))):
        return False
    figures = value.get("target")
    return _table(figures) and (figures.get("miou", ()) is None or _number(figures.get("miou", ())))


KINDS = {
    "format": _whole,
    "network": lambda value: _table(value, lambda item: isinstance(item, str | int | float | None)),
    "weights": lambda value: _table(value, lambda item: isinstance(item, Tensor)),
    "class_names": lambda value: _list(value, lambda item: isinstance(item, str)) and 0 < len(value) < 255,
    "class_colours": lambda value: _list(
        value, lambda colour: _list(colour, lambda item: _whole(item, 0, 255)) and len(colour) == 3
    ),
    "config": _configuration,
    "step": _whole,
    "epoch": _whole,
    "closed": _whole,
    "training": lambda value: _table(value, lambda item: isinstance(item, dict)),
    "history": lambda value: _list(value, _entry),
    "epoch_losses": lambda value: _table(value, lambda item: _list(item, _number)),
    "latest": lambda value: _list(value) and len(value) == 2 and _whole(value[0]) and _table(value[1], _number),
    "spent": lambda value: isinstance(value, dict) and all(
        _whole(step) and _table(costs, lambda cost: cost is None or _number(cost)) for step, costs in value.items()
    ),
    "seconds": _number,
    "confusion": lambda value: _table(value, lambda rows: _list(rows, lambda row: _list(row, _whole))),
    "bad_samples": lambda value: _table(value, lambda item: isinstance(item, str)),
}
"""Of a checkpoint's entries."""
