"""--labels: whose labels they are, what is refused, and the way from predict.py's files to a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, SOURCE, assert_resumes_exactly, one_line_error, save, train_ids, write_cityscapes
from PIL import Image

from adaptation.mixing import mix
from datasets import cityscapes
from datasets.check import check
from datasets.given_labels import digest, labelled_from
from training.building import given_labels
from training.methods import method_name
from training.places import save as write_prediction
from utils.errors import UserError


@pytest.fixture
def target(city):
    for label in (city / "gtFine/train").rglob("*.png"):
        label.write_bytes(b"")  # the target's own are never opened
    return cityscapes(city, "train", (48, 32), labelled=False)


def write(folder: Path, target, name: str) -> Path:
    """Labels of the target's pictures, each its number's, under names made from the picture's."""
    for number, sample in enumerate(target.samples):
        save(folder / name.format(stem=sample.image.stem, name=sample.name), train_ids(number))
    return folder


@pytest.mark.parametrize(
    "name",
    ["{stem}_labelTrainIds.png", "{stem}.png", "{name}.png", "{name}_gtFine_labelTrainIds.png",
     "a/b/{stem}_labelTrainIds.png"],
)  # fmt: skip
def test_labels_are_matched_by_the_pictures_names(tmp_path, target, name) -> None:
    folder = write(tmp_path / "labels", target, name)
    save(folder / name.format(stem="other", name="other"), train_ids(9))  # of no picture of the set
    if "labelTrainIds" in name:
        for sample in target.samples:  # what predict.py writes beside them
            save(folder / f"{sample.image.stem}_overlay.png", np.zeros((90, 48, 3), np.uint8))
            save(folder / f"{sample.image.stem}_confidence.png", np.zeros((32, 48), np.uint8))
            save(folder / f"{sample.image.stem}.png", np.zeros((32, 48, 3), np.uint8))  # and the picture itself
    found = labelled_from(target, folder)
    assert "used without labels" not in check(found)
    for number, sample in enumerate(target.samples):
        assert found.samples[number].image == sample.image
        assert (found.label(number).numpy() == train_ids(number)).all()
    assert found.samples[0].name == target.samples[0].name
    assert not target.labelled


def test_what_does_not_fit_is_refused_in_one_line(tmp_path, target) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(UserError) as raised:
            check(labelled_from(target, folder))
        return str(raised.value)

    assert "no such folder" in message(tmp_path / "none")
    folder = write(tmp_path / "labels", target, "{stem}_labelTrainIds.png")
    first = folder / f"{target.samples[0].image.stem}_labelTrainIds.png"
    save(folder / "again" / first.name, train_ids(0))
    assert "have the same name" in message(folder)
    shutil.rmtree(folder / "again")
    save(first, train_ids(0, (40, 32)))
    assert "expected the same shape" in message(folder)
    save(first, np.full((32, 48), 33, np.uint8))
    assert "expected train ids (0 to 18, 255)" in message(folder)
    first.unlink()
    said = message(folder)
    assert f"no label for 1 of 4 pictures of Cityscapes train ({target.samples[0].image.name})" in said
    assert first.name in said


def test_labels_that_say_other_classes_are_refused(tmp_path, target) -> None:
    """As those of a network of CamVid's 11: they are train ids of the 19 too, and mean other things."""
    for sample in target.samples:
        write_prediction(tmp_path / f"{sample.image.stem}_labelTrainIds.png", train_ids(0), ("Sky", "Building"))
    with pytest.raises(UserError, match=r"labels of other classes \(Sky, Building\) than those of Cityscapes train"):
        labelled_from(target, tmp_path)


def test_the_digest_is_of_the_labels_alone(tmp_path, target) -> None:
    first = labelled_from(target, write(tmp_path / "a", target, "{stem}.png"))
    assert digest(first) == digest(labelled_from(target, write(tmp_path / "b", target, "{name}_labelTrainIds.png")))
    save(first.samples[-1].label, train_ids(7))
    assert digest(first) != digest(labelled_from(target, tmp_path / "b"))


# The scripts


@pytest.fixture
def command(game, city):
    def build(script, run_dir, *more):
        return (script, "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2, "--run-dir", run_dir,
                *more)  # fmt: skip

    return build


def test_what_predict_writes_is_what_is_trained_on(
    script, command, city, trained, target, tmp_path, monkeypatch
) -> None:
    out, seen = tmp_path / "seen", []
    pictures = city / "leftImg8bit/train"
    assert script("predict", trained, pictures, "--out", out, "--confidence", "--device", "cpu").status == 0
    monkeypatch.setattr("train_pseudo_labels.given_labels",
                        lambda args, data: seen.append(given_labels(args, data)) or seen[-1])  # fmt: skip
    flags = ("--labels", out, "--init", trained, "--max-steps", 1)
    done = script(*command("train_pseudo_labels", tmp_path / "given", *flags))
    assert done.status == 0, done.err
    for number, sample in enumerate(target.samples):
        (written,) = out.rglob(f"{sample.image.stem}_labelTrainIds.png")
        assert (seen[0].label(number).numpy() == np.array(Image.open(written))).all()
        assert Image.open(written).info["classes"].startswith("road, sidewalk, ")
    assert not (tmp_path / "given/pseudo-labels").exists()
    # The same labels as this network gives every pixel itself.
    flags = ("--labeller", trained, "--confidence", 0, "--percentile", 0, "--max-class-share", 1, "--max-steps", 1)
    assert script(*command("train_pseudo_labels", tmp_path / "own", "--init", trained, *flags)).status == 0
    given, own = (json.loads((tmp_path / name / "metrics.jsonl").read_text())["train"] for name in ("given", "own"))
    assert given["loss_target"] == own["loss_target"]


