"""Loader processes that do not get what they need: said before, or at once; a run never waits for one that is gone."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import one_line_error, upper
from soak import ENVIRONMENT, ROOT
from torch.utils.data import Dataset, default_convert, get_worker_info

from datasets import loading
from datasets.loading import loaded, loader
from datasets.stream import batches


class Numbers(Dataset):
    """Twenty tensors; the tenth is what `odd` gives."""

    def __init__(self, odd):
        self.odd = odd

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.odd() if index == 9 else torch.full((3,), index)


class Unsendable:
    def __reduce__(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def here():
    """Whether it is not a loader process that asks."""
    return get_worker_info() is None


def full(item):
    if not here():
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")
    return item


def killed():
    if not here():
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.full((3,), 9)


def unsendable():
    return torch.full((3,), 9) if here() else Unsendable()


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"batch_size": None}, {"batch_size": 3}, {"batch_sampler": [[8, 1], [9, 2], [3, 9]]}])
@pytest.mark.parametrize("odd", [unsendable, killed])
def test_what_lost_workers_leave_is_read_by_the_others_and_at_last_by_the_run(odd, how, capsys):
    """In the order that it had; and nothing is raised in the middle of what the run does meanwhile."""
    collate = default_convert if how == {"batch_size": None} else list
    found = []
    for item in loaded(loader(Numbers(odd), 2, 24, 1, collate, **how)):
        time.sleep(0.02)
        found.append(str(item))
    assert found == [str(item) for item in loader(Numbers(odd), 0, 24, 1, collate, **how)]
    assert capsys.readouterr().err.count("a loader process was lost") == 2


def test_memory_that_runs_out_in_a_worker_is_one_line(capsys):
    items = loader(Numbers(lambda: torch.full((3,), 9)), 1, 24, 1, lambda item: full(item) if item[0] == 6 else item,
                   batch_size=None)  # fmt: skip
    assert [int(item[0]) for item in batches(items)] == list(range(20))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: a loader process was lost, 0 go on (shared memory or open files ran out")
    assert "--shm-size" in line


def test_errors_of_the_code_stay_what_they_are():
    def wrong():
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        list(loaded(loader(Numbers(wrong), 1, 24, 1, batch_size=None)))
    good = loader(Numbers(lambda: torch.full((3,), 9)), 1, 24, 1, batch_size=None)
    assert [int(item[0]) for item in loaded(good)] == list(range(20))


def test_too_little_shared_memory_is_said_before_the_first_batch(script, city, tmp_path, monkeypatch):
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(loading, "SHARED", tmp_path / "shm")
    usage = shutil.disk_usage
    monkeypatch.setattr(
        loading.shutil, "disk_usage", lambda path: SimpleNamespace(free=9000) if path == loading.SHARED else usage(path)
    )
    command = upper(city, tmp_path / "run", "--max-steps", 1)
    message = one_line_error(script(*command, "--workers", 1))
    assert "1 loader processes need 0.00 GB of shared memory" in message
    assert "--workers (0 needs none)" in message
    assert script(*upper(city, tmp_path / "other", "--max-steps", 1, "--workers", 0)).status == 0


@pytest.mark.slow
def test_few_open_files_are_raised_where_they_may_be_or_said_in_one_line(city, tmp_path):
    def run(limit, name):
        command = ["tests/scripts.py", *upper(city, tmp_path / name, "--workers", 2)]
        return subprocess.run(
            ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", sys.executable, *map(str, command)],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    assert run("-Sn 32", "raised").returncode == 0
    done = run("-n 32", "refused")
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.startswith("error: the loader processes need")
    assert "ulimit -n" in done.stderr
    assert len(done.stderr.splitlines()) == 1
