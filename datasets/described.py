"""A data set of the user's own: folders of pictures and of labels, and a JSON file that says what the labels mean.

docs/data.md has an example. Of the file: name; labels, "ids" or "colours"; classes, a list of {name, colour, and ids or
colours}; ignored, ids or colours that are no class; unlisted, "refuse" or "ignore" what is in neither list; splits, a
table of {pictures, labels}, folders from the file on; picture_ending and label_ending, of the files' names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json

from .labels import IGNORE, Classes, Label, LabelTable
from .pairs import by_key, is_folder, limited, match, pictures_below
from .segmentation import SegmentationSet

SIZE = (1024, 512)
REQUIRED = ("name", "labels", "classes", "splits")
OPTIONAL = {"ignored": [], "unlisted": "refuse", "picture_ending": "", "label_ending": ""}
MOST_IDS = 254
"""Ids of classes are 0 to 253, as `LabelTable` has them."""


class Described:
    """What a JSON file says. Raises `UserError` that names the file, the key, what was expected and what was found."""

    def __init__(self, flag: str, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{flag} {path}: expected a JSON file that describes the set (docs/data.md), found no file")
        try:
            given = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: expected JSON, could not read it ({error})") from None
        known = (*REQUIRED, *OPTIONAL)
        self._require(isinstance(given, dict), "the file", f"a table of {', '.join(known)}", given)
        self._keys(given, "the file", REQUIRED, known)
        given = OPTIONAL | given
        self.name = self._text(given["name"], "name")
        self._require(given["labels"] in ("ids", "colours"), "labels", '"ids" or "colours"', given["labels"])
        self._require(given["unlisted"] in ("refuse", "ignore"), "unlisted", '"refuse" or "ignore"', given["unlisted"])
        self.encoding = given["labels"]
        self.table = self._table(given["classes"], given["ignored"], given["unlisted"])
        self.endings = {}
        for kind in ("picture", "label"):
            ending = given[f"{kind}_ending"]
            self._require(isinstance(ending, str), f"{kind}_ending", "a text", ending)
            self.endings[f"{kind}s"] = ending
        self.splits = given["splits"]
        self._require(isinstance(self.splits, dict) and self.splits, "splits", "a table such as train and val",
                      self.splits)  # fmt: skip
        for split, folders in self.splits.items():
            self._require(isinstance(folders, dict), f"splits.{split}", "a table of pictures and labels", folders)
            self._keys(folders, f"splits.{split}", ("pictures",), ("pictures", "labels"))

    def files(self, split: str, kind: str) -> dict[str, Path]:
        """The pictures, or the labels, of a split by their names less the ending."""
        if split not in self.splits:
            raise UserError(f"{self.path}: splits: no split {split!r} is there; there: {', '.join(self.splits)}")
        key, folders = f"splits.{split}.{kind}", self.splits[split]
        if kind not in folders:
            raise UserError(f"{self.path}: {key}: missing; this use of {self.name} {split} needs its {kind}")
        folder = self.path.parent / self._text(folders[kind], key)
        self._require(is_folder(folder), key, "a folder, named from the JSON file on", str(folder))
        ending = self.endings[kind]
        files = [file for file in pictures_below(folder) if file.stem.endswith(ending)]
        if not files:
            named = f" whose names end in {ending}" if ending else ""
            raise UserError(f"{self.path}: {key}: expected PNG or JPEG files{named} in {folder}, found none")
        return by_key(files, lambda file: file.stem.removesuffix(ending))

    def _table(self, classes: Any, ignored: Any, unlisted: str) -> LabelTable:
        self._require(isinstance(classes, list) and 1 < len(classes) < MOST_IDS, "classes",
                      f"a list of 2 to {MOST_IDS - 1} classes", classes)  # fmt: skip
        by_ids = self.encoding == "ids"
        rows: list[Label] = []
        names, colours, seen = [], [], {}
        for at, class_ in enumerate(classes):
            key = f"classes[{at}]"
            own = "ids" if by_ids else "colours"
            needed = ("name", "colour", "ids") if by_ids else ("name", "colour")
            self._require(isinstance(class_, dict), key, f"a table of {', '.join(needed)}", class_)
            self._keys(class_, key, needed, ("name", "colour", own))
            name = self._text(class_["name"], f"{key}.name")
            self._require(name not in names, f"{key}.name", "a name of its own", name)
            colour = self._colour(class_["colour"], f"{key}.colour")
            names.append(name)
            colours.append(colour)
            values = class_.get(own, [list(colour)])
            self._require(isinstance(values, list) and values, f"{key}.{own}", f"a list of {own}", values)
            for value in values:
                read = self._id(value, f"{key}.{own}", MOST_IDS - 1) if by_ids else self._colour(value, f"{key}.{own}")
                self._once(read, f"{key}.{own}", name, seen)
                rows.append(Label(read if by_ids else len(rows), name, at, colour if by_ids else read))
        self._require(isinstance(ignored, list), "ignored", f"a list of {self.encoding}", ignored)
        for value in ignored:
            read = self._id(value, "ignored", 255) if by_ids else self._colour(value, "ignored")
            self._once(read, "ignored", "ignored", seen)
            if read != IGNORE:  # that is ignored in any case
                # An ignored id has no colour; one that some class has first tells nothing.
                rows.append(Label(read if by_ids else len(rows), "ignored", IGNORE, colours[0] if by_ids else read))
        self._require(len(rows) <= MOST_IDS, "classes and ignored", f"at most {MOST_IDS} {self.encoding}", len(rows))
        return LabelTable(self.name, Classes(tuple(names), tuple(colours)), tuple(rows), unlisted=unlisted)

    def _require(self, holds: Any, key: str, expected: str, found: Any) -> None:
        if not holds:
            raise UserError(f"{self.path}: {key}: expected {expected}, found {json.dumps(found, default=str)[:80]}")

    def _keys(self, table: dict[str, Any], key: str, needed: tuple[str, ...], known: tuple[str, ...]) -> None:
        missing = [name for name in needed if name not in table]
        strange = [name for name in table if name not in known]
        if missing or strange:
            said = f"{missing[0]} is missing" if missing else f"found {strange[0]}"
            raise UserError(f"{self.path}: {key}: expected {', '.join(known)}; {said}")

    def _text(self, value: Any, key: str) -> str:
        self._require(isinstance(value, str) and value.strip() and value.isprintable(), key, "a text", value)
        return value

    def _id(self, value: Any, key: str, most: int) -> int:
        self._require(type(value) is int and 0 <= value <= most, key, f"whole numbers from 0 to {most}", value)
        return value

    def _colour(self, value: Any, key: str) -> tuple[int, int, int]:
        fits = isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
        self._require(fits, key, "[red, green, blue], each from 0 to 255", value)
        return tuple(value)

    def _once(self, value: Any, key: str, name: str, seen: dict[Any, str]) -> None:
        what = list(value) if isinstance(value, tuple) else value
        self._require(value not in seen, key, f"{what} once, it is {seen.get(value)} already", name)
        seen[value] = name


def described_source(path: Path | str, size: tuple[int, int] = SIZE, **options) -> SegmentationSet:
    """A source: the split train of what the JSON file describes. options: those of `described_target`."""
    return _read("--source-json", Path(path), "train", size, False, **options)


def described_target(path: Path | str, split: str, size: tuple[int, int] = SIZE, **options) -> SegmentationSet:
    """A target: a split of what the JSON file describes; options: labelled, list_file, limit.

    Raises `UserError`: no file, a mistake in it, no such split or folder, an empty one, pictures without label or
    labels without picture.
    """
    return _read("--target-json", Path(path), split, size, True, **options)


def _read(
    flag: str, path: Path, split: str, size: tuple[int, int], named: bool,
    labelled: bool = True, list_file: Path | None = None, limit: int | None = None,
) -> SegmentationSet:  # fmt: skip
    given = Described(flag, path)
    name = f"{given.name} {split}" if named else given.name
    pictures = given.files(split, "pictures")
    labels = given.files(split, "labels") if labelled else None
    samples = limited(match(pictures, labels, list_file, name), limit)
    return SegmentationSet(name, samples, size, given.encoding, root=path.parent, table=given.table)
