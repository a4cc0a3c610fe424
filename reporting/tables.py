"""The tables of a report: the assignment's 1 to 3 and its step 4, the costs, and where every figure comes from.

A table has its rows whether or not they were run: a cell without a run says so, and never holds another's figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from models import DISCRIMINATORS, SEGMENTERS
from training.methods import plain_loss
from utils.tables import NOT_RUN, Cell, Table, duration

from . import published
from .costs import FEATURES_NOTE, Costs
from .published import NOTE, OTHER_REPORTS_NOTE
from .results import BISENET_18, Experiment

HEADLINE = "Headline: the last checkpoint, on the target's val set; mean ± sample deviation over runs (seeds)."
ORACLE = "Oracle: the best epoch chosen by the target's own labels, which no adaptation has."
FIGURES = ("accuracy (%)", "mIoU (%)", "oracle best mIoU (%)")

def assignment_tables(experiments: Sequence[Experiment], costs: Costs) -> list[Table]:
    """The assignment's tables, and those of costs. experiments: finished ones."""
    return [
        upper_bound_table(experiments),
        adversarial_table(experiments, costs, 2, "Adversarial domain adaptation", ["standard"]),
        adversarial_table(experiments, costs, 3, "Lightweight adversarial domain adaptation",
                          [kind for kind in of_outputs() if kind != "standard"]),
        variations_table(experiments),
        cost_table(costs, "costs-networks", "Costs of the networks", [f"{m} {b}" for m, b in networks()]),
        cost_table(costs, "costs-discriminators", "Costs of the discriminators", list(discriminators())),
    ]


def counted_networks(experiments: Sequence[Experiment]) -> list[str]:
    """Whose costs the tables need: the networks that were run, and the discriminators. As in measure_flops.py."""
    run = dict.fromkeys(f"{run.config['arguments']['model']} {run.config['arguments']['backbone']}"
                        for e in experiments for run in e.runs)  # fmt: skip
    return [*run, *discriminators()]


# Which experiment fills which row


def upper_bound_on(model: str, backbone: str, anywhere: bool = False) -> Callable[[Experiment], bool]:
    """anywhere: also on other data than the assignment's."""

    def fits(e: Experiment) -> bool:
        of_row = (e.of_row if anywhere else e.of_assignment) and e.script == "train_cityscapes"
        return of_row and e.network == wanted

    wanted = (model, backbone)
    return fits


def adversarial_with(kind: str, anywhere: bool = False) -> Callable[[Experiment], bool]:
    """anywhere: see `upper_bound_on`."""

    def fits(e: Experiment) -> bool:
        wanted = {"discriminator": kind, "level": "output", "input": "softmax", "min_entropy": False}
        of_row = (e.of_row if anywhere else e.of_assignment) and e.script == "train_adversarial"
        of_row = of_row and e.network[0] == "bisenet" and not e.settings.get("recolour")
        return of_row and all(e.settings.get(key) == value for key, value in wanted.items())

    return fits


def variation(step: str) -> Callable[[Experiment], bool]:
    """A variation of the assignment's step 4."""
    scripts = {"a": ("train_fda", "fda"), "b": ("train_fda", "lab"), "c": ("train_pseudo_labels", None),
               "f": ("train_dacs", None)}  # fmt: skip

    def fits(e: Experiment) -> bool:
        if not e.of_assignment:
            return False
        if step == "d":
            return e.network[0] not in ("bisenet", "deeplabv2", "deeplab_vgg16")
        if step == "e":
            return e.settings.get("loss", "ce") != plain_loss(e.settings)
        script, translation = scripts[step]
        return e.script == script and translation in (None, e.settings.get("translation", "fda"))

    return fits


# The assignment's tables


def measured(e: Experiment | None) -> list[Cell]:
    """`FIGURES`."""
    if e is None:
        return [NOT_RUN] * len(FIGURES)
    return [e.figure("target", "accuracy"), e.figure("target", "miou"), e.figure("oracle", "miou")]


def made(e: Experiment | None) -> list[Cell]:
    """Runs and setting."""
    return [NOT_RUN] * 2 if e is None else [str(len(e.runs)), e.setting()]


Published = Sequence[tuple[str, str, str]]
"""By whom, accuracy, mIoU; an accuracy may be empty."""


def _found(
    label: str, fits: Callable[[Experiment], bool], experiments: Sequence[Experiment], plain: str
) -> list[tuple[str, Experiment | None]]:
    """A row's experiments: under its own label if there is one, of the plain method; else under theirs."""
    found = [e for e in experiments if fits(e)]
    return [(named(label, plain, e, found), e) for e in found] or [(label, None)]


