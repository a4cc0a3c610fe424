"""The check at start: does what lies on disk hold what its names promise? A few seconds at most.

Alone: python -m datasets.check --gta5 DIR --cityscapes DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from utils.errors import Parser, UserError, run_script

from .cityscapes import cityscapes
from .files import picture_size, raw_label, read_image, read_label
from .gta5 import ENCODINGS, gta5
from .labels import CLASS_NAMES, IGNORE, NUM_CLASSES, TRAIN_ID_TO_CITYSCAPES_ID
from .segmentation import SegmentationSet

SAMPLE = 12
"""Files opened per data set, spread evenly over it."""

ASPECT_TOLERANCE = 0.02
MIN_CLASS_ID = min(TRAIN_ID_TO_CITYSCAPES_ID.values())


def check(data: SegmentationSet) -> str:
    """Opens a sample of the files and says what was found. Raises `UserError` naming file, value and likely cause."""
    spread = sorted(set(np.linspace(0, len(data) - 1, SAMPLE).round().astype(int).tolist()))
    seen = np.zeros(256, dtype=np.int64)
    highest, sizes = 0, set()
    for index in spread:
        sample = data.samples[index]
        image = read_image(sample.image)
        height, width = image.shape[-2:]
        sizes.add((width, height))
        if sample.label is None:
            continue
        if data.same_shape:
            _same_shape(data, index, (width, height))
        label = read_label(sample.label, data.encoding, data.mapping)
        seen += np.bincount(label.numpy().ravel(), minlength=256)
        raw, held = raw_label(sample.label, data.encoding)
        highest = max(highest, int(raw[raw != IGNORE].max(initial=0))) if held == "ids" else 255
    said = f"{data.name}: {len(data)} pictures, {_list(sizes)}"
    if not data.labelled:
        return said + ", used without labels"
    first = data.samples[spread[0]].label
    classes = int(np.count_nonzero(seen[:NUM_CLASSES]))
    if classes == 0 and highest < MIN_CLASS_ID:
        raise UserError(
            f"{first} and {len(spread) - 1} more of {data.name}: not a single pixel of the 19 classes. Are these "
            "the dummy labels of the official test split? Use the pictures without labels (eval.py --unlabelled)"
        )
    if highest < NUM_CLASSES and _expects_ids_above_18(data):
        raise UserError(
            f"{first} and {len(spread) - 1} more of {data.name}: expected Cityscapes ids, but no value is over 18 "
            "(car is 26, sky 23): these are probably train ids. "
            + (
                "Rename the files to *_gtFine_labelTrainIds.png"
                if first.stem.endswith("labelIds")
                else "Say --gta5-encoding trainIds if they are"
            )
        )
    if classes == 0:
        raise UserError(f"{data.name}: none of the {len(spread)} labels opened has a single pixel of the 19 classes")
    ignored = seen[IGNORE] / seen.sum()
    return said + f", {classes} classes in {len(spread)} labels opened, {ignored:.0%} of their pixels ignored"


def _same_shape(data: SegmentationSet, index: int, size: tuple[int, int]) -> None:
    sample = data.samples[index]
    width, height = picture_size(sample.label)
    if abs(width * size[1] / (height * size[0]) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{sample.label} is {width} x {height} but its picture {sample.image} is {size[0]} x {size[1]}: "
            "expected the same shape; they do not belong together"
        )


def _expects_ids_above_18(data: SegmentationSet) -> bool:
    """With a mapping of the user's own, ids up to 18 may be all there is."""
    return data.mapping is None or any(id_ > 18 and train != IGNORE for id_, train in data.mapping.items())


def _list(sizes: set[tuple[int, int]]) -> str:
    shown = [f"{width}x{height}" for width, height in sorted(sizes)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more sizes" if len(shown) > 3 else "")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gta5", type=Path, metavar="DIR", help="root of GTA5")
    parser.add_argument("--gta5-encoding", choices=ENCODINGS, default="auto", help="what its labels hold (auto)")
    parser.add_argument("--gta5-mapping", type=Path, metavar="FILE", help="JSON with label2train")
    parser.add_argument("--cityscapes", type=Path, metavar="DIR", help="root of Cityscapes")
    args = parser.parse_args()
    if args.gta5 is None and args.cityscapes is None:
        raise UserError("nothing to check: give --gta5 DIR, --cityscapes DIR or both")
    if args.gta5 is not None:
        print(check(gta5(args.gta5, encoding=args.gta5_encoding, mapping_file=args.gta5_mapping)))
    if args.cityscapes is not None:
        for split in ("train", "val"):
            print(check(cityscapes(args.cityscapes, split)))
    print(f"the {len(CLASS_NAMES)} classes can be read from these files")


if __name__ == "__main__":
    run_script(main)
