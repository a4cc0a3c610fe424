"""The built-in street scenes: the same everywhere, all classes, legal labels, laid out as the data sets are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.labels import CITYSCAPES_ID_TO_TRAIN_ID, CITYSCAPES_PALETTE, CLASS_NAMES
from datasets.street_scenes import LOOKS, draw_scene, ensure, main, write_cityscapes, write_gta5, writer
from datasets.street_scenes.painter import ID

SMALL = (64, 32)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", [(64, 32), (128, 64), (121, 67), (120, 90), (160, 32), (64, 128)])
def test_shapes_and_legal_labels(look: str, size: tuple[int, int]) -> None:
    image, label = draw_scene(3, 5, look, size)
    assert image.shape == (size[1], size[0], 3)
    assert label.shape == (size[1], size[0])
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= set(ID.values()) <= set(range(34))
    assert image.std() > 10


@pytest.mark.parametrize("look", LOOKS)
def test_a_scene_is_a_function_of_its_arguments(look: str) -> None:
    first = draw_scene(1, 2, look, SMALL)
    draw_scene(1, 3, look, SMALL)
    again = draw_scene(1, 2, look, SMALL)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in ((2, 2, look), (1, 3, look), (1, 2, LOOKS[1 - LOOKS.index(look)])):
        assert (draw_scene(*other, SMALL)[1] != first[1]).mean() > 0.05


@pytest.mark.parametrize("look", LOOKS)
def test_variety_changes_appearance_and_no_label(look: str) -> None:
    for index in range(6):
        image, label = draw_scene(1, index, look, SMALL)
        other, same = draw_scene(1, index, look, SMALL, variety=1.0)
        np.testing.assert_array_equal(same, label)
        assert np.abs(other.astype(int) - image).mean() > 5
        np.testing.assert_array_equal(draw_scene(1, index, look, SMALL, variety=1.0)[0], other)


def test_variety_is_the_share_of_scenes_that_vary() -> None:
    def differ(variety: float) -> list[bool]:
        scenes = [(draw_scene(0, i, "game", SMALL)[0], draw_scene(0, i, "game", SMALL, variety)[0]) for i in range(40)]
        return [not np.array_equal(*pair) for pair in scenes]

    assert sum(differ(0.0)) == 0
    assert 10 <= sum(differ(0.5)) <= 30
    assert sum(differ(1.0)) == 40


def test_varied_scenes_are_lit_in_many_ways() -> None:
    """Day and dusk: among two dozen scenes are some whose street is three times as bright as that of others."""
    roads = []
    for index in range(24):
        image, label = draw_scene(2, index, "game", SMALL, variety=1.0)
        roads.append(np.median(image[label == ID["road"]]))
    assert max(roads) > 3 * min(roads)


def test_bare_trees_stand_where_leafy_ones_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the label as ever; in the picture more of what is behind them is seen."""
    leafy, label = draw_scene(0, 3, "game", (256, 128))
    monkeypatch.setattr(writer, "GAME", dataclasses.replace(writer.GAME, bare=1.0))
    bare, same = draw_scene(0, 3, "game", (256, 128))
    np.testing.assert_array_equal(same, label)
    changed = np.abs(leafy.astype(int) - bare).max(axis=2) > 20
    assert changed[label == ID["vegetation"]].mean() > 0.2
    assert (label[changed] == ID["vegetation"]).mean() > 0.7  # the rest is at the edges of crowns


@pytest.mark.parametrize("look", LOOKS)
def test_all_classes_in_the_order_of_real_streets(look: str) -> None:
    counts = np.zeros(256, int)
    for index in range(24):  # one turn of all rare things
        counts += np.bincount(draw_scene(0, index, look, (96, 48))[1].ravel(), minlength=256)
    share = {name: counts[ID[name]] / counts.sum() for name in CLASS_NAMES}
    assert min(share.values()) > 0.0003, share
    order = ["road", "building", "vegetation", "sidewalk", "person", "train"]
    assert sorted(order, key=share.__getitem__, reverse=True) == order
    assert share["car"] > 4 * max(share[name] for name in ("truck", "bus", "train", "motorcycle", "bicycle", "rider"))
    assert sum(share.values()) > 0.9  # little is ignored


@pytest.mark.parametrize("look", LOOKS)
def test_the_layout_does_not_depend_on_the_resolution(look: str) -> None:
    agree = [
        (draw_scene(0, index, look, (256, 128))[1] == draw_scene(0, index, look, (512, 256))[1][::2, ::2]).mean()
        for index in range(3)
    ]
    assert min(agree) > 0.9


@pytest.mark.parametrize("look", LOOKS)
def test_label_and_picture_show_the_same(look: str) -> None:
    """Moving the label aside makes its regions less uniform: picture and label are registered."""
    image, label = draw_scene(0, 1, look, (256, 128))
    grey = image.mean(axis=2)

    def spread(label: np.ndarray) -> float:
        return sum(((grey[label == i] - grey[label == i].mean()) ** 2).sum() for i in np.unique(label))

    here = spread(label)
    for dv, du in ((0, 2), (0, -2), (2, 0), (-2, 0)):
        assert spread(np.roll(label, (dv, du), (0, 1))) > here


