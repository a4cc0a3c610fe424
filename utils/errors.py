"""Errors a user can do something about: one line, no traceback, exit status 2."""

from __future__ import annotations

import argparse
import difflib
import errno
import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import quick_help  # before torch

# isort: split

import torch

from . import distributed
from .flags import flag, named_path, spelt
from .output import steady_output


class UserError(Exception):
    """What was expected, what was found, in which file, and what to do; shown as one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake; the usage is there for the asking. A flag has to be spelt out: what an
    abbreviation means would change with every new flag. An argument of the type Path may not be empty.

    first: the flags that --help shows where not all are needed at once; --help-all shows the others too.
    """

    def __init__(self, *, first: Sequence[str] = (), **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.register("type", Path, named_path)
        self.first = [*first]
        if first:
            self.add_argument(quick_help.HELP_ALL, action="help", help="show every flag")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Where help is asked for, nothing else counts: it is shown, and the script ends."""
        asked = quick_help.asked(sys.argv[1:] if args is None else args)
        if asked is not None:
            self._print_message(self.format_help(everything=asked == quick_help.HELP_ALL), sys.stdout)
            self.exit()
        return super().parse_known_args(args, namespace)

    def format_help(self, everything: bool = False) -> str:
        if everything or not self.first:
            return super().format_help()
        shown = {*self.first, *quick_help.HELP, quick_help.HELP_ALL}
        more = [a for a in self._actions if a.option_strings and a.help != argparse.SUPPRESS]
        more = {action: action.help for action in more if shown.isdisjoint(action.option_strings)}
        for action in more:
            action.help = argparse.SUPPRESS
        text = super().format_help()
        for action, said in more.items():
            action.help = said
        return f"{text}\n{len(more)} more flags: {self.prog} {quick_help.HELP_ALL}\n"

    def _unknown(self, unknown: list[str]) -> str:
        """What is wrong with arguments that are no flags of this script, and which flags are spelt alike."""
        known = [name for a in self._actions if a.help != argparse.SUPPRESS for name in a.option_strings]
        near: list[str] = []
        for name in (text.partition("=")[0] for text in unknown if text.startswith("-")):
            begun = [other for other in known if other.startswith(name)]
            near += begun or difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
        return f"unrecognized arguments: {' '.join(unknown)}{hint}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def refuse_idle(reason: str, *names: str) -> None:
    """Raises `UserError` where one of these flags, which do nothing on this run, was given all the same."""
    for name in names:
        if flag(name) in spelt():
            raise UserError(f"{flag(name)} does nothing here: {reason}")


OF_PLACES = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EROFS}
OF_PLACES |= {errno.ENOSPC, errno.EDQUOT, errno.ELOOP}
"""Why a place that the user named cannot be read or written, which is theirs to mend."""


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes one line on stderr and exit status 2, Ctrl-C status 130. Other
    errors are shown with where they were raised, and the status is 1.

    Where stdout cannot be written to the script goes on (`utils/output.py`).

    float32 means float32: from Ampere on torch would take 10 of the mantissa's 23 bits for convolutions (TF32).
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with steady_output():
        _run(main)


def _run(main: Callable[[], None]) -> None:
    try:
        main()
        distributed.end()
        return
    except SystemExit as stop:
        status, message = stop.code, None
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except UserError as error:
        status, message = 2, f"error: {_who()}{error}"
    except OSError as error:
        if error.errno not in OF_PLACES or error.filename is None:
            status, message = 1, traceback.format_exc().strip()
        else:
            status, message = 2, f"error: {_who()}{error.filename}: {error.strerror}"
    except torch.cuda.OutOfMemoryError:
        full = "the GPU's memory is full: a smaller --batch-size or --size, or a GPU that nothing else uses"
        status, message = 2, f"error: {_who()}{full}"
    except Exception as error:
        lost = distributed.lost_another(error)
        status = 1
        message = f"error: {_who()}another process of this run has ended" if lost else traceback.format_exc().strip()
    # Out here no error holds the frames that hold the loaders; those that are left in cycles end their workers now, not
    # at some time during the exit, which would wait for them.
    gc.collect()
    if message is not None:
        print(message, file=sys.stderr)
    sys.exit(status)


def _who() -> str:
    """Which rank speaks, where there are several."""
    return f"rank {distributed.rank()}: " if distributed.ranks() > 1 else ""
