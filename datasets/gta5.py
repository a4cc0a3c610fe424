"""GTA5 (Richter et al., ECCV 2016): ROOT/images/00001.png with ROOT/labels/00001.png, frames of a game.

Official labels are palette PNGs whose index is the Cityscapes id; others hold the same ids as grey values, or the
colours of the palette. A JSON `{"label2train": [[id, train id], ...]}` beside the data, or named by the user,
decides the mapping of ids. A few official pairs (15188, 17705) differ in size between picture and label; both are
brought to the working size on their own.
"""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError

from .labels import CITYSCAPES_LABELS, load_mapping
from .pairs import by_key, existing_root, folders_below, is_folder, lies_in, limited, match, pictures_below
from .segmentation import SegmentationSet

FLAG = "--gta5"


def gta5(
    root: Path | str,
    size: tuple[int, int] = (1280, 720),
    labelled: bool = True,
    encoding: str = "auto",
    mapping_file: Path | None = None,
    list_file: Path | None = None,
    limit: int | None = None,
) -> SegmentationSet:
    """All labelled frames below the root. `encoding` is one of `labels.ENCODINGS`.

    Raises `UserError`: missing root, no frames, pictures without label or labels without picture, a bad mapping.
    """
    root = existing_root(Path(root), FLAG)
    needed = ("images", "labels") if labelled else ("images",)
    home = next((f for f in folders_below(root) if all(is_folder(f / name) for name in needed)), None)
    if home is None:
        beside = " beside labels/" if labelled else ""
        raise UserError(f"{FLAG} {root}: found no images/{beside} up to three folders below ({lies_in(root)})")
    pictures = by_key(pictures_below(home / "images"), lambda file: file.stem)
    if not pictures:
        raise UserError(f"{home / 'images'}: empty; expected 00001.png, 00002.png, ...")
    label_files = by_key(pictures_below(home / "labels"), lambda file: file.stem) if labelled else None
    samples = limited(match(pictures, label_files, list_file, "GTA5"), limit)
    mapping_file = mapping_file or _mapping_beside(home, root)
    mapping = None if mapping_file is None else load_mapping(mapping_file, CITYSCAPES_LABELS.classes)
    return SegmentationSet(
        "GTA5", samples, size, encoding, mapping, same_shape=False, root=root, table=CITYSCAPES_LABELS,
        encoding_flag=f"{FLAG}-encoding",
    )  # fmt: skip


def _mapping_beside(home: Path, root: Path) -> Path | None:
    """The one JSON file with a label2train beside the data. Raises `UserError` when there are several."""
    found = [file for folder in sorted({home, root}) for file in sorted(folder.glob("*.json")) if _is_mapping(file)]
    if len(found) > 1:
        raise UserError(f"both {found[0]} and {found[1]} hold a label2train; name one with --gta5-mapping FILE")
    return found[0] if found else None


def _is_mapping(file: Path) -> bool:
    """By its text, so that a damaged mapping is reported by `load_mapping` rather than passed over."""
    try:
        return '"label2train"' in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
