"""How far long work is: a bar on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from .distributed import rank
from .tables import duration

EVERY = 30.0
"""Seconds between two lines where no terminal shows a bar."""

WIDTH = 100
"""Columns that a bar takes at most."""

T = TypeVar("T")


def bar(total: int, title: str, unit: str, form: str | None = None) -> tqdm:
    """Of the first rank, on a terminal, and gone when it is closed; elsewhere it shows nothing. form: tqdm's
    `bar_format`."""
    columns = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    silent = True if rank() > 0 else None
    return tqdm(total=total, desc=title, unit=unit, disable=silent, leave=False, ncols=columns, bar_format=form)


class Lines:
    """Whether it is time for a line: `EVERY` seconds after the last of any, where standard output is no terminal."""

    _last = time.monotonic()  # of the process: an epoch, its evaluation and the next epoch follow one another

    def __init__(self) -> None:
        out = sys.stdout  # None where what is printed goes nowhere
        self._wanted = out is not None and not out.isatty()

    def due(self) -> bool:
        now = time.monotonic()
        if not self._wanted or now - Lines._last < EVERY:
            return False
        Lines._last = now
        return True


def tracked(items: Iterable[T], total: int, title: str, unit: str = "batch") -> Iterator[T]:
    """The items as they come; says how many of them are done."""
    lines, start = Lines(), time.monotonic()
    with bar(total, title, unit) as drawn:
        for done, item in enumerate(items, start=1):
            yield item
            drawn.update()
            if lines.due():
                left = (time.monotonic() - start) / done * max(0, total - done)
                print(f"{title}: {unit} {done}/{total}, {duration(left)} left", flush=True)
