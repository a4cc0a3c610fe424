"""What an evaluation leaves beside its figures: pictures, and whether its JSON may be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from datasets import SegmentationSet
from datasets.files import picture_size, read_image
from datasets.geometry import resize_image, resize_label
from datasets.labels import Classes, to_cityscapes_ids
from datasets.pictures import panel
from utils.errors import UserError
from utils.files import read_json, require_place

from .evaluation import predict

PANEL_WIDTH = 512
"""Width of one picture in a side-by-side panel, at most; smaller pictures keep their size."""


class SavedPictures:
    """coloured, ids, side_by_side: folders, or None for what is not wanted; several: networks, which get a folder each.
    Raises `UserError` for a folder that is not empty, and for one that is named twice: names of files are alike."""

    def __init__(self, coloured: Path | None, ids: Path | None, side_by_side: Path | None, several: bool) -> None:
        self.coloured, self.ids, self.side_by_side, self.several = coloured, ids, side_by_side, several
        self.columns: dict[int, list[tuple[str, Tensor]]] = {}  # number of a picture -> (network, what it predicted)
        named: list[Path] = []
        for folder in (folder for folder in (coloured, ids, side_by_side) if folder is not None):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(f"{folder} exists and is not empty; name a new folder, nothing is overwritten")
            if folder.resolve() in named:
                raise UserError(f"{folder}: two kinds of pictures would be saved there; name a folder for each")
            require_place(folder, folder=True)
            named.append(folder.resolve())

    def saver(
        self, data: SegmentationSet, classes: Classes, name: str
    ) -> Callable[[int, Tensor, Tensor, Tensor | None], None] | None:
        """What to do with each prediction of the network `name`; predictions are saved at the picture's own size."""
        below = name if self.several else ""

        def save(number: int, image: Tensor, logits: Tensor, label: Tensor | None) -> None:
            sample = data.samples[number]
            width, height = picture_size(sample.image)
            prediction = predict(logits, (height, width)).cpu()
            if self.coloured is not None:
                _write_png(self.coloured / below / f"{sample.name}.png", classes.colourise(prediction.numpy()))
            if self.ids is not None:
                _write_png(self.ids / below / f"{sample.name}_pred_labelIds.png", to_cityscapes_ids(prediction.numpy()))
            if self.side_by_side is not None:
                small = resize_label(prediction, panel_size(width, height))  # not the whole: a set of them must fit
                self.columns.setdefault(number, []).append((name, small))

        wanted = (self.coloured, self.ids, self.side_by_side)
        return save if any(folder is not None for folder in wanted) else None

    def write_side_by_side(self, data: SegmentationSet, classes: Classes) -> None:
        """What every network predicted, beside the picture and its label."""
        for number, columns in self.columns.items():
            sample, label = data.samples[number], data.label(number)
            image = read_image(sample.image)
            size = panel_size(*image.shape[:0:-1])
            titled = ([] if label is None else [("ground truth", label)]) + columns
            _write_png(self.side_by_side / f"{sample.name}.png", panel(resize_image(image, size), titled, classes))


def panel_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which a picture of that size is shown in a panel."""
    shown = min(width, PANEL_WIDTH)
    return shown, max(1, height * shown // width)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def require_new_json(path: Path | None, force: bool) -> None:
    """With `force` figures of an earlier evaluation may be replaced, anything else may not. Raises `UserError`."""
    if path is None:
        return
    require_place(path)
    if not path.exists():
        return
    try:
        own = "evaluations" in read_json(path)
    except (OSError, ValueError, TypeError):
        own = False
    if not own:
        raise UserError(f"--json {path} exists and is no evaluation of this script; name another file")
    if not force:
        raise UserError(f"--json {path} holds an earlier evaluation; name another file, or replace it with --force")
