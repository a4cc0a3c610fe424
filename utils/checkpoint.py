"""Checkpoints: self-contained, written atomically, read with `weights_only=True` alone."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

import models

from .errors import UserError

FORMAT = 1


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """The file is there whole or not at all, whenever the process or the machine stops.

    Raises `UserError` when the disk is full or the folder cannot be written to; what stood there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes what `load_checkpoint` reads: at least network (options), weights, class_names, config, step, epoch."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT} | content, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Raises `UserError` for a file that is missing, damaged, or something else."""
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except models.UNREADABLE:
        raise UserError(f"{path}: no checkpoint of this project, or a damaged one (torch cannot read it)") from None
    if not isinstance(content, dict) or not {"format", "network", "weights", "config"} <= content.keys():
        raise UserError(f"{path}: no checkpoint of this project (it lacks the network's name and configuration)")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: checkpoint format {content['format']}, this version reads {FORMAT}")
    return content


def build_from_checkpoint(checkpoint: dict[str, Any], path: Path) -> nn.Module:
    """The network that a checkpoint holds, with its weights. Raises `UserError` when the two do not fit."""
    options = dict(checkpoint["network"])
    try:
        model = models.build_segmenter(options.pop("name"), **options)
        model.load_state_dict(checkpoint["weights"])
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: its weights do not fit its network {checkpoint['network']} ({error})") from None
    return model


def start_from(model: nn.Module, path: Path) -> None:
    """Copies the weights of another run's network (`--init`). Raises `UserError` for another architecture."""
    checkpoint = load_checkpoint(path)
    if checkpoint["network"] != model.options:
        raise UserError(
            f"--init {path} holds {describe(checkpoint['network'])}, this run builds {describe(model.options)}"
        )
    model.load_state_dict(checkpoint["weights"])


def describe(options: dict[str, Any]) -> str:
    """A network's options in words, e.g. `bisenet (num_classes 19, backbone resnet18)`."""
    return f"{options.get('name')} ({', '.join(f'{k} {v}' for k, v in options.items() if k != 'name')})"
