"""What a script prints, where nobody can take it any more: the work does not end for that."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""Whoever read it went away: `| head`, a closed terminal. Anything else, as a full disk, loses what was to stay."""


class Output:
    """A stream to print to. When it cannot be written to it falls silent; `problem` says why.

    What cannot be encoded, such as a file's name that is no text, is written with escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.problem: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._silent_when_it_fails():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._silent_when_it_fails():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _silent_when_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.problem is None:
                self.problem = error
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())  # what is buffered goes there too
                os.close(nowhere)
                if self._stream is not sys.__stderr__:
                    print(f"note: what is printed cannot be written ({error.strerror}); going on", file=sys.stderr)


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """Inside, nothing ends because stdout or stderr does. Ends the process with status 1 where all else went well and
    printed words that were to stay are lost."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Output(stream) for stream in before)
    own = sys.stdout
    try:
        yield
    finally:
        if own is not None:
            own.flush()
        sys.stdout, sys.stderr = before
    if own is not None and own.problem is not None and own.problem.errno not in GONE:
        print(f"error: what was printed is lost ({own.problem.strerror})", file=sys.stderr)
        sys.exit(1)
