"""What docs/reliability.md promises: kills, signals, full disks, torn files, two processes, bad files in hour nine.

Long, since it is a list: a promise a test, in the order of the document.
"""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    assert_same_runs,
    logged,
    one_line_error,
    same,
    source_only,
    upper,
    write_cityscapes,
    write_gta5,
)
from PIL import Image
from soak import ENVIRONMENT, ROOT, commands, finished, killed_and_resumed, start
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils._python_dispatch import TorchDispatchMode

from adaptation.adversarial import GANS, TARGET, View
from adaptation.class_level import soft_labels
from adaptation.entropy import charbonnier_entropy_loss, class_prior_loss, min_entropy_loss
from adaptation.losses import LOSSES, cross_entropy, segmentation_loss, weighted_by_pixel
from adaptation.regularisation import regularised
from adaptation.sac import confident_focal_loss
from datasets import cityscapes
from datasets.geometry import Geometry
from datasets.stream import Replaced, TrainingStream
from models import DISCRIMINATORS, SEGMENTERS, build_discriminator, build_segmenter
from training import checkpoint as checkpoints
from training.adversaries import gan_for
from training.board import NoBoard
from training.checkpoint import checksum, load_checkpoint, load_newest, save_checkpoint
from training.lock import STALE_SECONDS, DirectoryLock
from training.run import Run
from utils.errors import UserError
from utils.files import write_atomically
from utils.interruption import Interruption, Stop


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, commands, and a straight adversarial run to compare with."""
    home = tmp_path_factory.mktemp("reliability")
    game = write_gta5(home / "gta5", count=12)
    city = write_cityscapes(home / "cityscapes", counts=(("train", 6), ("val", 3)))
    command = commands(game, city, home / "none")["train_adversarial"]
    finished(command, home / "straight")
    return home, command


def test_deterministic_is_asked_of_torch_and_changes_nothing_on_a_cpu(script, city, tmp_path):
    try:
        assert script(*upper(city, tmp_path / "asked", "--max-steps", 2, "--deterministic")).status == 0
        assert torch.are_deterministic_algorithms_enabled()
        assert script(*upper(city, tmp_path / "plain", "--max-steps", 2)).status == 0
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    asked, plain = (load_checkpoint(tmp_path / name / "checkpoint_last.pt") for name in ("asked", "plain"))
    assert same(asked["weights"], plain["weights"])


@pytest.mark.slow
def test_training_uses_no_operation_that_deterministic_refuses_on_a_gpu():
    """The list of `torch.use_deterministic_algorithms`, as far as a network might touch it; bilinear interpolation is
    on it, and torch itself computes it otherwise then."""
    refused = ("adaptive_avg_pool", "adaptive_max_pool", "reflection_pad", "grid_sampl", "put_", "histc", "median",
               "scatter_reduce", "kthvalue")  # fmt: skip
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.__name__.split(".")[0]
            if name.startswith("nll_loss") and name.endswith("forward"):
                assert args[3] == 0, "a loss that torch reduces itself"
            assert not any(part in name for part in refused), name
            seen.append(name)
            return function(*args, **(kwargs or {}))

    labels, images = torch.randint(0, 19, (2, 64, 64)), torch.rand(2, 3, 64, 64)
    criteria = [loss.function for loss in LOSSES.values()]
    criteria += [partial(cross_entropy, weight=torch.rand(19)),
                 partial(weighted_by_pixel, weights=torch.rand(2, 64, 64))]  # fmt: skip
    for name in SEGMENTERS:
        model = build_segmenter(name).train()
        for criterion in criteria if name == "bisenet" else criteria[:1]:
            with Seen():
                segmentation_loss(model(images), labels, 1.0, criterion).backward()
    on_logits = (
        lambda logits: min_entropy_loss(logits, 0.3),
        lambda logits: class_prior_loss(logits, torch.full((19,), 0.03)),
        charbonnier_entropy_loss,
        lambda logits: regularised(logits, labels, cross_entropy, 0.1, 0.5),
        lambda logits: confident_focal_loss(logits, labels, torch.rand(2, 64, 64), torch.rand(19)),
    )
    for loss in on_logits:
        logits = torch.rand(2, 19, 64, 64, requires_grad=True)
        with Seen():
            loss(logits).backward()
    maps = torch.rand(2, 19, 64, 64)
    for kind, gan in itertools.product(DISCRIMINATORS, GANS):
        discriminator, gan = build_discriminator(kind), gan_for(kind, gan)
        with Seen():
            view = View(maps, soft_labels(maps, (64, 64)) if gan.by_class else None)
            view.loss(gan, discriminator(maps), TARGET).backward()
    assert seen.count("nll_loss_forward") > 2 * len(criteria)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["train_pseudo_labels", "train_dacs", "train_sac", "train_adversarial-FADA", "train_adversarial-IntraDA"]
)
def test_a_killed_method_ends_as_one_that_was_not(name, tmp_path):
    """Self-training in two rounds, DACS with every extension and a frozen network that labels, and so on."""
    game = write_gta5(tmp_path / "gta5", count=4)
    city = write_cityscapes(tmp_path / "cityscapes", counts=(("train", 4), ("val", 2)))
    all_commands = commands(game, city, tmp_path / "labeller/checkpoint_last.pt")
    finished([*all_commands["train_cityscapes"], "--max-steps", "1"], tmp_path / "labeller")
    command = all_commands[name]
    finished(command, tmp_path / "straight")
    assert killed_and_resumed(command, tmp_path / "killed", 1, lambda: 0.1)["all"] == 1
    assert_same_runs(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(world):
    home, command = world
    rng = random.Random(7)
    assert killed_and_resumed(command, home / "killed", 3, lambda: rng.uniform(0, 0.3))["all"] >= 1
    assert_same_runs(home / "straight", home / "killed")


def test_a_run_killed_while_it_keeps_an_evaluation_logs_it_once(script, game, city, tmp_path, monkeypatch):
    """Its figures are on the board already, the checkpoint is not on the disk."""
    assert script(*source_only(game, city, tmp_path / "straight", "--eval-every", 1)).status == 0
    seen = []

    def killed(path, content, *previous):
        if content.get("closed") == 1 and path.name == "checkpoint_last.pt" and not seen:
            seen.append(path)
            raise KeyboardInterrupt
        return save_checkpoint(path, content, *previous)

    broken = source_only(game, city, tmp_path / "broken", "--eval-every", 1, "--checkpoint-minutes", 0)
    with monkeypatch.context() as patch:
        patch.setattr("training.archive.save_checkpoint", killed)
        assert script(*broken).status == 130
    figures = logged(tmp_path / "broken")["target/miou"]
    assert len(figures) == 1
    assert script(*broken, "--resume").status == 0
    assert_same_runs(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138), ("SIGHUP", 129)])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_how_to_go_on(world, number, status):
    home, command = world
    run_dir = home / number
    slow = [*command, "--checkpoint-minutes", "1000", "--no-cache"]  # so that the checkpoint is the signal's
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so would the script
    try:
        process = start(slow, run_dir, SECONDS_A_PICTURE="0.05")  # so that it is at work yet
    finally:
        signal.signal(signal.SIGHUP, inherited)
    while not list(run_dir.glob("tensorboard/*")):
        assert process.poll() is None, run_dir.with_suffix(".log").read_text()
        time.sleep(0.05)
    time.sleep(0.2)
    os.killpg(process.pid, getattr(signal, number))  # loader workers too, as schedulers and terminals do
    assert process.wait(60) == status, run_dir.with_suffix(".log").read_text()
    said = run_dir.with_suffix(".log").read_text()
    assert f"stopped by {number}" in said
    assert "Traceback" not in said
    again = said.split("To continue: python ")[1].splitlines()[0]
    assert not (run_dir / ".lock").exists()
    finished(again.split(), run_dir)
    assert_same_runs(home / "straight", run_dir)


def test_the_echo_of_a_signal_is_as_long_as_its_launcher_takes():
    """torchrun passes a signal on, and ends its ranks half a minute later; without it a second Ctrl-C is soon meant."""
    for more, seconds in (({}, 1), ({"TORCHELASTIC_RUN_ID": "x"}, 30)):
        code = "from utils import interruption; print(interruption.ECHO)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT | more, capture_output=True)
        assert int(done.stdout) == seconds


def test_a_rank_whose_launcher_is_gone_stops_to_be_tried_again(monkeypatch):
    assert Interruption(None).stop() is None
    monkeypatch.setattr("utils.interruption._LAUNCHER", os.getppid() + 1)
    assert Interruption(None).stop() is None  # nobody launched it
    monkeypatch.setattr("utils.interruption.LAUNCHED", True)
    assert Interruption(None).stop() == Stop("stopped, since torchrun is gone", 75)


def test_a_lock_is_touched_each_half_minute(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("training.lock.time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    lock = DirectoryLock(tmp_path)
    touched = []
    monkeypatch.setattr(os, "utime", lambda path, *more: touched.append(path))
    for seconds, times in ((29, 0), (2, 1), (29, 1), (2, 2)):
        now += seconds
        lock.touch()
        assert len(touched) == times
    lock.release()


def test_a_second_signal_ends_at_once_unless_it_is_the_firsts_echo(tmp_path):
    code = """
