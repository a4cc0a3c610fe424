"""A checkpoint and a data set -> the figures, the table per class, and pictures on request.

The network, the working size and the data set's root are in the checkpoint; a flag only says what is to differ.

    python eval.py runs/RUN                               its last checkpoint
    python eval.py runs/RUN --cityscapes DIR --adapt-bn
    python eval.py runs/A runs/B/checkpoint_best.pt --save-side-by-side pictures/
    python eval.py runs/FDA/beta-*                        each network, and the mean of their softmax (multi-band FDA)
    python eval.py runs/RUN --cityscapes DIR --split test --unlabelled --save-ids upload/
    python eval.py runs/source-only runs/adapted --gta5 DIR --neighbours 10      do features mix the domains?
"""

from __future__ import annotations

from utils.errors import Parser, UserError, refuse_idle, run_script  # before torch, for a quick --help

# isort: split

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from datasets import SegmentationSet
from datasets.check import check
from datasets.domains import (
    SOURCES,
    TARGETS,
    add_choices,
    add_roots,
    chosen_values,
    open_source,
    open_target,
    protocol_of,
    refuse_idle_flags,
    roots,
    sources_of,
    target_of,
    usual,
)
from datasets.labels import CITYSCAPES, Classes, Protocol, require_same_classes
from datasets.mixed import MixedSet
from datasets.stream import batches, evaluation_loader
from models.deployment import Deployed
from models.ensemble import MeanSoftmax
from training.adabn import adapt_to
from training.checkpoint import (
    build_from_checkpoint,
    checkpoint_file,
    classes_of,
    load_checkpoint,
    sha256,
    trained_with,
)
from training.evaluation import evaluate
from training.gradients import PRECISIONS
from training.neighbours import domain_mixing
from training.provenance import fingerprint
from training.resumption import FREE
from training.saving import SavedPictures, require_new_json
from utils.bar import tracked
from utils.files import write_json
from utils.flags import add_machine_flags, positive, size
from utils.tables import result_tables

FIRST = (
    *usual(),
    *("--split", "--unlabelled", "--adapt-bn", "--mean", "--json", "--save-predictions", "--save-side-by-side"),
    "--device",
)
"""The flags that one needs first."""


def parse_args() -> argparse.Namespace:
    parser = Parser(first=FIRST, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints", type=checkpoint_file, nargs="+", metavar="CHECKPOINT", help="one or several, or their runs"
    )
    data = parser.add_argument_group("data")
    add_roots(data, TARGETS, "root of {title}, the target (default: the run's)")
    data.add_argument("--split", default="val", help="split of the target (%(default)s)")
    add_roots(data, SOURCES, "evaluate on a source, {title}: what the run held out of it, or all of it")
    add_choices(data, TARGETS | SOURCES, of_run=True)
    data.add_argument("--unlabelled", action="store_true", help="only predict; needs no labels")
    data.add_argument(
        "--size", type=size, metavar="WxH",
        help="working size of the pictures (default: the run's, of its target or its source; another set's pictures "
        "may have another shape)",
    )  # fmt: skip
    data.add_argument("--limit", type=positive, metavar="N", help="at most N pictures (default: the run's limit)")
    parser.add_argument(
        "--mean", action=argparse.BooleanOptionalAction,
        help="report the mean of the softmax of several networks too (where they are the bands of one FDA experiment)",
    )  # fmt: skip
    data.add_argument(
        "--adapt-bn", action="store_true",
        help="first re-estimate batch normalisation on the target's train pictures, without labels (AdaBN)",
    )  # fmt: skip
    data.add_argument(
        "--neighbours", type=positive, metavar="K",
        help="how far features mix the domains: the share of a picture's K nearest neighbours of the other one, "
        "over chance (0: apart, 1: mixed); needs no labels, but the root of a source, which is not evaluated then",
    )  # fmt: skip
    output = parser.add_argument_group("output (folders must be new or empty)")
    output.add_argument(
        "--json", type=Path, metavar="FILE",
        help="write the figures; report.py reads those of AdaBN and of means",
    )  # fmt: skip
    output.add_argument("--force", action="store_true", help="replace the figures that --json wrote before")
    output.add_argument("--save-predictions", type=Path, metavar="DIR", help="coloured predictions")
    output.add_argument(
        "--save-ids", type=Path, metavar="DIR", help="predictions as Cityscapes ids, for its test server"
    )
    output.add_argument(
        "--save-side-by-side", type=Path, metavar="DIR", help="picture, ground truth and every network's prediction"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--precision", choices=PRECISIONS, default="fp32",
        help="number format of the network. With another than fp32, batch normalisation is folded into the "
        "convolutions (%(default)s)",
    )  # fmt: skip
    machine.add_argument(
        "--compile", action="store_true",
        help="fold batch normalisation and use torch.compile; pays for many pictures",
    )  # fmt: skip
    add_machine_flags(machine)
    args = parser.parse_args()
    if sources_of(vars(args)) and args.neighbours is None:
        refuse_idle("a source has no splits", "split")
    if args.json is None:
        refuse_idle("it is for --json", "force")
    if args.mean and len(args.checkpoints) == 1:
        refuse_idle("one network is named", "mean")
    return args


