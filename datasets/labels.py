"""The classes of a data set, and the table that turns what lies in its label files into their train ids.

Cityscapes' own table (Cordts et al., CVPR 2016) stands here; GTA5 shares it (Richter et al., ECCV 2016). SYNTHIA has
other ids of the same classes (Ros et al., CVPR 2016). Another data set makes a `LabelTable` of its own. A label is
never guessed: whatever is not in its table is `IGNORE`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import metrics
from utils.errors import UserError

VERSION = 1
"""Raised whenever a table below changes its meaning, so that prepared data made with the old one are not used."""

IGNORE = metrics.IGNORE
"""255, the train id of every pixel that counts nowhere: not in the loss, not in a metric."""

ENCODINGS = ("auto", "ids", "trainIds", "colours")
"""What a label file may hold: the ids of its table, train ids, or the RGB colours of the table. auto: by its mode."""

RED16 = "synthia"
"""What SYNTHIA's files hold beside these: 16-bit RGB whose red is the id of its table, whose green an instance."""

UNKNOWN_COLOUR = 254
"""What `LabelTable.colour_ids` gives for a colour that is in no table; never an id."""

Colour = tuple[int, int, int]
"""RGB, each from 0 to 255."""


@dataclass(frozen=True)
class Classes:
    """What a network tells apart, in the order of the train ids: class k has name k and colour k."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The train id of a name. Raises ValueError for a name that is none of the classes."""
        return self.names.index(name)

    @property
    def palette(self) -> np.ndarray:
        """uint8 [C, 3] RGB."""
        return np.array(self.colours, dtype=np.uint8)

    def colourise(self, train_ids: np.ndarray) -> np.ndarray:
        """uint8 [H, W] train ids -> uint8 [H, W, 3] RGB, ignored pixels black."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(self)] = self.palette
        return table[train_ids]


def require_same_classes(one: str, classes: Classes, other: str, others: Classes) -> None:
    """Raises `UserError`, naming both, unless the two have the same names in the same order."""
    if classes.names == others.names:
        return
    alone = [
        f"{who} alone has {', '.join(names)}"
        for who, names in (
            (one, [name for name in classes.names if name not in others.names]),
            (other, [name for name in others.names if name not in classes.names]),
        )
        if names
    ]
    raise UserError(
        f"{one} has {len(classes)} classes and {other} {len(others)}, which are not the same: "
        + ("; ".join(alone) or "they come in another order")
    )


class Label(NamedTuple):
    """A row of a label table: what the files call `id` or show in `colour` is the class `train_id`, or `IGNORE`."""

    id: int
    name: str
    train_id: int
    colour: Colour


@dataclass(frozen=True)
class LabelTable:
    """How the label files of a data set are read. title: whose ids and colours they are. Ids are 0 to 253. Several rows
    may be one class; where two rows have one colour, the first stands. everywhere: a class that any dozen pictures
    have, if there is one; labels that have neither it nor a later one are those of other classes. unlisted: of a table
    of the user's own, whether to "refuse" or to "ignore" what is in no row; None: ids are refused, colours ignored."""

    title: str
    classes: Classes
    rows: tuple[Label, ...]
    everywhere: str | None = None
    unlisted: str | None = None

    @property
    def palette(self) -> np.ndarray:
        """uint8 [256, 3] RGB, the colour of each id (black where there is none)."""
        colours = np.zeros((256, 3), dtype=np.uint8)
        for row in self.rows:
            colours[row.id] = row.colour
        return colours

    @property
    def train_ids(self) -> dict[int, int]:
        """Id -> train id."""
        return {row.id: row.train_id for row in self.rows}

    def by_id(self, mapping: dict[int, int] | None = None) -> np.ndarray:
        """A uint8 [256] table from id to train id; ids that `mapping`, or else the table, lacks are `IGNORE`.

        -1, where a mapping names it, is what an 8-bit file stores as 255.
        """
        table = np.full(256, IGNORE, dtype=np.uint8)
        for id_, train in (self.train_ids if mapping is None else mapping).items():
            table[id_ % 256] = train
        return table

    def by_train_id(self) -> np.ndarray:
        """A uint8 [256] table that keeps the classes' train ids and makes all else `IGNORE`."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[: len(self.classes)] = np.arange(len(self.classes))
        return table

    def colour_ids(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] colours -> uint8 [H, W] ids, `UNKNOWN_COLOUR` where the colour is in no row."""
        wide = rgb.astype(np.int32)
        return _colour_table(self)[wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]]

    def key(self) -> list[Any]:
        """What tells this table from Cityscapes', for the keys of what depends on how labels are read: nothing for
        Cityscapes' own, whose `VERSION` stands in those keys. What `unlisted` "ignore" let pass is not for "refuse"."""
        more = [self.unlisted] if self.unlisted == "ignore" else []
        return [] if self == CITYSCAPES_LABELS else [self.title, self.classes.names, self.rows, *more]


