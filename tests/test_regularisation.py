"""Losses on pseudo-labels against sums written out, their gradients against closed forms; and the flags for them."""

from __future__ import annotations

import argparse
import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, SOURCE, one_line_error, same
from torch import Tensor

from adaptation.losses import LOSSES, cross_entropy, segmentation_loss, symmetric
from adaptation.regularisation import ignored_entropy, regularised, uniform_divergence
from datasets.labels import IGNORE
from models.bisenet import BiSeNet
from training.building import pseudo_label_loss
from training.checkpoint import load_checkpoint
from training.gradients import Gradients
from training.methods import method_name
from utils.distributed import note_parts

CLASSES = 5


def batch() -> tuple[Tensor, Tensor]:
    """Logits [2, 5, 4, 6] and labels of which a third is missing."""
    torch.manual_seed(7)
    labels = torch.randint(0, CLASSES, (2, 4, 6), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 1 / 3] = IGNORE
    return 3 * torch.randn(2, CLASSES, 4, 6), labels


def pixels_of(logits: Tensor, labels: Tensor, labelled: bool) -> Tensor:
    """float64 [n, C]: the probabilities of the labelled pixels, or of the others."""
    rows = logits.double().softmax(dim=1).permute(0, 2, 3, 1)
    return rows[(labels != IGNORE) == labelled]


def gradient(loss, logits: Tensor, labels: Tensor) -> Tensor:
    """At the logits, [pixels, C], labelled and others in their order."""
    logits = logits.clone().requires_grad_()
    loss(logits, labels).backward()
    return logits.grad.permute(0, 2, 3, 1)


def test_the_uniform_divergence_is_the_written_out_sum_and_is_label_smoothing() -> None:
    logits, labels = batch()
    rows = pixels_of(logits, labels, labelled=True)
    written = sum(sum(-math.log(p) for p in row.tolist()) / CLASSES for row in rows) / len(rows)
    assert float(uniform_divergence(logits, labels)) == pytest.approx(written)
    a = 0.1
    smoothed = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, label_smoothing=a / (1 + a))
    both = regularised(logits, labels, cross_entropy, mrkld=a, entropy=0.0)
    assert float(both) == pytest.approx((1 + a) * float(smoothed), rel=1e-5)


def test_the_gradient_of_mrkld_is_its_closed_form() -> None:
    """p (1 + a) - y - a / C over the labelled pixels, nothing at the others."""
    logits, labels = batch()
    a = 0.3
    found = gradient(lambda x, y: regularised(x, y, cross_entropy, mrkld=a, entropy=0.0), logits, labels)
    own = labels != IGNORE
    target = F.one_hot(labels[own].long(), CLASSES)
    expected = ((1 + a) * pixels_of(logits, labels, True) - target - a / CLASSES) / int(own.sum())
    assert torch.allclose(found[own].double(), expected, atol=1e-7)
    assert (found[~own] == 0).all()


def test_symmetric_cross_entropy_is_prodas_sum_and_its_closed_form() -> None:
    logits, labels = batch()
    rows, own = pixels_of(logits, labels, True), labels != IGNORE
    classes = labels[own].long()
    total = 0.0
    for row, c in zip(rows.tolist(), classes.tolist(), strict=True):
        reverse = -sum(p * math.log(max(float(k == c), 1e-4)) for k, p in enumerate(row))
        assert reverse == pytest.approx(9.2103 * (1 - row[c]), rel=1e-4, abs=1e-6)
        total += 0.1 * -math.log(row[c]) + reverse
    assert float(symmetric(logits, labels)) == pytest.approx(total / len(rows))
    assert LOSSES["sce"].function is symmetric
    p = rows.gather(1, classes[:, None])
    pull = 0.1 + math.log(1e4) * p  # of d(-log p): each term is a function of the pixel's own probability
    expected = pull * (rows - F.one_hot(classes, CLASSES)) / len(rows)
    found = gradient(symmetric, logits, labels)
    assert torch.allclose(found[own].double(), expected, atol=1e-6)
    assert (found[~own] == 0).all()


def test_the_entropy_of_ignored_pixels_is_theirs_alone() -> None:
    logits, labels = batch()
    rows = pixels_of(logits, labels, labelled=False)
    written = sum(sum(-p * math.log(p) for p in row.tolist()) for row in rows) / len(rows) / math.log(CLASSES)
    assert float(ignored_entropy(logits, labels)) == pytest.approx(written, rel=1e-5)
    assert (gradient(ignored_entropy, logits, labels)[labels != IGNORE] == 0).all()
    nothing = torch.full_like(labels, IGNORE)
    assert float(ignored_entropy(torch.zeros_like(logits), nothing)) == pytest.approx(1)
    sure = 1000 * F.one_hot(torch.zeros(labels.shape, dtype=torch.int64), CLASSES).permute(0, 3, 1, 2).float()
    assert float(ignored_entropy(sure, nothing)) == pytest.approx(0)
    # IAST divides nats by pixels x 19 and weighs them with 3: of 19 classes the same as 0.465 times the share.
    wide = torch.randn(1, 19, 3, 3)
    nats = -(wide.softmax(1) * wide.log_softmax(1)).sum(1).mean()
    share = ignored_entropy(wide, torch.full((1, 3, 3), IGNORE, dtype=torch.uint8))
    assert float(3 * nats / 19) == pytest.approx(0.465 * float(share), rel=1e-3)


