"""The domains: which data sets a run can learn from and adapt to, and the flags that name them.

A new one is a loader in a file of its own and one line in a table here. What the loader owes (`datasets/gta5.py` and
`datasets/cityscapes.py` are the models):

    source: load(root, size, labelled=, list_file=, limit=) -> SegmentationSet
    target: load(root, split, size, labelled=, list_file=, limit=) -> SegmentationSet called "TITLE SPLIT"

with `encoding=` where its line has encodings, `mapping_file=` where it has a mapping, and what its choices are called.
The flags follow from its key: --KEY DIR names the root (with - for _), --KEY-list FILE the pictures, --KEY-encoding and
--KEY-mapping say how labels are read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, refuse_idle
from utils.flags import flag

from . import camvid
from .cityscapes import cityscapes
from .described import SIZE, described_source, described_target
from .gta5 import gta5
from .labels import ENCODINGS, SYNTHIA_PROTOCOL, Protocol
from .mixed import MixedSet
from .segmentation import SegmentationSet, shared_classes
from .synthia import synthia


@dataclass(frozen=True)
class Choice:
    """How a data set is read, where users can say so. name: of the argument, whose last word the loader knows; several
    domains may share one. values: the first is the default."""

    name: str
    values: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Domain:
    """A line of a table. size: default working size (width, height). encodings: what its label files may hold, where
    users can say so; the first is the default. mapping: whether users may map its ids with a JSON file. protocol: of a
    source whose benchmark has other means than that of all classes. root: what --KEY names, DIR or FILE."""

    title: str
    load: Callable[..., SegmentationSet]
    size: tuple[int, int]
    encodings: tuple[str, ...] = ()
    mapping: bool = False
    protocol: Protocol | None = None
    choices: tuple[Choice, ...] = ()
    root: str = "DIR"


_CAMVID = (
    Choice(
        "camvid_classes",
        camvid.CLASSES,
        "of CamVid's labels. cityscapes: the 19; cityscapes11: SegNet's 11 groups, each as one of the 19; camvid11: "
        "the 11, as classes of their own (cityscapes)",
    ),
)
SOURCES = {
    "gta5": Domain("GTA5", gta5, (1280, 720), ENCODINGS, mapping=True),
    "synthia": Domain("SYNTHIA", synthia, (1280, 760), protocol=SYNTHIA_PROTOCOL),
    "camvid_day": Domain("CamVid by day", camvid.camvid_day, camvid.SIZE, choices=_CAMVID),
    "source_json": Domain("your own set", described_source, SIZE, root="FILE"),
}
TARGETS = {
    "cityscapes": Domain("Cityscapes", cityscapes, (1024, 512)),
    "camvid": Domain("CamVid", camvid.camvid, camvid.SIZE, choices=_CAMVID),
    "camvid_dusk": Domain("CamVid at dusk", camvid.camvid_dusk, camvid.SIZE, choices=_CAMVID),
    "target_json": Domain("your own set", described_target, SIZE, root="FILE"),
}


# Flags


def usual() -> tuple[str, ...]:
    """The flags of the first target and of the first source, which --help shows."""
    return tuple(flag(next(iter(table))) for table in (TARGETS, SOURCES))


def add_flags(
    group: argparse._ArgumentGroup, table: Mapping[str, Domain], root: str, listed: str | None = None
) -> None:
    """The flags of every domain in a table. root, listed: help of --KEY and --KEY-list, {title} for the domain's;
    without `listed` there is no list."""
    for key, domain in table.items():
        add_roots(group, {key: domain}, root)
        if listed is not None:
            group.add_argument(f"{flag(key)}-list", type=Path, metavar="FILE", help=listed)
        if domain.encodings:
            first = domain.encodings[0]
            group.add_argument(
                f"{flag(key)}-encoding", choices=domain.encodings, default=first,
                help=f"what label files hold ({first}{': by their mode' if first == 'auto' else ''})",
            )  # fmt: skip
        if domain.mapping:
            beside = "JSON with label2train (default: one beside the data)"
            group.add_argument(f"{flag(key)}-mapping", type=Path, metavar="FILE", help=beside)
    add_choices(group, table)


def add_roots(group: argparse._ArgumentGroup, table: Mapping[str, Domain], root: str) -> None:
    """--KEY DIR alone, of every domain in a table; {variable} in the help is what `from_environment` reads."""
    for key, domain in table.items():
        title = domain.title if domain.root == "DIR" else f"{domain.title}, a JSON that says where it lies"
        words = root.format(title=title, variable=f"${key.upper()}")
        group.add_argument(flag(key), type=Path, metavar=domain.root, help=words)


def add_choices(group: argparse._ArgumentGroup, table: Mapping[str, Domain], of_run: bool = False) -> None:
    """The flags of the domains' choices, but for those that are there. of_run: where none is given, it is the run's."""
    known = {action.dest for action in group._actions}
    for name, choice in {choice.name: choice for domain in table.values() for choice in domain.choices}.items():
        if name not in known:
            default = None if of_run else choice.values[0]
            group.add_argument(flag(name), choices=choice.values, default=default, help=choice.help)


def command_line(table: Mapping[str, Domain], given: Mapping[str, Any]) -> list[str]:
    """The flags that name domains of a table, and of their choices those that are not the defaults, as a command has
    them."""
    named = {key: domain for key, domain in table.items() if given.get(key) is not None}
    choices = dict.fromkeys(choice for domain in named.values() for choice in domain.choices)
    chosen = {c.name: given[c.name] for c in choices if given.get(c.name, c.values[0]) != c.values[0]}
    words = {key: str(given[key]) for key in named} | chosen
    return [text for name, value in words.items() for text in (flag(name), value)]


def roots(table: Mapping[str, Domain]) -> str:
    """The flags of a table in words: --gta5 DIR (or --camvid-day)."""
    first, *others = (flag(key) for key in table)
    return f"{first} DIR" + (f" (or {', '.join(others)})" if others else "")


def sizes(table: Mapping[str, Domain]) -> str:
    """The default working sizes in words: 1280x720, or what each domain has."""
    named = {key: "{}x{}".format(*domain.size) for key, domain in table.items()}
    if len(set(named.values())) == 1:
        return next(iter(named.values()))
    return ", ".join(f"{key} {size}" for key, size in named.items())


def arguments(source: bool = True) -> dict[str, Any]:
    """What the flags of all domains are where none is given: root, list and mapping None, the encoding its first.
    source: whether the script reads a source; one that does not knows of sources their roots alone."""
    found: dict[str, Any] = dict.fromkeys(SOURCES)
    for key, domain in ((SOURCES if source else {}) | TARGETS).items():
        found |= {key: None, f"{key}_list": None}
        found |= {f"{key}_encoding": domain.encodings[0]} if domain.encodings else {}
        found |= {f"{key}_mapping": None} if domain.mapping else {}
        found |= {choice.name: choice.values[0] for choice in domain.choices}
    return found


def chosen_values() -> dict[str, tuple[str, ...]]:
    """Every encoding and choice of all domains: argument -> the values that it has, the default first."""
    found: dict[str, tuple[str, ...]] = {}
    for key, domain in (*SOURCES.items(), *TARGETS.items()):
        found |= {f"{key}_encoding": domain.encodings} if domain.encodings else {}
        found |= {choice.name: choice.values for choice in domain.choices}
    return found


def of_target() -> tuple[str, ...]:
    """The arguments that say on what a run is evaluated: the roots of all targets, and their choices."""
    return (*TARGETS, *dict.fromkeys(choice.name for domain in TARGETS.values() for choice in domain.choices))


def refuse_idle_flags(given: Mapping[str, Any], *tables: Mapping[str, Domain]) -> None:
    """Raises `UserError` where a flag says how a data set of these tables is read, and its root is not named: its list,
    encoding or mapping, or a choice, such as --camvid-classes, of which several sets may be the takers."""
    takers: dict[str, list[str]] = {}
    for key, domain in ((key, domain) for table in tables for key, domain in table.items()):
        takers |= {f"{key}_{more}": [key] for more in ("list", "encoding", "mapping")}
        for choice in domain.choices:
            takers.setdefault(choice.name, []).append(key)
    for name, keys in takers.items():
        if all(given.get(key) is None for key in keys):
            refuse_idle(f"it takes {' or '.join(map(flag, keys))}", name)


def require_read_mappings(given: Mapping[str, Any]) -> None:
    """Raises `UserError` for --KEY-mapping beside --KEY-encoding trainIds: it maps ids, and there are none."""
    for key in (key for key, domain in (SOURCES | TARGETS).items() if domain.mapping):
        if given.get(f"{key}_mapping") is not None and given.get(f"{key}_encoding") == "trainIds":
            raise UserError(f"{flag(key)}-mapping does nothing here: it maps ids, and {flag(key)}-encoding is trainIds")


def from_environment(args: argparse.Namespace, *tables: Mapping[str, Domain]) -> None:
    """Roots that no flag names: $GTA5, $CITYSCAPES, and so for every domain; the first of a table that is set."""
    for table in tables:
        named = any(getattr(args, key) is not None for key in table)
        key = None if named else next((key for key in table if os.environ.get(key.upper())), None)
        if key is not None:
            setattr(args, key, Path(os.environ[key.upper()]))


# From what a run was given to its sets. `given`: the arguments as `vars(args)` or config.json has them.


def sources_of(given: Mapping[str, Any]) -> list[str]:
    """The keys of the sources that are named, in the order of the table: a run draws from several in turn."""
    return [key for key in SOURCES if given.get(key) is not None]


def target_of(given: Mapping[str, Any]) -> str | None:
    """The key of the target that is named, None where none is. Raises `UserError` for two."""
    found = [key for key in TARGETS if given.get(key) is not None]
    if len(found) > 1:
        raise UserError(f"{' and '.join(map(flag, found))}: a run has one target; name one of them")
    return found[0] if found else None


def source_with_protocol(given: Mapping[str, Any]) -> str | None:
    """The key of the source that is named and has a protocol. IntraDA names no source: that of the network before."""
    own = (key for key in sources_of(given) if SOURCES[key].protocol is not None)
    return next(own, given.get("intra_protocol"))


def protocol_of(given: Mapping[str, Any]) -> Protocol | None:
    """What is measured beside the mean IoU of all classes: see `source_with_protocol`."""
    key = source_with_protocol(given)
    return None if key is None else SOURCES[key].protocol


def open_source(given: Mapping[str, Any], labelled: bool = True) -> SegmentationSet | MixedSet:
    """All pictures of the source that is named, at --source-size, less what --KEY-list and --limit leave out; of
    several, all as one. Raises `UserError` where these have not the same classes, or have one name."""
    parts = tuple(_open_source(key, given, labelled) for key in sources_of(given))
    shared_classes(*parts)
    if len({part.name for part in parts}) < len(parts):
        raise UserError(f"two of the sources are called {parts[-1].name}; give your own set another name")
    return parts[0] if len(parts) == 1 else MixedSet(parts)


def _open_source(key: str, given: Mapping[str, Any], labelled: bool) -> SegmentationSet:
    more = _reading(key, SOURCES[key], given) | {"list_file": _path(given.get(f"{key}_list"))}
    size = tuple(given["source_size"])
    try:
        return SOURCES[key].load(Path(given[key]), size, labelled=labelled, limit=given.get("limit"), **more)
    except UserError as error:
        raise UserError(f"{error}{_laid_out_as(key, Path(given[key]), SOURCES, TARGETS)}") from None


def open_target(given: Mapping[str, Any], split: str, labelled: bool = True, listed: bool = False) -> SegmentationSet:
    """A split of the target that is named, at --size, less what --limit and, where `listed`, --KEY-list leave out."""
    key = target_of(given)
    more = _reading(key, TARGETS[key], given)
    more["list_file"] = _path(given.get(f"{key}_list")) if listed else None
    size = tuple(given["size"])
    try:
        return TARGETS[key].load(Path(given[key]), split, size, labelled=labelled, limit=given.get("limit"), **more)
    except UserError as error:
        raise UserError(f"{error}{_laid_out_as(key, Path(given[key]), TARGETS, SOURCES)}") from None


def _laid_out_as(key: str, root: Path, own: Mapping[str, Domain], others: Mapping[str, Domain]) -> str:
    """What an error about a root adds where it is laid out as another domain of its role, or else one of the other
    role; nothing elsewhere, nor where it is laid out as it should be and something else is wrong."""
    for table in (own, others):
        split = ("train",) if table is TARGETS else ()
        for other, domain in ({key: own[key]} | own if table is own else table).items():
            try:
                domain.load(root, *split, domain.size)
            except UserError:
                continue
            if other == key:
                return ""
            said = f". It is laid out as {domain.title}: "
            return said + (f"say {flag(other)}" if table is own else f"are {flag(key)} and {flag(other)} swapped?")
    return ""


def _reading(key: str, domain: Domain, given: Mapping[str, Any]) -> dict[str, Any]:
    """How labels are read, where the user can say."""
    found: dict[str, Any] = {}
    if domain.encodings:
        found["encoding"] = given.get(f"{key}_encoding", domain.encodings[0])
    for choice in domain.choices:
        found[choice.name.rpartition("_")[2]] = given.get(choice.name, choice.values[0])
    if domain.mapping:
        found["mapping_file"] = _path(given.get(f"{key}_mapping"))
    return found


def _path(text: Path | str | None) -> Path | None:
    return None if text is None else Path(text)
