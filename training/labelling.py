"""Labels the target with a network: two passes over its pictures, then PNG files that a training set reads.

Which pixels are labelled is a rule's matter: `adaptation/pseudo_labels.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
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
from utils.files import write_atomically, write_json
from utils.interruption import worker_signals


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
) -> SegmentationSet:
    """`data`, an unlabelled split of the target, with the labels that `model` gives it at the working size.

    rule, settings: a name in `RULES` and what its constructor takes; made_from: what names the network.

    The labels are PNGs of train ids below FOLDER/KEY/ in Cityscapes' layout. `summary.json` beside them has every
    class's threshold and the share of its pixels that was kept. KEY is a digest of what the labels were made from: the
    network, the rule, its settings and the pictures. Labels of the same KEY are used again; others stay where they are.
    The summary is written last, so that labels of an interrupted pass are made again.

    Neither pass holds more than a batch; `pause` is called between two. Raises `UserError` when a picture cannot be
    read or a label cannot be written.
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
    if _complete(home, samples):
        print(f"pseudo-labels {home}: made earlier from the same network and settings, used again")
        return labelled
    model.eval()
    classes = len(data.classes)
    by_rule = RULES[rule](classes, device, **settings)
    for probabilities in _probabilities(model, data, device, workers, "thresholds", pause):
        by_rule.observe(probabilities)
    predicted, kept = (torch.zeros(classes, dtype=torch.int64, device=device) for _ in range(2))
    remaining = iter(samples)
    for probabilities in _probabilities(model, data, device, workers, "pseudo-labels", pause):
        labels = by_rule.label(probabilities)
        predicted += _pixels(confidences(probabilities)[0], classes)
        kept += _pixels(labels, classes)
        for label in labels.cpu().numpy():
            _write_label(next(remaining).label, label)
    summary = summarise(data.classes.names, by_rule.thresholds, predicted, kept) | {"made_from": made_from}
    write_json(home / "summary.json", summary)
    print(f"pseudo-labels {home}: {describe(summary)}")
    return labelled


def _complete(home: Path, samples: list[Sample]) -> bool:
    """Whether a pass came to its end there, and nothing was taken away since."""
    return (home / "summary.json").is_file() and all(sample.label.is_file() for sample in samples)


@torch.no_grad()
def _probabilities(
    model: nn.Module,
    data: SegmentationSet,
    device: torch.device,
    workers: int,
    title: str,
    pause: Callable[[], None],
) -> Iterator[Tensor]:
    """One pass: the network's softmax [B, C, H, W] on each batch."""
    loader = evaluation_loader(data, workers, worker_signals)
    for images, _ in tracked(batches(loader), len(loader), title):
        pause()
        yield class_probabilities(model(to_float(images.to(device, non_blocking=True))))


def _pixels(labels: Tensor, classes: int) -> Tensor:
    """Pixels of each class in uint8 or int64 [B, H, W], those to ignore left out: int64 [C]."""
    return torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[:classes]


def label_path(sample: Sample) -> Path:
    """gtFine/train/CITY/..., without a city where the pictures have none."""
    city = sample.image.parent.name
    return Path("gtFine", "train", "" if city == "train" else city, f"{sample.name}_gtFine_labelTrainIds.png")


def _write_label(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: Image.fromarray(label).save(file, format="PNG"))


def summarise(names: Sequence[str], thresholds: Tensor, predicted: Tensor, kept: Tensor) -> dict[str, Any]:
    """Per class and in all: predicted and kept pixels, the share kept (None where nothing was predicted)."""
    rows = zip(names, thresholds.tolist(), predicted.tolist(), kept.tolist(), strict=True)
    classes = {
        name: {"threshold": threshold, "predicted_pixels": n, "kept_pixels": k, "kept_share": k / n if n else None}
        for name, threshold, n, k in rows
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
