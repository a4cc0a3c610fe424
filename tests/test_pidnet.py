"""PIDNet: its counts, the authors' results, any size, its losses by hand, its ImageNet weights, and its runs."""

import json
import math

import pytest
import torch
import torchvision
from conftest import SMALL, SOURCE, one_line_error, source_only, upper

from adaptation.losses import (
    IGNORE,
    boundaries,
    boundary_aware_loss,
    boundary_loss,
    cross_entropy,
    hard_pixels,
    ohem,
    segmentation_loss,
)
from models import WeightsError, build_segmenter
from reporting.costs import count
from training.methods import method_name
from utils.distributed import note_parts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "training", "inference", "macs"),
    [
        ("s", 7_720_935, 7_625_715, 11_798_593_536),
        ("m", 28_763_111, 28_538_515, 44_332_253_184),
        ("l", 37_314_311, 36_939_571, 68_733_452_288),
    ],
)
def test_it_has_the_known_counts(size, training, inference, macs):
    counted = count(build_segmenter("pidnet", backbone=size).eval(), (1024, 512))
    assert (counted["parameters_training"], counted["parameters_inference"]) == (training, inference)
    assert counted["conv_macs"] == macs


# What the authors' code gives (github.com/XuJiacong/PIDNet at 4c158cf) with the weights made here, in float64


def made_up(model):
    """Weights that need no file: waves, from each tensor's name and shape."""
    for name, value in model.state_dict().items():
        if name.startswith("normalise") or not value.is_floating_point():
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.37 + sum(map(ord, published(name))) % 97)
        wave = wave.view(value.shape)
        if value.ndim == 4:
            wave = wave * (3 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            wave = 1 + 0.4 * wave
        else:
            wave = 0.2 * wave
        value.copy_(wave)
    return model


def published(name):
    """A tensor's name in the authors' code."""
    return name.replace("auxiliary_", "seghead_")


def picture():
    return torch.sin(torch.arange(2 * 3 * 64 * 128, dtype=torch.float64) * 0.013).view(2, 3, 64, 128).abs()


AUTHORS = {
    "s": ((-0.870474586, 7.594211678, -1.448708079), (-5.406055583, -6.461669709, 0.778956931),
          (-0.212246994, -0.357042930, -0.197618943)),
    "l": ((-0.416830605, 0.942017014, 0.249115576), (-0.457009273, 0.177650160, -1.133966679),
          (-0.677683154, -0.620639602, -0.337924927)),
}  # fmt: skip
"""Three logits each of the main, the extra semantic and the boundary output."""


@pytest.mark.parametrize("size", ["s", pytest.param("l", marks=pytest.mark.slow)])
@torch.no_grad()
def test_with_equal_weights_it_computes_what_the_authors_code_does(size):
    model = made_up(build_segmenter("pidnet", num_classes=7, backbone=size).double()).eval()
    model.training = True  # the network's own flag: statistics as in evaluation, with the outputs of training
    main, auxiliary = model(picture())
    assert torch.equal(main, model.eval()(picture()))
    for maps, expected in zip((main, *auxiliary), AUTHORS[size], strict=True):
        found = (maps[1, 0, 5, 9], maps[0, -1, 40, 100], maps[1, maps.shape[1] // 2, 63, 127])
        assert [float(value) for value in found] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("size", [(33, 47), (66, 64), (32, 32)])
def test_any_size_is_trained_on_and_predicted(size):
    """The authors' code takes multiples of 8 only."""
    model = build_segmenter("pidnet", num_classes=3)
    images = torch.rand(2, 3, *size)
    logits, (semantic, boundary) = model(images)
    assert logits.shape == semantic.shape == (2, 3, *size)
    assert boundary.shape == (2, 1, *size)
    with torch.no_grad():
        assert model.eval()(images).shape == (2, 3, *size)


def test_every_parameter_gets_a_gradient_from_the_whole_loss():
    torch.manual_seed(0)
    model = build_segmenter("pidnet", num_classes=5)
    labels = torch.randint(0, 5, (2, 8, 8), dtype=torch.uint8).repeat_interleave(16, 1).repeat_interleave(16, 2)
    segmentation_loss(model(torch.rand(2, 3, 128, 128)), labels, 0.4).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


# The losses


def test_boundaries_are_two_pixels_wide_on_each_side_and_none_is_at_missing_labels():
    labels = torch.zeros(2, 12, 12, dtype=torch.uint8)
    labels[0, :, 5:] = 13
    labels[1, 7:] = 255
    labels[1, :, :4] = 1
    expected = torch.zeros(2, 12, 12, dtype=torch.bool)
    expected[0, :, 3:7] = True
    expected[1, :5, 2:6] = True  # two pixels from 255 there is none
    assert torch.equal(boundaries(labels), expected)
    assert torch.equal(boundaries(labels.long()), expected)


def test_the_boundary_loss_is_the_one_by_hand(monkeypatch):
    logits = torch.tensor([[0.0, 1.0, -2.0], [3.0, -1.0, 0.5]])[None, None]
    edges = torch.tensor([[True, False, False], [True, False, False]])[None]
    monkeypatch.setattr("adaptation.losses.boundaries", lambda labels: edges)
    terms = []
    for edge, value in zip(edges.flatten().tolist(), logits.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-value))
        terms.append(-4 / 6 * math.log(p) if edge else -2 / 6 * math.log(1 - p))
    loss = boundary_loss(logits, torch.zeros(1, 2, 3, dtype=torch.uint8))
    assert float(loss) == pytest.approx(20 * sum(terms) / 6, rel=1e-6)


def test_boundaries_of_a_batch_in_parts_weigh_as_in_the_whole():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (4, 4, 4), dtype=torch.uint8).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[1:3] = 0
    logits = torch.randn(4, 1, 16, 16)
    whole = boundary_loss(logits, labels)
    parts = [labels[:2], labels[2:]]
    assert not torch.allclose(sum(boundary_loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)) / 2, whole)
    try:
        note_parts([parts])
        losses = [boundary_loss(logits[i : i + 2], part) for i, part in zip((0, 2), parts, strict=True)]
        assert torch.allclose(sum(losses) / 2, whole)
    finally:
        note_parts([])