import os, signal, sys, time
from utils import interruption
from utils.interruption import Interruption
interruption.ECHO = 0.5
listening = Interruption(None)
listening.listen()
os.kill(os.getpid(), signal.SIGINT)
assert listening.stop().status == 130
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGHUP)
print("asked once", flush=True)
time.sleep(0.6)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "asked once\n"
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 25


def stopped_at(script, monkeypatch, number, *command):
    """Runs a script until its pause of that number, from 0."""
    pauses = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "stop", lambda self: Stop("test", 99) if next(pauses) == number else None)
        done = script(*command)
    assert done.status == 99, done.err


def test_stop_after_ends_by_itself_and_goes_on(script, city, tmp_path):
    assert script(*upper(city, tmp_path / "straight")).status == 0
    done = script(*upper(city, tmp_path / "run", "--stop-after", 0))
    assert done.status == 75
    assert "stopped by --stop-after (0 minutes)" in done.out
    assert load_checkpoint(tmp_path / "run/checkpoint_last.pt")["step"] == 0
    assert script(*upper(city, tmp_path / "run", "--resume", "--stop-after", 1000)).status == 0
    assert_same_runs(tmp_path / "straight", tmp_path / "run")


def test_checkpoints_are_written_by_time_and_say_that_they_are_from_mid_epoch(script, city, tmp_path, monkeypatch):
    written = []
    save = checkpoints.save_checkpoint

    def recorded(path, content, previous=None):
        save(path, content, previous)
        if previous is not None:
            written.append((content["step"], content["closed"]))
            shutil.copy(path, tmp_path / f"{content['step']}.pt")

    monkeypatch.setattr("training.archive.save_checkpoint", recorded)
    assert script(*upper(city, tmp_path / "run", "--epochs", 1, "--checkpoint-minutes", 0)).status == 0
    assert written[0] == (1, 0)
    assert written[-1] == (2, 1)
    note = "written in the middle of epoch 1, at step 1"
    assert note in script("eval", tmp_path / "1.pt", "--workers", 0).out
    assert note not in script("eval", tmp_path / "run/checkpoint_last.pt", "--workers", 0).out
    written.clear()
    assert script(*upper(city, tmp_path / "rarely", "--epochs", 1)).status == 0
    assert written == [(2, 1)]


