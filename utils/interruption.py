"""When a run has to stop before its end: a scheduler's or a person's signal, or its own limit of time.

The first SIGINT, SIGTERM, SIGUSR1 or SIGHUP is a request: the step ends, a checkpoint is written, the process exits
with the conventional status. A later one ends the process at once; what is on disk is whole at every moment.

One request may come several times: a shell and the kernel both tell of a connection that dropped, and torchrun passes
on to its ranks what a scheduler has sent them too. So what comes within `ECHO` seconds of the first is the same
request. Ranks also stop when torchrun is gone, since nobody would end them otherwise.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, NamedTuple

STARTED = float(os.environ.get("STOP_AFTER_COUNTS_FROM", time.monotonic()))
"""When this process began, nearly enough, or the one that runs scripts in turn and tells them so: --stop-after counts
from here, over all bands or rounds of a script, and over all of tables.py."""

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
TIME_IS_UP = 75
"""Exit status after --stop-after: EX_TEMPFAIL of sysexits.h, "try again later"."""


LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ
"""Whether torchrun started this process."""

ECHO = 30 if LAUNCHED else 1
"""Seconds. After 30 of them torchrun ends a rank by SIGKILL."""

_LAUNCHER = os.getppid()

_received: list[tuple[int, float]] = []
"""The first signal, and when it came. It is the process's, not one run's: the next band or round must not miss it."""

PATIENCE = 60
"""Seconds after which a loader worker heeds SIGTERM by itself."""


class Stop(NamedTuple):
    """Why the run is to stop, and the exit status that says so."""

    reason: str
    status: int


class Interruption:
    """Listens from `listen` to `close`."""

    def __init__(self, stop_after_minutes: float | None) -> None:
        self.limit = stop_after_minutes
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Signal handlers belong to the process; those that were there come back with `close`."""
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody listen
            self._before = {number: signal.signal(number, self._handle) for number in heard()}

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not _received:
            _received.append((number, time.monotonic()))
        elif time.monotonic() - _received[0][1] > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def stop(self) -> Stop | None:
        """What to stop for, if anything."""
        if _received:
            number, _ = _received[0]
            return Stop(f"stopped by {signal.Signals(number).name}", 128 + number)
        if LAUNCHED and os.getppid() != _LAUNCHER:
            return Stop("stopped, since torchrun is gone", TIME_IS_UP)
        if self.limit is not None and time.monotonic() - STARTED >= 60 * self.limit:
            return Stop(f"stopped by --stop-after ({self.limit:g} minutes)", TIME_IS_UP)
        return None


def heard() -> list[int]:
    """The `SIGNALS`, less SIGHUP where nohup has it ignored: then the run outlives its terminal."""
    hangup = getattr(signal, "SIGHUP", None)
    return [number for number in SIGNALS if number != hangup or signal.getsignal(number) != signal.SIG_IGN]


def worker_signals(worker: int) -> None:
    """For loader workers, which a scheduler signals too: the run decides when they end, and finishes its step first.
    After SIGTERM they wait for that, but not for ever: multiprocessing ends its children by it, and joins them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(PATIENCE))
