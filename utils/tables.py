"""Results as text: the row that fills a report table, the same wherever it is printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it also reads in a terminal."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def percent(fraction: float | None) -> str:
    """0.4561 -> `45.6`; a figure that does not exist is a dash."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def mean_and_deviation(values: Sequence[float], sign: str = "", none: str = "-") -> str:
    """[35.0, 37.0] -> `36.0 ± 1.4` (sample deviation); one value alone; `none` without any. `sign` as in formats."""
    if not values:
        return none
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


SUMMARY = ("run", "accuracy (%)", "mIoU (%)", "mean class accuracy (%)", "classes", "entropy")


def summary_row(name: str, metrics: dict[str, Any]) -> list[str]:
    """The cells under `SUMMARY`."""
    return [
        name,
        percent(metrics["accuracy"]),
        percent(metrics["miou"]),
        percent(metrics["mean_class_accuracy"]),
        str(metrics["classes_evaluated"]),
        f"{metrics['entropy']:.3f}",
    ]


def result_tables(named: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The summary of several evaluations, and their IoU per class (%), one column an evaluation."""
    summary = markdown(SUMMARY, [summary_row(name, metrics) for name, metrics in named])
    classes = list(named[0][1]["iou"])
    rows = [[cls, *(percent(metrics["iou"][cls]) for _, metrics in named)] for cls in classes]
    rows.append(["mean", *(percent(metrics["miou"]) for _, metrics in named)])
    return summary + "\n\n" + markdown(["IoU (%)", *(name for name, _ in named)], rows)