def main() -> None:
    args = parse_args()
    pictures = SavedPictures(
        args.save_predictions, args.save_ids, args.save_side_by_side, several=len(args.checkpoints) > 1
    )
    require_new_json(args.json, args.force)

    opened = _opened(args)
    sets, protocols = [one.data for one in opened], [one.protocol for one in opened]
    models: dict[str, nn.Module] = {}
    named, records = [], []
    for name, path, model, checkpoint, data, classes, protocol in opened:
        model, run = model.to(args.device), checkpoint["config"]["arguments"]
        read = {part.name: fingerprint(part) for part in data.parts}
        adapted_on = None
        if args.adapt_bn:
            used, adapted_on = _adapt(model, args, run)
            name += " + AdaBN"
            print(f"{path}: batch normalisation re-estimated on {used} pictures of the target's train set")
        mixed = {} if args.neighbours is None else {"domain_mixing": _mixing(model, args, run, name)}
        if args.precision != "fp32" or args.compile:
            model = Deployed(model, PRECISIONS[args.precision], args.compile)
        models[name] = model
        metrics = _evaluate(args, model, data, classes, protocol, name, pictures)
        named.append((name, metrics))
        records.append({"checkpoint": str(path), "name": name, "data": data.name, "adapt_bn": args.adapt_bn}
                       | {"precision": args.precision, "read": read, "size": [*data.size]}
                       | {"sha256": sha256(path), "adapted_on": adapted_on}
                       | {"step": checkpoint["step"], "epoch": checkpoint["epoch"]} | mixed | metrics)  # fmt: skip
    if args.mean is None and len(models) > 1 and not _bands_of_one([one.checkpoint["config"] for one in opened]):
        print("no mean of the networks: they are no bands of one FDA experiment; ask for it with --mean")
    elif args.mean is not False and len(models) > 1:
        if len({data.size for data in sets}) == 1:
            name = f"mean of {len(models)}"
            mean, shared = MeanSoftmax(list(models.values())), protocols[0] if None not in protocols else None
            metrics = _evaluate(args, mean, data, classes, shared, name, pictures)
            named.append((name, metrics))
            of_each = {key: [record[key] for record in records] for key in ("sha256", "adapted_on")}
            records.append({"checkpoint": [str(path) for path in args.checkpoints], "name": name, "data": data.name}
                           | {"adapt_bn": args.adapt_bn, "precision": args.precision, "read": read}
                           | {"size": [*data.size]} | of_each | {"step": None, "epoch": None} | metrics)  # fmt: skip
        else:
            print("no mean of the networks: they were trained at different working sizes")

    if args.save_side_by_side is not None:
        pictures.write_side_by_side(data, classes)
    if args.unlabelled:
        print(f"{len(data)} pictures predicted; without labels there are no figures")
    else:
        print(f"\n{data.name}, {len(data)} pictures\n")
        print(result_tables(named))
    if args.json is not None:
        write_json(args.json, {"evaluations": records})


