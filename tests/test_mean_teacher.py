"""The mathematics of train_dacs.py: masks, mixtures, weights, the moving average; and that the script does it."""

import copy
import json

import pytest
import torch
from conftest import SMALL, SOURCE, assert_resumes_exactly, same, source_only
from torch import nn

from models import build_segmenter
from utils.checkpoint import load_checkpoint
from utils.losses import cross_entropy, weighted_by_pixel
from utils.mean_teacher import follow, teach, teacher_of
from utils.mixing import StrongAugmentation, class_mask, mix, pseudo_label_weight


def test_the_mask_takes_half_of_the_classes_rounded_up_and_never_ignore():
    torch.manual_seed(0)
    labels = torch.randint(0, 19, (40, 12, 12), dtype=torch.uint8)
    for number, picture in enumerate(labels):
        picture[picture >= number % 19 + 1] = 255  # from one class up to nineteen, and pixels without a label
    labels[0] = 255
    mask = class_mask(labels)
    taken_classes = []
    for picture, taken in zip(labels, mask, strict=True):
        present = set(picture.unique().tolist()) - {255}
        chosen = set(picture[taken].unique().tolist())
        assert chosen <= present
        assert len(chosen) == (len(present) + 1) // 2
        assert torch.equal(taken, torch.isin(picture, torch.tensor(sorted(chosen), dtype=torch.uint8)))
        taken_classes.append(frozenset(chosen))
    assert not mask[0].any()
    again = class_mask(labels[18:19].expand(30, -1, -1))
    assert len({tuple(picture.flatten().tolist()) for picture in again}) > 20  # each picture draws its own
    torch.manual_seed(0)
    one = class_mask(labels)
    torch.manual_seed(0)
    assert torch.equal(one, class_mask(labels))


def test_every_class_is_taken_as_often():
    torch.manual_seed(0)
    labels = torch.arange(19, dtype=torch.uint8).view(1, 1, 19).expand(4000, 1, 19)
    share = class_mask(labels).float().mean(dim=(0, 1))
    assert torch.allclose(share, torch.full((19,), 10 / 19), atol=0.04)


def test_mixed_picture_label_and_weight_agree_pixel_by_pixel():
    torch.manual_seed(1)
    source, target = torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9)
    labels, pseudo = torch.randint(0, 5, (2, 2, 8, 9), dtype=torch.uint8)
    mask = class_mask(labels)
    mixed, mixed_labels = mix(mask, source, target), mix(mask, labels, pseudo)
    weights = mix(mask, torch.ones(2, 8, 9), torch.tensor(0.25).expand(2, 8, 9))
    for b in range(2):
        for y in range(8):
            for x in range(9):
                here = bool(mask[b, y, x])
                assert torch.equal(mixed[b, :, y, x], (source if here else target)[b, :, y, x])
                assert mixed_labels[b, y, x] == (labels if here else pseudo)[b, y, x]
                assert weights[b, y, x] == (1.0 if here else 0.25)


def test_the_weight_is_the_share_of_sure_pixels_and_weighs_each_pixel():
    confidence = torch.tensor([[[0.9, 0.968, 0.969, 1.0]]])
    assert pseudo_label_weight(confidence) == 0.5
    torch.manual_seed(2)
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3, 4))
    labels[0, 0] = 255
    weights = torch.rand(2, 3, 4, dtype=torch.float64)
    terms = [
        -weights[b, y, x] * logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b in range(2) for y in range(3) for x in range(4) if labels[b, y, x] != 255
    ]  # fmt: skip
    assert weighted_by_pixel(logits, labels, weights).item() == pytest.approx(float(sum(terms)) / 20, rel=1e-12)
    ones = torch.ones_like(weights)
    assert torch.allclose(weighted_by_pixel(logits, labels, ones), cross_entropy(logits, labels))