def test_the_boundary_aware_loss_is_ohem_where_boundaries_are_sure_and_nothing_elsewhere():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 8, 8, requires_grad=True)
    labels = torch.randint(0, 5, (2, 8, 8), dtype=torch.uint8)
    labels[0, 0] = IGNORE
    surely = torch.full((2, 1, 8, 8), math.log(4) + 1e-3, requires_grad=True)  # sigmoid(log 4) = 0.8
    loss = boundary_aware_loss(logits, surely, labels)
    assert torch.equal(loss, ohem(logits, labels, 0.9, 1 / 48))
    assert torch.equal(loss, hard_pixels(logits, labels))
    loss.backward()
    assert surely.grad is None
    logits.grad = None
    nowhere = boundary_aware_loss(logits, surely.detach() - 2e-3, labels)
    nowhere.backward()
    assert float(nowhere.detach()) == 0
    assert not logits.grad.any()


def test_the_whole_loss_is_the_sum_of_its_four_and_leaves_boundaries_out_where_asked():
    torch.manual_seed(0)
    main, semantic = torch.randn(2, 2, 5, 16, 16)
    boundary = 2 * torch.randn(2, 1, 16, 16)
    labels = torch.randint(0, 5, (2, 2, 2), dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    outputs = (main, (semantic, boundary))
    first = hard_pixels(main, labels) + 0.4 * cross_entropy(semantic, labels)
    rest = boundary_loss(boundary, labels) + boundary_aware_loss(main, boundary, labels)
    assert torch.allclose(segmentation_loss(outputs, labels, 0.4, hard_pixels, cross_entropy), first + rest)
    without = segmentation_loss(outputs, labels, 0.4, hard_pixels, cross_entropy, with_boundaries=False)
    assert torch.allclose(without, first)
    assert float(rest) > 0


# ImageNet weights: the authors' file


def authors_file(path, lacking=("spp", "dfm"), **changed):
    """A file laid out as theirs, from random numbers."""
    model = build_segmenter("pidnet")
    ours = ("final_layer", "auxiliary_p", "auxiliary_d", "normalise")
    state = {key: value for key, value in model.state_dict().items() if key.partition(".")[0] not in (*ours, *lacking)}
    state = {f"module.{key}": value for key, value in state.items()}
    state |= {f"{part}.weight": torch.zeros(2) for part in ("down5.0", "last_layer.0", "linear")} | changed
    torch.save({"epoch": 100, "state_dict": state, "optimizer": {"state": {}}}, path)
    return state


@pytest.mark.parametrize("lacking", [("spp", "dfm"), ()])
def test_the_authors_imagenet_weights_load(tmp_path, lacking):
    state = authors_file(tmp_path / "authors.pth.tar", lacking)
    torch.manual_seed(1)
    model = build_segmenter("pidnet", weights=str(tmp_path / "authors.pth.tar"))
    own = model.state_dict()
    loaded = [key.removeprefix("module.") for key in state if key.startswith("module.")]
    assert {key.partition(".")[0] for key in loaded} >= {"conv1", "layer5", "layer5_", "layer4_d", "pag3", "diff4"}
    assert all(torch.equal(own[key], state[f"module.{key}"]) for key in loaded)
    assert f"loaded {len(loaded)} tensors" in model.weights_report
    assert "left its ImageNet classifier (down5, last_layer, linear) out" in model.weights_report
    assert ("it has no spp and dfm, which start from random weights" in model.weights_report) == bool(lacking)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match="made for another backbone"):
        build_segmenter("pidnet", weights=str(tmp_path / "resnet18.pth"))
    authors_file(tmp_path / "s.pth.tar", ("spp", "pag3"))
    with pytest.raises(WeightsError, match=r"missing \(first: pag3"):
        build_segmenter("pidnet", weights=str(tmp_path / "s.pth.tar"))
    with pytest.raises(WeightsError, match="of another shape"):
        build_segmenter("pidnet", backbone="m", weights=str(tmp_path / "s.pth.tar"))
    state = {f"model.{key}": value for key, value in build_segmenter("pidnet").state_dict().items()}
    torch.save(state, tmp_path / "cityscapes.pt")
    with pytest.raises(WeightsError, match="do not fit"):  # the authors' Cityscapes weights: they saw the target
        build_segmenter("pidnet", weights=str(tmp_path / "cityscapes.pt"), allow_partial_weights=True)


