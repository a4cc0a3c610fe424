"""Every figure against a count made pixel by pixel in plain Python."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import source_only, train_ids, upper

from adaptation.entropy import prediction_entropy
from adaptation.losses import cross_entropy, focal, median_frequency_weights, ohem, segmentation_loss, tempered_weights
from datasets import gta5
from datasets.frequencies import class_counts, class_frequencies
from training.building import pixel_loss
from utils.metrics import ConfusionMatrix


def brute_force(prediction, label, classes):
    pairs = [(p, g) for p, g in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True) if g != 255]
    iou, recall = [], []
    for c in range(classes):
        truth = sum(g == c for _, g in pairs)
        hit = sum(p == g == c for p, g in pairs)
        claimed = sum(p == c for p, _ in pairs)
        iou.append(hit / (truth + claimed - hit) if truth else None)
        recall.append(hit / truth if truth else None)
    seen = [value for value in iou if value is not None]
    return (
        iou,
        sum(seen) / len(seen) if seen else math.nan,
        sum(p == g for p, g in pairs) / len(pairs) if pairs else math.nan,
        sum(r for r in recall if r is not None) / len(seen) if seen else math.nan,
    )


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) < 1e-12


def random_case(seed, classes=19, size=(3, 17, 23), ignored=0.2, drop=()):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, size, generator=generator)
    prediction = torch.where(torch.rand(size, generator=generator) < 0.5, label,
                             torch.randint(0, classes, size, generator=generator))  # fmt: skip
    for c in drop:
        label[label == c] = (c + 1) % classes
    label[torch.rand(size, generator=generator) < ignored] = 255
    return prediction.to(torch.uint8), label.to(torch.uint8)


CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(4)},
    "absent classes": random_case(5, drop=(0, 3, 18)),
    "all ignored": (torch.zeros(4, 4, dtype=torch.uint8), torch.full((4, 4), 255, dtype=torch.uint8)),
    "one class, all right": (torch.full((5, 5), 7, dtype=torch.uint8),) * 2,
    "one class, all wrong": (torch.zeros(5, 5, dtype=torch.uint8), torch.full((5, 5), 18, dtype=torch.uint8)),
    "absent class predicted": (torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1, 255]])),
    "one pixel": (torch.tensor([[18]]), torch.tensor([[18]])),
}


@pytest.mark.parametrize("name", CASES)
def test_figures_agree_with_brute_force(name):
    prediction, label = CASES[name]
    matrix = ConfusionMatrix(19)
    matrix.update(prediction, label)
    iou, miou, accuracy, recall = brute_force(prediction, label, 19)
    for measured, expected in zip(matrix.iou().tolist(), iou, strict=True):
        assert same(measured, math.nan if expected is None else expected)
    assert same(matrix.miou(), miou)
    assert same(matrix.accuracy(), accuracy)
    assert same(matrix.mean_class_accuracy(), recall)
    assert int(matrix.present().sum()) == sum(value is not None for value in iou)


def test_updates_add_up():
    whole, parts = ConfusionMatrix(19), ConfusionMatrix(19)
    prediction, label = random_case(9)
    whole.update(prediction, label)
    for p, g in zip(prediction, label, strict=True):
        parts.update(p, g)
    assert torch.equal(whole.matrix, parts.matrix)


def test_what_is_no_class_is_refused():
    matrix = ConfusionMatrix(3)
    for prediction, label in (([0, 1], [0, 3]), ([0, 3], [0, 1]), ([-1, 0], [0, 0]), ([0, 0], [-1, 0])):
        with pytest.raises(ValueError, match="must be 0 to 2"):
            matrix.update(torch.tensor(prediction), torch.tensor(label))
    with pytest.raises(ValueError, match="differ in shape"):
        matrix.update(torch.zeros(2, 2), torch.zeros(2, 3))


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 19, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 19, (2, 5, 7)).to(torch.uint8)
    labels[0, :3] = 255
    p = logits.detach().softmax(1)
    terms = [-math.log(p[b, int(labels[b, y, x]), y, x]) for b in range(2) for y in range(5) for x in range(7)
             if labels[b, y, x] != 255]  # fmt: skip
    assert abs(cross_entropy(logits, labels).item() - sum(terms) / len(terms)) < 1e-12


def test_an_unlabelled_batch_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 19, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert float(loss) == 0
    assert float(logits.grad.abs().max()) == 0


def test_auxiliary_losses_are_added_with_their_weight():
    torch.manual_seed(0)
    main, first, second = torch.randn(3, 1, 19, 4, 4)
    labels = torch.randint(0, 19, (1, 4, 4))
    outputs = (main, (first, second))
    expected = cross_entropy(main, labels) + 0.4 * (cross_entropy(first, labels) + cross_entropy(second, labels))
    assert torch.allclose(segmentation_loss(outputs, labels, 0.4), expected)


def test_entropy_runs_from_sure_to_undecided():
    logits = torch.zeros(1, 19, 1, 2)
    logits[0, 3, 0, 0] = 1e4
    assert torch.allclose(prediction_entropy(logits), torch.tensor([[[0.0, 1.0]]]), atol=1e-6)


# What --loss chooses from, beside plain loops in float64


def loss_case(seed=0, classes=5, size=(2, 6, 7)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size[0], classes, *size[1:], generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes, size, generator=generator)
    labels[torch.rand(size, generator=generator) < 0.2] = 255
    flat = [
        (logits[b, :, y, x].log_softmax(0)[g].item(), g)
        for b, y, x in ((b, y, x) for b in range(size[0]) for y in range(size[1]) for x in range(size[2]))
        if (g := int(labels[b, y, x])) != 255
    ]
    return logits.requires_grad_(), labels.to(torch.uint8), flat


def test_focal_and_weighted_losses_agree_with_plain_loops():
    logits, labels, flat = loss_case()
    assert focal(logits, labels).item() == pytest.approx(
        sum((1 - math.exp(p)) ** 2 * -p for p, _ in flat) / len(flat), rel=1e-12
    )
    assert focal(logits, labels, gamma=0).item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-12)
    weight = torch.tensor([1.0, 0.5, 3.0, 0.25, 8.0], dtype=torch.float64)
    expected = sum(weight[g] * -p for p, g in flat) / sum(weight[g] for _, g in flat)
    assert cross_entropy(logits, labels, weight).item() == pytest.approx(expected.item(), rel=1e-12)
    assert cross_entropy(logits, labels, torch.ones(5, dtype=torch.float64)).item() == pytest.approx(
        cross_entropy(logits, labels).item(), rel=1e-12
    )


@pytest.mark.parametrize(("threshold", "at_least"), [(0.7, 1 / 16), (1e-6, 1 / 4), (1 - 1e-9, 0)])
def test_ohem_takes_the_hard_pixels_and_at_least_a_share(threshold, at_least):
    logits, labels, flat = loss_case(1)
    losses = sorted((-p for p, _ in flat), reverse=True)
    count = max(1, int(at_least * labels.numel()), sum(loss > -math.log(threshold) for loss in losses))
    expected = sum(losses[:count]) / count
    loss = ohem(logits, labels, threshold, at_least)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    touched = logits.grad.abs().sum(dim=1) > 0
    assert int(touched.sum()) == count
    assert not touched[labels == 255].any()


@pytest.mark.parametrize("loss", [cross_entropy, ohem, focal, partial(cross_entropy, weight=torch.ones(5))])
def test_losses_bear_batches_without_labels_and_sure_predictions(loss):
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), 255, dtype=torch.uint8))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()
    sure = torch.zeros(1, 5, 2, 2)
    sure[:, 3] = 1e4
    sure.requires_grad_()
    for right in (3, 0):
        value = loss(sure, torch.full((1, 2, 2), right, dtype=torch.uint8))
        (gradient,) = torch.autograd.grad(value, sure)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert (value.item() < 1e-6) == (right == 3)


def test_median_frequency_weights_follow_their_definition():
    pixels, where_present = torch.tensor([60, 30, 0, 10]), torch.tensor([100, 100, 0, 20])
    # Frequencies 0.6, 0.3 and 0.5: the median is 0.5.
    weights = median_frequency_weights(pixels, where_present)
    assert weights.tolist() == pytest.approx([0.5 / 0.6, 0.5 / 0.3, 1.0, 1.0])
    tempered = tempered_weights(pixels, where_present)
    assert tempered.tolist() == pytest.approx([(0.5 / 0.6) ** 0.5, (0.5 / 0.3) ** 0.5, 1.0, 1.0])


def test_every_script_takes_a_loss_and_counts_the_training_labels(script, game, city, tmp_path):
    counts = np.stack([np.bincount(train_ids(n).ravel(), minlength=256)[:19] for n in range(6)])
    pixels, where_present = class_frequencies(class_counts(gta5(game, (48, 32)), workers=0))
    assert pixels.tolist() == counts.sum(0).tolist()
    assert where_present.tolist() == ((counts > 0) * counts.sum(1, keepdims=True)).sum(0).tolist()
    common = ("--max-steps", 1)
    done = script(*source_only(game, city, tmp_path / "weighted", *common, "--loss", "weighted"))
    assert done.status == 0, done.err
    weights = median_frequency_weights(pixels, where_present)
    assert f"road {weights[0]:.2f}, sidewalk {weights[1]:.2f}" in done.out
    assert pixel_loss("ohem", None, 0, None) is ohem
    losses = {}
    names = ("ce", "focal", "weighted", "tempered")  # no pixel is easy at the first step, so ohem is the cross-entropy
    for loss in names:
        flags = (*common, "--loss", loss)
        commands = {
            "upper": upper(city, tmp_path / f"upper-{loss}", *flags),
            "fda": ("train_fda", *source_only(game, city, tmp_path / f"fda-{loss}", *flags)[1:]),
            "adversarial": ("train_adversarial", *source_only(game, city, tmp_path / f"adversarial-{loss}", *flags)[1:],
                            "--discriminator", "none", "--min-entropy"),
        }  # fmt: skip
        for name, command in commands.items():
            done = script(*command)
            assert done.status == 0, done.err
            metrics = json.loads((tmp_path / f"{name}-{loss}/metrics.jsonl").read_text())
            losses.setdefault(name, set()).add(metrics["train"]["loss"])
    assert all(len(found) == len(names) for found in losses.values())  # a value each: it was the one asked for
