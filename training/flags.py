"""The flags that every training script shares, defined once, and what --settings, --recipe and --demo stand for."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import models
from adaptation.losses import LOSSES
from datasets import street_scenes
from datasets.domains import (
    SOURCES,
    TARGETS,
    add_flags,
    add_roots,
    from_environment,
    refuse_idle_flags,
    require_read_mappings,
    roots,
    sizes,
    source_with_protocol,
    sources_of,
    target_of,
    usual,
)
from utils import distributed
from utils.errors import Parser, UserError, refuse_idle
from utils.files import read_json
from utils.flags import add_choice, add_machine_flags, flag, number, positive, scales, size, spelt, whole

from .checkpoint import checkpoint_file
from .gradients import PRECISIONS, default_precision
from .methods import method_name, started_from, trained_as
from .resumption import arguments_of

FIRST = ("--demo", "--backbone", "--epochs", "--batch-size", "--seed", "--run-dir", "--resume")
"""With the first source, the first target and one flag of a script's own, the ten that one needs first. --help shows no
others."""
SETTINGS = ("paper", "report")
"""Names in `models.Segmenter.settings`."""

DEMO = {
    "size": (160, 80),
    "source_size": (160, 80),
    "batch_size": 4,
    "flip": 0.5,
    "scales": (1.0,),
    "weights": "none",
    "max_steps": 200,
    "eval_every": 1,
    "source_holdout": 0.15,
}
"""Small enough for two CPU cores and a few minutes; the rate is the network's `demo_lr`."""
DEMO_SCENES = {"size": (256, 128), "source": 400, "target": 200, "val": 60}
DEMO_ROOT = Path("data/street_scenes")


def add_network_flags(group: argparse._ArgumentGroup) -> None:
    """--model and --backbone. Where no backbone is named it is None, and the network's default is meant."""
    networks = models.SEGMENTERS
    titles = "; ".join(f"{name}: {network.title}" for name, network in networks.items())
    default = next(iter(networks))
    group.add_argument("--model", choices=sorted(networks), default=default, help=f"{titles} (%(default)s)")
    choices = sorted({backbone for network in networks.values() for backbone in network.backbones})
    known = "; ".join(f"{name}: {', '.join(network.backbones)}" for name, network in networks.items())
    group.add_argument("--backbone", choices=choices, help=f"{known} (the network's first)")


def by_settings(flag: str) -> str:
    """A flag's defaults in words: `(paper: bisenet 16, deeplabv2 4; report: bisenet 4, deeplabv2 4)`."""
    said = []
    for settings in SETTINGS:
        known = {name: network for name, network in models.SEGMENTERS.items() if settings in network.settings}
        values = [f"{name} {getattr(network.settings[settings], flag):g}" for name, network in known.items()]
        said.append(f"{settings}: {', '.join(values)}")
    return f"({'; '.join(said)})"


def default_directory(args: argparse.Namespace) -> Path:
    """Where a run goes that was given no --run-dir: `runs/source-only-jitter-blur-seed0`, the method as reports call
    it; with a number where that is taken."""
    settings, bands = vars(args), getattr(args, "beta", None)
    if args.init is not None:
        settings = settings | {"init_method": trained_as(args.init)}
    several = isinstance(bands, list)  # train_fda.py's, a folder each in this one
    name = method_name(settings | {"beta": bands[0]} if several else settings)
    name = name.partition(",")[0] if several and len(bands) > 1 else name
    if (args.model, args.backbone) != ("bisenet", "resnet18"):
        name += f" {args.model} {args.backbone}"
    place = Path("runs", re.sub(r"[^a-z0-9.]+", "-", f"{name} seed{args.seed}".lower()))
    taken = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
    return place if not place.exists() else next(other for other in taken if not other.exists())


