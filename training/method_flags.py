"""Flags of methods that more than one script has; a script adds them to its own group."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.flags import number


def add_statistics_flag(group: argparse._ArgumentGroup) -> None:
    """For methods that pass both domains through the network in training."""
    group.add_argument(
        "--bn-statistics",
        choices=("both", "target"),
        default="both",
        help="whose running statistics batch normalisation keeps for evaluation. both: a mixture of the two domains, "
        "as published; target: the target's alone, where the network is used (%(default)s)",
    )


def add_style_flag(group: argparse._ArgumentGroup) -> None:
    """For methods that may be combined with FDA."""
    group.add_argument(
        "--beta", type=number(0, 0.499), metavar="B",
        help="train on the source in the target's style, by FDA with this band (off)",
    )  # fmt: skip


def add_labels_flag(group: argparse._ArgumentGroup) -> None:
    """For methods that train on labels of the target which a network made."""
    group.add_argument(
        "--labels", type=Path, metavar="DIR",
        help="train on these labels of the target's train pictures: NAME_labelTrainIds.png, as predict.py writes "
        "them, or NAME.png, with train ids and 255 for none; any network may have made them",
    )  # fmt: skip
