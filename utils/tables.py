"""Results as text: the row that fills a report table, the same wherever it is printed."""

from __future__ import annotations

import csv
import html
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_RUN = "not run"

Cell = str | Sequence[float]
"""Text, or one figure in per cent of each run."""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it also reads in a terminal. A bar in a cell ends no column."""
    texts = [[re.sub(r"(?<!\\)\|", r"\|", str(cell)) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    texts.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in texts
    )


def percent(fraction: float | None) -> str:
    """0.4561 -> `45.6`; a figure that does not exist is a dash."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def counted(number: int, noun: str) -> str:
    """(1, "step") -> `1 step`; (12, "step") -> `12 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """59 -> `59 s`; 600 -> `10 min`; 9000 -> `2 h 30 min`; 100000 -> `1 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def mean_and_deviation(values: Sequence[float], sign: str = "", none: str = "-") -> str:
    """[35.0, 37.0] -> `36.0 ± 1.4` (sample deviation); one value alone; `none` without any. `sign` as in formats."""
    if not values:
        return none
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


OF_PART = (
    "mIoU-16 and mIoU-13: SYNTHIA's classes alone (16 of 19 outputs). Pixels labelled terrain, truck or train count "
    "nowhere; any other pixel that is predicted as one of these is wrong."
)
SUMMARY = ("run", "accuracy (%)", "mIoU (%)", "mean class accuracy (%)", "classes", "entropy")


def means_in(figures: Iterable[Mapping[str, Any]]) -> list[str]:
    """The means over a part of the classes that are among the figures: miou16, for example. They differ from miou in
    more than their classes: pixels labelled as any other class count nowhere."""
    return list(dict.fromkeys(name for one in figures for name in one if re.fullmatch(r"miou\d+", name)))


def mean_title(name: str) -> str:
    """miou16 -> `mIoU-16`."""
    return f"mIoU-{name.removeprefix('miou')}"


def summary_row(name: str, metrics: dict[str, Any]) -> list[str]:
    """The cells under `SUMMARY`."""
    return [
        name,
        percent(metrics["accuracy"]),
        percent(metrics["miou"]),
        percent(metrics["mean_class_accuracy"]),
        str(metrics["classes_evaluated"]),
        "-" if metrics["entropy"] is None else f"{metrics['entropy']:.3f}",
    ]


def result_tables(named: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The summary of several evaluations, and their IoU per class (%), one column an evaluation."""
    means = means_in(metrics for _, metrics in named)
    titles = (*SUMMARY, *(f"{mean_title(mean)} (%)" for mean in means))
    more = [[_of_part(metrics, mean) for mean in means] for _, metrics in named]
    summary = markdown(titles, [summary_row(*one) + own for one, own in zip(named, more, strict=True)])
    if means:
        summary += f"\n\n{OF_PART}"
    classes = list(named[0][1]["iou"])
    rows = [[cls, *(percent(metrics["iou"][cls]) for _, metrics in named)] for cls in classes]
    rows.append(["mean", *(percent(metrics["miou"]) for _, metrics in named)])
    return summary + "\n\n" + markdown(["IoU (%)", *(name for name, _ in named)], rows)


def _of_part(metrics: Mapping[str, Any], mean: str) -> str:
    """A mean over a part of the classes, which says so where the labels have not all of them."""
    wanted, found = int(mean.removeprefix("miou")), metrics.get(f"{mean}_classes")
    return percent(metrics.get(mean)) + (f" ({found} classes)" if found not in (None, wanted) else "")


PAGE, COLUMN, CELL = 96, 46, 22
"""Letters across a page of the LaTeX document, across one of its two columns, and in a cell of a table that is too wide
for the page."""


@dataclass(frozen=True)
class Table:
    """A table of a report, in every form that it is wanted in. name: of its file; notes: what stands below it."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    notes: tuple[str, ...] = ()

    def texts(self) -> list[list[str]]:
        """The cells as one reads them."""
        return [[cell if isinstance(cell, str) else mean_and_deviation(cell) for cell in row] for row in self.rows]

    def markdown(self) -> str:
        """Title, table, notes."""
        header, *rows = [[escaped(cell) for cell in row] for row in [self.header, *self.texts()]]
        return "\n\n".join([f"### {escaped(self.title)}", markdown(header, rows), *map(escaped, self.notes)]) + "\n"

    def csv(self) -> str:
        """A column of figures becomes two, mean and sample deviation, unrounded. Text that a spreadsheet would take for
        a formula begins with an apostrophe."""
        figures = [
            (place > 0 and title.endswith("(%)") and "published" not in title)
            or any(not isinstance(row[place], str) for row in self.rows)
            for place, title in enumerate(self.header)
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        lines = [[*self.header], *self.rows]
        for number, line in enumerate(lines):
            cells: list[Any] = []
            for cell, figure in zip(line, figures, strict=True):
                if not figure:
                    cells.append(cell)
                elif number == 0:
                    cells += [f"{cell}, mean", f"{cell}, deviation"]
                elif isinstance(cell, str):
                    cells += [cell, ""]
                else:
                    cells += [statistics.mean(cell) if cell else "", statistics.stdev(cell) if len(cell) > 1 else ""]
            writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in cells])
        return text.getvalue()

    def latex(self) -> str:
        """A floating table with booktabs' rules, across both columns where one is too narrow. One too wide for a page
        breaks its long cells into lines (column types `L` and `R` of the document); what is too wide still, its
        `fittable` scales down."""
        columns, small, wide = self._columns()
        header, *rows = [" & ".join(latex(cell) for cell in row) + r" \\" for row in [self.header, *self.texts()]]
        return "\n".join(
            [
                rf"\begin{{table{wide}}}[htbp]",
                r"\centering",
                rf"\caption{{{latex(self.title)}}}\label{{tab:{self.name}}}",
                rf"{small}\fittable{{\begin{{tabular}}{{{columns}}}",
                *(r"\toprule", header, r"\midrule", *rows, r"\bottomrule"),
                r"\end{tabular}}",
                "",
                rf"\smallskip{{\footnotesize {' '.join(latex(note) for note in self.notes)}\par}}",
                rf"\end{{table{wide}}}",
                "",
            ]
        )

    def _columns(self) -> tuple[str, str, str]:
        """LaTeX's column types, what makes a wide table smaller, and `*` for one that needs both columns of a page."""
        plain = "l" + "r" * (len(self.header) - 1)
        columns = list(zip(self.header, *self.texts(), strict=True))
        letters = sum(max(map(len, column)) + 2 for column in columns)
        if letters <= PAGE:
            return plain, "", "*" if letters > COLUMN else ""
        types = []
        for kind, column in zip(plain, columns, strict=True):
            words = max(len(word) for cell in column for word in cell.split())
            body = max((len(cell) for cell in column[1:]), default=0)
            types.append(f"{kind.upper()}{{{max(words, min(body, CELL)) * 0.5:.1f}em}}")  # a letter is half an em
        return "".join(types), r"\footnotesize\setlength{\tabcolsep}{3pt}", "*"

    def html(self) -> str:
        """A figure element: the table in a box that scrolls sideways, notes below."""
        published = ["published" in title for title in self.header]

        def line(tag: str, cells: Sequence[str]) -> str:
            kinds = [
                "other" if other else "none" if cell == NOT_RUN else ""
                for cell, other in zip(cells, published, strict=True)
            ]
            shown = [
                f"<{tag}{f' class={kind}' if kind else ''}>{html.escape(cell)}</{tag}>"
                for cell, kind in zip(cells, kinds, strict=True)
            ]
            return f"<tr>{''.join(shown)}</tr>"

        body = "\n".join(line("td", row) for row in self.texts())
        notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in self.notes)
        return (
            f'<figure id="{self.name}"><figcaption>{html.escape(self.title)}</figcaption>\n<div class=wide><table>'
            f"<thead>{line('th', self.header)}</thead>\n<tbody>{body}</tbody></table></div>{notes}</figure>"
        )


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$",
}  # fmt: skip


MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {character: f"\\{character}" for character in "\\`*[]|"}


def escaped(text: str) -> str:
    """Text as Markdown shows it as it is, in one line: no HTML, link, picture or cell of its own. Underscores stay,
    since names are full of them."""
    return "".join(MARKDOWN.get(character, character) for character in " ".join(text.split()))


def harmless(text: str) -> str:
    """A CSV's cell that no spreadsheet takes for a formula; numbers and dashes stay as they are."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and text != "-" else text
    return text


def latex(text: str) -> str:
    """Text as LaTeX prints it as it is, in one line."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
