"""The tables of a report: the assignment's 1 to 3 and the report's 1 to 5.

A table has its rows whether or not they were run: a cell without a run says so, and never holds another's figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from models import DISCRIMINATORS, SEGMENTERS
from utils.tables import NOT_RUN, Cell, Table

from . import published
from .published import NOTE
from .results import Experiment, class_names

AUGMENTED = {(): "no augmentation", ("jitter",): "+ colour jitter", ("blur",): "+ Gaussian blur"}
AUGMENTED |= {("jitter", "blur"): "+ both"}
HEADLINE = "Headline: the last checkpoint, on the target's val set; mean ± sample deviation over runs (seeds)."
ORACLE = "Oracle: the best epoch chosen by the target's own labels, which no adaptation has."
FIGURES = ("accuracy (%)", "mIoU (%)", "oracle best mIoU (%)")

Costs = dict[str, dict[str, Any]]
"""Of measure_flops.py: network -> its figures, with `size` and, where it was timed, `timed_at` in words."""


def assigned_tables(experiments: Sequence[Experiment], costs: Costs) -> list[Table]:
    """The assignment's tables and the report's. experiments: finished ones."""
    segmenters = [f"{model} {backbone}" for model, backbone in networks()]
    discriminators = [f"discriminator {kind}" for kind in DISCRIMINATORS]
    return [
        upper_bound_table(experiments),
        cost_table(costs, "assignment-1-costs", "Table 1, costs of the networks", segmenters),
        shift_table(experiments),
        adversarial_table(experiments),
        cost_table(costs, "assignment-3-costs", "Table 3, costs of the discriminators", discriminators),
        network_table(experiments, costs, 1, "deeplabv2", "resnet101"),
        network_table(experiments, costs, 2, "bisenet", "resnet18"),
        per_class(experiments, 3, "the domain shift, IoU per class", _shift_columns()),
        per_class(experiments, 4, "augmentation, IoU per class", _augmentation_columns()),
        per_class(experiments, 5, "adversarial adaptation, IoU per class", _adversarial_columns()),
    ]


# Which experiment fills which row


def upper_bound_on(model: str, backbone: str) -> Callable[[Experiment], bool]:
    def fits(e: Experiment) -> bool:
        return e.plain and e.script == "train_cityscapes" and (e.settings["model"], e.settings["backbone"]) == wanted

    wanted = (model, backbone)
    return fits


def source_only_with(looks: tuple[str, ...]) -> Callable[[Experiment], bool]:
    def fits(e: Experiment) -> bool:
        own = tuple(look for look in ("jitter", "blur", "recolour") if e.settings.get(look))
        return e.plain and e.script == "train_gta5" and e.settings["model"] == "bisenet" and own == looks

    return fits


def adversarial_with(kind: str) -> Callable[[Experiment], bool]:
    def fits(e: Experiment) -> bool:
        wanted = {"discriminator": kind, "level": "output", "input": "softmax", "min_entropy": False}
        of_row = e.plain and e.script == "train_adversarial" and e.settings["model"] == "bisenet"
        of_row = of_row and not e.settings.get("recolour")
        return of_row and all(e.settings.get(key) == value for key, value in wanted.items())

    return fits


# The assignment's tables


def measured(e: Experiment | None) -> list[Cell]:
    """Setting, runs and `FIGURES`."""
    if e is None:
        return [NOT_RUN] * (2 + len(FIGURES))
    figures = [e.figure("target", "accuracy"), e.figure("target", "miou"), e.figure("oracle", "miou")]
    return [e.setting(), str(len(e.runs)), *figures]


Published = Sequence[tuple[str, str, str]]
"""By whom, accuracy, mIoU; an accuracy may be empty."""


def students(others: Published) -> str:
    """The student report's mIoU, empty where it has none."""
    return {who: miou for who, _, miou in others}.get("student report", "")


def _rows(label: str, found: Sequence[Experiment], others: Published) -> list[list[Cell]]:
    """A row for each experiment, or one that says "not run"; what others published stands beside each."""
    figures = [f"{accuracy} / {miou} ({by})" if accuracy else f"{miou} ({by})" for by, accuracy, miou in others]
    shown = "; ".join(figures) or "-"
    labels = [label if len(found) < 2 else e.label for e in found] or [label]
    return [[own, *measured(e), shown] for own, e in zip(labels, found or [None], strict=True)]


def networks() -> list[tuple[str, str]]:
    """Every network on every backbone: (model, backbone)."""
    return [(model, backbone) for model, network in SEGMENTERS.items() for backbone in network.backbones]


def titled(model: str, backbone: str) -> str:
    """`BiSeNet, ResNet-18`."""
    return f"{SEGMENTERS[model].title}, {SEGMENTERS[model].backbones[backbone]}"


PUBLISHED = "published: [accuracy /] mIoU (%)"


def upper_bound_table(experiments: Sequence[Experiment]) -> Table:
    rows = []
    for model, backbone in networks():
        found = [e for e in experiments if upper_bound_on(model, backbone)(e)]
        rows += _rows(titled(model, backbone), found, published.UPPER_BOUND.get((model, backbone), ()))
    title = "Assignment, Table 1: trained and tested on the target (step 2, upper bound)"
    return Table("assignment-1", title, ("network", "setting", "runs", *FIGURES, PUBLISHED), rows, (HEADLINE, NOTE))