@pytest.mark.parametrize(
    "size", [(32, 16), (63, 40), (100, 20), (10_000, 5_000), (0, 0), (-64, -32), (640, 64), (99.5, 50)]
)
def test_impossible_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"cannot draw|whole numbers"):
        draw_scene(0, 0, "game", size)


def test_other_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown look"):
        draw_scene(0, 0, "film", SMALL)
    with pytest.raises(ValueError, match="unknown split"):
        write_cityscapes(tmp_path, {"training": 1}, SMALL)
    with pytest.raises(ValueError, match="count"):
        write_gta5(tmp_path, -1, SMALL)
    assert not any(tmp_path.iterdir())


def test_gta5_on_disk(tmp_path: Path) -> None:
    write_gta5(tmp_path, 2, SMALL, seed=4)
    assert sorted(files(tmp_path)) == ["images/00001.png", "images/00002.png", "labels/00001.png", "labels/00002.png"]
    image, label = draw_scene(4, 1, "game", SMALL)
    stored = Image.open(tmp_path / "labels/00002.png")
    assert stored.mode == "P"
    np.testing.assert_array_equal(np.asarray(stored), label)
    np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), CITYSCAPES_PALETTE[label])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "images/00002.png")), image)


def test_cityscapes_on_disk(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"train": 2, "val": 1}, SMALL)
    images = sorted((tmp_path / "leftImg8bit").glob("*/*/*_leftImg8bit.png"))
    assert [path.parent.parent.name for path in images] == ["train", "train", "val"]
    assert len(files(tmp_path)) == 6
    for path in images:
        stem = path.name.removesuffix("_leftImg8bit.png")
        city, sequence, frame = stem.split("_")
        assert (city, len(sequence), len(frame)) == (path.parent.name, 6, 6)
        label = Image.open(tmp_path / "gtFine" / path.parent.parent.name / city / f"{stem}_gtFine_labelIds.png")
        assert label.mode == "L"
        assert set(np.unique(label)) <= set(CITYSCAPES_ID_TO_TRAIN_ID)
    assert len({path.read_bytes() for path in images}) == 3  # train and val share no scene


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    write_gta5(tmp_path / "one", 3, SMALL, workers=1)
    write_gta5(tmp_path / "two", 3, SMALL, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_ensure_reuses_completes_and_keeps_settings_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"size": SMALL, "source": 2, "target": 2, "val": 1}
    gta5, cityscapes = ensure(tmp_path, **settings)
    whole = files(tmp_path)
    assert len(whole) == 2 * 5 + 1
    assert (gta5.parent / "street_scenes.json").is_file()
    assert ensure(tmp_path, **settings | {"seed": 1})[0] != gta5

    # An interrupted or damaged set is completed: a lost label, half a picture, no stamp.
    (gta5 / "labels/00001.png").unlink()
    (gta5 / "images/00002.png").write_bytes((gta5 / "images/00002.png").read_bytes()[:200])
    (gta5.parent / "street_scenes.json").unlink()
    ensure(tmp_path, **settings)
    assert {name: data for name, data in files(tmp_path).items() if "seed0" in name} == whole

    monkeypatch.setattr(writer, "draw_scene", None)  # a complete set is not drawn again
    assert ensure(tmp_path, **settings) == (gta5, cityscapes)

    (gta5 / "images/holiday.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="holiday"):
        ensure(tmp_path, **settings)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--out", str(out), "--layout", "gta5", "--count", "1", "--size", "64x32"]) == 0
    before = files(out)
    assert main(["--out", str(out), "--count", "1", "--size", "64x32"]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert files(out) == before
    for wrong in (["--out", str(tmp_path / "a"), "--size", "8x4"], [], ["--out", str(tmp_path / "a"), "--count", "-1"]):
        assert main(wrong) == 2
        assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "a"), "--size", "wide"])
    assert not (tmp_path / "a").exists()
    assert main(["--preview", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").width == 4 * 512


def test_a_preview_replaces_no_file_and_takes_no_idle_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"mine")
    assert main(["--preview", str(precious)]) == 2
    assert capsys.readouterr().err == f"error: {precious} exists; name a new file, nothing is overwritten\n"
    assert precious.read_bytes() == b"mine"
    new = ["--preview", str(tmp_path / "new.png")]
    for flags in (["--size=64x32"], ["--count", "1"], ["--look", "game"], ["--out", str(tmp_path / "out")]):
        assert main([*new, *flags]) == 2
        said = capsys.readouterr().err
        assert said == f"error: --preview only saves a contact sheet: leave out {flags[0].partition('=')[0]}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["precious.png"]
    monkeypatch.setattr(writer, "preview", lambda path, seed, variety: path.write_text(f"{seed} {variety}"))
    assert main([*new, "--seed", "1", "--variety", "1"]) == 0
    assert (tmp_path / "new.png").read_text() == "1 1.0"
