"""The benchmarks measure what they say; how fast it is is no test's business."""

import pytest
import torch

from benchmarks import loading
from benchmarks.evaluation import example, ours, plain


def rows(out):
    lines = [line for line in out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize("size", [(64, 32), (51, 37)])
def test_both_ways_of_counting_get_the_same_predictions(size):
    prediction, label = example(size, torch.device("cpu"))
    assert prediction.shape == label.shape == (size[1], size[0])
    assert torch.equal(ours(prediction, label), plain(prediction, label))
    assert int(ours(prediction, label).sum()) == int((label != 255).sum()) > 0


def test_evaluation_and_inference_print_a_row_a_way(script):
    done = script("benchmarks.evaluation", "--size", "64x32", "--rounds", 1, "--device", "cpu")
    assert [row[0] for row in rows(done.out)] == ["ours", "NumPy"]
    done = script("benchmarks.inference", "--sizes", "64x32", "--batches", 1, 2, "--rounds", 1, "--device", "cpu")
    ways = ["plain fp32", "deployed fp32", "deployed bf16"]
    assert [row[:3] for row in rows(done.out)] == [["64x32", batch, way] for batch in "12" for way in ways]


def test_training_times_the_scripts_beside_plain_loops(script, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SOURCE_SIZE", (96, 48))  # full size takes long to draw
    monkeypatch.setattr(loading, "TARGET_SIZE", (96, 48))
    done = script("benchmarks.training", "--size", "64x32", "--scenes", 2, "--batch-size", 2, "--steps", 1,
                  "--rounds", 1, "--workers", 0, "--device", "cpu", "--out", tmp_path)  # fmt: skip
    assert done.status == 0, done.err
    found = rows(done.out)
    ways = [[method, way] for method in ("source only", "adversarial", "FDA") for way in ("plain", "ours")]
    assert [row[:2] for row in found] == ways
    assert all(float(row[2]) > 0 and 0 <= float(row[5]) <= 100 for row in found)
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == ["drawn", "source", "target"]


def test_methods_are_timed_in_steps_of_source_only(script, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SOURCE_SIZE", (96, 48))
    monkeypatch.setattr(loading, "TARGET_SIZE", (96, 48))
    done = script("benchmarks.methods", "--size", "64x32", "--scenes", 2, "--batch-size", 2, "--steps", 1,
                  "--rounds", 2, "--workers", 0, "--device", "cpu", "--out", tmp_path,
                  "--only", "DACS", "DACS, recipe best")  # fmt: skip
    assert done.status == 0, done.err
    found = rows(done.out)
    assert [row[0] for row in found] == ["source only", "DACS", "DACS, recipe best"]
    assert found[0][2:] == ["1.00", "1.00 to 1.00"]
    assert all(float(row[1]) > 0 < float(row[2]) for row in found)