# Files


def small_content(value=0.0):
    weights = {"a": torch.full((40, 50), value), "b": torch.tensor(3), "c": torch.zeros(0)}
    return {"network": {"name": "bisenet"}, "weights": weights, "config": {}, "step": int(value), "epoch": 0}


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, small_content(1.0))
    whole, expected = path.read_bytes(), load_checkpoint(path)
    rng = random.Random(0)
    noticed = 0
    for _ in range(300):
        torn = bytearray(whole)
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        path.write_bytes(torn)
        try:
            assert same(load_checkpoint(path), expected)  # a bit that means nothing, such as a date in the archive
        except UserError:
            noticed += 1
    assert noticed > 150


def test_the_checksum_tells_values_shapes_and_types_apart():
    one = {"a": torch.zeros(4), "b": [1, 2]}
    others = [{"a": torch.zeros(2, 2), "b": [1, 2]}, {"a": torch.zeros(4, dtype=torch.int32), "b": [1, 2]},
              {"a": torch.tensor([0, 0, 0, -0.0]), "b": [1, 2]}, {"a": torch.zeros(4), "b": [1.0, 2]},
              {"a": torch.zeros(4), "b": [1], "c": 2}, {"a": torch.zeros(4), "b": [[1], 2]}]  # fmt: skip
    assert len({checksum(value) for value in (one, *others)}) == 7
    laid_out = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert checksum(laid_out) == checksum(laid_out.contiguous())


