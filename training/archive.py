"""What a run keeps, and how it goes on from it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datasets.labels import Classes
from models import UNREADABLE
from utils.distributed import rank
from utils.errors import UserError

from .checkpoint import BEST, LAST, PREVIOUS, load_newest, save_checkpoint
from .progress import Progress
from .resumption import move_to


class Kept(Protocol):
    """What brings entries of its own to a checkpoint, and takes them back from one."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, checkpoint: dict[str, Any], /) -> None: ...


class Archive:
    """A run's checkpoints: the last one, the one before it, and the best by the target's labels (an oracle).

    config: the run's `config.json`. kept: what brings the checkpoint's other entries, the run's `history` among them.
    `hold` names the network and the parts of training whose states are kept.
    """

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        classes: Classes,
        progress: Progress,
        kept: Sequence[Kept],
    ) -> None:
        self.directory, self.config, self.classes = directory, config, classes
        self.progress, self.kept = progress, kept
        self.model: nn.Module | None = None
        self.parts: dict[str, Any] = {}
        self._saved = time.monotonic()

    def hold(self, model: nn.Module, parts: dict[str, Any]) -> None:
        """model: the network that is deployed. parts: name -> whatever else has a state_dict."""
        self.model, self.parts, self._saved = model, parts, time.monotonic()

    def require_room(self) -> None:
        """For a new run. Raises `UserError` where its checkpoints have no room: the last, the one before it, the best,
        and one that is being written."""
        if rank() > 0:
            return
        weights = _bytes(self.model)
        needed = 3 * (weights + sum(map(_bytes, self.parts.values()))) + weights
        directory = self.directory.resolve()
        place = next(folder for folder in (directory, *directory.parents) if folder.is_dir())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UserError(
                f"--run-dir {self.directory}: checkpoints take up to {needed / 1e9:.2f} GB, and {place} has "
                f"{free / 1e9:.2f} GB free; make room, or name a directory on another disk"
            )

    def restore(self, is_changed: Callable[[dict[str, Any], Path], bool]) -> bool:
        """Brings everything back as the newest checkpoint has it; where that one and its path say that arguments have
        changed, rates and the like stay as this command asks for. Returns whether a checkpoint was written yet."""
        newest = load_newest(self.directory)
        if newest is None:
            return False
        checkpoint, changed = newest.content, is_changed(newest.content, newest.path)
        progress = self.progress
        try:
            self.model.load_state_dict(checkpoint["weights"])
            for name, part in self.parts.items():
                anew = isinstance(part, LRScheduler) or (name == "scaler" and name not in checkpoint["training"])
                if not (changed and anew):  # a run that goes on in fp16 has a scaler that it had not before
                    _load_part(part, checkpoint["training"][name], changed)
            for kept in (progress, *self.kept):
                kept.load_state_dict(checkpoint)
            evaluated = bool(checkpoint["history"]) and checkpoint["history"][-1]["step"] == progress.step
        except UNREADABLE as error:
            raise UserError(f"{newest.path}: does not fit this run ({error})") from None
        if progress.step > progress.total_steps:
            raise UserError(
                f"--resume {self.directory}: {progress.step} steps are done already, and this command asks for "
                f"{progress.total_steps}"
            )
        if progress.done:
            self.config["commit"] = checkpoint["config"].get("commit")  # nothing is left that this code could change
        if progress.done and evaluated:
            self.config.update(checkpoint["config"])  # nor this command
            if changed:
                print("note: the run has ended; the changes touch nothing")
        elif changed:
            progress.recount(evaluated)
            for part in self.parts.values():
                if isinstance(part, LRScheduler):
                    move_to(part, progress.step)
        print(f"resumed after {progress}")
        return True

    def save(self, best: bool = False) -> None:
        """Writes the last checkpoint and, where it is the `best` so far, that one too. Rank 0 writes alone."""
        self._saved = time.monotonic()
        if rank() > 0:
            return
        state = {key: value for kept in self.kept for key, value in kept.state_dict().items()}
        content = {
            "network": self.model.options,
            "weights": self.model.state_dict(),
            "class_names": list(self.classes.names),
            "class_colours": [list(colour) for colour in self.classes.colours],
            "config": self.config,
            **self.progress.state_dict(),
            "metrics": state["history"][-1] if state["history"] else None,
        }
        if best:
            save_checkpoint(self.directory / BEST, content)
        training = {name: part.state_dict() for name, part in self.parts.items()}
        content |= {"training": training, **state}
        save_checkpoint(self.directory / LAST, content, self.directory / PREVIOUS)

    def is_due(self, minutes: float) -> bool:
        """Whether the last checkpoint is at least so old; the run's start counts as one."""
        return time.monotonic() - self._saved >= 60 * minutes

    def finish(self) -> None:
        """At the end of the run the last checkpoint stays, and the one before it goes."""
        (self.directory / PREVIOUS).unlink(missing_ok=True)


def _bytes(part: Any) -> int:
    """What a part's tensors take in a checkpoint; of an optimizer once it has made a step: SGD keeps one number for
    each parameter, Adam two."""
    if isinstance(part, nn.Module):
        return sum(tensor.nbytes for tensor in part.state_dict().values())
    if isinstance(part, Optimizer):
        kept = 2 if "betas" in part.defaults else 1
        return kept * sum(parameter.nbytes for group in part.param_groups for parameter in group["params"])
    return 0


def _load_part(part: Any, state: dict[str, Any], changed: bool) -> None:
    """Brings a part's state back. An optimizer keeps the `fused` that fits this device and, with `changed` arguments,
    all settings of its groups."""
    asked = [dict(group) for group in part.param_groups] if isinstance(part, Optimizer) else []
    if asked:  # torch reads there on which device the count of steps has to be
        groups = zip(state["param_groups"], asked, strict=True)
        state = state | {"param_groups": [group | {"fused": own["fused"]} for group, own in groups]}
    part.load_state_dict(state)
    for group, settings in zip(part.param_groups if asked else [], asked, strict=True):
        taken = settings if changed else {"fused": settings["fused"]}
        group.update({key: value for key, value in taken.items() if key != "params"})


def numbered(parts: dict[str, Any]) -> dict[str, Any]:
    """A list's members under names of their own, the number after the first word: {"discriminator_optimizer": [a, b]}
    -> {"discriminator0_optimizer": a, "discriminator1_optimizer": b}. Other parts stay as they are."""
    named: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(part, (list, tuple)):
            first, line, rest = name.partition("_")
            named |= {f"{first}{number}{line}{rest}": member for number, member in enumerate(part)}
        else:
            named[name] = part
    return named
