"""A network and a labelled set -> every figure of a report row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.entropy import prediction_entropy
from datasets.appearance import to_float
from datasets.labels import Protocol
from utils.distributed import from_each, rank, sum_over_ranks
from utils.errors import UserError
from utils.metrics import ConfusionMatrix


def predict(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits [1, C, h, w] -> uint8 classes [H, W], brought to `size` = (H, W) before the argmax."""
    if tuple(logits.shape[-2:]) != tuple(size):
        logits = F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return logits.argmax(dim=1)[0].to(torch.uint8)


def require_numbers(outputs: Tensor) -> None:
    """Raises `UserError` where a network gives NaN or infinity: its argmax would be the first class, everywhere."""
    if not bool(torch.isfinite(outputs).all()):
        raise UserError(
            "the network's outputs are no numbers (NaN or infinite), so it predicts nothing: its training has "
            "diverged or hardly begun; train it longer, or anew with a lower --lr"
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, list[Tensor | None]]],
    device: torch.device,
    class_names: tuple[str, ...],
    each: Callable[[int, Tensor, Tensor, Tensor | None], None] | None = None,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Fractions, ready for JSON: accuracy, mean_class_accuracy, miou, the means of `protocol` by their names, iou (name
    -> fraction or None), classes_evaluated, entropy (mean over all pixels, labels unused), pictures, confusion (pixels
    by label and prediction, a row a label).

    batches: (uint8 [B, 3, H, W] at the working size, B labels uint8 [h, w] at their own size, or None). The figures
    are taken at each label's own resolution; without labels they are None. `each(number, image [3, H, W], logits
    [1, C, H, W], label)` is called for every picture. Leaves the model in evaluation mode.

    Of several ranks each brings the batches that `evaluation_loader` shares out, and all get the figures of the whole
    set: to the bit those that one process computes. Where the network's outputs are no numbers all figures are None,
    and a note says so: the argmax of NaN is the first class.
    """
    model.eval()
    matrix = ConfusionMatrix(len(class_names))
    entropies: list[Tensor] = []
    pictures = 0
    for images, labels in batches:
        logits = model(to_float(images.to(device, non_blocking=True)))
        entropies.append(prediction_entropy(logits).mean(dim=(1, 2)).double().sum())
        for index, label in enumerate(labels):
            if label is not None:
                matrix.update(predict(logits[index : index + 1], label.shape), label.to(device, non_blocking=True))
            if each is not None:
                each(pictures + index, images[index], logits[index : index + 1], label)
        pictures += len(images)
    matrix.matrix = sum_over_ranks(matrix.matrix.to(device))
    each_rank = from_each((pictures, torch.stack(entropies).tolist() if entropies else []))
    in_order = itertools.zip_longest(*(of_batches for _, of_batches in each_rank), fillvalue=0.0)
    entropy = sum(itertools.chain.from_iterable(in_order))  # in the order of one process
    finite = math.isfinite(entropy)
    if not finite:
        matrix = ConfusionMatrix(len(class_names))
        if rank() == 0:
            print("note: the network's outputs are no numbers (NaN or infinite), so it predicts nothing: no figures")
    pictures = sum(number for number, _ in each_rank)
    iou = matrix.iou().tolist()
    return {
        "accuracy": _number(matrix.accuracy()),
        "mean_class_accuracy": _number(matrix.mean_class_accuracy()),
        "miou": _number(matrix.miou()),
        **({} if protocol is None else protocol_means(matrix, class_names, protocol)),
        "iou": {name: _number(value) for name, value in zip(class_names, iou, strict=True)},
        "classes_evaluated": int(matrix.present().sum()),
        "entropy": entropy / max(1, pictures) if finite else None,
        "pictures": pictures,
        "confusion": matrix.matrix.tolist(),
    }


def protocol_means(
    matrix: ConfusionMatrix, class_names: tuple[str, ...], protocol: Protocol
) -> dict[str, float | None]:
    """Name -> mean IoU (fraction, None without a labelled pixel) over the classes of it that occur in the labels, and
    name_classes -> how many they are. Nothing where the network has not all of the protocol's classes."""
    if not set(protocol.counted) <= set(class_names):
        return {}
    counted = matrix.of_labels([class_names.index(name) for name in protocol.counted])
    found = {}
    for figure, names in protocol.means.items():
        places = [class_names.index(name) for name in names]
        found[figure] = _number(counted.miou(places))
        found[f"{figure}_classes"] = int(counted.present()[places].sum())
    return found


def _number(value: float) -> float | None:
    """JSON has no NaN: a figure that does not exist is null."""
    return None if math.isnan(value) else value
