"""benchmarks/gpu.py, in small and on a CPU: everything happens, and no figure means anything."""

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import one_line_error
from soak import ROOT, children, is_at_work

from benchmarks import gpu
from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_training import TIMED, TRAINED, Settings
from benchmarks.inference import WAYS
from benchmarks.steps import Done, Watch, repeated, waited_for
from training.gradients import PRECISIONS

ON_A_GPU = Settings(device="cuda", precision="bf16", batch_size=16, workers=8, scenes_in=None)


# What is planned


def test_without_a_gpu_it_says_what_it_would_do(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = script("benchmarks.gpu", "--out", tmp_path / "out", "--skip", "inference")
    assert done.status == 0, done.err
    assert "There is no GPU here, so nothing was measured." in done.out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if line[:1] == "|"]
    assert [row[0] for row in table[2:]] == ["tests", "training", "memory", "all"]
    assert "memory: DACS, bf16, batch 16\n" in done.out
    named = [line for line in done.out.splitlines() if line.startswith(("tests:", "training:", "memory:"))]
    assert int(table[-1][1]) == len(named)
    assert 10 < float(table[-1][2]) < 40
    assert not (tmp_path / "out").exists()
    assert "no cell is called so" in one_line_error(script("benchmarks.gpu", "--plan", "--cells", "fp61"))


def test_the_plan_holds_what_is_asked_of_it():
    cells = PARTS["training"].cells(ON_A_GPU, False).values()
    timed = {(cell["method"], cell["data"], cell["precision"], cell["compiled"]) for cell in cells}
    assert timed >= {*product(TIMED, ("device", "prepared", "files"), ["bf16"], [False])}
    assert timed >= {*product(TIMED, ["device"], PRECISIONS, [False]), *product(TIMED, ["device"], ["bf16"], [True])}
    full = PARTS["training"].cells(ON_A_GPU, True)
    assert len(full) == len(TIMED) * 3 * 3 * 2
    assert list(full)[: len(cells)] == list(PARTS["training"].cells(ON_A_GPU, False))
    assert {cell["method"] for cell in PARTS["memory"].cells(ON_A_GPU, False).values()} == set(TRAINED)
    cells = PARTS["inference"].cells(ON_A_GPU, False).values()
    shapes = product([(1024, 512), (2048, 1024)], (1, 8), ["fp16"], WAYS)
    assert {(tuple(cell["size"]), cell["batch"], cell["precision"], cell["way"]) for cell in cells} >= {*shapes}


# How steps are timed


def test_steps_are_timed_in_rounds_after_those_that_warm_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def batches():
        for number in count():
            now[0] += 1
            yield number

    watch, steps = Watch(torch.device("cpu"), warm=2, steps=3, rounds=2), 0
    stream = waited_for(batches(), watch.waits)
    with pytest.raises(Done):  # noqa: PT012
        for step, batch in enumerate(stream):
            assert step == batch
            watch.at(step)
            now[0] += 3 if step < 5 else 7
            steps += 1
    assert steps == 8
    assert watch.timing() == (6.0, (1 / 4 + 1 / 8) / 2, None, (4.0, 8.0))


def test_a_batch_that_stays_on_the_device_is_the_first_one():
    stream = repeated(iter("ab"))
    assert [next(stream) for _ in range(4)] == ["a"] * 4


# The command


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def command(scenes, out, *more):
    return ("benchmarks.gpu", "--device", "cpu", "--small", "--workers", 0, "--scenes", scenes, "--out", out, *more)


