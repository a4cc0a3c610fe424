"""Everything that has to be known on a GPU, by one command: `make gpu`, 20 to 30 minutes on a machine with one.

    python benchmarks/gpu.py                              all parts; again: what is missing
    python benchmarks/gpu.py --plan                       parts, cells and estimated minutes; so without a GPU
    python benchmarks/gpu.py --only training memory       some parts
    python benchmarks/gpu.py --only training --cells fp16 the cells whose names contain a text
    python benchmarks/gpu.py --full                       every precision with all data, compiled and not: hours
    python benchmarks/gpu.py --document docs/performance.md
    python benchmarks/gpu.py --device cpu --small         seconds a cell; its figures mean nothing

The parts are the tests that need a GPU, the training scripts' own steps from street scenes of full size, the peak
memory of training by every method, and inference. Each part leaves its figures in --out, cell by cell, in PART.json,
and a PART.log beside it; gpu.md holds the tables. What is there is not measured again. A cell that fails is said in one
line, and the rest goes on; the same command tries it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_parts import PARTS  # noqa: E402
from benchmarks.gpu_training import Cell, Found, Settings, side  # noqa: E402
from training.gradients import default_precision  # noqa: E402
from training.provenance import commit, device_name, versions  # noqa: E402
from utils.errors import Parser, UserError, run_script  # noqa: E402
from utils.files import write_atomically, write_json  # noqa: E402
from utils.flags import cores, device, number, positive, whole  # noqa: E402
from utils.tables import counted, markdown  # noqa: E402

BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"
"""Lines of a document between which the tables go."""


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts (all)")
    what.add_argument("--skip", choices=PARTS, nargs="+", default=[], help="not these parts")
    what.add_argument("--cells", default="", metavar="TEXT", help="cells whose name contains TEXT (all)")
    what.add_argument("--full", action="store_true", help="every combination, after the cells that are wanted most")
    what.add_argument("--plan", action="store_true", help="say what would be done, and how long it might take")
    what.add_argument("--minutes", type=number(0.1, 1e4), metavar="X", help="for each part (by part; see --plan)")
    what.add_argument("--batch-size", type=positive, default=16, metavar="N", help="of training (16)")
    what.add_argument("--small", action="store_true", help="tiny pictures, few cells: a trial of the command itself")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="(runs/gpu-HASH, of the code)")
    output.add_argument("--scenes", type=Path, metavar="DIR", help="drawn at first use (runs/benchmark-scenes)")
    output.add_argument("--document", type=Path, metavar="FILE", help="put the tables into it, between its two marks")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--workers", type=whole, default=min(8, cores() - 1), metavar="N", help="(%(default)s)")
    machine.add_argument("--device", type=device, metavar="DEV", help="(cuda; without a GPU --plan)")
    args = parser.parse_args()
    if args.device is None and torch.cuda.is_available():
        args.device = device("cuda")
    if args.device is not None and args.device.type == "cpu" and not args.small:
        raise UserError("--device cpu: it would take days; add --small")
    if args.document is not None:
        split(args.document)
    small = "-small" if args.small else ""
    args.out = args.out or Path(f"runs/gpu-{code()}{small}")
    args.scenes = args.scenes or Path(f"runs/benchmark-scenes{small}")
    return args


def main() -> None:
    args = parse_args()
    asked = (Settings.in_small if args.small else Settings)(
        device=str(args.device or "cuda"), batch_size=min(args.batch_size, 2) if args.small else args.batch_size,
        precision="bf16" if args.device is None else default_precision(args.device), workers=args.workers,
        scenes_in=args.scenes,
    )  # fmt: skip
    parts = {name: chosen(name, asked, args) for name in PARTS if name in args.only and name not in args.skip}
    if not any(parts.values()):
        raise UserError(f"--cells {args.cells}: no cell is called so; --plan lists them")
    if args.plan or args.device is None:
        print(plan(parts, args))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the process at work ends too
    args.out.mkdir(parents=True, exist_ok=True)
    kept = {name: Kept(args.out / f"{name}.json", name, asked) for name in PARTS}
    for name, cells in parts.items():
        left = {cell: what for cell, what in cells.items() if cell not in kept[name].found}
        if left and PARTS[name].scenes:
            asked.scene_folder()
        for line in measured(name, left, asked, kept[name], args.out / f"{name}.log", args.minutes):
            print(line, flush=True)
    text = tables(list(kept.values()), asked)
    write_atomically(args.out / "gpu.md", lambda file: file.write(text.encode()))
    print("\n" + text)
    if args.document is not None:
        before, after = split(args.document)
        write_atomically(args.document, lambda file: file.write(f"{before}\n{text}\n{after}".encode()))
    failed = sum(cell in kept[name].failed for name, cells in parts.items() for cell in cells)
    if failed:
        raise UserError(f"{counted(failed, 'cell')} failed, see above; the same command tries again")


def chosen(name: str, asked: Settings, args: argparse.Namespace) -> dict[str, Cell]:
    """A part's cells that were asked for."""
    return {cell: what for cell, what in PARTS[name].cells(asked, args.full).items() if args.cells in cell}


