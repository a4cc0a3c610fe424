"""What may change when a run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from datasets import domains
from utils.distributed import ranks
from utils.errors import UserError
from utils.files import read_json

FREE = {
    "root",
    "resume",
    "allow_changes",
    "checkpoint_minutes",
    "stop_after",
    "on_bad_sample",
    "max_bad_share",
    "no_cache",
    "cache",
    "run_dir",
    "workers",
    "device",
    "compile",
    "labeller",
    "teacher_checkpoint",
    "pseudo_labels",
    "max_class_share",
}
"""Arguments that may change on --resume: they do not touch the mathematics (that the data are the same is checked,
and a labeller's or teacher's content). Where the data lie and which are listed, every domain's flags, are free too."""


LATER = {
    "train_pseudo_labels": {"rule": "bdl", "label_flip": False, "continue": False}
    | {"portion": 0.2, "portion_step": 0.05, "portion_max": 0.5},
}
"""Script -> flags that came after it had written runs -> the value that stands for what those runs did."""
LATER_WITH_SOURCE = {"recolour": 0.0}
"""The same of every script that reads a labelled source."""


def arguments_of(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments in a run's config.json, and those of flags and data sets that did not exist when it was written."""
    source = "source_holdout" in config["arguments"]
    arguments = LATER.get(config["script"], {}) | (LATER_WITH_SOURCE if source else {}) | config["arguments"]
    of_data = domains.arguments(source)
    return arguments | {key: value for key, value in of_data.items() if key not in arguments}


def changes(path: Path, config: dict[str, Any], device: torch.device, allowed: bool) -> tuple[list[str], list[str]]:
    """What differs between the run's `config.json` at `path` and this command's `config`, of what touches the
    mathematics; and what was changed before. Notes what does not touch it.

    Raises `UserError` when something changed and nothing may, or when the file cannot be read.
    """
    try:
        before = read_json(path)
        arguments, data = arguments_of(before), before["data"]
        earlier = before.get("changes", [])
        if not (isinstance(data, dict) and isinstance(earlier, list)):
            raise TypeError("no table")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged, the run cannot be compared with this command") from None
    now = config["arguments"]
    free = FREE | {name for name, default in domains.arguments().items() if default is None}  # an encoding is not
    changed = [
        f"--{key.replace('_', '-')} was {arguments.get(key)}, is {now.get(key)}"
        for key in sorted(arguments.keys() | now.keys())
        if key not in free and arguments.get(key) != now.get(key)
    ]
    changed += [
        f"{name} holds other pictures, or its labels are read in another way"
        for name, value in config["data"].items()
        if data.get(name) != value
    ]
    if before.get("ranks", 1) != ranks():
        words = f"the number of processes was {before.get('ranks', 1)}, is {ranks()}"
        if device.type == "cuda":
            print(f"note: {words}")
        else:
            changed.append(f"{words} (on a CPU each process normalises its own share of a batch)")
    for what in ("commit", "versions"):
        if before.get(what) != config[what]:
            print(f"note: the run was started with other software ({what}: {before.get(what)})")
    if changed and not allowed:
        raise UserError(
            f"--resume {path.parent}: this command differs from the run's: {'; '.join(changed)}. Add --allow-changes "
            "to continue with the new values from the next step on"
        )
    for change in changed:
        print(f"note: {change}")
    return changed, earlier


def move_to(schedule: LRScheduler, step: int) -> None:
    """Where the schedule would be after that many steps."""
    schedule.last_epoch = step
    schedule._last_lr = schedule._get_closed_form_lr()
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate
