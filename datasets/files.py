"""Reading one picture or one label file, with errors that name the file; no picture is decoded unmeasured."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError

from .labels import IGNORE, RED16, UNKNOWN_COLOUR, LabelTable

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 100_000_000
"""The largest picture that is decoded (Cityscapes: 2.1 million); a header that claims more is refused unread."""

MAX_SIDE = 65_535
"""A JPEG's. What is drawn beside a longer PNG of a few pixels' width would take gigabytes."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `_open` refuses what is too large

MAX_UNKNOWN_SHARE = 0.5
"""Colours in no table are ignored pixels; a file in which more than this share is unknown is no label of ours."""


def is_picture(path: Path) -> bool:
    """By its name; hidden files (macOS leaves `._*.png`) are no pictures."""
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def _open(path: Path, sixteen: bool = False) -> Image.Image:
    """Decodes the file; `sixteen`: a 16-bit RGB PNG, of which it gives the low bytes. Raises `UserError` naming it for
    anything that is not a whole, sane picture."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes); copy or download it again")
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise UserError(
                    f"{path}: claims {image.width} x {image.height} pixels, over the limit of {MAX_PIXELS:,} or of "
                    f"{MAX_SIDE:,} a side; the file is damaged or no street picture"
                )
            if sixteen:
                _take_low_bytes(path, image)
            image.load()
            return image
    except UnidentifiedImageError:
        raise UserError(f"{path}: expected a PNG or JPEG picture, found something else") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, LookupError, EOFError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); the file is cut short or damaged") from None


def _take_low_bytes(path: Path, image: Image.Image) -> None:
    """Pillow makes 16-bit RGB 8-bit by its high bytes: every class of SYNTHIA would be 0, without a word."""
    if [tile[3] for tile in image.tile] != ["RGB;16B"]:
        if image.mode in ("RGB", "RGBA"):
            cause = "is this from GT/COLOR, or was it saved by a program that keeps 8 bits? Unpack GT/LABELS again"
        else:
            cause = "copies with Cityscapes ids belong in synthia_mapped_to_cityscapes/"
        raise UserError(
            f"{path}: expected a 16-bit RGB PNG, as SYNTHIA's labels are, found 8-bit {image.format} or another mode "
            f"({image.mode}); {cause}"
        )
    image.tile = [
        tile._replace(args="RGB;16L") if hasattr(tile, "_replace") else (*tile[:3], "RGB;16L")  # Pillow 10's are plain
        for tile in image.tile
    ]


def stamp(path: Path) -> list[str | int]:
    """Path, size and time of a file: another file has another. Raises `UserError` for one that is gone."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone. Raises `UserError`."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, LookupError, struct.error, Image.DecompressionBombError):
        image = _open(path)  # says what is wrong
        return image.size


def read_image(path: Path, upright: bool = False) -> Tensor:
    """uint8 [3, H, W] RGB at the file's own size, channels last in memory; `upright`: turned as its EXIF data say. In a
    data set such a picture is refused: nobody knows whether its label follows. Raises `UserError`."""
    image = _open(path)
    if upright:
        try:
            image = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error) as error:
            raise UserError(f"{path}: its EXIF data are damaged ({error}); save it anew without them") from None
    elif _turned(image):
        raise UserError(
            f"{path}: turned by its EXIF data, and its label may not be; save it as the label lies, without them"
        )
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1"):
        raise UserError(f"{path}: expected 8 bits a channel, found PNG mode {image.mode}; convert it to RGB")
    array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


