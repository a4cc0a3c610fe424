"""A checkpoint and any pictures or videos -> what the network sees in them, at their own size.

    python predict.py runs/RUN street.jpg photos/ 'drive/*.png'
    python predict.py runs/RUN photos/ --out seen/ --confidence --entropy
    python predict.py runs/RUN street.jpg --cam car --at 640,300       why is this a car?
    python predict.py runs/RUN drive.mp4 --side-by-side                a video; pip install av
    python predict.py runs/RUN drive/ --fps 25                         a folder of frames, as a video
    python predict.py runs/RUN --camera 0                              until Ctrl-C
    python predict.py runs/RUN drive.mp4 --adapt-bn                    adapted to the frames as they come
    python predict.py exported/network.onnx drive.mp4                  what export.py wrote

Of NAME.jpg it writes NAME_labelTrainIds.png (grey, the train ids), NAME_overlay.png (the classes' colours over the
picture, a legend below) and on request, as grey maps from 0 (black) to 1 (white), NAME_confidence.png (the largest
probability) and NAME_entropy.png (of the prediction; white is unsure). --cam adds NAME_cam-CLASS.png: Grad-CAM, where
the network looks when it sees the class, yellow for most.

Pictures are PNG or JPEG of any size, turned as their EXIF data say; grey, palette and transparent ones are read as RGB.

Of drive.mp4 (or mkv, mov, avi, webm) it writes drive_overlay.mp4: upright, of the same rate and length, without sound,
its sides padded to even ones. Frames that are damaged are left out and counted. Ctrl-C leaves a video that plays.
"""

from __future__ import annotations

from utils.errors import Parser, UserError, run_script  # before torch, for a quick --help

# isort: split

import argparse
import contextlib
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from adaptation.stream import RunningBatchNorm
from datasets.files import read_image
from datasets.labels import Classes
from datasets.pictures import beside, overlay
from datasets.video import camera, frames_below, pyav, video_file
from models.gradcam import layer_named
from models.runtime import OnnxNetwork
from training.checkpoint import build_from_checkpoint, checkpoint_file, classes_of, load_checkpoint, trained_with
from training.explanation import class_named, explanation, point
from training.places import is_video, named_files, named_folders, plan, write
from training.prediction import Eager, Exported, Maps, maps, network_input
from training.video import Draw, predict_video
from utils.flags import default_device, device, number, positive, whole

WINDOW = 32
"""Frames whose statistics --adapt-bn takes: about a second."""


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=checkpoint_file, metavar="CHECKPOINT", help="of any run, or the run, or an exported file"
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="files, videos too; folders (and all pictures below them); globs"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="(%(default)s)")
    output.add_argument(
        "--side-by-side", action="store_true", help="the picture beside the classes' colours, instead of the overlay"
    )
    output.add_argument("--confidence", action="store_true", help="also the largest probability of each pixel")
    output.add_argument("--entropy", action="store_true", help="also the prediction's entropy, normalised to 0 ... 1")
    output.add_argument("--force", action="store_true", help="replace what an earlier prediction wrote")
    video = parser.add_argument_group("video")
    video.add_argument(
        "--fps", type=number(0.01, 1000), metavar="RATE",
        help="make each folder named a video of so many frames a second, in the order of their names",
    )  # fmt: skip
    video.add_argument("--camera", type=whole, metavar="N", help="the machine's N-th camera, from 0 on")
    video.add_argument("--every", type=positive, default=1, metavar="N", help="only each N-th frame, at its own time")
    video.add_argument("--frames", type=positive, metavar="N", help="end after N frames")
    stream = parser.add_argument_group("adaptation in the stream")
    stream.add_argument(
        "--adapt-bn", action="store_true",
        help="normalise by the statistics of the last frames of the video (or of the pictures named), without labels. "
        "A frame takes longer for it (docs/results.md); only with a run's network, not with an exported file",
    )  # fmt: skip
    stream.add_argument("--window", type=positive, metavar="N", help=f"of the last N, this one among them ({WINDOW})")
    cam = parser.add_argument_group("Grad-CAM")
    cam.add_argument("--cam", metavar="CLASS", help="where the network looks for a class")
    cam.add_argument(
        "--at", type=point, metavar="X,Y", help="for its pixel there (default: for all pixels predicted so)"
    )
    cam.add_argument("--cam-layer", metavar="NAME", help="of these features (the network's deepest)")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device", type=device, default=default_device(), metavar="DEV",
        help="(the GPU, if any); an exported file runs on the CPU",
    )  # fmt: skip
    machine.add_argument(
        "--runtime", choices=("torch", "onnx"),
        help="what CHECKPOINT is for: a run's for torch, a file of export.py for ONNX Runtime (by its name)",
    )  # fmt: skip
    args = parser.parse_args()
    args.runtime = args.runtime or ("onnx" if args.checkpoint.suffix == ".onnx" else "torch")
    if args.cam is None and (args.at is not None or args.cam_layer is not None):
        raise UserError("--at and --cam-layer say how to explain a class; name it with --cam CLASS")
    if args.window is not None and not args.adapt_bn:
        raise UserError("--window says of how many frames --adapt-bn takes the statistics; add --adapt-bn")
    if args.adapt_bn and args.runtime == "onnx":
        raise UserError("--adapt-bn works with a run's network alone: an exported file has no batch normalisation left")
    if args.adapt_bn and args.cam is not None:
        raise UserError("--cam explains the network as it was trained; leave out --adapt-bn")
    if args.fps is not None and not args.images:
        raise UserError("--fps makes a video of a folder of frames; a camera has its own rate, so leave it out")
    if not args.images and args.camera is None:
        raise UserError("name pictures, videos or folders, or --camera N")
    if "" in args.images:
        raise UserError("a picture, video or folder has an empty name; is a variable not set?")
    more = args.confidence or args.entropy or args.cam is not None
    if more and args.runtime == "onnx":
        raise UserError("--confidence, --entropy and --cam need the network itself, an exported file gives classes")
    return args


