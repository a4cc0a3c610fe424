"""The label taxonomies: every table that turns what lies in a label file into one of 19 train ids.

Sources: Cityscapes' own label table (Cordts et al., CVPR 2016), which GTA5 shares (Richter et al., ECCV 2016).
A label is never guessed: whatever is not in a table here is `IGNORE`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils import metrics
from utils.errors import UserError

VERSION = 1
"""Raised whenever a table below changes its meaning, so that prepared data made with the old one are not used."""

IGNORE = metrics.IGNORE
"""255, the train id of every pixel that counts nowhere: not in the loss, not in a metric."""

# (Cityscapes id, name, train id or IGNORE, colour); id 34 is GTA5's index for the licence plate (Cityscapes: -1).
_TABLE = (
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

CITYSCAPES_ID_TO_TRAIN_ID: dict[int, int] = {row[0]: row[2] for row in _TABLE} | {-1: IGNORE}
TRAIN_ID_TO_CITYSCAPES_ID: dict[int, int] = {train: id_ for id_, _, train, _ in _TABLE if train != IGNORE}
NUM_CLASSES = len(TRAIN_ID_TO_CITYSCAPES_ID)

_BY_TRAIN_ID = sorted((row for row in _TABLE if row[2] != IGNORE), key=lambda row: row[2])
CLASS_NAMES: tuple[str, ...] = tuple(row[1] for row in _BY_TRAIN_ID)
"""The 19 names, in the order of the train ids."""

PALETTE: np.ndarray = np.array([row[3] for row in _BY_TRAIN_ID], dtype=np.uint8)
"""[19, 3] RGB, the colour of each train id."""

CITYSCAPES_PALETTE: np.ndarray = np.zeros((256, 3), dtype=np.uint8)
"""[256, 3] RGB, the colour of each Cityscapes id (black where there is none)."""
for _id, _, _, _colour in _TABLE:
    CITYSCAPES_PALETTE[_id] = _colour

ENCODINGS = ("ids", "trainIds", "colours")
"""What a label file may hold: Cityscapes ids, train ids, or the RGB colours of the table."""


def id_table(mapping: dict[int, int] | None = None) -> np.ndarray:
    """A uint8 [256] table from Cityscapes id to train id; ids that `mapping` lacks are `IGNORE`.

    -1, where a mapping names it, is what an 8-bit file stores as 255.
    """
    table = np.full(256, IGNORE, dtype=np.uint8)
    for id_, train in (CITYSCAPES_ID_TO_TRAIN_ID if mapping is None else mapping).items():
        table[id_ % 256] = train
    return table


def train_id_table() -> np.ndarray:
    """A uint8 [256] table that keeps train ids 0 to 18 and makes all else `IGNORE`."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[:NUM_CLASSES] = np.arange(NUM_CLASSES)
    return table


UNKNOWN_COLOUR = 254
"""What `colour_ids` gives for a colour that is in no table; never a Cityscapes id."""


@lru_cache(maxsize=1)
def _colour_table() -> np.ndarray:
    """uint8 [2**24]: packed RGB -> Cityscapes id. Of two ids with one colour the first stands: pole before pole
    group, car before licence plate, unlabeled before every other black one."""
    table = np.full(1 << 24, UNKNOWN_COLOUR, dtype=np.uint8)
    for id_, _, _, (red, green, blue) in reversed(_TABLE):
        if id_ != 34:  # the licence plate's colour is car's, and car is what it stands for
            table[red << 16 | green << 8 | blue] = id_
    return table


def colour_ids(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] colours -> uint8 [H, W] Cityscapes ids, `UNKNOWN_COLOUR` where the colour is in no table."""
    wide = rgb.astype(np.int32)
    return _colour_table()[wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]]


def load_mapping(path: Path) -> dict[int, int]:
    """Reads `{"label2train": [[id, train id], ...]}`, the JSON that travels with GTA5 in this field.

    Train ids -1 and 255 both mean `IGNORE`. Raises `UserError` naming the file and the first entry that is wrong.
    """
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))["label2train"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}: expected JSON with "label2train": [[id, train id], ...], '
            f"could not read it ({type(error).__name__}: {error})"
        ) from None
    mapping: dict[int, int] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)
        if not whole or not -1 <= pair[0] <= 255 or not (-1 <= pair[1] < NUM_CLASSES or pair[1] == IGNORE):
            raise UserError(
                f"{path}: label2train holds {json.dumps(pair)[:60]}, expected [id from -1 to 255, train id from 0 "
                f"to {NUM_CLASSES - 1}, or -1 or 255 to ignore]"
            )
        mapping[pair[0]] = IGNORE if pair[1] == -1 else pair[1]
    if not any(train != IGNORE for train in mapping.values()):
        raise UserError(f"{path}: label2train maps nothing to any of the {NUM_CLASSES} classes")
    return mapping


def colourise(train_ids: np.ndarray) -> np.ndarray:
    """uint8 [H, W] train ids -> uint8 [H, W, 3] RGB, ignored pixels black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:NUM_CLASSES] = PALETTE
    return table[train_ids]


def to_cityscapes_ids(train_ids: np.ndarray) -> np.ndarray:
    """uint8 [H, W] train ids -> uint8 [H, W] Cityscapes ids, as the official test server takes them (ignore: 0)."""
    table = np.zeros(256, dtype=np.uint8)
    for train, id_ in TRAIN_ID_TO_CITYSCAPES_ID.items():
        table[train] = id_
    return table[train_ids]
