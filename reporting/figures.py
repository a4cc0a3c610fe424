"""Charts of a report: curves over training, bars per class, confusion matrices.

Colours are Okabe and Ito's, which colour-blind readers tell apart; line styles, markers and hatches say the same again,
so that every chart also reads in grey. Legends stand outside the axes.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np

from .results import Experiment, Measured, class_names

matplotlib.use("Agg")  # files only: no window, no display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams["text.parse_math"] = False  # a run may be called $x$

COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^v<>P*X"
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "+++", "ooo", "|||")
BARS = 5
"""Experiments in one bar chart; more become more charts."""
WIDTH = 5.6
"""Inches: a column of a page, and the width of a phone at two thirds."""

Chart = tuple[str, str, Figure]
"""File name, caption, figure."""

NO_LOSS = ("gradient", "discriminator_accuracy", "discriminator_auxiliary_accuracy")
"""How the names of logged values begin that are no losses."""


def charts(experiments: Sequence[Experiment]) -> Iterator[Chart]:
    """Every chart that the runs have something for; unfinished experiments have curves alone."""
    yield from curves(experiments)
    finished = [e for e in experiments if e.finished]
    yield from class_bars(finished)
    yield from confusion_charts(finished)


# Curves


def curves(experiments: Sequence[Experiment]) -> Iterator[Chart]:
    """mIoU on target and source, every loss, and how often the discriminator is right, each over the steps."""
    trained = [e for e in experiments if e.plain and e.runs[0].history]
    for part, caption in (("target", "mIoU on the target's val set"), ("source", "mIoU on held-out source frames")):
        yield from _curve(f"curve-miou-{part}", caption, "mIoU (%)", trained, _miou_of(part))
    logged = {name: None for e in trained for run in e.runs for entry in run.history for name in entry["train"]}
    for name in logged:
        words, file = name.replace("_", " "), f"curve-{name.replace('_', '-')}"
        if "accuracy" in name:
            by = f"Share of patches whose domain the discriminator names, {words.rpartition(' ')[2]} pictures"
            by += " (second discriminator)" if "auxiliary" in name else ""
            yield from _curve(file, by, "right (%); 50 is chance", trained, _logged(name, 100), chance=50)
        elif not name.startswith(NO_LOSS):
            caption = "Training loss" if name == "loss" else f"Training: {words}"
            yield from _curve(file, f"{caption}, mean of each epoch", words, trained, _logged(name, 1))


def _miou_of(part: str) -> Callable[[dict[str, Any]], float | None]:
    def value(entry: dict[str, Any]) -> float | None:
        miou = (entry.get(part) or {}).get("miou")
        return None if miou is None else 100 * miou

    return value


def _logged(name: str, factor: float) -> Callable[[dict[str, Any]], float | None]:
    return lambda entry: factor * entry["train"][name] if name in entry["train"] else None


def series(
    runs: Sequence[Measured], value: Callable[[dict[str, Any]], float | None]
) -> tuple[list[int], list[float], list[float]]:
    """(steps, mean, sample deviation) over the runs, at the steps that every run has; a deviation of 0 for one run."""
    found = [{entry["step"]: value(entry) for entry in run.history if value(entry) is not None} for run in runs]
    found = [points for points in found if points]
    steps = sorted(set.intersection(*(set(points) for points in found))) if found else []
    values = [[points[step] for points in found] for step in steps]
    return steps, [statistics.mean(v) for v in values], [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]


def _curve(
    file: str, caption: str, label: str, experiments: Sequence[Experiment],
    value: Callable[[dict[str, Any]], float | None], chance: float | None = None,
) -> Iterator[Chart]:  # fmt: skip
    drawn = [(number, e, *series(e.runs, value)) for number, e in enumerate(experiments)]
    drawn = [line for line in drawn if line[2]]
    if not drawn:
        return
    figure, axes = _axes(WIDTH, 2.9, len(drawn))
    if chance is not None:
        axes.axhline(chance, color="0.6", linewidth=0.8)
    for number, e, steps, means, deviations in drawn:  # an experiment looks the same in every chart
        colour = COLOURS[number % (len(COLOURS) - 1)]  # yellow is too pale for a line
        name = e.label + ("" if e.finished else " (unfinished)") + (f", {len(e.runs)} runs" if len(e.runs) > 1 else "")
        axes.plot(
            steps, means, LINES[number % len(LINES)], color=colour, linewidth=1.4,
            marker=MARKERS[number % len(MARKERS)], markersize=3.5, label=textwrap.fill(name, 80),
        )  # fmt: skip
        if any(deviations):
            low, high = (np.add(means, np.multiply(sign, deviations)) for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("training step (a point at the end of an evaluated epoch)")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0 if min(min(line[3]) for line in drawn) >= 0 else None)
    axes.grid(alpha=0.3, linewidth=0.5)
    _legend(figure, axes)
    band = " Bands: mean ± sample deviation over seeds." if any(any(line[4]) for line in drawn) else ""
    yield file, f"{caption}.{band}", figure


# Bars and matrices


def class_bars(experiments: Sequence[Experiment]) -> Iterator[Chart]:
    """IoU per class of the last checkpoints, a few experiments a chart; classes that do not occur are left out."""
    measured = [e for e in experiments if any(e.figure("target", name) for name in e.class_names)]
    present = [name for name in class_names(measured) if any(e.figure("target", name) for e in measured)]
    groups = [measured[first : first + BARS] for first in range(0, len(measured), BARS)]
    for part, group in enumerate(groups, start=1):
        thickness = 0.8 / len(group)
        figure, axes = _axes(WIDTH, 0.6 + len(present) * (0.16 + 0.085 * len(group)), len(group))
        for place, e in enumerate(group):
            at = np.arange(len(present)) + (place - (len(group) - 1) / 2) * thickness
            values = [e.figure("target", name) for name in present]
            axes.barh(
                at, [statistics.mean(v) if v else 0.0 for v in values], thickness, label=textwrap.fill(e.label, 80),
                xerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in values] if len(e.runs) > 1 else None,
                color=COLOURS[(1, 6, 4, 5, 7)[place]], hatch=HATCHES[place], edgecolor="black", linewidth=0.4,
                error_kw={"linewidth": 0.7},
            )  # fmt: skip
        axes.set_yticks(range(len(present)), present)
        axes.invert_yaxis()
        axes.set_xlabel("IoU on the target's val set (%)")
        axes.set_xlim(0, 100)
        axes.grid(axis="x", alpha=0.3, linewidth=0.5)
        _legend(figure, axes)
        of = f" ({part} of {len(groups)})" if len(groups) > 1 else ""
        yield f"per-class-{part}", f"IoU per class, last checkpoint{of}. Whiskers: sample deviation over seeds.", figure


def confusion_charts(experiments: Sequence[Experiment]) -> Iterator[Chart]:
    """For each experiment that kept it: of the pixels of a label, the share that was predicted each class."""
    for number, e in enumerate(experiments, start=1):
        matrices = [np.array(run.confusion) for run in e.runs if run.confusion is not None]
        if not matrices or not sum(matrices).sum():
            continue
        matrix = sum(matrices)
        rows = [i for i in range(len(matrix)) if matrix[i].sum()]
        columns = [i for i in range(len(matrix)) if matrix[:, i].sum() or i in rows]
        shares = 100 * matrix[rows][:, columns] / matrix[rows].sum(axis=1, keepdims=True)
        figure = Figure(figsize=(WIDTH, 1.5 + 0.21 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            if share >= 10:
                dark = share < 55
                axes.text(
                    column,
                    row,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if dark else "black",
                )
        axes.set_xticks(range(len(columns)), [e.class_names[i] for i in columns], rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), [e.class_names[i] for i in rows], fontsize=7)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        figure.colorbar(image, ax=axes, label="of the label's pixels (%)")
        several = f", {len(matrices)} runs together" if len(matrices) > 1 else ""
        yield f"confusion-{number}", f"Confusion of {e.label}{several}; shares of 10 % and more as numbers.", figure


def _axes(width: float, height: float, entries: int) -> tuple[Figure, Axes]:
    """Axes of that height, and room below them for a legend of so many entries."""
    figure = Figure(figsize=(width, height + 0.19 * entries + 0.1), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8)
