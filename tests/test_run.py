"""The pieces of a run: its counters, the names in checkpoints, the oracle."""

import json
import shlex
from types import SimpleNamespace

import pytest
from conftest import SMALL, SOURCE, one_line_error, upper

from training.archive import numbered
from training.checkpoint import load_checkpoint
from training.evaluator import Evaluator
from training.journal import oracle
from training.progress import Progress


@pytest.mark.parametrize(
    ("pictures", "epochs", "max_steps", "steps_per_epoch", "total"),
    [(10, 3, None, 2, 6), (10, None, 7, 2, 7), (10, 3, 5, 2, 5), (3, 2, None, 1, 2), (10, None, None, 2, 100)],
)
def test_a_run_is_planned_in_whole_batches(pictures, epochs, max_steps, steps_per_epoch, total):
    progress = Progress.planned(pictures, 4, epochs, max_steps)
    assert (progress.steps_per_epoch, progress.total_steps) == (steps_per_epoch, total)


def test_a_last_epoch_may_be_shorter():
    progress = Progress(total_steps=7, steps_per_epoch=2, step=6, epoch=4, closed=3)
    assert (progress.epochs, progress.first_step, progress.last_step) == (4, 6, 7)
    assert not progress.all_closed
    assert not progress.waits_for_evaluation
    progress.step = 7
    assert progress.done
    assert progress.waits_for_evaluation
    assert str(progress) == "step 7 of 7 (epoch 4)"
    progress.closed = 4
    assert progress.all_closed


def test_with_other_epochs_one_stays_open_until_it_is_evaluated():
    progress = Progress(total_steps=30, steps_per_epoch=10, step=20, epoch=5, closed=4)
    progress.recount(evaluated=False)
    assert progress.closed == 1
    progress.recount(evaluated=True)
    assert progress.closed == 2


def test_lists_are_numbered_after_their_first_word():
    named = numbered({"optimizer": 1, "discriminator": [2, 3], "discriminator_schedule": [4, 5], "none_optimizer": []})
    assert named == {
        "optimizer": 1,
        "discriminator0": 2,
        "discriminator1": 3,
        "discriminator0_schedule": 4,
        "discriminator1_schedule": 5,
    }


def test_the_oracle_is_the_first_of_the_best_epochs_with_labels():
    history = [{"epoch": n, "target": {"miou": miou}} for n, miou in enumerate((None, 0.2, 0.4, 0.4, 0.1))]
    assert oracle(history) is history[2]
    assert oracle(history[:1]) is None
    assert oracle([]) is None


def test_a_run_without_a_name_is_called_as_reports_call_its_method(script, game, city, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def made(name, *more):
        flags = () if name == "train_cityscapes" else ("--gta5", game, *SOURCE)
        done = script(name, *flags, "--cityscapes", city, *SMALL, "--max-steps", 1, *more)
        assert done.status == 0, done.err
        return {path.name for path in (tmp_path / "runs").iterdir()}

    found = made("train_gta5", "--jitter", "--blur")
    assert found == {"source-only-jitter-blur-tiny-narrow-seed0"}
    assert made("train_gta5", "--jitter", "--blur") - found == {"source-only-jitter-blur-tiny-narrow-seed0-2"}
    found = made("train_fda", "--seed", 1)
    assert "fda-beta-0.01-tiny-narrow-seed1" in found
    assert made("train_fda", "--beta", 0.1, 0.2) - found == {"fda-tiny-narrow-seed0"}
    assert sorted(path.name for path in (tmp_path / "runs/fda-tiny-narrow-seed0").iterdir()) == ["beta-0.1", "beta-0.2"]
    found = made("train_cityscapes", "--model", "bisenet")
    assert "upper-bound-seed0" in found
    teacher = ("--teacher-checkpoint", tmp_path / "runs/fda-beta-0.01-tiny-narrow-seed1/checkpoint_last.pt")
    assert made("train_dacs", *teacher) - found == {"dacs-frozen-teacher-tiny-narrow-seed0"}


@pytest.mark.parametrize("again", [(), ("--resume",)])
def test_the_command_to_continue_names_the_run_once(script, city, tmp_path, again):
    command = upper(city, tmp_path / "run", *again, "--stop-after", 0, "--scales", "1,2")
    done = script(*command)
    assert done.status == 75, done.err
    flags = [str(flag) for flag in command[1:] if flag not in ("--resume", "--run-dir", tmp_path / "run")]
    expected = ["python", "train_cityscapes.py", *flags, "--run-dir", str(tmp_path / "run"), "--resume"]
    assert shlex.split(done.out.split("To continue: ")[1].splitlines()[0]) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"), [("train_cityscapes", ()), ("train_adversarial", ("--discriminator", "depthwise"))]
)
def test_room_for_checkpoints_is_asked_for_at_the_start(script, game, city, tmp_path, monkeypatch, name, more):
    flags = () if name == "train_cityscapes" else ("--gta5", game, *SOURCE, *more)
    command = (name, *flags, "--cityscapes", city, *SMALL, "--model", "bisenet", "--max-steps", 1, "--no-cache")
    done = script(*command, "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    last, best = (tmp_path / "run" / f"checkpoint_{kind}.pt" for kind in ("last", "best"))
    taken = 3 * last.stat().st_size + best.stat().st_size  # while the last is written beside the two before it

    def started(free):
        monkeypatch.setattr("training.archive.shutil.disk_usage", lambda place: SimpleNamespace(free=free))
        return script(*command, "--run-dir", tmp_path / "runs/next")

    said = one_line_error(started(0.95 * taken))
    assert f"checkpoints take up to {taken / 1e9:.1f}" in said
    assert f"and {tmp_path} has " in said
    assert "make room, or name a directory on another disk" in said
    assert not (tmp_path / "runs").exists()
    assert started(taken).status == 0


def test_variables_name_the_roots_that_no_flag_names(script, game, city, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES", str(city))
    monkeypatch.setenv("GTA5", str(tmp_path / "none"))
    command = ("train_gta5", *SMALL, *SOURCE, "--max-steps", 1, "--run-dir")
    assert "none" in one_line_error(script(*command, tmp_path / "a"))
    done = script(*command, tmp_path / "b", "--gta5", game)  # a flag wins
    assert done.status == 0, done.err
    arguments = json.loads((tmp_path / "b/config.json").read_text())["arguments"]
    assert (arguments["gta5"], arguments["cityscapes"]) == (str(game), str(city))
    monkeypatch.delenv("CITYSCAPES")
    assert "--cityscapes DIR (or " in one_line_error(script(*command, tmp_path / "c", "--gta5", game))
    monkeypatch.setenv("CITYSCAPES", str(city))
    monkeypatch.setenv("GTA5", str(game))
    done = script("datasets.check")
    assert done.status == 0, done.err
    assert "Cityscapes train: 4 pictures" in done.out


def test_the_best_checkpoint_is_that_of_the_best_epoch(script, city, tmp_path, monkeypatch):
    mious, measure = iter((0.5, 0.2)), Evaluator.measure

    def falling(self, networks):
        found = measure(self, networks)
        found["target"]["miou"] = next(mious)
        return found

    monkeypatch.setattr(Evaluator, "measure", falling)
    assert script(*upper(city, tmp_path / "run")).status == 0
    best, last = (load_checkpoint(tmp_path / f"run/checkpoint_{name}.pt") for name in ("best", "last"))
    assert (best["epoch"], best["step"], last["epoch"]) == (1, 2, 2)
