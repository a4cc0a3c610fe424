"""The labelling rules of CBST and IAST against their definitions, written out; and what a round does with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, SOURCE, one_line_error, write_cityscapes
from torch import Tensor, nn

from adaptation.pseudo_labels import CBST, IAST, ConfidenceHistogram
from datasets import cityscapes
from datasets.labels import CLASS_NAMES, IGNORE
from models.ensemble import MeanSoftmax, Mirrored
from training.checkpoint import build_from_checkpoint, load_checkpoint
from training.labelling import pseudo_labelled
from training.methods import method_name, started_from
from utils.errors import UserError

CPU = torch.device("cpu")


def softmaxes(pictures: int, classes: int = 6, seed: int = 0, size: tuple[int, int] = (20, 24)) -> Tensor:
    """float32 [N, C, *size]; classes differ in how often and how surely they are predicted, the last never is."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pictures, classes, *size, generator=generator)
    logits *= torch.rand(pictures, 1, *size, generator=generator) * 4
    logits += torch.linspace(1.5, -1.5, classes).view(-1, 1, 1)
    logits[:, -1] = -30
    return logits.softmax(dim=1)


# CBST


def cbst_definition(probabilities: np.ndarray, portion: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As CBST's public code has it: sort downwards, floor, index. -> (labels, largest p/k, thresholds)."""
    prediction, confidence = probabilities.argmax(1), probabilities.max(1)
    thresholds = np.ones(probabilities.shape[1])
    for c in range(len(thresholds)):
        values = np.sort(confidence[prediction == c])[::-1]
        number = int(np.floor(len(values) * portion))
        if number > 0:
            thresholds[c] = values[number - 1]
    ratios = probabilities / thresholds[:, None, None]
    return np.where(ratios.max(1) >= 1, ratios.argmax(1), IGNORE), ratios.max(1), thresholds


@pytest.mark.parametrize("portion", [0.0, 0.2, 0.5, 1.0])
def test_cbst_is_its_definition(portion: float) -> None:
    probabilities = softmaxes(6)
    rule = CBST(6, CPU, portion)
    for start in range(0, 6, 2):
        rule.observe(probabilities[start : start + 2])
    found = torch.cat([rule.label(probabilities[start : start + 4]) for start in (0, 4)])
    labels, ratio, thresholds = cbst_definition(probabilities.double().numpy(), portion)
    assert rule.thresholds.numpy() == pytest.approx(thresholds, abs=1e-4 + 1e-7)
    assert found.dtype == torch.uint8
    told = np.abs(ratio - 1) > 5e-4  # else the histogram's 1e-4 decides, of thresholds of 0.2 and more
    top = np.sort(probabilities.numpy() / thresholds[:, None, None], axis=1)[:, -2:]
    told &= np.diff(top, axis=1)[:, 0] > 2e-3
    assert told.mean() > 0.95
    assert (found.numpy()[told] == labels[told]).all()
    if portion == 1:
        overruled = (found != IGNORE) & (found != probabilities.argmax(1))
        assert overruled.sum() > 10


def test_cbst_keeps_its_share_of_a_class_that_is_sure_nearly_everywhere() -> None:
    """Four in five pixels above 0.9999, as of a road: what is left to 1 tells them apart."""
    torch.manual_seed(0)
    confidence = 1 - 10 ** (-7.2 * torch.rand(400_000, dtype=torch.float64).sqrt())  # up to 1 - 6e-8, float32's last
    probabilities = torch.stack([confidence, 1 - confidence]).float().view(1, 2, 400, 1000)
    for portion in (0.2, 0.5):
        rule = CBST(2, CPU, portion)
        rule.observe(probabilities)
        exact = float(probabilities[0, 0].flatten().sort(descending=True).values[round(portion * 400_000) - 1])
        assert 1 - float(rule.thresholds[0]) == pytest.approx(1 - exact, rel=0.02)
        assert (rule.label(probabilities) == 0).float().mean() == pytest.approx(portion, abs=0.01)


def test_cbst_lets_a_class_with_a_low_threshold_overrule_the_most_probable_one() -> None:
    rule = CBST(2, CPU, 0.5)
    rule.thresholds = torch.tensor([0.9, 0.35])
    pixels = torch.tensor([[0.6, 0.4], [0.95, 0.05], [0.68, 0.32], [0.36, 0.64]])
    assert rule.label(pixels.T[None, :, None]).tolist() == [[[1, 0, 255, 1]]]
    rule.thresholds = torch.tensor([0.64, 0.64])  # equal ones: a plain threshold
    assert rule.label(pixels.T[None, :, None]).tolist() == [[[255, 0, 0, 1]]]


def test_cbst_gives_no_label_of_a_class_that_is_never_predicted() -> None:
    histogram = ConfidenceHistogram(3)
    histogram.update(torch.zeros(10, dtype=torch.int64), torch.linspace(0.05, 0.95, 10))
    histogram.update(torch.full((4,), 1), torch.full((4,), 0.6))
    assert histogram.surest(0.3).tolist() == pytest.approx([0.75, 0.6, 1.0], abs=2e-4)
    assert histogram.surest(0.2).tolist() == pytest.approx([0.85, 1.0, 1.0], abs=2e-4)  # a fifth of four is no pixel
    rule = CBST(3, CPU, 1.0)
    rule.observe(torch.tensor([0.9, 0.1, 0.0]).view(1, 3, 1, 1))
    assert rule.label(torch.tensor([0.01, 0.0, 0.99]).view(1, 3, 1, 1)).item() == IGNORE


# IAST


def iast_definition(probabilities: np.ndarray, portion: float) -> tuple[np.ndarray, np.ndarray]:
    """With lists and NumPy's percentile -> (labels [N, H, W], thresholds after each picture [N, C])."""
    theta, labels, history = np.full(probabilities.shape[1], 0.9), [], []
    for picture in probabilities:
        prediction, confidence = picture.argmax(0), picture.max(0)
        for c in range(len(theta)):
            values = [theta[c], *confidence[prediction == c]]
            quantile = np.percentile(values, 100 * (1 - portion * theta[c] ** 8))
            theta[c] = 0.9 * theta[c] + 0.1 * quantile
        theta[theta >= 1] = 0.999
        labels.append(np.where(confidence >= theta[prediction], prediction, IGNORE))
        history.append(theta.copy())
    return np.stack(labels), np.stack(history)


@pytest.mark.parametrize("portion", [0.2, 0.3, 1.0])
def test_iast_is_its_definition(portion: float) -> None:
    probabilities = softmaxes(8)
    rule = IAST(6, CPU, portion)
    found = torch.cat([rule.label(probabilities[start : start + 3]) for start in (0, 3, 6)])
    labels, history = iast_definition(probabilities.double().numpy(), portion)
    assert rule.thresholds.numpy() == pytest.approx(history[-1], abs=1e-9)
    assert (found.numpy() == labels).all()
    assert rule.thresholds[-1] == 0.9  # an absent class keeps its own
    assert rule.thresholds[0] != 0.9


@pytest.mark.parametrize(("portion", "root"), [(0.2, 0.9078), (0.25, 0.8961), (0.3, 0.8860)])
def test_iast_settles_where_a_class_keeps_what_it_aims_at(portion: float, root: float) -> None:
    """Confidences even on [0, 1]: theta + portion * theta^8 = 1."""
    rule = IAST(2, CPU, portion)
    even = torch.linspace(0, 1, 20_001)[None]
    for _ in range(200):
        rule._one(torch.zeros(even.shape, dtype=torch.int64), even)
    assert float(rule.thresholds[0]) == pytest.approx(root, abs=2e-4)
    assert root + portion * root**8 == pytest.approx(1, abs=2e-4)


def test_iast_stays_below_one_and_at_power_zero_takes_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = IAST(2, CPU, 0.2)
    rule.thresholds[0] = 1.0
    assert (rule._one(torch.zeros(4, 4, dtype=torch.int64), torch.ones(4, 4)) == 0).all()
    assert rule.thresholds.tolist() == [0.999, 0.9]
    monkeypatch.setattr(IAST, "power", 0)
    rule = IAST(2, CPU, 1.0)
    rule._one(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0.5, 0.7, 0.8]]))
    assert rule.thresholds.tolist() == pytest.approx([0.9 * 0.9 + 0.1 * 0.5, 0.9])