def test_dacs_is_taught_by_what_predict_writes(script, command, city, trained, target, tmp_path, monkeypatch) -> None:
    out, seen = tmp_path / "seen", []
    assert script("predict", trained, city / "leftImg8bit/train", "--out", out, "--device", "cpu").status == 0
    monkeypatch.setattr("train_dacs.given_labels",
                        lambda args, data: seen.append(given_labels(args, data)) or seen[-1])  # fmt: skip
    done = script(*command("train_dacs", tmp_path / "given", "--labels", out, "--max-steps", 1))
    assert done.status == 0, done.err
    for number, sample in enumerate(target.samples):
        (written,) = out.rglob(f"{sample.image.stem}_labelTrainIds.png")
        assert (seen[0].label(number).numpy() == np.array(Image.open(written))).all()


def test_predictions_have_the_pictures_size_and_are_read_at_the_working_size(
    script, game, trained, tmp_path, monkeypatch
) -> None:
    large, out, seen = write_cityscapes(tmp_path / "large", size=(96, 64)), tmp_path / "predicted", []
    assert script("predict", trained, large / "leftImg8bit/train", "--out", out, "--device", "cpu").status == 0
    monkeypatch.setattr("train_pseudo_labels.given_labels",
                        lambda args, data: seen.append(given_labels(args, data)) or seen[-1])  # fmt: skip
    done = script("train_pseudo_labels", "--gta5", game, "--cityscapes", large, *SMALL, *SOURCE, "--run-dir",
                  tmp_path / "given", "--labels", out, "--max-steps", 1)  # fmt: skip
    assert done.status == 0, done.err
    for number, sample in enumerate(cityscapes(large, "train", (48, 32), labelled=False).samples):
        (written,) = out.rglob(f"{sample.image.stem}_labelTrainIds.png")
        pixels = np.array(Image.open(written))
        assert pixels.shape == (64, 96)
        read = seen[0].training_pair(number)[1].numpy()
        assert (read == pixels[1::2, 1::2]).all()  # the pixel nearest to each centre


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_pseudo_labels", "train_dacs"])
def test_a_run_on_given_labels_resumes_exactly_and_notices_others(
    name, script, command, target, tmp_path, monkeypatch
) -> None:
    folder = write(tmp_path / "labels", target, "{stem}.png")
    flags = ("--labels", folder) + (("--lambda-mask", 1) if name == "train_dacs" else ())
    assert_resumes_exactly(script, monkeypatch, tmp_path, lambda run, *more: command(name, run, *flags, *more))
    moved = folder.rename(tmp_path / "moved")
    again = ("--labels", moved, *flags[2:], "--resume")
    assert script(*command(name, tmp_path / "straight", *again)).status == 0
    save(next(moved.glob("*.png")), train_ids(11))
    assert "labels-sha256" in one_line_error(script(*command(name, tmp_path / "straight", *again)))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dacs", "best"])
def test_dacs_mixes_the_given_labels(recipe, script, command, target, tmp_path, monkeypatch) -> None:
    """Without augmentation of place they reach the mixed picture pixel by pixel; their labelled share is its weight,
    also with the recipe that takes no labels of its teacher's."""
    seen = []
    recorded = lambda mask, source, other: seen.append(other) or mix(mask, source, other)  # noqa: E731
    monkeypatch.setattr("train_dacs.mix", recorded)
    folder = write(tmp_path / "labels", target, "{stem}.png")
    flags = ("--labels", folder, "--recipe", recipe, "--max-steps", 1, "--flip", 0, "--scales", 1)
    done = script(*command("train_dacs", tmp_path / "run", *flags))
    assert done.status == 0, done.err
    given = [torch.from_numpy(train_ids(number)) for number in range(4)]
    labels = seen[1]
    assert all(any(torch.equal(label, one) for one in given) for label in labels)
    sure = json.loads((tmp_path / "run/metrics.jsonl").read_text())["train"]["sure"]
    assert sure == pytest.approx(float((labels != 255).float().mean()), abs=1e-6)


def test_who_labels_has_to_be_one(script, command, trained, target, tmp_path) -> None:
    folder = write(tmp_path / "labels", target, "{stem}.png")
    for name, flags in (
        ("train_pseudo_labels", ()),
        ("train_pseudo_labels", ("--labels", folder, "--labeller", trained)),
        ("train_dacs", ("--labels", folder, "--teacher-checkpoint", trained)),
    ):
        assert "label" in one_line_error(script(*command(name, tmp_path / "none", *flags)))
    assert "no --init" in one_line_error(
        script(*command("train_pseudo_labels", tmp_path / "none", "--labels", folder, "--continue"))
    )
    assert not (tmp_path / "none").exists()


def test_given_labels_are_part_of_the_name() -> None:
    settings = {"script": "train_pseudo_labels", "rule": "bdl", "adapt_bn": False, "percentile": 50.0, "beta": None,
                "labels": "vit"}  # fmt: skip
    assert method_name(settings) == "given labels"
    assert method_name(settings | {"rounds": 2}) == "given labels, then pseudo-labels + rounds 2"
