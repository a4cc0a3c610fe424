"""Every row of the report's tables on real data: one command, and the report at its end.

    python tables.py --gta5 DIR --cityscapes DIR                      the assignment's Tables 1, 2 and 3
    python tables.py --gta5 DIR --cityscapes DIR --rows all --seeds 0 1 2
    python tables.py --gta5 DIR --cityscapes DIR --plan               what it would run, and what that needs
    python tables.py --gta5 DIR --cityscapes DIR -- --batch-size 4    flags after -- go to every training script

Each row is run by its experiment's script, once. Stop it whenever you like: the same command goes on where it was.
"""

from __future__ import annotations

from utils.errors import Parser, UserError, run_script  # before torch, for a quick --help

# isort: split

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Set
from functools import cache
from pathlib import Path

import torch

from datasets import SegmentationSet
from datasets.domains import (
    SOURCES,
    TARGETS,
    add_roots,
    command_line,
    from_environment,
    open_source,
    open_target,
    roots,
    sources_of,
    target_of,
)
from models import SEGMENTERS
from reporting.costs import Costs, networks, read_costs
from reporting.plan import ADVERSARIAL, DACS, EVALUATION, FDA, SAC, SELF, SOURCE_ONLY, TARGET_ONLY, Plan, Row, call
from training.flags import training_parser
from training.progress import Progress
from training.resumption import FREE
from utils.files import is_there, read_json, write_json
from utils.flags import add_machine_flags, flag, number, positive, size, spelt, whole
from utils.tables import counted, duration, markdown

ASSIGNMENT = {
    "upper bound": Row(TARGET_ONLY),
    "upper bound, ResNet-101": Row(TARGET_ONLY, ("--backbone", "resnet101"), cost=3.6),
    "adversarial": Row(ADVERSARIAL),
    "adversarial, depthwise": Row(ADVERSARIAL, ("--discriminator", "depthwise")),
}
STUDENT = ("--settings", "report")
AUGMENTED = ("--flip", "0.15")
REPORT = {
    "report, DeepLabV2": Row(TARGET_ONLY, ("--model", "deeplabv2"), cost=14.6),
    "report, upper bound": Row(TARGET_ONLY, STUDENT),
    "report, source only": Row(SOURCE_ONLY, STUDENT),
    "report, source only, jitter": Row(SOURCE_ONLY, (*STUDENT, *AUGMENTED, "--jitter")),
    "report, source only, blur": Row(SOURCE_ONLY, (*STUDENT, *AUGMENTED, "--blur")),
    "report, source only, jitter and blur": Row(SOURCE_ONLY, (*STUDENT, *AUGMENTED, "--jitter", "--blur")),
    "report, adversarial": Row(ADVERSARIAL, (*STUDENT, *AUGMENTED, "--jitter", "--blur")),
}
BANDS = {f"FDA, beta {beta}": Row(FDA, ("--beta", beta)) for beta in ("0.01", "0.05", "0.09")}
ADABN = ("--adapt-bn", "--no-mean")
GOING_ON = ("--lr", "0.01")  # from a trained network
METHODS = {
    "source only": Row(SOURCE_ONLY),
    "source only, AdaBN": Row(EVALUATION, ADABN, needs=("source only",)),
    "source only, recoloured": Row(SOURCE_ONLY, ("--recolour", "0.7")),
    "source only, recoloured, AdaBN": Row(EVALUATION, ADABN, needs=("source only, recoloured",)),
    "AdvEnt": Row(ADVERSARIAL, ("--input", "entropy")),
    "MinEnt": Row(ADVERSARIAL, ("--discriminator", "none", "--min-entropy")),
    "AdvEnt and MinEnt, mean": Row(EVALUATION, ("--mean",), needs=("AdvEnt", "MinEnt")),
    "IntraDA, after AdvEnt": Row(ADVERSARIAL, ("--input", "entropy"), needs=("AdvEnt",)),
    "FADA, after source only": Row(
        ADVERSARIAL, ("--discriminator", "class", "--level", "feature"), needs=("source only",), goes_on=True
    ),
    "adversarial, shallow": Row(ADVERSARIAL, ("--discriminator", "shallow")),
    "adversarial, multi-level": Row(ADVERSARIAL, ("--level", "multi")),
    **BANDS,
    "FDA, beta 0.01, AdaBN": Row(EVALUATION, ADABN, needs=("FDA, beta 0.01",)),
    "FDA, mean of three": Row(EVALUATION, ("--mean",), needs=tuple(BANDS)),
    "LAB": Row(FDA, ("--translation", "lab")),
    "pseudo-labels": Row(SELF, needs=("source only",)),
    "pseudo-labels, CBST": Row(
        SELF, ("--rule", "cbst", "--label-flip", *GOING_ON), needs=("source only",), goes_on=True
    ),
    "pseudo-labels, IAST": Row(
        SELF,
        ("--rule", "iast", "--lambda-source", "0", "--lambda-entropy", "0.465", "--mrkld", "0.0053", *GOING_ON),
        needs=("source only",),
        goes_on=True,
    ),
    "FDA, self-training": Row(SELF, ("--percentile", "66", "--beta", "0.01"), needs=tuple(BANDS)),
    "DACS": Row(DACS),
    "DACS, recipe best": Row(DACS, ("--recipe", "best")),
    "DACS, recipe labels": Row(DACS, ("--recipe", "labels")),
    "SAC, after FDA": Row(SAC, GOING_ON, needs=("FDA, beta 0.01",), goes_on=True),
}
"""Each once, self-training for one round; its variants are in docs/recipes.md."""
ROWS = {"assignment": ASSIGNMENT, "report": REPORT, "all": ASSIGNMENT | METHODS | REPORT}

