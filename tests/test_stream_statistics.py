"""Batch normalisation by the statistics of the frames just seen."""

import numpy as np
import pytest
import torch
from conftest import one_line_error, picture, run_once, save, upper, write_cityscapes
from PIL import Image
from test_benchmarks import rows
from torch import nn

from adaptation.stream import RunningBatchNorm
from datasets.files import read_image
from models import build_segmenter
from training.checkpoint import build_from_checkpoint, load_checkpoint
from training.prediction import maps


def frames(count):
    return [torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(n)) * (n + 1) for n in range(count)]


def test_the_statistics_are_those_of_all_pixels_of_the_window():
    layer = nn.BatchNorm2d(3)
    seen = frames(5)
    with RunningBatchNorm(nn.Sequential(layer), 3):
        for frame in seen:
            out = layer(frame)
        together = torch.cat(seen[2:])
        assert torch.allclose(layer.running_mean, together.mean(dim=(0, 2, 3)), atol=1e-5)
        assert torch.allclose(layer.running_var, together.var(dim=(0, 2, 3), correction=0), rtol=1e-4)
        mean, variance = layer.running_mean[:, None, None], layer.running_var[:, None, None]
        expected = (seen[-1] - mean) / (variance + layer.eps).sqrt()
        assert torch.allclose(out, expected, atol=1e-5)
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert torch.equal(layer.running_var, torch.ones(3))
    assert torch.allclose(layer(seen[0]), seen[0], atol=1e-4)


def test_a_window_of_one_is_training_mode_where_a_picture_has_more_than_one_value():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    seen = frames(2)
    with torch.no_grad(), RunningBatchNorm(model, 1):
        model(seen[0])
        found = model(seen[1])
        assert not torch.allclose(model.train()(seen[0]), found, atol=1e-3)
        model.eval()
    with torch.no_grad():
        assert torch.allclose(model.train()(seen[1]), found, atol=1e-5)


def test_layers_behind_global_pooling_keep_what_they_were_trained_with():
    model = build_segmenter("tiny").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), RunningBatchNorm(model, 2):
        model(frames(1)[0])
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "context_path.bn1.running_mean" in moved
    pooled = {name for name in before if name.startswith("refine") and "running" in name}
    assert pooled
    assert not pooled & moved
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_it_refuses():
    with pytest.raises(ValueError, match="no batch normalisation"):
        RunningBatchNorm(nn.Sequential(nn.Conv2d(3, 3, 1)), 1)
    with pytest.raises(ValueError, match="at least one"):
        RunningBatchNorm(nn.Sequential(nn.BatchNorm2d(3)), 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run_once(*upper(write_cityscapes(folder / "city"), folder / "run", "--max-steps", 2))
    return folder / "run"


def test_predict_adapts_over_the_pictures_in_order_and_says_where_it_cannot(script, run, tmp_path):
    for number in range(3):
        save(tmp_path / f"in/{number}.png", picture(number) // (3 * number + 1))
    flags = ("--out", tmp_path / "out", "--confidence", "--device", "cpu")
    assert script("predict", run, tmp_path / "in", *flags, "--adapt-bn", "--window", 2).status == 0
    model = build_from_checkpoint(load_checkpoint(run / "checkpoint_last.pt"), run).eval()
    with torch.no_grad(), RunningBatchNorm(model, 2):
        for number in range(3):
            logits = model(read_image(tmp_path / f"in/{number}.png")[None] / 255)
            seen = maps(logits, (32, 48))
            found = np.array(Image.open(tmp_path / f"out/{number}_labelTrainIds.png"))
            assert (found == seen.classes).mean() > 0.99
    with torch.no_grad():
        assert (maps(model(read_image(tmp_path / "in/2.png")[None] / 255), (32, 48)).classes != found).mean() > 0.01

    def said(*more):
        return one_line_error(script("predict", run, tmp_path / "in", *flags, "--force", *more))

    assert "add --adapt-bn" in said("--window", 2)
    assert "leave out --adapt-bn" in said("--adapt-bn", "--cam", "car")
    assert "an exported file has no batch normalisation" in said("--adapt-bn", "--runtime", "onnx")


def test_the_benchmark_takes_the_first_frames_and_replaces_no_file(script, run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("benchmarks.stream.tracked", lambda frames, *_: seen.append(frames) or frames)
    command = ("benchmarks.stream", run, "--windows", 1, "--limit", 1, "--workers", 0, "--device", "cpu")
    done = script(*command, "--json", tmp_path / "stream.json")
    assert done.status == 0, done.err
    assert seen == [range(1)]
    assert "1 frame in order" in done.out
    assert "nothing is overwritten" in one_line_error(script(*command, "--json", tmp_path / "stream.json"))


def test_the_benchmark_has_a_row_a_way_and_eval_s_figures(script, run):
    done = script("benchmarks.stream", run, "--windows", 1, 3, "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    found = {row[0]: row[1:] for row in rows(done.out)}
    ways = ["as it was trained", "AdaBN before the drive", "running window of 1", "running window of 3"]
    assert list(found) == ways
    for more, way in ((), ways[0]), (("--adapt-bn",), ways[1]):
        evaluated = rows(script("eval", run, *more, "--workers", 0, "--device", "cpu").out)
        assert evaluated[0][2] == found[way][0]