def plan(parts: dict[str, dict[str, Cell]], args: argparse.Namespace) -> str:
    """Every cell, and what the parts come to."""
    lines = [f"{name}: {cell}" for name, cells in parts.items() for cell in cells]
    minutes = {name: PARTS[name].estimated(cells) for name, cells in parts.items()}
    rows = [[name, str(len(cells)), f"{minutes[name]:.0f}", f"{args.minutes or PARTS[name].minutes:g}"]
            for name, cells in parts.items()]  # fmt: skip
    rows.append(["all", str(len(lines)), f"{sum(minutes.values()):.0f}", "-"])
    why = "" if args.device is not None else "There is no GPU here, so nothing was measured. "
    text = f"{why}On one GPU this would be done; the minutes are a guess.\n"
    return "\n".join([*lines, "", text, markdown(("part", "cells", "minutes, estimated", "at most"), rows)])


class Kept:
    """A part's JSON: how it was made, what was found (cell -> figures), and which cells failed, and why.

    Raises `UserError` when it is there and was made otherwise.
    """

    def __init__(self, path: Path, part: str, asked: Settings) -> None:
        self.path, self.part = path, part
        how = dataclasses.asdict(asked)
        del how["scenes_in"]
        self.made = {"code": code(), "device": device_name(torch.device(asked.device)),
                     "torch": str(torch.__version__), "settings": json.loads(json.dumps(how))}  # fmt: skip
        there = json.loads(path.read_text()) if path.exists() else {}
        before, now = (flat(made) for made in (there, self.made))
        for key, value in now.items() if there else ():
            if before.get(key) != value:
                raise UserError(f"{path}: {key} was {before.get(key)}, is {value}; name another --out, or remove it")
        self.found: dict[str, Found] = there.get("found", {})
        self.failed: dict[str, str] = there.get("failed", {})

    def write(self) -> None:
        more = {"commit": commit(), "command": shlex.join(["python", *sys.argv])}
        more |= {"versions": versions(), "cuda": torch.version.cuda}
        write_json(self.path, {"part": self.part} | self.made | more | {"found": self.found, "failed": self.failed})


def flat(made: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made.items() if key != "settings"} | made.get("settings", {})


def measured(
    part: str, cells: dict[str, Cell], asked: Settings, kept: Kept, log: Path, minutes: float | None
) -> Iterator[str]:
    """Measures the cells one after the other, in a process that is begun anew when it dies or hangs. Yields what is
    said of each; `kept` is written after each."""
    minutes = minutes or PARTS[part].minutes
    end, left, total = time.monotonic() + 60 * minutes, dict(cells), len(cells)
    while left and time.monotonic() < end:
        worker = Worker(part, left, asked, log)
        try:
            while left and time.monotonic() < end:
                name, rest = next(iter(left)), end - time.monotonic()
                limit = 60 * PARTS[part].limit
                kept.failed.pop(name, None)
                try:
                    found = worker.answer(min(limit, rest))
                except TimeoutError:
                    if rest < limit:
                        end = time.monotonic()
                        break
                    kept.failed[name] = f"not done after {PARTS[part].limit:g} minutes"
                except EOFError:
                    kept.failed[name] = worker.last_words()
                else:
                    kept.found[name] = left[name] | found
                kept.write()
                del left[name]
                said = PARTS[part].said(kept.found[name]) if name in kept.found else f"FAILED: {kept.failed[name]}"
                yield f"{part} {total - len(left)}/{total}, {name}: {said}"
                if name in kept.failed:
                    break
        finally:
            worker.stop(grace=0 if left else 30)
    if left:
        yield f"{part}: {minutes:g} minutes are over, {counted(len(left), 'cell')} left; the same command goes on"


