"""A checkpoint and any pictures -> what the network sees in them, at their own size.

    python predict.py runs/RUN street.jpg photos/ 'drive/*.png'
    python predict.py runs/RUN photos/ --out seen/ --confidence --entropy
    python predict.py runs/RUN street.jpg --cam car --at 640,300       why is this a car?

Of NAME.jpg it writes NAME_labelTrainIds.png (grey, the train ids), NAME_overlay.png (the classes' colours over the
picture, a legend below) and on request, as grey maps from 0 (black) to 1 (white), NAME_confidence.png (the largest
probability) and NAME_entropy.png (of the prediction; white is unsure). --cam adds NAME_cam-CLASS.png: Grad-CAM, where
the network looks when it sees the class, yellow for most.

Pictures are PNG or JPEG of any size, turned as their EXIF data say; grey, palette and transparent ones are read as RGB.
"""

from __future__ import annotations

from utils.errors import Parser, UserError, run_script  # before torch, for a quick --help

# isort: split

import argparse
import glob
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from datasets.files import SUFFIXES, read_image
from datasets.labels import Classes
from datasets.pictures import legend, overlay, stacked
from models.gradcam import grad_cam, layer_named
from training.checkpoint import build_from_checkpoint, checkpoint_file, classes_of, load_checkpoint, trained_with
from training.prediction import Maps, maps, network_input
from utils.files import is_there, write_atomically
from utils.flags import default_device, device

LEGEND_WIDTH = 240
"""A legend is at least so wide, also below a smaller picture."""


def class_named(text: str, classes: Classes) -> int:
    """`traffic light` or `traffic-light` -> its train id. Raises `UserError` for none of the classes."""

    def plain(name: str) -> str:
        return name.replace("-", " ").replace("_", " ").lower()

    found = [train_id for train_id, name in enumerate(classes.names) if plain(name) == plain(text)]
    if not found:
        raise UserError(f"--cam {text!r} is none of the classes: {', '.join(classes.names)}")
    return found[0]


def point(text: str) -> tuple[int, int]:
    """`640,300` -> (640, 300)."""
    x, _, y = text.partition(",")
    if not (x.isdecimal() and y.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels from the top left, such as 640,300, found {text!r}")
    return int(x), int(y)


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=checkpoint_file, metavar="CHECKPOINT", help="of any run, or the run")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders (and all below them), globs")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="(%(default)s)")
    output.add_argument("--confidence", action="store_true", help="also the largest probability of each pixel")
    output.add_argument("--entropy", action="store_true", help="also the prediction's entropy, normalised to 0 ... 1")
    output.add_argument("--force", action="store_true", help="replace what an earlier prediction wrote")
    cam = parser.add_argument_group("Grad-CAM")
    cam.add_argument("--cam", metavar="CLASS", help="where the network looks for a class")
    cam.add_argument(
        "--at", type=point, metavar="X,Y", help="for its pixel there (default: for all pixels predicted so)"
    )
    cam.add_argument("--cam-layer", metavar="NAME", help="of these features (the network's deepest)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(the GPU, if any)")
    args = parser.parse_args()
    if args.cam is None and (args.at is not None or args.cam_layer is not None):
        raise UserError("--at and --cam-layer say how to explain a class; name it with --cam CLASS")
    return args


def main() -> None:
    args = parse_args()
    pictures = find_pictures(args.images)
    checkpoint = load_checkpoint(args.checkpoint)
    classes = classes_of(checkpoint)
    explained = None if args.cam is None else class_named(args.cam, classes)
    planned = plan(pictures, args, None if explained is None else classes.names[explained])
    model = build_from_checkpoint(checkpoint, args.checkpoint).to(args.device).eval()
    size = tuple(trained_with(checkpoint, args.checkpoint)["size"])
    layer = None
    if args.cam is not None:
        try:
            layer = layer_named(model, args.cam_layer or model.cam_layer)
        except ValueError as error:
            raise UserError(f"--cam-layer: {error}") from None

    refused = 0
    for path, outputs in tqdm(planned.items(), unit="picture", disable=None):
        try:
            image = read_image(path, upright=True)
        except UserError as error:
            tqdm.write(f"note: {error}")
            refused += 1
            continue
        inputs = network_input(image, size, args.device)
        with torch.no_grad():
            logits = model(inputs)
        heat = None
        if layer is not None:
            try:
                heat = explanation(model, layer, inputs, logits, explained, args, image.shape[-2:])
            except LookupError as nothing:
                tqdm.write(f"note: {path}: no Grad-CAM, {nothing}")
        write(image, maps(logits, image.shape[-2:]), classes, heat, outputs)
    print(f"{len(planned) - refused} of {len(planned)} pictures predicted, in {args.out}")
    if refused:
        raise UserError(f"{refused} of {len(planned)} pictures cannot be read; the notes above say why")