# Labelling a set


class Colours(nn.Module):
    """Logits are the picture's channels, weighed: a network whose predictions a test knows."""

    def forward(self, images: Tensor) -> Tensor:
        weighed = images * torch.tensor([3.0, 2.0, 1.0]).view(3, 1, 1)
        return torch.cat((weighed, torch.full((len(images), 16, *images.shape[-2:]), -1e4)), dim=1)


def probabilities_of(data) -> Tensor:
    return torch.stack([Colours()((data.image(i) / 255)[None])[0] for i in range(len(data))]).softmax(1)


def labelled_by(rule, data, folder, portion=0.4, workers=0, **more):
    return pseudo_labelled(Colours(), data, folder, {}, rule, {"portion": portion}, workers, CPU, **more)


def test_what_is_kept_is_counted_by_the_predicted_class(tmp_path, city) -> None:
    data = cityscapes(city, "train", (48, 32), labelled=False)
    found = labelled_by("cbst", data, tmp_path / "labels", portion=0.9)
    (summary,) = (json.loads(path.read_text()) for path in (tmp_path / "labels").glob("*/summary.json"))
    labels = torch.stack([found.label(i) for i in range(len(data))])
    prediction = probabilities_of(data).argmax(1)
    assert ((labels != IGNORE) & (labels != prediction)).any()  # the case that this is about
    for c in range(3):
        row, own = summary["classes"][CLASS_NAMES[c]], prediction == c
        assert row["predicted_pixels"] == int(own.sum())
        assert row["kept_pixels"] == int((labels == c).sum())
        assert row["kept_share"] == int((labels[own] != IGNORE).sum()) / int(own.sum())
    assert summary["kept_share"] == int((labels != IGNORE).sum()) / labels.numel()
    assert max(row["kept_share"] or 0 for row in summary["classes"].values()) <= 1


