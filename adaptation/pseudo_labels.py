"""Pseudo-labels by maximum probability threshold: a network's own sure predictions as labels of the target.

BDL (Li et al., CVPR 2019) keeps a pixel when its probability is at least the smaller of 0.9 and the
median probability of its class over the target set; FDA's rounds (CVPR 2020) take the 66th percentile for the median.
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
from tqdm import tqdm

from datasets import SegmentationSet
from datasets.appearance import to_float
from datasets.files import stamp
from datasets.labels import IGNORE
from datasets.pairs import Sample
from datasets.stream import batches, evaluation_loader
from utils.files import write_atomically, write_json
from utils.interruption import worker_signals

BINS = 10_000
"""Of the histogram of confidences over [0, 1]: a percentile is known to 1e-4."""


def confidences(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C, H, W] -> (classes int64 [B, H, W], their probabilities float32 [B, H, W])."""
    confidence, prediction = logits.permute(0, 2, 3, 1).float().softmax(dim=-1).max(dim=-1)
    return prediction, confidence


class ConfidenceHistogram:
    """How sure a network is of each class over a whole set; its size does not depend on the set's."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, BINS, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, confidence: Tensor) -> None:
        """Classes int64 and their probabilities in [0, 1], of one shape."""
        bins = (confidence.double() * BINS).long().clamp(0, BINS - 1)
        cells = (prediction * BINS + bins).flatten()
        self.counts += torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)

    def thresholds(self, percentile: float, at_most: float) -> Tensor:
        """float32 [C]: the smaller of `at_most` and the class's percentile (0 to 100), as the published code has it:
        element round(n * percentile / 100) of the n sorted confidences, to 1 / `BINS`. `at_most` for a class that is
        never predicted."""
        totals = self.counts.sum(dim=1)
        rank = (totals.double() * percentile / 100).round().long().minimum(totals - 1)
        bins = (self.counts.cumsum(dim=1) <= rank[:, None]).sum(dim=1)  # the first bin that reaches past the rank
        found = torch.where(totals > 0, bins.double() / BINS, at_most)
        return found.clamp(max=at_most).float()


def pseudo_label(prediction: Tensor, confidence: Tensor, thresholds: Tensor) -> Tensor:
    """Classes and probabilities [B, H, W], thresholds [C] -> uint8 [B, H, W]: the class where its probability is at
    least its threshold, else 255."""
    kept = confidence >= thresholds[prediction]
    return torch.where(kept, prediction, IGNORE).to(torch.uint8)


def pseudo_labelled(
    model: nn.Module,
    data: SegmentationSet,
    folder: Path,
    made_from: dict[str, Any],
    percentile: float,
    at_most: float,
    device: torch.device,
    workers: int,
    pause: Callable[[], None] = lambda: None,
) -> SegmentationSet:
    """`data`, an unlabelled split of the target, with the labels that `model` gives it at the working size.

    The labels are PNGs of train ids below FOLDER/KEY/ in Cityscapes' layout, beside them `summary.json` with every
    class's threshold and the share of its pixels that was kept. KEY names what they were made from: `made_from` (the
    network), the settings and the pictures. Labels of the same KEY are used again; others stay where they are. The
    summary is written last, so that what an interrupted pass left is made again.

    Two passes over the pictures, one for the thresholds and one for the labels; neither holds more than a batch, and
    `pause` is called between two. Raises `UserError` when a picture cannot be read or a label not be written.
    """
    made_from = made_from | {"percentile": percentile, "at_most": at_most, "size": list(data.size)}
    made_from |= {"pictures": [stamp(sample.image) for sample in data.samples]}
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
    histogram = ConfidenceHistogram(len(data.classes), device)
    for prediction, confidence in _predictions(model, data, device, workers, "thresholds", pause):
        histogram.update(prediction, confidence)
    thresholds = histogram.thresholds(percentile, at_most)
    kept = torch.zeros(len(data.classes), dtype=torch.int64, device=device)
    remaining = iter(samples)
    for prediction, confidence in _predictions(model, data, device, workers, "pseudo-labels", pause):
        labels = pseudo_label(prediction, confidence, thresholds)
        kept += torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[: len(kept)]
        for label in labels.cpu().numpy():
            _write_label(next(remaining).label, label)
    summary = summarise(data.classes.names, thresholds, histogram.counts.sum(dim=1), kept) | {"made_from": made_from}
    write_json(home / "summary.json", summary)
    print(f"pseudo-labels {home}: {describe(summary)}")
    return labelled


def _complete(home: Path, samples: list[Sample]) -> bool:
    """Whether a pass came to its end there, and nothing was taken away since."""
    return (home / "summary.json").is_file() and all(sample.label.is_file() for sample in samples)


@torch.no_grad()
def _predictions(
    model: nn.Module,
    data: SegmentationSet,
    device: torch.device,
    workers: int,
    title: str,
    pause: Callable[[], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = evaluation_loader(data, workers, worker_signals)
    for images, _ in tqdm(batches(loader), total=len(loader), desc=title, disable=None, leave=False):
        pause()
        yield confidences(model(to_float(images.to(device, non_blocking=True))))


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
