"""Whether what stands in a run's files can be shown: files may be damaged, or made by somebody else.

Only what the report computes with is looked at. Every function says True or False, and raises KeyError, TypeError,
AttributeError or ValueError where something is not there or of another kind: either way one run is left out, and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from utils.flags import LARGEST
from utils.tables import means_in


def is_number(value: Any) -> bool:
    """A finite number of a size that can be drawn; True and False are none."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def is_duration(value: Any) -> bool:
    """Seconds, or none: runs of before did not take them."""
    return value is None or (is_number(value) and value >= 0)


def figures_are_sane(figures: dict[str, Any], classes: Mapping[str, Any]) -> bool:
    """Fractions or None, one for each of `classes`, which have names."""
    values = [figures[name] for name in ("accuracy", "miou", *means_in([figures]))]
    values += [figures["iou"][name] for name in classes]
    return all(name.isprintable() for name in figures["iou"].keys() | classes.keys()) and all(
        value is None or (is_number(value) and 0 <= value <= 1) for value in values
    )


def confusion_is_sane(confusion: Any, size: int) -> bool:
    """A count for every pair of `size` classes, or not there."""
    return confusion is None or (
        len(confusion) == size and all(len(row) == size and all(is_count(n) for n in row) for row in confusion)
    )


def config_is_sane(config: dict[str, Any]) -> bool:
    """A run's config.json: what tables and labels are made of."""
    arguments = config["arguments"]
    words = (config["script"], *(arguments[key] for key in ("script", "model", "backbone", "weights")))
    plain = [part for value in arguments.values() for part in (value if isinstance(value, list) else [value])]
    return (
        all(isinstance(word, str) for word in words)
        and all(part is None or isinstance(part, bool | int | float | str) for part in plain)
        and all(isinstance(found, dict) for found in config.get("data", {}).values())
        and len(arguments["size"]) == 2
        and all(is_count(count) and count for count in (*arguments["size"], arguments["batch_size"]))
        and all(is_count(count) for count in (arguments["seed"], config["total_steps"]))
        and isinstance(arguments["init"], str | None)
        and isinstance(arguments["demo"], bool)
        and (arguments.get("limit") is None or is_count(arguments["limit"]))
    )


def history_is_sane(history: Iterable[dict[str, Any]]) -> bool:
    """The lines of metrics.jsonl: what curves are drawn from. A loss's name becomes a file's."""
    for entry in history:
        sets = [entry["target"], *([] if entry.get("source") is None else [entry["source"]])]
        mious = [figures["miou"] for figures in sets if figures["miou"] is not None]
        if not (is_count(entry["step"]) and all(map(is_number, (*mious, *entry["train"].values())))):
            return False
        if not all(name.isidentifier() for name in entry["train"]) or not is_duration(entry.get("seconds")):
            return False
    return True


def cost_is_sane(cost: dict[str, Any]) -> bool:
    """A network's costs, of measure_flops.py."""
    counts = [cost[key] for key in ("parameters_training", "parameters_inference", "fvcore", "conv_flops")]
    times = [t[key] for t in cost.get("timing", {}).values() for key in ("latency_median_ms", "latency_p95_ms")]
    return all(map(is_number, (*counts, *times)))
