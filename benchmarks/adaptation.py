"""Which adaptation helps, and by how much? Every method at equal steps, over seeds, paired with its baseline.

    python benchmarks/adaptation.py --gta5 DIR --cityscapes DIR --size 160x120 --batch-size 8 --steps 600 --seeds 0 1 2

Runs the cells that are missing and prints the table; stopped, it goes on where it was. Each cell is a run directory and
a JSON file under --out; what was not run says "not run". Runs of one seed begin with the same network and see the same
source pictures in the same order, so differences to source only are paired by seed. Networks start from scratch, but
for rows that go on from another's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets.domains import (  # noqa: E402
    SOURCES,
    TARGETS,
    add_choices,
    add_roots,
    command_line,
    from_environment,
    open_source,
    open_target,
    roots,
    sources_of,
    target_of,
)
from models import SEGMENTERS, build_segmenter  # noqa: E402
from reporting.plan import (  # noqa: E402
    ADVERSARIAL,
    COSTS,
    DACS,
    EVALUATION,
    FDA,
    SAC,
    SELF,
    SOURCE_ONLY,
    TARGET_ONLY,
    Plan,
    Row,
    slug,
)
from training.flags import add_network_flags  # noqa: E402
from training.gradients import PRECISIONS  # noqa: E402
from training.provenance import commit, device_name, fingerprint  # noqa: E402
from utils.errors import Parser, UserError, run_script  # noqa: E402
from utils.files import read_json, write_json  # noqa: E402
from utils.flags import cores, default_device, device, positive, size, whole  # noqa: E402
from utils.tables import markdown, mean_and_deviation  # noqa: E402

RARELY = ("--eval-every", "30")  # an epoch of the target is short: it has few pictures
COLLAPSED = ("--max-class-share", "1")  # labels that collapsed have a figure too
TWO_PASSES = 2.0 / COSTS[ADVERSARIAL]  # forward and backward, of both domains, and no discriminator
MASKED = 1 + 1 / COSTS[DACS]  # one pass of the student more
WITHOUT_DISCRIMINATOR = ("--discriminator", "none", "--min-entropy")
BASELINE, UPPER = "source only", "upper bound"
SHORT = ("--beta", "0.01", "--decay", "0.95", "--confidence", "0.8")  # --recipe labels at 700 steps, but for its loss
RECOLOURED = ("--recolour", "0.7")
GOING_ON = ("--lr", "0.01", "--bn-statistics", "target")  # from a trained network, with the statistics it is used with
BANDS = ("FDA, beta 0.01", "FDA, beta 0.05", "FDA, beta 0.09")


def after_fda(*flags: str, cost: float = 1.0) -> Row:
    """A round of self-training. Without the source's pictures all statistics are the target's."""
    going_on = GOING_ON[:2] if "--lambda-source" in flags else GOING_ON
    return Row(SELF, ("--adapt-bn", *going_on, *flags, *COLLAPSED), needs=BANDS[:1], goes_on=True, cost=cost)


ROWS = {
    BASELINE: Row(SOURCE_ONLY),
    UPPER: Row(TARGET_ONLY, RARELY),  # its epochs are short: the target has few pictures
    "upper bound, weighted loss": Row(TARGET_ONLY, ("--loss", "weighted", *RARELY)),
    "target forward pass, weight 0": Row(
        ADVERSARIAL, (*WITHOUT_DISCRIMINATOR, "--lambda-entropy", "0"), cost=TWO_PASSES
    ),
    "adversarial, standard": Row(ADVERSARIAL),
    "adversarial, depthwise": Row(ADVERSARIAL, ("--discriminator", "depthwise")),
    "AdvEnt": Row(ADVERSARIAL, ("--input", "entropy")),
    "IntraDA": Row(ADVERSARIAL, ("--input", "entropy"), needs=("AdvEnt",)),
    "MinEnt": Row(ADVERSARIAL, WITHOUT_DISCRIMINATOR, cost=TWO_PASSES),
    "MinEnt, entropy range 0.3": Row(ADVERSARIAL, (*WITHOUT_DISCRIMINATOR, "--entropy-range", "0.3"), cost=TWO_PASSES),
    "MinEnt + class prior": Row(ADVERSARIAL, (*WITHOUT_DISCRIMINATOR, "--class-prior", "0.5"), cost=TWO_PASSES),
    "MinEnt, multi-level": Row(
        ADVERSARIAL, (*WITHOUT_DISCRIMINATOR, "--level", "multi", "--lambda-entropy-aux", "0.0002"), cost=TWO_PASSES
    ),
    "adversarial, multi-level": Row(ADVERSARIAL, ("--level", "multi")),
    "FADA": Row(ADVERSARIAL, ("--discriminator", "class", "--level", "feature")),
    "adversarial, standard, target statistics": Row(ADVERSARIAL, ("--bn-statistics", "target")),
    "source only, jitter + blur": Row(SOURCE_ONLY, ("--jitter", "--blur")),
    "source only, no random scale": Row(SOURCE_ONLY, ("--scales", "1")),
    "source only, OHEM": Row(SOURCE_ONLY, ("--loss", "ohem")),
    "source only, weighted loss": Row(SOURCE_ONLY, ("--loss", "weighted")),
    **{band: Row(FDA, ("--beta", band.split()[-1])) for band in BANDS},
    "FDA, beta 0.01, weighted loss": Row(FDA, ("--beta", "0.01", "--loss", "weighted")),
    "FDA, mean of three": Row(EVALUATION, ("--mean",), needs=BANDS),
    "LAB": Row(FDA, ("--translation", "lab")),
    "pseudo-labels after source only": Row(SELF, COLLAPSED, needs=(BASELINE,)),
    "pseudo-labels after source only with AdaBN": Row(SELF, ("--adapt-bn", *COLLAPSED), needs=(BASELINE,)),
    "DACS": Row(DACS),
    "DACS + rare-class sampling": Row(DACS, ("--rare-classes",)),
    "DACS + masked consistency": Row(DACS, ("--lambda-mask", "1"), cost=MASKED),
    "DACS + FDA on the source": Row(DACS, ("--beta", "0.01")),
    "DACS + jitter and blur on the source": Row(DACS, ("--jitter", "--blur")),
    "DACS, no random scale": Row(DACS, ("--scales", "1")),  # as the paper trains
    "DACS + FDA, no random scale": Row(DACS, ("--beta", "0.01", "--scales", "1")),
    "DACS + FDA + masked consistency": Row(DACS, ("--beta", "0.01", "--lambda-mask", "1"), cost=MASKED),
    "DACS + FDA + rare-class sampling": Row(DACS, ("--beta", "0.01", "--rare-classes")),
    # The source's loss is three (main and auxiliary outputs), the mixed one's is one: 3 gives it the paper's share.
    "DACS, mixed loss x 3": Row(DACS, ("--lambda-mix", "3")),
    "DACS + FDA, mixed loss x 3": Row(DACS, ("--beta", "0.01", "--lambda-mix", "3")),
    # An average over 100 steps is late by a seventh of a run of 700; 0.95 is one over 20.
    "DACS, decay 0.95": Row(DACS, ("--decay", "0.95")),
    "DACS + FDA, decay 0.95": Row(DACS, ("--beta", "0.01", "--decay", "0.95")),
    "DACS + FDA, decay 0.9": Row(DACS, ("--beta", "0.01", "--decay", "0.9")),
    # So early in training few pixels exceed 0.968, and their share weighs the target.
    "DACS + FDA, decay 0.95, confidence 0.8": Row(DACS, SHORT),
    "DACS + FDA, decay 0.95, confidence 0.5": Row(DACS, (*SHORT, "--confidence", "0.5")),
    "DACS + FDA, decay 0.95, confidence 0.8, weighted loss": Row(DACS, (*SHORT, "--loss", "weighted")),
    "DACS + FDA, decay 0.95, confidence 0.5, weighted loss": Row(
        DACS, (*SHORT, "--confidence", "0.5", "--loss", "weighted")
    ),
    "DACS + FDA, decay 0.95, confidence 0.8, mixed loss x 3": Row(DACS, (*SHORT, "--lambda-mix", "3")),
    "DACS + FDA + rare-class sampling, decay 0.95, confidence 0.8": Row(DACS, (*SHORT, "--rare-classes")),
    "DACS + FDA + masked consistency, decay 0.95, confidence 0.8": Row(
        DACS, (*SHORT, "--lambda-mask", "1"), cost=MASKED
    ),
    "DACS, weighted loss": Row(DACS, ("--loss", "weighted")),
    "DACS, weighted loss, decay 0.95, confidence 0.8": Row(DACS, (*SHORT[2:], "--loss", "weighted")),
    "DACS + FDA, weighted loss, confidence 0.8": Row(DACS, (*SHORT, "--decay", "0.99", "--loss", "weighted")),
    "DACS, recipe best": Row(DACS, ("--recipe", "best")),
    "DACS, recipe labels": Row(DACS, ("--recipe", "labels")),
    "FDA, beta 0.01, tempered loss": Row(FDA, ("--beta", "0.01", "--loss", "tempered")),
    "upper bound, tempered loss": Row(TARGET_ONLY, ("--loss", "tempered", *RARELY)),
    "pseudo-labels after FDA": Row(SELF, ("--percentile", "66", *COLLAPSED), needs=BANDS),
    # One labeller, from which all go on; the first row says what as many more steps bring without its labels.
    "after FDA, no target labels": after_fda("--lambda-target", "0"),
    "after FDA, BDL's rule": after_fda(),
    "after FDA, BDL's rule, symmetric cross-entropy": after_fda("--target-loss", "sce"),
    "after FDA, CBST's rule": after_fda("--rule", "cbst", "--label-flip"),
    "after FDA, CBST's rule, MRKLD": after_fda("--rule", "cbst", "--label-flip", "--mrkld", "0.1"),
    "after FDA, IAST's rule": after_fda("--rule", "iast"),
    "after FDA, IAST": after_fda(
        "--rule", "iast", "--lambda-source", "0", "--lambda-entropy", "0.465", "--mrkld", "0.0053", cost=0.5
    ),
    # The paper starts from an adapted network; its average is over 10,000 steps, so from scratch over all of them.
    "SAC": Row(SAC),
    "SAC, decay 0.95": Row(SAC, ("--decay", "0.95")),
    "after FDA, SAC": Row(SAC, GOING_ON[:2], needs=BANDS[:1], goes_on=True),
    "after FDA, SAC, decay 0.95": Row(SAC, (*GOING_ON[:2], "--decay", "0.95"), needs=BANDS[:1], goes_on=True),
    "source only, recoloured": Row(SOURCE_ONLY, RECOLOURED),
    "FDA, beta 0.01, recoloured": Row(FDA, ("--beta", "0.01", *RECOLOURED)),
    "DACS, recipe best, recoloured": Row(DACS, ("--recipe", "best", *RECOLOURED)),
    "pseudo-labels after source only, recoloured, with AdaBN": Row(
        SELF, ("--adapt-bn", *GOING_ON, *RECOLOURED, *COLLAPSED), needs=("source only, recoloured",), goes_on=True
    ),
}
CELLS = {}
for name, cell in ROWS.items():
    CELLS[name] = cell
    if not name.startswith(UPPER):  # whose batch normalisation is the target's already
        flags, needs = ((), (name,)) if cell.trains else (cell.flags, cell.needs)
        CELLS[f"{name} + AdaBN"] = Row(EVALUATION, (*flags, "--adapt-bn"), needs)
EARLIEST = {"model": "bisenet", "backbone": "resnet18"}
"""The network of cells that name none."""
FIGURES = ("accuracy", "miou", "iou", "classes_evaluated", "step", "epoch")


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    for table, role in ((SOURCES, "source"), (TARGETS, "target")):
        add_roots(data, table, f"root of {{title}}, the {role} ({{variable}})")
        add_choices(data, table)
    add_network_flags(parser)
    parser.add_argument("--size", type=size, default=(160, 120), metavar="WxH", help="both domains (160x120)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="(8)")
    parser.add_argument("--steps", type=positive, default=600, metavar="N", help="of every run (600)")
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0, 1, 2], metavar="N", help="(0 1 2)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of training (%(default)s)")
    parser.add_argument("--split", default="val", metavar="SPLIT", help="choose on val, report test (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=CELLS, metavar="ROW", help="run these rows, print all")
    parser.add_argument("--no-run", action="store_true", help="print the table of what is there")
    parser.add_argument("--workers", type=whole, default=min(8, cores() - 1), metavar="N", help="(%(default)s)")
    parser.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(the GPU, if any)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="runs (under runs/, named by the settings)")
    parser.add_argument("--cells", type=Path, metavar="DIR", help="where the cells' figures are kept (--out)")
    args = parser.parse_args()
    from_environment(args, SOURCES, TARGETS)
    for table, found in ((SOURCES, sources_of(vars(args))), (TARGETS, target_of(vars(args)))):
        if not found:
            raise UserError(f"{roots(table)} is missing: name the root of the data set")
    width, height = args.size
    named = f"adaptation-{width}x{height}-batch{args.batch_size}-{args.steps}-{args.precision}"
    args.backbone = args.backbone or SEGMENTERS[args.model].default_backbone()
    if network(args) != EARLIEST:
        named += f"-{args.model}-{args.backbone}"
    args.out = args.out or Path("runs") / named
    args.cells = args.cells or args.out
    return args


def main() -> None:
    args = parse_args()
    args.cells.mkdir(parents=True, exist_ok=True)
    args.data = {} if args.no_run else data_named(args)
    rows = on_split(args.split)
    plan = plan_of(args, CELLS | rows)
    left_out = refused_by_network(args)
    for name, seed in itertools.product(rows, args.seeds):
        read_cell(args, name, seed)  # one of other settings is refused before hours of work
    for seed in args.seeds:
        for name, row in () if args.no_run else zip(CELLS, rows, strict=True):
            if name not in left_out if args.only is None else name in args.only:
                keep_cell(args, plan, row, seed)
    cells = {name: [read_cell(args, row, seed) for seed in args.seeds] for name, row in zip(CELLS, rows, strict=True)}
    width, height = args.size
    made = f"{width}x{height}, batch {args.batch_size}, {args.steps} steps in {args.precision}, seeds {args.seeds}"
    print(f"\n{args.model} {args.backbone}, {made}, last checkpoint, {args.split}\n")
    print(table(cells, {name: plan.cost(row) for name, row in zip(CELLS, rows, strict=True)}))
    if kept := labels_kept(cells):
        print(f"\nOf the pixels that the labeller gives a class, the share that its pseudo-labels keep (%)\n\n{kept}")


def refused_by_network(args: argparse.Namespace) -> set[str]:
    """The rows that this network refuses: for want of auxiliary logits, or of batch normalisation."""
    with torch.device("meta"):
        normalised = bool(build_segmenter(args.model, backbone=args.backbone, weights="none").batch_norms())
    refused = set() if SEGMENTERS[args.model].multi_level_options is not None else {("--level", "multi")}
    refused |= set() if normalised else {("--adapt-bn",), ("--bn-statistics", "target")}

    def takes(row: Row) -> bool:
        found = any(row.flags[at : at + len(flags)] == flags for flags in refused for at in range(len(row.flags)))
        return not found and all(takes(CELLS[needed]) for needed in row.needs)

    return {name for name, row in CELLS.items() if not takes(row)}


def on_split(split: str) -> dict[str, Row]:
    """The rows, in their order, on another split than val: evaluations of the same networks."""
    if split == "val":
        return CELLS
    more = ("--split", split)
    return {
        f"{name}, {split}": Row(EVALUATION, (*row.flags, *more), row.needs)
        if not row.trains
        else Row(EVALUATION, more, (name,))
        for name, row in CELLS.items()
    }


def plan_of(args: argparse.Namespace, rows: dict[str, Row]) -> Plan:
    side = "x".join(str(s) for s in args.size)
    target = command_line(TARGETS, vars(args))
    training = [
        *target, "--size", side, "--cache", str(args.out / ".prepared"),
        "--model", args.model, "--backbone", args.backbone,
        "--weights", "none", "--batch-size", str(args.batch_size), "--precision", args.precision,
        "--epochs", "100000", "--max-steps", str(args.steps), "--eval-every", "2",
    ]  # fmt: skip
    source = [*command_line(SOURCES, vars(args)), "--source-size", side]
    return Plan(rows, args.out, training, source, ["--workers", str(args.workers), "--device", str(args.device)])


def cell_file(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.cells / f"{slug(name, seed)}.json"


def network(args: argparse.Namespace) -> dict[str, str]:
    return {"model": args.model, "backbone": args.backbone}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all cells of one table share; a cell made under other settings is not taken for this table's."""
    made = {"size": list(args.size), "batch_size": args.batch_size, "steps": args.steps, "precision": args.precision}
    return made | network(args)


