"""tables.py: every row once, whatever happens on the way, and the report at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SOURCE, one_line_error, write_cityscapes, write_gta5

import reporting.plan
import tables
from reporting.plan import Plan, Row, call
from tables import ROWS, Timing
from utils import bar
from utils.errors import UserError
from utils.interruption import STARTED

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("--model", "tiny", "--size", "48x32", *SOURCE, "--weights", "none", "--batch-size", "2", "--lr", "0.01")
SMALL = {
    "upper bound": Row("train_cityscapes.py"),
    "adversarial": Row("train_adversarial.py"),
    "source only": Row("train_gta5.py"),
    "source only, AdaBN": Row("eval.py", ("--adapt-bn",), needs=("source only",)),
}


def scripts_run(out: str) -> list[str]:
    return [line.split()[2] for line in out.splitlines() if line.startswith("$")]


@pytest.mark.slow
def test_every_row_is_run_once_and_reported(script, city, game, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "ROWS", {"assignment": SMALL})
    monkeypatch.setattr(reporting.plan, "PYTHON", [sys.executable, str(ROOT / "tests/scripts.py")])
    machine = ("--out", tmp_path / "out", "--workers", 0, "--device", "cpu")
    monkeypatch.setenv("GTA5", str(game))
    monkeypatch.setenv("CITYSCAPES", str(city))
    command = ("tables", *machine, "--seeds", 0, 1)
    more = ("--", "--source-holdout", 0.3, "--jitter", *FLAGS, "--epochs", 1)
    planned = script(*command, "--plan", *more)
    assert planned.status == 0, planned.err
    assert [line.split("|")[1].strip() for line in planned.out.splitlines() if "to do" in line] == list(SMALL) * 2
    assert re.search(r"adversarial +\| 0 +\| train_adversarial.py +\| 2 steps", planned.out)
    assert "GB of checkpoints" in planned.out
    assert scripts_run(planned.out) == []
    assert not (tmp_path / "out").exists()

    first = script(*command, *more)
    assert first.status == 0, first.err
    assert "measure_flops.py --only 'tiny narrow' discriminator --json" in first.out
    trained = ["train_cityscapes.py", "train_adversarial.py", "train_gta5.py", "eval.py"]
    assert scripts_run(first.out) == [*trained, *trained, "measure_flops.py", "report.py"]
    report = (tmp_path / "out/report/report.md").read_text()
    assert "source only + AdaBN" in report
    assert json.loads((tmp_path / "out/upper-bound-seed1/result.json").read_text())["seed"] == 1

    again = script(*command, *more)
    assert again.status == 0, again.err
    assert scripts_run(again.out) == ["report.py"]
    assert scripts_run(script("tables", *machine, *more).out) == ["report.py"]  # of seed 0 alone
    assert (tmp_path / "out/report/report.md").read_text() == report, "rows and seeds of before are left out"
    assert [line.split("|")[-2].strip() for line in again.out.splitlines() if line.startswith("| source only")][:2] == [
        "done"
    ] * 2
    config = json.loads((tmp_path / "out/source-only-seed0/config.json").read_text())
    assert config["arguments"]["source_holdout"] == 0.3
    other = script(*command, "--", *FLAGS, "--epochs", 2)
    assert "give the same data and flags, or name another --out" in one_line_error(other)


def test_an_evaluation_is_done_again_once_its_network_is_newer(tmp_path) -> None:
    plan = Plan(SMALL, tmp_path, [], [], [])
    result, evaluation = plan.figures("source only", 0), plan.figures("source only, AdaBN", 0)
    for number, path in enumerate((result, evaluation)):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (number, number))
    assert plan.done("source only, AdaBN", 0)
    os.utime(result, (2, 2))
    assert not plan.done("source only, AdaBN", 0)
    result.unlink()  # to save the room
    assert plan.done("source only, AdaBN", 0)


def write_costs(out: Path) -> None:
    """As measure_flops.py would, which takes minutes on a CPU."""
    out.mkdir(parents=True, exist_ok=True)
    cost = {"parameters_training": 1, "parameters_inference": 1, "fvcore": 1, "conv_macs": 1, "conv_flops": 2}
    of = dict.fromkeys(("tiny narrow", "discriminator standard"), cost)
    (out / "costs.json").write_text(json.dumps({"size": [64, 32], "networks": of}))


def test_networks_of_later_rows_are_timed_too(tmp_path, monkeypatch) -> None:
    called = []
    monkeypatch.setattr(tables, "call", called.append)
    write_costs(tmp_path)
    assert tables.costs_of(["tiny narrow", "discriminator"], tmp_path, "cpu") == [tmp_path / "costs.json"]
    assert called == []
    files = [tmp_path / name for name in ("costs.json", "costs-2.json")]
    assert tables.costs_of(["tiny narrow", "tiny wide", "discriminator"], tmp_path, "cpu") == files
    assert called == [["measure_flops.py", "--only", "tiny wide", "--json", str(files[1]), "--device", "cpu"]]


WRAPPER = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import tiny, tables, reporting.plan
from reporting.plan import Row
tables.ROWS = {{"assignment": {{"upper bound": Row("train_cityscapes.py"), "source only": Row("train_gta5.py")}}}}
reporting.plan.PYTHON.append({tests!r} + "/scripts.py")
tables.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a killed parent's script goes on elsewhere")
def test_killed_twice_it_goes_on_and_leaves_what_a_straight_run_leaves(tmp_path) -> None:
    """Killed as a scheduler does (SIGTERM to this process alone), and outright."""
    city, game = write_cityscapes(tmp_path / "city"), write_gta5(tmp_path / "game")
    wrapper = tmp_path / "tables.py"
    wrapper.write_text(WRAPPER.format(tests=str(ROOT / "tests"), root=str(ROOT)))

    def start(out: str) -> subprocess.Popen:
        write_costs(tmp_path / out)
        data = ("--gta5", str(game), "--cityscapes", str(city), "--workers", "0", "--device", "cpu")
        data += ("--out", str(tmp_path / out))  # whole, by which `wait_for_lock` tells its scripts from others
        command = [sys.executable, str(wrapper), *data, "--", *FLAGS, "--epochs", "40", "--eval-every", "40"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)

    def trained(printed: str) -> list[str]:
        return [line for line in printed.splitlines() if line.startswith("| last (step")]

    straight, _ = start("straight").communicate(timeout=200)
    assert f"Open {tmp_path}/straight/report/report.html" in straight, straight[-3000:]
    assert len(trained(straight)) == 2
    said = []
    for kind in (signal.SIGTERM, signal.SIGKILL):
        run = start("broken")
        for line in run.stdout:
            said.append(line)
            if line.startswith(f"run {tmp_path}/broken/"):  # a row begins to train
                time.sleep(0.3)
                assert is_working(tmp_path / "broken")
                break
        run.send_signal(kind)
        said += run.communicate(timeout=60)[0].splitlines(keepends=True)
        assert run.returncode == (143 if kind == signal.SIGTERM else -kind)
        wait_for_lock(tmp_path / "broken")
    rest, _ = start("broken").communicate(timeout=200)
    assert f"Open {tmp_path}/broken/report/report.html" in rest, rest[-3000:]
    for name in ("upper-bound-seed0", "source-only-seed0"):
        a, b = (json.loads((tmp_path / out / name / "result.json").read_text()) for out in ("straight", "broken"))
        assert a["miou"] == b["miou"]
    # Each trained to its end once. A script that ends just as its parent is killed says so to nobody.
    assert 1 <= len(trained("".join([*said, rest]))) <= 2


def is_working(out: Path) -> bool:
    return subprocess.run(["pgrep", "-f", f"{out}/.*--resume"], capture_output=True).returncode == 0


def wait_for_lock(out: Path) -> None:
    """The script of a killed process saves its checkpoint yet."""
    for _ in range(100):
        if not is_working(out):
            return
        time.sleep(0.1)
    pytest.fail("the script goes on without its parent")


def test_intra_domain_rows_are_as_long_as_the_target_makes_them(script, game, tmp_path, monkeypatch) -> None:
    """Both parts together, as the run counts its epochs."""
    city = write_cityscapes(tmp_path / "city", counts=(("train", 7), ("val", 1)))
    rows = {name: row for name, row in ROWS["all"].items() if name in ("AdvEnt", "IntraDA, after AdvEnt")}
    monkeypatch.setattr(tables, "ROWS", {"assignment": rows})
    flags = ("--gta5", game, "--cityscapes", city)
    planned = script("tables", *flags, "--plan", "--out", tmp_path / "out", "--", *FLAGS, "--epochs", 2)
    assert planned.status == 0, planned.err
    assert re.search(r"IntraDA, after AdvEnt +\| 0 +\| train_adversarial.py --input entropy +\| 6 steps", planned.out)


def test_flags_of_the_source_go_to_the_scripts_that_read_one() -> None:
    of_all = ["--batch-size", "4", "--loss=ohem", "--size", "64x32"]
    of_source = ["--gta5-encoding", "trainIds", "--source-holdout=0.1", "--jitter"]
    assert tables.split([*of_source[:2], *of_all, *of_source[2:]]) == (of_all, of_source)


def test_the_whole_time_is_estimated_after_a_hundred_steps(capsys) -> None:
    class Fixed:
        def of(self, row: Row) -> int:
            return 0 if not row.trains else 1000

    plan = Plan(SMALL, Path("nowhere"), [], [], [])
    timing = Timing(plan, [(name, 0) for name in SMALL], Fixed())
    hear = timing.of("adversarial")  # a step of it is 2.7 of source only
    hear("step 90/1000, epoch 1/2: loss 1.0; 9.9 s/step, 3.0 images/s, waiting 0 %, 9 min left\n")
    assert capsys.readouterr().out == ""
    hear("step 120/1000, epoch 1/2: loss 1.0; 2.7 s/step, 3.0 images/s, waiting 0 %, 9 min left\n")
    assert capsys.readouterr().out == "Estimate: 78 min for all rows that are not done, evaluations left out\n"
    hear("step 220/1000, epoch 1/2: loss 1.0; 2.7 s/step, 3.0 images/s, waiting 0 %, 9 min left\n")
    assert capsys.readouterr().out == ""


def test_the_line_that_is_listened_to_is_the_one_that_runs_print(script, city, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bar, "EVERY", 0.0)
    done = script("train_cityscapes", "--cityscapes", city, *FLAGS, "--workers", 0, "--device", "cpu",
                  "--epochs", 1, "--run-dir", tmp_path / "run")  # fmt: skip
    assert any(Timing.LINE.match(line) for line in done.out.splitlines())


def test_every_command_that_the_recipes_spell_out_is_a_row() -> None:
    """What docs/recipes.md tells to type by hand is what tables.py runs, flag by flag."""
    text = (ROOT / "docs/recipes.md").read_text()
    rows = {(row.script, row.flags) for row in ROWS["all"].values()}
    common = r" --(?:gta5 G|cityscapes C|seed S|labeller \S+|init \S+|run-dir \S+)"
    found = re.findall(r"`python (train_\w+\.py[^`]* --seed S[^`]*)`", text)
    spelt = [re.sub(common, "", command).split() for command in found]
    assert len(spelt) > 10
    for script, *flags in spelt:
        alone = [flags] if flags[:1] != ["--beta"] else [["--beta", band] for band in flags[1:]]  # a row a band
        assert all((script, tuple(own)) in rows for own in alone), (script, flags)


def test_a_missing_root_is_one_line(script, city, monkeypatch) -> None:
    for name in ("GTA5", "CITYSCAPES"):
        monkeypatch.delenv(name, raising=False)
    assert "--gta5 DIR (or " in one_line_error(script("tables", "--cityscapes", city))


def test_seeds_that_no_report_would_take_are_refused(script) -> None:
    assert "of at most 1000000000000000," in one_line_error(script("tables", "--seeds", 0, 10**15 + 1))


@pytest.mark.parametrize(
    ("flags", "instead"),
    [(("--seed", 5), "give --seeds before --"), (("--run-dir=X",), "give --out before --"),
     (("--device", "cuda"), "give --device before --"), (("--workers", 0), "give --workers before --"),
     (("--resume",), "leave it out"), (("--gta5", "X"), "give --gta5 before --"),
     (("--camvid", "X"), "give --camvid before --")],
)  # fmt: skip
def test_a_flag_that_each_row_has_of_its_own_is_refused(script, city, game, tmp_path, flags, instead) -> None:
    done = script("tables", "--gta5", game, "--cityscapes", city, "--out", tmp_path / "out", "--plan", "--", *flags)
    name = flags[0].partition("=")[0]
    assert one_line_error(done) == f"error: {name} after --: tables.py sets it for each row itself; {instead}"


def test_tables_that_were_begun_with_such_a_flag_go_on(tmp_path) -> None:
    made = {"data": ["--gta5", "G"], "flags": ["--workers", "2"]}
    (tmp_path / "upper-bound-seed0").mkdir()
    (tmp_path / "upper-bound-seed0/config.json").touch()
    (tmp_path / tables.RECORD).write_text(json.dumps(made))
    tables.require_same(tmp_path, made | {"flags": []}, made["flags"])


def test_flags_that_may_change_on_resume_may_change_here(script, city, game, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "ROWS", {"assignment": SMALL})
    flags = ["--epochs", "2", "--stop-after", "5", "--batch-size=4", "--checkpoint-minutes=1"]
    assert tables.lasting(flags) == ["--epochs", "2", "--batch-size=4"]
    command = ("tables", "--gta5", game, "--cityscapes", city, "--out", tmp_path, "--plan", "--", *FLAGS)
    (tmp_path / "upper-bound-seed0").mkdir()
    (tmp_path / "upper-bound-seed0/config.json").touch()
    data = ["--cityscapes", str(city), "--gta5", str(game)]
    for recorded in (FLAGS, (*FLAGS, "--stop-after", 5)):
        made = {"data": data, "flags": [str(word) for word in recorded]}
        (tmp_path / tables.RECORD).write_text(json.dumps(made))
        for more in ((), ("--stop-after", 200)):
            done = script(*command, *more)
            assert done.status == 0, done.err
    (tmp_path / tables.RECORD).write_text("{}")
    assert "damaged" in one_line_error(script(*command))


CHILD = """
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: os._exit(128 + signal.SIGUSR1))
print("began", os.environ["STOP_AFTER_COUNTS_FROM"], flush=True)
time.sleep(60)
"""


def test_a_schedulers_signal_reaches_the_script_and_its_time_counts_from_the_start_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr("reporting.plan.ROOT", tmp_path)
    (tmp_path / "child.py").write_text(CHILD)
    lines = []

    def hear(line: str) -> None:
        lines.append(line)
        os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(SystemExit) as stopped:
        call(["child.py"], hear)
    assert stopped.value.code == 128 + signal.SIGUSR1
    (began,) = lines
    assert float(began.split()[1]) == STARTED
    code = "from utils.interruption import Interruption; print(Interruption(1).stop())"
    of_before = {"STOP_AFTER_COUNTS_FROM": str(time.monotonic() - 61)}
    for more, said in ((of_before, "stopped by --stop-after (1 minutes)"), ({}, "None")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | more, capture_output=True)
        assert said in done.stdout.decode()


@pytest.mark.slow
def test_the_disk_that_checkpoints_need_is_known_of_every_network():
    assert tables.parameters("bisenet resnet18") == 12_068_672
    assert tables.parameters("pidnet s") == 7_720_935
    assert tables.parameters("lraspp mobilenet_v3_large") == 3_221_198
    with pytest.raises(UserError, match="there is no network other none"):
        tables.parameters("other none")


def test_rows_have_the_flags_that_they_are_named_by() -> None:
    for look in ("jitter", "blur"):
        assert tables.REPORT[f"report, source only, {look}"].flags[-3:] == ("--flip", "0.15", f"--{look}")
    for kind in ("shallow", "depthwise"):
        assert tables.ROWS["all"][f"adversarial, {kind}"].flags == ("--discriminator", kind)
