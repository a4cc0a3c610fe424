"""FADA: its losses against sums written out and closed forms, its step against one from scratch, and the script."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, SOURCE, assert_resumes_exactly, one_line_error
from soak import FADA
from torch import Tensor, nn

from adaptation.adversarial import SOURCE as SOURCE_LABEL
from adaptation.adversarial import TARGET, View, vanilla
from adaptation.class_level import CLASS_LEVEL, class_level, soft_labels
from adaptation.losses import segmentation_loss
from models import SEGMENTERS, build_discriminator, build_segmenter
from models.discriminator import Discriminator
from reporting.costs import FEATURES
from train_adversarial import AdversarialStep
from training.adversaries import discriminators_for
from training.gradients import Gradients
from training.methods import method_name

CLASSES = 5


def scores_and_soft() -> tuple[Tensor, Tensor]:
    """Scores [2, 10, 3, 4], and soft labels [2, 5, 3, 4] of which some are clipped."""
    torch.manual_seed(3)
    soft = soft_labels(6 * torch.randn(2, CLASSES, 3, 4), (3, 4))
    assert (soft == torch.tensor(0.9)).any()
    return 3 * torch.randn(2, 2 * CLASSES, 3, 4), soft


@pytest.mark.parametrize("domain", [SOURCE_LABEL, TARGET])
def test_the_loss_is_the_sum_over_both_halves_written_out(domain: float) -> None:
    scores, soft = scores_and_soft()
    total = 0.0
    for b, y, x in np.ndindex(2, 3, 4):
        own, none = soft[b, :, y, x].double().tolist(), [0.0] * CLASSES
        label = own + none if domain == SOURCE_LABEL else none + own
        all_scores = scores[b, :, y, x].double().tolist()
        whole = math.log(sum(math.exp(score) for score in all_scores))
        total -= sum(a * (score - whole) for a, score in zip(label, all_scores, strict=True))
    assert float(class_level(scores, domain, soft)) == pytest.approx(total / 24, rel=1e-5)
    swapped = torch.cat(scores.chunk(2, dim=1)[::-1], dim=1)
    other = class_level(swapped, TARGET if domain == SOURCE_LABEL else SOURCE_LABEL, soft)
    assert torch.allclose(other, class_level(scores, domain, soft))


def test_a_discriminator_that_cannot_tell_anything_has_the_loss_log_2k() -> None:
    soft = torch.rand(2, 19, 3, 4).softmax(dim=1)
    for domain in (SOURCE_LABEL, TARGET):
        assert float(class_level(torch.zeros(2, 38, 3, 4), domain, soft)) == pytest.approx(3.6376, abs=1e-4)


def test_with_one_class_it_is_adaptsegnets_loss() -> None:
    """The softmax of two scores is the sigmoid of their difference."""
    scores = 3 * torch.randn(2, 2, 3, 4)
    for domain in (SOURCE_LABEL, TARGET):
        two_way = vanilla(scores[:, 1:] - scores[:, :1], domain)
        assert torch.allclose(class_level(scores, domain, torch.ones(2, 1, 3, 4)), two_way)
        known = vanilla_accuracy(scores[:, 1:] - scores[:, :1], domain)
        assert float(CLASS_LEVEL.accuracy(scores, domain)) == pytest.approx(known)


def vanilla_accuracy(scores: Tensor, domain: float) -> float:
    return float(((scores > 0) == (domain == TARGET)).double().mean())


def test_soft_labels_are_softened_clipped_not_renormalised_and_without_gradient() -> None:
    logits = 4 * torch.randn(2, CLASSES, 6, 8)
    logits[0, :, 0, 0], logits[0, 2, 0, 0] = -50, 50
    logits.requires_grad_()
    soft = soft_labels(logits, (6, 8))
    assert not soft.requires_grad
    plain = np.exp(logits.detach().double().numpy() / 1.8)
    plain /= plain.sum(axis=1, keepdims=True)
    assert torch.allclose(soft.double(), torch.from_numpy(np.minimum(plain, 0.9)), atol=1e-6)
    assert float(soft[0, :, 0, 0].sum()) == pytest.approx(0.9)
    free = soft.amax(dim=1) < 0.9
    assert free.any()
    assert torch.allclose(soft.sum(dim=1)[free], torch.ones(()))


def test_soft_labels_come_from_the_logits_of_their_place() -> None:
    """A network's logits are enlarged from 1/8; brought back they are what they were, up to the picture's curvature."""
    coarse = torch.linspace(-3, 3, 12).view(1, 1, 1, 12) * torch.linspace(-1, 1, CLASSES).view(1, CLASSES, 1, 1)
    coarse = coarse.expand(1, CLASSES, 4, 12)
    logits = F.interpolate(coarse, scale_factor=8, mode="bilinear")
    assert torch.allclose(soft_labels(logits, (4, 12)), soft_labels(coarse, (4, 12)), atol=0.02)


def test_a_perfect_discriminator_has_the_least_loss_and_the_segmenter_a_large_one() -> None:
    classes = torch.randint(0, CLASSES, (2, 3, 4))
    known = F.one_hot(classes, CLASSES).movedim(-1, 1).float()
    scores = torch.cat((40 * known, torch.zeros_like(known)), dim=1)
    assert float(class_level(scores, SOURCE_LABEL, 0.9 * known)) < 1e-6
    assert float(CLASS_LEVEL.accuracy(scores, SOURCE_LABEL)) == 1
    assert float(class_level(scores, TARGET, 0.9 * known)) == pytest.approx(0.9 * 40)
    assert float(CLASS_LEVEL.accuracy(scores, TARGET)) == 0
    near = torch.tensor([[3.0, 3, 3, 4, -9, -9], [3, -9, -9, 0, 0, 0]])  # the source's half has the log-sum-exp alone
    assert float(CLASS_LEVEL.accuracy(near[..., None, None], SOURCE_LABEL)) == 1  # not the maximum, nor the sum
    shares = known.flip(1) * 0.3 + known * 0.6  # its own least loss is the entropy of what it is asked for
    at_best = torch.cat(((shares + 1e-12).log(), torch.full_like(known, -60)), dim=1)
    assert float(class_level(at_best, SOURCE_LABEL, shares)) <= float(class_level(scores, SOURCE_LABEL, shares))


# The step


@pytest.fixture
def step():
    torch.manual_seed(1)
    model = build_segmenter("tiny").train()
    silent = Gradients("fp32", 1, torch.device("cpu"), lambda **_: None)
    return AdversarialStep(model, discriminators_for(model, "class", "feature"), silent, level="feature",
                           gan=CLASS_LEVEL, lambda_adv=(0.5,))  # fmt: skip


@pytest.fixture
def batch():
    torch.manual_seed(2)
    labels = torch.randint(0, 19, (2, 64, 96)).to(torch.uint8)
    return torch.rand(2, 3, 64, 96), labels, torch.rand(2, 3, 64, 64)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_alike(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(value, found[name], rtol=1e-4, atol=1e-6 * float(value.abs().max())), name


def test_the_segmenters_gradients_are_those_of_the_papers_losses(step, batch) -> None:
    """Cross-entropy on the source, of undivided logits; -a log q of the source's half on the target, a constant."""
    images, labels, target = batch
    plain, (discriminator,) = copy.deepcopy(step.model), step.discriminators
    step.source_gradients(images, labels)
    step.target_gradients(target)
    assert all(p.grad is None for p in discriminator.parameters())

    segmentation_loss(plain(images), labels).backward()
    features = plain.features(target)
    a = F.interpolate(plain.decode(features, (64, 64))[0].detach(), (8, 8), mode="bilinear")
    a = (a / 1.8).softmax(1).clamp(max=0.9)
    log_q = discriminator(features[0]).log_softmax(1)
    (0.5 * -(torch.cat((a, torch.zeros_like(a)), 1) * log_q).sum(1).mean()).backward()
    assert_alike(gradients(plain), gradients(step.model))