def test_the_teacher_follows_the_closed_form_and_has_no_gradient():
    """With decays d_t = min(1 - 1 / (t + 1), 0.99) the teacher is sum_t (1 - d_t) prod_{u > t} d_u student_t."""
    torch.manual_seed(3)
    student = nn.Linear(3, 2).double()
    teacher = teacher_of(student)
    history = []
    for step in range(150):
        with torch.no_grad():
            student.weight.normal_()
        history.append(student.weight.detach().clone())
        follow(teacher, student, step)
    expected = torch.zeros_like(student.weight)
    for value, step in zip(history, range(150), strict=True):
        expected = min(1 - 1 / (step + 1), 0.99) * expected + (1 - min(1 - 1 / (step + 1), 0.99)) * value
    assert torch.allclose(teacher.weight, expected, rtol=1e-12)
    assert torch.allclose(teacher_after(history[:100]), torch.stack(history[:100]).mean(0), rtol=1e-10)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def teacher_after(history):
    """For the first hundred steps the average is the plain mean."""
    student = nn.Linear(3, 2).double()
    teacher = teacher_of(student)
    for step, value in enumerate(history):
        with torch.no_grad():
            student.weight.copy_(value)
        follow(teacher, student, step)
    return teacher.weight


def test_the_teacher_labels_with_the_statistics_of_its_batch_and_keeps_the_targets():
    torch.manual_seed(4)
    teacher = teacher_of(build_segmenter("bisenet"))
    reference = copy.deepcopy(teacher).train()
    images = torch.rand(3, 3, 32, 48)
    labels, confidence = teach(teacher, images)
    with torch.no_grad():
        softmax = reference(images)[0].softmax(1)
    assert torch.allclose(confidence, softmax.max(1).values, atol=1e-6)
    assert (labels == softmax.argmax(1)).float().mean() > 0.999
    for (name, value), expected in zip(teacher.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), expected.float(), atol=1e-6), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_strong_augmentation_is_per_picture_and_stays_a_picture():
    torch.manual_seed(5)
    images = torch.rand(1, 3, 24, 32).expand(12, -1, -1, -1)
    out = StrongAugmentation()(images)
    assert out.shape == images.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert len({float(picture.sum()) for picture in out}) > 6


# The script


def dacs(game, city, run_dir, *more):
    return ("train_dacs", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2, "--run-dir", run_dir,
            *more)  # fmt: skip


def test_dacs_resumes_exactly_with_sets_of_different_size(script, game, city, tmp_path, monkeypatch):
    for label in (city / "gtFine/train").rglob("*.png"):
        label.write_bytes(b"")  # the target's train labels are never opened
    straight = assert_resumes_exactly(
        script, monkeypatch, tmp_path, lambda run_dir, *more: dacs(game, city, run_dir, "--size", "64x32", *more)
    )
    assert set(straight["training"]) == {"student", "optimizer", "schedule"}
    student, teacher = straight["training"]["student"], straight["weights"]
    assert not torch.equal(student["classifier.weight"], teacher["classifier.weight"])
    entry = straight["history"][-1]
    assert {"student", "target", "train"} <= entry.keys()
    assert {"loss", "loss_mix", "sure"} <= entry["train"].keys()
    result = json.loads((tmp_path / "straight/result.json").read_text())
    assert result["miou"] == entry["target"]["miou"]  # the teacher is the headline
    assert script("eval", tmp_path / "straight/checkpoint_last.pt", "--workers", 0, "--device", "cpu").status == 0


def test_weight_zero_trains_the_student_as_source_only_does(script, game, city, tmp_path):
    assert script(*source_only(game, city, tmp_path / "plain")).status == 0
    assert script(*dacs(game, city, tmp_path / "zero", "--lambda-mix", 0)).status == 0
    assert script(*dacs(game, city, tmp_path / "one")).status == 0
    plain, zero, one = (load_checkpoint(tmp_path / n / "checkpoint_last.pt") for n in ("plain", "zero", "one"))
    assert same(plain["weights"], zero["training"]["student"])
    assert same(plain["training"]["optimizer"], zero["training"]["optimizer"])
    assert not same(plain["training"]["optimizer"], one["training"]["optimizer"])
