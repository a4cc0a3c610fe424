"""Runs -> the tables, curves and pictures of a report: the last checkpoint as the headline, the oracle apart.

    python report.py runs/A runs/B ...                                        one table, seeds of one experiment grouped
    python report.py runs/* adabn.json costs.json --out report/               everything; open report/report.html
    python report.py runs/* --out report/ --device cuda --pictures 8

Directories are runs, or folders of runs and figures. JSON files are eval.py's (AdaBN, means of several networks) and
measure_flops.py's (latency; what it has not counted, the report counts). --out writes report.html (self-contained),
report.tex with tables/*.tex, figures/*.pdf and references.bib (LaTeX), report.md and tables/*.md (Markdown) and
tables/*.csv. What was not run says "not run". Written again, it replaces its own files; one that you changed stays, and
the new one lies beside it, as report.new.html.
"""

from __future__ import annotations

from utils.errors import Parser, UserError, refuse_idle, run_script  # before torch, for a quick --help

# isort: split

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting.comparison import comparison, in_order
from reporting.costs import Costs, count_missing, read_costs
from reporting.results import (
    Experiment,
    Measured,
    Unfinished,
    experiments,
    find_runs,
    read_evaluations,
    read_run,
    read_unfinished,
    told_apart,
)
from reporting.student_tables import student_tables
from reporting.tables import assignment_tables, counted_networks, runs_table
from training.provenance import commit
from utils.flags import default_device, device, whole
from utils.tables import OF_PART, markdown, mean_and_deviation, mean_title, means_in

HEADER = ("experiment", "runs", "accuracy (%)", "mIoU (%)", "classes", "oracle best mIoU (%)", "source mIoU (%)")


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories, folders of them, JSON files"
    )
    output = parser.add_argument_group("report")
    output.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where to write the report; without it the table is only printed",
    )  # fmt: skip
    output.add_argument(
        "--pictures", type=whole, default=4, metavar="N",
        help="number of val pictures on which every network is shown (4)"
    )
    output.add_argument(
        "--device", type=device, default=default_device(), metavar="DEV", help="what predicts them (the GPU, if any)"
    )
    args = parser.parse_args()
    if args.out is None:
        refuse_idle("no report is written without --out", "pictures", "device")
    return args


def main() -> None:
    args = parse_args()
    left_out: list[str] = []
    measured, unfinished, costs = read(args.runs, left_out)
    for line in left_out:
        print(f"note: left out: {line}")
    if not measured:
        raise UserError(f"no finished run is there to report: {'; '.join(left_out) or 'only costs were named'}")
    found = experiments(measured + unfinished)
    finished = [experiment for experiment in found if experiment.finished]
    for experiment in finished:
        for seed in experiment.repeated_seeds():
            print(f"note: {experiment.label}: several runs have the seed {seed}; a deviation is over seeds")
    rows = [row(name, experiment) for name, experiment in zip(told_apart(finished, network), finished, strict=True)]
    means = means_in(run.target for experiment in finished for run in experiment.runs)
    rows = [[*own, *(mean_and_deviation(e.figure("target", mean)) for mean in means)]
            for own, e in zip(rows, finished, strict=True)]  # fmt: skip
    print(markdown((*HEADER, *(f"{mean_title(mean)} (%)" for mean in means)), rows))
    print("\nHeadline: the last checkpoint on the target. Oracle: the best epoch chosen by the target's own labels,")
    print(
        "which no adaptation has. Source: frames held out of the source's training set. Mean and deviation over runs."
    )
    if means:
        print(OF_PART)
    if args.out is not None:
        write(args, found, costs, left_out)


def read(places: Sequence[Path], left_out: list[str]) -> tuple[list[Measured], list[Measured], Costs]:
    """(what was measured, what a run that goes on has logged, costs); what cannot be read is named in `left_out`."""
    directories, files = find_runs(places)
    measured: list[Measured] = []
    unfinished: list[Measured] = []
    costs: Costs = {}
    for directory in directories:
        try:
            measured.append(read_run(directory))
        except Unfinished as error:
            logged = read_unfinished(directory)
            left_out.append(f"{error}" + ("" if logged is None else "; its curves are shown, it has no figures yet"))
            unfinished += [] if logged is None else [logged]
        except UserError as error:
            left_out.append(str(error))
    for file in files:
        if file.suffix == ".pt":
            left_out.append(f"{file} is a checkpoint; name its run, {file.parent}")
            continue
        try:
            if not read_costs(file, costs):
                measured += read_evaluations(file, left_out.append)
        except UserError as error:
            left_out.append(str(error))
    return without_copies(measured, left_out), unfinished, costs


