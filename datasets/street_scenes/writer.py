"""Scenes as files, in the loaders' layouts; and the command line, `python -m datasets.street_scenes --help`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.errors import Parser
from utils.flags import number, spelt

from ..labels import CITYSCAPES_PALETTE
from .layout import Street
from .painter import CAMERA, GAME, Painter, finish
from .variety import exposed, varied

LOOKS = ("game", "camera")
VERSION = 1  # raise when pictures change: stored sets of an older version are then no longer taken for these


def draw_scene(
    seed: int, index: int, look: str, size: tuple[int, int], variety: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """One street scene, a function of the arguments alone (the same in every process, order and number of workers).

    seed, index: not negative. look: one of LOOKS. size: (width, height) in pixels, from 64x32 to 8192x8192; the
    same scene at any resolution. variety: probability of the scene to have an appearance of its own; it changes no
    label. Returns picture uint8 [H, W, 3], RGB, and label uint8 [H, W], Cityscapes ids.
    """
    _check(size, look)
    rng = np.random.default_rng((seed, index, LOOKS.index(look)))
    own = random.Random(repr((seed, index, look)))
    drawn, due = GAME if look == "game" else CAMERA, own.random() < variety
    drawn = varied(drawn, own) if due else drawn
    painter = Painter(tuple(size), drawn, random.Random(int(rng.integers(2**62))))
    Street(painter, index).paint()
    image = finish(painter, rng)
    return exposed(image, own) if due else image, np.array(painter.label)


def _check(size: tuple[int, int], look: str) -> None:
    """Raises ValueError for a size or look that cannot be drawn."""
    width, height = size
    if not all(isinstance(side, (int, np.integer)) for side in (width, height)):
        raise ValueError(f"a size is two whole numbers, width and height, not {size!r}")
    if not (64 <= width <= 8192 and 32 <= height <= 8192 and 0.5 <= width / height <= 5):
        raise ValueError(f"cannot draw a street at {width}x{height}: from 64x32 up to 8192x8192, at most 5:1 or 1:2")
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}: one of {', '.join(LOOKS)}")


# Split -> first scene (the splits of a set never share one) and the name of its only city.
SPLITS = {"train": (0, "drawnstadt"), "val": (1_000_000, "testdorf"), "test": (2_000_000, "fernburg")}


@dataclass(frozen=True)
class Job:
    """One scene to be written: which one, and where picture and label go."""

    seed: int
    index: int
    look: str
    size: tuple[int, int]
    image: Path
    label: Path
    variety: float = 0.0

    @property
    def done(self) -> bool:
        return _is_whole(self.image) and _is_whole(self.label)


def _is_whole(path: Path) -> bool:
    """Whether the file ends as a PNG ends."""
    try:
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            return file.read() == b"IEND\xaeB`\x82"
    except OSError:
        return False


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Under a name of this process first, so that a killed run leaves no half file under the final name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write(job: Job) -> None:
    pixels, ids = draw_scene(job.seed, job.index, job.look, job.size, job.variety)
    label = Image.fromarray(ids)
    if "labelIds" not in job.label.name:  # Cityscapes labels are grey, GTA5's have a palette
        label.putpalette(CITYSCAPES_PALETTE.tobytes())
    for image, path in ((Image.fromarray(pixels), job.image), (label, job.label)):
        _write_whole(path, partial(image.save, format="PNG", compress_level=4))


def _write_all(jobs: Sequence[Job], workers: int, what: str) -> None:
    """Writes the scenes, in `workers` processes if more than one; what is written does not depend on how many."""
    for folder in {path.parent for job in jobs for path in (job.image, job.label)}:
        folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(jobs), desc=f"drawing {what}", unit="scene", disable=None)
    with bar:
        if workers <= 1 or len(jobs) < 2:
            for job in jobs:
                _write(job)
                bar.update()
            return
        # Not forked: the caller may hold threads and a GPU, which do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            for _ in pool.map(_write, jobs, chunksize=4):
                bar.update()


def _gta5_jobs(root: Path, count: int, size: tuple[int, int], seed: int, look: str, variety: float = 0.0) -> list[Job]:
    _check_counts(size, look, seed, count)
    names = [f"{i + 1:05d}.png" for i in range(count)]
    return [
        Job(seed, i, look, tuple(size), root / "images" / name, root / "labels" / name, variety)
        for i, name in enumerate(names)
    ]


def _cityscapes_jobs(root: Path, counts: dict[str, int], size: tuple[int, int], seed: int, look: str,
                     variety: float = 0.0) -> list[Job]:  # fmt: skip
    jobs = []
    for split, count in counts.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
        _check_counts(size, look, seed, count)
        city = SPLITS[split][1]
        for i in range(count):
            stem = f"{city}_{i:06d}_000019"
            jobs.append(
                Job(seed, SPLITS[split][0] + i, look, tuple(size),
                    root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
                    root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", variety)
            )  # fmt: skip
    return jobs


def _check_counts(size: tuple[int, int], look: str, seed: int, count: int) -> None:
    _check(size, look)
    if not 0 <= count <= 1_000_000 or seed < 0:
        raise ValueError(f"count must be 0 to 1,000,000 and seed not negative, not {count} and {seed}")


def write_gta5(root: Path, count: int, size: tuple[int, int], seed: int = 0, look: str = "game",
               workers: int = 1, variety: float = 0.0) -> None:  # fmt: skip
    """Writes scenes 0 to count - 1 as GTA5 lies on disk: images/00001.png and labels/00001.png (mode P).

    Files of the same name are replaced, others left alone. Raises ValueError for a size, look, count or seed
    that cannot be.
    """
    _write_all(_gta5_jobs(Path(root), count, size, seed, look, variety), workers, f"{look} scenes")


def write_cityscapes(root: Path, counts: dict[str, int], size: tuple[int, int], seed: int = 0, look: str = "camera",
                     workers: int = 1, variety: float = 0.0) -> None:  # fmt: skip
    """Writes scenes in the official Cityscapes layout (leftImg8bit, gtFine ..._labelIds.png); counts per split.

    Splits (train, val, test) never share a scene. Files of the same name are replaced, as in write_gta5.
    """
    _write_all(_cityscapes_jobs(Path(root), counts, size, seed, look, variety), workers, f"{look} scenes")


def ensure(root: Path, size: tuple[int, int] = (256, 128), source: int = 240, target: int = 200, val: int = 60,
           seed: int = 0, workers: int = 1) -> tuple[Path, Path]:  # fmt: skip
    """Makes sure that a source (game) and a target (camera, train and val) set lie under root; returns their roots.

    Each set of settings has a folder of its own below root, so nothing is ever overwritten. The stamp
    street_scenes.json is written last; a set that was interrupted or has lost files is completed.
    Raises ValueError for impossible settings, FileExistsError if foreign files lie among the scenes.
    """
    settings = {"size": list(size), "source": source, "target": target, "val": val, "seed": seed, "version": VERSION}
    folder = Path(root) / f"{size[0]}x{size[1]}-s{source}-t{target}-v{val}-seed{seed}-v{VERSION}"
    roots = folder / "gta5", folder / "cityscapes"
    jobs = _gta5_jobs(roots[0], source, size, seed, "game")
    jobs += _cityscapes_jobs(roots[1], {"train": target, "val": val}, size, seed, "camera")
    expected = {path for job in jobs for path in (job.image, job.label)}
    for path in folder.rglob("*.png"):
        if path not in expected and not path.name.startswith("."):
            raise FileExistsError(f"{path} is not one of the drawn scenes; move it elsewhere or name another folder")
    _write_all([job for job in jobs if not job.done], workers, "street scenes")
    stamp = folder / "street_scenes.json"
    if not stamp.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=2) + "\n"
        _write_whole(stamp, lambda part: part.write_text(text, encoding="utf-8"))
    return roots


def preview(path: Path, seed: int, variety: float) -> None:
    """Saves a contact sheet: a row per scene, picture and coloured label of the game, then of the camera."""
    rows = []
    for index in range(6):
        pairs = [draw_scene(seed, index, look, (512, 256), variety) for look in LOOKS]
        rows.append(np.hstack([part for image, label in pairs for part in (image, CITYSCAPES_PALETTE[label])]))
    Image.fromarray(np.vstack(rows)).save(path)


def parse_size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT, such as 2048x1024, not {text!r}") from None
    return width, height


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m datasets.street_scenes",
        description="Draws street scenes with labels of all 19 Cityscapes classes, laid out as GTA5 or Cityscapes.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; must be new or empty")
    parser.add_argument("--layout", choices=("gta5", "cityscapes"), default="cityscapes", help="default: %(default)s")
    parser.add_argument("--look", choices=LOOKS, help="default: game for the layout gta5, else camera")
    parser.add_argument("--size", type=parse_size, default=(256, 128), metavar="WxH", help="pixels (default: 256x128)")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="scenes, or those of train (default: 200)")
    parser.add_argument("--val", type=int, default=0, metavar="N", help="scenes of val, in cityscapes (default: 0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other scenes (default: 0)")
    parser.add_argument(
        "--variety", type=number(0, 1), default=0.0, metavar="P",
        help="probability of a scene to have colours, surfaces, light and leaves of its own; no label changes "
        "(default: 0)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes; changes no pixel (default: 1)")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="only save a contact sheet of both looks")
    args = parser.parse_args(arguments)
    try:
        if args.preview:
            idle = sorted(spelt(arguments) - {"--preview", "--seed", "--variety"})
            if idle:
                raise ValueError(f"--preview only saves a contact sheet: leave out {' and '.join(idle)}")
            if args.preview.exists():
                raise ValueError(f"{args.preview} exists; name a new file, nothing is overwritten")
            preview(args.preview, args.seed, args.variety)
            return 0
        if args.out is None:
            raise ValueError("name a folder with --out, or a picture with --preview")
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise ValueError(f"{args.out} is not an empty folder; name a new one")
        if args.layout == "gta5":
            if args.val:
                raise ValueError("--val belongs to the layout cityscapes; GTA5 has no splits")
            write_gta5(args.out, args.count, args.size, args.seed, args.look or "game", args.workers, args.variety)
        else:
            counts = {"train": args.count} | ({"val": args.val} if args.val else {})
            write_cityscapes(args.out, counts, args.size, args.seed, args.look or "camera", args.workers, args.variety)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