def test_a_rule_without_a_first_pass_sees_a_shuffled_set_whatever_the_workers(tmp_path, capsys) -> None:
    root = write_cityscapes(tmp_path / "more", counts=(("train", 9),), labels=False)
    data = cityscapes(root, "train", (48, 32), labelled=False)
    found = labelled_by("iast", data, tmp_path / "none")
    again = labelled_by("iast", data, tmp_path / "two", workers=2)
    order = np.random.default_rng(0).permutation(9)
    labels, history = iast_definition(probabilities_of(data)[order].double().numpy(), 0.4)
    for place, index in enumerate(order):
        assert torch.equal(found.label(index), again.label(index))
        assert found.samples[index].image == data.samples[index].image
        assert (found.label(index).numpy() == labels[place]).all()
    assert not (labels == iast_definition(probabilities_of(data).double().numpy(), 0.4)[0][order]).all()
    (summary,) = (json.loads(path.read_text()) for path in (tmp_path / "none").glob("*/summary.json"))
    assert summary["classes"]["road"]["threshold"] == pytest.approx(history[-1][0])


def test_labels_that_collapse_into_one_class_stop_a_round(tmp_path, city) -> None:
    data = cityscapes(city, "train", (48, 32), labelled=False)
    labels = torch.stack([labelled_by("cbst", data, tmp_path / "all").label(i) for i in range(4)])
    counts = torch.bincount(labels[labels != IGNORE].long(), minlength=3)
    share = float(counts.max() / counts.sum())
    assert labelled_by("cbst", data, tmp_path / "at", max_class_share=share + 1e-4) is not None
    said = f"{100 * share:.0f}% of all labelled pixels are {CLASS_NAMES[counts.argmax()]}"
    with pytest.raises(UserError, match=said):
        labelled_by("cbst", data, tmp_path / "over", max_class_share=share - 1e-4)
    assert not list((tmp_path / "over").glob("*/summary.json"))  # they are not used again
    with pytest.raises(UserError, match=said):  # nor where a run that allowed it left them
        labelled_by("cbst", data, tmp_path / "at", max_class_share=share - 1e-4)
    with pytest.raises(UserError, match="no pixel got a label"):
        labelled_by("cbst", data, tmp_path / "none", portion=0.0, max_class_share=0.9)


