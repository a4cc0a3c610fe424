"""Labels of a set's pictures that lie somewhere else, such as what another network saw in them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from utils.errors import UserError

from .pairs import NAMED, Sample, by_key, existing_root, pictures_below
from .segmentation import SegmentationSet

LABEL = "_labelTrainIds"
ENDINGS = (LABEL, "_gtFine", "_leftImg8bit")
"""What a file's name has beside the picture's own, in this order from the end."""


def labelled_from(data: SegmentationSet, folder: Path) -> SegmentationSet:
    """The set with the labels in the folder or below it: PNGs of train ids, 255 = ignore, of the pictures' shape.

    The label of street.jpg is street_labelTrainIds.png, as `predict.py` writes it, or else street.png. Where there is
    one of the former kind, other files are no labels; labels of other pictures are left alone. Raises `UserError` for
    pictures without a label, and for two labels of one.
    """
    files = [file for file in pictures_below(existing_root(folder, "--labels")) if file.suffix.lower() == ".png"]
    labels = by_key([file for file in files if file.stem.endswith(LABEL)] or files, own_name)
    lonely = [sample.image.name for sample in data.samples if own_name(sample.image) not in labels]
    if lonely:
        some = ", ".join(lonely[:NAMED]) + (", ..." if len(lonely) > NAMED else "")
        raise UserError(
            f"--labels {folder}: no label for {len(lonely)} of {len(data)} pictures of {data.name} ({some}); expected "
            f"{Path(lonely[0]).stem}{LABEL}.png, as predict.py writes it, or {Path(lonely[0]).stem}.png"
        )
    samples = [Sample(s.name, s.image, labels[own_name(s.image)]) for s in data.samples]
    name, own = f"{data.name}, given labels", {"mapping": None, "encoding_flag": None}
    return replace(data, name=name, samples=samples, encoding="trainIds", same_shape=True, **own)


def own_name(path: Path) -> str:
    """Of a picture or of its label: what the two have in common."""
    name = path.stem
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return name


def digest(data: SegmentationSet) -> str:
    """SHA-256 of all label files, in the order of the pictures. Raises `UserError` for one that cannot be read."""
    whole = hashlib.sha256()
    for sample in data.samples:
        try:
            whole.update(hashlib.sha256(sample.label.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"{sample.label}: cannot be read ({error.strerror})") from None
    return whole.hexdigest()
