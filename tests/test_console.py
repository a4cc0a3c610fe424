"""What a run shows while it works: on a terminal, and in a file."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
import torch
from conftest import SMALL, SOURCE, upper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.console import ProgressBar, epoch_line, in_words
from training.progress import Progress
from utils import bar

MULTI_LEVEL = {
    "loss": 2.5124, "gradient": 1.5, "adversarial": 0.6931, "adversarial_auxiliary": 0.6931,
    "discriminator_source": 0.7, "discriminator_target": 0.6, "discriminator_accuracy_source": 0.5,
    "discriminator_auxiliary_source": 0.7, "discriminator_auxiliary_target": 0.6,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_values_of_one_kind_stand_together() -> None:
    assert in_words(MULTI_LEVEL) == "loss 2.512 adv 0.693/0.693 D 0.700/0.600/0.700/0.600"
    assert in_words({"loss": 0.5, "loss_mix": 123.4, "sure": 0.25}) == "loss 0.500/123 sure 0.250"


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_bar_fits_a_terminal_and_at_100_columns_shows_every_loss(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress(78000, 1560, step=29640, epoch=20)
    with ProgressBar(progress, torch.device("cpu")) as shown:
        for _ in range(1234):
            progress.step += 1
            shown.step_done(16)
        shown._start -= 1000
        speed = shown.show(MULTI_LEVEL)
        shown._bar.refresh()
    lines = [line.rstrip() for line in terminal.getvalue().split("\r")]
    assert max(map(len, lines)) <= min(columns, 100)
    newest = max((line for line in lines if "wait" in line), key=len)
    assert re.match(r"epoch 20 1234/1560 00:\d\d<00:00, 19.7/s wait 0% loss 2.512 adv 0.693/0", newest)
    assert ("D 0.700/0.600/0.700/0.600" in newest) == (columns >= 100)
    assert speed["seconds_per_step"] == pytest.approx(1000 / 1234, rel=0.01)


def test_a_file_gets_a_line_now_and_then(script, city, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = upper(city, tmp_path / "run", "--epochs", 6, "--eval-every", 6)
    monkeypatch.setattr(bar.Lines, "_last", time.monotonic())
    assert "step 3/12" not in script(*command).out  # it takes no half minute
    monkeypatch.setattr(bar, "EVERY", 0.0)
    done = script(*upper(city, tmp_path / "again", "--epochs", 6, "--eval-every", 6))
    of_steps = [line for line in done.out.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in of_steps] == [f"step {n}/12, epoch {-(-n // 2)}/6" for n in range(1, 13)]
    assert re.fullmatch(
        r"step 8/12, epoch 4/6: loss [\d.]+; [\d.]+ s/step, [\d.]+ images/s, waiting \d+ %, \d+ s left", of_steps[7]
    )
    assert re.search(r"^evaluation on Cityscapes val: batch 1/\d+, \d+ s left$", done.out, flags=re.MULTILINE)
    assert done.err == ""  # no bar in a file


def test_the_line_of_an_epoch_starts_with_the_answer() -> None:
    figures = {"target": {"miou": 0.3412}, "student": {"miou": 0.3}, "source": {"miou": 0.551}}
    line = epoch_line(Progress(78000, 1560, step=31200, epoch=20), MULTI_LEVEL, figures, 6000)
    assert line.startswith("mIoU 34.1 (student 30.0, source 55.1), epoch 20/50, step 31200/78000, 1 h 40 min: loss 2.5")
    assert len(line) <= 160


def test_time_and_memory_stand_beside_the_figures(script, game, city, tmp_path) -> None:
    run = tmp_path / "run"
    flags = ("--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--run-dir", run)
    assert script("train_gta5", *flags, "--epochs", 2).status == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    assert 0 < lines[0]["seconds"] <= lines[-1]["seconds"] == result["seconds"]
    assert result["peak_memory_mib"] == lines[-1]["peak_memory_mib"] > 50
    tags = set(EventAccumulator(str(run / "tensorboard")).Reload().Tags()["scalars"])
    assert {"speed/seconds_per_step", "speed/peak_memory_mib", "target_iou/road"} <= tags
    # A run that goes on counts the time before as well.
    assert script("train_gta5", *flags, "--epochs", 3, "--resume", "--allow-changes").status == 0
    assert json.loads((run / "result.json").read_text())["seconds"] > result["seconds"]
