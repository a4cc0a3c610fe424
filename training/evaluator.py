"""What a run measures at the end of an epoch, and the example pictures beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets import SegmentationSet
from datasets.appearance import to_float
from datasets.labels import Classes, Protocol
from datasets.pictures import panel
from datasets.stream import batches, evaluation_loader
from utils.bar import tracked
from utils.distributed import rank, ranks, share_buffers
from utils.interruption import worker_signals

from .board import narrow
from .evaluation import evaluate, predict
from .preparation import Preparation

EXAMPLES = 3
"""Target pictures shown in TensorBoard at every evaluation, always the same."""


class Evaluator:
    """A run's evaluations: networks and the sets they are measured on -> figures.

    confusion: name -> the confusion matrix of its last evaluation, too long for every line of `metrics.jsonl`.
    `pause` is called before every batch.
    """

    def __init__(
        self,
        prepare: Preparation,
        workers: int,
        device: torch.device,
        classes: Classes,
        pause: Callable[[], None],
        protocol: Protocol | None = None,
    ) -> None:
        self.prepare, self.workers, self.device, self.pause = prepare, workers, device, pause
        self.classes, self.protocol = classes, protocol
        self.confusion: dict[str, list[list[int]]] = {}
        self._prepared: dict[str, SegmentationSet] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"confusion": self.confusion}

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        self.confusion = checkpoint.get("confusion", {})  # checkpoints of before had none

    def measure(self, networks: Mapping[str, tuple[nn.Module, SegmentationSet]]) -> dict[str, dict[str, Any]]:
        """name -> the figures of a network on a set, as `evaluate` gives them. On all ranks at once."""
        found = {}
        for name, (network, data) in networks.items():
            if data.name not in self._prepared:
                self._prepared[data.name] = self.prepare(data, with_labels=False)  # labels stay at their own size
            loader = evaluation_loader(self._prepared[data.name], self.workers, worker_signals, (rank(), ranks()))
            share_buffers(network)
            most = len(evaluation_loader(self._prepared[data.name], 0, share=(0, ranks())))
            loaded = tracked(self._paused(batches(loader), most), len(loader), f"evaluation on {data.name}")
            found[name] = evaluate(network, loaded, self.device, self.classes.names, protocol=self.protocol)
            self.confusion[name] = found[name].pop("confusion")
        return found

    def _paused(self, batches: Iterator[Any], most: int) -> Iterator[Any]:
        """The batches, with `most` pauses: as many on every rank, since ranks pause together."""
        left = most
        for batch in batches:
            self.pause()
            left -= 1
            yield batch
        for _ in range(left):
            self.pause()

    @torch.no_grad()
    def examples(self, model: nn.Module, data: SegmentationSet) -> dict[int, np.ndarray]:
        """Number in the set -> uint8 [H, W, 3]: picture, label and prediction side by side."""
        shown = {}
        for index in np.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).astype(int).tolist():
            image, label = data[index]
            prediction = predict(model(to_float(image[None].to(self.device))), image.shape[-2:])
            image = (narrow(image.float()) + 0.5).byte()
            titled = ([] if label is None else [("label", label)]) + [("prediction", prediction)]
            shown[index] = panel(image, titled, self.classes)
        return shown
