"""GTA5 and SYNTHIA as one source: drawn in turn, each read in its own way, and a run of both resumes exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, SOURCE, assert_resumes_exactly, one_line_error, picture, train_ids, write_gta5
from synthia import train_ids as synthia_train_ids
from synthia import write_synthia

from datasets.check import check
from datasets.domains import open_source
from datasets.frequencies import class_counts, class_frequencies
from datasets.geometry import Geometry
from datasets.labels import CITYSCAPES
from datasets.mixed import MixedSet
from datasets.rare_classes import RareClasses
from datasets.stream import TrainingStream, batches, training_loader
from training.bad_samples import BadSamples
from training.preparation import Preparation
from utils.errors import UserError

SIZE = (48, 32)
GAME, DRAWN = 5, 3
"""Pictures of GTA5 and of SYNTHIA."""


@pytest.fixture
def roots(tmp_path):
    return {"gta5": write_gta5(tmp_path / "gta5", count=GAME), "synthia": write_synthia(tmp_path / "synthia", DRAWN)}


@pytest.fixture
def both(roots):
    return open_source(roots | {"source_size": SIZE})


def of_number(label):
    """(part, number) of the picture that has this label."""
    for number in range(GAME):
        if np.array_equal(label, train_ids(number)):
            return 0, number
    return 1, next(number for number in range(DRAWN) if np.array_equal(label, synthia_train_ids(number)))


def test_of_bad_pictures_the_share_of_each_part_counts(both, tmp_path):
    bad = BadSamples(tmp_path, max_share=0.4)
    bad.note(both, {"GTA5/00001": "torn", "SYNTHIA/0000000": "torn"})
    bad.note(both, {"GTA5/00002": "torn"})  # three of eight, but of neither part more than the share
    with pytest.raises(UserError, match="2 of 3 pictures of SYNTHIA cannot be read, more than"):
        bad.note(both, {"SYNTHIA/0000001": "torn"})
    again = BadSamples(tmp_path, max_share=0.2)
    again.load_state_dict({"bad_samples": {"GTA5 and SYNTHIA: GTA5/00001": "torn"}})
    with pytest.raises(UserError, match="2 of 5 pictures of GTA5"):
        again.note(both, {"GTA5/00003": "torn"})


def test_a_mixed_set_is_its_parts_each_read_in_its_own_way(both):
    assert isinstance(both, MixedSet)
    assert (both.name, len(both), both.classes) == ("GTA5 and SYNTHIA", GAME + DRAWN, CITYSCAPES)
    for index in range(len(both)):
        image, label = both[index]
        part, number = of_number(label.numpy())
        assert (part, number) == ((0, index) if index < GAME else (1, index - GAME))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(number + 500 * part))
    assert [both.samples[index].name for index in (0, GAME)] == ["GTA5/00001", "SYNTHIA/0000000"]
    assert check(both).splitlines()[1].startswith("SYNTHIA: 3 pictures")
    kept, held = both.hold_out(0.4)
    assert [len(part) for part in (*kept.parts, *held.parts)] == [3, 2, 2, 1]
    assert both.hold_out(0)[1] is None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prepared", [False, True])
def test_draws_come_in_turn_whatever_the_workers(both, tmp_path, workers, prepared):
    """Over 2n draws each picture of the smaller set comes as often as n says, at the same draws for everyone."""
    prepare = Preparation(tmp_path / "cache", tmp_path, not prepared, 0, lambda: None)
    stream = TrainingStream(prepare(both, True), Geometry(SIZE), seed=3, stream=0, draws=4 * DRAWN)
    loader = training_loader(stream, 2, range(len(stream)), workers, pin=False)
    labels = [label.numpy() for (_, drawn), _ in batches(loader) for label in drawn]
    found = [of_number(label) for label in labels]
    plain = TrainingStream(both, Geometry(SIZE), 3, 0, 4 * DRAWN)
    expected = [plain.index(draw) for draw in range(4 * DRAWN)]
    assert found == [(0, index) if index < GAME else (1, index - GAME) for index in expected]
    assert [part for part, _ in found] == [0, 1] * (2 * DRAWN)
    of_small = [number for part, number in found if part == 1]
    assert sorted(of_small[:DRAWN]) == sorted(of_small[DRAWN:]) == [0, 1, 2]
    assert sorted(number for part, number in found[: 2 * GAME] if part == 0) == [0, 1, 2, 3, 4]


def test_the_first_part_is_drawn_as_it_is_alone(both):
    """So a run of GTA5 alone draws what it always drew."""
    alone = TrainingStream(both.parts[0], Geometry(SIZE), 3, 0, 20)
    mixed = TrainingStream(both, Geometry(SIZE), 3, 0, 40)
    assert [alone.index(draw) for draw in range(20)] == [mixed.index(2 * draw) for draw in range(20)]
    twice = TrainingStream(MixedSet((both.parts[0], both.parts[0])), Geometry(SIZE), 3, 0, 40)
    orders = [[twice.index(2 * draw + part) - part * GAME for draw in range(20)] for part in (0, 1)]
    assert orders[0] != orders[1]  # in turn, not twice the same


def test_a_picture_that_cannot_be_read_is_replaced_from_its_own_part(both):
    for sample in both.parts[1].samples[1:]:
        sample.label.write_bytes(b"\x89PNG")
    stream = TrainingStream(both, Geometry(SIZE), 0, 0, draws=12, skip=True)
    for draw in range(12):
        item = stream[draw]
        label = (item.item if hasattr(item, "problems") else item)[1].numpy()
        assert of_number(label)[0] == draw % 2
        if hasattr(item, "problems"):
            assert all(name.startswith("SYNTHIA/") for name in item.problems)
    both.parts[1].samples[0].label.write_bytes(b"\x89PNG")
    assert isinstance(stream[1], UserError)  # none of the part is left


def test_weights_and_rare_classes_count_both(both):
    counts = class_counts(both, 0)
    parts = [class_counts(part, 0) for part in both.parts]
    assert torch.equal(counts, torch.cat(parts))
    assert all(own.sum() > 0 for own in parts)
    pixels, _ = class_frequencies(counts)
    assert torch.equal(pixels, sum(class_frequencies(own)[0] for own in parts))
    rare = RareClasses(counts, both.classes)
    drawn = {rare.draw(np.random.default_rng(number))[1] for number in range(200)}
    assert drawn & set(range(GAME))
    assert drawn & set(range(GAME, GAME + DRAWN))
    assert max(rare.pictures[CITYSCAPES.index("truck")]) < GAME  # SYNTHIA has none


def command(roots, city, run_dir, script="train_gta5"):
    sources = [word for key, root in roots.items() for word in (f"--{key}", root)]
    return (script, *sources, "--cityscapes", city, *SMALL, *SOURCE, "--run-dir", run_dir)


def test_a_run_of_both_names_both_and_resumes_as_both_alone(script, roots, city, tmp_path):
    run = command(roots, city, tmp_path / "run")
    more = ("--max-steps", 2, "--loss", "weighted", "--source-holdout", 0.3)
    done = script(*run, *more)
    assert done.status == 0, done.err
    assert "class weights from GTA5 and SYNTHIA" in done.out
    assert "as many draws in turn as there are pictures in GTA5 and SYNTHIA (5 pictures)" in done.out
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert {"GTA5", "SYNTHIA"} < config["data"].keys()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["miou16"] is not None
    assert result["source"]["pictures"] == 3
    for root in roots.values():
        assert {place.name.partition("-")[0] for place in (root / ".prepared").glob("*-*")} == {"images", "labels"}
    alone = {"gta5": roots["gta5"]}
    said = one_line_error(script(*command(alone, city, tmp_path / "run"), *more, "--resume"))
    assert "SYNTHIA is read no more" in said
    machine = ("--workers", 0, "--device", "cpu")
    done = script("eval", tmp_path / "run", "--synthia", roots["synthia"], *machine)
    assert "SYNTHIA held out, 1 pictures" in done.out, done.err
    done = script("eval", tmp_path / "run", "--synthia", roots["synthia"], "--gta5", roots["gta5"], *machine,
                  "--save-predictions", tmp_path / "seen")  # fmt: skip
    assert "GTA5 held out and SYNTHIA held out, 3 pictures" in done.out, done.err
    assert len([*(tmp_path / "seen/SYNTHIA held out").glob("*.png")]) == 1
    done = script("report", tmp_path / "run")
    assert done.status == 0, done.err
    done = script("datasets.check", "--gta5", roots["gta5"], "--synthia", roots["synthia"])
    assert "SYNTHIA: 3 pictures" in done.out, done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [("train_gta5", ()), ("train_fda", ("--translation", "lab")),
     ("train_dacs", ("--rare-classes", "--beta", 0.01, "--recolour", 0.5))],
)  # fmt: skip
def test_an_interrupted_run_of_both_goes_on_as_if_it_had_not_been(
    script, roots, city, tmp_path, monkeypatch, name, more
):
    def run(run_dir, *flags):
        return (*command(roots, city, run_dir, name), "--epochs", 2, *more, *flags)

    assert_resumes_exactly(script, monkeypatch, tmp_path, run)