class Worker:
    """A process that measures cells of a part in order, in a session of its own; what it says goes to a log."""

    def __init__(self, part: str, cells: dict[str, Cell], asked: Settings, log: Path) -> None:
        spawn = multiprocessing.get_context("spawn")  # CUDA cannot be forked
        self.answers, theirs = spawn.Pipe(duplex=False)
        self.log, self.began = log, log.stat().st_size if log.exists() else 0
        self.process = spawn.Process(target=work, args=(part, cells, asked, log, theirs))
        self.process.start()
        theirs.close()

    def answer(self, seconds: float) -> Found:
        """What was found in the next cell. Raises TimeoutError, and EOFError when the process is dead."""
        if not self.answers.poll(seconds):
            raise TimeoutError
        return self.answers.recv()

    def last_words(self) -> str:
        """The end of the log of a process that died: a line."""
        self.process.join()
        with open(self.log, errors="replace") as file:
            file.seek(self.began)
            lines = [line.strip() for line in file if line.strip()]
        status = f"killed by signal {-self.process.exitcode}; " if self.process.exitcode < 0 else ""
        return f"{status}{lines[-1][:300] if lines else 'it said nothing'} ({self.log})"

    def stop(self, grace: float) -> None:
        """After so many seconds in which it may end, it is killed with everything that it started."""
        self.process.join(grace)
        if self.process.exitcode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no session of its own yet
                self.process.kill()
            self.process.join()
        self.answers.close()


def work(part: str, cells: dict[str, Cell], asked: Settings, log: Path, answers: Connection) -> None:
    """The worker's life."""
    os.setsid()
    with open(log, "ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout.reconfigure(line_buffering=True)
    device(asked.device)
    run_script(partial(answer_all, part, cells, asked, answers))


def answer_all(part: str, cells: dict[str, Cell], asked: Settings, answers: Connection) -> None:
    for name, cell in cells.items():
        print(f"\n== {part}: {name}", flush=True)
        began = time.monotonic()
        found = PARTS[part].measure(cell, asked)
        answers.send(found | {"took": round(time.monotonic() - began, 1)})
        gc.collect()
        if "torch._dynamo" in sys.modules:  # else a function that has met many shapes would no longer be compiled
            torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def tables(parts: list[Kept], asked: Settings) -> str:
    """Markdown: how it was measured, a table a part, and what failed."""
    made = parts[0].made
    now = (commit() or "unknown")[:7]
    lines = [
        f"{made['device']}, torch {made['torch']}, commit `{now}`, code `{made['code']}`. Training: source at "
        f"{side(asked.source_size)}, target at {side(asked.size)}, batches of {asked.batch_size} where no other is "
        f"named, {asked.workers} worker(s) a stream; medians of {asked.rounds} rounds of {asked.steps} steps after "
        f"{asked.warm} to warm up."
    ]
    for part in parts:
        if part.found or part.failed:
            lines.append(f"### {PARTS[part.part].title}")
        if part.found:
            lines.append(PARTS[part.part].table(list(part.found.values()), asked))
        lines += [f"- failed: {name}: {why}" for name, why in part.failed.items()]
    return "\n\n".join(lines) + "\n"


@lru_cache
def code() -> str:
    """A hash of all that figures come from: the code, less documents and the tests that need no GPU."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")] + [ROOT / "benchmarks"]
    files = [*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py")), ROOT / "tests/test_gpu.py"]
    found = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:7]


def split(document: Path) -> tuple[str, str]:
    """The document up to the first mark and from the second one on, both with their marks. Raises `UserError`."""
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"--document {document}: expected a file with the lines {BEGIN} and {END}")
    return before + begin, end + after


if __name__ == "__main__":
    run_script(main)
