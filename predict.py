"""A checkpoint and any pictures or videos -> what the network sees in them, at their own size.

    python predict.py runs/RUN street.jpg photos/ 'drive/*.png'
    python predict.py runs/RUN photos/ --out seen/ --confidence --entropy
    python predict.py runs/RUN street.jpg --cam car --at 640,300       why is this a car?
    python predict.py runs/RUN drive.mp4 --side-by-side                a video; pip install av
    python predict.py runs/RUN drive/ --fps 25                         a folder of frames, as a video
    python predict.py runs/RUN --camera 0                              until Ctrl-C
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
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from datasets.files import read_image
from datasets.labels import Classes
from datasets.pictures import beside, heated, legend, overlay, stacked
from datasets.video import Video, camera, frames_below, pyav, video_file
from models.gradcam import layer_named
from models.runtime import OnnxNetwork
from training.checkpoint import build_from_checkpoint, checkpoint_file, classes_of, load_checkpoint, trained_with
from training.explanation import class_named, explanation, point
from training.places import is_video, made, named_files, named_folders, plan, save
from training.prediction import Eager, Exported, Maps, maps, network_input
from training.video import LEGEND_WIDTH, Draw, said, segment_video
from utils.flags import default_device, device, number, positive, whole

ENOUGH = 0.95
"""Of the frames that a video seems to have, from its length: fewer are worth a word."""


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
    cam = parser.add_argument_group("Grad-CAM")
    cam.add_argument("--cam", metavar="CLASS", help="where the network looks for a class")
    cam.add_argument(
        "--at", type=point, metavar="X,Y", help="for its pixel there (default: for all pixels predicted so)"
    )
    cam.add_argument("--cam-layer", metavar="NAME", help="of these features (the network's deepest)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(the GPU, if any)")
    machine.add_argument(
        "--runtime", choices=("torch", "onnx"),
        help="what CHECKPOINT is for: a run's for torch, a file of export.py for ONNX Runtime (by its name)",
    )  # fmt: skip
    args = parser.parse_args()
    args.runtime = args.runtime or ("onnx" if args.checkpoint.suffix == ".onnx" else "torch")
    if args.cam is None and (args.at is not None or args.cam_layer is not None):
        raise UserError("--at and --cam-layer say how to explain a class; name it with --cam CLASS")
    if not args.images and args.camera is None:
        raise UserError("name pictures, videos or folders, or --camera N")
    more = args.confidence or args.entropy or args.cam is not None
    if more and args.runtime == "onnx":
        raise UserError("--confidence, --entropy and --cam need the network itself, an exported file gives classes")
    return args


def main() -> None:
    args = parse_args()
    sources = named_files(args.images) if args.fps is None else named_folders(args.images)
    if args.camera is not None:
        sources[Path(f"camera{args.camera}.mp4")] = Path(f"camera{args.camera}.mp4")
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
    kinds |= {} if explained is None else {"cam": f"_cam-{classes.names[explained].replace(' ', '-')}"}
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
        video_of(args, path, planned.pop(path)["video"], network, classes, draw)
    if not planned:
        return
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
                    heat = explanation(model, layer, inputs, logits, explained, args.at, image.shape[-2:])
                except LookupError as nothing:
                    tqdm.write(f"note: {path}: no Grad-CAM, {nothing}")
            seen = maps(logits, image.shape[-2:])
        write(image, seen, classes, heat, outputs, draw)
    print(f"{len(planned) - refused} of {len(planned)} pictures predicted, in {args.out}")
    if refused:
        raise UserError(f"{refused} of {len(planned)} pictures cannot be read; the notes above say why")


def video_of(
    args: argparse.Namespace, path: Path, out: Path, network: Eager | Exported, classes: Classes, draw: Draw
) -> None:
    """One video, and a line of what became of it; ends the process where it was interrupted."""
    video: Video
    if path.is_dir():
        video = frames_below(path, Fraction(args.fps).limit_denominator(1001))
    else:
        video = camera(args.camera) if path == Path(f"camera{args.camera}.mp4") else video_file(path)
    made(out.parent)
    done = segment_video(video, out, network, classes, draw, args.every, args.frames)
    print(f"{video.name}: {done.frames} frames, {said(done.rates)}, in {out}" + (", without its sound" * video.sound))
    if video.damaged:
        print(f"note: {video.name}: {video.damaged} damaged frames left out (the first: {video.why})")
    if done.stop is not None:
        print(f"{done.stop.reason}; {out} has what was done until then", file=sys.stderr)
        sys.exit(done.stop.status)
    if args.frames is None and video.total is not None and video.seen + video.damaged < ENOUGH * video.total:
        print(f"note: {video.name} ends after {video.seen} of some {video.total} frames; is it cut short?")


def write(
    image: Tensor, seen: Maps, classes: Classes, heat: Tensor | None, outputs: dict[str, Path], draw: Draw
) -> None:
    """All of one picture's files; image uint8 [3, H, W], heat float [h, w] or None."""
    picture = image.permute(1, 2, 0).numpy()
    save(outputs["ids"], seen.classes)
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


if __name__ == "__main__":
    run_script(main)