def named(label: str, plain: str, e: Experiment, found: Sequence[Experiment]) -> str:
    """What a row's or a column's own label becomes for one of the experiments that were found for it. From which source
    it learnt is said elsewhere."""
    if len(found) > 1:
        return e.label
    learnt = f" from {e.data.partition(' to ')[0]}"
    return label if e.method.replace(learnt, "", 1) == plain else f"{label}: {e.label}"


def _shown(others: Published) -> str:
    """What others published, accuracy and mIoU, each with its source."""
    return "; ".join(f"{accuracy} / {miou} ({by})" if accuracy else f"{miou} ({by})" for by, accuracy, miou in others)


def networks() -> list[tuple[str, str]]:
    """Every network on every backbone: (model, backbone)."""
    return [(model, backbone) for model, network in SEGMENTERS.items() for backbone in network.backbones]


def titled(model: str, backbone: str) -> str:
    """`BiSeNet, ResNet-18`; of a network that is here no longer the names that its run has."""
    if (model, backbone) not in networks():
        return f"{model} {backbone}"
    return f"{SEGMENTERS[model].title}, {SEGMENTERS[model].backbones[backbone]}"


def of_outputs() -> list[str]:
    """The discriminators that look at outputs, as the assignment's do."""
    return [kind for kind, of in DISCRIMINATORS.items() if not of.by_class]


def discriminators() -> dict[str, str]:
    """Every discriminator, as measure_flops.py names it -> its kind."""
    return {f"discriminator {kind}": kind for kind in DISCRIMINATORS}


PUBLISHED = "published: [accuracy /] mIoU (%)"
OTHERS = "published: other reports, mIoU (%)"


def upper_bound_table(experiments: Sequence[Experiment]) -> Table:
    rows = []
    for model, backbone in networks():
        label = titled(model, backbone)
        if model == "bisenet":  # the sheet's words
            label = f"BiSeNet (50 epochs, {SEGMENTERS[model].backbones[backbone]} as backbone)"
        elif model == "deeplabv2" or not any(map(upper_bound_on(model, backbone), experiments)):
            continue  # the student report's Table 1; and no row for a network that the sheet does not have, unless run
        others = _shown(published.UPPER_BOUND.get((model, backbone), ())) or "-"
        theirs = published.OTHER_REPORTS["upper bound"] if (model, backbone) == BISENET_18 else "-"
        for own, e in _found(label, upper_bound_on(model, backbone), experiments, "upper bound"):
            rows.append([own, *measured(e)[:2], others, theirs, *made(e)])
    title = "Assignment, Table 1: trained and tested on the target (step 2, the upper bound)"
    header = ("network", "accuracy (%)", "mIoU (%)", PUBLISHED, OTHERS, "runs", "setting")
    return Table("assignment-1", title, header, rows, (HEADLINE, NOTE, OTHER_REPORTS_NOTE))


def adversarial_table(
    experiments: Sequence[Experiment], costs: Costs, number: int, label: str, kinds: Sequence[str]
) -> Table:  # fmt: skip
    """Table 2 or 3: adaptation with discriminators of these kinds, the sheet's first, and what those cost."""
    rows = []
    for place, kind in enumerate(kinds):
        name = f"discriminator {kind}"
        cost, (parameters, flops, _) = costs.get(name), published.COSTS.get(name, ("-", "-", "-"))
        own_costs = [NOT_RUN] * 2 if cost is None else [f"{cost['parameters_training']:,}", flops_of(cost)]
        others = [
            _shown(published.ADVERSARIAL.get(kind, ())) or "-",
            "-" if parameters == "-" else f"{parameters}; {flops}",
            published.OTHER_REPORTS.get(f"adversarial, {kind}", "-"),
        ]
        words = f"{kind} discriminator" if place else label
        for own, e in _found(words, adversarial_with(kind), experiments, f"adversarial, {kind}"):
            rows.append([own, *measured(e)[:2], *own_costs, *others, *made(e)])
    header = ("", "accuracy (%)", "mIoU (%)", "total parameters", "FLOPs", PUBLISHED, "published: parameters; FLOPs",
              OTHERS, "runs", "setting")  # fmt: skip
    notes = (
        HEADLINE,
        "Parameters and FLOPs are the discriminator's, as in the sheet: it works in training only. FLOPs are twice the "
        "convolutions' multiply-accumulates.",
        *conditions(costs, [f"discriminator {kind}" for kind in kinds], "counted_at"),
        NOTE,
        published.SHEET_NOTE,
        *((published.STUDENT_NOTE,) if "standard" in kinds else ()),
        OTHER_REPORTS_NOTE,
    )
    title = f"Assignment, Table {number}: {label} ({kinds[0]} discriminator)"
    return Table(f"assignment-{number}", title, header, rows, notes)