def shift_table(experiments: Sequence[Experiment]) -> Table:
    rows = []
    for looks, label in AUGMENTED.items():
        found = [e for e in experiments if source_only_with(looks)(e)]
        rows += _rows(f"BiSeNet, {label}", found, (("student report", "", published.AUGMENTATION[looks]),))
    title = "Assignment, Table 2: the domain shift, trained on the source and tested on the target (step 3a)"
    notes = (HEADLINE, ORACLE, NOTE)
    return Table("assignment-2", title, ("run", "setting", "runs", *FIGURES, PUBLISHED), rows, notes)


def adversarial_table(experiments: Sequence[Experiment]) -> Table:
    rows = []
    for kind in DISCRIMINATORS:
        found = [e for e in experiments if adversarial_with(kind)(e)]
        rows += _rows(f"{kind} discriminator", found, published.ADVERSARIAL.get(kind, ()))
    title = "Assignment, Table 3: adversarial adaptation (step 3b)"
    notes = (HEADLINE, ORACLE, NOTE, "The student report's 23.9 was trained with jitter, blur and flip: its baseline "
             "is 24.2, not 20.8.")  # fmt: skip
    return Table("assignment-3", title, ("run", "setting", "runs", *FIGURES, PUBLISHED), rows, notes)


def cost_table(costs: Costs, file: str, title: str, names: Sequence[str]) -> Table:
    """names: as in measure_flops.py."""
    header = (
        "network", "parameters, training", "parameters, inference", "fvcore's count (G)", "FLOPs = 2 x conv MACs (G)",
        "latency (ms)", "published parameters", "published count", "published latency (ms)",
    )  # fmt: skip
    rows = [[name, *_cost_cells(costs.get(name)), *published.COSTS.get(name, ("-", "-", "-"))] for name in names]
    said = {cost["counted_at"] for cost in costs.values()} | {c["timed_at"] for c in costs.values() if "timed_at" in c}
    return Table(file, f"Assignment, {title}", header, rows, (*sorted(said), NOTE))


def _cost_cells(cost: dict[str, Any] | None) -> list[Cell]:
    """Both numbers of parameters, fvcore's count, FLOPs, latency."""
    if cost is None:
        return [NOT_RUN] * 5
    parameters = [f"{cost['parameters_training']:,}", f"{cost['parameters_inference']:,}"]
    timing = next(iter(cost.get("timing", {}).values()), None)
    latency = NOT_RUN if timing is None else f"{timing['latency_median_ms']:.1f}"
    return [*parameters, f"{cost['fvcore'] / 1e9:.2f}", f"{cost['conv_flops'] / 1e9:.2f}", latency]


# The report's tables


def network_table(experiments: Sequence[Experiment], costs: Costs, number: int, model: str, backbone: str) -> Table:
    """One network on the target, a line a figure."""
    found = [e for e in experiments if upper_bound_on(model, backbone)(e)]
    cost = _cost_cells(costs.get(f"{model} {backbone}"))
    student = students(published.UPPER_BOUND[model, backbone])
    parameters, count, latency = published.COSTS[f"{model} {backbone}"]
    columns = [("measured" if len(found) < 2 else e.setting(), e) for e in found] or [("measured", None)]
    values = [measured(e) for _, e in columns]
    rows: list[list[Cell]] = [
        [title, *(value[place] for value in values), other]
        for place, (title, other) in enumerate(
            zip(("setting", "runs", *FIGURES), ("-", "-", "-", student, "-"), strict=True)
        )
    ]
    for title, place, other in (("parameters, training", 0, parameters), ("parameters, inference", 1, "-"),
                                ("fvcore's count (G)", 2, count), ("latency (ms)", 4, latency)):  # fmt: skip
        rows.append([title, *([cost[place]] * len(columns)), other])
    title = f"Report, Table {number}: {titled(model, backbone)}"
    return Table(f"report-{number}", title, ("", *(c for c, _ in columns), "published (student report)"), rows,
                 (HEADLINE, NOTE))  # fmt: skip


Column = tuple[str, Callable[[Experiment], bool], dict[str, str] | None, str]
"""Title, whose experiments, what others published per class and as its mean."""


def _shift_columns() -> list[Column]:
    none, bisenet = (), ("bisenet", "resnet18")
    return [
        ("upper bound", upper_bound_on(*bisenet), None, students(published.UPPER_BOUND[bisenet])),
        ("source only", source_only_with(none), published.PER_CLASS[none], published.AUGMENTATION[none]),
    ]


def _augmentation_columns() -> list[Column]:
    return [
        (label, source_only_with(looks), published.PER_CLASS[looks], published.AUGMENTATION[looks])
        for looks, label in AUGMENTED.items()
    ]


def _adversarial_columns() -> list[Column]:
    return [
        (kind, adversarial_with(kind), published.PER_CLASS.get(kind), students(published.ADVERSARIAL.get(kind, ())))
        for kind in DISCRIMINATORS
    ]


def per_class(experiments: Sequence[Experiment], number: int, title: str, columns: Sequence[Column]) -> Table:
    """A line a class; a column for each experiment of a kind, and beside it the published one."""
    header, cells = ["IoU (%)"], []
    classes = class_names([e for e in experiments if any(fits(e) for _, fits, _, _ in columns)])
    classes = classes or tuple(published.PER_CLASS[()])
    lines = (*classes, "mean")
    for label, fits, others, mean in columns:
        found = [e for e in experiments if fits(e)]
        for e in found:
            header.append(label if len(found) == 1 else e.label)
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