class Opened(NamedTuple):
    """A network, and what it is evaluated on. protocol: of the source that it learnt from, whatever that is."""

    name: str
    path: Path
    model: nn.Module
    checkpoint: dict[str, Any]
    data: SegmentationSet
    classes: Classes
    protocol: Protocol | None


def _opened(args: argparse.Namespace) -> list[Opened]:
    """All that was named, looked at before the first is evaluated. Raises `UserError` where it does not compare."""
    found: list[Opened] = []
    for name, path in _names(args.checkpoints).items():
        checkpoint = load_checkpoint(path)
        run, classes = trained_with(checkpoint, path), classes_of(checkpoint)
        if checkpoint["closed"] < checkpoint["epoch"]:
            print(
                f"note: {path} was written in the middle of epoch {checkpoint['epoch']}, at step {checkpoint['step']}"
            )
        model = build_from_checkpoint(checkpoint, path)
        data = _data(args, checkpoint["config"], run, path)
        kept = {key: checkpoint[key] for key in ("config", "step", "epoch")}
        found.append(Opened(name, path, model, kept, data, classes, protocol_of(run)))
        first = found[0]
        require_same_classes(str(first.path), first.classes, str(path), classes)
        if data.labelled:
            require_same_classes(str(path), classes, data.name, data.classes)
        if args.save_ids is not None:
            require_same_classes(f"--save-ids: {path}", classes, "Cityscapes' test server", CITYSCAPES)
        if [sample.image for sample in data.samples] != [sample.image for sample in first.data.samples]:
            raise UserError(
                f"{path} was trained with other data or another --limit than {args.checkpoints[0]}, and figures on "
                f"different pictures do not compare; name the data with {roots(TARGETS | SOURCES)}, and --limit"
            )
        labels = [[fingerprint(part)["labels"] for part in one.parts] for one in (first.data, data)]
        if labels[0] != labels[1]:
            raise UserError(
                f"{path} reads the labels of {data.name} in another way than {args.checkpoints[0]} (its classes, its "
                "encoding or its mapping), and figures by different labels do not compare"
            )
    return found


def _evaluate(
    args: argparse.Namespace, model: nn.Module, data: SegmentationSet, classes: Classes, protocol: Protocol | None,
    name: str, pictures: SavedPictures,
) -> dict[str, Any]:  # fmt: skip
    """The figures of one network, or of several as one; saves the pictures that were asked for."""
    loader = evaluation_loader(data, args.workers)
    loaded = tracked(batches(loader), len(loader), name)
    return evaluate(model, loaded, args.device, classes.names, pictures.saver(data, classes, name), protocol)


def _names(paths: list[Path]) -> dict[str, Path]:
    """A short name for each checkpoint: its run's folder, with the file's name where that is not enough."""
    runs = [path.resolve().parent.name for path in paths]
    named: dict[str, Path] = {}
    for path, run in zip(paths, runs, strict=True):
        name = run if runs.count(run) == 1 else f"{run} {path.stem}"
        same = sum(other == name or other.startswith(f"{name} (") for other in named)
        named[name if same == 0 else f"{name} ({same + 1})"] = path
    return named


def _bands_of_one(configs: list[dict[str, Any]]) -> bool:
    """Whether the runs are one FDA experiment's, which differ in the band alone: the paper means their mean."""
    beside = FREE | {"beta"}
    settings = [{key: value for key, value in c["arguments"].items() if key not in beside} for c in configs]
    bands = {c["arguments"]["beta"] for c in configs if c["script"] == "train_fda"}
    return len(bands) == len(configs) and all(other == settings[0] for other in settings)


