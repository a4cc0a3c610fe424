"""A checkpoint -> files that need no code of this project: uint8 pixels in, class ids out.

    python export.py runs/RUN --out exported/
    python export.py runs/RUN --out exported/ --int8 --calibrate photos/
    python export.py runs/RUN --out exported/ --int8 --cityscapes DIR       mean IoU of every file beside the network's

It writes network.onnx, network.pt2 (torch.export) and with --int8 network-int8.onnx, which computes in whole numbers of
8 bits. Each is compared with the network on real pictures. Where one computes something else, none is left.

It takes packages of its own: pip install -r requirements-deploy.txt. docs/deployment.md shows how to run the files.
"""

from __future__ import annotations

from utils.errors import Parser, UserError, refuse_idle, run_script  # before torch, for a quick --help

# isort: split

import argparse
import contextlib
import errno
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from datasets import SegmentationSet
from datasets.check import check
from datasets.domains import TARGETS, add_roots, open_target, target_of
from datasets.labels import CITYSCAPES_LABELS, require_same_classes
from datasets.pairs import Sample, existing_root, pictures_below
from datasets.stream import batches, evaluation_loader
from models.exporting import (
    OUTPUTS,
    Coarse,
    OnnxLogits,
    channels_first,
    metadata,
    programs,
    quantised,
    save_program,
)
from models.runtime import package
from training.checkpoint import build_from_checkpoint, checkpoint_file, classes_of, load_checkpoint, trained_with
from training.evaluation import evaluate, require_numbers
from training.exported import compare, pixels_of, spread
from utils.bar import tracked
from utils.flags import positive, size
from utils.tables import markdown, percent

CALIBRATION = 32
"""So many pictures, evenly over their set, say in which range the activations lie."""


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=checkpoint_file, metavar="CHECKPOINT", help="of any run, or the run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    files = parser.add_argument_group("what the files compute")
    files.add_argument("--size", type=size, metavar="WxH", help="of the pictures they take (the run's)")
    files.add_argument("--dynamic", action="store_true", help="take any size, and several pictures at once")
    files.add_argument("--output", choices=OUTPUTS, default=OUTPUTS[0], help="class ids, or logits (%(default)s)")
    files.add_argument(
        "--grid", type=int, choices=(1, 2, 4, 8), default=1,
        help="one output for so many pixels a side: faster, and coarser where classes meet (%(default)s)",
    )  # fmt: skip
    files.add_argument(
        "--runtime", choices=("onnxruntime", "openvino", "tensorrt"), default="onnxruntime",
        help="what the ONNX files are laid out for; each runs them all (%(default)s)",
    )  # fmt: skip
    files.add_argument("--int8", action="store_true", help="also a file in whole numbers of 8 bits")
    data = parser.add_argument_group("pictures")
    data.add_argument(
        "--calibrate", type=Path, metavar="DIR",
        help="pictures of where the network will be used, in any folders, without labels: --int8 is calibrated and "
        "files are compared on them (default: train and val pictures of the run's target)",
    )  # fmt: skip
    add_roots(data, TARGETS, "root of {title}: take mean IoU on its val split")
    data.add_argument("--limit", type=positive, metavar="N", help="at most N pictures of val")
    args = parser.parse_args()
    if args.output == "logits":
        refuse_idle("logits are laid out alike for every runtime", "runtime")
    if not args.int8 and target_of(vars(args)) is not None:
        refuse_idle("without --int8 the files are compared on the set that is named", "calibrate")
    return args


def main() -> None:
    args = parse_args()
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name)
    if args.out.exists() and (not args.out.is_dir() or any(not leftover(path) for path in args.out.iterdir())):
        raise UserError(f"{args.out} exists and is not empty; name a new folder, nothing is overwritten")
    checkpoint = load_checkpoint(args.checkpoint)
    run, classes = trained_with(checkpoint, args.checkpoint), classes_of(checkpoint)
    model = build_from_checkpoint(checkpoint, args.checkpoint).eval()
    working = tuple(args.size or run["size"])
    calibration = calibration_set(args, run, working) if args.int8 or args.calibrate else None
    data = compared_on(args, run, working, calibration)
    if data.labelled:
        require_same_classes(str(args.checkpoint), classes, data.name, data.classes)

    said = metadata(
        model, classes.names, classes.colours, working, args.output, args.grid, args.dynamic,
        checkpoint=str(args.checkpoint), step=checkpoint["step"],
    )  # fmt: skip
    example = pixels_of(data, 0).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        require_numbers(model(example))
    coarse = Coarse(model, example)
    with beside(args.out) as folder:
        files = [Path(folder, "exported", name) for name in ("network.onnx", "network.pt2")]
        files[0].parent.mkdir()
        program, content = programs(coarse, said)
        files[0].write_bytes(content)
        save_program(program, said, files[1])
        if args.int8:
            chosen = spread(calibration, CALIBRATION)
            seen = (pixels_of(calibration, n).numpy() for n in tracked(chosen, len(chosen), "calibration", "picture"))
            files.append(files[0].with_name("network-int8.onnx"))
            files[-1].write_bytes(quantised(content, said, seen, Path(folder)))
            print(f"int8: calibrated on {len(chosen)} pictures of {calibration.name}")
        for file in files:
            if file.suffix == ".onnx" and args.runtime != "onnxruntime" and args.output == "ids":
                file.write_bytes(channels_first(file.read_bytes()))
        found = {file: compare(model, coarse, args.grid, file, data) for file in files}
        rows = [["the checkpoint", "-", "-", "-", miou(model, data)]]
        for file, (ids, logits) in found.items():
            network = OnnxLogits(file.read_bytes(), file, grid=args.grid) if file.suffix == ".onnx" else None
            rows.append([
                file.name, f"{file.stat().st_size / 1e6:.1f}", f"{100 * ids:.2f}",
                "-" if logits is None else f"{logits:.1e}", "-" if network is None else miou(network, data),
            ])  # fmt: skip
        keep(files, args.out.resolve())
    print(f"\n{args.out}, compared on {data.name}, {working[0]}x{working[1]}\n")
    print(markdown(("file", "MB", "class ids equal (%)", "largest difference of a logit", "mean IoU (%)"), rows))


