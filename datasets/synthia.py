"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9,400 pictures of a drawn city, in every layout in which it is met.

    published   ROOT/RGB/0000000.png with ROOT/GT/LABELS/0000000.png, 16-bit RGB whose red is SYNTHIA's id
    mapped      ROOT/synthia_mapped_to_cityscapes/0000000.png, 8-bit Cityscapes ids, in place of GT/LABELS
    converted   ROOT/GT/LABELS/0000000_labelTrainIds.png, 8-bit train ids, alone or beside the published files

Where several are there, the one with the most files is read, the published one first. GT/COLOR is not read.
"""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError

from .labels import CITYSCAPES_LABELS, RED16, SYNTHIA_LABELS
from .pairs import by_key, existing_root, folder_of, lies_in, limited, match, pictures_below
from .segmentation import SegmentationSet

FLAG = "--synthia"
MAPPED = "synthia_mapped_to_cityscapes"
CONVERTED = "_labelTrainIds"


def synthia(
    root: Path | str,
    size: tuple[int, int] = (1280, 760),
    labelled: bool = True,
    list_file: Path | None = None,
    limit: int | None = None,
) -> SegmentationSet:
    """All labelled pictures below the root.

    Raises `UserError`: missing root, no pictures, pictures without label or labels without picture.
    """
    root = existing_root(Path(root), FLAG)
    folder = folder_of(root, "RGB")
    pictures = {} if folder is None else by_key(pictures_below(folder), lambda file: file.stem)
    if not pictures:
        raise UserError(f"{FLAG} {root}: found no RGB/ with pictures up to three folders below ({lies_in(root)})")
    encoding, table, labels = _labels(root) if labelled else (RED16, SYNTHIA_LABELS, None)
    samples = limited(match(pictures, labels, list_file, "SYNTHIA"), limit)
    return SegmentationSet("SYNTHIA", samples, size, encoding, root=root, table=table)


def _labels(root: Path):
    """(encoding, table, label files by picture name) of the layout that is most complete."""
    own, mapped = (
        [] if folder is None else pictures_below(folder)
        for folder in (folder_of(root, "GT", "LABELS"), folder_of(root, MAPPED))
    )  # fmt: skip
    published = [file for file in own if not file.stem.endswith(CONVERTED)]
    converted = [file for file in own if file.stem.endswith(CONVERTED)]
    layouts = [
        (RED16, SYNTHIA_LABELS, published), ("ids", CITYSCAPES_LABELS, mapped),
        ("trainIds", CITYSCAPES_LABELS, converted),
    ]  # fmt: skip
    encoding, table, files = max(layouts, key=lambda layout: len(layout[-1]))  # the first of equals
    if not files:
        raise UserError(f"{FLAG} {root}: found pictures, but labels neither in GT/LABELS/ nor in {MAPPED}/")
    return encoding, table, by_key(files, lambda file: file.stem.removesuffix(CONVERTED))
