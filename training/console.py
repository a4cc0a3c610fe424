"""What a run shows while it works: a bar on a terminal, a line now and then elsewhere, a line an evaluated epoch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from utils.bar import Lines, bar
from utils.tables import duration, means_in, percent

from .progress import Progress

GROUPS = {"loss": "loss", "adversarial": "adv", "discriminator": "D"}
"""How the names of values begin that are shown together, and their common word."""


def in_words(losses: Mapping[str, float]) -> str:
    """`loss 0.51 adv 0.69 D 0.69/0.70`: values of one kind together, in the order in which they are logged; without
    the gradients' norms and the discriminators' accuracies, which TensorBoard has."""
    groups: dict[str, list[str]] = {}
    for name, value in losses.items():
        if name.startswith("gradient") or "accuracy" in name:
            continue
        word = GROUPS.get(name.partition("_")[0], name.replace("_", " "))
        groups.setdefault(word, []).append(f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}")
    return " ".join(f"{word} {'/'.join(values)}" for word, values in groups.items())


def epoch_line(progress: Progress, losses: Mapping[str, float], figures: Mapping[str, dict[str, Any]],
               seconds: float) -> str:  # fmt: skip
    """`mIoU 34.1 (source 55.0), epoch 2/50, step 3120/78000, 41 min: loss 0.51`. figures: set -> what was measured on
    it, the target first; seconds: since the run's begin."""
    first, *others = figures
    means = means_in([figures[first]])
    beside = [f"{name.removeprefix('miou')} classes {percent(figures[first][name])}" for name in means]
    beside = ", ".join(beside + [f"{name} {percent(figures[name]['miou'])}" for name in others])
    return (
        f"mIoU {percent(figures[first]['miou'])}" + (f" ({beside})" if beside else "")
        + f", epoch {progress.epoch}/{progress.epochs}, step {progress.step}/{progress.total_steps}, "
        f"{duration(seconds)}: {in_words(losses)}"
    )  # fmt: skip


def peak_memory(device: torch.device) -> float | None:
    """MiB: the allocator's peak on a GPU, the process's resident peak elsewhere; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class ProgressBar:
    """An epoch's steps on the console: how many are done, how fast they go, how long they wait for data."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self._progress, self._device = progress, device
        left, form = progress.last_step - progress.step, "{desc} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
        self._bar = bar(left, f"epoch {progress.epoch}", "step", form)
        self._lines, self._read = Lines(), []
        self._start, self._seen, self._steps, self._waited = time.perf_counter(), 0, 0, 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever waits for data."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def step_done(self, pictures: int) -> None:
        self._seen, self._steps = self._seen + pictures, self._steps + 1
        self._bar.update()

    def say(self) -> None:
        """A line, where it is time for one."""
        if self._lines.due():
            print(self.line(), flush=True)
            self._read = self._read[-1:]

    def show(self, losses: dict[str, float]) -> dict[str, float]:
        """Writes losses and speed beside the bar. Returns the speed since the bar's begin, as TensorBoard names it."""
        self._read.append(losses)
        speed = self.speed()
        waiting = f"wait {100 * speed['share_waiting_for_data']:.0f}%"
        self._bar.set_postfix_str(f"{speed['images_per_second']:.1f}/s {waiting} {in_words(losses)}", refresh=False)
        return speed

    def speed(self) -> dict[str, float]:
        passed, memory = time.perf_counter() - self._start, peak_memory(self._device)
        return {
            "images_per_second": self._seen / passed,
            "seconds_per_step": passed / max(1, self._steps),
            "share_waiting_for_data": self._waited / passed,
        } | ({} if memory is None else {"peak_memory_mib": memory})

    def line(self) -> str:
        """Step, losses (the mean of what was read since the last line), speed, and the time left of the run."""
        progress, speed = self._progress, self.speed()
        names = dict.fromkeys(name for read in self._read for name in read)
        means = {name: [read[name] for read in self._read if name in read] for name in names}
        losses = in_words({name: sum(values) / len(values) for name, values in means.items()})
        left = duration(speed["seconds_per_step"] * (progress.total_steps - progress.step))
        memory = f", GPU {speed['peak_memory_mib'] / 1024:.1f} GiB" if self._device.type == "cuda" else ""
        return (
            f"step {progress.step}/{progress.total_steps}, epoch {progress.epoch}/{progress.epochs}: "
            + (f"{losses}; " if losses else "")
            + f"{speed['seconds_per_step']:.3g} s/step, {speed['images_per_second']:.1f} images/s, waiting "
            f"{100 * speed['share_waiting_for_data']:.0f} %{memory}, {left} left"
        )
