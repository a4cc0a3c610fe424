"""Labels the target with a network: two passes over its pictures, then PNG files that a training set reads.

Which pixels are labelled is a rule's matter: `adaptation/pseudo_labels.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from adaptation.pseudo_labels import RULES, class_probabilities, confidences
from datasets import SegmentationSet
from datasets.appearance import to_float
from datasets.files import stamp
from datasets.labels import IGNORE
from datasets.pairs import Sample
from datasets.stream import batches, evaluation_loader
from utils.bar import tracked
from utils.errors import UserError, refuse_idle
from utils.files import is_there, read_json, write_atomically, write_json
from utils.interruption import worker_signals

from .evaluation import require_numbers

SURENESS, GROWTH = ("percentile", "confidence", "portion"), ("portion_step", "portion_max")
"""Flags that a rule may have: which labels are sure, and by how much more of them each round takes."""


def require_meaning(args: argparse.Namespace) -> None:
    """Raises `UserError` for flags of `train_pseudo_labels.py` that mean nothing together."""
    if bool(args.labeller) == bool(args.labels):
        raise UserError("who labels the target? Name its network, --labeller CHECKPOINT, or its labels, --labels DIR")
    if vars(args)["continue"] and (len(args.labeller) != 1 or args.init is not None):
        raise UserError("--continue: a round starts from the network that labels for it; name one, and no --init")
    if args.lambda_source == args.lambda_target == 0:
        raise UserError("--lambda-source 0 --lambda-target 0: nothing is left to train on")
    if args.lambda_source == 0:
        idle = ("bn_statistics", *(["loss"] if args.target_loss is not None else []))
        refuse_idle("--lambda-source 0 leaves the source out", "beta", "jitter", "blur", "recolour", *idle)
    if args.lambda_target == 0:
        refuse_idle("--lambda-target 0 leaves the labels out", "target_loss", "mrkld", "lambda_entropy", "labels",
                    "rule", "label_flip", *SURENESS, *GROWTH)  # fmt: skip
    if args.labels and args.rounds == 1:
        refuse_idle("the labels are given, and there is one round", "rule", "label_flip", "adapt_bn", "max_class_share",
                    "pseudo_labels", *SURENESS)  # fmt: skip
    others = [name for name in SURENESS if name not in RULES[args.rule].settings.values()]
    refuse_idle(f"--rule {args.rule} has none", *others, *(GROWTH if "portion" in others else ()))
    if args.rounds == 1:
        refuse_idle("there is one round", *GROWTH)


def pseudo_labelled(
    model: nn.Module,
    data: SegmentationSet,
    folder: Path,
    made_from: dict[str, Any],
    rule: str,
    settings: dict[str, Any],
    workers: int,
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
    max_class_share: float = 1.0,
    adapt: Callable[[], object] = lambda: None,
) -> SegmentationSet:
    """`data`, an unlabelled split of the target, with the labels that `model` gives it at the working size.

    rule, settings: a name in `RULES` and what its constructor takes; made_from: what names the network.

    The labels are PNGs of train ids below FOLDER/KEY/ in Cityscapes' layout. `summary.json` beside them has every
    class's threshold, the pixels that were predicted and labelled as it, and the share of its predicted pixels that got
    any label. KEY is a digest of what the labels were made from: the network, the rule, its settings and the pictures.
    Labels of the same KEY are used again, where the summary vouches for their content; others stay where they are. The
    summary is written last, so that labels of an interrupted pass are made again.

    No pass holds more than a batch; `pause` is called between two, and `adapt` before the first. Raises `UserError`
    when a picture cannot be read, a label cannot be written, no pixel gets a label, or one class has more than
    `max_class_share` of all that do.
    """
    made_from = made_from | settings | {"size": list(data.size)}
    made_from |= {"pictures": [stamp(sample.image) for sample in data.samples]}
    if rule != "bdl":  # folders of BDL's labels were named before there were other rules
        made_from["rule"] = rule
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    home = folder / key
    samples = [Sample(s.name, s.image, home / label_path(s)) for s in data.samples]
    labelled = dataclasses.replace(
        data, name=f"{data.name}, pseudo-labels", samples=samples, encoding="trainIds", same_shape=False
    )
    if is_there(home / "summary.json"):
        labelled_as = _vouched_for(home, samples, data.classes.names)
        if labelled_as is not None:
            print(f"pseudo-labels {home}: made earlier from the same network and settings, used again")
            _require_several_classes(data.classes.names, labelled_as, max_class_share)
            return labelled
        print(f"pseudo-labels {home}: not those that its summary vouches for; made again")
    adapt()
    model.eval()
    classes = len(data.classes)
    by_rule = RULES[rule](classes, device, **settings)
    order = range(len(data))
    if hasattr(by_rule, "observe"):
        for probabilities in _probabilities(model, data, device, workers, "thresholds", pause):
            by_rule.observe(probabilities)
    else:
        order = np.random.default_rng(0).permutation(len(data))  # by name they come street by street
    predicted, kept, labelled_as = (torch.zeros(classes, dtype=torch.int64, device=device) for _ in range(3))
    seen = dataclasses.replace(data, samples=[data.samples[index] for index in order])
    remaining = iter([samples[index] for index in order])
    written: dict[Path, str] = {}
    for probabilities in _probabilities(model, seen, device, workers, "pseudo-labels", pause):
        labels, prediction = by_rule.label(probabilities), confidences(probabilities)[0]
        predicted += _pixels(prediction, classes)
        kept += _pixels(torch.where(labels == IGNORE, IGNORE, prediction), classes)
        labelled_as += _pixels(labels, classes)
        for label in labels.cpu().numpy():
            path = next(remaining).label
            written[path] = _write_label(path, label)
    _require_several_classes(data.classes.names, labelled_as, max_class_share)
    summary = summarise(data.classes.names, by_rule.thresholds, predicted, kept, labelled_as)
    summary |= {"made_from": made_from, "labels_sha256": _together(written[sample.label] for sample in samples)}
    write_json(home / "summary.json", summary)
    print(f"pseudo-labels {home}: {describe(summary)}")
    return labelled


def _vouched_for(home: Path, samples: list[Sample], names: Sequence[str]) -> Tensor | None:
    """The pixels labelled as each class, int64 [C], where a pass came to its end there, and its labels are still those
    that it wrote; else None."""
    try:
        summary = read_json(home / "summary.json")
        found = _together(hashlib.sha256(sample.label.read_bytes()).hexdigest() for sample in samples)
        labelled_as = torch.tensor([summary["classes"][name]["kept_pixels"] for name in names], dtype=torch.int64)
        return labelled_as if summary["labels_sha256"] == found else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError):
        return None


def _together(digests: Iterable[str]) -> str:
    """One digest of the labels' own, in the order of the pictures."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


