"""SYNTHIA's files, written byte by byte: Pillow writes no 16-bit RGB."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from conftest import picture, save

from datasets.labels import SYNTHIA_LABELS

NONE, PAETH = 0, 4
"""Filters of PNG lines."""


def png16(rgb: np.ndarray, filter_: int = NONE) -> bytes:
    """uint16 [H, W, 3] -> a 16-bit RGB PNG whose lines all have that filter."""
    lines = rgb.astype(">u2").reshape(len(rgb), -1).view(np.uint8).astype(int)  # [H, 6 W]
    if filter_ == PAETH:
        padded = np.pad(lines, ((1, 0), (6, 0)))
        left, above, corner = padded[1:, :-6], padded[:-1, 6:], padded[:-1, :-6]
        guess = left + above - corner
        near = [np.abs(guess - of) for of in (left, above, corner)]
        best = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner))
        lines = (lines - best) % 256
    data = np.pad(lines, ((0, 0), (1, 0)), constant_values=filter_).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def ids(number: int, size=(48, 32)) -> np.ndarray:
    """uint8 [H, W] ids of SYNTHIA in 4x4 blocks, less those that its pictures lack."""
    known = [row.id for row in SYNTHIA_LABELS.rows if row.name not in ("terrain", "truck", "train")]
    blocks = np.random.default_rng(2000 + number).choice(known, (size[1] // 4, size[0] // 4))
    return blocks.astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)


def train_ids(number: int, size=(48, 32)) -> np.ndarray:
    """The same labels, by the table."""
    return SYNTHIA_LABELS.by_id()[ids(number, size)]


def instances(label: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> uint16 [H, W, 3], as published: class, instance (over a byte), nothing."""
    count = np.arange(label.size, dtype=np.uint16).reshape(label.shape) % 1000
    return np.stack((label.astype(np.uint16), count, np.zeros_like(count)), axis=-1)


def write_synthia(root: Path, count: int = 6, size=(48, 32), first: int = 0) -> Path:
    """The published layout: RAND_CITYSCAPES/{RGB,GT/LABELS,GT/COLOR}, 0000000.png, ...; returns the root."""
    home = root / "RAND_CITYSCAPES"
    (home / "GT/LABELS").mkdir(parents=True)
    for number in range(first, first + count):
        name = f"{number:07d}.png"
        save(home / "RGB" / name, picture(500 + number, size))
        label = instances(ids(number, size))
        (home / "GT/LABELS" / name).write_bytes(png16(label, PAETH if number % 2 else NONE))
        save(home / "GT/COLOR" / name, np.zeros((size[1], size[0], 3), dtype=np.uint8))
    return root
