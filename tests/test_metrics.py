"""Every figure against a count made pixel by pixel in plain Python."""

import math

import pytest
import torch

from utils.entropy import prediction_entropy
from utils.losses import cross_entropy, segmentation_loss
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
    assert abs(float(cross_entropy(logits, labels)) - sum(terms) / len(terms)) < 1e-12


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
