"""Reading one picture or one label file, with errors that name the file; no picture is decoded unmeasured."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError

from . import labels

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 100_000_000
"""The largest picture that is decoded (Cityscapes: 2.1 million); a header that claims more is refused unread."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `_open` refuses what is too large

MAX_UNKNOWN_SHARE = 0.5
"""Colours in no table are ignored pixels; a file in which more than this share is unknown is no label of ours."""


def _open(path: Path) -> Image.Image:
    """Decodes the file. Raises `UserError` naming it for anything that is not a whole, sane picture."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes); copy or download it again")
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: claims {image.width} x {image.height} pixels, over the limit of {MAX_PIXELS:,}; "
                    "the file is damaged or no street picture"
                )
            image.load()
            return image
    except UnidentifiedImageError:
        raise UserError(f"{path}: expected a PNG or JPEG picture, found something else") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); the file is cut short or damaged") from None


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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        image = _open(path)  # says what is wrong
        return image.size


def read_image(path: Path, upright: bool = False) -> Tensor:
    """uint8 [3, H, W] RGB at the file's own size, channels last in memory; `upright`: turned as its EXIF data say,
    which data sets never need and labels could not follow. Raises `UserError`."""
    image = _open(path)
    if upright:
        try:
            image = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error) as error:
            raise UserError(f"{path}: its EXIF data are damaged ({error}); save it anew without them") from None
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1"):
        raise UserError(f"{path}: expected 8 bits a channel, found PNG mode {image.mode}; convert it to RGB")
    array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


def read_label(path: Path, encoding: str, mapping: dict[int, int] | None = None) -> Tensor:
    """uint8 [H, W] train ids at the file's own size.

    `encoding` is one of `labels.ENCODINGS`, or `auto`: by the file's mode, colours when RGB, else Cityscapes ids.
    `mapping` (id -> train id) replaces the table of Cityscapes. Raises `UserError` for values that the encoding
    cannot hold.
    """
    values, held = raw_label(path, encoding)
    table = labels.id_table(mapping)
    if held == "trainIds":
        legal = (*range(labels.NUM_CLASSES), labels.IGNORE)
        _refuse_foreign(path, values, legal, "train ids (0 to 18, 255)", "a labelIds file under another name?")
        return torch.from_numpy(labels.train_id_table()[values])
    if held == "colours":
        unknown = float(np.mean(values == labels.UNKNOWN_COLOUR))
        if unknown > MAX_UNKNOWN_SHARE:
            raise UserError(
                f"{path}: {unknown:.0%} of the pixels have colours that are in no Cityscapes or GTA5 palette; "
                "expected the palette of the 19 classes (is this a picture, or another data set's label?)"
            )
        table[labels.UNKNOWN_COLOUR] = labels.IGNORE
    elif mapping is None:
        legal = (*range(35), labels.IGNORE)
        _refuse_foreign(path, values, legal, "Cityscapes ids (0 to 34)", "another data set's label?")
    return torch.from_numpy(table[values])


def raw_label(path: Path, encoding: str) -> tuple[np.ndarray, str]:
    """What the file holds before any table: (uint8 [H, W], its encoding).

    Colours come as Cityscapes ids, `labels.UNKNOWN_COLOUR` where the colour is unknown.
    """
    image = _open(path)
    if image.format != "PNG":
        raise UserError(f"{path}: a label as {image.format}? Its compression invents values; labels must be PNG")
    if encoding == "auto":
        encoding = "colours" if image.mode in ("RGB", "RGBA") else "ids"
    if encoding == "colours":
        return labels.colour_ids(np.array(image.convert("RGB"))), encoding
    if image.mode not in ("L", "P", "I", "I;16"):
        raise UserError(
            f"{path}: expected {encoding} (a grey or palette PNG), found mode {image.mode}; "
            "is this a colour rendering of the label?"
        )
    values = np.array(image)
    if image.mode == "P" and encoding == "ids":
        _refuse_foreign_palette(path, image, np.unique(values))
    if values.size and (values.min() < 0 or values.max() > 255):
        raise UserError(f"{path}: expected {encoding} from 0 to 255, found {values.min()} to {values.max()}")
    return values.astype(np.uint8), encoding


def _refuse_foreign_palette(path: Path, image: Image.Image, used: np.ndarray) -> None:
    """An image tool that saves colour labels as indexed PNG makes a palette of its own: the index is no id then."""
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    for index in used[used < min(len(palette), 35)].tolist():
        known = int(labels.colour_ids(palette[None, index : index + 1])[0, 0])
        same = (palette[index] == labels.CITYSCAPES_PALETTE[index]).all()
        if known != labels.UNKNOWN_COLOUR and not same:
            raise UserError(
                f"{path}: expected a palette PNG whose index is the Cityscapes id, but index {index} has the colour of "
                f"id {known}; the colours were re-indexed by an image tool. Convert the labels back to RGB"
            )


def _refuse_foreign(path: Path, values: np.ndarray, legal: tuple[int, ...], expected: str, cause: str) -> None:
    known = np.zeros(256, dtype=bool)
    known[list(legal)] = True
    if not known[values].all():
        found = values[~known[values]]
        raise UserError(f"{path}: expected {expected}, found the value {found.min()}; {cause}")
