"""What happens to the processes around a run's main one: torchrun, its ranks, loader workers, whoever reads the output.

Every test starts processes.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import assert_same_runs, upper, write_cityscapes, write_gta5
from soak import ENVIRONMENT, ROOT, children, commands, finished, start

from utils.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

LONG = ("--max-steps", "100000", "--epochs", "100000", "--batch-size", "4", "--eval-every", "1000")
"""A run that only a signal ends, its last checkpoint the signal's."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("processes")
    game = write_gta5(home / "gta5", count=12)
    city = write_cityscapes(home / "cityscapes", counts=(("train", 12), ("val", 3)))
    scripts = commands(game, city, home / "labeller/checkpoint_last.pt")
    finished([*scripts["train_cityscapes"], "--max-steps", "1"], home / "labeller")
    return home, {name: [*command, "--checkpoint-minutes", "1000"] for name, command in scripts.items()}


def log_of(run_dir: Path) -> str:
    return run_dir.with_suffix(".log").read_text()


def wait_for(process: subprocess.Popen, run_dir: Path, there, seconds: float = 60) -> None:
    """Until there() is true; fails where the process ends before, or nothing comes."""
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, log_of(run_dir)
        assert time.monotonic() < end, log_of(run_dir)
        time.sleep(0.05)


def at_work(run_dir: Path):
    return lambda: bool(list(run_dir.glob("tensorboard/*")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number"), [("all", "SIGTERM"), ("rank 0", "SIGTERM"), ("rank 1", "SIGTERM"), ("launcher", "SIGKILL")]
)
def test_a_signal_to_torchrun_to_a_rank_or_to_all_leaves_a_checkpoint(world, whom, number):
    home, scripts = world
    run_dir = home / f"{whom}-{number}"
    process = start([*scripts["train_gta5"], *LONG, "--no-cache"], run_dir, ranks=2, SECONDS_A_PICTURE="0.4")
    try:
        wait_for(process, run_dir, at_work(run_dir))
        time.sleep(2)
        ranks = children(process.pid)
        told = {
            "launcher": [process.pid],
            "rank 0": [ranks[0]],
            "rank 1": [ranks[1]],
            "all": [*ranks, process.pid],
        }
        for target in told[whom]:  # a scheduler signals all; torchrun then passes on to its ranks what they have
            os.kill(target, getattr(signal, number))
            time.sleep(0.2)
        process.wait(30)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < end:
            time.sleep(0.1)
        said = log_of(run_dir)
        assert (run_dir / "checkpoint_last.pt").exists(), said
        assert "To continue: torchrun --nproc-per-node=2" in said
        assert ("torchrun is gone" if number == "SIGKILL" else f"stopped by {number}") in said
        assert not (run_dir / ".lock").exists()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("during", ["preparing", "labelling"])
def test_ranks_stop_in_long_work_that_one_of_them_does_alone(world, during):
    home, scripts = world
    run_dir = home / during
    command = {
        "preparing": [*scripts["train_gta5"], *LONG, "--cache", str(home / "cache")],
        "labelling": [*scripts["train_pseudo_labels"], *LONG, "--no-cache"],
    }[during]
    process = start(command, run_dir, ranks=2, SECONDS_A_PICTURE="1.5")
    try:
        began = {
            "preparing": lambda: "preparing images" in log_of(run_dir),
            "labelling": lambda: (run_dir / "round-1/config.json").exists(),
        }[during]
        wait_for(process, run_dir, began)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(25)
        assert "stopped by SIGTERM after step 0" in log_of(run_dir), log_of(run_dir)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_was_told_to_outlive_its_terminal_does(world):
    """As nohup tells it."""
    home, scripts = world
    run_dir = home / "nohup"
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(scripts["train_gta5"], run_dir)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    wait_for(process, run_dir, at_work(run_dir))
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(60) == 0, log_of(run_dir)


@pytest.mark.slow
def test_a_process_that_fails_waits_for_no_worker(world):
    """Whatever the mistake, and though loader workers heed no SIGTERM while a run is at work."""
    home, scripts = world
    code = """
import sys
sys.path[:0] = [".", "tests"]
import tiny, train_gta5
from training.run import Run
from utils.errors import run_script

def log(self, **values):
    raise ValueError("a mistake in the code")

Run.log = log
sys.argv = sys.argv[1:]
run_script(train_gta5.main)
"""
    command = [*scripts["train_gta5"], "--workers", "2", "--no-cache", *LONG, "--run-dir", home / "fails"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: a mistake in the code")
    assert time.monotonic() - began < 50


@pytest.mark.slow
def test_a_run_goes_on_when_a_loader_worker_is_killed(world):
    home, scripts = world
    command = [*scripts["train_gta5"], "--batch-size", "2", "--max-steps", "60", "--epochs", "30", "--no-cache"]
    finished(command, home / "straight")
    run_dir = home / "worker"
    process = start(command, run_dir)
    wait_for(process, run_dir, lambda: at_work(run_dir)() and children(process.pid))
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(120) == 0, log_of(run_dir)
    assert "a loader process was lost" in log_of(run_dir)
    assert_same_runs(home / "straight", run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["reader gone", "disk full"])
def test_a_run_does_not_end_because_nobody_takes_what_it_prints(world, how):
    home, scripts = world
    run_dir = home / how
    command = [sys.executable, "tests/scripts.py", *scripts["train_cityscapes"], "--run-dir", run_dir]
    if how == "disk full":
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
        status, said = done.returncode, done.stderr
        assert "error: what was printed is lost (No space left on device)" in said
    else:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        process.stdout.readline()
        process.stdout.close()
        said, status = process.stderr.read(), process.wait()
        assert "note: what is printed cannot be written (Broken pipe); going on" in said
    assert status == {"reader gone": 0, "disk full": 1}[how]
    assert "Traceback" not in said
    assert (run_dir / "result.json").exists()


def test_an_evaluation_is_printed_once_it_is_kept(script, city, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("no room")

    command = upper(city, tmp_path / "run", "--epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr("training.archive.save_checkpoint", full)
        done = script(*command)
    assert done.status == 2
    assert "epoch 1" not in done.out
    assert "epoch 1" in script(*command, "--resume").out
