"""Runs and checkpoints of an earlier commit are read: eval.py, predict.py, report.py and --resume give what it gave.

tests/earlier/ holds a small run of every training script as commit 88ebe6d wrote it, and what that commit computed
from exactly these files. `tests/earlier/make.py` made both, at that commit; its docstring says how:

    git worktree add /tmp/then 88ebe6d && cd /tmp/then
    PYTHONPATH=.:tests OMP_NUM_THREADS=1 python PATH/tests/earlier/make.py PATH/tests/earlier

By hand: `xz -dc gta5.tar.xz.xz | xz -dc | tar x`. The paths in these runs are relative, so the tests work in the folder
where they are unpacked: its `city` and `game` are the data sets that conftest.py writes. A run's command, with
--resume, is in its own config.json.

Text and counts of pictures are compared exactly. Another processor rounds otherwise, so a small share of the pixels
may get another class.
"""

from __future__ import annotations

import json
import lzma
import math
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture, save, without_costs, write_cityscapes, write_gta5
from PIL import Image

from reporting.documents import Drawn

EARLIER = Path(__file__).with_name("earlier")
EXPECTED = json.loads((EARLIER / "expected.json").read_text(encoding="utf-8"))
CHECKPOINTS = EXPECTED["checkpoints"]
CPU = ("--workers", 0, "--device", "cpu")
SHARE, SHARE_TRAINED = 0.01, 0.1
"""Of the pixels, that may get another class: from the same weights, and after a step of training."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """begun/KIND and runs/KIND, the data sets they were trained on, and a picture. Nothing changes it."""
    folder = tmp_path_factory.mktemp("earlier")
    for path in sorted(EARLIER.glob("*.tar.xz.xz")):
        with lzma.open(path) as outer, lzma.open(outer) as inner, tarfile.open(fileobj=inner, mode="r|") as archive:
            archive.extractall(folder)
    write_cityscapes(folder / "city")
    write_gta5(folder / "game")
    save(folder / "street.png", picture(99, (12, 8)).repeat(4, axis=0).repeat(4, axis=1))
    return folder


@pytest.fixture
def earlier(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the working directory."""
    monkeypatch.chdir(unpacked)
    return unpacked


def assert_same_figures(found: dict[str, Any], expected: dict[str, Any], share: float = SHARE) -> None:
    """Of one network on one set."""
    exact = expected.keys() - {"accuracy", "mean_class_accuracy", "miou", "entropy", "confusion"}
    assert {name: found[name] for name in exact} == {name: expected[name] for name in exact}
    assert found["entropy"] == pytest.approx(expected["entropy"], abs=share / 10)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=share)
    if "confusion" in expected:
        confusion, before = np.array(found["confusion"]), np.array(expected["confusion"])
        assert confusion.sum(axis=1).tolist() == before.sum(axis=1).tolist()
        moved = np.abs(confusion - before).sum() / 2
        assert moved <= share * before.sum()
        for name in ("accuracy", "mean_class_accuracy", "miou") if moved == 0 else ():
            assert found[name] == pytest.approx(expected[name]), name


def norm(value: Any) -> float:
    """The Euclidean norm of all tensors of real numbers below it."""
    if isinstance(value, torch.Tensor):
        return value.norm().item() if value.is_floating_point() else 0.0
    return math.hypot(*(norm(item) for item in value.values())) if isinstance(value, dict) else 0.0


@pytest.mark.parametrize("call", EXPECTED["eval"], ids=lambda call: " ".join(call["arguments"][-2:]))
def test_eval(call, script, earlier, tmp_path):
    """One by one, the mean of FDA's bands, AdaBN, and the frames held out of the source."""
    assert script("eval", *call["arguments"], *CPU, "--json", tmp_path / "figures.json").status == 0
    found = json.loads((tmp_path / "figures.json").read_text())["evaluations"]
    for one, before in zip(found, call["evaluations"], strict=True):
        assert_same_figures(one, before)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_predict(kind, script, earlier, tmp_path):
    assert script("predict", CHECKPOINTS[kind], "street.png", "--out", tmp_path, "--device", "cpu").status == 0
    paths = (tmp_path / "street_labelTrainIds.png", EARLIER / f"{kind}.png")
    found, before = (np.asarray(Image.open(path)) for path in paths)
    assert found.shape == before.shape
    assert (found != before).mean() <= SHARE


def test_report(script, earlier, tmp_path, monkeypatch):
    """The printed figures to the letter; all documents, with no run left out."""
    # Charts are made and not saved: their files take seconds, and tests/test_report.py reads them.
    monkeypatch.setattr("reporting.documents.drawn", lambda name, caption, figure: Drawn(name, caption, b"", b""))
    runs = sorted(Path("runs").iterdir())
    done = script("report", *runs, "--out", tmp_path / "report", "--pictures", 0, "--device", "cpu")
    assert done.status == 0, done.err
    assert "left out" not in done.out
    printed = (done.out.splitlines(), EXPECTED["report"])
    # Names say less today: of the settings only those that tell experiments apart.
    found, before = ([line.split("|")[2:] for line in lines if line.startswith("|")] for lines in printed)
    assert found[2:] == before[2:]


@pytest.mark.parametrize("kind", EXPECTED["resumed"])
def test_resume(kind, script, earlier, tmp_path, monkeypatch):
    """A run that was stopped within an epoch, or before an evaluation, ends as it ended then."""
    monkeypatch.setattr("adaptation.masking.BLOCK", (64, 1024 * 512))  # MIC's were twice the published side
    shutil.copytree(Path("begun", kind), tmp_path / kind)
    folder = tmp_path / Path(CHECKPOINTS[kind]).parent.relative_to("begun")
    before = (folder / "metrics.jsonl").read_text()
    name, *flags = shlex.split(json.loads((folder / "config.json").read_text())["command"])
    done = script(Path(name).stem, *flags, "--run-dir", tmp_path / kind, "--resume")
    assert done.status == 0, done.err

    expected = EXPECTED["resumed"][kind]
    after = (folder / "metrics.jsonl").read_text()
    assert after.startswith(before)
    metrics, result = json.loads(after.splitlines()[-1]), json.loads((folder / "result.json").read_text())
    assert without_costs(metrics).keys() == expected["metrics"].keys()
    assert metrics["rate"] == pytest.approx(expected["metrics"]["rate"])
    for name, value in expected["metrics"]["train"].items():  # the norm of gradients is sensitive to rounding
        assert metrics["train"][name] == pytest.approx(value, rel=0.05 if "gradient" in name else 1e-3), name
    for network in {"source", "student"} & metrics.keys():
        assert_same_figures(metrics[network], expected["metrics"][network], SHARE_TRAINED)
    checkpoint = torch.load(folder / "checkpoint_last.pt", weights_only=True, mmap=True)
    norms = {name: norm(part) for name, part in {"weights": checkpoint["weights"], **checkpoint["training"]}.items()}
    assert norms == pytest.approx(expected["norms"], rel=0.02)
    oracle = expected["result"]["oracle"]
    assert result["oracle"]["miou"] == pytest.approx(oracle["miou"], abs=SHARE)
    exact = expected["result"].keys() - {"oracle", "source", "commit"}
    assert_same_figures(result, {name: expected["result"][name] for name in exact}, SHARE_TRAINED)