def _turned(image: Image.Image) -> bool:
    """Whether its EXIF data turn or mirror it; damaged ones do not."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return False


def read_label(path: Path, encoding: str, table: LabelTable, mapping: dict[int, int] | None = None) -> Tensor:
    """uint8 [H, W] train ids at the file's own size.

    `encoding` is one of `labels.ENCODINGS`, or `labels.RED16`; `auto` takes an RGB file for colours, any other for ids.
    `mapping` (id -> train id) replaces the one of `table`. Raises `UserError` for values that the encoding cannot hold.
    """
    values, held = raw_label(path, encoding, table)
    classes, by_id = len(table.classes), table.by_id(mapping)
    if held == "trainIds":
        expected = f"train ids (0 to {classes - 1}, {IGNORE})"
        _refuse_foreign(path, values, (*range(classes), IGNORE), expected, "a labelIds file under another name?")
        return torch.from_numpy(table.by_train_id()[values])
    if held == "colours":
        unknown = float(np.mean(values == UNKNOWN_COLOUR))
        if unknown > 0 and table.unlisted == "refuse":
            found = np.array(_open(path).convert("RGB"))[values == UNKNOWN_COLOUR][0].tolist()
            raise UserError(
                f"{path}: expected colours that {table.title} lists, found {found}; list it, or ignore the unlisted"
            )
        if unknown > MAX_UNKNOWN_SHARE and table.unlisted is None:
            raise UserError(
                f"{path}: {unknown:.0%} of the pixels have colours that are in no {table.title} palette; expected the "
                f"palette of the {classes} classes (is this a picture, or another data set's label?)"
            )
        by_id[UNKNOWN_COLOUR] = IGNORE
    elif mapping is None and table.unlisted != "ignore":
        ids = table.train_ids
        expected = f"{table.title} ids ({min(ids)} to {max(ids)})"
        _refuse_foreign(path, values, (*ids, IGNORE), expected, "another data set's label?")
    return torch.from_numpy(by_id[values])


def raw_label(path: Path, encoding: str, table: LabelTable) -> tuple[np.ndarray, str]:
    """What the file holds before it is mapped: (uint8 [H, W], its encoding).

    Colours come as the ids of `table`, `labels.UNKNOWN_COLOUR` where the colour is unknown.
    """
    image = _open(path, sixteen=encoding == RED16)
    if encoding == RED16:
        return np.array(image.getchannel("R")), encoding
    if image.format != "PNG":
        raise UserError(f"{path}: a label as {image.format}? Its compression invents values; labels must be PNG")
    if encoding == "auto":
        encoding = "colours" if image.mode in ("RGB", "RGBA") else "ids"
    if encoding == "colours":
        return table.colour_ids(np.array(image.convert("RGB"))), encoding
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise UserError(
            f"{path}: expected {encoding} (a grey or palette PNG), found mode {image.mode}; "
            "is this a colour rendering of the label?"
        )
    values = np.array(image)
    if image.mode == "L" and (bits := _bit_depth(path)) < 8:
        values //= 255 // (2**bits - 1)  # Pillow spreads grey values of 2 and 4 bits over 0 to 255
    if image.mode == "P":
        _refuse_foreign_palette(path, image, encoding, np.unique(values), table)
    if values.size and (values.min() < 0 or values.max() > 255):
        raise UserError(f"{path}: expected {encoding} from 0 to 255, found {values.min()} to {values.max()}")
    return values.astype(np.uint8), encoding


def _bit_depth(path: Path) -> int:
    """Of a channel of a PNG, which stands behind the signature and the size."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _refuse_foreign_palette(
    path: Path, image: Image.Image, encoding: str, used: np.ndarray, table: LabelTable
) -> None:
    """An image tool that saves colour labels as indexed PNG makes a palette of its own: the index is no id then. Train
    ids may also lie under the palette of the ids, from which a file was converted."""
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    by_train_id = encoding == "trainIds"
    meant = {row.id: row for row in table.rows if not by_train_id or row.train_id != IGNORE}
    for index in used[used < len(palette)].tolist():
        shown_id = int(table.colour_ids(palette[None, index : index + 1])[0, 0])
        shown = None if shown_id == UNKNOWN_COLOUR else meant.get(shown_id)
        own = [table.palette[index].tolist()]
        if by_train_id:
            own += map(list, table.classes.colours[index : index + 1])
        legal = index < len(table.classes) if by_train_id else index in meant
        if legal and not by_train_id and table.unlisted is not None and meant[index].train_id == IGNORE:
            continue  # a set of the user's own does not say in which colour its ignored ids are shown
        if legal and shown is not None and palette[index].tolist() not in own:
            what = "train id" if by_train_id else f"{table.title} id"
            raise UserError(
                f"{path}: expected a palette PNG whose index is the {what}, but index {index} has the colour of "
                f"{shown.name}; the colours were re-indexed by an image tool. Convert the labels back to RGB"
            )


def _refuse_foreign(path: Path, values: np.ndarray, legal: tuple[int, ...], expected: str, cause: str) -> None:
    known = np.zeros(256, dtype=bool)
    known[list(legal)] = True
    if not known[values].all():
        found = values[~known[values]]
        raise UserError(f"{path}: expected {expected}, found the value {found.min()}; {cause}")
