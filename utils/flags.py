"""Flags as a user types them -> values; what is wrong is said in one line by argparse."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MIN_SIDE, MAX_SIDE = 32, 8192
LARGEST = 10**15
"""Of any number: beyond, floats no longer count, and charts have no axis. Reports take what is larger for damaged."""


def named_path(text: str) -> Path:
    """A path that is not empty; pathlib takes an empty one for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a file or folder, found an empty name; is a variable not set?")
    return Path(text)


def size(text: str) -> tuple[int, int]:
    """`1024x512` -> (1024, 512), width first."""
    width, separator, height = text.lower().partition("x")
    if not (separator and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 1024x512, found {text!r}")
    if not all(MIN_SIDE <= int(side) <= MAX_SIDE for side in (width, height)):
        raise argparse.ArgumentTypeError(f"{text}: each side must be {MIN_SIDE} to {MAX_SIDE} pixels")
    return int(width), int(height)


def positive(text: str) -> int:
    """A whole number from 1 to `LARGEST`."""
    return _from(1, text)


def whole(text: str) -> int:
    """A whole number from 0 to `LARGEST`."""
    return _from(0, text)


def _from(low: int, text: str) -> int:
    if not text.isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, found {text!r}")
    if int(text) > LARGEST:
        raise argparse.ArgumentTypeError(f"expected a whole number of at most {LARGEST}, found {text!r}")
    return int(text)


def number(low: float, high: float) -> Any:
    """A type for argparse: a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, found {text!r}")
        return value

    return parse


def scales(text: str) -> tuple[float, ...]:
    """`0.75,1,2` -> (0.75, 1.0, 2.0)."""
    return tuple(number(0.1, 10)(part) for part in text.split(","))


def device(text: str) -> torch.device:
    """`cpu`, `cuda` (the first GPU) or `cuda:1`, which must be there. A GPU comes with its index."""
    try:
        found = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, found {text!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, found {text!r}")
    if found.type == "cuda":
        if (found.index or 0) >= torch.cuda.device_count():
            raise argparse.ArgumentTypeError(f"{text}: this machine has {torch.cuda.device_count()} CUDA device(s)")
        if found.index is not None:  # the first is current already, and under torchrun not every process's
            torch.cuda.set_device(found)  # events, pinned memory and default streams go there too
        return torch.device("cuda", found.index or 0)
    return found


def flag(name: str) -> str:
    """What a command line calls an argument: --run-dir."""
    return f"--{name.replace('_', '-')}"


def spelt(arguments: Sequence[str] | None = None) -> set[str]:
    """The flags on this command line, or among the arguments of one."""
    words = sys.argv if arguments is None else arguments
    return {text.partition("=")[0] for text in words if text.startswith("--")}


def default_device() -> torch.device:
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def cores() -> int:
    """Processor cores that this process may use: its share, where torchrun started several."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def add_choice(
    group: argparse._ArgumentGroup,
    flag: str,
    table: Mapping[str, Any],
    default: str,
    what: str,
    said: str = "(%(default)s)",
    **others: str,
) -> None:
    """A flag that names an entry of a table. Its help is `what`, then what each entry says of itself in `help`, then
    the default as it is `said`; others: further choices, and what each means."""
    meanings = {name: entry.help for name, entry in table.items()} | others
    listed = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())
    group.add_argument(flag, choices=tuple(meanings), default=default, help=f"{what}. {listed} {said}")


def add_machine_flags(group: argparse._ArgumentGroup) -> None:
    """Flags of training and evaluation that change no figure."""
    group.add_argument(
        "--workers", type=whole, metavar="N", default=min(8, cores() - 1), help="loader processes (%(default)s)"
    )
    group.add_argument(
        "--device", type=device, default=default_device(), metavar="DEV", help="cpu, cuda, cuda:1 (the GPU, if any)"
    )
