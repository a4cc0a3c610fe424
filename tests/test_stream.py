"""Geometry moves picture and label alike; the order of training depends on nothing but seed and draw."""

import numpy as np
import pytest
import torch
from conftest import picture, train_ids

from datasets import cityscapes
from datasets.geometry import (
    PADDING,
    Geometry,
    _scaled_label_window,
    _scaled_window,
    _window,
    resize_image,
    resize_label,
)
from datasets.labels import IGNORE
from datasets.stream import TrainingStream, batches, evaluation_loader, training_loader
from utils.errors import UserError

SIZE = (48, 32)


def coupled(size=(48, 32)):
    """A picture whose red channel is its label, so that any disagreement shows."""
    blocks = torch.from_numpy(train_ids(3, size)).clamp(max=18)
    return torch.stack((blocks, blocks, blocks)), blocks


def test_flip_moves_both_alike():
    image, label = coupled()
    for seed in range(20):
        out, moved = Geometry(SIZE, (1.0,), 0.5)(image, label, np.random.default_rng(seed))
        assert torch.equal(out[0], moved)


def test_each_scale_is_drawn_as_often_and_every_second_picture_is_mirrored():
    image, label = coupled()
    halves = mirrored = 0
    for seed in range(200):
        out, moved = Geometry(SIZE, (0.5, 1.0), 0.5)(image, label, np.random.default_rng(seed))
        halves += bool((moved == IGNORE).float().mean() > 0.5)
        mirrored += torch.equal(out, image.flip(-1))
    assert 70 < halves < 130
    assert 25 < mirrored < 75  # of those at scale 1


@pytest.mark.parametrize("scale", [2.0, 1.5, 0.75, 0.5])
def test_scale_keeps_the_size_and_pads_with_ignore(scale):
    image, label = coupled()
    seen = []
    for seed in range(30):
        out, moved = Geometry(SIZE, (scale,), 0.0)(image, label, np.random.default_rng(seed))
        assert out.shape == (3, 32, 48)
        assert moved.shape == (32, 48)
        inside = moved != IGNORE
        seen.append(float(inside.float().mean()))
        if scale < 1:
            assert torch.equal(out[:, ~inside].T.unique(dim=0), torch.tensor([PADDING], dtype=torch.uint8))
    assert np.allclose(seen, min(1.0, scale) ** 2, atol=0.02)


def test_scaled_labels_are_where_scaled_pictures_are():
    """One bright block on black: after any geometry the label's block covers the picture's bright pixels."""
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    label = torch.zeros(32, 48, dtype=torch.uint8)
    image[:, 12:20, 20:28], label[12:20, 20:28] = 255, 7
    for seed in range(40):
        geometry = Geometry(SIZE, (0.75, 1.0, 1.5, 1.75, 2.0), 0.5)
        out, moved = geometry(image, label, np.random.default_rng(seed))
        inside = moved != IGNORE
        assert torch.equal((out[0] > 127)[inside], (moved == 7)[inside])


@pytest.mark.parametrize("size", [(48, 32), (160, 120), (123, 77), (240, 176)])
@pytest.mark.parametrize("scale", [0.5, 0.75, 0.9, 1.1, 1.25, 1.3, 1.5, 1.75, 2.0, 3.0])
def test_the_window_is_that_of_the_whole_resized_picture(size, scale):
    """For ratios that are computed piecewise and for those that are not. In noise a window out of place is far off;
    torch 2.4 rounds some values of a piece in another way than of the whole."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, size[1], size[0]), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, 19, (size[1], size[0]), generator=generator, dtype=torch.uint8)
    scaled = (round(size[0] * scale), round(size[1] * scale))
    whole, ids = resize_image(image, scaled), resize_label(label, scaled)
    for seed in range(12):
        across, down = np.random.default_rng(seed).random(2) if seed > 3 else ((seed % 2), (seed // 2))
        left, top = round(across * (scaled[0] - size[0])), round(down * (scaled[1] - size[1]))
        window = _scaled_window(image, scale, scaled, left, top, size)
        off = (window.int() - _window(whole, left, top, size, PADDING).int()).abs()
        assert off.max() <= 1
        assert off.float().mean() < 0.01
        found = _scaled_label_window(label, scaled, left, top, size)
        assert torch.equal(found, _window(ids[None], left, top, size, (IGNORE,))[0])


def test_labels_are_resized_without_new_values():
    label = torch.from_numpy(train_ids(0, (64, 48)))
    assert set(resize_label(label, (31, 17)).unique().tolist()) <= set(label.unique().tolist())


def test_every_pass_takes_every_picture_once(city):
    stream = TrainingStream(cityscapes(city, "train", SIZE), Geometry(SIZE), seed=3, stream=0, draws=40)
    order = [stream.index(draw) for draw in range(40)]
    for start in range(0, 40, 4):
        assert sorted(order[start : start + 4]) == [0, 1, 2, 3]
    assert len({tuple(order[start : start + 4]) for start in range(0, 40, 4)}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_on_where_one_starts(city, workers):
    geometry = Geometry(SIZE, (0.75, 1.0, 2.0), 0.5)

    def drawn(first, workers, seed=0, number=0):
        stream = TrainingStream(cityscapes(city, "train", SIZE), geometry, seed, number, draws=18)
        loader = training_loader(stream, 3, range(first * 3, len(stream)), workers, pin=False)
        return [batch for batch, _ in batches(loader)]

    whole, rest = drawn(0, 0), drawn(4, workers)
    assert len(whole) == 6
    for expected, found in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    for other in (drawn(0, 0, seed=1), drawn(0, 0, number=1)):
        assert not all(torch.equal(a[0], b[0]) for a, b in zip(whole, other, strict=True))


def test_unlabelled_streams_give_pictures_alone(city):
    stream = TrainingStream(cityscapes(city, "train", SIZE, labelled=False), Geometry(SIZE), 0, 0, draws=4)
    ((batch, _),) = batches(training_loader(stream, 4, range(len(stream)), 0, pin=False))
    assert batch.shape == (4, 3, 32, 48)
    pictures = {picture(number).tobytes() for number in range(4)}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in batch} == pictures


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_line_also_from_a_worker(city, workers):
    file = next((city / "leftImg8bit/train").rglob("*.png"))
    file.write_bytes(file.read_bytes()[:200])
    data = cityscapes(city, "train", SIZE)
    loaders = (
        training_loader(TrainingStream(data, Geometry(SIZE), 0, 0, draws=4), 4, range(4), workers, pin=False),
        evaluation_loader(data, workers),
    )
    for loader in loaders:
        with pytest.raises(UserError, match="cut short or damaged") as caught:
            list(batches(loader))
        assert "Traceback" not in str(caught.value)
