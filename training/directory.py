"""Whose a run's directory is: one experiment's, and one process's at a time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from utils.distributed import from_first, rank
from utils.errors import UserError
from utils.files import is_there, read_json, write_json

from .lock import DirectoryLock
from .resumption import changes, note_machine, require_allowed

CONFIG = "config.json"


class DirectoryClaim:
    """A run's claim to its directory: it is new, or empty, or this very run's that is resumed. Rank 0 holds its lock.

    config: the run's `config.json`, which the directory keeps. resumed: whether the run goes on. changes: what differs
    from the command that started it, or that made the checkpoint. Raises `UserError` for another run's directory, or
    for changes that --allow-changes does not allow.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], resume: bool, allow_changes: bool, device: torch.device
    ) -> None:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"--run-dir {path}: TensorBoard takes names in UTF-8 alone; name another") from None
        self.path, self.config, self.device, self.allow_changes = path, config, device, allow_changes
        self.changes: list[str] = []
        self._lock: DirectoryLock | None = None
        self.resumed = from_first(resume and is_there(path / CONFIG))
        if self.resumed:
            before = self._read()
            note_machine(before, config, device)
            config["changes"] = [*before.get("changes", [])]
            self._compare(before, path / CONFIG)
        elif rank() == 0:
            self._refuse_used()

    def _read(self) -> dict[str, Any]:
        path = self.path / CONFIG
        try:
            before = read_json(path)
            if isinstance(before, dict) and isinstance(before.get("changes", []), list):
                return before
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError:
            pass
        raise UserError(f"{path}: damaged, the run cannot be compared with this command")

    def _compare(self, before: dict[str, Any], where: Path) -> None:
        found = [change for change in changes(before, self.config, self.device, where) if change not in self.changes]
        require_allowed(found, self.allow_changes, where)
        self.changes += found
        self.config["changes"] += found

    def goes_on_changed(self, checkpoint: dict[str, Any], path: Path) -> bool:
        """Whether this command differs from the run's or from the one that made the checkpoint: another run's file may
        stand here. Raises `UserError` where --allow-changes does not allow it."""
        self._compare(checkpoint["config"], path)
        return bool(self.changes)

    def _refuse_used(self) -> None:
        if used(self.path):
            raise UserError(
                f"--run-dir {self.path} already holds a run; add --resume to continue it, or name another directory"
                if (self.path / CONFIG).exists()
                else f"--run-dir {self.path} is not empty and holds no run; name another directory"
            )

    def open(self) -> None:
        """Once everything is built, so that a mistake in a flag leaves no directory behind."""
        if rank() > 0:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(self.path)
        except OSError as error:
            raise UserError(f"--run-dir {self.path}: cannot be used ({error.strerror})") from None
        if not self.resumed:
            self._refuse_used()  # another process may have been faster
        for ending in ("tmp", "new"):  # of a process that was killed while it wrote
            for left in self.path.glob(f".*.{ending}"):
                left.unlink()
        if not self.resumed:
            write_json(self.path / CONFIG, self.config)

    def keep_changes(self) -> None:
        """After the first checkpoint that was made under them."""
        if self.changes and rank() == 0:
            write_json(self.path / CONFIG, self.config)
        self.changes = []

    def touch(self) -> None:
        """Says that this process still works."""
        if self._lock is not None:
            self._lock.touch()

    def release(self) -> None:
        """Leaves the directory to other processes; once or more often."""
        if self._lock is not None:
            self._lock.release()


def used(directory: Path) -> bool:
    """Whether something is there that a process killed at its start did not leave behind."""
    return directory.exists() and (
        not directory.is_dir() or any(not _left_behind(path) for path in directory.iterdir())
    )


def _left_behind(path: Path) -> bool:
    return path.name == ".lock" or (path.name.startswith(".") and path.suffix == ".tmp")


def several_runs(args: argparse.Namespace, names: Sequence[str]) -> list[argparse.Namespace]:
    """For a script of several runs: the arguments of each. It stands in a folder of its name below --run-dir; one run
    alone stands at --run-dir itself. Raises `UserError`, before the first run, when a later one's directory is not
    empty, or when one alone stands at --run-dir."""
    places = [args.root] if len(names) == 1 else [args.root / name for name in names]
    if len(names) > 1 and is_there(args.root / "config.json"):
        raise UserError(
            f"{args.root} holds one run, and this command makes {len(names)} of them in folders of their own below it; "
            "name another --run-dir"
        )
    for place in () if args.resume else places[1:]:
        if used(place):
            raise UserError(f"{place} is not empty; add --resume to continue its run, or name another --run-dir")
    return [argparse.Namespace(**vars(args) | {"run_dir": place}) for place in places]
