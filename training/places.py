"""What a user names to be predicted -> what is read, and where the predictions go; nothing that is there is lost."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datasets.given_labels import CLASSES
from datasets.labels import Classes
from datasets.pairs import pictures_below
from datasets.pictures import LEGEND_WIDTH, Draw, heated, legend, stacked
from datasets.video import VIDEO_SUFFIXES
from utils.errors import UserError
from utils.files import is_there, write_atomically

from .prediction import Maps


def named_files(named: list[str]) -> dict[Path, Path]:
    """Picture or video -> where its name lies below --out: in a folder as in the folder named, else the file's name
    alone. Of a folder the pictures count; a pattern names whatever it matches. Raises `UserError` for a name that leads
    to none, and for a folder that cannot be read."""
    found: dict[Path, Path] = {}
    for text in named:
        here: dict[Path, Path] = {}
        for path in [Path(text)] if is_there(Path(text)) else map(Path, sorted(glob.glob(text, recursive=True))):
            if path.is_dir():
                here |= {file: file.relative_to(path) for file in pictures_below(path)}
            else:
                here[path] = Path(path.name)
        if not here:
            raise UserError(f"{text}: no PNG or JPEG is there, and no video of that name")
        found |= here
    return found


def named_folders(named: list[str]) -> dict[Path, Path]:
    """Folder of frames -> its name. Raises `UserError` for a name of anything else."""
    for text in named:
        if not Path(text).is_dir():
            raise UserError(f"--fps makes a video of a folder of frames; {text} is no folder")
    return {Path(text): Path(Path(text).resolve().name) for text in named}


def is_video(path: Path) -> bool:
    """By its name; a folder is one of frames."""
    return path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir()


def plan(
    sources: Mapping[Path, Path], out: Path, kinds: Mapping[str, str], video: str, force: bool
) -> dict[Path, dict[str, Path]]:
    """Picture or video -> its outputs by kind. kinds: kind -> how a picture's output ends; video: how a video's one
    does, kind `video`.

    Raises `UserError` before anything is written: for two sources with one name, for an output that exists, without
    `force`, and for one that is a file to be read, always."""
    if is_there(out) and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    planned, owners = {}, {}
    inputs = {path.resolve() for path in sources}
    for path, below in sources.items():
        if is_video(path):
            stem = below.name if path.is_dir() else below.stem
            outputs = {"video": out / below.with_name(f"{stem}{video}.mp4")}
        else:
            outputs = {kind: out / below.with_name(f"{below.stem}{end}.png") for kind, end in kinds.items()}
        first = next(iter(outputs.values()))
        other = owners.setdefault(first, path)
        if other != path:
            raise UserError(f"{other} and {path} would both be written as {first}; predict them one by one")
        for output in outputs.values():
            if output.resolve() in inputs:
                raise UserError(f"{output} is one of the files to be read; name another --out")
            if is_there(output) and not force:
                raise UserError(f"{output} exists; --force replaces it, or name another --out")
        planned[path] = outputs
    return planned


def write(
    image: Tensor, seen: Maps, classes: Classes, heat: Tensor | None, outputs: dict[str, Path], draw: Draw
) -> None:
    """All of one picture's files; image uint8 [3, H, W], heat float [h, w] or None."""
    picture = image.permute(1, 2, 0).numpy()
    save(outputs["ids"], seen.classes, classes.names)
    shown, counts = np.unique(seen.classes, return_counts=True)
    shares = (counts / seen.classes.size).tolist()
    drawn = draw(picture, seen.classes, classes)
    save(outputs["drawn"], stacked(drawn, legend(shown.tolist(), classes, max(drawn.shape[1], LEGEND_WIDTH), shares)))
    for kind in ("confidence", "entropy"):
        if kind in outputs:
            save(outputs[kind], (255 * getattr(seen, kind).clip(0, 1) + 0.5).astype(np.uint8))
    if heat is not None:
        large = F.interpolate(heat[None, None], size=picture.shape[:2], mode="bilinear", align_corners=False)[0, 0]
        save(outputs["cam"], heated(picture, large.cpu().numpy()))


def save(path: Path, pixels: np.ndarray, class_names: Sequence[str] = ()) -> None:
    """uint8 [H, W] or [H, W, 3] -> a PNG, there whole or not at all; of train ids it says their classes. Raises
    `UserError`."""
    made(path.parent)
    said = PngInfo()
    if class_names:
        said.add_itxt(CLASSES, ", ".join(class_names))
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, format="PNG", pnginfo=said))


def made(folder: Path) -> None:
    """Makes a folder, where it is not there yet. Raises `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
