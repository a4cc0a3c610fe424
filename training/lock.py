"""One process a run directory.

The lock is the operating system's (flock), so it ends with the process however that ends. The file says who holds it;
where a shared file system does not pass locks between hosts, its age tells whether the other host still works.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import parse_json

try:
    import fcntl
except ImportError:  # Windows: the file's content and age decide alone
    fcntl = None

STALE_SECONDS = 300
"""A lock of another host that was not touched for this long is a dead process's; a living one touches it ten times."""

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""How flock says that another process has the lock; whatever else it says is about the file system."""


class DirectoryLock:
    """Held from its making to `release`. Raises `UserError` naming the process and the host that hold it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        self._take()

    def _take(self) -> None:
        passed = False  # whether the file system passed us the lock; some know none, and NFS may refuse it
        while True:
            self._file = open(self.path, "a+b")  # noqa: SIM115  (its life is the lock's)
            if hasattr(os, "register_at_fork"):  # loader workers must not hold it when this process is gone
                os.register_at_fork(after_in_child=self._file.close)
            if fcntl is not None:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    passed = True
                except OSError as error:
                    if error.errno in HELD:
                        self._refuse(self._holder())
            if self._is_current():
                break
            self._file.close()  # its holder took the file away while we opened it
        holder = self._holder()
        if holder:
            if not passed or holder.get("host") != socket.gethostname():  # else the lock itself tells
                self._wait_for_a_sign_of_life(holder)
            print(f"note: {_who(holder)} ended without releasing {self.path.parent}; this run takes over its lock")
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        self._file.flush()
        self._touched = time.monotonic()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            found = parse_json(self._file.read().decode())
            return found if isinstance(found, dict) else {}
        except ValueError:
            return {}

    def _wait_for_a_sign_of_life(self, holder: dict[str, Any]) -> None:
        """The lock could be had, but from another host that may mean nothing. Refuses when its holder touches it."""
        last = os.fstat(self._file.fileno()).st_mtime
        left = STALE_SECONDS - min(max(0.0, self._now() - last), STALE_SECONDS)
        if left > 0:
            print(f"waiting up to {left:.0f} s to see whether {_who(holder)} is still running", flush=True)
        end = time.monotonic() + left
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            if os.fstat(self._file.fileno()).st_mtime != last:
                self._refuse(holder)

    def _now(self) -> float:
        """The file system's clock, by which files are touched: hosts' own differ."""
        probe = self.path.with_name(f".lock.{os.getpid()}.tmp")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def _refuse(self, holder: dict[str, Any]) -> None:
        self._file.close()
        raise UserError(
            f"--run-dir {self.path.parent} is in use by {_who(holder)}; wait for it, or name another directory"
        )

    def touch(self) -> None:
        """Says that the process still works; now and then is enough."""
        if time.monotonic() - self._touched > STALE_SECONDS / 10:
            try:
                os.utime(self.path)
            except FileNotFoundError:  # somebody took the file away: hold a new one, unless another process does
                self._file.close()
                try:
                    self._take()
                except FileNotFoundError:
                    raise UserError(f"--run-dir {self.path.parent} is gone; was it moved? It goes on there") from None
            self._touched = time.monotonic()

    def release(self) -> None:
        """Once or more often."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
