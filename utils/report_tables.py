"""The tables of a report: the assignment's 1 to 3, the report's 1 to 5, and all adaptation methods in one.

A table has its rows whether or not they were run: a cell without a run says so, and never holds another's figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from datasets.labels import CLASS_NAMES

from . import published
from .published import NOTE
from .results import Experiment, name
from .tables import NOT_RUN, Cell, Table

NETWORK = {"bisenet": "BiSeNet", "deeplabv2": "DeepLabV2", "resnet18": "ResNet-18", "resnet101": "ResNet-101"}
AUGMENTED = {(): "no augmentation", ("jitter",): "+ colour jitter", ("blur",): "+ Gaussian blur"}
AUGMENTED |= {("jitter", "blur"): "+ both"}
METHODS = (
    "upper bound", "source only", "source only + AdaBN", "adversarial, standard", "adversarial, depthwise",
    "AdvEnt, standard", "MinEnt", "adversarial, standard + level multi", "FDA, beta 0.01", "FDA, beta 0.05",
    "FDA, beta 0.09", "mean of 3 (FDA, beta 0.01, FDA, beta 0.05, FDA, beta 0.09)", "LAB", "pseudo-labels", "DACS",
)  # fmt: skip
"""Rows of the comparison, run or not; whatever else was run follows."""

HEADLINE = "Headline: the last checkpoint, on the target's val set; mean ± sample deviation over runs (seeds)."
ORACLE = "Oracle: the best epoch chosen by the target's own labels, which no adaptation has."
FIGURES = ("accuracy (%)", "mIoU (%)", "oracle best mIoU (%)")

Costs = dict[str, dict[str, Any]]
"""Of measure_flops.py: network -> its figures, with `size` and, where it was timed, `timed_at` in words."""


def all_tables(experiments: Sequence[Experiment], costs: Costs) -> list[Table]:
    """Every table of the report. experiments: finished ones."""
    return [
        upper_bound_table(experiments),
        cost_table(costs, "assignment-1-costs", "Table 1, costs of the networks", segmenters=True),
        shift_table(experiments),
        adversarial_table(experiments),
        cost_table(costs, "assignment-3-costs", "Table 3, costs of the discriminators", segmenters=False),
        network_table(experiments, costs, 1, "deeplabv2", "resnet101"),
        network_table(experiments, costs, 2, "bisenet", "resnet18"),
        per_class(experiments, 3, "the domain shift, IoU per class", _shift_columns()),
        per_class(experiments, 4, "augmentation, IoU per class", _augmentation_columns()),
        per_class(experiments, 5, "adversarial adaptation, IoU per class", _adversarial_columns()),
        comparison(experiments),
    ]


def in_order(experiments: Sequence[Experiment]) -> list[Experiment]:
    """As `METHODS` has them, whatever else there is last; so tables, charts and pictures go alike."""
    places = {row: place for place, row in enumerate(METHODS)}
    return sorted(experiments, key=lambda e: places.get(name(e), len(places)))


# Which experiment fills which row


def upper_bound_on(model: str, backbone: str) -> Callable[[Experiment], bool]:
    def fits(e: Experiment) -> bool:
        return e.plain and e.script == "train_cityscapes" and (e.settings["model"], e.settings["backbone"]) == wanted

    wanted = (model, backbone)
    return fits


def source_only_with(looks: tuple[str, ...]) -> Callable[[Experiment], bool]:
    def fits(e: Experiment) -> bool:
        own = tuple(look for look in ("jitter", "blur") if e.settings.get(look))
        return e.plain and e.script == "train_gta5" and e.settings["model"] == "bisenet" and own == looks

    return fits


def adversarial_with(kind: str) -> Callable[[Experiment], bool]:
    def fits(e: Experiment) -> bool:
        wanted = {"discriminator": kind, "level": "output", "input": "softmax", "min_entropy": False}
        of_row = e.plain and e.script == "train_adversarial" and e.settings["model"] == "bisenet"
        return of_row and all(e.settings.get(key) == value for key, value in wanted.items())

    return fits


# The assignment's tables


def _measured(e: Experiment | None) -> list[Cell]:
    """Setting, runs and `FIGURES`."""
    if e is None:
        return [NOT_RUN] * (2 + len(FIGURES))
    figures = [e.figure("target", "accuracy"), e.figure("target", "miou"), e.figure("oracle", "miou")]
    return [e.setting(), str(len(e.runs)), *figures]


def _rows(label: str, found: Sequence[Experiment], others: Sequence[tuple[str, str, str]]) -> list[list[Cell]]:
    """A row for each experiment, or one that says "not run"; what others published stands beside each."""
    figures = [f"{accuracy} / {miou} ({by})" if accuracy else f"{miou} ({by})" for by, accuracy, miou in others]
    shown = "; ".join(figures) or "-"
    labels = [label if len(found) < 2 else e.label for e in found] or [label]
    return [[own, *_measured(e), shown] for own, e in zip(labels, found or [None], strict=True)]


PUBLISHED = "published: [accuracy /] mIoU (%)"


def upper_bound_table(experiments: Sequence[Experiment]) -> Table:
    rows = []
    for (model, backbone), others in published.UPPER_BOUND.items():
        label = f"{NETWORK[model]}, {NETWORK[backbone]}"
        rows += _rows(label, [e for e in experiments if upper_bound_on(model, backbone)(e)], others)
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
    for kind, others in published.ADVERSARIAL.items():
        found = [e for e in experiments if adversarial_with(kind)(e)]
        rows += _rows(f"{kind} discriminator", found, others)
    title = "Assignment, Table 3: adversarial adaptation (step 3b)"
    notes = (HEADLINE, ORACLE, NOTE, "The student report's 23.9 was trained with jitter, blur and flip: its baseline "
             "is 24.2, not 20.8.")  # fmt: skip
    return Table("assignment-3", title, ("run", "setting", "runs", *FIGURES, PUBLISHED), rows, notes)


def cost_table(costs: Costs, file: str, title: str, segmenters: bool) -> Table:
    names = [name for name in published.COSTS if name.startswith("discriminator") != segmenters]
    header = (
        "network", "parameters, training", "parameters, inference", "fvcore's count (G)", "FLOPs = 2 x conv MACs (G)",
        "latency (ms)", "published parameters", "published count", "published latency (ms)",
    )  # fmt: skip
    rows = [[name, *_cost_cells(costs.get(name)), *(cell or "-" for cell in published.COSTS[name])] for name in names]
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
    by = published.UPPER_BOUND[model, backbone]
    parameters, count, latency = published.COSTS[f"{model} {backbone}"]
    student = {who: miou for who, _, miou in by}["student report"]
    columns = [("measured" if len(found) < 2 else e.setting(), e) for e in found] or [("measured", None)]
    values = [_measured(e) for _, e in columns]
    rows: list[list[Cell]] = [
        [title, *(value[place] for value in values), other]
        for place, (title, other) in enumerate(
            zip(("setting", "runs", *FIGURES), ("-", "-", "-", student, "-"), strict=True)
        )
    ]
    for title, place, other in (("parameters, training", 0, parameters), ("parameters, inference", 1, "-"),
                                ("fvcore's count (G)", 2, count), ("latency (ms)", 4, latency)):  # fmt: skip
        rows.append([title, *([cost[place]] * len(columns)), other])
    title = f"Report, Table {number}: {NETWORK[model]}, {NETWORK[backbone]}"
    return Table(f"report-{number}", title, ("", *(c for c, _ in columns), "published (student report)"), rows,
                 (HEADLINE, NOTE))  # fmt: skip


Column = tuple[str, Callable[[Experiment], bool], dict[str, str] | None, str]
"""Title, whose experiments, what others published per class and as its mean."""


def _shift_columns() -> list[Column]:
    none = ()
    return [
        ("upper bound", upper_bound_on("bisenet", "resnet18"), None, "41.8"),
        ("source only", source_only_with(none), published.PER_CLASS[none], published.AUGMENTATION[none]),
    ]


def _augmentation_columns() -> list[Column]:
    return [
        (label, source_only_with(looks), published.PER_CLASS[looks], published.AUGMENTATION[looks])
        for looks, label in AUGMENTED.items()
    ]


def _adversarial_columns() -> list[Column]:
    return [
        ("standard", adversarial_with("standard"), published.PER_CLASS["adversarial"], "23.9"),
        ("depthwise", adversarial_with("depthwise"), None, ""),
    ]


def per_class(experiments: Sequence[Experiment], number: int, title: str, columns: Sequence[Column]) -> Table:
    """A line a class; a column for each experiment of a kind, and beside it the published one."""
    header, cells = ["IoU (%)"], []
    lines = (*CLASS_NAMES, "mean")
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
            cells.append([*((others or {}).get(line, "-") for line in CLASS_NAMES), mean])
    rows = [[line, *(column[place] for column in cells)] for place, line in enumerate(lines)]
    notes = (HEADLINE, "A dash: no pixel of the class in the evaluated pictures, or nothing published.", NOTE)
    return Table(f"report-{number}", f"Report, Table {number}: {title}", tuple(header), rows, notes)


# Every method in one table

REFERENCE_FREE = {"script", "eval_every", "source_holdout"}
"""Settings in which a method and its references may differ without a word."""
EVALUATED = ("model", "backbone", "size", "cityscapes", "limit")
"""Settings in which they must agree, or they do not compare."""


def reference(e: Experiment, script: str, experiments: Sequence[Experiment]) -> tuple[Experiment | None, list[str]]:
    """(the run of `script` on the same network and pictures that differs from `e` in the fewest settings, those)."""

    def differing(other: Experiment) -> list[str]:
        shared = (other.settings.keys() & e.settings.keys()) - REFERENCE_FREE
        return sorted(key for key in shared if other.settings[key] != e.settings[key])

    fits = [o for o in experiments if o.plain and o.script == script and not {*EVALUATED} & {*differing(o)}]
    best = min(fits, key=lambda other: len(differing(other)), default=None)
    return best, [] if best is None else differing(best)


def gap_recovered(e: Experiment, baseline: Experiment, bound: Experiment) -> list[float] | str:
    """(adapted - source only) / (upper bound - source only), in per cent: of each seed that all three have, else of
    their means, which has no deviation."""
    own, low, high = e.by_seed(), baseline.by_seed(), bound.by_seed()
    if not (own and low and high):
        return "-"
    seeds = own.keys() & low.keys() & high.keys()
    if seeds != own.keys() or None in seeds:
        own, low, high = ({0: statistics.mean(values.values())} for values in (own, low, high))
        seeds = {0}
    if any(high[seed] <= low[seed] for seed in seeds):
        return "no gap"
    return [100 * (own[seed] - low[seed]) / (high[seed] - low[seed]) for seed in sorted(seeds, key=str)]


def comparison(experiments: Sequence[Experiment]) -> Table:
    """Every experiment, in the order of `METHODS`, and those that were not run."""
    rows = []
    named: dict[str, list[Experiment]] = {row: [] for row in METHODS}
    for e in experiments:
        named.setdefault(name(e), []).append(e)
    for row, found in named.items():
        others = published.METHODS.get(row, "-")
        for e in found:
            rows.append([e.label, *_measured(e), *_gap(e, experiments), e.figure("source", "miou"), others])
        if not found:
            rows.append([row, *[NOT_RUN] * (len(FIGURES) + 5), others])
    header = ("method", "setting", "runs", *FIGURES, "gap recovered (%)", "references differ in", "source mIoU (%)",
              "published mIoU (%)")  # fmt: skip
    notes = (
        HEADLINE,
        ORACLE,
        "Gap recovered = (adapted - source only) / (upper bound - source only), seed by seed where all three have the "
        "seed, else of the means. References: the source-only and upper-bound runs of the same network on the same "
        "pictures that differ least; compare only what differs in the method alone.",
        "Source: frames held out of the source's training set.",
        NOTE,
    )
    return Table("comparison", "All adaptation methods", header, rows, notes)


def _gap(e: Experiment, experiments: Sequence[Experiment]) -> list[Cell]:
    """The gap recovered, and the settings besides the method in which the references differ."""
    if e.plain and e.script == "train_cityscapes":
        return ["-", "-"]
    baseline, differing = reference(e, "train_gta5", experiments)
    bound, _ = reference(e, "train_cityscapes", experiments)
    if baseline is None or bound is None:
        return [NOT_RUN, "-"]
    if e is baseline:
        return ["-", "-"]
    bound_differs = [] if bound.settings["batch_size"] == e.settings.get("batch_size") else ["upper bound's batch size"]
    return [gap_recovered(e, baseline, bound), ", ".join([*differing, *bound_differs]) or "-"]
