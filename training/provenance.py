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
from datasets.files import stamp
from utils.distributed import ranks

from .progress import Progress

FILES = 16
"""Of a set, whose sizes stand for all: enough to tell two sets apart, and few for a slow disk."""


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
    """What `same_data` compares: the number of pictures, hashes of their names and of how labels are read, and of some
    pictures with their labels the sizes in bytes. Raises `UserError` for a file that is gone."""
    names = "\n".join(sample.name for sample in data.samples)
    mapping = sorted((data.mapping or {}).items())
    reading = repr((labels.VERSION, data.labelled, data.encoding, mapping, *data.table.key()))
    some = sorted({index * len(data) // FILES for index in range(FILES)}) if len(data) else []
    files = [[data.samples[index].image, data.samples[index].label] for index in some]
    sizes = [sum(stamp(path)[1] for path in pair if path is not None) for pair in files]
    return {"pictures": len(data), "names": _sha256(names), "labels": _sha256(reading), "file_sizes": sizes}


def same_data(before: Mapping[str, Any] | None, found: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of one set. A translated copy has the same names and other files. A few files may
    differ: damaged ones are mended. Fingerprints of old runs have no sizes."""
    if before is None:
        return False
    if any(before.get(key) != found.get(key) for key in (before.keys() | found.keys()) - {"file_sizes"}):
        return False
    pairs = list(zip(before.get("file_sizes", ()), found.get("file_sizes", ()), strict=False))
    return 2 * sum(one != other for one, other in pairs) <= len(pairs)


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
