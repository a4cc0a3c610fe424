"""measure_flops.py and benchmarks/adaptation.py: what they print is what was counted or run."""

import json
from argparse import Namespace

import pytest
import torch
from conftest import one_line_error, run_once

import measure_flops


@pytest.fixture
def in_process(monkeypatch):
    """The scripts of many cells, here: a process of its own takes longer to start than they run. Those that
    tests/test_benchmarks.py asks for are started as a user's are."""

    def call(arguments, hear=None):
        run_once(arguments[0].removesuffix(".py"), *arguments[1:])

    monkeypatch.setattr("reporting.plan.call", call)


def test_measure_flops_counts_and_times(script, tmp_path):
    figures, text = tmp_path / "cost.json", tmp_path / "cost.md"
    flags = ("--only", "discriminator", "--size", "256x128", "--runs", 3, "--device", "cpu")
    done = script("measure_flops", *flags, "--json", figures, "--markdown", text)
    assert done.status == 0, done.err
    costs = json.loads(figures.read_text())["networks"]
    assert costs["discriminator standard"]["conv_macs"] == 15_439_233_024 // 16
    assert costs["discriminator depthwise"]["parameters_inference"] == 189_424
    assert costs["discriminator shallow"]["conv_macs"] == 519_045_120 // 16
    assert costs["discriminator class"]["conv_macs"] == 22_101_884_928 // 16
    assert "1,024 channels at 1/8, the features of BiSeNet-18" in done.out
    assert costs["discriminator standard"]["not_counted_by_fvcore"] == {"aten::leaky_relu_": 4}
    for cost in costs.values():
        for timing in cost["timing"].values():
            assert 0 < timing["latency_median_ms"] <= timing["latency_p95_ms"]
            assert timing["images_per_second"] == pytest.approx(1e3 / timing["latency_median_ms"])
    assert text.read_text() == done.out
    assert "leaky_relu_" in done.out
    assert "assignment sheet" in done.out
    assert "nothing is overwritten" in one_line_error(script("measure_flops", *flags, "--json", figures))
    assert "no network is called so" in one_line_error(script("measure_flops", "--only", "unet"))
    twice = ("--json", tmp_path / "x", "--markdown", tmp_path / "x")
    assert "name one file" in one_line_error(script("measure_flops", "--no-latency", *twice))


def test_auxiliary_heads_exist_in_training_only(script):
    done = script("measure_flops", "--only", "bisenet resnet18", "--size", "64x64", "--no-latency")
    (row,) = [line for line in done.out.splitlines() if line.startswith("| bisenet resnet18") and "12,0" in line]
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["12,068,672", "12,054,042"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_adaptation_hands_rows_to_the_rows_that_need_them(script, game, city, tmp_path):
    done = script("benchmarks.adaptation", "--gta5", game, "--cityscapes", city, "--size", "48x32", "--batch-size", 2,
                  "--steps", 1, "--workers", 0, "--device", "cpu", "--out", tmp_path, "--seeds", 3,
                  "--only", "FDA, mean of three", "pseudo-labels after FDA + AdaBN")  # fmt: skip
    assert done.status == 0, done.err
    runs = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    bands = {f"FDA--beta-0-{band}-seed3" for band in ("01", "05", "09")}
    assert bands | {"pseudo-labels-after-FDA-seed3"} == {name for name in runs if name.endswith("seed3")}
    config = json.loads((tmp_path / "pseudo-labels-after-FDA-seed3/config.json").read_text())
    assert {path.split("/")[-2] for path in config["arguments"]["labeller"]} == bands
    assert config["arguments"]["percentile"] == 66
    mean = json.loads((tmp_path / "FDA--mean-of-three-seed3.json").read_text())
    assert (mean["row"], mean["seed"], mean["step"]) == ("FDA, mean of three", 3, None)
    alone = [json.loads((tmp_path / f"{band}.json").read_text())["miou"] for band in bands]
    assert all(mean["miou"] != miou for miou in alone)


def test_a_batch_is_timed_as_one_and_its_pictures_are_counted(monkeypatch):
    seen, timed = [], measure_flops.timed
    monkeypatch.setattr(measure_flops, "timed", lambda network, x: seen.append(len(x)) or timed(network, x))
    args = Namespace(device=torch.device("cpu"), size=(64, 32), batch_size=2, runs=1, precision=None, compile=False)
    found = measure_flops.timings(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval(), args)
    assert set(seen) == {2}
    for timing in found.values():
        assert timing["images_per_second"] == pytest.approx(2e3 / timing["latency_median_ms"])
