"""What a finished run leaves: result.json, the model card, and the printed table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_atomically, write_json
from utils.tables import result_tables

from .journal import oracle
from .model_card import NAME as MODEL_CARD
from .model_card import model_card


def write_result(
    directory: Path,
    config: dict[str, Any],
    network: dict[str, Any],
    history: list[dict[str, Any]],
    confusion: list[list[int]] | None,
    spent: dict[str, float | None],
) -> None:
    """The last evaluation is the headline; the oracle and the source stand apart from it.

    config: the run's `config.json`; network: the deployed network's options; history: the entries of `metrics.jsonl`;
    confusion: of the last evaluation on the target; spent: the whole run's seconds and peak memory.
    """
    last, best = history[-1], oracle(history)
    result = last["target"] | {
        "step": last["step"],
        "epoch": last["epoch"],
        "oracle": best and best["target"] | {"step": best["step"], "epoch": best["epoch"]},
        "source": last.get("source"),
        "confusion": confusion,
        "script": config["script"],
        "network": network,
        "seed": config["arguments"]["seed"],
        "size": config["arguments"]["size"],
        "commit": config["commit"],
    } | spent
    card = model_card(config, result).encode(errors="replace")  # a path may hold bytes that are no text
    write_atomically(directory / MODEL_CARD, lambda file: file.write(card))
    write_json(directory / "result.json", result)


def withdraw_result(directory: Path) -> None:
    """Of a finished run that goes on: it would be a figure of other steps, and perhaps of other settings. Raises
    `UserError`."""
    for path in (directory / "result.json", directory / MODEL_CARD):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be taken away ({error.strerror})") from None


def result_text(directory: Path, history: list[dict[str, Any]]) -> str:
    """The same figures as tables."""
    last, best = history[-1], oracle(history)
    rows = [(f"last (step {last['step']})", last["target"])]
    if best is not None:
        rows.append((f"oracle: best epoch by target labels ({best['epoch']})", best["target"]))
    if "source" in last:
        rows.append(("source, held out", last["source"]))
    return f"\n{directory}: the headline is the last checkpoint\n\n{result_tables(rows)}"