@lru_cache(maxsize=2)
def _colour_table(table: LabelTable) -> np.ndarray:
    """uint8 [2**24]: packed RGB -> id."""
    ids = np.full(1 << 24, UNKNOWN_COLOUR, dtype=np.uint8)
    for row in reversed(table.rows):  # the first of one colour stands: pole before pole group, car before licence plate
        red, green, blue = row.colour
        ids[red << 16 | green << 8 | blue] = row.id
    return ids


# (Cityscapes id, name, train id or IGNORE, colour); id 34 is GTA5's index for the licence plate (Cityscapes: -1).
_ROWS = (
    (0, "unlabeled", IGNORE, (0, 0, 0)),
    (1, "ego vehicle", IGNORE, (0, 0, 0)),
    (2, "rectification border", IGNORE, (0, 0, 0)),
    (3, "out of roi", IGNORE, (0, 0, 0)),
    (4, "static", IGNORE, (0, 0, 0)),
    (5, "dynamic", IGNORE, (111, 74, 0)),
    (6, "ground", IGNORE, (81, 0, 81)),
    (7, "road", 0, (128, 64, 128)),
    (8, "sidewalk", 1, (244, 35, 232)),
    (9, "parking", IGNORE, (250, 170, 160)),
    (10, "rail track", IGNORE, (230, 150, 140)),
    (11, "building", 2, (70, 70, 70)),
    (12, "wall", 3, (102, 102, 156)),
    (13, "fence", 4, (190, 153, 153)),
    (14, "guard rail", IGNORE, (180, 165, 180)),
    (15, "bridge", IGNORE, (150, 100, 100)),
    (16, "tunnel", IGNORE, (150, 120, 90)),
    (17, "pole", 5, (153, 153, 153)),
    (18, "pole group", IGNORE, (153, 153, 153)),
    (19, "traffic light", 6, (250, 170, 30)),
    (20, "traffic sign", 7, (220, 220, 0)),
    (21, "vegetation", 8, (107, 142, 35)),
    (22, "terrain", 9, (152, 251, 152)),
    (23, "sky", 10, (70, 130, 180)),
    (24, "person", 11, (220, 20, 60)),
    (25, "rider", 12, (255, 0, 0)),
    (26, "car", 13, (0, 0, 142)),
    (27, "truck", 14, (0, 0, 70)),
    (28, "bus", 15, (0, 60, 100)),
    (29, "caravan", IGNORE, (0, 0, 90)),
    (30, "trailer", IGNORE, (0, 0, 110)),
    (31, "train", 16, (0, 80, 100)),
    (32, "motorcycle", 17, (0, 0, 230)),
    (33, "bicycle", 18, (119, 11, 32)),
    (34, "license plate", IGNORE, (0, 0, 142)),
)

_BY_TRAIN_ID = sorted((row for row in _ROWS if row[2] != IGNORE), key=lambda row: row[2])

CITYSCAPES = Classes(tuple(row[1] for row in _BY_TRAIN_ID), tuple(row[3] for row in _BY_TRAIN_ID))
"""The 19 classes of Cityscapes' benchmark, on which most of this field trains."""

CITYSCAPES_LABELS = LabelTable("Cityscapes", CITYSCAPES, tuple(Label(*row) for row in _ROWS), "car")
"""What label files of Cityscapes and GTA5 hold."""