RECORD = "tables.json"
"""Below --out: the data and the flags that its rows were made with."""
BYTES = 4 + 2 * 8
"""That a run keeps for each parameter: the best checkpoint, and the last two with the optimizer."""


GIVEN = {flag(key): f"give {flag(key)} before --" for key in SOURCES | TARGETS}
GIVEN |= {name: f"give {name} before --" for name in ("--workers", "--device")}
GIVEN |= {"--seed": "give --seeds before --", "--run-dir": "give --out before --", "--resume": "leave it out"}
"""Flags that every row is given by its plan, and what to do instead of giving them after --."""


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """The flags, and those that go to every training script."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_roots(parser.add_argument_group("data"), SOURCES | TARGETS, "root of {title} ({variable})")
    what = parser.add_argument_group("rows")
    what.add_argument(
        "--rows", choices=ROWS, default="assignment",
        help="of the assignment's Tables 1 to 3, of the student report's tables, or all methods (%(default)s)",
    )  # fmt: skip
    what.add_argument("--seeds", type=whole, nargs="+", default=[0], metavar="N", help="of every row (0)")
    what.add_argument("--plan", action="store_true", help="say what would be run, and run nothing")
    what.add_argument("--out", type=Path, default=Path("runs/tables"), metavar="DIR", help="(%(default)s)")
    add_machine_flags(parser.add_argument_group("machine"))
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:place])
    from_environment(args, SOURCES, TARGETS)
    return args, sys.argv[place + 1 :]


def main() -> None:
    args, more = parse_args()
    for found, table in ((sources_of(vars(args)), SOURCES), (target_of(vars(args)), TARGETS)):
        if not found:
            raise UserError(f"{roots(table)} is missing: name the root of the data set")
    target, source = command_line(TARGETS, vars(args)), command_line(SOURCES, vars(args))
    machine = ["--workers", str(args.workers), "--device", str(args.device)]
    of_all, of_source = split(more)
    plan = Plan(ROWS[args.rows], args.out, [*target, *of_all], [*source, *of_source], machine)
    made = {"data": [*target, *source], "flags": lasting(more)}
    require_same(args.out, made, more)
    todo = [(name, seed) for seed in args.seeds for name in plan.rows]
    steps = Steps(args, more)
    show(plan, todo, steps)
    if args.plan:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / RECORD, made)
    timing = Timing(plan, todo, steps)
    for name, seed in todo:
        plan.run(name, seed, timing.of(name))
    used = dict.fromkeys(steps.network(row) for row in plan.rows.values() if row.trains)
    costs = costs_of([*used, "discriminator"], args.out, str(args.device))
    # Rows and seeds of earlier commands too, which had the same data and flags.
    runs, evaluations = (sorted(args.out.glob(pattern)) for pattern in ("*/config.json", "evaluations/*.json"))
    found = [*(path.parent for path in runs), *evaluations]
    call(["report.py", *map(str, [*found, *costs]), "--out", str(args.out / "report"), "--device", str(args.device)])


def costs_of(names: list[str], out: Path, device: str) -> list[Path]:
    """The files below `out` with the counts and latencies of these networks; measures those that none holds yet. names:
    a part of what measure_flops.py calls them."""
    files = sorted(out.glob("costs*.json"))
    known: Costs = {}
    for file in files:
        read_costs(file, known)
    if lacking := [name for name in names if not any(name in one for one in known)]:
        files.append(out / (f"costs-{len(files) + 1}.json" if files else "costs.json"))
        call(["measure_flops.py", "--only", *lacking, "--json", str(files[-1]), "--device", device])
    return files


def split(flags: list[str]) -> tuple[list[str], list[str]]:
    """(flags of every training script, those that only scripts with a labelled source know), with their values."""
    known, everywhere = (training_parser("", source=source)._option_string_actions for source in (True, False))
    return parted(flags, known.keys() - everywhere.keys())


def lasting(flags: list[str]) -> list[str]:
    """Those, with their values, that a run must be resumed with: not --stop-after and its like."""
    known = training_parser("", source=True)._option_string_actions
    return parted(flags, {name for name, action in known.items() if action.dest in FREE})[0]


def parted(flags: list[str], chosen: Set[str]) -> tuple[list[str], list[str]]:
    """(the others, the `chosen`), with their values."""
    parts: tuple[list[str], list[str]] = ([], [])
    is_chosen = False
    for word in flags:
        if word.startswith("--"):
            is_chosen = word.partition("=")[0] in chosen
        parts[is_chosen].append(word)
    return parts


def require_same(out: Path, made: dict[str, list[str]], flags: list[str]) -> None:
    """Raises `UserError` where `out` holds rows of other data or flags: they would not belong in one table. Where it
    holds none yet, for one of the given `flags` in `GIVEN`; tables that were begun with one go on."""
    if not is_there(out / RECORD) or not [*out.glob("*/config.json"), *out.glob("evaluations/*.json")]:
        for name in sorted(spelt(flags) & GIVEN.keys()):
            raise UserError(f"{name} after --: tables.py sets it for each row itself; {GIVEN[name]}")
        return
    try:
        before = read_json(out / RECORD)
        words = " ".join(str(word) for words in before.values() for word in words)
        before["flags"] = lasting(before["flags"])  # earlier tables recorded all
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{out / RECORD}: damaged; name another --out") from None
    if before != made:
        raise UserError(f"{out} has rows made with {words}; give the same data and flags, or name another --out")


class Steps:
    """How long rows are: what of the flags, and of the data, decides it."""

    def __init__(self, args: argparse.Namespace, more: list[str]) -> None:
        self._more, self._given = more, vars(args)
        self._sets: dict[str, SegmentationSet] = {}

    def of(self, row: Row) -> int:
        """The steps of its run, 0 for an evaluation."""
        if not row.trains:
            return 0
        flags = self.flags(row)
        of_target = row.script == TARGET_ONLY or row.intra
        data = self.training_set("target", flags) if of_target else self.training_set("source", flags)
        kept = data if of_target else data.hold_out(flags.source_holdout)[0]
        return Progress.planned(len(kept), flags.batch_size, flags.epochs, flags.max_steps).total_steps

    def flags(self, row: Row) -> argparse.Namespace:
        """Of all flags those that this reads, with the script's defaults."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("--epochs", "--max-steps", "--limit", "--batch-size"):
            parser.add_argument(name, type=positive)
        for name in (f"{flag(key)}-{more}" for key in SOURCES | TARGETS for more in ("list", "encoding", "mapping")):
            parser.add_argument(name)
        parser.add_argument("--source-holdout", type=number(0, 0.9), default=0.0)
        parser.add_argument("--size", type=size, default=TARGETS[target_of(self._given)].size)
        parser.add_argument("--source-size", type=size, default=SOURCES[sources_of(self._given)[0]].size)
        parser.add_argument("--model", default="bisenet")
        parser.add_argument("--backbone")
        parser.add_argument("--settings", default="paper")
        found, _ = parser.parse_known_args([*self._more, *row.flags])
        if found.model in SEGMENTERS and found.settings in SEGMENTERS[found.model].settings:
            found.batch_size = found.batch_size or SEGMENTERS[found.model].settings[found.settings].batch_size
        return found

    def network(self, row: Row) -> str:
        """As measure_flops.py calls it."""
        flags = self.flags(row)
        default = SEGMENTERS[flags.model].default_backbone() if flags.model in SEGMENTERS else "none"
        return f"{flags.model} {flags.backbone or default}"

    def training_set(self, role: str, flags: argparse.Namespace) -> SegmentationSet:
        """The training set, held-out pictures included. Raises `UserError` where it cannot be read."""
        if role not in self._sets:
            given = self._given | vars(flags)
            found = open_source(given) if role == "source" else open_target(given, "train", listed=True)
            self._sets[role] = found
        return self._sets[role]

    def prepared_gigabytes(self, flags: argparse.Namespace) -> float:
        """Of the prepared pictures and labels of both training sets."""
        sizes = {"source": flags.source_size, "target": flags.size}
        return sum(len(self.training_set(role, flags)) * 4 * w * h / 1e9 for role, (w, h) in sizes.items())