# Which pictures, and where their predictions go


def find_pictures(named: list[str]) -> dict[Path, Path]:
    """Picture -> where its name lies below --out: in a folder as in the folder named, else the file's name alone.
    Raises `UserError` for a name that leads to none."""
    found: dict[Path, Path] = {}
    for text in named:
        path = Path(text)
        is_there(path)
        if path.is_dir():
            below = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
            here = {file: file.relative_to(path) for file in below}
        elif path.exists():
            here = {path: Path(path.name)}
        else:
            here = {Path(file): Path(Path(file).name) for file in sorted(glob.glob(text, recursive=True))}
        if not here:
            raise UserError(f"{text}: no PNG or JPEG is there")
        found |= here
    return found


def plan(pictures: dict[Path, Path], args: argparse.Namespace, explained: str | None) -> dict[Path, dict[str, Path]]:
    """Picture -> its outputs by kind; explained: the class of --cam. Raises `UserError` before anything is written: for
    two pictures with one name, for an output that exists, without --force, and for one that is a picture to be read,
    always."""
    kinds = {"ids": "_labelTrainIds", "overlay": "_overlay"}
    kinds |= {"confidence": "_confidence"} if args.confidence else {}
    kinds |= {"entropy": "_entropy"} if args.entropy else {}
    kinds |= {} if explained is None else {"cam": f"_cam-{explained.replace(' ', '-')}"}
    if is_there(args.out) and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; name a folder")
    planned, owners = {}, {}
    inputs = {path.resolve() for path in pictures}
    for path, below in pictures.items():
        outputs = {kind: args.out / below.with_name(f"{below.stem}{end}.png") for kind, end in kinds.items()}
        other = owners.setdefault(outputs["ids"], path)
        if other != path:
            raise UserError(f"{other} and {path} would both be written as {outputs['ids']}; predict them one by one")
        for output in outputs.values():
            if output.resolve() in inputs:
                raise UserError(f"{output} is one of the pictures to be read; name another --out")
            if is_there(output) and not args.force:
                raise UserError(f"{output} exists; --force replaces it, or name another --out")
        planned[path] = outputs
    return planned


def explanation(
    model: nn.Module, layer: nn.Module, inputs: Tensor, logits: Tensor, explained: int, args: argparse.Namespace,
    size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Grad-CAM of the class `explained`: float [h, w] from 0 to 1; `size` = (H, W), the picture's own, in which --at is
    given. Raises LookupError where the picture has nothing to explain, `UserError` for a layer that has none."""
    height, width = size
    if args.at is None:
        chosen = logits.argmax(dim=1)[0] == explained
        if not chosen.any():
            raise LookupError(f"no pixel is predicted {args.cam}; ask about a place with --at X,Y")
    else:
        x, y = args.at
        if x >= width or y >= height:
            raise LookupError(f"--at {x},{y} lies outside its {width} x {height} pixels")
        chosen = torch.zeros(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        chosen[y * logits.shape[2] // height, x * logits.shape[3] // width] = True
    try:
        return grad_cam(model, layer, inputs, lambda out: out[0, explained][chosen].sum())
    except ValueError as error:
        raise UserError(f"--cam-layer {args.cam_layer}: {error}") from None


# Files


def write(image: Tensor, seen: Maps, classes: Classes, heat: Tensor | None, outputs: dict[str, Path]) -> None:
    """All of one picture's files; image uint8 [3, H, W], heat float [h, w] or None."""
    picture = image.permute(1, 2, 0).numpy()
    save(outputs["ids"], seen.classes)
    shown, counts = np.unique(seen.classes, return_counts=True)
    shares = (counts / seen.classes.size).tolist()
    key = legend(shown.tolist(), classes, max(picture.shape[1], LEGEND_WIDTH), shares)
    save(outputs["overlay"], stacked(overlay(picture, seen.classes, classes), key))
    for kind in ("confidence", "entropy"):
        if kind in outputs:
            save(outputs[kind], (255 * getattr(seen, kind).clip(0, 1) + 0.5).astype(np.uint8))
    if heat is not None:
        large = F.interpolate(heat[None, None], size=picture.shape[:2], mode="bilinear", align_corners=False)[0, 0]
        save(outputs["cam"], heated(picture, large.cpu().numpy()))


def heated(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] in grey under float [H, W] from 0 (blue) to 1 (yellow; cividis) -> uint8 [H, W, 3]."""
    grey = picture.mean(axis=2, keepdims=True, dtype=np.float32)
    colours = 255 * matplotlib.colormaps["cividis"](heat)[..., :3].astype(np.float32)
    return (0.4 * grey + 0.6 * colours + 0.5).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H, W] or [H, W, 3] -> a PNG, there whole or not at all. Raises `UserError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror})") from None
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, format="PNG"))


if __name__ == "__main__":
    run_script(main)