def test_a_damaged_checkpoint_falls_back_to_the_one_before(script, city, tmp_path, monkeypatch):
    assert script(*upper(city, tmp_path / "straight")).status == 0
    run_dir = tmp_path / "run"
    stopped_at(script, monkeypatch, 2, *upper(city, run_dir, "--checkpoint-minutes", 0))
    last, previous = run_dir / "checkpoint_last.pt", run_dir / "checkpoint_previous.pt"
    assert (load_checkpoint(previous)["step"], load_checkpoint(last)["step"]) == (1, 2)
    whole = last.read_bytes()
    middle = bytearray(whole)
    middle[len(middle) // 2] ^= 16
    for damage in (b"", whole[:-100], bytes(middle)):
        last.write_bytes(damage)
        assert "checkpoint" in one_line_error(script("eval", last))
        assert same(load_newest(run_dir).content, load_checkpoint(previous))
    last.unlink()
    assert same(load_newest(run_dir).content, load_checkpoint(previous))
    last.write_bytes(bytes(middle))
    copy = tmp_path / "both"
    shutil.copytree(run_dir, copy)
    (copy / "checkpoint_previous.pt").write_bytes(b"x")
    message = one_line_error(script(*upper(city, copy, "--resume")))
    assert "every checkpoint of the run is damaged" in message
    done = script(*upper(city, run_dir, "--resume"))
    assert done.status == 0, done.err
    assert "continuing from checkpoint_previous.pt" in done.out
    assert_same_runs(tmp_path / "straight", run_dir)
    assert not previous.exists()
    assert load_newest(tmp_path) is None


def test_another_runs_checkpoint_is_refused(script, city, tmp_path):
    """Its figures would stand under this run's seed and size."""
    a, b = tmp_path / "a", tmp_path / "b"
    assert script(*upper(city, a, "--max-steps", 4)).status == 0
    assert script(*upper(city, b, "--max-steps", 2, "--seed", 7, "--size", "64x48")).status == 0
    shutil.copy(b / "checkpoint_last.pt", a / "checkpoint_last.pt")
    result = (a / "result.json").read_text()
    message = one_line_error(script(*upper(city, a, "--max-steps", 4, "--resume")))
    for said in ("made checkpoint_last.pt", "--seed was 7, is 0", "--size was [64, 48], is [48, 32]", "--max-steps"):
        assert said in message
    assert (a / "result.json").read_text() == result
    done = script(*upper(city, tmp_path / "a", "--max-steps", 4, "--resume", "--allow-changes"))
    assert done.status == 0, done.err
    assert "note: --seed was 7, is 0" in done.out
    assert "--seed was 7, is 0" in json.loads((a / "config.json").read_text())["changes"]


def test_a_finished_run_that_goes_on_has_no_result_until_it_ends(script, city, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    assert script(*upper(city, run_dir, "--max-steps", 2)).status == 0
    left = [run_dir / name for name in ("result.json", "model_card.md")]
    before = [path.read_text() for path in left]
    seed = ("--max-steps", 2, "--seed", 5, "--resume", "--allow-changes")
    done = script(*upper(city, run_dir, *seed))
    assert done.status == 0, done.err
    assert "note: the run has ended; the changes touch nothing" in done.out
    assert [path.read_text() for path in left] == before
    more = ("--max-steps", 4, "--lr", 0.001, "--resume", "--allow-changes")
    stopped_at(script, monkeypatch, 2, *upper(city, run_dir, *more))
    assert not any(path.exists() for path in left)
    done = script(*upper(city, run_dir, *more))
    assert done.status == 0, done.err
    assert json.loads(left[0].read_text())["step"] == 4


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    path, previous = tmp_path / "x.pt", tmp_path / "y.pt"
    save_checkpoint(path, small_content(1.0))
    code = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_reliability import *
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    save_checkpoint(Path({str(path)!r}), small_content(2.0), Path({str(previous)!r}))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert f"cannot be written ({os.strerror(errno.EFBIG)})" in done.stdout, done.stderr
    assert load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


def test_a_write_that_fails_leaves_what_stood_there(tmp_path):
    def full(file):
        file.write(b"ne")
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "metrics.jsonl"
    path.write_text("old")
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_for_tensorboard_is_one_line(script, city, tmp_path, monkeypatch):
    """Whether the writer's thread meets it or the run itself. What was kept goes on as if nothing had been."""
    assert script(*upper(city, tmp_path / "straight")).status == 0
    flush = RecordWriter.flush
    for number in (1, 4):
        run_dir, calls = tmp_path / str(number), itertools.count()

        def full(self, calls=calls, number=number):
            if next(calls) >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(self)

        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "flush", full)
            message = one_line_error(script(*upper(city, run_dir, "--checkpoint-minutes", 0)))
        assert "tensorboard: cannot be written (No space left on device)" in message
        done = script(*upper(city, run_dir, "--checkpoint-minutes", 0, "--resume"))
        assert done.status == 0, done.err
        assert_same_runs(tmp_path / "straight", run_dir)


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_run_goes_on(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def recorded(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    write_atomically(tmp_path / "result.json", lambda file: file.write(b"{}"))
    assert done == ["file", "rename", "folder"]
    last, previous = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint_previous.pt"
    save_checkpoint(last, {"step": 1}, previous)
    done.clear()
    save_checkpoint(last, {"step": 2}, previous)
    assert done == ["file", "rename", "folder", "rename", "rename", "folder"]
    assert previous.exists()


def test_a_file_system_that_cannot_sync_folders_keeps_files_all_the_same(tmp_path, monkeypatch):
    fsync = os.fsync

    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    write_atomically(tmp_path / "result.json", lambda file: file.write(b"{}"))
    assert (tmp_path / "result.json").read_bytes() == b"{}"


def test_a_disk_that_gives_other_bytes_back_is_noticed_before_the_old_one_goes(tmp_path, monkeypatch):
    path, previous = tmp_path / "x.pt", tmp_path / "y.pt"
    save_checkpoint(path, small_content(1.0))
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read(self)[:-1] + b"\xff" if ".new" in self.name else read(self)
    )
    with pytest.raises(UserError, match="other bytes"):
        save_checkpoint(path, small_content(2.0), previous)
    assert load_checkpoint(path)["step"] == 1
    assert not previous.exists()


# Two processes


@pytest.mark.slow
def test_a_second_process_refuses_and_a_stale_lock_is_recognised(script, city, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    code = ("import sys, time; from pathlib import Path; from training.lock import DirectoryLock\n"
            "lock = DirectoryLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)")  # fmt: skip
    holder = subprocess.Popen([sys.executable, "-c", code, run_dir], stdout=subprocess.PIPE, cwd=ROOT,
                              env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        message = one_line_error(script(*upper(city, run_dir)))
        assert f"process {holder.pid} on {os.uname().nodename}" in message
    finally:
        holder.kill()
        holder.wait()
    done = script(*upper(city, run_dir, "--max-steps", 1))  # the lock ended with its process
    assert done.status == 0, done.err
    assert f"process {holder.pid}" in done.out
    assert not (run_dir / ".lock").exists()


def test_a_lock_of_another_host_is_waited_for(tmp_path, monkeypatch, capsys):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    monkeypatch.setattr("training.lock.time.sleep", lambda seconds: os.utime(path))  # its holder still works
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        DirectoryLock(tmp_path)
    assert "waiting up to 300 s" in capsys.readouterr().out
    long_ago = time.time() - STALE_SECONDS - 1
    monkeypatch.setattr("training.lock.time.sleep", lambda seconds: os.utime(path, (long_ago, long_ago)))
    os.utime(path, (long_ago, long_ago))
    lock = DirectoryLock(tmp_path)
    assert "takes over its lock" in capsys.readouterr().out
    monkeypatch.setattr("training.lock.time.monotonic", lambda: time.perf_counter() + 1e6)
    os.utime(tmp_path / ".lock", (long_ago, long_ago))
    lock.touch()
    assert time.time() - path.stat().st_mtime < 60
    path.unlink()  # somebody cleans up
    monkeypatch.setattr("training.lock.time.monotonic", lambda: time.perf_counter() + 2e6)
    lock.touch()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("ahead", [7200, -200])
def test_a_lock_is_waited_for_five_minutes_whatever_the_clocks_say(tmp_path, monkeypatch, ahead):
    """Of the other host, or of this one."""
    path, slept = tmp_path / ".lock", []
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    touched = time.time() + ahead
    os.utime(path, (touched, touched))
    with monkeypatch.context() as patch:
        patch.setattr("training.lock.time.time", lambda: 1e9)
        patch.setattr("training.lock.time.monotonic", lambda: sum(slept))
        patch.setattr("training.lock.time.sleep", slept.append)
        lock = DirectoryLock(tmp_path)
    assert sum(slept) == pytest.approx(STALE_SECONDS + min(0, ahead), abs=2)
    lock.release()
    assert list(tmp_path.iterdir()) == []
    path.write_text("[" * 100_000)
    DirectoryLock(tmp_path).release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EBADF])
def test_where_the_file_system_has_no_locks_age_decides(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("training.lock.fcntl.flock", refuse)
    lock = DirectoryLock(tmp_path)  # nobody is there
    monkeypatch.setattr("training.lock.time.sleep", lambda seconds: os.utime(tmp_path / ".lock"))
    with pytest.raises(UserError, match=f"process {os.getpid()} on {os.uname().nodename}"):
        DirectoryLock(tmp_path)  # it touches its lock, so it works
    lock.release()
    DirectoryLock(tmp_path).release()


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_refuses_at_once(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    (tmp_path / ".lock").write_text(json.dumps({"pid": 7, "host": "here"}))
    monkeypatch.setattr("training.lock.fcntl.flock", refuse)
    with pytest.raises(UserError, match="process 7 on here"):
        DirectoryLock(tmp_path)


# Numbers


def test_a_gradient_that_is_not_finite_is_named_with_its_pictures(script, city, tmp_path, monkeypatch):
    calls = []

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(context, loss):
            return loss.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("inf")

    def poisoned(*arguments, **settings):
        calls.append(1)
        loss = segmentation_loss(*arguments, **settings)
        return Poison.apply(loss) if len(calls) == 3 else loss

    monkeypatch.setattr("training.building.segmentation_loss", poisoned)
    message = one_line_error(script(*upper(city, tmp_path / "run")))
    assert "gradient is" in message
    assert "at step 3 (epoch 2)" in message
    stream = TrainingStream(cityscapes(city, "train", (48, 32)), Geometry((48, 32)), 0, 0, draws=8)
    names = [stream.data.samples[stream.index(draw)].name for draw in (4, 5)]
    assert f"on Cityscapes train {names[0]}, {names[1]}. " in message
    assert "last good checkpoint" in message
    kept = load_checkpoint(tmp_path / "run/checkpoint_last.pt")
    assert kept["step"] == 2
    assert all(value.isfinite().all() for value in kept["weights"].values())


def test_a_batch_without_a_labelled_pixel_is_no_nan(script, tmp_path):
    city = write_cityscapes(tmp_path / "mostly empty")
    for file in sorted((city / "gtFine/train").rglob("*.png"))[:3]:  # of four, in batches of two
        Image.new("L", (48, 32), 0).save(file)
    done = script(*upper(city, tmp_path / "run"))
    assert done.status == 0, done.err
    losses = [value for _, value in logged(tmp_path / "run")["train/loss"]]
    assert len(losses) == 4
    assert losses.count(0) == 2


# Bad files in hour nine


def break_one(root, number=3):
    file = sorted((root / "images").iterdir())[number]
    file.write_bytes(file.read_bytes()[:100])
    return file


def test_a_bad_sample_is_replaced_the_same_way_every_time(game):
    from datasets import gta5

    data = gta5(game, (48, 32))
    break_one(game)
    stream = TrainingStream(data, Geometry((48, 32)), 0, 0, draws=18, skip=True)
    whole = TrainingStream(data, Geometry((48, 32)), 0, 0, draws=18)
    for draw in range(18):
        item, index = stream[draw], stream.index(draw)
        if index == 3:
            assert list(item.problems) == ["00004"]
            assert torch.equal(item.item[0], data.image(4))
            assert isinstance(whole[draw], UserError)
        else:
            assert not isinstance(item, Replaced)
            assert torch.equal(item[0], whole[draw][0])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_skipping_lists_what_it_skips_and_ends_when_it_is_too_much(script, game, city, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("training.building.check", lambda data: "")  # as if they were whole at the start
    file = break_one(game)
    flags = ("--workers", workers, "--on-bad-sample", "skip", "--max-bad-share", 0.2)
    assert str(file) in one_line_error(script(*source_only(game, city, tmp_path / "stops")))
    done = script(*source_only(game, city, tmp_path / "skips", *flags))
    assert done.status == 0, done.err
    assert done.out.count("skipped GTA5: 00004") == 1
    assert (tmp_path / "skips/bad_samples.txt").read_text().count("\n") == 1
    again = script(*source_only(game, city, tmp_path / "again", *flags, "--stop-after", 0))
    assert again.status == 75
    assert script(*source_only(game, city, tmp_path / "again", *flags, "--resume")).status == 0
    assert_same_runs(tmp_path / "skips", tmp_path / "again")
    break_one(game, 1)
    message = one_line_error(script(*source_only(game, city, tmp_path / "too many", *flags)))
    assert "2 of 6 pictures of GTA5 cannot be read" in message


@pytest.mark.parametrize("where", ["val", "labeller", "AdaBN", "weights"])
def test_what_is_not_drawn_for_training_is_not_skipped(script, game, city, tmp_path, trained, monkeypatch, where):
    monkeypatch.setattr("training.building.check", lambda data: "")  # as if they were whole at the start
    skip = ("--on-bad-sample", "skip", "--max-bad-share", 0.5)
    folder = {"val": city / "leftImg8bit/val", "weights": game / "labels"}.get(where, city / "leftImg8bit/train")
    file = sorted(path for path in folder.rglob("*") if path.is_file())[1]
    file.write_bytes(file.read_bytes()[:100])
    command = source_only(game, city, tmp_path / "other", "--max-steps", 1, *skip)
    if where == "weights":
        command += ("--loss", "weighted")
    elif where != "val":
        command = ("train_pseudo_labels", *command[1:], "--labeller", trained)
        command += ("--adapt-bn",) if where == "AdaBN" else ()
    assert str(file) in one_line_error(script(*command))


# Changes


def test_changes_on_resume_are_refused_or_applied(script, city, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    stopped_at(script, monkeypatch, 5, *upper(city, run_dir, "--epochs", 4, "--no-cache"))
    changed = ("--epochs", 3, "--lr", 0.002, "--weight-decay", 0.5, "--no-cache", "--resume")
    message = one_line_error(script(*upper(city, run_dir, *changed)))
    assert "--lr was 0.01, is 0.002" in message
    assert "--epochs was 4, is 3" in message
    assert "--allow-changes" in message
    before = (run_dir / "config.json").read_text()
    with monkeypatch.context() as patch:  # killed before the first checkpoint under the new arguments

        def killed(self, model):
            raise KeyboardInterrupt

        patch.setattr("training.run.Run.evaluate", lambda self, model, **sets: killed(self, model))
        assert script(*upper(city, run_dir, *changed, "--allow-changes")).status == 130
    assert (run_dir / "config.json").read_text() == before
    done = script(*upper(city, run_dir, *changed, "--allow-changes"))
    assert done.status == 0, done.err
    assert "note: --lr was 0.01, is 0.002" in done.out
    end = load_checkpoint(run_dir / "checkpoint_last.pt")
    assert (end["step"], end["history"][-1]["step"]) == (6, 6)
    assert {group["weight_decay"] for group in end["training"]["optimizer"]["param_groups"]} == {0.5, 0.0}
    assert end["training"]["schedule"]["base_lrs"] == [0.002, 0.002]
    rates = dict(logged(run_dir)["train/rate"])
    assert rates[6] == 0
    assert 0 < rates[4] < 0.002
    assert json.loads((run_dir / "config.json").read_text())["changes"] == [
        "--epochs was 4, is 3", "--lr was 0.01, is 0.002", "--weight-decay was 0.0001, is 0.5",
    ]  # fmt: skip
    same_again = ("--epochs", 3, "--lr", 0.002, "--weight-decay", 0.5, "--no-cache", "--resume")
    assert script(*upper(city, run_dir, *same_again)).status == 0  # these are its arguments now
    message = one_line_error(script(*upper(city, run_dir, *same_again, "--epochs", 1, "--allow-changes")))
    assert "6 steps are done already" in message
    more = write_cityscapes(tmp_path / "more", counts=(("train", 6), ("val", 2)))
    assert "Cityscapes train holds other pictures" in one_line_error(script(*upper(more, run_dir, *same_again)))


def test_what_is_logged_does_not_depend_on_where_a_long_epoch_was_interrupted(script, tmp_path, monkeypatch):
    city = write_cityscapes(tmp_path / "long", counts=(("train", 24), ("val", 2)))
    flags = ("--epochs", 1, "--no-cache")
    assert script(*upper(city, tmp_path / "straight", *flags)).status == 0
    stopped_at(script, monkeypatch, 5, *upper(city, tmp_path / "run", *flags))
    assert script(*upper(city, tmp_path / "run", *flags, "--resume")).status == 0
    assert_same_runs(tmp_path / "straight", tmp_path / "run")
    assert [step for step, _ in logged(tmp_path / "run")["train/rate"]] == [10, 12]


def test_a_run_killed_before_its_first_checkpoint_logs_every_step_once(script, city, tmp_path, monkeypatch):
    assert script(*upper(city, tmp_path / "straight")).status == 0
    with monkeypatch.context() as patch:

        def killed(self, model, **sets):
            self.journal.board.flush()
            raise KeyboardInterrupt

        patch.setattr("training.run.Run.evaluate", killed)
        assert script(*upper(city, tmp_path / "run")).status == 130
    assert not (tmp_path / "run/checkpoint_last.pt").exists()
    for name in (".metrics.jsonl.99.tmp", ".checkpoint_best.pt.new"):
        (tmp_path / "run" / name).write_text("left by a killed process")
    assert script(*upper(city, tmp_path / "run", "--resume")).status == 0
    assert_same_runs(tmp_path / "straight", tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))


def test_a_stop_after_an_evaluation_leaves_the_best_as_it_was(script, city, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    command = upper(city, run_dir, "--no-cache")
    stopped_at(script, monkeypatch, 4, *command)  # two steps, the evaluation and its batch, then the next epoch
    best = load_checkpoint(run_dir / "checkpoint_best.pt")
    assert (best["epoch"], best["closed"], best["step"]) == (1, 1, 2)
    assert load_checkpoint(run_dir / "checkpoint_last.pt")["step"] == 2


def test_long_preparations_and_labelling_heed_a_stop(script, game, city, tmp_path, trained):
    run_dir = tmp_path / "self"
    command = ("train_pseudo_labels", *source_only(game, city, run_dir, "--max-steps", 1)[1:], "--labeller")
    (tmp_path / "junk.pt").write_bytes(b"x")
    one_line_error(script(*command, tmp_path / "junk.pt"))
    assert not run_dir.exists()  # a wrong file blocks nothing
    for stop in (0, 0):
        done = script(*command, trained, "--stop-after", stop, *(["--resume"] if run_dir.exists() else []))
        assert done.status == 75
        assert not list(run_dir.rglob("summary.json"))  # it stopped while labelling
    assert script(*command, trained, "--resume").status == 0
    run_dir = tmp_path / "prepares"
    done = script(*source_only(game, city, run_dir, "--cache", tmp_path / "cache", "--stop-after", 0))
    assert done.status == 75
    assert list((tmp_path / "cache").iterdir()) == []
    assert script(*source_only(game, city, run_dir, "--cache", tmp_path / "cache", "--resume")).status == 0


@pytest.mark.parametrize("stale", [STALE_SECONDS, 0])  # noticed when a checkpoint is due, or by the lock
def test_a_run_whose_directory_is_moved_ends_and_goes_on_where_it_is(script, city, tmp_path, monkeypatch, stale):
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    assert script(*upper(city, tmp_path / "straight")).status == 0
    with monkeypatch.context() as patch:
        steps = Run.pause

        def move(self):
            if self.step == 3 and not moved.exists():
                run_dir.rename(moved)
            steps(self)

        patch.setattr(Run, "pause", move)
        patch.setattr("training.lock.STALE_SECONDS", stale)
        patch.setattr("training.journal.open_board", lambda *where: NoBoard())
        patch.setattr("training.journal.log_arguments", lambda *what: None)
        message = one_line_error(script(*upper(city, run_dir)))
    assert str(run_dir) in message
    assert "was it moved?" in message
    assert not run_dir.exists()
    assert script(*upper(city, moved, "--resume")).status == 0
    weights = [load_checkpoint(path / "checkpoint_last.pt")["weights"] for path in (tmp_path / "straight", moved)]
    assert same(*weights)


@pytest.mark.slow
def test_only_the_main_process_killed_leaves_no_lock(world):
    """As the kernel does when memory runs out: loader workers live a little longer."""
    home, command = world
    run_dir = home / "main killed"
    process = start(command, run_dir)
    while not (run_dir / "checkpoint_last.pt").exists():
        assert process.poll() is None, run_dir.with_suffix(".log").read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    finished(command, run_dir, "--resume")
    assert_same_runs(home / "straight", run_dir)


def test_bands_are_checked_before_the_first_is_trained(script, game, city, tmp_path):
    command = ("train_fda", *source_only(game, city, tmp_path / "run", "--max-steps", 1)[1:])
    assert "the same band" in one_line_error(script(*command, "--beta", 0.01, 0.05, 0.01))
    (tmp_path / "run/beta-0.05").mkdir(parents=True)
    (tmp_path / "run/beta-0.05/mine.txt").write_text("x")
    assert "beta-0.05 is not empty" in one_line_error(script(*command, "--beta", 0.01, 0.05))
    assert not (tmp_path / "run/beta-0.01").exists()
