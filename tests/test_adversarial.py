"""The adversarial step is proved, not just run: who gets which gradient, which way the labels point, closed forms."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, SOURCE, assert_resumes_exactly, one_line_error, train_ids
from torch import nn

from adaptation.adversarial import GANS, TARGET, View, least_squares, vanilla
from adaptation.adversarial import SOURCE as SOURCE_LABEL
from adaptation.entropy import (
    charbonnier_entropy_loss,
    class_prior_loss,
    min_entropy_loss,
    prediction_entropy,
    weighted_self_information,
)
from adaptation.losses import segmentation_loss
from datasets.frequencies import class_shares
from models import DISCRIMINATORS, build_discriminator, build_segmenter
from models.discriminator import Discriminator
from reporting.costs import count, networks
from train_adversarial import AdversarialStep
from training.adversaries import discriminators_for
from training.building import adam
from training.gradients import Gradients
from training.methods import method_name

silent = Gradients("fp32", 1, torch.device("cpu"), lambda **_: None)
"""Whose log keeps nothing."""


def segmenter_gradients(step, images, labels, target):
    """(what the discriminators see of the source, of the target)"""
    return step.source_gradients(images, labels), step.target_gradients(target)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    labels = torch.randint(0, 19, (2, 64, 96)).to(torch.uint8)
    return torch.rand(2, 3, 64, 96), labels, torch.rand(2, 3, 64, 64)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [kind for kind, of in DISCRIMINATORS.items() if not of.by_class])
@pytest.mark.parametrize(("level", "seen"), [("output", "softmax"), ("multi", "entropy")])
def test_segmenter_step_reaches_the_segmenter_and_no_discriminator(batch, kind, level, seen):
    images, labels, target = batch
    model = build_segmenter("tiny").train()
    discriminators = discriminators_for(model, kind, level)
    step = AdversarialStep(model, discriminators, silent, level=level, input=seen, lambda_adv=(1.0, 1.0))
    assert len(discriminators) == (2 if level == "multi" else 1)
    segmenter_gradients(step, images, labels, target)
    with_adversary = gradients(model)
    assert all(p.grad is None for d in discriminators for p in d.parameters())
    assert all(p.requires_grad for d in discriminators for p in d.parameters())
    model.zero_grad()
    step.lambda_adv = (0.0, 0.0)
    segmenter_gradients(step, images, labels, target)
    without = gradients(model)
    changed = {name for name in without if not torch.equal(with_adversary[name], without[name])}
    assert {"spatial_path.0.0.weight", "context_path.conv1.weight", "classifier.weight"} <= changed
    assert ("auxiliary16.weight" in changed) == (level == "multi")
    assert "auxiliary32.weight" not in changed


@pytest.mark.parametrize("level", ["output", "multi"])
def test_discriminator_step_leaves_the_segmenter_untouched(batch, level):
    images, labels, target = batch
    model = build_segmenter("tiny").train()
    discriminators = discriminators_for(model, "standard", level)
    step = AdversarialStep(model, discriminators, silent, level=level)
    seen = segmenter_gradients(step, images, labels, target)
    before = gradients(model)
    step.discriminator_gradients(*seen)
    after = gradients(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for d in discriminators for p in d.parameters())
    for level_index, discriminator in enumerate(discriminators):  # the halved sum of both domains, from scratch
        fresh = copy.deepcopy(discriminator)
        fresh.zero_grad()
        domains = zip((part[level_index].maps for part in seen), (0.0, 1.0), strict=True)
        loss = sum(F.binary_cross_entropy_with_logits(s := fresh(v), torch.full_like(s, d)) / 2 for v, d in domains)
        loss.backward()
        for (name, p), q in zip(discriminator.named_parameters(), fresh.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-9), name


def test_weight_zero_gives_the_source_only_gradients_exactly(batch):
    images, labels, target = batch
    torch.manual_seed(0)
    model = build_segmenter("tiny").train()
    plain = copy.deepcopy(model)
    step = AdversarialStep(model, discriminators_for(model, "standard", "output"), silent, lambda_adv=(0.0,))
    segmenter_gradients(step, images, labels, target)
    segmentation_loss(plain(images), labels).backward()
    expected, found = gradients(plain), gradients(model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def statistics(module):
    return {name: value.clone() for name, value in module.state_dict().items() if "running" in name}


def test_statistics_of_the_target_alone_are_kept_on_request(batch):
    images, labels, target = batch
    torch.manual_seed(0)
    model = build_segmenter("tiny").train()
    alone, both = copy.deepcopy(model), copy.deepcopy(model)
    alone(target)
    both(images)
    both(target)
    discriminators, found = discriminators_for(model, "standard", "output"), {}
    for kept in ("target", "both"):
        stepped = copy.deepcopy(model)
        step = AdversarialStep(stepped, discriminators, silent, target_statistics=kept == "target")
        segmenter_gradients(step, images, labels, target)
        found[kept] = statistics(stepped), gradients(stepped)
        assert all(layer.momentum == 0.1 for layer in stepped.modules() if isinstance(layer, nn.BatchNorm2d))
    assert found["target"][0].keys() == statistics(alone).keys()
    for name, value in statistics(alone).items():
        assert torch.allclose(found["target"][0][name], value, rtol=1e-5, atol=1e-6), name
        assert torch.allclose(found["both"][0][name], statistics(both)[name], rtol=1e-5, atol=1e-6), name
    assert not torch.allclose(*(found[kept][0]["context_path.bn1.running_mean"] for kept in found), rtol=1e-3)
    for name, value in found["both"][1].items():  # training itself is the same: it normalises by the batch
        assert torch.equal(found["target"][1][name], value), name


class Perfect(nn.Module):
    """Knows the domains apart by size: the source is wider than the target."""

    def forward(self, maps):
        sure = -20.0 if maps.shape[-1] == 96 else 20.0  # SOURCE is 0, TARGET is 1
        return torch.full((len(maps), 1, 2, 2), sure) + 0 * maps.mean()


def test_labels_point_the_right_way(batch):
    """A perfect discriminator has no loss and is always right, while the adversarial loss it gives is large."""
    images, labels, target = batch
    logged = {}
    model = build_segmenter("tiny").train()
    kept = Gradients("fp32", 1, torch.device("cpu"), lambda **values: logged.update(values))
    step = AdversarialStep(model, [Perfect()], kept)
    seen = segmenter_gradients(step, images, labels, target)
    assert logged["adversarial"].item() > 19
    seen = [[View(view.maps.requires_grad_()) for view in part] for part in seen]
    step.discriminator_gradients(*seen)
    assert float(logged["discriminator_source"]) < 1e-6
    assert float(logged["discriminator_target"]) < 1e-6
    assert float(logged["discriminator_accuracy_source"]) == float(logged["discriminator_accuracy_target"]) == 1


@pytest.mark.parametrize("kind", [name for name, kind in DISCRIMINATORS.items() if not kind.by_class])
def test_every_kind_learns_the_domains_the_right_way_round(kind):
    """Of maps that are one class each it says soon which domain they are of; to the segmenter that is a large loss."""
    torch.manual_seed(0)
    model, logged = build_segmenter("tiny"), {}
    (discriminator,) = discriminators_for(model, kind, "output")
    kept = Gradients("fp32", 1, torch.device("cpu"), lambda **values: logged.update(values))
    step = AdversarialStep(model, [discriminator], kept)
    source, target = torch.zeros(2, 2, 19, 64, 64)
    source[:, 0] = target[:, 1] = 1
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        step.discriminator_gradients([View(source)], [View(target)])
        optimizer.step()
    assert float(logged["discriminator_accuracy_source"]) == float(logged["discriminator_accuracy_target"]) == 1
    scores = discriminator(target)
    assert float(vanilla(scores, TARGET)) < math.log(2) < float(vanilla(scores, SOURCE_LABEL))  # 2: does not know


def test_losses_agree_with_their_closed_forms():
    torch.manual_seed(0)
    scores = torch.randn(3, 1, 4, 5, dtype=torch.float64) * 3
    p = 1 / (1 + (-scores).exp())
    assert torch.allclose(vanilla(scores, TARGET), -p.log().mean())
    assert torch.allclose(vanilla(scores, SOURCE_LABEL), -(1 - p).log().mean())
    assert torch.allclose(least_squares(scores, TARGET), ((scores - 1) ** 2).mean())
    assert torch.allclose(least_squares(scores, SOURCE_LABEL), (scores**2).mean())
    assert float(GANS["vanilla"].accuracy(scores, TARGET)) == pytest.approx(float((p > 0.5).double().mean()))
    assert float(GANS["least-squares"].accuracy(scores, SOURCE_LABEL)) == pytest.approx(
        float((scores <= 0.5).double().mean())
    )


def test_entropy_agrees_with_float64_also_at_probabilities_of_0_and_1():
    torch.manual_seed(0)
    logits = torch.randn(2, 19, 3, 4) * 4
    logits[0, :, 0, 0] = 0  # all classes alike: entropy 1
    logits[0, :, 0, 1] = -2e4
    logits[0, 5, 0, 1] = 2e4  # probabilities exactly 0 and 1: entropy 0
    logits.requires_grad_()
    probabilities = logits.detach().double().softmax(1)
    assert {0.0, 1.0} <= set(probabilities[0, :, 0, 1].tolist())
    terms = [-v * math.log2(v) / math.log2(19) if v > 0 else 0.0 for v in probabilities.flatten().tolist()]
    expected = torch.tensor(terms, dtype=torch.float64).view_as(probabilities)
    found = weighted_self_information(logits)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    loss = min_entropy_loss(logits)
    assert float(loss) == pytest.approx(float(expected.sum(1).mean()), abs=1e-6)
    assert float(found[0, :, 0, 0].sum()) == pytest.approx(1)
    assert float(found[0, :, 0, 1].abs().sum()) == 0
    per_pixel = expected.sum(1)
    penalty = charbonnier_entropy_loss(logits)
    assert float(penalty) == pytest.approx(float((per_pixel.square() + 1e-8).square().mean()), rel=1e-4)
    (loss + penalty + found.square().sum()).backward()
    assert bool(torch.isfinite(logits.grad).all())


def test_min_entropy_is_added_with_its_weight(batch):
    images, labels, target = batch
    torch.manual_seed(0)
    model = build_segmenter("tiny").train()
    plain = copy.deepcopy(model)
    segmenter_gradients(AdversarialStep(model, [], silent, lambda_entropy=(0.5,)), images, labels, target)
    segmentation_loss(plain(images), labels).backward()
    (0.5 * min_entropy_loss(plain(target)[0])).backward()
    expected, found = gradients(plain), gradients(model)
    assert all(torch.allclose(expected[name], found[name], rtol=1e-4, atol=1e-7) for name in expected)


@pytest.mark.parametrize(("kind", "parameters", "macs"),
                         [("standard", 2_781_121, 15_439_233_024), ("depthwise", 189_424, 1_067_712_512),
                          ("shallow", 12_912, 519_045_120), ("class", 2_698_406, 22_101_884_928)])  # fmt: skip
def test_discriminators_have_the_published_counts(kind, parameters, macs):
    counted = count(networks()[f"discriminator {kind}"](), (1024, 512))
    assert counted["parameters_training"] == parameters
    assert counted["conv_macs"] == macs
    assert counted["conv_flops"] == 2 * macs


def test_discriminator_is_the_published_definition():
    """Spelt out from its weights, with small fixed ones: five 4x4 convolutions of stride 2, leaky ReLU 0.2 between; of
    the shallow one three."""
    torch.manual_seed(0)
    x = torch.rand(1, 4, 64, 96)
    standard, depthwise = Discriminator("standard", 4), Discriminator("depthwise", 4)
    y, z = x, x
    for i in range(5):
        conv, separable = standard[2 * i], depthwise[2 * i]
        y = F.conv2d(y, conv.weight, conv.bias, stride=2, padding=1)
        z = F.conv2d(z, separable[0].weight, None, stride=2, padding=1, groups=z.shape[1])
        z = torch.einsum("oc,bchw->bohw", separable[1].weight[:, :, 0, 0], z)
        if i < 4:
            y, z = torch.where(y > 0, y, 0.2 * y), torch.where(z > 0, z, 0.2 * z)
    assert y.shape == (1, 1, 2, 3)
    assert torch.allclose(standard(x), y, rtol=1e-5, atol=1e-6)
    assert torch.allclose(depthwise(x), z, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="at least 32 x 32"):
        standard(torch.rand(1, 4, 31, 64))
    shallow, z = Discriminator("shallow", 4), x
    for i in range(3):
        z = F.conv2d(z, shallow[2 * i][0].weight, None, stride=2, padding=1, groups=z.shape[1])
        z = F.conv2d(z, shallow[2 * i][1].weight)
        z = torch.where(z > 0, z, 0.2 * z) if i < 2 else z
    assert z.shape == (1, 1, 8, 12)
    assert torch.allclose(shallow(x), z, rtol=1e-5, atol=1e-7)
    assert shallow(torch.rand(1, 4, 8, 9)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="at least 8 x 8, found 8 x 7"):
        shallow(torch.rand(1, 4, 7, 8))
    with pytest.raises(ValueError, match="expected one of"):
        build_discriminator("heavy")


# ADVENT's variants


def test_the_auxiliary_entropy_has_its_own_weight(batch):
    images, labels, target = batch
    torch.manual_seed(0)
    model = build_segmenter("tiny").train()
    plain = copy.deepcopy(model)
    segmenter_gradients(AdversarialStep(model, [], silent, lambda_entropy=(0.5, 0.25)), images, labels, target)
    segmentation_loss(plain(images), labels).backward()
    logits, auxiliary = plain(target)
    (0.5 * min_entropy_loss(logits) + 0.25 * min_entropy_loss(auxiliary[0])).backward()
    expected, found = gradients(plain), gradients(model)
    assert all(torch.allclose(expected[name], found[name], rtol=1e-4, atol=1e-7) for name in expected)


@pytest.mark.parametrize("variant", ["entropy range", "class prior"])
def test_the_step_has_advents_variants_with_their_weights(batch, variant):
    images, labels, target = batch
    torch.manual_seed(0)
    model = build_segmenter("tiny").train()
    plain, least = copy.deepcopy(model), torch.zeros(19)
    least[3] = 1.0  # of one class, more than it can have; lifting all would have no gradient
    flags = {"entropy range": {"entropy_range": 0.3}, "class prior": {"least": least, "lambda_prior": 0.7}}[variant]
    segmenter_gradients(AdversarialStep(model, [], silent, lambda_entropy=(0.5,), **flags), images, labels, target)
    segmentation_loss(plain(images), labels).backward()
    logits, _ = plain(target)
    if variant == "entropy range":
        (0.5 * min_entropy_loss(logits, 0.3)).backward()
    else:
        (0.5 * min_entropy_loss(logits) + 0.7 * class_prior_loss(logits, least)).backward()
    expected, found = gradients(plain), gradients(model)
    assert all(torch.allclose(expected[name], found[name], rtol=1e-4, atol=1e-7) for name in expected)


def test_the_entropy_range_takes_the_unsure_pixels_of_each_picture():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, 10) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    for share, number in ((0.3, 12), (0.5, 20), (0.001, 1)):
        expected = [prediction_entropy(one[None]).flatten().sort(descending=True).values[:number] for one in logits]
        assert float(min_entropy_loss(logits, share)) == pytest.approx(float(torch.cat(expected).mean()))
    for plain in (min_entropy_loss(logits, 1.0), min_entropy_loss(logits)):
        assert float(plain) == pytest.approx(float(prediction_entropy(logits).mean()))


def test_the_class_prior_pulls_up_what_a_picture_lacks():
    """By hand: shares (0.7, 0.2, 0.1), mu 0.5, a picture of (0.9, 0.1, 0): 0 + 0 + 0.05."""
    least = 0.5 * torch.tensor([0.7, 0.2, 0.1])
    logits = torch.tensor([0.9, 0.1, 1e-9]).log().view(1, 3, 1, 1).expand(2, 3, 2, 2).clone()
    logits[1] = torch.tensor([0.4, 0.3, 0.3]).log().view(3, 1, 1)  # of each class enough
    assert float(class_prior_loss(logits[:1], least)) == pytest.approx(0.05, abs=1e-6)
    assert float(class_prior_loss(logits, least)) == pytest.approx(0.025, abs=1e-6)
    logits = torch.tensor([0.9, 0.06, 0.04]).log().view(1, 3, 1, 1).repeat(2, 1, 2, 2)
    logits[1] = torch.tensor([0.4, 0.3, 0.3]).log().view(3, 1, 1)
    logits.requires_grad_()
    class_prior_loss(logits, least).backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0, 0] > 0).all()
    assert (logits.grad[0, 1:] < 0).all()  # descent raises what is missing


def test_other_weights_than_advents_are_named():
    settings = {"script": "train_adversarial", "discriminator": "none", "input": "softmax", "level": "output",
                "min_entropy": True, "lambda_entropy": 0.1, "class_prior": 0.5, "lambda_prior": 10.0}  # fmt: skip
    assert method_name(settings) == "MinEnt, weight 0.1 + class prior 0.5, weight 10"
    assert method_name(settings | {"lambda_entropy": 1e-3, "class_prior": 0.0}) == "MinEnt"
    assert method_name(settings | {"lambda_entropy": 0.0, "class_prior": 0.0}) == "target forward pass, weight 0"


def test_advents_variants_have_names():
    settings = {"script": "train_adversarial", "discriminator": "none", "lambda_entropy": 1e-3, "min_entropy": True,
                "level": "multi", "lambda_entropy_aux": 2e-4, "entropy_range": 0.3, "class_prior": 0.5}  # fmt: skip
    assert method_name(settings) == "MinEnt on 30% of the pixels, auxiliary 0.0002 + class prior 0.5 + level multi"
    plain = settings | {"lambda_entropy_aux": 0.0, "entropy_range": 1.0, "class_prior": 0.0}
    assert method_name(plain) == "MinEnt + level multi"
    assert method_name(settings | {"level": "output", "class_prior": 0}) == "MinEnt on 30% of the pixels"


def test_class_shares_are_those_of_labelled_pixels():
    counts = torch.tensor([[6, 2, 0, 50], [1, 0, 1, 7]])  # last: pixels without a label
    assert class_shares(counts).tolist() == pytest.approx([0.7, 0.2, 0.1])


def test_the_class_prior_is_the_sources(script, game, city, tmp_path, monkeypatch):
    seen, steps = [], []
    monkeypatch.setattr("train_adversarial.AdversarialStep",
                        lambda *given, **named: steps.append(named) or AdversarialStep(*given, **named))  # fmt: skip
    monkeypatch.setattr("train_adversarial.class_prior_loss",
                        lambda logits, least: seen.append(least) or class_prior_loss(logits, least))  # fmt: skip
    flags = ("--discriminator", "none", "--min-entropy", "--class-prior", 0.5, "--level", "multi",
             "--lambda-entropy-aux", 2e-4, "--entropy-range", 0.3, "--lambda-prior", 0.02,
             "--max-steps", 1)  # fmt: skip
    done = script(*adversarial(game, city, tmp_path / "run", *flags))
    assert done.status == 0, done.err
    labels = np.concatenate([train_ids(number).flatten() for number in range(6)])
    shares = np.bincount(labels[labels < 19], minlength=19) / (labels < 19).sum()
    assert seen[0].tolist() == pytest.approx((0.5 * shares).tolist(), abs=1e-6)
    train = json.loads((tmp_path / "run/metrics.jsonl").read_text())["train"]
    assert {"class_prior", "min_entropy", "min_entropy_auxiliary"} <= train.keys()
    assert (steps[0]["entropy_range"], steps[0]["lambda_prior"]) == (0.3, 0.02)
    assert steps[0]["lambda_entropy"] == (1e-3, 2e-4)
    assert steps[0]["lambda_adv"] == ()  # the largest weight in use says how fp16 scales the loss


def test_the_weights_of_the_adversarial_losses_are_the_flags(script, game, city, tmp_path, monkeypatch):
    steps, rates = [], []
    monkeypatch.setattr("train_adversarial.AdversarialStep",
                        lambda *given, **named: steps.append(named) or AdversarialStep(*given, **named))  # fmt: skip
    monkeypatch.setattr("train_adversarial.adam", lambda network, rate: rates.append(rate) or adam(network, rate))
    given = ("--lambda-adv", 0.3, "--lambda-adv-aux", 0.2, "--lr-d", 0.05)
    for level, flags in (("multi", given), ("output", (*given[:2], *given[4:])), ("multi", ())):
        command = adversarial(game, city, tmp_path / f"run{len(steps)}", "--level", level, "--max-steps", 1, *flags)
        assert script(*command).status == 0
    assert [step["lambda_adv"] for step in steps] == [(0.3, 0.2), (0.3,), (1e-3, 2e-4)]
    assert rates == [0.05, 0.05, 0.05, 1e-4, 1e-4]


# The script


def adversarial(game, city, run_dir, *more):
    size = ("--size", "64x32", "--source-size", "48x32")
    return ("train_adversarial", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, *size, "--epochs", 2,
            "--run-dir", run_dir, *more)  # fmt: skip


def test_both_networks_optimizers_and_schedules_survive_an_interruption(script, game, city, tmp_path, monkeypatch):
    for label in (city / "gtFine/train").rglob("*.png"):
        label.write_bytes(b"")  # the target's train labels are never opened
    flags = ("--level", "multi", "--discriminator", "depthwise", "--min-entropy", "--jitter")

    def command(run_dir, *more):
        return adversarial(game, city, run_dir, *flags, *more)

    straight = assert_resumes_exactly(script, monkeypatch, tmp_path, command)
    assert set(straight["training"]) == {"optimizer", "schedule"} | {
        f"discriminator{i}{part}" for i in (0, 1) for part in ("", "_optimizer", "_schedule")
    }


@pytest.mark.parametrize(
    "flags",
    [("--discriminator", "depthwise", "--gan", "least-squares"), ("--discriminator", "none", "--min-entropy"),
     ("--input", "entropy"), ("--discriminator", "shallow", "--level", "feature", "--source-size", "64x64",
                              "--size", "64x64")],
)  # fmt: skip
def test_variants_run_and_evaluate(script, game, city, tmp_path, flags):
    done = script(*adversarial(game, city, tmp_path / "run", *flags, "--max-steps", 2))
    assert done.status == 0, done.err
    assert script("eval", tmp_path / "run/checkpoint_last.pt", "--workers", 0).status == 0


def test_feature_level_sees_the_features(script, game, city, tmp_path):
    model = build_segmenter("bisenet").train()
    (discriminator,) = discriminators_for(model, "standard", "feature")
    assert model.training
    assert discriminator[0].in_channels == 256 + 256 + 512
    images, target = torch.rand(2, 3, 256, 256), torch.rand(2, 3, 256, 320)
    labels = torch.zeros(2, 256, 256, dtype=torch.uint8)
    seen = segmenter_gradients(AdversarialStep(model, [discriminator], silent, level="feature"), images, labels, target)
    assert seen[0][0].maps.shape == (2, 1024, 32, 32)
    assert seen[1][0].maps.shape == (2, 1024, 32, 40)
    message = one_line_error(script(*adversarial(game, city, tmp_path / "small", "--level", "feature")))
    assert "at least 256x256" in message


def test_combinations_without_meaning_are_refused(script, game, city, tmp_path):
    run = tmp_path / "run"
    assert "no entropy" in one_line_error(
        script(*adversarial(game, city, run, "--level", "feature", "--input", "entropy"))
    )
    assert "nothing is left to adapt with" in one_line_error(
        script(*adversarial(game, city, run, "--discriminator", "none"))
    )
    assert not run.exists()
