"""A mean teacher's flags: how long its average is, and the earlier network that labels in its place or starts it."""

from __future__ import annotations

import argparse
from pathlib import Path

from adaptation.mean_teacher import DECAY
from utils.errors import UserError, refuse_idle
from utils.flags import number, spelt

from .checkpoint import checkpoint_file, describe, load_checkpoint, sha256
from .methods import trained_as


def add_teacher_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--decay", type=number(0, 0.9999), metavar="D",
        help=f"the teacher averages about the last 1 / (1 - D) steps; take a lower D for short runs ({DECAY})",
    )  # fmt: skip
    group.add_argument(
        "--average-share", type=number(0, 1), metavar="SHARE",
        help="in place of --decay: the teacher averages about this share of the run's steps, so that long and short "
        "runs have the same average; 0.025 in DAFormer (off)",
    )  # fmt: skip
    group.add_argument(
        "--teacher-checkpoint", type=checkpoint_file, metavar="FILE", help="an earlier network that labels the target"
    )
    group.add_argument(
        "--teacher", choices=("frozen", "moving"),
        help="what becomes of that network. frozen: it stays as it is, and may be of any architecture; moving: teacher "
        "and student start from it, and the teacher is the student's average (frozen; moving without a checkpoint)",
    )  # fmt: skip


def choose_teacher(args: argparse.Namespace) -> None:
    """Fills in which teacher it is, how long its average is, what its checkpoint holds. Raises `UserError` for flags
    that mean nothing together, and for a network from which the student's average cannot start."""
    if "--decay" in spelt():  # also beside a recipe's share
        refuse_idle("--decay says how long the average is", "average_share")
        args.average_share = None
    if args.decay is None and args.average_share is None:
        args.decay = DECAY
    path = args.teacher_checkpoint
    args.teacher = args.teacher or ("moving" if path is None else "frozen")
    if args.labels is not None:
        refuse_idle("every given label is sure", "confidence")
    if args.teacher == "frozen" and args.labels is not None:
        raise UserError("--labels beside a frozen --teacher-checkpoint: both label the target; name one")
    if args.teacher == "frozen" and path is None:
        raise UserError("--teacher frozen: name the network that labels, --teacher-checkpoint FILE")
    args.teacher_sha256, args.teacher_method = path and sha256(path), path and trained_as(path)
    if args.teacher == "moving" and path is not None:
        if args.init is not None:
            raise UserError("--teacher moving: the student starts from --teacher-checkpoint; leave --init out")
        require_network(path, args.model, args.backbone)


def require_network(path: Path, model: str, backbone: str) -> None:
    """Raises `UserError` unless the checkpoint holds that network, from which a moving teacher can start."""
    found = load_checkpoint(path)["network"]
    if (found.get("name"), found.get("backbone")) != (model, backbone):
        raise UserError(
            f"--teacher moving: {path} holds {describe(found)}, and an average of {model} with {backbone} cannot start "
            "from it; --teacher frozen takes any network"
        )