def training_parser(doc: str, source: bool, first: str = "--model") -> argparse.ArgumentParser:
    """The common flags; `source` tells whether the experiment reads one too. A script adds its own, then `parse`s.
    first: the flag of its own that --help shows beside those in `FIRST`."""
    shown = (*usual(), *FIRST, first)
    parser = Parser(first=shown, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    add_flags(data, TARGETS, "root of {title}, the target ({variable})", "train on the pictures named here only")
    data.add_argument("--size", type=size, metavar="WxH", help=f"target working size ({sizes(TARGETS)})")
    if source:
        add_flags(data, SOURCES, "root of {title}, the source ({variable})", "use the frames named here only")
    else:
        add_roots(data, SOURCES, argparse.SUPPRESS)
    source_size = f"source working size ({sizes(SOURCES)})" if source else argparse.SUPPRESS
    data.add_argument("--source-size", type=size, metavar="WxH", help=source_size)
    if source:
        data.add_argument(
            "--source-holdout",
            type=number(0, 0.9),
            default=0.0,
            metavar="SHARE",
            help="share of the source that is not trained on, but evaluated beside the target (0)",
        )
    data.add_argument(
        "--unlabelled-val", action="store_true",
        help="evaluate without labels of the target; only its entropy is logged"
    )
    data.add_argument(
        "--limit", type=positive, metavar="N", help="use at most N pictures of each set, the same in every run"
    )
    data.add_argument(
        "--demo", action="store_true",
        help="train on built-in street scenes with small settings (minutes on a CPU)",
    )  # fmt: skip

    network = parser.add_argument_group("network")
    add_network_flags(network)
    network.add_argument(
        "--weights", default="imagenet", metavar="imagenet|none|FILE", help="the backbone's first weights (imagenet)"
    )
    network.add_argument(
        "--allow-partial-weights", action="store_true",
        help="load the weights that fit, and list those that do not",
    )  # fmt: skip
    network.add_argument(
        "--init", type=checkpoint_file, metavar="CHECKPOINT", help="start from the network of another run"
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--settings",
        choices=SETTINGS,
        default="paper",
        help="paper: the network's paper's, as far as it has them, with flip and random scale and crop; report: the "
        "student report's, without augmentation. Flags given beside it win (%(default)s)",
    )
    training.add_argument(
        "--epochs", type=positive, metavar="N",
        help="passes over the training set (50; with --max-steps: as many as that takes)"
    )
    training.add_argument(
        "--max-steps", type=positive, metavar="N", help="train N steps and shorten the schedule to them; with "
        "--epochs, the shorter of the two"
    )  # fmt: skip
    batch = f"pictures a step {by_settings('batch_size')}"
    training.add_argument("--batch-size", type=positive, metavar="N", help=batch)
    training.add_argument("--lr", type=number(0, 100), metavar="X", help=f"first learning rate {by_settings('lr')}")
    training.add_argument("--weight-decay", type=number(0, 1), metavar="X", help=by_settings("weight_decay"))
    training.add_argument(
        "--aux-weight", type=number(0, 100), metavar="X",
        help=f"weight of the auxiliary losses {by_settings('aux_weight')}",
    )  # fmt: skip
    losses = {name: network.settings["paper"].loss for name, network in models.SEGMENTERS.items()}
    own = "".join(f"; {name}: {loss}" for name, loss in losses.items() if loss != "ce")
    add_choice(training, "--loss", LOSSES, "ce", "loss on labelled pixels", said=f"(ce{own})")
    training.add_argument("--seed", type=whole, default=0, metavar="N", help="of all random numbers (0)")
    training.add_argument(
        "--precision", choices=PRECISIONS,
        help="number format of convolutions in training; evaluation always uses fp32. fp16 "
        "scales the loss, for older GPUs (bf16 on GPUs that compute it natively, else fp32)",
    )  # fmt: skip
    training.add_argument(
        "--accumulate", type=positive, default=1, metavar="N",
        help="compute each batch in N parts, for a small GPU; batch normalisation then sees one part at a time (1)",
    )  # fmt: skip
    training.add_argument(
        "--deterministic", action="store_true",
        help="ask a GPU to sum in a fixed order, as a CPU always does; slower",
    )  # fmt: skip
    training.add_argument(
        "--flip", type=number(0, 1), metavar="P",
        help="probability of a horizontal flip (by --settings; 0.15 is the student report's, where it flips)"
    )
    training.add_argument(
        "--scales", type=scales, metavar="S,S,...",
        help="random scales before the crop, as in 0.75,1,2; 1 turns them off (by --settings)"
    )

    if source:
        looks = parser.add_argument_group("appearance of the source's pictures")
        looks.add_argument(
            "--jitter", action="store_true",
            help="change brightness, contrast and saturation by up to 0.5 and hue by up to 0.05"
        )
        looks.add_argument("--blur", action="store_true", help="Gaussian blur with kernel 3 and sigma 0.2 to 0.8")
        looks.add_argument(
            "--recolour", type=number(0, 1), default=0.0, metavar="P",
            help="give each class of each picture random colours and texture with this probability, and blur half of "
            "the pictures; comes after --jitter and --blur, before any translation (0; try 0.7)",
        )  # fmt: skip

    run = parser.add_argument_group("run")
    run.add_argument(
        "--run-dir", type=Path, metavar="DIR",
        help="where the run is kept (runs/METHOD-seedN)",
    )  # fmt: skip
    run.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="where decoded pictures are kept; they are decoded at their first use (below the data's root, or beside "
        "the run where the root is read-only)",
    )  # fmt: skip
    run.add_argument("--no-cache", action="store_true", help="decode pictures each time; the batches are the same")
    run.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
    run.add_argument(
        "--eval-every", type=positive, default=1, metavar="N", help="epochs between two evaluations (1)"
    )
    run.add_argument(
        "--checkpoint-minutes", type=number(0, 1e6), default=10.0, metavar="X",
        help="minutes between two checkpoints: a killed run loses no more (10)",
    )  # fmt: skip
    run.add_argument(
        "--stop-after", type=number(0, 1e6), metavar="MINUTES",
        help="after so many minutes save a checkpoint and end with status 75; for machines with a time limit",
    )  # fmt: skip
    run.add_argument(
        "--allow-changes", action="store_true", help="with --resume, accept changed arguments or data"
    )
    run.add_argument(
        "--on-bad-sample", choices=("stop", "skip"), default="stop",
        help="what to do when a training picture cannot be read: stop, or skip it and list it (%(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--max-bad-share", type=number(0, 1), default=0.01, metavar="SHARE",
        help="with --on-bad-sample skip, stop when a larger share of a set cannot be read (0.01)",
    )  # fmt: skip
    run.add_argument(
        "--compile", action="store_true",
        help="use torch.compile: the first steps are slow, the others faster",
    )  # fmt: skip
    add_machine_flags(run)
    return parser