def test_the_discriminator_learns_from_both_domains_by_half(step, batch) -> None:
    images, labels, target = batch
    seen = step.source_gradients(images, labels), step.target_gradients(target)
    before, (discriminator,) = gradients(step.model), step.discriminators
    fresh = copy.deepcopy(discriminator)
    step.discriminator_gradients(*seen)
    assert_alike(before, gradients(step.model))
    for (view,), halves in zip(seen, ((0, 1), (1, 0)), strict=True):
        assert isinstance(view, View)
        assert view.soft.shape == (2, 19, *view.maps.shape[-2:])
        label = torch.cat([view.soft * (half == 0) for half in halves], 1)
        (0.5 * -(label * fresh(view.maps).log_softmax(1)).sum(1).mean()).backward()
    assert_alike(gradients(fresh), gradients(discriminator))


def test_the_discriminator_is_the_published_definition() -> None:
    """Spelt out from its weights: 3x3 convolutions, leaky ReLU 0.2 between, and a head for each half."""
    torch.manual_seed(0)
    discriminator = Discriminator("class", 6, 4)
    assert [layer.out_channels for layer in list(discriminator)[::2]] == [256, 128, 8]
    x = y = torch.rand(2, 6, 5, 7)
    for place in (0, 2):
        y = F.conv2d(y, discriminator[place].weight, discriminator[place].bias, padding=1)
        y = torch.where(y > 0, y, 0.2 * y)
    heads = zip(discriminator[4].weight.chunk(2), discriminator[4].bias.chunk(2), strict=True)
    expected = torch.cat([F.conv2d(y, weight, bias, padding=1) for weight, bias in heads], dim=1)
    assert torch.allclose(discriminator(x), expected, rtol=1e-4, atol=1e-6)
    assert build_discriminator("class", 6)(torch.rand(1, 6, 1, 1)).shape == (1, 38, 1, 1)


