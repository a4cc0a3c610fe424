"""What a run says: losses read every tenth step, figures of every evaluation; on the console and on TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.labels import Classes
from datasets.pictures import row
from utils.distributed import rank
from utils.errors import UserError
from utils.files import write_atomically
from utils.tables import means_in

from .board import NoBoard, dense, log_arguments, narrow, open_board, pictured
from .checkpoint import LAST
from .console import ProgressBar, epoch_line, peak_memory
from .progress import Progress
from .scalars import Scalars

READ_EVERY = 10
"""Steps between two readings of the losses: each reading waits for the device."""


class Journal:
    """A run's log: scalars of its steps, the history of its evaluations, TensorBoard's file, and the console.

    history: an entry an evaluated epoch, as in `metrics.jsonl`, and apart from it `spent`, step -> the run's seconds
    until then and its peak memory, which no two runs have alike. board: TensorBoard's writer, once it is open.
    pictures(step): names what a step's batch was drawn from.
    """

    def __init__(
        self, directory: Path, progress: Progress, pictures: Callable[[int], str], device: torch.device
    ) -> None:
        self.directory, self.progress, self.pictures, self._device = directory, progress, pictures, device
        self.history: list[dict[str, Any]] = []
        self.spent: dict[int, dict[str, float | None]] = {}
        self._begin = time.monotonic()  # of the run, less its pauses
        self.board = NoBoard()
        self._scalars = Scalars()
        self._losses: dict[str, list[float]] = {}  # of the epoch in progress
        self._line = ""  # of the newest evaluation
        self._latest: list[Any] = [0, {}]  # the last step whose scalars are on the board, and they

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "history": self.history,
            "best": oracle(self.history),
            "epoch_losses": self._losses,
            "latest": self._latest,
            "spent": self.spent,
            "seconds": self.seconds,
        }

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        self.history, self._losses = checkpoint["history"], checkpoint["epoch_losses"]
        self._latest = checkpoint.get("latest", [0, {}])  # checkpoints of before had none; nor of the next two
        self.spent = checkpoint.get("spent", {})
        self._begin = time.monotonic() - checkpoint.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """That the run has worked, over all its sessions."""
        return time.monotonic() - self._begin

    def open(self, resumed: bool, arguments: dict[str, Any]) -> None:
        """Opens the files. What a resumed run logged after the step it goes on from is taken out of them. An
        evaluation that was cut off may have left figures at that very step: then its scalars are all written anew."""
        if resumed:
            self.write_history()
        step, cut_off = self.progress.step, resumed and self.progress.waits_for_evaluation
        purge = (step if cut_off else step + 1) if resumed else None
        self.board = open_board(self.directory / "tensorboard", purge)
        last, scalars = self._latest
        for tag, value in scalars.items() if cut_off and last == step else ():
            self.board.add_scalar(tag, value, step)
        if rank() == 0:
            log_arguments(self.board, arguments)

    # Steps

    def note(self, step: int, values: dict[str, Tensor | float]) -> None:
        """Scalars of a step. Tensors wait for the next reading."""
        self._scalars.add(step, values)

    def begin_epoch(self) -> None:
        self._losses = {}

    def reads_at(self, step: int) -> bool:
        """Whether the losses are read after this step of the epoch; the same wherever a run was resumed."""
        return (step - self.progress.first_step) % READ_EVERY == 0 or step == self.progress.last_step

    def read(self) -> dict[str, float]:
        """On all ranks at once: logs what was noted since the last reading; returns each name's mean. Raises
        `UserError` for a value that is not finite."""
        means, wrong = {}, []
        for name, read in self._scalars.read().items():
            for step, value in read.items():
                if dense(step):
                    self._scalar(f"train/{name}", value, step)
                if not math.isfinite(value):
                    wrong.append((step, name.startswith("gradient"), name, value))  # the loss is named first
            self._losses.setdefault(name, []).extend(read.values())
            means[name] = sum(read.values()) / len(read)
        if wrong:
            step, _, name, value = min(wrong, key=lambda found: found[:3])
            last = self.directory / LAST
            raise UserError(
                f"{name} is {value} at step {step} (epoch {self.progress.epoch}), on {self.pictures(step)}. The run "
                "stops. Try a lower --lr; "
                + (f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet")
            )
        return means

    def pace(self, bar: ProgressBar, losses: dict[str, float], rate: float) -> None:
        """Shows losses and speed."""
        for name, value in bar.show(losses).items():
            self.board.add_scalar(f"speed/{name}", value, self.progress.step)
        self._scalar("train/rate", rate, self.progress.step)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        """To the board; those of the newest step are kept."""
        self.board.add_scalar(tag, value, step)
        if step > self._latest[0]:
            self._latest = [step, {}]
        if step == self._latest[0]:
            self._latest[1][tag] = value

    # Evaluations

    def evaluated(self, rate: float, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Logs an epoch's evaluation; returns its entry of the history. figures: set -> what was measured on it."""
        progress = self.progress
        losses = {name: sum(values) / len(values) for name, values in self._losses.items()}
        entry = {"epoch": progress.epoch, "step": progress.step, "rate": rate, "train": losses, **figures}
        self.history.append(entry)
        for name, measured in figures.items():
            for figure in ("accuracy", "miou", "mean_class_accuracy", "entropy", *means_in([measured])):
                if measured[figure] is not None:
                    self.board.add_scalar(f"{name}/{figure}", measured[figure], progress.step)
            for label, iou in measured["iou"].items():
                if iou is not None:
                    self.board.add_scalar(f"{name}_iou/{label}", iou, progress.step)
        self.spent[progress.step] = {"seconds": round(self.seconds, 3), "peak_memory_mib": peak_memory(self._device)}
        self._line = epoch_line(progress, losses, figures, self.seconds)
        return entry

    def say(self) -> None:
        """Prints the newest evaluation, once it is kept."""
        print(self._line, flush=True)

    def write_history(self) -> None:
        """`metrics.jsonl`; rank 0 alone."""
        if rank() == 0:
            lines = "".join(json.dumps(entry | self.spent.get(entry["step"], {})) + "\n" for entry in self.history)
            write_atomically(self.directory / "metrics.jsonl", lambda file: file.write(lines.encode()))

    # Pictures

    def is_pictured(self, every: int = 1) -> bool:
        """Whether pictures of this epoch are logged; of an evaluation, where one comes every so many epochs."""
        return pictured(math.ceil(self.progress.epoch / every), math.ceil(self.progress.epochs / every))

    def show(self, tag: str, images: list[Tensor], classes: Classes) -> None:
        """Pictures float [3, H, W] and labels uint8 [H, W] in the classes' colours, side by side."""
        shown = [narrow(image.detach().float()) if image.ndim == 3 else image for image in images]
        self.board.add_image(tag, row(shown, classes), self.progress.step)


def oracle(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry with the best mIoU by the target's labels, the first of equal ones; None where there are no labels."""
    labelled = [entry for entry in history if entry["target"]["miou"] is not None]
    return max(labelled, key=lambda entry: entry["target"]["miou"], default=None)