@pytest.mark.parametrize("filled", [0, IGNORE])
def test_a_batch_of_one_kind_of_pixels_is_finite(filled: int) -> None:
    logits, labels = batch()
    labels = torch.full_like(labels, filled)
    found = gradient(lambda x, y: regularised(x, y, symmetric, mrkld=0.1, entropy=0.5), logits, labels)
    assert torch.isfinite(found).all()
    assert float(uniform_divergence(logits, labels)) > 0 or filled == IGNORE
    other = ignored_entropy if filled == 0 else uniform_divergence
    assert float(other(logits, labels)) == 0
    assert (gradient(other, logits, labels) == 0).all()


def test_parts_of_a_batch_count_by_their_own_pixels() -> None:
    logits, labels = batch()
    labels[0, :2] = 1  # the parts have unequal numbers
    for loss in (uniform_divergence, ignored_entropy, symmetric):
        whole = gradient(loss, logits, labels)
        parts = [labels[:1].clone(), labels[1:].clone()]
        note_parts([parts])
        try:
            found = [gradient(loss, logits[i : i + 1], part) / 2 for i, part in enumerate(parts)]
        finally:
            note_parts([])
        assert torch.allclose(torch.cat(found), whole, atol=1e-7)


def test_main_and_auxiliary_outputs_have_the_whole_loss() -> None:
    """Of --target-loss, --mrkld and --lambda-entropy; an output of boundaries has none."""
    logits, labels = batch()
    auxiliary, boundaries = logits.flip(1) / 2, logits[:, :1]
    args = argparse.Namespace(target_loss="sce", loss="ce", mrkld=0.1, lambda_entropy=0.4, workers=0, device="cpu")
    criterion = partial(segmentation_loss, auxiliary_weight=0.5, pixel_loss=cross_entropy)
    found = pseudo_label_loss(args, criterion, None)((logits, (auxiliary, boundaries)), labels)

    def whole(output: Tensor) -> Tensor:
        regularisers = 0.1 * uniform_divergence(output, labels) + 0.4 * ignored_entropy(output, labels)
        return symmetric(output, labels) + regularisers

    assert torch.allclose(found, whole(logits) + 0.5 * whole(auxiliary))


# The script


@pytest.fixture
def command(game, city, trained):
    def build(run_dir, *more):
        return ("train_pseudo_labels", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--labeller", trained,
                "--max-steps", 2, "--max-class-share", 1, "--run-dir", run_dir, *more)  # fmt: skip

    return build


def losses_of(run) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["train"]


@pytest.mark.slow
def test_flags_change_the_targets_loss_alone(script, command, tmp_path) -> None:
    found = {}
    ways = {"plain": (), "mrkld": ("--mrkld", 0.1), "entropy": ("--lambda-entropy", 0.465),
            "sce": ("--target-loss", "sce"), "ce": ("--target-loss", "ce")}  # fmt: skip
    for name, flags in ways.items():
        done = script(*command(tmp_path / name, *flags, "--max-steps", 1))
        assert done.status == 0, done.err
        found[name] = losses_of(tmp_path / name)
    assert len({losses["loss"] for losses in found.values()}) == 1
    assert len({losses["loss_target"] for losses in found.values()}) == 4  # ce is plain
    assert found["mrkld"]["loss_target"] > found["plain"]["loss_target"]
    assert found["entropy"]["loss_target"] > found["plain"]["loss_target"]


@pytest.mark.slow
def test_at_weight_zero_the_source_does_not_pass_and_the_target_does_not_teach(
    script, command, tmp_path, monkeypatch
) -> None:
    passes = []
    forward = BiSeNet.forward
    monkeypatch.setattr(
        BiSeNet, "forward", lambda self, images: (passes.append(self.training), forward(self, images))[1]
    )
    ways = {"both": ((), 4), "target": (("--lambda-source", 0), 2), "source": (("--lambda-target", 0), 4)}
    for name, (flags, expected) in ways.items():
        passes.clear()
        assert script(*command(tmp_path / name, *flags)).status == 0
        assert sum(passes) == expected, name
    assert "loss" not in losses_of(tmp_path / "target")
    # Other labels, the same network: they do not teach.
    flags = ("--lambda-target", 0, "--adapt-bn")
    assert script(*command(tmp_path / "others", *flags)).status == 0
    assert losses_of(tmp_path / "others")["loss_target"] != losses_of(tmp_path / "source")["loss_target"]
    source, others, both = (
        load_checkpoint(tmp_path / name / "checkpoint_last.pt")["weights"] for name in ("source", "others", "both")
    )
    assert same(source, others)
    assert not same(source, both)
    assert "nothing is left" in one_line_error(
        script(*command(tmp_path / "none", "--lambda-source", 0, "--lambda-target", 0))
    )


def test_each_domain_counts_by_its_weight(script, command, tmp_path, monkeypatch) -> None:
    seen, backward = [], Gradients.backward
    monkeypatch.setattr(Gradients, "backward", lambda self, loss, *weight: seen.append(float(loss.detach()))
                        or backward(self, loss, *weight))  # fmt: skip
    flags = ("--lambda-source", 0.5, "--lambda-target", 3, "--max-steps", 1)
    assert script(*command(tmp_path / "weighed", *flags)).status == 0
    logged = losses_of(tmp_path / "weighed")
    assert seen == pytest.approx([0.5 * logged["loss"], 3 * logged["loss_target"]])


def test_the_loss_is_part_of_the_name() -> None:
    settings = {"script": "train_pseudo_labels", "rule": "iast", "adapt_bn": False, "portion": 0.2, "beta": None,
                "lambda_source": 0.0, "lambda_entropy": 0.465, "mrkld": 0.0, "target_loss": "sce"}  # fmt: skip
    assert method_name(settings) == (
        "pseudo-labels by IAST's rule, target_loss sce, lambda_entropy 0.465, lambda_source 0.0"
    )
