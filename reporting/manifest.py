"""A folder that a script writes and may write again, without losing what a person made there.

A manifest holds the checksum of every file written. A file that was changed since stays as it is, and the new one is
written beside it; files that the script did not write are never touched; a folder without a manifest is not ours.
Nothing outside the folder is written or deleted, whatever a manifest names and wherever links lead.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, require_place, write_atomically, write_json

NAME = "manifest.json"


class OwnFolder:
    """Raises `UserError` for a folder that holds something and was not written by this class, and for a manifest that
    names what lies outside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before, self.written = folder, {}, {}
        require_place(folder, folder=True)
        if not folder.exists() or not any(folder.iterdir()):
            return
        try:
            named = read_json(folder / NAME)["files"].items()
            self.before = {name: {str(one) for one in sums} for name, sums in named}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder} is not empty and was not written by this script; name another folder") from None
        for name in self.before:
            self._require_inside(name)

    def write(self, files: dict[str, bytes]) -> list[str]:
        """Writes all files (path below the folder -> content), removes what was written before and is no more, and
        gives back the paths at which a changed file stays, so that the new one lies at `.new` beside it."""
        for name in files:
            self._require_inside(name)
        places = {name: self._place(name) for name in files}
        for place in set(places.values()):
            self.written[place] = set()
        for name, content in files.items():
            self.written[places[name]].add(_sum(content))
        # Sums of before and of now, so that an interrupted writing leaves no file that seems to be changed.
        self._note({n: self.before.get(n, set()) | self.written.get(n, set()) for n in {*self.before, *self.written}})
        for name, content in files.items():
            path = self.folder / places[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file, content=content: file.write(content))
        for name in self.before.keys() - self.written.keys() - places.keys():
            if self._untouched(name):
                (self.folder / name).unlink()
        changed = sorted(name for name, place in places.items() if place != name)
        self._note(self.written | {name: self.before[name] for name in changed if name in self.before})
        return changed

    def _require_inside(self, name: str) -> None:
        """Raises `UserError` for a path that is not below the folder, or leads out of it through a link."""
        try:
            home, path = self.folder.resolve(), self.folder / name
            inside = path.name != ".." and path != self.folder and path.parent.resolve().is_relative_to(home)
        except (OSError, ValueError, RuntimeError):  # no path at all, or links in a circle
            inside = False
        if not inside or "\0" in name:
            raise UserError(f"{self.folder}: {name!r} lies outside this folder; name another folder for the report")

    def _place(self, name: str) -> str:
        """Where a file goes. Raises `UserError` where both places hold a person's work."""
        beside = str(Path(name).with_suffix(".new" + Path(name).suffix))
        for place in (name, beside):
            if not (self.folder / place).exists() or self._untouched(place):
                return place
        raise UserError(f"{self.folder / name} and {beside} were both changed by hand; move one of them away")

    def _untouched(self, name: str) -> bool:
        """Whether a file is as it was written."""
        path = self.folder / name
        try:
            return path.is_file() and _sum(path.read_bytes()) in self.before.get(name, set())
        except OSError:
            return False

    def _note(self, sums: dict[str, set[str]]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made ({error.strerror})") from None
        write_json(self.folder / NAME, {"files": {name: sorted(found) for name, found in sorted(sums.items())}})


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
