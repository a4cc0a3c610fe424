"""Checkpoints: self-contained, written atomically, with a checksum, read with `weights_only=True` alone."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import models
from datasets.labels import CITYSCAPES, Classes, require_same_classes
from utils.errors import UserError
from utils.files import is_there, sync, write_atomically
from utils.flags import named_path

from .vetting import require_sound, vet

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


class Unreadable(UserError):
    """A file that may well be whole, but cannot be read here and now."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU. Raises `Unreadable` for a file that this process may not read, or not this
    version; `UserError` for one that is missing, damaged, or something else."""
    try:
        if not path.is_file():
            raise UserError(f"checkpoint {path}: no such file")
        path.open("rb").close()
    except OSError as error:
        raise Unreadable(f"checkpoint {path}: cannot be read ({error.strerror})") from None
    if path.suffix in (".onnx", ".pt2"):
        raise UserError(
            f"{path}: by its name a file of export.py, and a checkpoint is needed here: name the run that it was made "
            "from. Of the exported files predict.py runs network.onnx and network-int8.onnx"
        )
    try:
        vet(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        require_sound(content)
    except (*models.UNREADABLE, zipfile.BadZipFile, AssertionError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise Unreadable(f"checkpoint {path}: there is not enough memory to read it") from None
        why = error if type(error) is ValueError else "torch cannot read it"
        raise UserError(f"{path}: no checkpoint of this project, or a damaged one ({why})") from None
    if not content.keys() >= {"format", "network", "weights", "config"}:
        raise UserError(f"{path}: no checkpoint of this project (it lacks the network's name and configuration)")
    if content["format"] != FORMAT:
        raise Unreadable(f"{path}: checkpoint format {content['format']}, this version reads {FORMAT}")
    expected = content.pop("checksum", None)
    if checksum({key: value for key, value in content.items() if key != "format"}) != expected:
        raise UserError(f"{path}: damaged, its checksum does not fit its content")
    return content


def checkpoint_file(text: str) -> Path:
    """For argparse: a checkpoint, or a run's directory, which stands for its last one."""
    path = named_path(text)
    if not path.is_dir() or (path / LAST).is_file():
        return path / LAST if path.is_dir() else path
    runs = sorted(str(found.parent) for found in path.glob(f"*/{LAST}"))
    more = f"; name one of its runs: {', '.join(runs)}" if runs else "; name a checkpoint, or the directory of a run"
    raise argparse.ArgumentTypeError(f"{path}: no {LAST} is there{more}")


class Newest(NamedTuple):
    """A run's newest checkpoint that is whole."""

    path: Path
    content: dict[str, Any]


def load_newest(directory: Path) -> Newest | None:
    """None where none was written yet. Says when it is not the last one.

    Raises `UserError` when there are checkpoints and every one is damaged, or one is there that cannot be read: it may
    be the newest.
    """
    problems = []
    for path in (directory / LAST, directory / PREVIOUS):
        if is_there(path):
            try:
                content = load_checkpoint(path)
            except Unreadable as error:
                raise UserError(f"{error}. It may be whole: the run goes on once it can be read") from None
            except UserError as error:
                problems.append(str(error))
                continue
            if problems or path.name != LAST:
                print(f"note: {'; '.join(problems) or f'{LAST} is missing'}; continuing from {path.name}")
            return Newest(path, content)
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


def trained_with(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The arguments of the run that wrote a checkpoint. Raises `UserError` when it does not say them."""
    arguments = checkpoint["config"].get("arguments", {})
    if not {"size", "batch_size"} <= arguments.keys() or not {"step", "epoch", "closed"} <= checkpoint.keys():
        raise UserError(f"{path}: does not say at what size its network was trained; no checkpoint of a run")
    return arguments


def require_fit(weights: dict[str, Tensor], name: str, options: dict[str, Any]) -> None:
    """Lays a network out without memory, of which its options may ask for any amount. Raises RuntimeError and others
    where it has not these weights."""
    with torch.device("meta"):
        models.build_segmenter(name, **options).load_state_dict(dict(weights), assign=True)


def build_from_checkpoint(checkpoint: dict[str, Any], path: Path) -> nn.Module:
    """The network that a checkpoint holds, with its weights. Raises `UserError` when the two do not fit."""
    options = {
        key: value for key, value in checkpoint["network"].items() if key not in ("weights", "allow_partial_weights")
    }
    try:
        name, classes = options.pop("name"), len(classes_of(checkpoint))
        if options.get("num_classes", classes) != classes:
            raise ValueError(f"it names {classes} classes")
        require_fit(checkpoint["weights"], name, options)
        model = models.build_segmenter(name, **options)
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