def test_what_cannot_be_downloaded_is_said_in_a_line(script, city, tmp_path):
    command = ("train_cityscapes", "--cityscapes", city, "--model", "pidnet", "--run-dir", tmp_path / "run")
    said = one_line_error(script(*command))
    assert "give --weights FILE (theirs) or --weights none" in said


# Runs


@pytest.mark.slow
def test_its_own_loss_is_the_default_and_no_variation(script, city, tmp_path):
    done = script(*upper(city, tmp_path / "run", "--model", "pidnet", "--max-steps", 1))
    assert done.status == 0, done.err
    settings = json.loads((tmp_path / "run/config.json").read_text())["arguments"]
    assert (settings["loss"], settings["aux_weight"], settings["backbone"]) == ("pidnet", 0.4, "s")
    assert method_name(settings) == "upper bound"
    assert method_name(settings | {"loss": "ce"}) == "upper bound + loss ce"
    assert method_name(settings | {"model": "bisenet"}) == "upper bound + loss pidnet"


@pytest.mark.slow
def test_labels_that_a_network_made_teach_no_boundary(script, game, city, tmp_path, monkeypatch):
    """The boundary head moves with the source's loss, and without it stays where it was."""
    source = source_only(game, city, tmp_path / "source", "--model", "pidnet", "--max-steps", 1, "--lr", 1e-5)
    assert script(*source).status == 0
    seen = []
    monkeypatch.setattr("adaptation.losses.boundary_loss", lambda *args: seen.append(args) or boundary_loss(*args))
    command = ("train_pseudo_labels", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--model", "pidnet",
               "--max-steps", 1, "--labeller", tmp_path / "source", "--max-class-share", 1)  # fmt: skip
    for weight, calls in ((1, 1), (0, 0)):
        seen.clear()
        done = script(*command, "--lambda-source", weight, "--run-dir", tmp_path / f"run-{weight}")
        assert done.status == 0, done.err
        assert len(seen) == calls