def keep_cell(args: argparse.Namespace, plan: Plan, name: str, seed: int) -> None:
    """Trains or evaluates one row where it has no cell yet, and keeps its figures. Raises `UserError` when its script
    fails."""
    if cell_file(args, name, seed).exists():
        return
    for needed in plan.rows[name].needs:
        keep_cell(args, plan, needed, seed)
    figures = plan.run(name, seed)
    trained = name if plan.rows[name].trains else plan.rows[name].needs[0]
    config = read_json(plan.directory(trained, seed) / "config.json")
    require_same_run(args, config, plan.directory(trained, seed))
    made = {"row": name, "seed": seed, "data": args.data}
    made |= {"commit": commit(), "device": device_name(args.device)}
    made |= {key: config[key] for key in ("commit", "device")} if plan.rows[name].trains else {}
    kept = {key: figures[key] for key in FIGURES} | {"oracle": (figures.get("oracle") or {}).get("miou")}
    if plan.rows[name].script == SELF:
        kept["labels_kept"] = shares_kept(plan.directory(name, seed))
    write_json(cell_file(args, name, seed), settings(args) | made | kept)


def data_named(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What stands for the labelled sets that every run reads, the source and val: as a run's config.json has it, and
    the size of the pictures' files, since two sets may have the same names."""
    given = vars(args) | {"source_size": args.size}
    parts = [*open_source(given).parts, *open_target(given, "val").parts]
    sizes = {part.name: sum(sample.image.stat().st_size for sample in part.samples) for part in parts}
    return {part.name: fingerprint(part) | {"bytes": sizes[part.name]} for part in parts}


def require_same_data(args: argparse.Namespace, data: dict[str, dict[str, Any]], path: Path) -> None:
    """Raises `UserError` where a run or a cell at `path` read another set of a name than this command or, with
    --no-run, than the cells before it."""
    for name, found in data.items():
        known = args.data.setdefault(name, found) if args.no_run else args.data.get(name, found)
        if any(known[key] != found[key] for key in known.keys() & found.keys()):
            raise UserError(f"{path} was made from other pictures or labels of {name}; name another --out and --cells")


def require_same_run(args: argparse.Namespace, config: dict[str, Any], directory: Path) -> None:
    """Raises `UserError` where the run that was found in `directory` is not as this command would make it."""
    require_same_data(args, {name: found for name, found in config["data"].items() if name in args.data}, directory)
    ran = config["arguments"]
    found = {"size": ran["size"], "batch_size": ran["batch_size"], "steps": ran["max_steps"]}
    found |= {key: ran[key] for key in ("precision", "model", "backbone")}
    named = {key: getattr(args, key) for key in (*SOURCES, *TARGETS) if getattr(args, key) is not None}
    elsewhere = [ran[key] for key in named if ran.get(key) and Path(ran[key]).resolve() != named[key].resolve()]
    if found != settings(args) or elsewhere:
        of = f"on {elsewhere[0]}" if elsewhere else f"at other settings than {settings(args)}"
        raise UserError(f"{directory} was trained {of}; name another --out")


def shares_kept(directory: Path) -> dict[str, float | None]:
    """Of a run of self-training, of the round whose labels were made last: the share of the pixels predicted as a class
    that got a label, by class and, under "all", together."""
    newest = max(directory.glob("pseudo-labels/*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    summary = json.loads(newest.read_text(encoding="utf-8"))
    return {"all": summary["kept_share"]} | {name: of["kept_share"] for name, of in summary["classes"].items()}


def read_cell(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any] | None:
    """A cell's figures, None when it was not run. Raises `UserError` for one made under other settings."""
    path = cell_file(args, name, seed)
    if not path.exists():
        return None
    cell = {"precision": "fp32"} | EARLIEST | json.loads(path.read_text())  # the earliest cells do not say it
    if {key: cell[key] for key in settings(args)} != settings(args):
        raise UserError(f"{path} was made at other settings than {settings(args)}; name another --out")
    require_same_data(args, cell.get("data", {}), path)  # nor this
    return cell


def labels_kept(cells: dict[str, list[dict[str, Any] | None]]) -> str:
    """A row for each of self-training's, means over seeds; "" without any. Earlier cells do not say it."""
    found = {
        name: [cell["labels_kept"] for cell in row if cell and "labels_kept" in cell] for name, row in cells.items()
    }
    all_shares = [shares for row in found.values() for shares in row]
    classes = list({key: None for shares in all_shares for key, share in shares.items() if share is not None})
    rows = []
    for name, row in ((name, row) for name, row in found.items() if row):
        shares = ([100 * of[key] for of in row if of.get(key) is not None] for key in classes)
        rows.append([name, str(len(row)), *(f"{fmean(values):.0f}" if values else "-" for values in shares)])
    return markdown(("method", "seeds", *classes), rows) if rows else ""


def table(cells: dict[str, list[dict[str, Any] | None]], costs: dict[str, float]) -> str:
    """Mean and sample deviation over seeds; the difference to source only, paired by seed; the gap recovered; what the
    row takes with all that it needs, in runs of source only, as planned, not timed; and, never the headline, the best
    evaluated epoch by the target's labels: how far above the last shows a late fall."""
    rows = []
    for name, found in cells.items():
        mious = [percent_of(cell, "miou") for cell in found]
        if all(value is None for value in mious):
            rows.append([name, *["not run"] * 7])
            continue
        base = [percent_of(cell, "miou") for cell in cells[BASELINE]]
        top = [percent_of(cell, "miou") for cell in cells[UPPER]]
        gain = [value - b for value, b in zip(mious, base, strict=True) if value is not None and b is not None]
        pairs = zip(mious, base, top, strict=True)
        gap = [100 * (v - b) / (t - b) for v, b, t in pairs if None not in (v, b, t) and t != b]
        rows.append(
            [
                name,
                str(sum(value is not None for value in mious)),
                spread([value for value in (percent_of(cell, "accuracy") for cell in found) if value is not None]),
                spread([value for value in mious if value is not None]),
                "-" if name == BASELINE else spread(gain, "+"),
                "-" if name in (BASELINE, UPPER) else spread(gap),
                f"{costs[name]:.1f}",
                spread([v for v in (percent_of(cell, "oracle") for cell in found) if v is not None], none="-"),
            ]
        )
    header = (
        "method",
        "seeds",
        "accuracy (%)",
        "mIoU (%)",
        "difference, paired",
        "gap recovered (%)",
        "cost",
        "oracle mIoU (%)",
    )
    return markdown(header, rows)


def percent_of(cell: dict[str, Any] | None, figure: str) -> float | None:
    """None for a cell that is not there, and for a network that predicted nothing."""
    return None if cell is None or cell[figure] is None else 100 * cell[figure]


def spread(values: list[float], sign: str = "", none: str = "not run") -> str:
    """Mean and deviation; `none` without a value."""
    return mean_and_deviation(values, sign, none)


if __name__ == "__main__":
    run_script(main)