STEP_4 = {
    "a": ("FDA", "FDA, beta 0.05"),
    "b": ("LAB", "LAB"),
    "c": ("pseudo-labels", "pseudo-labels"),
    "d": ("a different real-time network", ""),
    "e": ("a loss against class imbalance", ""),
    "f": ("an extension: DACS", "DACS"),
}
"""Variation -> its words, and the method that they name."""


def others_of(e: Experiment | None, row: str) -> str:
    """What the other reports have of an experiment, or of the row that none fills: theirs are BiSeNet-18's."""
    known = e is None or e.network == BISENET_18
    return published.OTHER_REPORTS.get(row if e is None else e.method, "-") if known else "-"


def variations_table(experiments: Sequence[Experiment]) -> Table:
    rows = []
    for step, (words, plain) in STEP_4.items():
        for own, e in _found(words, variation(step), experiments, plain):
            if step == "d" and e is not None:
                own = f"{titled(*e.network)}: {e.label}"
            rows.append([f"{step}) {own}", *measured(e)[:2], others_of(e, plain), *made(e)])
    header = ("variation", "accuracy (%)", "mIoU (%)", OTHERS, "runs", "setting")
    return Table("assignment-4", "Assignment, step 4: variations", header, rows, (HEADLINE, OTHER_REPORTS_NOTE))


def flops_of(cost: dict[str, Any]) -> str:
    """As the sheet writes them: `30.88e9`."""
    return f"{cost['conv_flops'] / 1e9:.2f}e9"


def cost_table(costs: Costs, file: str, title: str, names: Sequence[str]) -> Table:
    """names: as in measure_flops.py."""
    header = (
        "network", "parameters, training", "parameters, inference", "fvcore's count (G)", "FLOPs = 2 x conv MACs (G)",
        "latency (ms), median [95th percentile]", "published parameters", "published count", "published latency (ms)",
    )  # fmt: skip
    rows = [[name, *cost_cells(costs.get(name)), *published.COSTS.get(name, ("-", "-", "-"))] for name in names]
    said = [line for key in ("counted_at", "timed_at") for line in conditions(costs, names, key)]
    uneven = [name for name in names if name in costs and _uneven(costs[name])]
    warned = (f"The timing of {', '.join(uneven)} is uneven: the 95th percentile is more than half above the median. "
              "Something else was at work; measure again on a quiet machine.",) if uneven else ()  # fmt: skip
    kinds = {discriminators()[name] for name in names if name in discriminators()}
    features = (FEATURES_NOTE,) if kinds - set(of_outputs()) else ()
    return Table(file, title, header, rows, (*warned, *said, *features, NOTE))


def conditions(costs: Costs, names: Sequence[str], key: str) -> list[str]:
    """At what size and on what device counts or latencies were taken; where not all alike, of which networks."""
    of: dict[str, list[str]] = {}
    for name in names:
        if name in costs and key in costs[name]:
            of.setdefault(costs[name][key], []).append(name)
    return [said if len(of) == 1 else f"{', '.join(own)}: {said}" for said, own in of.items()]


def _timing(cost: dict[str, Any]) -> dict[str, Any] | None:
    """Of the variant that is shown, None where nothing was timed."""
    return next(iter(cost.get("timing", {}).values()), None)


def _uneven(cost: dict[str, Any]) -> bool:
    timing = _timing(cost)
    return timing is not None and timing["latency_p95_ms"] > 1.5 * timing["latency_median_ms"]


def cost_cells(cost: dict[str, Any] | None) -> list[Cell]:
    """Both numbers of parameters, fvcore's count, FLOPs, latency."""
    if cost is None:
        return [NOT_RUN] * 5
    parameters = [f"{cost['parameters_training']:,}", f"{cost['parameters_inference']:,}"]
    timing = _timing(cost)
    latency = NOT_RUN
    if timing is not None:
        latency = f"{timing['latency_median_ms']:.1f} [{timing['latency_p95_ms']:.1f}]"
    return [*parameters, f"{cost['fvcore'] / 1e9:.2f}", f"{cost['conv_flops'] / 1e9:.2f}", latency]


# Where the figures come from


def runs_table(experiments: Sequence[Experiment]) -> Table:
    """Where every figure comes from: a line a run. An evaluation's checkpoints have theirs already."""
    rows = []
    for e in experiments:
        for run in e.runs if e.plain else ():
            config, seconds = run.config, run.seconds
            rows.append([run.name, e.label, str(config.get("command") or "-"), str(config.get("commit") or "-")[:12],
                         str(config.get("device") or "-"), "-" if seconds is None else duration(seconds)])  # fmt: skip
    header = ("run", "experiment", "command", "commit", "device", "duration")
    notes = ("Duration: of training and evaluation, pauses left out. A commit with + had changes on top.",)
    return Table("runs", "Runs", header, rows, notes)
