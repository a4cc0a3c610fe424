"""Errors a user can do something about: one line, no traceback, exit status 2."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from . import distributed


class UserError(Exception):
    """What was expected, what was found, in which file, and what to do; shown as one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake; the usage is there for the asking."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes one line on stderr and exit status 2, Ctrl-C status 130.

    float32 means float32: from Ampere on torch would take 10 of the mantissa's 23 bits for convolutions (TF32).
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        main()
        distributed.end()
    except UserError as error:
        message = str(error)
        error.__traceback__ = None  # whose frames hold the loaders, and those their workers
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except torch.cuda.OutOfMemoryError:
        message = "the GPU's memory is full: a smaller --batch-size or --size, or a GPU that nothing else uses"
    else:
        return
    gc.collect()  # loaders that an error left in cycles end their workers here, not at some time during the exit
    who = f"rank {distributed.rank()}: " if distributed.ranks() > 1 else ""
    print(f"error: {who}{message}", file=sys.stderr)
    sys.exit(2)
