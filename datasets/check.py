"""The check at start: does what lies on disk hold what its names promise? A few seconds at most.

Alone: python -m datasets.check --gta5 DIR --cityscapes DIR
"""

from __future__ import annotations

import argparse

import numpy as np

from utils.errors import Parser, UserError, refuse_idle, run_script

from .domains import (
    SOURCES,
    TARGETS,
    add_flags,
    from_environment,
    open_source,
    open_target,
    refuse_idle_flags,
    require_read_mappings,
    roots,
    sources_of,
    target_of,
)
from .files import picture_size, raw_label, read_image, read_label
from .labels import IGNORE
from .segmentation import SegmentationSet, shared_classes

SAMPLE = 12
"""Files opened per data set, spread evenly over it."""

ASPECT_TOLERANCE = 0.02


def check(data: SegmentationSet) -> str:
    """Opens a sample of the files and says what was found, a line a part. Raises `UserError` naming file, value and
    likely cause."""
    if len(data.parts) > 1:
        return "\n".join(map(check, data.parts))
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
        label = read_label(sample.label, data.encoding, data.table, data.mapping)
        seen += np.bincount(label.numpy().ravel(), minlength=256)
        raw, held = raw_label(sample.label, data.encoding, data.table)
        highest = max(highest, int(raw[raw != IGNORE].max(initial=0))) if held == "ids" else 255
    said = f"{data.name}: {len(data)} pictures, {_list(sizes)}"
    if not data.labelled:
        return said + ", used without labels"
    _refuse_misread(data, len(spread), seen, highest)
    classes = int(np.count_nonzero(seen[: len(data.classes)]))
    ignored = seen[IGNORE] / seen.sum()
    return said + f", {classes} classes in {len(spread)} labels opened, {ignored:.0%} of their pixels ignored"


def _refuse_misread(data: SegmentationSet, opened: int, seen: np.ndarray, highest: int) -> None:
    """Labels that could be read, but hold no class, or values that only look like ids. seen: pixels of each train id;
    highest: the highest id, 255 where the files hold none."""
    first, known = data.samples[0].label, len(data.classes)
    of_classes = {id_: train for id_, train in data.table.train_ids.items() if train != IGNORE}
    nothing = not seen[:known].any()
    if nothing and highest < min(of_classes):
        raise UserError(
            f"{first} and {opened - 1} more of {data.name}: not a single pixel of the {known} classes. Are these "
            "the dummy labels of the official test split? Use the pictures without labels (eval.py --unlabelled)"
        )
    common = data.table.everywhere
    if common and data.mapping is None and opened == SAMPLE and not nothing:
        least = data.classes.index(common)
        if highest < least or (data.encoding == "trainIds" and not seen[least:known].any()):
            raise UserError(
                f"{first} and {opened - 1} more of {data.name}: no value is over {least - 1}, so no {common} is there, "
                "nor any class after it. Are these labels of other classes, such as CamVid's 11? docs/data.md says how "
                "those are read (--camvid), and those of other sets"
            )
    if data.mapping is not None:  # with one of the user's own, ids below `known` may be all there is
        of_classes = {id_: train for id_, train in data.mapping.items() if train != IGNORE}
    if highest < known <= max(of_classes) and data.table.unlisted is None:  # users know their own ids
        example = f"{data.classes.names[of_classes[max(of_classes)]]} is {max(of_classes)}"
        if first.stem.endswith("labelIds"):
            hint = " Rename the files to *_gtFine_labelTrainIds.png"
        else:
            hint = f" Say {data.encoding_flag} trainIds if they are" if data.encoding_flag else ""
        raise UserError(
            f"{first} and {opened - 1} more of {data.name}: expected {data.table.title} ids, but no value is over "
            f"{known - 1} ({example}): these are probably train ids.{hint}"
        )
    if nothing:
        raise UserError(f"{data.name}: none of the {opened} labels opened has a single pixel of the {known} classes")


def _same_shape(data: SegmentationSet, index: int, size: tuple[int, int]) -> None:
    sample = data.samples[index]
    width, height = picture_size(sample.label)
    if abs(width * size[1] / (height * size[0]) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{sample.label} is {width} x {height} but its picture {sample.image} is {size[0]} x {size[1]}: "
            "expected the same shape; they do not belong together"
        )


def _list(sizes: set[tuple[int, int]]) -> str:
    shown = [f"{width}x{height}" for width, height in sorted(sizes)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more sizes" if len(shown) > 3 else "")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    add_flags(data, SOURCES, "root of {title} ({variable})")
    add_flags(data, TARGETS, "root of {title} ({variable})")
    data.add_argument(
        "--unlabelled-train", action="store_true",
        help="of the target's train split check the pictures alone: only the upper bound needs its labels",
    )  # fmt: skip
    args = parser.parse_args()
    from_environment(args, SOURCES, TARGETS)
    given = vars(args)
    refuse_idle_flags(given, SOURCES, TARGETS)
    require_read_mappings(given)
    sources, target = sources_of(given), target_of(given)
    if not sources and target is None:
        raise UserError(f"nothing to check: give {roots(SOURCES)}, {roots(TARGETS)} or both")
    sets = []
    if sources:
        sets.append(open_source(given | {"source_size": SOURCES[sources[0]].size}))
    if target is not None:
        size = given | {"size": TARGETS[target].size}
        sets += [open_target(size, "train", labelled=not args.unlabelled_train), open_target(size, "val")]
    else:
        refuse_idle("no target is given", "unlabelled_train")
    for data in sets:
        print(check(data))
    print(f"the {len(shared_classes(*sets))} classes can be read from these files")


if __name__ == "__main__":
    run_script(main)