def without_copies(measured: list[Measured], left_out: list[str]) -> list[Measured]:
    """Each evaluation once, whatever number of files holds it: a second copy is no second run."""
    found: dict[tuple[Any, ...], Measured] = {}
    for one in measured:
        key = (*sorted(path.resolve() for path in one.checkpoints), one.adapt_bn, bool(one.members))
        if found.setdefault(key, one) is not one:
            left_out.append(f"{one.name}: evaluated in two files, of which the first one counts")
    return list(found.values())


def network(experiment: Experiment) -> str:
    """Script, network and size: what the printed table calls an experiment."""
    arguments, run = experiment.runs[0].config["arguments"], experiment.runs[0]
    size = "x".join(str(side) for side in arguments["size"])
    after = (f" mean of {len(run.members)}" if run.members else "") + (" + AdaBN" if run.adapt_bn else "")
    return f"{experiment.script} {arguments['model']}-{arguments['backbone']} {size}{after}"


def row(name: str, experiment: Experiment) -> list[str]:
    """The cells under `HEADER`."""
    return [
        name,
        str(len(experiment.runs)),
        mean_and_deviation(experiment.figure("target", "accuracy")),
        mean_and_deviation(experiment.figure("target", "miou")),
        experiment.classes(),
        mean_and_deviation(experiment.figure("oracle", "miou")),
        mean_and_deviation(experiment.figure("source", "miou")),
    ]


def write(args: argparse.Namespace, found: Sequence[Experiment], costs: Costs, left_out: list[str]) -> None:
    """All documents into --out."""
    from reporting.documents import drawn, html_document, latex_document, markdown_document, png
    from reporting.figures import charts  # matplotlib is read where it is needed: the printed table takes no second
    from reporting.manifest import OwnFolder
    from reporting.qualitative import scenes

    folder = OwnFolder(args.out)  # refuses before anything is computed
    found = in_order(found)
    finished = [experiment for experiment in found if experiment.finished]
    count_missing(costs, counted_networks(finished))
    tables = [*assignment_tables(finished, costs), comparison(finished), *student_tables(finished, costs)]
    tables.append(runs_table(finished))
    figures = [drawn(*chart) for chart in charts(found)]
    shown = scenes(finished, args.pictures, args.device, left_out.append) if args.pictures else []
    strips = {f"figures/scene-{number}.png": png(scene.strip()) for number, scene in enumerate(shown, start=1)}
    about = [
        f"{sum(len(e.runs) for e in finished)} runs and evaluations in {len(finished)} experiments, written "
        f"{time.strftime('%Y-%m-%d')} by report.py at commit {(commit() or 'unknown')[:12]}. The headline is the last "
        "checkpoint on the target's val set; the oracle (best epoch by the target's labels) stands apart. Figures of "
        'others stand in columns called "published"; what has no run says "not run".',
    ]
    texts = {
        "report.html": html_document(about, tables, figures, shown, left_out),
        "report.tex": latex_document(tables, figures, list(strips)),
        "report.md": markdown_document(about, tables, figures, list(strips), left_out),
        "references.bib": (Path(__file__).parent / "reporting/references.bib").read_text(encoding="utf-8"),
    }
    for table in tables:
        for kind, text in (("md", table.markdown()), ("tex", table.latex()), ("csv", table.csv())):
            texts[f"tables/{table.name}.{kind}"] = text
    # A file's name may hold bytes that are no text.
    files = strips | {name: text.encode(errors="replace") for name, text in texts.items()}
    for figure in figures:
        files |= {f"figures/{figure.name}.png": figure.png, f"figures/{figure.name}.pdf": figure.pdf}
    for name in folder.write(files):
        print(f"note: {args.out / name} was changed by hand and stays; the new one lies beside it, as *.new.*")
    print(f"\nOpen {args.out / 'report.html'}")


if __name__ == "__main__":
    run_script(main)