@pytest.mark.slow
def test_every_part_leaves_json_and_a_table_and_is_not_run_again(script, scenes, tmp_path):
    document, out = tmp_path / "page.md", tmp_path / "out"
    document.write_text(f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n")
    first = script(*command(scenes, out, "--document", document))
    assert first.status == 0, first.err
    assert (out / "gpu.md").read_text() in first.out
    assert document.read_text() == f"before\n{gpu.BEGIN}\n\n{(out / 'gpu.md').read_text()}\n{gpu.END}\nafter\n"
    for name, part in PARTS.items():
        kept = json.loads((out / f"{name}.json").read_text())
        assert {"commit", "device", "torch", "settings", "command"} <= kept.keys()
        assert kept["failed"] == {}
        assert part.title in document.read_text()
    found = {name: json.loads((out / f"{name}.json").read_text())["found"] for name in PARTS}
    (tests,) = found["tests"].values()
    assert tests["passed"] == 0 < tests["skipped"]
    assert {one["data"] for one in found["training"].values()} == {"device", "prepared", "files"}
    assert all(one["seconds"] > 0 and len(one["seconds_by_round"]) == 2 for one in found["training"].values())
    assert {one["method"] for one in found["memory"].values()} == {"upper bound", "source only", "pseudo-labels"}
    assert all(one["milliseconds"] > 0 for one in found["inference"].values())

    again = script(*command(scenes, out))
    assert again.status == 0, again.err
    assert again.out.strip() == (out / "gpu.md").read_text().strip()
    assert "tests.json: workers was 0, is 1; name another --out" in one_line_error(
        script(*command(scenes, out, "--workers", 1))
    )


@pytest.mark.slow
def test_a_cell_that_fails_is_said_in_a_line_and_tried_again(script, scenes, tmp_path):
    cells = ("--only", "training", "inference", "--cells", "fp32, eager")
    assert script(*command(scenes, tmp_path, *cells)).status == 0
    cells = ("--only", "training", "--cells", "source only, files")
    lost = Settings.in_small(device="cpu", precision="fp32", batch_size=2, workers=0, scenes_in=scenes).scene_folder()
    shutil.move(lost / "target", lost / "elsewhere")
    try:
        done = script(*command(scenes, tmp_path, *cells))
    finally:
        shutil.move(lost / "elsewhere", lost / "target")
    assert "1 cell failed, see above" in one_line_error(done)
    (line,) = [line for line in done.out.splitlines() if line.startswith("training 1/1")]
    assert "source only, files, fp32: FAILED: error: " in line
    assert str(lost / "target") in line
    assert "training.log" in line
    assert "- failed: source only, files, fp32: error: " in (tmp_path / "gpu.md").read_text()
    assert "eager" in (tmp_path / "gpu.md").read_text()  # what another call measured is in the table still
    done = script(*command(scenes, tmp_path, *cells))
    assert done.status == 0, done.err
    assert "failed" not in (tmp_path / "gpu.md").read_text()


def test_mistakes_are_one_line(script, tmp_path):
    assert "add --small" in one_line_error(script("benchmarks.gpu", "--device", "cpu"))
    assert gpu.BEGIN in one_line_error(script("benchmarks.gpu", "--document", tmp_path / "none.md"))


# Processes that die, hang, or take too long


class Scripted:
    """A worker whose answers are known: figures, or what is raised."""

    answers, started = [], []

    def __init__(self, part, cells, asked, log):
        Scripted.started.append(list(cells))

    def answer(self, seconds):
        answer = Scripted.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def last_words(self):
        return "the GPU's memory is full"

    def stop(self, grace):
        pass


@pytest.fixture
def part(monkeypatch, tmp_path):
    """part(answers, minutes) -> (what was said, what was kept) of three cells a, b, c."""
    monkeypatch.setattr(gpu, "Worker", Scripted)
    kept = SimpleNamespace(found={}, failed={}, write=lambda: None)

    def run(answers, minutes=10.0):
        Scripted.answers, Scripted.started = answers, []
        left = {name: {"name": name} for name in "abc" if name not in kept.found}
        return list(gpu.measured("memory", left, ON_A_GPU, kept, tmp_path / "log", minutes)), kept

    return run


GOOD = {"memory_mib": 1024.0}


def test_a_dead_process_costs_its_cell_alone(part):
    said, kept = part([GOOD, EOFError(), GOOD])
    assert Scripted.started == [["a", "b", "c"], ["c"]]
    assert kept.found == {name: {"name": name} | GOOD for name in "ac"}
    assert kept.failed == {"b": "the GPU's memory is full"}
    failed = "memory 2/3, b: FAILED: the GPU's memory is full"
    assert said == ["memory 1/3, a: 1.00 GiB", failed, "memory 3/3, c: 1.00 GiB"]
    _, kept = part([GOOD])
    assert Scripted.started == [["b"]]
    assert not kept.failed


def test_a_cell_that_hangs_is_given_up_and_the_others_run(part):
    _, kept = part([TimeoutError(), GOOD, GOOD])
    assert kept.failed == {"a": "not done after 4 minutes"}
    assert list(kept.found) == ["b", "c"]


def test_a_part_whose_minutes_are_over_goes_on_later(part):
    said, kept = part([GOOD, TimeoutError()], minutes=3)
    assert said[-1] == "memory: 3 minutes are over, 2 cells left; the same command goes on"
    assert list(kept.found) == ["a"]
    assert not kept.failed
    _, kept = part([GOOD, GOOD])
    assert list(kept.found) == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_told_to_stop_it_leaves_nothing_on_the_device(scenes, tmp_path):
    _, *flags = command(scenes, tmp_path / "out", "--only", "memory")
    process = subprocess.Popen([sys.executable, ROOT / "benchmarks/gpu.py", *map(str, flags)])
    log = tmp_path / "out/memory.log"
    while process.poll() is None and not (log.exists() and "== memory" in log.read_text()):
        time.sleep(0.05)
    at_work = [pid for child in children(process.pid) for pid in (child, *children(child))]
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert at_work
    end = time.monotonic() + 30  # Python's own tracker of shared memory ends when it finds its pipe closed
    while left := [pid for pid in at_work if is_at_work(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)
