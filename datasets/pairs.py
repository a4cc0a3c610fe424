"""From a root folder that a user names to a list of pictures with their labels, whatever the layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError

from .files import is_picture

SEARCH_DEPTH = 3
"""How many folders below the root the data may lie (archives unpack with one or two more folders around them)."""


NAMED = 3
"""Files named in a message; the others are counted."""

HIDDEN = (".", "__MACOSX")
"""How the names of folders begin in which no data are looked for."""

ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".zip")


@dataclass(frozen=True)
class Sample:
    """One picture; `label` is None where labels are absent or must not be used."""

    name: str
    image: Path
    label: Path | None


def folders_below(root: Path, depth: int = SEARCH_DEPTH) -> Iterator[Path]:
    """`root` and the folders below it down to `depth`, nearest first, by name."""
    level = [root]
    for _ in range(depth + 1):
        yield from level
        level = [Path(entry.path) for folder in level for entry in sorted(_entries(folder), key=lambda e: e.name)]


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if is_folder(entry) and not entry.name.startswith(HIDDEN)]
    except OSError:  # not ours to read, such as lost+found: the data are elsewhere
        return []


def is_folder(entry: os.DirEntry | Path) -> bool:
    """False also for what cannot be looked at, such as a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def folder_of(root: Path, *parts: str) -> Path | None:
    """The nearest ROOT/.../parts at or below the root, None where there is none."""
    found = (folder.joinpath(*parts) for folder in folders_below(root))
    return next((folder for folder in found if is_folder(folder)), None)


def existing_root(root: Path, flag: str) -> Path:
    """Raises `UserError` when the root is no folder."""
    if not root.is_dir():
        raise UserError(f"{flag} {root}: no such folder")
    return root


def lies_in(root: Path) -> str:
    """What lies in a folder that lacks what is looked for, in a few words: archives to unpack, or else the names."""
    found = sorted(path for folder in folders_below(root, 1) for path in _files(folder) if path.name[0] != ".")
    packed = [str(path.relative_to(root)) for path in found if path.suffix.lower() in ARCHIVES]
    if packed:
        return f"{_some(packed)} there: to be unpacked first"
    return f"there: {_some([path.name for path in found if path.parent == root]) or 'nothing'}"


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def pictures_below(folder: Path) -> list[Path]:
    """Every picture (`is_picture`) in the folder and below it, by path; hidden folders are passed over.

    Raises `UserError` for a folder that cannot be read: half a data set is not a data set.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: this folder cannot be read ({error.strerror})")

    found = []
    for directory, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        found += [path for path in (Path(directory, name) for name in names) if is_picture(path)]
    return sorted(found)


def by_key(files: list[Path], key: Callable[[Path], str]) -> dict[str, Path]:
    """Files by their key, in order. Raises `UserError` when two share one."""
    keyed: dict[str, Path] = {}
    for file in files:
        if (other := keyed.setdefault(key(file), file)) != file:
            raise UserError(f"{file} and {other} have the same name; expected one file a picture")
    return keyed


def match(images: dict[str, Path], labels: dict[str, Path] | None, list_file: Path | None, what: str) -> list[Sample]:
    """Pairs by key, in the order of the names, of what the list file leaves; without labels the pictures alone. Raises
    `UserError` that counts and names missing partners."""
    images = listed(images, list_file, what)
    if labels is None:
        return [Sample(name, images[name], None) for name in sorted(images)]
    if list_file is not None:
        labels = {name: file for name, file in labels.items() if name in images}
    lonely_images = sorted(images.keys() - labels.keys())
    lonely_labels = sorted(labels.keys() - images.keys())
    if lonely_images or lonely_labels:
        found = [
            f"{len(names)} {kind} without {partner} ({', '.join(str(files[name]) for name in names[:NAMED])}"
            + (", ...)" if len(names) > NAMED else ")")
            for names, kind, partner, files in (
                (lonely_images, "picture(s)", "label", images),
                (lonely_labels, "label(s)", "picture", labels),
            )
            if names
        ]
        raise UserError(f"{what}: {len(images.keys() & labels.keys())} pairs, but {' and '.join(found)}")
    return [Sample(name, images[name], labels[name]) for name in sorted(images)]


def listed(pictures: dict[str, Path], list_file: Path | None, what: str) -> dict[str, Path]:
    """The pictures that a list file names, all of them without one.

    One picture a line: its name, or its file name or path, with any folders and suffix; # begins a comment. Raises
    `UserError` for a line that names no picture.
    """
    if list_file is None:
        return pictures
    try:
        lines = [line.strip() for line in list_file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list file {list_file} cannot be read ({error})") from None
    known = {key: name for name, file in pictures.items() for key in (file.stem, name)}
    chosen = {}
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            name = known.get(line) or known.get(Path(line).name) or known.get(Path(line).stem)
            if name is None:
                raise UserError(f"{list_file}, line {number}: {line} is no picture of {what}")
            chosen[name] = pictures[name]
    if not chosen:
        raise UserError(f"list file {list_file} names no picture of {what}")
    return chosen


def limited(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, in their order; drawn without regard to the run's seed, so that every run with the same
    limit sees the same pictures."""
    if limit is None or limit >= len(samples):
        return samples
    drawn = np.random.default_rng(0).permutation(len(samples))[:limit]
    return [samples[index] for index in sorted(drawn)]


def split_off(samples: list[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """(kept, held out): `share` of the samples, at least one, drawn without regard to the run's seed."""
    if share == 0:
        return samples, []
    held = max(1, round(len(samples) * share))
    drawn = set(np.random.default_rng(1).permutation(len(samples))[:held].tolist())
    kept = [sample for index, sample in enumerate(samples) if index not in drawn]
    if not kept:
        raise UserError(f"holding out {share:.0%} of {len(samples)} pictures leaves none to train on")
    return kept, [samples[index] for index in sorted(drawn)]
