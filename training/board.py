"""What TensorBoard shows of every run, under the same names, and how much of it.

    train/LOSS, train/gradient, train/rate       every step of the first hundred, then every tenth
    speed/images_per_second, speed/share_waiting_for_data      every tenth step
    SET/accuracy, miou, mean_class_accuracy, entropy       every evaluation; the sets are target, source, ...
    target/INDEX, METHOD/...                     pictures, always the same ones, at twenty moments of the run
    HPARAMS                                      the arguments, beside the last figures on the target

A few megabytes a run: pictures are what takes room, so they are narrow and few.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils.distributed import rank
from utils.errors import UserError

DENSE_STEPS, STRIDE = 100, 10
MOMENTS = 20
WIDTH = 256
"""Of one picture, in pixels, at most."""

FIGURES = ("target/miou", "target/accuracy", "target/entropy", "source/miou")


def dense(step: int) -> bool:
    """Whether a loss of this step is logged; a function of the step alone, so that resumed runs log the same."""
    return step <= DENSE_STEPS or step % STRIDE == 0


def pictured(number: int, of: int) -> bool:
    """Whether this epoch or evaluation, of so many, is one of the moments at which pictures are logged."""
    return number == of or number % math.ceil(of / MOMENTS) == 0


def narrow(image: Tensor) -> Tensor:
    """float [3, H, W] -> the same, at most `WIDTH` wide."""
    height, width = image.shape[-2:]
    if width <= WIDTH:
        return image
    size = (max(1, height * WIDTH // width), WIDTH)
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


class NoBoard:
    """Takes what is written to TensorBoard, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Board:
    """TensorBoard's writer. Whatever is asked of it raises `UserError` where the disk refuses."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self.folder = folder
        threading.excepthook = _quiet_writer
        with self.heeded():
            self._writer = SummaryWriter(folder, purge_step=purge_step)

    def __getattr__(self, name: str) -> Any:
        def heeded(*arguments: Any, **named: Any) -> Any:
            with self.heeded():
                return getattr(self._writer, name)(*arguments, **named)

        return heeded

    def close(self) -> None:
        """What counts was flushed with the last checkpoint."""
        with contextlib.suppress(OSError):
            self._writer.close()

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror or error})") from None


def _quiet_writer(failed: threading.ExceptHookArgs) -> None:
    """The writer's thread raises what it tells the run too, which says it in one line."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(failed)


def open_board(folder: Path, purge_step: int | None) -> Board | NoBoard:
    """Rank 0's writer; other ranks get one that writes nothing. What is there from `purge_step` on is dropped."""
    return Board(folder, purge_step) if rank() == 0 else NoBoard()


def _text(path: str) -> str:
    """A path may hold bytes that are no text, which TensorBoard does not take."""
    return path.encode(errors="replace").decode()


def log_arguments(board: Board, arguments: dict[str, Any]) -> None:
    """The run's arguments for TensorBoard's HPARAMS page, which reads the figures off the scalars of those names."""
    simple = (bool, int, float, str)
    plain = {key: value if isinstance(value, simple) else str(value) for key, value in arguments.items()}
    plain = {key: _text(value) if isinstance(value, str) else value for key, value in plain.items()}
    experiment, session, _ = hparams(plain, dict.fromkeys(FIGURES, 0.0))
    with board.heeded():
        writer = board._get_file_writer()
        writer.add_summary(experiment)
        writer.add_summary(session)
