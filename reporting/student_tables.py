"""The student report's tables 1 to 5: both networks on the target, and IoU per class of runs trained on the source.

As everywhere, a row has its place whether or not it was run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from utils.tables import NOT_RUN, Cell, Table

from . import published
from .costs import Costs
from .published import NOTE
from .results import BISENET_18, Experiment, class_names
from .tables import (
    FIGURES,
    HEADLINE,
    Published,
    adversarial_with,
    conditions,
    cost_cells,
    made,
    measured,
    named,
    of_outputs,
    titled,
    upper_bound_on,
)

AUGMENTED = {(): "no augmentation", ("jitter",): "colour jitter", ("blur",): "Gaussian blur"}
AUGMENTED |= {("jitter", "blur"): "both"}


def student_tables(experiments: Sequence[Experiment], costs: Costs) -> list[Table]:
    """All five. experiments: finished ones."""
    return [
        network_table(experiments, costs, 1, "deeplabv2", "resnet101"),
        network_table(experiments, costs, 2, "bisenet", "resnet18"),
        per_class(experiments, 3, "the domain shift, IoU per class", _shift_columns()),
        per_class(experiments, 4, "augmentation, IoU per class", _augmentation_columns()),
        per_class(experiments, 5, "adversarial adaptation, IoU per class", _adversarial_columns()),
    ]


def source_only_with(looks: tuple[str, ...]) -> Callable[[Experiment], bool]:
    def fits(e: Experiment) -> bool:
        own = tuple(look for look in ("jitter", "blur", "recolour") if e.settings.get(look))
        return e.of_row and e.script == "train_gta5" and e.network[0] == "bisenet" and own == looks

    return fits


def students(others: Published) -> str:
    """The student report's mIoU, empty where it has none."""
    return {who: miou for who, _, miou in others}.get("student report", "")


def network_table(experiments: Sequence[Experiment], costs: Costs, number: int, model: str, backbone: str) -> Table:
    """One network on the target, a line a figure."""
    found = [e for e in experiments if upper_bound_on(model, backbone)(e)]
    cost = cost_cells(costs.get(f"{model} {backbone}"))
    student = students(published.UPPER_BOUND[model, backbone])
    parameters, count, latency = published.COSTS[f"{model} {backbone}"]
    columns = [("measured" if len(found) < 2 else e.setting(), e) for e in found] or [("measured", None)]
    values = [measured(e) + made(e) for _, e in columns]
    titles, others = (*FIGURES, "runs", "setting"), ("-", student, "-", "-", "-")
    rows: list[list[Cell]] = [
        [title, *(value[place] for value in values), other]
        for place, (title, other) in enumerate(zip(titles, others, strict=True))
    ]
    for title, place, other in (("parameters, training", 0, parameters), ("parameters, inference", 1, "-"),
                                ("fvcore's count (G)", 2, count), ("latency (ms)", 4, latency)):  # fmt: skip
        rows.append([title, *([cost[place]] * len(columns)), other])
    title = f"Report, Table {number}: {titled(model, backbone)}"
    taken = [said for key in ("counted_at", "timed_at") for said in conditions(costs, [f"{model} {backbone}"], key)]
    return Table(f"report-{number}", title, ("", *(c for c, _ in columns), "published (student report)"), rows,
                 (HEADLINE, NOTE, *taken))  # fmt: skip


Column = tuple[str, str, Callable[[Experiment], bool], dict[str, str] | None, str]
"""Title, the plain method, whose experiments, what others published per class and as its mean."""


def _shift_columns() -> list[Column]:
    none = ()
    return [
        ("upper bound", "upper bound", upper_bound_on(*BISENET_18, anywhere=True), None,
         students(published.UPPER_BOUND[BISENET_18])),
        ("source only", "source only", source_only_with(none), published.PER_CLASS[none], published.AUGMENTATION[none]),
    ]


def _augmentation_columns() -> list[Column]:
    return [
        (label, " + ".join(["source only", *looks]), source_only_with(looks), published.PER_CLASS[looks],
         published.AUGMENTATION[looks])
        for looks, label in AUGMENTED.items()
    ]


def _adversarial_columns() -> list[Column]:
    others = published.ADVERSARIAL
    return [
        (kind, f"adversarial, {kind}", adversarial_with(kind, anywhere=True), published.PER_CLASS.get(kind),
         students(others.get(kind, ())))
        for kind in of_outputs()
    ]


def per_class(experiments: Sequence[Experiment], number: int, title: str, columns: Sequence[Column]) -> Table:
    """A line a class; a column for each experiment of a kind, which says where its data are others than the report's,
    and beside it the published one."""
    header, cells = ["IoU (%)"], []
    classes = class_names([e for e in experiments if any(fits(e) for _, _, fits, _, _ in columns)])
    classes = classes or tuple(published.PER_CLASS[()])
    lines = (*classes, "mean")
    for label, plain, fits, others, mean in columns:
        found = [e for e in experiments if fits(e)]
        for e in found:
            own = named(label, plain, e, found) + ("" if e.network == BISENET_18 else f", {titled(*e.network)}")
            header.append(own if e.of_assignment else f"{own} ({e.data})")
            cells.append([e.figure("target", line if line != "mean" else "miou") for line in lines])
        if not found:
            header.append(label)
            cells.append([NOT_RUN] * len(lines))
        if others or mean:
            header.append(f"{label}, published")
            cells.append([*((others or {}).get(line, "-") for line in classes), mean])
    rows = [[line, *(column[place] for column in cells)] for place, line in enumerate(lines)]
    notes = (HEADLINE, "A dash: no pixel of the class in the evaluated pictures, or nothing published.", NOTE)
    return Table(f"report-{number}", f"Report, Table {number}: {title}", tuple(header), rows, notes)
