"""Videos: the frames of a file, a camera or a folder, upright and in order; and a file that frames are written to.

Files and cameras take PyAV, which is optional: its wheels bring FFmpeg.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import torch

from utils.errors import UserError

from .files import is_picture, read_image
from .geometry import resize_image

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg")
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}
"""sys.platform -> (what FFmpeg calls a camera, by whose driver)."""

USUAL_RATE = Fraction(25)
"""Frames a second of what does not say its rate."""

CODEC, OPTIONS = "libx264", {"crf": "20", "preset": "veryfast"}
FINE = 10_000
"""Parts of a second that the times of a file written here are at least exact to; its rate's are whole."""

BT709 = 1
"""H.264's number of high definition's colours. Players take them for granted where a file says nothing."""


def pyav() -> ModuleType:
    """Raises `UserError` that says what to install."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise UserError(f"videos need PyAV, which brings FFmpeg ({error}): pip install av") from None
    return av


@dataclass
class Video:
    """Frames that come one by one, to be iterated over once.

    total: how many it claims or seems to have; None: nobody knows. seen, damaged: frames so far that were decoded,
    and that could not be; why: what was wrong with the first of these. time_base: seconds, in which `decoded`
    says when each is shown.
    """

    name: str
    rate: Fraction
    time_base: Fraction
    total: int | None
    sound: bool = False
    seen: int = 0
    damaged: int = 0
    why: str = ""
    decoded: Iterator[tuple[int, np.ndarray]] = field(default_factory=lambda: iter(()))

    def lose(self, why: object) -> None:
        """Counts a frame that cannot be decoded."""
        self.damaged += 1
        self.why = self.why or str(why)

    def frames(self, every: int = 1) -> Iterator[tuple[Fraction, np.ndarray]]:
        """Each `every`-th frame: (seconds after the first, each later than the one before; uint8 [H, W, 3] RGB, all of
        the first one's size). Times that a file holds in whole milliseconds are brought to its rate again."""
        step = max(1, round(1 / (self.rate * self.time_base)))
        first = last = shape = None
        for number, (at, pixels) in enumerate(self.decoded):
            first = at if first is None else first
            at -= first
            last = at if last is None or at > last else last + step  # clocks jump back where files were joined
            shape = shape or pixels.shape
            self.seen += 1
            if number % every == 0:
                seconds = last * self.time_base
                regular = round(seconds * self.rate) / self.rate
                seconds = regular if abs(regular - seconds) <= self.time_base < 1 / (4 * self.rate) else seconds
                yield seconds, pixels if pixels.shape == shape else _resized(pixels, shape)


def video_file(path: Path) -> Video:
    """Raises `UserError` without PyAV, and for a file that holds no video, or not enough of one to be opened."""
    return _opened(str(path), str(path))


def camera(number: int) -> Video:
    """Of this machine; it ends with the process. Raises `UserError`."""
    if sys.platform not in CAMERAS:
        raise UserError(f"--camera: cameras are read on {' and '.join(CAMERAS)} only, found {sys.platform}")
    device, driver = CAMERAS[sys.platform]
    return _opened(device.format(number), f"camera {number}", driver)


def frames_below(folder: Path, rate: Fraction) -> Video:
    """The pictures in a folder as the frames of a video, in the order of their names, in which 9 comes before 10. One
    that cannot be read leaves a gap. Raises `UserError` where there is none."""

    def order(path: Path) -> list[Any]:
        return [int(part) if part.isascii() and part.isdecimal() else part for part in re.split(r"([0-9]+)", path.name)]

    found = sorted((p for p in folder.iterdir() if is_picture(p) and p.is_file()), key=order)
    if not found:
        raise UserError(f"{folder}: no PNG or JPEG is in it, so it has no frames")
    video = Video(str(folder), rate, 1 / rate, len(found))

    def decoded() -> Iterator[tuple[int, np.ndarray]]:
        for number, path in enumerate(found):
            try:
                yield number, read_image(path, upright=True).permute(1, 2, 0).numpy()
            except UserError as error:
                video.lose(error)

    video.decoded = decoded()
    return video


def _opened(where: str, name: str, driver: str | None = None) -> Video:
    av = pyav()
    try:
        container = av.open(where, format=driver)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        why = "is it there, and free?" if driver else "it is no video, damaged, or cut short; copy it again"
        raise UserError(f"{name}: cannot be opened ({getattr(error, 'strerror', error)}); {why}") from None
    if not container.streams.video:
        container.close()
        raise UserError(f"{name}: expected a video, found none in it")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = stream.average_rate or stream.guessed_rate or USUAL_RATE
    seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / Fraction(10**6)
    video = Video(name, rate, stream.time_base, stream.frames or round(seconds * rate) or None,
                  bool(container.streams.audio))  # fmt: skip
    video.decoded = _decoded(av, container, stream, video)
    return video


def _decoded(av: ModuleType, container: Any, stream: Any, video: Video) -> Iterator[tuple[int, np.ndarray]]:
    """(when, pixels) of every frame that is whole."""
    step = max(1, round(1 / (video.rate * video.time_base)))
    last = -step
    with container:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except av.error.FFmpegError as error:
                video.lose(error.strerror)
                continue  # after an error of the container itself, the next packet is None
            for frame in frames:
                last = last + step if frame.pts is None else frame.pts
                if frame.is_corrupt:
                    video.lose("parts of it are missing")
                else:
                    yield last, _upright(frame, stream.sample_aspect_ratio)


def _upright(frame: Any, pixel_shape: Fraction | None) -> np.ndarray:
    """uint8 [H, W, 3], square pixels, turned as the camera was held."""
    width = round(frame.width * (pixel_shape or 1))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _resized(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    image = resize_image(torch.from_numpy(pixels).permute(2, 0, 1), (shape[1], shape[0]))
    return image.permute(1, 2, 0).contiguous().numpy()


class VideoWriter:
    """An MP4 file in H.264, for a `with` statement. It is there whole when that ends, and not at all after an error.

    Sides are padded to even ones, which H.264's usual colours need. Raises `UserError` where it cannot be written, and
    at the end where no frame came.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.av, self.path, self.rate = pyav(), path, rate
        self.time_base = Fraction(1, rate.numerator * -(-FINE // rate.numerator))
        self.last = -1
        short = os.fsdecode(os.fsencode(path.name)[:200])
        self.temporary = path.with_name(f".{short}.{os.getpid()}.tmp")
        self.container: Any = None
        self.stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, pixels: np.ndarray, seconds: Fraction) -> None:
        """uint8 [H, W, 3], every time of one size; seconds: when it is shown, later every time."""
        height, width = pixels.shape[:2]
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with self._said():
            if self.container is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.container = self.av.open(str(self.temporary), "w", format="mp4")
                self.stream = self.container.add_stream(CODEC, rate=self.rate, options=OPTIONS)
                self.stream.height, self.stream.width, self.stream.pix_fmt = *pixels.shape[:2], "yuv420p"
                context = self.stream.codec_context
                context.time_base, context.color_range = self.time_base, 1
                context.colorspace = context.color_primaries = context.color_trc = BT709
            frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            self.last = max(self.last + 1, round(seconds / self.time_base))
            frame.pts, frame.time_base = self.last, self.time_base
            self.container.mux(self.stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._said():
                    if self.container is None:
                        raise UserError(f"{self.path}: not written, since not one frame could be decoded")
                    self.container.mux(self.stream.encode(None))
                    self.container.close()
                    os.replace(self.temporary, self.path)
        finally:
            with contextlib.suppress(OSError, ValueError):
                if self.container is not None:
                    self.container.close()
            self.temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except (self.av.error.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
