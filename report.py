"""Finished runs -> one table: the last checkpoint as the headline, the oracle apart, the source beside the target.

python report.py runs/A runs/B ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from utils.errors import Parser, UserError, run_script
from utils.tables import markdown, mean_and_deviation

HEADER = ("experiment", "runs", "accuracy (%)", "mIoU (%)", "classes", "oracle best mIoU (%)", "source mIoU (%)")


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories; seeds are grouped")
    return parser.parse_args()


def main() -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in parse_args().runs:
        result = read_result(run)
        groups.setdefault(json.dumps(result["settings"], sort_keys=True), []).append(result)
    rows = [row(name, results) for name, results in zip(names(list(groups.values())), groups.values(), strict=True)]
    print(markdown(HEADER, rows))
    print("\nHeadline: the last checkpoint on the target. Oracle: the best epoch chosen by the target's own labels,")
    print(
        "which no adaptation has. Source: frames held out of the source's training set. Mean and deviation over runs."
    )


FIGURES = ("accuracy", "miou", "classes_evaluated", "oracle", "source")
BESIDE = {
    "seed",
    "run_dir",
    "root",
    "resume",
    "no_cache",
    "cache",
    "workers",
    "device",
    "checkpoint_minutes",
    "stop_after",
    "allow_changes",
    "on_bad_sample",
    "max_bad_share",
    "labeller",
    "labeller_sha256",
    "pseudo_labels",
}
"""Arguments in which the runs of one experiment may differ."""


def read_result(run: Path) -> dict[str, Any]:
    """A run's figures and `settings`: its arguments less those `BESIDE`. Raises `UserError` for a run that is
    missing, unfinished or damaged."""
    path = run / "result.json"
    if not path.is_file():
        raise UserError(f"{run}: no result.json is there; no run, or one that has not ended (--resume goes on)")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        arguments = json.loads((run / "config.json").read_text(encoding="utf-8"))["arguments"]
        settings = {key: value for key, value in arguments.items() if key not in BESIDE}
        return {key: result[key] for key in FIGURES} | {"settings": settings}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{run}: result.json or config.json is damaged; a training script writes them") from None


def names(groups: list[list[dict[str, Any]]]) -> list[str]:
    """Script, network and size, and whatever else tells experiments of the same three apart."""
    settings = [group[0]["settings"] for group in groups]
    short = [
        f"{s['script']} {s['model']}-{s['backbone']} {'x'.join(str(side) for side in s['size'])}" for s in settings
    ]
    named = []
    for own, name in zip(settings, short, strict=True):
        alike = [other for other, other_name in zip(settings, short, strict=True) if other_name == name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        named.append(" ".join([name, *(f"{key}={own[key]}" for key in differing)]))
    return named


def row(name: str, results: list[dict[str, Any]]) -> list[str]:
    """The cells under `HEADER`."""
    return [
        name,
        str(len(results)),
        spread([result["accuracy"] for result in results]),
        spread([result["miou"] for result in results]),
        "/".join(sorted({str(result["classes_evaluated"]) for result in results})),
        spread([result["oracle"] and result["oracle"]["miou"] for result in results]),
        spread([result["source"] and result["source"]["miou"] for result in results]),
    ]


def spread(fractions: list[float | None]) -> str:
    """Mean and deviation in per cent of those that exist."""
    return mean_and_deviation([100 * fraction for fraction in fractions if fraction is not None])


if __name__ == "__main__":
    run_script(main)
