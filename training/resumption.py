"""What may change when a run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from datasets import domains
from utils.distributed import ranks
from utils.errors import UserError

from .provenance import same_data

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
    "labeller_method",
    "round",
    "init_method",
    "earlier_networks",
    "intra",
    "intra_after",
    "intra_protocol",
    "teacher_checkpoint",
    "teacher_method",
    "pseudo_labels",
    "labels",
    "max_class_share",
}
"""Arguments that may change on --resume: they do not touch the mathematics (that the data are the same is checked,
and the content of a labeller, a teacher or given labels). Where the data lie and which are listed, every domain's
flags, are free too."""


LATER = {
    "train_dacs": {"labels": None, "labels_sha256": None, "teacher_method": None, "average_share": None},
    "train_adversarial": {"lambda_entropy_aux": 0.0, "entropy_range": 1.0, "class_prior": 0.0, "lambda_prior": 1e-3}
    | {"intra": None, "intra_sha256": None, "intra_after": None, "intra_protocol": None, "easy_share": None},
    "train_pseudo_labels": {"rule": "bdl", "label_flip": False, "continue": False, "labeller_method": None}
    | {"labels": None, "labels_sha256": None, "portion": 0.2, "portion_step": 0.05, "portion_max": 0.5}
    | {"target_loss": None, "mrkld": 0.0, "lambda_entropy": 0.0, "lambda_source": 1.0, "lambda_target": 1.0},
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


def changes(before: dict[str, Any], config: dict[str, Any], device: torch.device, where: Path) -> list[str]:
    """What differs between a run's configuration `before` and this command's `config`, of what touches the mathematics.
    `before` stands at `where`: the directory's `config.json`, or what a checkpoint says of itself.

    Raises `UserError` when it is no configuration.
    """
    now = config["arguments"]
    free = FREE | {name for name, default in domains.arguments().items() if default is None}  # an encoding is not
    try:
        arguments, data, processes = arguments_of(before), before["data"], before.get("ranks", 1)
        changed = [
            f"--{key.replace('_', '-')} was {arguments.get(key)}, is {now.get(key)}"
            for key in sorted(arguments.keys() | now.keys())
            if key not in free and arguments.get(key) != now.get(key)
        ]
        changed += [
            f"{name} holds other pictures, or its labels are read in another way"
            for name, value in config["data"].items()
            if not same_data(data.get(name), value)
        ]
        changed += [f"{name} is read no more" for name in data if name not in config["data"]]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{where}: damaged, the run cannot be compared with this command") from None
    if processes != ranks() and device.type != "cuda":
        words = f"the number of processes was {processes}, is {ranks()}"
        changed.append(f"{words} (on a CPU each process normalises its own share of a batch)")
    return changed


def require_allowed(changed: list[str], allowed: bool, where: Path) -> None:
    """Says what changed. Raises `UserError` when something did and nothing may; `where`: see `changes`."""
    if changed and not allowed:
        of = "the run's" if where.suffix == ".json" else f"the one that made {where.name}"
        raise UserError(
            f"--resume {where.parent}: this command differs from {of}: {'; '.join(changed)}. Add --allow-changes "
            "to continue with the new values from the next step on"
        )
    for change in changed:
        print(f"note: {change}")


def note_machine(before: dict[str, Any], config: dict[str, Any], device: torch.device) -> None:
    """Says what differs of what touches no mathematics."""
    if before.get("ranks", 1) != config["ranks"] and device.type == "cuda":
        print(f"note: the number of processes was {before.get('ranks', 1)}, is {config['ranks']}")
    for what in ("commit", "versions"):
        if before.get(what) != config[what]:
            print(f"note: the run was started with other software ({what}: {before.get(what)})")


def move_to(schedule: LRScheduler, step: int) -> None:
    """Where the schedule would be after that many steps."""
    schedule.last_epoch = step
    schedule._last_lr = schedule._get_closed_form_lr()
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate
