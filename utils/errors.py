"""Errors a user can do something about: one line, no traceback, exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """What was expected, what was found, in which file, and what to do; shown as one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