def leftover(path: Path) -> bool:
    """Whether an export that was killed left this in a folder of its own."""
    return path.name.startswith(f".{path.resolve().parent.name[:100]}.")


@contextlib.contextmanager
def beside(out: Path) -> Iterator[str]:
    """A folder for what is not finished, on the disk of `out`: in `out` where that is there, since it may be a mount
    point. A signal that ends the process removes it, but for SIGKILL. Raises `UserError` where it cannot be written."""
    place = out.resolve()
    home = place if place.exists() else place.parent
    ending = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, frame: sys.exit(128 + number)) for number in ending]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=f".{place.name[:100]}.") as folder:
            yield folder
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    finally:
        for number, handler in zip(ending, before, strict=True):
            signal.signal(number, handler)


def keep(files: list[Path], out: Path) -> None:
    """Moves finished files, which have a folder of their own, to `out`: all of them or none.

    A folder that is there already may be a mount point, which nothing can replace. They are moved into it one by one,
    network.onnx, the first of them, last: what a killed process leaves does not look whole. Raises OSError."""
    if not out.exists():
        os.replace(files[0].parent, out)
        return
    moved: list[Path] = []
    try:
        for file in reversed(files):
            if (out / file.name).exists():
                raise FileExistsError(errno.EEXIST, f"{file.name} is there by now")
            os.replace(file, out / file.name)
            moved.append(out / file.name)
    except BaseException:
        for file in moved:
            file.unlink(missing_ok=True)
        raise


def calibration_set(args: argparse.Namespace, run: dict[str, Any], working: tuple[int, int]) -> SegmentationSet:
    """The pictures of --calibrate, or else the target's train split, which --limit leaves whole; no label is looked
    for."""
    if args.calibrate is None:
        return open_target(given(args, run, working) | {"limit": None}, "train", labelled=False)
    found = pictures_below(existing_root(args.calibrate, "--calibrate"))
    if not found:
        raise UserError(f"--calibrate {args.calibrate}: no PNG or JPEG is there")
    samples = [Sample(str(path.relative_to(args.calibrate)), path, None) for path in found]
    return SegmentationSet(str(args.calibrate), samples, working, table=CITYSCAPES_LABELS)


def compared_on(
    args: argparse.Namespace, run: dict[str, Any], working: tuple[int, int], calibration: SegmentationSet | None
) -> SegmentationSet:
    """The named target's val split, with its labels; or else the pictures of --calibrate, or the val of the run's."""
    if target_of(vars(args)) is not None:
        data = open_target(given(args, run, working), "val")
        print(check(data))
        return data
    if args.calibrate is not None:
        if args.limit is not None:
            raise UserError("--limit counts pictures of val, and --calibrate stands in its place: leave --limit out")
        return calibration
    try:
        return open_target(given(args, run, working), "val", labelled=False)
    except UserError as error:
        raise UserError(f"{error}; files are compared on real pictures: name some with --calibrate DIR") from None


def given(args: argparse.Namespace, run: dict[str, Any], working: tuple[int, int]) -> dict[str, Any]:
    """The run's arguments, with what this command names in place of the run's."""
    own = run | {"size": working, "limit": args.limit}
    return own if target_of(vars(args)) is None else own | {key: vars(args)[key] for key in TARGETS}


def miou(network: torch.nn.Module, data: SegmentationSet) -> str:
    """As `eval.py` takes it; - without labels."""
    if not data.labelled:
        return "-"
    loader = evaluation_loader(data, workers=0)
    loaded = tracked(batches(loader), len(loader), "mean IoU")
    return percent(evaluate(network, loaded, torch.device("cpu"), data.classes.names)["miou"])


if __name__ == "__main__":
    run_script(main)
