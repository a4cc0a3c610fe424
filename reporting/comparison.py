"""All adaptation methods in one table: what each recovers of the gap between source only and the upper bound."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from datasets.domains import of_target
from utils.tables import NOT_RUN, OF_PART, Cell, Table, mean_title, means_in

from . import published
from .published import NOTE, OTHER_REPORTS_NOTE
from .results import Experiment
from .tables import FIGURES, HEADLINE, ORACLE, OTHERS, made, measured, others_of

METHODS = (
    "upper bound", "source only", "source only + AdaBN", "adversarial, standard", "adversarial, depthwise",
    "AdvEnt, standard", "MinEnt", "adversarial, standard + level multi", "FDA, beta 0.01", "FDA, beta 0.05",
    "FDA, beta 0.09", "mean of 3 (FDA, beta 0.01, FDA, beta 0.05, FDA, beta 0.09)", "LAB", "pseudo-labels", "DACS",
)  # fmt: skip
"""Rows of the comparison, run or not; whatever else was run follows."""


def in_order(experiments: Sequence[Experiment]) -> list[Experiment]:
    """As `METHODS` has them, whatever else there is last; so tables, charts and pictures go alike."""
    places = {row: place for place, row in enumerate(METHODS)}
    return sorted(experiments, key=lambda e: places.get(e.method, len(places)))


REFERENCE_FREE = {"script", "eval_every", "source_holdout"}
"""Settings in which a method and its references may differ without a word."""
EVALUATED = ("model", "backbone", "size", "limit")
"""Settings in which they must agree, or they do not compare; so they must in the target."""


def reference(e: Experiment, script: str, experiments: Sequence[Experiment]) -> tuple[Experiment | None, list[str]]:
    """(the run of `script` on the same network and pictures that differs from `e` in the fewest settings, those)."""

    def differing(other: Experiment) -> list[str]:
        shared = (other.settings.keys() & e.settings.keys()) - REFERENCE_FREE
        return sorted(key for key in shared if other.settings[key] != e.settings[key])

    evaluated = {*EVALUATED, *of_target()}
    own = (other for other in experiments if other.plain and other.script == script and other.on_pictures_of(e))
    fits = [other for other in own if not evaluated & {*differing(other)}]
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
    means = means_in(run.target for e in experiments for run in e.runs)
    named: dict[str, list[Experiment]] = {row: [] for row in METHODS}
    for e in experiments:
        named.setdefault(e.method, []).append(e)
    for row, found in named.items():
        for e in found:
            others = [published.by_others(row), others_of(e, row)]
            gap, differing = _gap(e, experiments)
            own = [*measured(e), *(e.figure("target", mean) for mean in means)]
            rows.append([e.label, *own, gap, *others, e.figure("source", "miou"), differing, *made(e)])
        if not found:
            others = [published.by_others(row), others_of(None, row)]
            rows.append([row, *[NOT_RUN] * (len(FIGURES) + len(means) + 1), *others, *[NOT_RUN] * 4])
    titles = (f"{mean_title(mean)} (%)" for mean in means)
    header = ("method", *FIGURES, *titles, "gap recovered (%)", "published mIoU (%)", OTHERS, "source mIoU (%)",
              "references differ in", "runs", "setting")  # fmt: skip
    notes = (
        HEADLINE,
        ORACLE,
        "Gap recovered = (adapted - source only) / (upper bound - source only), seed by seed where all three have the "
        "seed, else of the means. References: the source-only and upper-bound runs of the same network on the same "
        "pictures that differ least; compare only what differs in the method alone.",
        *((OF_PART,) if means else ()),
        "Source: frames held out of the source's training set.",
        NOTE,
        OTHER_REPORTS_NOTE,
    )
    return Table("comparison", "All adaptation methods", header, rows, notes)


def _gap(e: Experiment, experiments: Sequence[Experiment]) -> list[Cell]:
    """The gap recovered, and the settings besides the method in which the references differ."""
    if e.plain and e.script == "train_cityscapes":
        return ["-", "-"]
    if not {*EVALUATED} <= e.settings.keys():  # a mean of several networks would have several references
        return ["-", "-"]
    baseline, differing = reference(e, "train_gta5", experiments)
    bound, _ = reference(e, "train_cityscapes", experiments)
    if baseline is None or bound is None:
        return [NOT_RUN, "-"]
    if e is baseline:
        return ["-", "-"]
    bound_differs = [] if bound.settings["batch_size"] == e.settings.get("batch_size") else ["upper bound's batch size"]
    return [gap_recovered(e, baseline, bound), ", ".join([*differing, *bound_differs]) or "-"]
