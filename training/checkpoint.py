"""Checkpoints: self-contained, written atomically, with a checksum, read with `weights_only=True` alone."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
from datasets.labels import CITYSCAPES, Classes, require_same_classes
from utils.errors import UserError
from utils.files import sync, write_atomically

FORMAT = 2
LAST, PREVIOUS, BEST = "checkpoint_last.pt", "checkpoint_previous.pt", "checkpoint_best.pt"


def save_checkpoint(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Writes what `load_checkpoint` reads: at least network (options), weights, class_names, class_colours, config,
    step, epoch.

    What stood at `path` goes to `previous`, where one is named, once the new file is on the disk and was read back.
    Raises `UserError` when it cannot be written, or not be read as it was written; then what stood there stays.
    """
    content = {key: value for key, value in content.items() if key not in ("format", "checksum")}
    buffer = io.BytesIO()  # so that a full disk is an OSError of ours and not an error inside torch
    torch.save({"format": FORMAT} | content | {"checksum": checksum(content)}, buffer)
    written = path.with_name(f".{path.name}.new")
    write_atomically(written, lambda file: file.write(buffer.getbuffer()))
    if hashlib.sha256(written.read_bytes()).digest() != hashlib.sha256(buffer.getbuffer()).digest():
        raise UserError(f"{written}: the disk gives back other bytes than were written; {path} was left as it is")
    if previous is not None and path.exists():
        os.replace(path, previous)
    os.replace(written, path)
    sync(path.parent)


def checksum(content: Any) -> str:
    """SHA-256 over dicts, lists, tensors (values, shape and type) and plain values, however they lie in a file."""
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)}".encode())
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(f"{type(value).__name__} {value!r}".encode())


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
    expected = content.pop("checksum", None)
    if checksum({key: value for key, value in content.items() if key != "format"}) != expected:
        raise UserError(f"{path}: damaged, its checksum does not fit its content")
    return content


def checkpoint_file(text: str) -> Path:
    """For argparse: a checkpoint, or a run's directory, which stands for its last one."""
    path = Path(text)
    if not path.is_dir() or (path / LAST).is_file():
        return path / LAST if path.is_dir() else path
    runs = sorted(str(found.parent) for found in path.glob(f"*/{LAST}"))
    more = f"; name one of its runs: {', '.join(runs)}" if runs else "; name a checkpoint, or the directory of a run"
    raise argparse.ArgumentTypeError(f"{path}: no {LAST} is there{more}")


def load_newest(directory: Path) -> dict[str, Any] | None:
    """A run's newest checkpoint that is whole, None where none was written yet. Says when it is not the last one.

    Raises `UserError` when there are checkpoints and every one is damaged.
    """
    problems = []
    for path in (directory / LAST, directory / PREVIOUS):
        if path.exists():
            try:
                content = load_checkpoint(path)
            except UserError as error:
                problems.append(str(error))
                continue
            if problems or path.name != LAST:
                print(f"note: {'; '.join(problems) or f'{LAST} is missing'}; continuing from {path.name}")
            return content
    if problems:
        raise UserError(f"every checkpoint of the run is damaged: {'; '.join(problems)}. Choose another --run-dir")
    return None


def sha256(path: Path) -> str:
    """Of the file. Raises `UserError` when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read ({error.strerror})") from None


def classes_of(checkpoint: dict[str, Any]) -> Classes:
    """What the network of a checkpoint tells apart. A checkpoint without names or colours is of the time when every
    network knew the classes of Cityscapes."""
    names = checkpoint.get("class_names", CITYSCAPES.names)
    colours = checkpoint.get("class_colours", CITYSCAPES.colours)
    return Classes(tuple(names), tuple(tuple(colour) for colour in colours))


def build_from_checkpoint(checkpoint: dict[str, Any], path: Path) -> nn.Module:
    """The network that a checkpoint holds, with its weights. Raises `UserError` when the two do not fit."""
    options = dict(checkpoint["network"])
    try:
        model = models.build_segmenter(options.pop("name"), **options)
        model.load_state_dict(checkpoint["weights"])
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: its weights do not fit its network {checkpoint['network']} ({error})") from None
    return model


def network_for(path: Path, classes: Classes) -> nn.Module:
    """The network of a checkpoint, to be used in a run with these classes. Raises `UserError` when it has others."""
    checkpoint = load_checkpoint(path)
    require_same_classes(str(path), classes_of(checkpoint), "this run", classes)
    return build_from_checkpoint(checkpoint, path)


def start_from(model: nn.Module, path: Path, classes: Classes) -> None:
    """Copies the weights of another run's network. Raises `UserError` for another architecture, or other classes."""
    checkpoint = load_checkpoint(path)
    require_same_classes(str(path), classes_of(checkpoint), "this run", classes)
    if checkpoint["network"] != model.options:
        raise UserError(
            f"{path} holds {describe(checkpoint['network'])}; this run's {describe(model.options)} cannot start from it"
        )
    model.load_state_dict(checkpoint["weights"])


def describe(options: dict[str, Any]) -> str:
    """A network's options in words, e.g. `bisenet (num_classes 19, backbone resnet18)`."""
    return f"{options.get('name')} ({', '.join(f'{k} {v}' for k, v in options.items() if k != 'name')})"
