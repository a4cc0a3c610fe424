"""Kills training scripts at random moments and compares what they end with. Used by the tests, and by hand for long:

    python tests/soak.py --kills 30 --ranks 2 --model tiny --seconds 1

Every script runs once undisturbed; then once more, killed with SIGKILL after a random time, resumed, killed again, ...
until the kills are used up. Half of them end all its processes at once, the others one alone: the main process, a
loader worker, with --ranks a rank or torchrun. Checkpoints are written after every step, so many kills meet a file
being written. Both runs must end alike, bit for bit: weights, optimizers, metrics, logged values.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import SMALL, SOURCE, assert_same_runs, write_cityscapes, write_gta5  # noqa: E402

from utils.errors import Parser  # noqa: E402

FADA = ("--discriminator", "class", "--level", "feature")
INTRA = ("--size", "64x32", "--input", "entropy", "--discriminator", "depthwise", "--intra")
ROUNDS = ("--rule", "cbst", "--rounds", 2, "--continue", "--max-class-share", 1)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def commands(game: Path, city: Path, labeller: Path, model: str = "tiny") -> dict[str, list[str]]:
    """What each script is called with, less --run-dir; after a dash, for another of a script's methods."""
    common = [*SMALL, "--model", model, "--workers", 1, "--epochs", 4, "--checkpoint-minutes", 0, "--cityscapes", city]
    both = [*common, *SOURCE, "--gta5", game]
    extensions = ["--rare-classes", "--lambda-mask", 1, "--beta", 0.05]
    return {
        name: [str(part) for part in [f"{name.partition('-')[0]}.py", *flags]]
        for name, flags in {
            "train_cityscapes": common,
            "train_gta5": [*both, "--jitter", "--source-holdout", 0.2],
            "train_adversarial": [*both, "--size", "64x32", "--level", "multi", "--discriminator", "depthwise"],
            "train_adversarial-FADA": [*both, *FADA],
            "train_adversarial-IntraDA": [*common, *INTRA, labeller],
            "train_fda": [*both, "--beta", 0.05, 0.09, "--blur"],
            "train_pseudo_labels": [*both, "--labeller", labeller, *ROUNDS],
            "train_dacs": [*both, *extensions, "--teacher-checkpoint", labeller],
            "train_sac": [*both, "--views", 2, "--decay", 0.9, "--confidence", 0, "--init", labeller],
        }.items()
    }


def start(command: Sequence[str], run_dir: Path, *more: str, ranks: int = 1, **environment: str) -> subprocess.Popen:
    """The script as a process of its own, or as several below torchrun; its output is kept beside the run directory."""
    launcher = [*TORCHRUN, f"--nproc-per-node={ranks}"] if ranks > 1 else [sys.executable]
    with open(run_dir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [*launcher, "tests/scripts.py", *command, "--run-dir", str(run_dir), *more],
            cwd=ROOT, env=ENVIRONMENT | environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def finished(command: Sequence[str], run_dir: Path, *more: str, ranks: int = 1) -> None:
    """Runs to the end. Raises AssertionError, with what the script said, when it fails."""
    status = start(command, run_dir, *more, ranks=ranks).wait()
    assert status == 0, run_dir.with_suffix(".log").read_text()[-3000:]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live, in their order."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def family(pid: int, ranks: int = 1) -> dict[str, list[int]]:
    """The processes of a script, by what they are."""
    mains = children(pid) if ranks > 1 else [pid]
    workers = [worker for main in mains for worker in children(main)]
    return {"worker": workers} | ({"launcher": [pid], "rank": mains} if ranks > 1 else {"main": mains})


def killed_and_resumed(
    command: Sequence[str],
    run_dir: Path,
    kills: int,
    moment: Callable[[], float],
    number: int = signal.SIGKILL,
    ranks: int = 1,
    whom: Callable[[dict[str, list[int]]], str] = lambda processes: "all",
) -> Counter[str]:
    """Starts the run, sends a signal to its processes `moment()` seconds after it wrote a checkpoint of its own,
    resumes, and so on; at last lets it finish. whom: which kind of process it is sent to, one of them; "all" to all of
    them at once. Returns how often a signal met a run that was at work, by whom it was sent to."""
    met: Counter[str] = Counter()
    process = None
    for _ in range(kills):
        if process is None:
            before, process = checkpoints(run_dir), start(command, run_dir, "--resume", ranks=ranks)
        while process.poll() is None and checkpoints(run_dir) == before:
            time.sleep(0.05)
        time.sleep(moment())
        processes = family(process.pid, ranks)
        everyone = [pid for kind in processes.values() for pid in kind]
        kind = whom({kind: found for kind, found in processes.items() if found})
        if process.poll() is None:
            for pid in everyone if kind == "all" else processes[kind][-1:]:
                with contextlib.suppress(ProcessLookupError):  # it ends with another
                    os.kill(pid, number)
            met[kind] += 1
        if kind == "worker":  # the run goes on without it
            before = checkpoints(run_dir)
            continue
        process.wait()
        while any(is_at_work(pid) for pid in everyone):
            time.sleep(0.05)
        process = None
    if process is not None:
        assert process.wait() == 0, run_dir.with_suffix(".log").read_text()[-3000:]
    finished(command, run_dir, "--resume", ranks=ranks)
    return met


def is_at_work(pid: int) -> bool:
    """Whether a process is there, and not only its name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def checkpoints(run_dir: Path) -> set[tuple[str, int]]:
    """The files that are there, and when they were written."""
    found = set()
    for path in run_dir.rglob("checkpoint_last.pt"):
        with contextlib.suppress(FileNotFoundError):  # being replaced
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each script (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--model", default="bisenet", metavar="NAME", help="tiny: small checkpoints (bisenet)")
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="train_gta5 and the like (all)")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes below torchrun (1: without it)")
    parser.add_argument("--seconds", type=float, default=4, metavar="X", help="longest time until a kill (4)")
    args = parser.parse_args()
    rng = random.Random(args.seed)

    def whom(processes: dict[str, list[int]]) -> str:
        return "all" if rng.random() < 0.5 else rng.choice(sorted(processes))

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        game = write_gta5(home / "gta5", count=20)
        city = write_cityscapes(home / "cityscapes", counts=(("train", 10), ("val", 4)))
        labeller = home / "labeller"
        all_commands = commands(game, city, labeller / "checkpoint_last.pt", args.model)
        finished([*all_commands["train_cityscapes"], "--max-steps", "1"], labeller)
        for name in args.only or all_commands:
            command = [*all_commands[name], "--batch-size", str(2 * args.ranks), "--epochs", str(max(4, args.kills))]
            finished(command, home / f"{name}-straight", ranks=args.ranks)
            met = killed_and_resumed(
                command, home / f"{name}-killed", args.kills, lambda: rng.uniform(0, args.seconds), ranks=args.ranks,
                whom=whom,
            )  # fmt: skip
            assert_same_runs(home / f"{name}-straight", home / f"{name}-killed")
            killed = ", ".join(f"{kind} {count}" for kind, count in sorted(met.items()))
            print(
                f"{name}, {args.ranks} rank(s): {sum(met.values())} of {args.kills} kills met it at work ({killed}); "
                "resumed, the end equal bit for bit",
                flush=True,
            )


if __name__ == "__main__":
    main()
