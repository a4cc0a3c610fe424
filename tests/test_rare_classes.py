"""Rare-class sampling: the probabilities of the formula, the frequencies of the draws, and what a draw depends on."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, SOURCE, write_gta5

from datasets import gta5
from datasets.frequencies import class_counts
from datasets.geometry import Geometry
from datasets.labels import CITYSCAPES
from datasets.rare_classes import SHARE, RareClasses
from datasets.stream import TrainingStream, batches, training_loader
from utils.errors import UserError

SIZE = (48, 32)


def counted(*rows):
    """Pictures of 1,000,000 pixels with {class: pixels}, the rest without a label."""
    counts = torch.zeros(len(rows), 20, dtype=torch.int64)
    for row, pixels in zip(counts, rows, strict=True):
        for chosen, number in pixels.items():
            row[chosen] = number
        row[19] = 1_000_000 - row.sum()
    return counts


COUNTS = counted({0: 500_000, 1: 4000}, {0: 500_000, 2: 5000, 1: 1000}, {0: 490_000, 2: 5000, 3: 20}, {})


def test_classes_are_drawn_as_the_formula_says():
    rare = RareClasses(COUNTS, CITYSCAPES)
    pixels = np.array([1_490_000, 5000, 10_000, 20])
    expected = np.exp((1 - pixels / pixels.sum()) / 0.01)
    expected /= expected.sum()
    assert rare.probability[:4] == pytest.approx(expected, rel=1e-9)
    assert not rare.probability[4:].any()  # what does not occur is never drawn
    rng, draws = np.random.default_rng(0), 20_000
    drawn = [rare.draw(rng) for _ in range(draws)]
    found = np.bincount([chosen for chosen, _ in drawn], minlength=19)
    chi_square = sum((found[c] - draws * p) ** 2 / (draws * p) for c, p in enumerate(expected) if p > 1e-9)
    assert chi_square < 13.8  # two degrees of freedom (road is as good as never drawn): P = 0.001
    of_two = [picture for chosen, picture in drawn if chosen == 2]
    assert np.bincount(of_two)[1:] == pytest.approx([len(of_two) / 2] * 2, rel=0.1)  # its pictures alike


def test_a_picture_shows_a_class_from_a_share_of_its_pixels_on():
    assert round(SHARE * 1914 * 1052) == 3000
    pictures = RareClasses(COUNTS, CITYSCAPES).pictures
    assert [of.tolist() for of in pictures[:4]] == [
        [0, 1, 2],
        [0],
        [1, 2],
        [2],
    ]  # 3: shown by none, so all that have it
    label = torch.zeros(100, 100, dtype=torch.uint8)
    label[0, :14] = 1  # of 10,000 pixels 14.9 are asked for
    assert not RareClasses.shows(label, 1)
    label[0, 14] = 1
    assert RareClasses.shows(label, 1)
    with pytest.raises(UserError, match="no label"):
        RareClasses(counted({}, {}), CITYSCAPES)


def drawn(data, rare, first=0, workers=0, seed=0, number=0):
    stream = TrainingStream(data, Geometry(SIZE, (1.0, 2.0), 0.5), seed, number, draws=24, rare=rare)
    loader = training_loader(stream, 4, range(first * 4, len(stream)), workers, pin=False)
    return [batch for batch, _ in batches(loader)]


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_depend_on_seed_stream_and_number_alone(game, workers):
    data = gta5(game, SIZE)
    rare = RareClasses(class_counts(data, 0), CITYSCAPES)
    whole = drawn(data, rare)
    for expected, found in zip(whole[3:], drawn(data, rare, 3, workers), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    for other in (drawn(data, rare, seed=1), drawn(data, rare, number=1), drawn(data, None)):
        assert not all(torch.equal(a[0], b[0]) for a, b in zip(whole, other, strict=True))
    streams = [TrainingStream(data, Geometry(SIZE), *knows, draws=24, rare=rare) for knows in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(stream.index(draw) for draw in range(24)) for stream in streams}) == 3


def test_a_crop_shows_the_class_that_was_drawn(tmp_path):
    """A class at one place of a picture, at twice the size: many random crops miss it, drawn ones do not."""
    data = gta5(write_gta5(tmp_path / "gta5", count=2, size=(96, 64)), (96, 64))
    label = torch.zeros(64, 96, dtype=torch.uint8)
    label[8:16, 16:24] = 18
    counts = counted({0: 500_000}, {0: 400_000, 18: 8000})
    geometry, rare = Geometry((96, 64), (2.0,)), RareClasses(counts, CITYSCAPES)
    stream = TrainingStream(data, geometry, 0, 0, draws=200, rare=rare)
    plain = TrainingStream(data, geometry, 0, 0, draws=200)
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)

    def share(stream):
        moved = [stream._moved(image, label, draw, np.random.default_rng((5, draw))) for draw in range(200)]
        return np.mean([RareClasses.shows(found, 18) for _, found in moved])

    assert rare.probability[18] > 0.999
    assert share(plain) < 0.5
    assert share(stream) > 0.85


def test_labels_are_counted_once_and_bad_ones_passed_over(script, game, city, tmp_path, monkeypatch):
    import train_dacs

    command = ("train_dacs", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--max-steps", 2, "--rare-classes",
               "--run-dir")  # fmt: skip
    calls = []
    for module in (train_dacs, __import__("training.building", fromlist=["class_counts"])):
        monkeypatch.setattr(module, "class_counts", lambda *given: calls.append(given) or class_counts(*given))
    done = script(*command, tmp_path / "run", "--loss", "weighted")
    assert done.status == 0, done.err
    assert len(calls) == 1
    assert "source pictures by class" in done.out
    assert json.loads((tmp_path / "run/config.json").read_text())["arguments"]["rare_classes"]
    monkeypatch.setattr("datasets.check.SAMPLE", 2)  # what the check at the start opens is never passed over
    label = game / "labels/00002.png"
    label.write_bytes(label.read_bytes()[:60])
    assert "00002.png" in script(*command, tmp_path / "stops").err
    skipping = ("--on-bad-sample", "skip", "--max-bad-share", 0.5)
    done = script(*command, tmp_path / "skips", *skipping)
    assert done.status == 0, done.err
    counts = class_counts(gta5(game, SIZE), 0, skip=True)
    assert not counts[1].any()
    assert not any(1 in of for of in RareClasses(counts, CITYSCAPES).pictures)
