"""Files that are there whole or not at all, and JSON of any origin."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """The file is there whole or not at all, whenever the process or the machine stops.

    Raises `UserError` when the disk is full or the folder cannot be written to; what stood there before stays.
    """
    short = os.fsdecode(os.fsencode(path.name)[:200])  # a name may have 255 bytes
    temporary = path.with_name(f".{short}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        why = error.strerror or error if path.parent.is_dir() else "its folder is gone; was it moved?"
        raise UserError(f"{path}: cannot be written ({why})") from None


def is_there(path: Path) -> bool:
    """Whether a file or folder is there. Raises `UserError` where this process may not know."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be looked at ({error.strerror})") from None
    return True


def require_place(path: Path, folder: bool = False) -> None:
    """Raises `UserError` where no file can be written at `path` or, with `folder`, no folder be made and filled there.
    It is asked before the work whose figures would be lost."""
    places = [path, *path.parents] if folder else [path.parent]
    home = next((place for place in places if is_there(place)), None)
    if home is None:
        raise UserError(f"{path}: the folder {path.parent} does not exist; make it, or name another")
    if not home.is_dir():
        raise UserError(f"{path}: {home} is no folder; name another place")
    if not os.access(home, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the folder {home} cannot be written to; name another place")


def require_new(path: Path) -> None:
    """The same for a file that may not be there yet."""
    require_place(path)
    if path.exists():
        raise UserError(f"{path} exists; name a new file, nothing is overwritten")


def sync(folder: Path) -> None:
    """Makes renames in the folder durable, where its file system has a way to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # some shared folders know no such thing
            raise
    finally:
        os.close(descriptor)


DEEPEST = 50
"""How far what we read may be nested; our own files are 5 deep."""


MAX_JSON = 32 * 2**20
"""Bytes that are read of a JSON file: what it says may take thirty times as much memory."""


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """What a JSON file of at most so many bytes holds. Raises OSError, and ValueError where it is larger, damaged, or
    nested deeper than `DEEPEST`: so whoever goes through it, goes to its end."""
    if path.stat().st_size > most:
        raise ValueError(f"over {most:,} bytes")
    return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> Any:
    """The same of a text. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        tables = [held.values() if isinstance(held, dict) else held for held in level if isinstance(held, dict | list)]
        level = [item for held in tables for item in held]
        if not level:
            return value
    raise ValueError("nested too deeply")


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))
