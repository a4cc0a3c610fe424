"""A network that `export.py` wrote, run by ONNX Runtime: pixels in, class ids out. Torch computes nothing here."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError

SEAL_KEY = "sha256"
"""Of the metadata; its value is the digest of all that stands before it in the file, whose end it is."""


def package(name: str) -> ModuleType:
    """An optional package. Raises `UserError` that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        said = f"{name} is not installed" if isinstance(error, ModuleNotFoundError) else f"{name}: {error}"
        raise UserError(f"{said}; deployment needs: pip install -r requirements-deploy.txt") from None


def seal(content: bytes) -> bytes:
    """What ends a file that holds `content`: one more entry of the metadata (ModelProto, field 14), as protobuf lays it
    out. A message goes on where bytes are added to it, so the file is ONNX as before."""
    key, digest = SEAL_KEY.encode(), hashlib.sha256(content).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(digest)]) + digest
    return b"\x72" + bytes([len(entry)]) + entry


def sealed(path: Path) -> bytes:
    """The bytes of a file of `export.py`. Raises `UserError` for one that is missing, foreign, or damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    length = len(seal(b""))
    end = content[-length:]
    if end[: -hashlib.sha256().digest_size * 2] != seal(b"")[: -hashlib.sha256().digest_size * 2]:
        raise UserError(f"{path}: no network that export.py wrote, or cut short; export the checkpoint again")
    if end != seal(content[:-length]):
        raise UserError(f"{path}: damaged, its checksum does not fit its content; export the checkpoint again")
    return content


class OnnxNetwork:
    """uint8 pixels [B, H, W, 3], RGB -> uint8 class ids [B, H, W], at the pixels' own size.

    names, colours: of the classes, in the order of their ids. size: (width, height) that the network was exported at;
    `dynamic` takes any other too, and any B, where else B is 1. grid: the file gives ids at 1/grid of the sides, which
    are repeated here. int8: whether it computes in whole numbers. metadata: all that the file says of itself.

    Raises `UserError` without ONNX Runtime, and for a file that is missing, damaged, or none of `export.py`.
    """

    def __init__(self, path: Path, threads: int | None = None, providers: tuple[Any, ...] = ()) -> None:
        """threads: of one picture; None: all cores. providers: of ONNX Runtime, in this order; none: the CPU."""
        content = sealed(path)
        self.session = session(content, path, threads, providers)
        said = self.session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {key: json.loads(said[key]) for key in said if key != SEAL_KEY}
        if not {"names", "palette", "size", "grid", "dynamic", "int8", "output"} <= self.metadata.keys():
            raise UserError(f"{path}: says too little of itself; export the checkpoint again")
        self.names = tuple(self.metadata["names"])
        self.colours = tuple(tuple(colour) for colour in self.metadata["palette"])
        self.size: tuple[int, int] = tuple(self.metadata["size"])
        self.grid: int = self.metadata["grid"]
        self.dynamic: bool = self.metadata["dynamic"]
        self.int8: bool = self.metadata["int8"]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Raises ValueError for pixels of another type or shape."""
        width, height = self.size
        fits = pixels.ndim == 4 and pixels.shape[3] == 3 and pixels.dtype == np.uint8
        if not fits or (not self.dynamic and pixels.shape[:3] != (1, height, width)):
            expected = "[B, H, W, 3]" if self.dynamic else f"[1, {height}, {width}, 3]"
            raise ValueError(f"expected pixels uint8 {expected}, found {pixels.dtype} {list(pixels.shape)}")
        (found,) = self.session.run(None, {"pixels": pixels})
        if self.metadata["output"] == "logits":
            found = found.argmax(axis=1).astype(np.uint8)
        return repeated(found, self.grid, pixels.shape)


def repeated(ids: np.ndarray, grid: int, shape: tuple[int, ...]) -> np.ndarray:
    """[B, h, w] at 1/grid of the sides -> [B, H, W] for pixels of `shape` = (B, H, W, ...), each id for its square."""
    return ids if grid == 1 else ids.repeat(grid, axis=1).repeat(grid, axis=2)[:, : shape[1], : shape[2]]


def session(content: bytes, path: Path, threads: int | None = None, providers: tuple[Any, ...] = ()) -> Any:
    """onnxruntime.InferenceSession of a file's bytes; path: what messages call it. Raises `UserError`."""
    onnxruntime = package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said by the exception
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(content, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no base of their own
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: onnxruntime {onnxruntime.__version__} cannot run it ({why})") from None
