"""`--help` in half a second: torch takes seconds to import, and flags need no more of it than names.

While help is asked for, what is imported of torch is a stand-in: a class can derive from it, a function be decorated
or annotated with it, and it computes nothing (Sphinx mocks imports so, to read documentation). The parser and the
tables that it lists are the real ones, so the help is the real one too. Where a module computes with torch as it is
imported, a stand-in does not do, and the script starts again with torch.

A script imports this before torch, by way of `utils.errors`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
REPLACED = ("tensorboard", "torch", "torchvision")
SLOWLY = "HELP_WITH_TORCH"
"""Set in the environment of a script that starts again."""


def asked(arguments: Sequence[str]) -> str | None:
    """`--help` or `--help-all`, where one of them is among the arguments; all is more."""
    flags = [*arguments, "--"][: [*arguments, "--"].index("--")]
    if HELP_ALL in flags:
        return HELP_ALL
    return None if set(HELP).isdisjoint(flags) else "--help"


class StandIn:
    """Anything that a module may hold."""

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()

    def __call__(self, *args: Any, **options: Any) -> StandIn:
        return StandIn()

    def __getitem__(self, key: Any) -> StandIn:
        return StandIn()

    def __or__(self, other: Any) -> StandIn:
        return StandIn()

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


class Module(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        return getattr(StandIn(), name)


class Finder(MetaPathFinder, Loader):
    """Finds a stand-in for each module of `REPLACED` and below."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in REPLACED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


def start_again(kind: type[BaseException], *error: Any) -> None:
    """For `sys.excepthook`."""
    if not issubclass(kind, Exception):
        sys.__excepthook__(kind, *error)
        return
    os.execve(sys.executable, sys.orig_argv, os.environ | {SLOWLY: "1"})


if asked(sys.argv[1:]) and "torch" not in sys.modules and SLOWLY not in os.environ:
    sys.meta_path.insert(0, Finder())
    sys.excepthook = start_again
