"""Cityscapes (Cordts et al., CVPR 2016) in every layout in which it is met on disk.

    official       ROOT/leftImg8bit/SPLIT/CITY/CITY_SEQ_FRAME_leftImg8bit.png
                   ROOT/gtFine/SPLIT/CITY/CITY_SEQ_FRAME_gtFine_labelIds.png (or _labelTrainIds.png)
    course subset  ROOT/images/SPLIT/..., ROOT/gtFine/SPLIT/..., possibly one or two folders further down,
                   with or without the CITY folders

Pictures and labels are paired by name, so the folders between do not matter. The file name says which encoding
a label has; `datasets/check.py` refuses files whose values say otherwise.
"""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError

from .labels import CITYSCAPES_LABELS
from .pairs import by_key, existing_root, folder_of, is_folder, lies_in, limited, match, pictures_below
from .segmentation import SegmentationSet

FLAG = "--cityscapes"
LABEL_SUFFIXES = {"_gtFine_labelTrainIds": "trainIds", "_gtFine_labelIds": "ids"}


def cityscapes(
    root: Path | str,
    split: str,
    size: tuple[int, int] = (1024, 512),
    labelled: bool = True,
    list_file: Path | None = None,
    limit: int | None = None,
) -> SegmentationSet:
    """The pictures of one split; with `labelled=False` no label file is looked for or ever opened.

    Raises `UserError`: missing root, empty split, pictures without label or labels without picture.
    """
    root = existing_root(Path(root), FLAG)
    name = f"Cityscapes {split}"
    images = folder_of(root, "leftImg8bit", split) or folder_of(root, "images", split)
    if images is None:
        raise UserError(_no_pictures(root, split))
    pictures = by_key(pictures_below(images), lambda file: file.stem.removesuffix("_leftImg8bit"))
    if not pictures:
        raise UserError(f"{images}: the {split} split is empty; expected *_leftImg8bit.png or .jpg")
    encoding, labels = "ids", None
    if labelled:
        folder = folder_of(root, "gtFine", split)
        if folder is None:
            raise UserError(
                f"{FLAG} {root}: found the pictures in {images}, but no gtFine/{split} with their labels "
                f"({lies_in(root)})"
            )
        encoding, labels = _labels(folder)
    samples = limited(match(pictures, labels, list_file, name), limit)
    return SegmentationSet(name, samples, size, encoding, root=root, table=CITYSCAPES_LABELS)


def _no_pictures(root: Path, split: str) -> str:
    """Why there are none of a split: it is called otherwise, or this is no layout of Cityscapes."""
    home = folder_of(root, "leftImg8bit") or folder_of(root, "images")
    splits = sorted(path.name for path in home.iterdir() if is_folder(path)) if home else []
    if splits:
        return f"{FLAG} {root}: no split {split!r} is in {home}; there: {', '.join(splits)}"
    return (
        f"{FLAG} {root}: found neither leftImg8bit/{split} nor images/{split} up to three folders below "
        f"({lies_in(root)}); see docs/data.md, also for CamVid and for other sets"
    )


def _labels(folder: Path) -> tuple[str, dict[str, Path]]:
    """(encoding, label files by picture name); train ids are taken where both encodings are complete."""
    files = pictures_below(folder)
    found = {}
    for suffix, encoding in LABEL_SUFFIXES.items():
        named = [file for file in files if file.stem.endswith(suffix)]
        found[encoding] = by_key(named, lambda file, suffix=suffix: file.stem.removesuffix(suffix))
    encoding = max(found, key=lambda encoding: len(found[encoding]))  # the first of equals: trainIds
    if not found[encoding]:
        raise UserError(
            f"{folder}: no label is there; expected *_gtFine_labelIds.png or *_gtFine_labelTrainIds.png"
            + (f", found {files[0].name}" if files else "")
        )
    return encoding, found[encoding]