# Of SYNTHIA-RAND-CITYSCAPES: (id, name, Cityscapes' class or None). Terrain, truck and train have ids and no pixel.
# Lane markings are ignored, as in CBST, CLAN, FADA and DAFormer; RTDA makes them road, which is another protocol.
_SYNTHIA = (
    *((0, "void", None), (1, "sky", "sky"), (2, "building", "building"), (3, "road", "road")),
    *((4, "sidewalk", "sidewalk"), (5, "fence", "fence"), (6, "vegetation", "vegetation"), (7, "pole", "pole")),
    *((8, "car", "car"), (9, "traffic sign", "traffic sign"), (10, "pedestrian", "person"), (11, "bicycle", "bicycle")),
    *((12, "motorcycle", "motorcycle"), (13, "parking slot", None), (14, "road work", None)),
    *((15, "traffic light", "traffic light"), (16, "terrain", "terrain"), (17, "rider", "rider")),
    *((18, "truck", "truck"), (19, "bus", "bus"), (20, "train", "train"), (21, "wall", "wall")),
    (22, "lane marking", None),
)


def _synthia(id_: int, name: str, same: str | None) -> Label:
    train = IGNORE if same is None else CITYSCAPES.index(same)
    return Label(id_, name, train, (0, 0, 0) if same is None else CITYSCAPES.colours[train])


SYNTHIA_LABELS = LabelTable("SYNTHIA", CITYSCAPES, tuple(_synthia(*row) for row in _SYNTHIA))
"""What label files of SYNTHIA hold. Its own colours are not read: these are Cityscapes'."""


class Protocol(NamedTuple):
    """How a benchmark reads a confusion matrix of more classes than it knows: pixels whose label is none of `counted`
    count nowhere, while a pixel predicted as another class is wrong. means: a figure's name -> over which classes' IoU
    it is the mean."""

    counted: tuple[str, ...]
    means: dict[str, tuple[str, ...]]


_SIXTEEN = tuple(name for name in CITYSCAPES.names if name not in ("terrain", "truck", "train"))
_THIRTEEN = tuple(name for name in _SIXTEEN if name not in ("wall", "fence", "pole"))
SYNTHIA_PROTOCOL = Protocol(_SIXTEEN, {"miou16": _SIXTEEN, "miou13": _THIRTEEN})
"""Of SYNTHIA to Cityscapes: the target's terrain, truck and train are ignored; both means are of the same 16 (CBST,
ADVENT, FADA). DAFormer's README has another one: all pixels count, and the mean of 19 is taken times 19/16."""

CLASS_NAMES: tuple[str, ...] = CITYSCAPES.names
CITYSCAPES_ID_TO_TRAIN_ID: dict[int, int] = CITYSCAPES_LABELS.train_ids | {-1: IGNORE}
CITYSCAPES_PALETTE: np.ndarray = CITYSCAPES_LABELS.palette


def load_mapping(path: Path, classes: Classes) -> dict[int, int]:
    """Reads `{"label2train": [[id, train id], ...]}`, the JSON that travels with GTA5 in this field.

    Train ids are those of `classes`; -1 and 255 both mean `IGNORE`. Raises `UserError` naming the file and the first
    entry that is wrong.
    """
    try:
        pairs = json.loads(path.read_text(encoding="utf-8-sig"))["label2train"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}: expected JSON with "label2train": [[id, train id], ...], '
            f"could not read it ({type(error).__name__}: {error})"
        ) from None
    mapping: dict[int, int] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)
        if not whole or not -1 <= pair[0] <= 255 or not (-1 <= pair[1] < len(classes) or pair[1] == IGNORE):
            raise UserError(
                f"{path}: label2train holds {json.dumps(pair)[:60]}, expected [id from -1 to 255, train id from 0 "
                f"to {len(classes) - 1}, or -1 or 255 to ignore]"
            )
        mapping[pair[0]] = IGNORE if pair[1] == -1 else pair[1]
    if not any(train != IGNORE for train in mapping.values()):
        raise UserError(f"{path}: label2train maps nothing to any of the {len(classes)} classes")
    return mapping


def to_cityscapes_ids(train_ids: np.ndarray) -> np.ndarray:
    """uint8 [H, W] train ids -> uint8 [H, W] Cityscapes ids, as the official test server takes them (ignore: 0)."""
    table = np.zeros(256, dtype=np.uint8)
    for id_, _, train, _ in _BY_TRAIN_ID:
        table[train] = id_
    return table[train_ids]
