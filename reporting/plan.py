"""Which command fills which row, and running it: each row once, resumable, as a process of its own.

`tables.py` and `benchmarks/adaptation.py` run their rows by this.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.checkpoint import LAST
from utils.errors import UserError
from utils.interruption import STARTED, heard

ROOT = Path(__file__).resolve().parent.parent
PYTHON = [sys.executable]
"""What a script is started with."""
SOURCE_ONLY, ADVERSARIAL, FDA, SELF = "train_gta5.py", "train_adversarial.py", "train_fda.py", "train_pseudo_labels.py"
TARGET_ONLY, DACS, SAC, EVALUATION = "train_cityscapes.py", "train_dacs.py", "train_sac.py", "eval.py"
COSTS = {SOURCE_ONLY: 1.0, TARGET_ONLY: 1.0, ADVERSARIAL: 2.7, FDA: 1.7, SELF: 2.0, DACS: 2.2, SAC: 2.3}
COSTS |= {EVALUATION: 0.0}
"""What a step takes, in steps of source only: rounded from docs/performance.md, where adversarial training and DACS
were measured on a CPU. FDA's is one pass, and a second one on the target for the last two thirds of the run;
self-training's two, SAC's those and the teacher's, a third. Good enough to plan with."""


@dataclass(frozen=True)
class Row:
    """A row of a table: a training script with flags, or an evaluation.

    needs: rows whose checkpoints it takes, to evaluate them (several: the mean of their softmax), to label with them,
    or for IntraDA, which then reads no source.
    goes_on: whether it starts from the one that it needs. cost: how many times what its script usually takes, by its
    flags or its network.
    """

    script: str
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    goes_on: bool = False
    cost: float = 1.0

    @property
    def trains(self) -> bool:
        return self.script != EVALUATION

    @property
    def intra(self) -> bool:
        """IntraDA's: it reads no source, and the row that it needs ranks the target's pictures."""
        return self.script == ADVERSARIAL and bool(self.needs) and not self.goes_on

    @property
    def relative(self) -> float:
        """What a step takes, in steps of source only with BiSeNet-18."""
        return self.cost * COSTS[self.script]


@dataclass(frozen=True)
class Plan:
    """Rows, and what their commands share: flags of every training script, of those that read a source, and of the
    machine. Runs lie below `out`, and figures of evaluations in `out`/evaluations."""

    rows: Mapping[str, Row]
    out: Path
    training: Sequence[str]
    source: Sequence[str]
    machine: Sequence[str]

    def cost(self, name: str) -> float:
        """Of a row and of all that it needs, in runs of source only of as many steps."""
        row = self.rows[name]
        return row.relative + sum(self.cost(needed) for needed in row.needs)

    def directory(self, name: str, seed: int) -> Path:
        return self.out / slug(name, seed)

    def figures(self, name: str, seed: int) -> Path:
        """The file that is there once the row is done."""
        if self.rows[name].trains:
            return self.directory(name, seed) / "result.json"
        return self.out / "evaluations" / f"{slug(name, seed)}.json"

    def done(self, name: str, seed: int) -> bool:
        """Whether its figures are there. Those of an evaluation are not, once a network that it takes is newer."""
        own = self.figures(name, seed)
        if not own.exists() or self.rows[name].trains:
            return own.exists()
        taken = [path for path in (self.figures(needed, seed) for needed in self.rows[name].needs) if path.exists()]
        return all(path.stat().st_mtime_ns <= own.stat().st_mtime_ns for path in taken)

    def command(self, name: str, seed: int) -> list[str]:
        """The script and its arguments, which start the row, or go on with it."""
        row = self.rows[name]
        checkpoints = [str(self.directory(needed, seed) / LAST) for needed in row.needs]
        if not row.trains:
            to = ["--json", str(self.figures(name, seed)), "--force"]
            return [row.script, *checkpoints, *row.flags, *to, *self.machine]
        source = [] if row.script == TARGET_ONLY or row.intra else self.source
        labels = ["--labeller", *checkpoints] if checkpoints and row.script == SELF else []
        labels += ["--intra", *checkpoints] if row.intra else []
        labels += ["--init", *checkpoints] if row.goes_on else []
        where = ["--seed", str(seed), "--run-dir", str(self.directory(name, seed)), "--resume"]
        return [row.script, *self.training, *source, *labels, *row.flags, *where, *self.machine]

    def run(self, name: str, seed: int, hear: Callable[[str], None] | None = None) -> dict[str, Any]:
        """A row's figures; runs it, and before it the rows that it needs, where that was not done. hear: gets every
        line that a script prints. Raises `UserError` when a script fails, SystemExit when it is stopped."""
        for needed in () if self.done(name, seed) else self.rows[name].needs:
            self.run(needed, seed, hear)
            if not (self.directory(needed, seed) / LAST).exists():
                raise UserError(f"{self.directory(needed, seed) / LAST}: missing; the row {name} needs it")
        if not self.done(name, seed):
            self.figures(name, seed).parent.mkdir(parents=True, exist_ok=True)
            call(self.command(name, seed), hear)
        found = json.loads(self.figures(name, seed).read_text(encoding="utf-8"))
        return found if self.rows[name].trains else found["evaluations"][-1]


def slug(name: str, seed: int) -> str:
    """Of a row's name: what its directory is called."""
    return "".join(letter if letter.isalnum() else "-" for letter in name) + f"-seed{seed}"


def call(arguments: Sequence[str], hear: Callable[[str], None] | None = None) -> None:
    """Runs a script of the project and passes on what it prints; its bar goes to the terminal as it is.

    Where this process is told to stop, the script is, which saves a checkpoint. Raises `UserError` when the script
    fails, SystemExit with its status when it was stopped.
    """
    print("$ python " + shlex.join(arguments), flush=True)
    command = [*PYTHON, str(ROOT / arguments[0]), *arguments[1:]]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1", "STOP_AFTER_COUNTS_FROM": str(STARTED)},
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )  # fmt: skip
    # A terminal's Ctrl-C reaches the script as well; a scheduler's signal may not.
    handlers = {number: lambda number, frame: child.send_signal(number) for number in heard()}
    handlers |= {signal.SIGINT: signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            if hear is not None:
                hear(line)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status < 0 or status > 2:
        print("Stopped. What is done is kept; the same command goes on.", file=sys.stderr)
        raise SystemExit(status if status > 0 else 128 - status)
    if status != 0:
        raise UserError(f"{arguments[0]} failed; see above. What is done is kept, the same command goes on")


def _end_with_parent() -> None:
    """In the script's process: where its parent is killed, it is told to stop, and its directory is free again."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
