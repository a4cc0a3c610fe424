"""Charts of a report: all methods, curves over training, bars per class, confusion matrices.

An experiment looks the same in every chart. Colours are Okabe and Ito's, which colour-blind readers tell apart; line
styles, markers and hatches say the same again, so that every chart also reads in grey. Legends stand outside the axes.
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
from matplotlib.lines import Line2D

matplotlib.rcParams["text.parse_math"] = False  # a run may be called $x$

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^v<>P*X"
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "+++", "ooo", "|||")
BARS = 5
"""Experiments in one bar chart; more become more charts."""
WIDTH = 5.6
"""Inches: a column of a page, and the width of a phone at two thirds."""

NARROW = 4.8
"""Inches of the first chart, whose letters are read on a phone."""

Chart = tuple[str, str, Figure]
"""File name, caption, figure."""

MAIN = ("methods", "curve-miou-target", "curve-miou-source")
"""Charts that a paper starts with."""


def charts(experiments: Sequence[Experiment]) -> Iterator[Chart]:
    """Every chart that the runs have something for; unfinished experiments have curves alone."""
    finished, looks = [e for e in experiments if e.finished], {e.label: n for n, e in enumerate(experiments)}
    yield from methods_chart(finished, looks)
    yield from curves(experiments, looks)
    yield from class_bars(finished, looks)
    yield from confusion_charts(finished)


Looks = dict[str, int]
"""Experiment's label -> its number, which gives it its colour, line, marker and hatch."""


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


# All methods


def methods_chart(experiments: Sequence[Experiment], looks: Looks) -> Iterator[Chart]:
    """mIoU on the target of every experiment; lines where source only and the upper bound are."""
    measured = [e for e in experiments if e.figure("target", "miou")]
    if not measured:
        return
    figure = Figure(figsize=(NARROW, 0.55 + 0.17 * len(measured)), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for script, line in (("train_gta5", ":"), ("train_cityscapes", "--")):
        ends = [e for e in measured if e.plain and e.script == script]
        if ends:
            axes.axvline(statistics.mean(ends[0].figure("target", "miou")), color="0.35", linestyle=line, linewidth=0.9)
    for place, e in enumerate(measured):
        values, number = e.figure("target", "miou"), looks[e.label]
        mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        axes.barh(place, mean, 0.72, xerr=deviation or None, color=colour(number), alpha=0.85,
                  edgecolor="black", linewidth=0.4, error_kw={"linewidth": 0.8, "ecolor": "0.1"})  # fmt: skip
        shown = f"{mean:.1f}" + (f" ± {deviation:.1f}" if deviation else "")
        axes.annotate(shown, (mean + deviation, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(measured)), [textwrap.fill(e.label, 42) for e in measured], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(statistics.mean(e.figure("target", "miou")) for e in measured) or 1)
    axes.set_xlabel("mIoU on the target's val set (%)", fontsize=8)
    axes.tick_params(axis="x", labelsize=7.5)
    yield "methods", (
        "All methods: mIoU of the last checkpoint; whiskers: sample deviation over seeds. Lines: source only (dotted) "
        "and upper bound (dashed), the two ends of the gap."
    ), figure


# Curves


def curves(experiments: Sequence[Experiment], looks: Looks) -> Iterator[Chart]:
    """mIoU on target and source, every loss, and how often the discriminator is right, each over the steps."""
    trained = [e for e in experiments if e.plain and e.runs[0].history]
    over = "over training steps (a point at the end of an evaluated epoch)"
    for part, caption in (("target", "mIoU on the target's val set"), ("source", "mIoU on held-out source frames")):
        panels = {"mIoU (%)": (_miou_of(part), "mIoU (%)", None)}
        yield from _panels(f"curve-miou-{part}", f"{caption}, {over}", panels, trained, looks)
    logged = {name: None for e in trained for run in e.runs for entry in run.history for name in entry["train"]}
    losses = {n.replace("_", " "): (_logged(n, 1), "nats a pixel" if n.startswith("loss") else "loss (no unit)", None)
              for n in logged if "accuracy" not in n and not n.startswith("gradient")}  # fmt: skip
    yield from _panels("curve-losses", f"Training losses, means of epochs, {over}", losses, trained, looks)
    right = {n.replace("_", " "): (_logged(n, 100), "right (%)", 50) for n in logged if "accuracy" in n}
    caption = f"Share of patches whose domain the discriminator names, {over}; 50 % is chance"
    yield from _panels("curve-discriminator", caption, right, trained, looks)


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


Panel = tuple[Callable[[dict[str, Any]], float | None], str, float | None]
"""What is drawn of a logged entry, the axis's label with its unit, and the level of chance, if there is one."""


def _panels(
    file: str, caption: str, panels: dict[str, Panel], experiments: Sequence[Experiment], looks: Looks
) -> Iterator[Chart]:  # fmt: skip
    """Small multiples: a panel each title, the same experiments in each, one legend."""
    found = {title: [(e, *series(e.runs, panel[0])) for e in experiments] for title, panel in panels.items()}
    found = {title: [line for line in lines if line[2]] for title, lines in found.items()}
    found = {title: lines for title, lines in found.items() if lines}
    if not found:
        return
    entries = dict.fromkeys(e.label for lines in found.values() for e, *_ in lines)
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    height = (2.9 if len(found) == 1 else 1.75 * rows) + 0.19 * len(entries) + 0.1
    figure = Figure(figsize=(WIDTH if len(found) == 1 else WIDTH * 1.25, height), layout="constrained")
    handles = {}
    for place, (title, lines) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        _, label, chance = panels[title]
        if chance is not None:
            axes.axhline(chance, color="0.6", linewidth=0.8)
        for e, steps, means, deviations in lines:
            handles[e.label] = _line(axes, e, looks[e.label], steps, means, deviations)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_ylabel(label, fontsize=8)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0 if min(min(line[2]) for line in lines) >= 0 else None)
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.tick_params(labelsize=8)
        if len(found) > 1:
            axes.set_title(title, fontsize=8)
        if place > len(found) - columns:
            axes.set_xlabel("training step", fontsize=8)
    figure.legend(handles=list(handles.values()), loc="outside lower left", frameon=False, fontsize=8)
    varied = any(any(line[3]) for lines in found.values() for line in lines)
    band = " Bands: mean ± sample deviation over seeds." if varied else ""
    yield file, f"{caption}.{band}", figure


def _line(
    axes: Axes, e: Experiment, number: int, steps: list[int], means: list[float], deviations: list[float]
) -> Line2D:  # fmt: skip
    name = e.label + ("" if e.finished else " (unfinished)") + (f", {len(e.runs)} runs" if len(e.runs) > 1 else "")
    (line,) = axes.plot(
        steps, means, LINES[number % len(LINES)], color=colour(number), linewidth=1.4,
        marker=MARKERS[number % len(MARKERS)], markersize=3, label=textwrap.fill(name, 80),
    )  # fmt: skip
    if any(deviations):
        low, high = (np.add(means, np.multiply(sign, deviations)) for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=colour(number), alpha=0.18, linewidth=0)
    return line


# Bars and matrices


def class_bars(experiments: Sequence[Experiment], looks: Looks) -> Iterator[Chart]:
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
                color=colour(looks[e.label]), hatch=HATCHES[place], edgecolor="black", linewidth=0.4,
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
