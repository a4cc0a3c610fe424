"""Several processes compute what one computes. Two of them, on gloo; SyncBatchNorm needs GPUs."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import assert_same_runs, one_line_error, write_cityscapes, write_gta5
from processes import INTERRUPTED, OPTIMIZERS, ROOT, commands
from soak import ENVIRONMENT

from datasets import cityscapes
from datasets.stream import Share, evaluation_loader
from training.checkpoint import sha256

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SCRIPTS = list(commands("", "", ""))


def run(command):
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(home, stdout and stderr of two processes): every script by one process and by two."""
    home = tmp_path_factory.mktemp("distributed")
    game = write_gta5(home / "gta5", count=10)
    city = write_cityscapes(home / "cityscapes", counts=(("train", 8), ("val", 11)))
    labeller = home / "labeller"
    small = [*commands(game, city, "")["train_cityscapes"], "--max-steps", "1", "--run-dir", labeller]
    status, _, err = run([sys.executable, "tests/scripts.py", "train_cityscapes.py", *small])
    assert status == 0, err
    program = ["tests/processes.py", game, city, labeller / "checkpoint_last.pt"]
    status, _, err = run([sys.executable, *program, home / "one"])
    assert status == 0, err[-3000:]
    status, out, err = run([*TORCHRUN, *program, home / "two"])
    assert status == 0, err[-3000:]
    return home, out, err


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_first_steps_gradients_are_those_of_one_process_with_the_whole_batch(world, name):
    home, _, _ = world
    (one,) = [torch.load(path) for path in home.glob(f"one/{name}-gradients-*.pt")]
    both = [torch.load(home / f"two/{name}-gradients-{rank}.pt") for rank in range(2)]
    assert len(one) == OPTIMIZERS.get(name, 1)
    for rank in both:
        for expected, found in zip(one, rank, strict=True):
            largest = max(gradient.abs().max() for gradient in expected)
            assert largest > 0
            for a, b in zip(expected, found, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * float(largest))
    for a, b in zip(both[0][0], both[1][0], strict=True):
        assert torch.equal(a, b)  # else the ranks' networks would drift apart


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_evaluation_equals_one_process_exactly(world, name, script, tmp_path):
    home, _, _ = world
    result = json.loads((home / f"two/{name}/result.json").read_text())
    done = script("eval", home / f"two/{name}/checkpoint_last.pt", "--json", tmp_path / "one.json", "--device", "cpu")
    assert done.status == 0, done.err
    (one,) = json.loads((tmp_path / "one.json").read_text())["evaluations"]
    for figure in ("miou", "accuracy", "mean_class_accuracy", "iou", "entropy", "pictures"):
        assert result[figure] == one[figure], figure


@pytest.mark.slow
def test_only_the_first_rank_writes_and_prints(world):
    home, out, _ = world
    for name in SCRIPTS:
        assert len(list((home / "two" / name / "tensorboard").iterdir())) == 1
        assert out.count(f"run {home / 'two' / name}: ") == 1
        lines = (home / "two" / name / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == len((home / "one" / name / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_exactly(world, name):
    home, out, err = world
    assert err.count(f"{name} stopped 0 with 99") == err.count(f"{name} stopped 1 with 99") == 2
    assert f"To continue: torchrun --nproc-per-node=2 {name.partition('-')[0]}.py" in out
    assert_same_runs(home / f"two/{name}", home / f"two/{name}-interrupted")


@pytest.mark.slow
def test_a_round_waits_for_the_network_that_labels_for_it(world):
    """Else a rank reads an earlier checkpoint, and labels by itself."""
    home, _, _ = world
    labels = list((home / "two/rounds/round-2/pseudo-labels").iterdir())
    assert len(labels) == 1
    summary = json.loads((labels[0] / "summary.json").read_text())
    assert summary["made_from"]["labeller_sha256"] == [sha256(home / "two/rounds/round-1/checkpoint_last.pt")]


@pytest.mark.slow
def test_another_number_of_processes_is_told(world, script):
    """On a CPU batch normalisation sees a process's share, so it changes the mathematics."""
    home, _, _ = world
    run_dir = home / "two/train_cityscapes"
    flags = commands(home / "gta5", home / "cityscapes", "")["train_cityscapes"]
    resumed = ("train_cityscapes", *flags, "--epochs", 2, "--run-dir", run_dir, "--resume")
    assert "the number of processes was 2, is 1" in one_line_error(script(*resumed))
    done = script(*resumed, "--allow-changes")
    assert done.status == 0, done.err


@pytest.mark.slow
def test_a_users_mistake_is_said(world):
    home, _, _ = world
    command = [*TORCHRUN, "tests/scripts.py", "train_cityscapes.py"]
    flags = [*commands("", home / "cityscapes", "")["train_cityscapes"], "--batch-size", "5", "--run-dir", home / "odd"]
    status, _, err = run([*command, *flags])
    assert status != 0
    assert "error: rank 0: --batch-size 5: not divisible by 2 process(es)" in err
    assert not (home / "odd").exists()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shares_are_all_draws_once(ranks):
    shares = [list(Share(12, 36, 6, rank, ranks)) for rank in range(ranks)]
    assert all(len(share) == len(Share(12, 36, 6, 0, ranks)) for share in shares)
    own = 6 // ranks
    for step in range(4):  # each step's batch is the same, whoever takes which part
        batch = [draw for share in shares for draw in share[step * own : (step + 1) * own]]
        assert batch == list(range(12 + 6 * step, 18 + 6 * step))


def test_evaluation_batches_are_those_of_one_process(tmp_path):
    data = cityscapes(write_cityscapes(tmp_path, counts=(("val", 11),)), "val", (48, 32))
    whole = [images for images, _ in evaluation_loader(data, 0)]
    assert [len(images) for images in whole] == [4, 4, 3]
    for rank in range(2):
        shared = [images for images, _ in evaluation_loader(data, 0, share=(rank, 2))]
        assert all(torch.equal(a, b) for a, b in zip(shared, whole[rank::2], strict=True))