def _had_source(run: dict[str, Any]) -> bool:
    """Whether the run says how it read a source. IntraDA's read none, and train_cityscapes.py knows their roots."""
    return "source_holdout" in run and bool(sources_of(run))


def _given(args: argparse.Namespace, run: dict[str, Any]) -> dict[str, Any]:
    """The run's arguments, with the data and the limit that this command names in place of the run's."""
    own = vars(args)
    given = run | {key: own[key] for key in SOURCES} | {"limit": args.limit or run.get("limit")}
    given |= {name: own[name] for name in chosen_values() if own.get(name) is not None}
    if target_of(own) is not None:
        given |= {key: own[key] for key in TARGETS}
    refuse_idle_flags(given, TARGETS, SOURCES)
    if sources_of(given) and not _had_source(run):
        given["source_size"] = SOURCES[sources_of(given)[0]].size
    if args.size is not None:
        given |= {"size": args.size, "source_size": args.size}
    return given


def _data(
    args: argparse.Namespace, config: dict[str, Any], run: dict[str, Any], path: Path
) -> SegmentationSet | MixedSet:
    """The set to evaluate on, at the working size of the run, checked. Of the run's own source, what it held out."""
    given = _given(args, run)
    sources = sources_of(given)
    others = [key for key in sources or [target_of(given)] if run.get(key) is None]
    if others and args.size is None and (_had_source(run) or not sources):
        width, height = given["source_size" if sources else "size"]
        title = (SOURCES | TARGETS)[others[0]].title
        print(f"note: {path} was not trained on {title}; it is read at {width}x{height}, or as --size says")
    if not sources or args.neighbours is not None:
        data = open_target(given, args.split, labelled=not args.unlabelled)
    else:
        if not _had_source(run):
            title = SOURCES[sources[0]].title
            print(f"note: {path} had no source; {title} is read as training does without further flags")
        own = bool({*sources} & {*sources_of(run)})  # of which the run's --limit came before what it held out
        data = open_source(given | ({"limit": run.get("limit")} if own else {}), labelled=not args.unlabelled)
        rest, held_out = data.hold_out(run["source_holdout"] if own else 0)
        trained_on = {name: found["names"] for name, found in config.get("data", {}).items()}
        if held_out is not None and any(fingerprint(p)["names"] != trained_on.get(p.name) for p in rest.parts):
            print(f"note: {path} was trained on other pictures than these of {data.name}; all of them are evaluated")
            held_out, rest = None, data
        data = (held_out or rest).limited(args.limit)
    print(check(data))
    return data


def _mixing(model: nn.Module, args: argparse.Namespace, run: dict[str, Any], name: str) -> float:
    """`domain_mixing` of the source that is named and the target's split, said in a line."""
    given = _given(args, run)
    if not sources_of(given):
        raise UserError(f"--neighbours looks for the target among a source; name its root with {roots(SOURCES)}")
    both = open_source(given, labelled=False), open_target(given, args.split, labelled=False)
    found, pictures = domain_mixing(model, *both, args.neighbours, args.device)
    print(f"{name}: domain mixing {found:.3f} of its chance level ({args.neighbours} neighbours, {pictures} pictures "
          f"each of {both[0].name} and {both[1].name})")  # fmt: skip
    return found


def _adapt(model: nn.Module, args: argparse.Namespace, run: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """AdaBN on the unlabelled train split of the target, in batches of the run's size: (how many pictures it used, the
    set's name, --limit and `fingerprint`)."""
    given = _given(args, run)
    data = open_target(given, "train", labelled=False, listed=target_of(vars(args)) is None)
    used = adapt_to(model, data, run["batch_size"], args.workers, args.device)
    return used, {"data": data.name, "limit": given["limit"]} | fingerprint(data)


if __name__ == "__main__":
    run_script(main)
