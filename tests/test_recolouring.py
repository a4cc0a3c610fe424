"""Recolouring classes: what it draws, what it changes and leaves, and where scripts apply it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, SOURCE, assert_resumes_exactly
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from adaptation.recolouring import RANGES, UNCHANGED, Recolouring, texture
from adaptation.translation import TRANSLATIONS
from reporting.student_tables import source_only_with
from training.methods import method_name


def scene(count: int = 5) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, 48, 64] in [0, 1], channels last in memory as they come; labels of 7 classes and of none."""
    torch.manual_seed(3)
    labels = torch.randint(0, 8, (count, 6, 8), dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = torch.rand(count, 3, 48, 64).contiguous(memory_format=torch.channels_last)
    return images, torch.where(labels == 7, 255, labels)


@pytest.fixture
def sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is blurred; as much is drawn."""
    monkeypatch.setattr("adaptation.recolouring.BLURRED", 0.0)


@pytest.mark.usefixtures("sharp")
def test_each_class_is_changed_by_its_own_draws_and_nothing_else_is() -> None:
    images, labels = scene()
    torch.manual_seed(1)
    drawn = Recolouring(0.6).draw(len(images))
    patterns = texture(*labels.shape, images.device)
    expected = images.clone()
    changed = 0
    for picture, seen, values, pattern in zip(expected, labels, drawn, patterns, strict=True):
        before = picture.clone()
        for c in seen.unique().tolist():
            contrast, saturation, *rest = values[c].tolist()
            gain, offset, strength = (torch.tensor(part).view(-1, 1, 1) for part in (rest[:3], rest[3:6], rest[6:]))
            alone = F.adjust_saturation(F.adjust_contrast(before, contrast), saturation)
            alone = (gain * alone + offset + strength * pattern).clamp(0, 1)
            chosen = seen == c
            if torch.equal(values[c], UNCHANGED):
                assert torch.equal(picture[:, chosen], before[:, chosen])
            else:
                picture[:, chosen] = alone[:, chosen]
                changed += 1
    assert 0 < changed < sum(len(seen.unique()) for seen in labels)
    torch.manual_seed(1)
    found = Recolouring(0.6)(images.clone(), labels)
    assert (found - expected).abs().max() < 1e-5
    kept = torch.stack([(values == UNCHANGED).all(1)[seen.long()] for values, seen in zip(drawn, labels, strict=True)])
    assert kept[labels == 255].all()
    assert torch.equal(found.permute(0, 2, 3, 1)[kept], images.permute(0, 2, 3, 1)[kept])  # bit for bit


@pytest.mark.usefixtures("sharp")
def test_no_class_is_left_out_at_one_and_pixels_without_a_label_always_are() -> None:
    images, labels = scene()
    found = Recolouring(1.0)(images.clone(), labels)
    moved = (found != images).any(dim=1)
    assert not moved[labels == 255].any()
    assert moved[labels != 255].float().mean() > 0.99
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(Recolouring(1.0)(images.clone(), torch.full_like(labels, 255)), images)


def test_draws_are_even_over_their_ranges() -> None:
    torch.manual_seed(0)
    drawn = Recolouring(0.7).draw(64)
    assert drawn.shape == (64, 256, 9)
    due = (drawn != UNCHANGED).any(dim=2)
    assert not due[:, 255].any()
    assert due[:, :255].float().mean() == pytest.approx(0.7, abs=0.02)
    low, high = RANGES.unbind(1)
    values = (drawn[due] - low) / (high - low)
    assert values.min() > -1e-6
    assert values.max() < 1 + 1e-6
    for q in (0.1, 0.5, 0.9):
        assert (values.quantile(q, dim=0) - q).abs().max() < 0.02
    assert (torch.corrcoef(values.T) - torch.eye(9)).abs().max() < 0.05  # channels among them


def test_half_of_the_pictures_are_blurred(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = scene(40)
    torch.manual_seed(2)
    found = Recolouring(0.7)(images.clone(), labels)
    monkeypatch.setattr("adaptation.recolouring.BLURRED", 0.0)
    torch.manual_seed(2)
    plain = Recolouring(0.7)(images.clone(), labels)
    blurred = [not torch.equal(one, other) for one, other in zip(found, plain, strict=True)]
    assert 10 <= sum(blurred) <= 30
    rough = [(picture.diff(dim=-1).abs().mean() + picture.diff(dim=-2).abs().mean()) for picture in (found, plain)]
    assert rough[0] < 0.9 * rough[1]


def test_texture_is_smooth_and_differs_between_pictures_and_channels() -> None:
    for size in ((48, 64), (33, 200), (512, 1024)):
        found = texture(2, *size, torch.device("cpu"))
        assert found.shape == (2, 3, *size)
        assert found.abs().max() <= 1
        assert found.std() > 0.2
        assert max(found.diff(dim=-1).abs().max(), found.diff(dim=-2).abs().max()) < 2.2 * 8 / min(size)
        assert not torch.equal(found[0], found[1])
        assert not torch.equal(found[0, 0], found[0, 1])


def test_zero_draws_nothing_and_changes_nothing_and_a_seed_says_all() -> None:
    images, labels = scene()
    torch.manual_seed(4)
    after = torch.rand(3)
    torch.manual_seed(4)
    assert Recolouring(0.0)(images, labels) is images
    assert torch.equal(torch.rand(3), after)
    twice = []
    for _ in range(2):
        torch.manual_seed(5)
        twice.append(Recolouring(0.7)(images.clone(), labels))
    assert torch.equal(*twice)


# The scripts


SCRIPTS = {
    "train_gta5": (),
    "train_adversarial": (),
    "train_fda": ("--beta", 0.05),
    "train_pseudo_labels": ("--beta", 0.05, "--labeller"),
    "train_dacs": ("--beta", 0.05),
    "train_sac": ("--views", 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_recolour_the_source_and_translate_what_comes_out(
    name, script, game, city, tmp_path, trained, monkeypatch
):
    recoloured, translated = [], []
    original = Recolouring.__call__

    def recolour(self, images, labels):
        recoloured.append(original(self, images, labels).clone())
        return recoloured[-1].clone()

    def fda(source, target, beta):
        translated.append(source.clone())
        return source

    monkeypatch.setattr(Recolouring, "__call__", recolour)
    monkeypatch.setitem(TRANSLATIONS, "fda", replace(TRANSLATIONS["fda"], translate=fda))
    if name in ("train_pseudo_labels", "train_dacs"):
        monkeypatch.setattr(f"{name}.fda", fda)
    flags = (*SCRIPTS[name], *([trained] if "--labeller" in SCRIPTS[name] else ()), "--max-steps", 1)
    losses = []
    for probability in (0, 0.7):
        run = tmp_path / str(probability)
        done = script(name, "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, *flags, "--run-dir", run,
                      "--recolour", probability)  # fmt: skip
        assert done.status == 0, done.err
        (metrics,) = run.rglob("metrics.jsonl")
        losses.append(json.loads(metrics.read_text())["train"]["loss"])
    assert losses[0] != losses[1]
    assert len(recoloured) == 2
    assert len(translated) == (2 if "--beta" in SCRIPTS[name] else 0)
    assert all(torch.equal(a, b) for a, b in zip(translated, recoloured, strict=False))


@pytest.mark.slow
def test_a_recoloured_run_resumes_exactly(script, game, city, tmp_path, monkeypatch):
    def command(run_dir, *more):
        return ("train_dacs", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2, "--recolour", 0.7,
                "--beta", 0.05, "--jitter", "--blur", "--run-dir", run_dir, *more)  # fmt: skip

    assert_resumes_exactly(script, monkeypatch, tmp_path, command)


def test_reports_tell_a_recoloured_run_from_a_plain_one() -> None:
    settings = {"script": "train_gta5", "model": "bisenet", "init": None}
    of_row = {"of_row": True, "script": "train_gta5", "network": ("bisenet", "resnet18")}
    plain, recoloured = (SimpleNamespace(**of_row, settings=settings | {"recolour": share}) for share in (0, 0.7))
    assert source_only_with(())(plain)
    assert not source_only_with(())(recoloured)
    assert method_name(settings) == method_name(plain.settings) == "source only"
    assert method_name(recoloured.settings) == "source only + recolour 0.7"