def show(plan: Plan, todo: list[tuple[str, int]], steps: Steps) -> None:
    """The plan: every row, how far it is, how long it is; and the disk that all of it needs."""
    rows, kept = [], 0.0
    for name, seed in todo:
        row, begun = plan.rows[name], plan.directory(name, seed).exists()
        state = "done" if plan.done(name, seed) else "begun" if begun else "to do"
        words = " ".join([row.script, *row.flags])
        rows.append([name, str(seed), words, counted(steps.of(row), "step") if row.trains else "-", state])
        if row.trains and state == "to do":
            kept += BYTES * parameters(steps.network(row)) / 1e9
    print(markdown(("row", "seed", "script", "length", "state"), rows))
    prepared = steps.prepared_gigabytes(steps.flags(Row(SOURCE_ONLY)))
    there = next(folder for folder in (plan.out, *plan.out.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    print(
        f"\nDisk: {kept:.1f} GB of checkpoints in {plan.out} ({free:.0f} GB free there), and about {prepared:.1f} GB "
        "of prepared pictures beside the data. An estimate of the time follows after a hundred steps.",
        flush=True,
    )


@cache
def parameters(network: str) -> int:
    """Of a network in training, by its name in measure_flops.py; none of its weights is made. Raises `UserError` for a
    network that is not there."""
    known = networks()
    if network not in known:
        raise UserError(f"there is no network {network}; there are {', '.join(known)}")
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in known[network]().parameters())


class Timing:
    """Listens to the scripts: after a hundred steps of one it says how long all rows will take."""

    LINE = re.compile(r"step (\d+)/\d+, epoch .* ([\d.e+-]+) s/step")

    def __init__(self, plan: Plan, todo: list[tuple[str, int]], steps: Steps) -> None:
        self._plan, self._todo, self._steps, self._said = plan, todo, steps, False

    def of(self, name: str) -> Callable[[str], None]:
        """What hears the lines of a row's script."""

        def hear(line: str) -> None:
            found = self.LINE.match(line)
            if found and not self._said and int(found[1]) >= 100:
                self._said = True
                unit = float(found[2]) / self._plan.rows[name].relative
                left = [self._plan.rows[n] for n, seed in self._todo if not self._plan.done(n, seed)]
                seconds = unit * sum(self._steps.of(row) * row.relative for row in left)
                print(f"Estimate: {duration(seconds)} for all rows that are not done, evaluations left out", flush=True)

        return hear


if __name__ == "__main__":
    run_script(main)