@torch.no_grad()
def _probabilities(
    model: nn.Module,
    data: SegmentationSet,
    device: torch.device,
    workers: int,
    title: str,
    pause: Callable[[], None],
) -> Iterator[Tensor]:
    """One pass: the network's softmax [B, C, H, W] on each batch. Raises `UserError` where it is none."""
    loader = evaluation_loader(data, workers, worker_signals)
    for images, _ in tracked(batches(loader), len(loader), title):
        pause()
        probabilities = class_probabilities(model(to_float(images.to(device, non_blocking=True))))
        require_numbers(probabilities)
        yield probabilities


def _pixels(labels: Tensor, classes: int) -> Tensor:
    """Pixels of each class in uint8 or int64 [B, H, W], those to ignore left out: int64 [C]."""
    return torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[:classes]


def label_path(sample: Sample) -> Path:
    """gtFine/train/CITY/..., without a city where the pictures have none."""
    city = sample.image.parent.name
    return Path("gtFine", "train", "" if city == "train" else city, f"{sample.name}_gtFine_labelTrainIds.png")


def _write_label(path: Path, label: np.ndarray) -> str:
    """The SHA-256 of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.fromarray(label).save(content, format="PNG")
    write_atomically(path, lambda file: file.write(content.getbuffer()))
    return hashlib.sha256(content.getbuffer()).hexdigest()


def _require_several_classes(names: Sequence[str], labelled_as: Tensor, max_class_share: float) -> None:
    """Raises `UserError` where one class has more than this share of the labelled pixels, or no pixel is labelled; says
    only, where any share is allowed, that none is."""
    if not labelled_as.any():
        said = "pseudo-labels: no pixel got a label; take another --labeller, or a less strict --rule"
        if max_class_share < 1:
            raise UserError(said)
        print(f"note: {said}")
    share, largest = (labelled_as / labelled_as.sum().clamp(min=1)).max(dim=0)
    if float(share) > max_class_share:
        raise UserError(
            f"pseudo-labels: {100 * float(share):.0f}% of all labelled pixels are {names[largest]}, expected at most "
            f"{100 * max_class_share:g}%: the labels have collapsed, and training on them makes it worse. Take another "
            "--labeller or --rule, or raise --max-class-share where this class really fills the pictures"
        )


def summarise(
    names: Sequence[str], thresholds: Tensor, predicted: Tensor, kept: Tensor, labelled_as: Tensor
) -> dict[str, Any]:
    """Per class and in all: pixels predicted as the class and the share of them that got any label (None where nothing
    was predicted); pixels labelled as it, which by some rules is another class than the predicted one."""
    rows = zip(*(part.tolist() for part in (thresholds, predicted, kept, labelled_as)), strict=True)
    classes = {
        name: {"threshold": k_c, "predicted_pixels": n, "kept_pixels": own, "kept_share": k / n if n else None}
        for name, (k_c, n, k, own) in zip(names, rows, strict=True)
    }
    return {"kept_share": int(kept.sum()) / max(1, int(predicted.sum())), "classes": classes}


def describe(summary: dict[str, Any]) -> str:
    """Threshold and share kept of each class, in words."""
    classes = ", ".join(
        f"{name} {100 * row['kept_share']:.0f}% at {row['threshold']:.2f}"
        for name, row in summary["classes"].items()
        if row["predicted_pixels"]
    )
    return f"{100 * summary['kept_share']:.0f}% of all pixels kept ({classes})"
