"""A network on a video: every frame in colours, as a video of the same rate and length."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from datasets.labels import Classes
from datasets.pictures import LEGEND_WIDTH, Draw, legend, stacked
from datasets.video import Video, VideoWriter
from utils.bar import Lines, bar
from utils.interruption import Interruption, Stop

from .places import made
from .prediction import Eager, Exported

ENOUGH = 0.95
"""Of the frames that a video seems to have, from its length: fewer are worth a word."""


class Segmented(NamedTuple):
    """What became of a video. rates: frames a second of the network alone, and of all that is done."""

    frames: int
    rates: tuple[float, float]
    stop: Stop | None


def segment_video(
    video: Video, out: Path, network: Eager | Exported, classes: Classes, draw: Draw,
    every: int = 1, most: int | None = None,
) -> Segmented:  # fmt: skip
    """Writes `out`. most: frames, and then it ends.

    The legend has all classes and is drawn once, so nothing in it moves. After Ctrl-C or a scheduler's signal the file
    is finished with the frames that there are; `stop` says why. Raises `UserError` where nothing can be written.
    """
    interruption, lines, started, before = Interruption(None), Lines(), time.perf_counter(), network.seconds
    frames = video.frames(every)
    total = None if video.total is None else -(-video.total // every)
    total = most if total is None else min(total, most or total)
    done, key, stop, rates = 0, None, None, (0.0, 0.0)
    interruption.listen()
    try:
        with VideoWriter(out, video.rate / every) as writer, bar(total, out.name, "frame") as drawn:
            while (most is None or done < most) and (stop := interruption.stop()) is None:
                seconds, pixels = next(frames, (None, None))
                if pixels is None:
                    break
                seen = draw(pixels, network(torch.from_numpy(pixels).permute(2, 0, 1)), classes)
                if key is None:
                    key = legend(range(len(classes.names)), classes, max(seen.shape[1], LEGEND_WIDTH))
                writer.write(stacked(seen, key), seconds)
                done += 1
                rates = tuple(done / max(s, 1e-9) for s in (network.seconds - before, time.perf_counter() - started))
                drawn.set_postfix_str(f"network {rates[0]:.1f} frames/s", refresh=False)
                drawn.update()
                if lines.due():
                    print(f"{out.name}: frame {done} of {total or '?'}, {said(rates)}", flush=True)
    finally:
        interruption.close()
    return Segmented(done, rates, stop)


def said(rates: tuple[float, float]) -> str:
    """`rates` of `Segmented` in words."""
    return f"frames a second: network {rates[0]:.1f}, in all {rates[1]:.1f}"


def predict_video(
    video: Video, out: Path, network: Eager | Exported, classes: Classes, draw: Draw, every: int, most: int | None
) -> None:
    """`segment_video`, and what became of it in words. Ends the process where it was interrupted."""
    made(out.parent)
    done = segment_video(video, out, network, classes, draw, every, most)
    print(f"{video.name}: {done.frames} frames, {said(done.rates)}, in {out}" + ", without its sound" * video.sound)
    if video.damaged:
        print(f"note: {video.name}: {video.damaged} damaged frames left out (the first: {video.why})")
    if done.stop is not None:
        print(f"{done.stop.reason}; {out} has what was done until then", file=sys.stderr)
        sys.exit(done.stop.status)
    if most is None and video.total is not None and video.seen + video.damaged < ENOUGH * video.total:
        print(f"note: {video.name} ends after {video.seen} of some {video.total} frames; is it cut short?")