def slow_if_heavy(name: str):
    return pytest.param(name, marks=[pytest.mark.slow] * name.startswith("deeplab"))


@pytest.mark.parametrize("name", map(slow_if_heavy, SEGMENTERS))
def test_it_looks_at_the_features_of_every_network(name: str) -> None:
    model = build_segmenter(name, num_classes=7).eval()
    (discriminator,) = discriminators_for(model, "class", "feature")
    with torch.no_grad():
        features = model.features(torch.rand(1, 3, 41, 67))[0]
        assert discriminator(features).shape == (1, 14, 6, 9)
    assert name != "bisenet" or features.shape[1] == FEATURES, "what the costs are counted on"


# The script


def fada(game, city, run_dir, *more):
    return ("train_adversarial", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, *FADA, "--epochs", 2,
            "--run-dir", run_dir, *more)  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_run_goes_on_exactly(script, game, city, tmp_path, monkeypatch) -> None:
    straight = assert_resumes_exactly(script, monkeypatch, tmp_path, lambda run_dir, *more: fada(game, city, run_dir,
                                      "--bn-statistics", "target", *more))  # fmt: skip
    assert {"discriminator0", "discriminator0_optimizer", "discriminator0_schedule"} <= set(straight["training"])


def test_the_script_trains_by_its_loss(script, game, city, tmp_path, monkeypatch) -> None:
    used, loss = [], View.loss
    monkeypatch.setattr(View, "loss", lambda self, gan, *rest: used.append(gan) or loss(self, gan, *rest))
    done = script(*fada(game, city, tmp_path / "run", "--max-steps", 1))
    assert done.status == 0, done.err
    assert used == [CLASS_LEVEL] * 3  # the segmenter's, and the discriminator's of each domain


def test_what_does_not_go_with_it_is_refused(script, game, city, tmp_path) -> None:
    run = tmp_path / "run"
    without_level = [flag for flag in fada(game, city, run) if flag not in FADA[2:]]
    assert "add --level feature" in one_line_error(script(*without_level))
    assert "leave out --gan" in one_line_error(script(*fada(game, city, run, "--gan", "least-squares")))
    assert "no entropy" in one_line_error(script(*fada(game, city, run, "--input", "entropy")))
    assert not run.exists()


def test_it_has_a_name() -> None:
    settings = {"script": "train_adversarial", "discriminator": "class", "level": "feature", "input": "softmax",
                "min_entropy": False}  # fmt: skip
    assert method_name(settings) == "FADA"
    assert method_name(settings | {"bn_statistics": "target"}) == "FADA + bn_statistics target"
    assert method_name(settings | {"discriminator": "standard"}) == "adversarial, standard + level feature"
