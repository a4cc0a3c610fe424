"""Where a figure comes from: code, versions, device, data."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from datasets import SegmentationSet, labels
from utils.distributed import ranks

from .progress import Progress


def configuration(
    arguments: Mapping[str, Any], progress: Progress, sets: Sequence[SegmentationSet], device: torch.device
) -> dict[str, Any]:
    """A run's `config.json`: arguments (the script's name among them), plan, data, code, and machine."""
    return {
        "script": arguments["script"],
        "arguments": {key: _plain(value) for key, value in arguments.items()},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "steps_per_epoch": progress.steps_per_epoch,
        "total_steps": progress.total_steps,
        "data": {part.name: fingerprint(part) for data in sets for part in data.parts},
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device),
        "ranks": ranks(),
    }


def _plain(value: Any) -> Any:
    """An argument as JSON gives it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def fingerprint(data: SegmentationSet) -> dict[str, Any]:
    """What a resumed run compares: the number of pictures, and hashes of their names and of how labels are read."""
    names = "\n".join(sample.name for sample in data.samples)
    mapping = sorted((data.mapping or {}).items())
    reading = repr((labels.VERSION, data.labelled, data.encoding, mapping, *data.table.key()))
    return {"pictures": len(data), "names": _sha256(names), "labels": _sha256(reading)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of every package that touches a figure."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def commit() -> str | None:
    """The commit of this code, with `+` where the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + ("+" if changed else "")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
