"""Labels of a set's pictures that lie somewhere else, such as what another network saw in them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from PIL import Image

from utils.errors import UserError

from .pairs import NAMED, Sample, by_key, existing_root, pictures_below
from .segmentation import SegmentationSet

LABEL = "_labelTrainIds"
CLASSES = "classes"
"""What the text in a PNG of `predict.py` is called that names the classes of its train ids."""
ENDINGS = (LABEL, "_gtFine", "_leftImg8bit")
"""What a file's name has beside the picture's own, in this order from the end."""


def labelled_from(data: SegmentationSet, folder: Path) -> SegmentationSet:
    """The set with the labels in the folder or below it: PNGs of train ids, 255 = ignore, of the pictures' shape.

    The label of street.jpg is street_labelTrainIds.png, as `predict.py` writes it, or else street.png. Where there is
    one of the former kind, other files are no labels; labels of other pictures are left alone. Raises `UserError` for
    pictures without a label, for two labels of one, and for labels that say that they are of other classes.
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
    for sample in samples:
        if (said := _classes_said(sample.label)) not in (None, ", ".join(data.classes.names)):
            raise UserError(
                f"{sample.label}: labels of other classes ({said}) than those of {data.name}; let a network of its "
                "classes predict them"
            )
    name, own = f"{data.name}, given labels", {"mapping": None, "encoding_flag": None}
    return replace(data, name=name, samples=samples, encoding="trainIds", same_shape=True, **own)


def _classes_said(label: Path) -> str | None:
    """None where a file does not say them, as those that others made."""
    try:
        with Image.open(label, formats=("PNG",)) as image:
            return image.info.get(CLASSES)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # the check says what is wrong


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