def as_begun(chosen: argparse.Namespace, recipe: dict[str, Any]) -> dict[str, Any]:
    """Of a run that goes on what its recipe stood for when it began: recipes get better."""
    if not chosen.resume or chosen.run_dir is None:
        return {}
    try:
        begun = arguments_of(read_json(chosen.run_dir / "config.json"))
        return {key: begun[key] for key in recipe if key in begun} if begun["recipe"] == chosen.recipe else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no run is there, or a damaged one, which is said later


def parse(
    parser: argparse.ArgumentParser,
    recipes: dict[str, dict[str, Any]] | None = None,
    settle: Callable[[argparse.Namespace], None] = lambda args: None,
) -> argparse.Namespace:
    """Parses sys.argv: what --settings, --recipe (a script's own named `recipes`) and --demo imply are defaults, so
    that a flag given beside them wins. `settle` fills in what one flag makes of another, before the run's folder is
    named after them.

    Raises `UserError` for a missing root. With --demo the street scenes are written first, where they are not yet.
    """
    chosen, _ = parser.parse_known_args()
    known = {action.dest for action in parser._actions}
    reads_source = "source_holdout" in known and getattr(chosen, "intra", None) is None
    if "source_holdout" not in known and source_with_protocol(vars(chosen)) is None:
        refuse_idle("no labelled source is read; train_gta5.py trains on one", *SOURCES)
    if not chosen.demo:
        from_environment(chosen, TARGETS, *([SOURCES] if reads_source else []))
    sources, target = sources_of(vars(chosen)), target_of(vars(chosen))
    network = models.SEGMENTERS[chosen.model]
    if chosen.settings not in network.settings:
        raise UserError(f"--settings {chosen.settings}: {network.title} has {' and '.join(network.settings)} only")
    implied = network.settings[chosen.settings]._asdict() | {"backbone": network.default_backbone()}
    implied |= {"size": TARGETS[target or "cityscapes"].size, "source_size": SOURCES[[*sources, "gta5"][0]].size}
    if recipes:
        implied |= recipes[chosen.recipe] | as_begun(chosen, recipes[chosen.recipe])
    named = [flag(key) for key in SOURCES | TARGETS if flag(key) in spelt()]
    if chosen.demo and named:
        raise UserError(f"--demo has street scenes of its own; leave out {' and '.join(named)}, or --demo")
    if chosen.demo:
        implied |= DEMO | ({} if network.demo_lr is None else {"lr": network.demo_lr})
    implied |= {key: getattr(chosen, key) for key in (*sources, target) if key is not None}
    parser.set_defaults(**{key: value for key, value in implied.items() if key in known})
    args = parser.parse_args()
    args.script = Path(sys.argv[0]).stem
    auxiliary = network.multi_level_options
    if auxiliary is None or (auxiliary and getattr(args, "level", None) != "multi"):
        refuse_idle(f"{network.title} has no auxiliary losses", "aux_weight")
    try:
        args.device = distributed.start(args.device)
    except ValueError as error:
        raise UserError(str(error)) from None
    args.precision = args.precision or default_precision(args.device)
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic  # the fastest convolutions for shapes that do not change
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first use, which refuses without
    parts = distributed.ranks() * args.accumulate
    if args.batch_size % parts:
        raise UserError(
            f"--batch-size {args.batch_size}: not divisible by {distributed.ranks()} process(es) x --accumulate "
            f"{args.accumulate}; it is the whole batch, over all of them"
        )
    if args.batch_size // (parts if args.device.type == "cpu" else args.accumulate) < 2:
        raise UserError(
            f"--batch-size {args.batch_size}: batch normalisation of pooled features needs at least 2 pictures a time"
        )
    if args.resume and args.run_dir is None:
        raise UserError("--resume: name the run to go on with, --run-dir DIR")
    settle(args)
    # A script may put several runs below its root.
    args.run_dir = args.root = distributed.from_first(args.run_dir or default_directory(args))
    if args.demo:
        try:
            with distributed.first_then_others():
                game, camera = street_scenes.ensure(DEMO_ROOT, **DEMO_SCENES, workers=1)
        except (OSError, ValueError) as error:
            raise UserError(f"--demo: the street scenes cannot be written below {DEMO_ROOT} ({error})") from None
        args.cityscapes, args.gta5 = camera, game
    for table in (TARGETS, SOURCES) if reads_source else (TARGETS,):
        if all(getattr(args, key) is None for key in table):
            raise UserError(f"{roots(table)} is missing: name the root of the data set, or try --demo")
    refuse_idle_flags(vars(args), TARGETS, SOURCES)
    if not args.resume:  # tables.py gives all rows the same flags, and runs of before go on with what they began with
        require_read_mappings(vars(args))
        refuse_idle("it takes --resume", "allow_changes")
        if args.no_cache:
            refuse_idle("--no-cache keeps no prepared pictures", "cache")
        if args.on_bad_sample == "stop":
            refuse_idle("--on-bad-sample stop allows none", "max_bad_share")
        decides = args.weights == "none" or network.pretrained_options  # also for other layers than the backbone's
        idle = ("allow_partial_weights",) if decides else ("allow_partial_weights", "weights")
        if (earlier := started_from(vars(args))) is not None:
            refuse_idle(f"the network starts from {earlier}", *idle)
    return args