def main() -> None:
    args = parse_args()
    sources = named_files(args.images) if args.fps is None else named_folders(args.images)
    taken = None if args.camera is None else Path(f"camera{args.camera}.mp4")
    sources |= {} if taken is None else {taken: taken}
    videos = [path for path in sources if is_video(path)]
    if videos:
        pyav()
        if args.confidence or args.entropy or args.cam is not None:
            raise UserError(f"--confidence, --entropy and --cam are for pictures; {videos[0]} is a video")
    elif args.every > 1 or args.frames is not None:
        raise UserError("--every and --frames are for videos; none is named")
    if args.runtime == "onnx":
        network = Exported(OnnxNetwork(args.checkpoint))
        classes = network.classes
    else:
        checkpoint = load_checkpoint(args.checkpoint)
        classes = classes_of(checkpoint)
    explained = None if args.cam is None else class_named(args.cam, classes)
    drawn = "side-by-side" if args.side_by_side else "overlay"
    kinds = {"ids": "_labelTrainIds", "drawn": f"_{drawn}"}
    kinds |= {kind: f"_{kind}" for kind in ("confidence", "entropy") if getattr(args, kind)}
    if explained is not None:
        kinds["cam"] = "_cam-" + re.sub(r"[^\w.-]", "-", classes.names[explained])  # road/lane is a name, not a folder
    planned = plan(sources, args.out, kinds, f"_{drawn}", args.force)
    layer = None
    if args.runtime == "torch":
        model = build_from_checkpoint(checkpoint, args.checkpoint).to(args.device).eval()
        network = Eager(model, tuple(trained_with(checkpoint, args.checkpoint)["size"]), args.device)
        if args.cam is not None:
            try:
                layer = layer_named(model, args.cam_layer or model.cam_layer)
            except ValueError as error:
                raise UserError(f"--cam-layer: {error}") from None

    draw = beside if args.side_by_side else overlay
    for path in videos:
        with adapting(args, network):
            if path.is_dir():
                video = frames_below(path, Fraction(args.fps).limit_denominator(1001))
            else:
                video = camera(args.camera) if path == taken else video_file(path)
            predict_video(video, planned.pop(path)["video"], network, classes, draw, args.every, args.frames)
    if not planned:
        return
    with adapting(args, network):
        refused = pictures_of(args, planned, network, classes, draw, explained, layer)
    print(f"{len(planned) - refused} of {len(planned)} pictures predicted, in {args.out}")
    if refused:
        raise UserError(f"{refused} of {len(planned)} pictures cannot be read; the notes above say why")


def adapting(args: argparse.Namespace, network: Eager | Exported) -> contextlib.AbstractContextManager[Any]:
    """Within it the network adapts to what it sees, where that is asked for. Raises `UserError`."""
    if not args.adapt_bn:
        return contextlib.nullcontext()
    try:
        return RunningBatchNorm(network.model, args.window or WINDOW)
    except ValueError as error:
        raise UserError(f"--adapt-bn: {error}") from None


def pictures_of(
    args: argparse.Namespace, planned: dict[Path, dict[str, Path]], network: Eager | Exported, classes: Classes,
    draw: Draw, explained: int | None, layer: nn.Module | None,
) -> int:  # fmt: skip
    """All files of all pictures. Returns how many cannot be read."""
    refused = 0
    for path, outputs in tqdm(planned.items(), unit="picture", disable=None):
        try:
            image = read_image(path, upright=True)
        except UserError as error:
            tqdm.write(f"note: {error}")
            refused += 1
            continue
        heat = None
        if isinstance(network, Exported):
            seen = Maps(network(image), None, None)
        else:
            inputs = network_input(image, network.size, args.device)
            logits = network.logits(inputs)
            if layer is not None:
                try:
                    heat = explanation(network.model, layer, inputs, logits, explained, args.at, image.shape[-2:])
                except LookupError as nothing:
                    tqdm.write(f"note: {path}: no Grad-CAM, {nothing}")
            seen = maps(logits, image.shape[-2:])
        write(image, seen, classes, heat, outputs, draw)
    return refused


if __name__ == "__main__":
    run_script(main)