def test_a_mirrored_network_is_the_network_in_a_mirror() -> None:
    torch.manual_seed(0)
    network, images = nn.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 10, 12)
    turned = Mirrored(network)(images)
    assert torch.equal(turned, network(images.flip(-1)).flip(-1))
    assert not torch.allclose(turned, network(images), atol=1e-3)
    mean = MeanSoftmax([network, Mirrored(network)])
    assert torch.allclose(mean(images), mean(images.flip(-1)).flip(-1), atol=1e-6)


# The script


@pytest.fixture
def command(game, city, trained):
    def build(run_dir, *more):
        return ("train_pseudo_labels", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--labeller", trained,
                "--max-steps", 1, "--max-class-share", 1, "--run-dir", run_dir, *more)  # fmt: skip

    return build


@pytest.mark.slow
def test_the_portion_grows_over_the_rounds_and_stops(script, command, tmp_path) -> None:
    flags = ("--rule", "cbst", "--rounds", 4, "--portion-max", 0.32, "--label-flip")
    done = script(*command(tmp_path / "mine", *flags))
    assert done.status == 0, done.err
    found = []
    for number in range(1, 5):
        (summary,) = (tmp_path / f"mine/round-{number}/pseudo-labels").glob("*/summary.json")
        made_from = json.loads(summary.read_text())["made_from"]
        assert (made_from["rule"], made_from["label_flip"]) == ("cbst", True)
        found.append(made_from["portion"])
    assert found == pytest.approx([0.2, 0.25, 0.3, 0.32])
    again = script(*command(tmp_path / "mine", *flags, "--resume"))
    assert again.status == 0, again.err
    assert again.out.count("used again") == 4


@pytest.mark.slow
def test_rounds_go_on_from_the_network_that_labels(script, command, tmp_path, trained, monkeypatch) -> None:
    started = []
    monkeypatch.setattr("training.run.start_from", lambda model, path, classes: started.append(path))
    flags = ("--rule", "cbst", "--rounds", 2)
    assert script(*command(tmp_path / "mine", *flags, "--continue")).status == 0
    assert started == [trained, tmp_path / "mine/round-1/checkpoint_last.pt"]
    assert script(*command(tmp_path / "anew", *flags)).status == 0
    assert len(started) == 2
    wrong = ("--continue", "--init", trained)
    assert "no --init" in one_line_error(script(*command(tmp_path / "wrong", *wrong)))


@pytest.mark.slow
def test_a_mirrored_picture_counts_in_the_labels_on_request(script, command, tmp_path, trained, monkeypatch) -> None:
    labellers = []
    recorded = lambda network, *rest: labellers.append(network) or pseudo_labelled(network, *rest)  # noqa: E731
    monkeypatch.setattr("train_pseudo_labels.pseudo_labelled", recorded)
    for name, flags in (("mean", ("--label-flip",)), ("plain", ())):
        assert script(*command(tmp_path / name, *flags)).status == 0
    network, images = build_from_checkpoint(load_checkpoint(trained), trained).eval(), torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        one, other = network(images).softmax(1), network(images.flip(-1)).flip(-1).softmax(1)
        found = [labeller(images).softmax(1) for labeller in labellers]
    assert torch.allclose(found[0], (one + other) / 2, atol=1e-6)
    assert torch.allclose(found[1], one, atol=1e-6)
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_names_of_the_rules() -> None:
    settings = {"script": "train_pseudo_labels", "rule": "cbst", "adapt_bn": False, "percentile": 50.0, "beta": None,
                "portion": 0.25, "label_flip": True, "continue": True, "labeller": ["a.pt"], "init": None}  # fmt: skip
    assert method_name(settings) == "pseudo-labels by CBST's rule, mirrored too, portion 0.25, from the labeller"
    assert started_from(settings) == "a.pt"
    assert method_name(settings | {"rule": "bdl", "continue": False, "label_flip": False, "confidence": 0.5}) == (
        "pseudo-labels, confidence 0.5"
    )
    plain = settings | {"rule": "iast", "portion": 0.2, "label_flip": False, "continue": False}
    assert method_name(plain) == "pseudo-labels by IAST's rule"
    assert started_from(plain) is None
