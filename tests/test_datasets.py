"""Every layout and encoding is written and read back; every wrong one is refused with its likely cause.

Long, since it is a list: a layout or a mistake a test.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ids, picture, save, train_ids, write_cityscapes, write_gta5
from PIL import Image

from datasets import cityscapes, gta5
from datasets.check import check
from datasets.files import raw_label, read_label
from datasets.labels import (
    CITYSCAPES,
    CITYSCAPES_ID_TO_TRAIN_ID,
    CITYSCAPES_LABELS,
    CITYSCAPES_PALETTE,
    CLASS_NAMES,
    IGNORE,
    to_cityscapes_ids,
)
from utils.errors import UserError

SIZE = (48, 32)


def assert_reads(data, numbers):
    """The set holds exactly the pictures with these numbers, pixel by pixel, at their own size."""
    assert len(data) == len(numbers)
    found = set()
    for index in range(len(data)):
        image, label = data[index]
        number = next(n for n in numbers if np.array_equal(train_ids(n), label.numpy()))
        found.add(number)
        if data.samples[index].image.suffix == ".png":
            assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(number))
        assert image.shape == (3, 32, 48)
        assert image.dtype == label.dtype == torch.uint8
    assert found == set(numbers)


LAYOUTS = {
    "official": {},
    "official, train ids": {"encoding": "labelTrainIds"},
    "official, jpg": {"suffix": ".jpg"},
    "course subset": {"images": "images", "encoding": "labelTrainIds"},
    "course subset, extra folder": {"images": "images", "inner": "Cityspaces", "encoding": "labelTrainIds"},
    "course subset, two extra folders": {"images": "images", "inner": "Cityscapes/Cityspaces"},
    "course subset, flattened": {"images": "images", "cities": False, "encoding": "labelTrainIds"},
    "flattened in an extra folder, jpg": {"images": "images", "inner": "a", "cities": False, "suffix": ".jpg"},
    "name with space and accent": {"inner": "Stadt äü 1"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cityscapes_layouts(tmp_path, layout):
    root = write_cityscapes(tmp_path, **LAYOUTS[layout])
    train, val = cityscapes(root, "train", SIZE), cityscapes(root, "val", SIZE)
    assert_reads(train, range(4))
    assert_reads(val, range(4, 6))
    check(train)
    check(val)


def test_cityscapes_in_the_two_folders_of_its_archives(tmp_path):
    write_cityscapes(tmp_path / "whole")
    (tmp_path / "root").mkdir()
    (tmp_path / "whole/leftImg8bit").rename(_made(tmp_path / "root/leftImg8bit_trainvaltest") / "leftImg8bit")
    (tmp_path / "whole/gtFine").rename(_made(tmp_path / "root/gtFine_trainvaltest") / "gtFine")
    assert_reads(cityscapes(tmp_path / "root", "train", SIZE), range(4))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_labels_flattened_beside_pictures_in_cities(tmp_path):
    root = write_cityscapes(tmp_path)
    for file in list((root / "gtFine/train").rglob("*.png")):
        file.rename(root / "gtFine/train" / file.name)
    assert_reads(cityscapes(root, "train", SIZE), range(4))


def test_both_encodings_side_by_side_and_other_official_files(tmp_path):
    root = write_cityscapes(tmp_path)
    write_cityscapes(tmp_path, encoding="labelTrainIds")
    for file in list((root / "gtFine").rglob("*_labelIds.png")):  # the official archive holds these too
        save(file.with_name(file.name.replace("labelIds", "color")), CITYSCAPES_PALETTE[ids(0)])
        save(file.with_name(file.name.replace("labelIds", "instanceIds")), ids(0))
    data = cityscapes(root, "train", SIZE)
    assert data.encoding == "trainIds"
    assert_reads(data, range(4))


def test_a_target_without_labels_never_opens_one(tmp_path, monkeypatch):
    root = write_cityscapes(tmp_path)
    for file in (root / "gtFine").rglob("*.png"):
        file.write_bytes(b"")  # would fail if it were read
    data = cityscapes(root, "train", SIZE, labelled=False)
    monkeypatch.setattr("datasets.segmentation.read_label", lambda *a: pytest.fail("a label file was opened"))
    assert "without labels" in check(data)
    assert data[0][1] is None
    assert data.training_pair(0)[1] is None
    unlabelled = write_cityscapes(tmp_path / "bare", labels=False)
    assert len(cityscapes(unlabelled, "train", SIZE, labelled=False)) == 4


@pytest.mark.parametrize("encoding", ["palette", "grey", "rgb", "trainIds"])
@pytest.mark.parametrize("inner", ["", "GTA5"])
def test_gta5_encodings(tmp_path, encoding, inner):
    root = write_gta5(tmp_path, encoding=encoding, inner=inner)
    data = gta5(root, SIZE, encoding="trainIds" if encoding == "trainIds" else "auto")
    if encoding == "rgb":  # pole group (18) has pole's colour, so colours cannot tell them apart
        for number in range(6):
            expected = train_ids(number)
            expected[ids(number) == 18] = 5
            assert np.array_equal(data[number][1].numpy(), expected)
    else:
        assert_reads(data, range(6))
    check(data)


def test_gta5_licence_plate_by_palette_and_by_colour(tmp_path):
    label = np.full((32, 48), 34, dtype=np.uint8)
    label[:, :24] = 26
    save(tmp_path / "p.png", label, palette=True)
    save(tmp_path / "c.png", CITYSCAPES_PALETTE[label])
    by_palette, by_colour = (read_label(tmp_path / f"{name}.png", "auto", CITYSCAPES_LABELS) for name in "pc")
    assert set(by_palette[:, 24:].flatten().tolist()) == {IGNORE}
    assert set(by_colour.flatten().tolist()) == {CLASS_NAMES.index("car")}


def test_gta5_sizes_may_differ_between_picture_and_label(tmp_path):
    root = write_gta5(tmp_path)
    save(root / "images/00001.png", picture(0, (64, 32)))
    data = gta5(root, (24, 16))
    check(data)
    image, label = data.training_pair(0)
    assert image.shape == (3, 16, 24)
    assert label.shape == (16, 24)


def test_gta5_mapping_beside_the_data_or_named_decides(tmp_path):
    root = write_gta5(tmp_path / "g")
    mapping = {"label2train": [[7, 3], [8, 255], [11, -1], [26, 13], [-1, 255]]}
    (root / "info.json").write_text(json.dumps(mapping))
    expected = np.full((32, 48), IGNORE, dtype=np.uint8)
    expected[ids(0) == 7], expected[ids(0) == 26] = 3, 13  # an id absent from the JSON is ignored
    assert np.array_equal(gta5(root, SIZE)[0][1].numpy(), expected)
    named = tmp_path / "other.json"
    named.write_text(json.dumps({"label2train": [[33, 0]]}))
    assert set(gta5(root, SIZE, mapping_file=named)[0][1].unique().tolist()) <= {0, IGNORE}
    (root / "second.json").write_text(json.dumps(mapping))
    with pytest.raises(UserError, match="--gta5-mapping"):
        gta5(root, SIZE)


@pytest.mark.parametrize(
    "text",
    ['{"label2train": [[7, 0]', '{"label2train": 3}', '{"label2train": [[7, 44]]}', '{"label2train": [[7]]}',
     '{"label2train": [[300, 1]]}', '{"label2train": [["7", 0]]}', '{"label2train": []}',
     '{"label2train": [[7, 255]]}'],
)  # fmt: skip
def test_a_bad_mapping_is_named(game, text):
    (game / "info.json").write_text(text)
    with pytest.raises(UserError, match=r"info\.json"):
        gta5(game, SIZE)


def test_tables_of_the_taxonomy():
    assert len(CLASS_NAMES) == len(CITYSCAPES.palette) == 19
    assert (CLASS_NAMES[0], CLASS_NAMES[13], CLASS_NAMES[18]) == ("road", "car", "bicycle")
    kept = {id_: train for id_, train in CITYSCAPES_ID_TO_TRAIN_ID.items() if train != IGNORE}
    assert kept == {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
                    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    every = np.arange(19, dtype=np.uint8)
    assert np.array_equal(CITYSCAPES.colourise(every[None])[0], CITYSCAPES.palette)
    assert to_cityscapes_ids(every).tolist() == list(kept)
    assert to_cityscapes_ids(np.array([IGNORE], dtype=np.uint8)).tolist() == [0]
    assert CITYSCAPES.colourise(np.array([[IGNORE]], dtype=np.uint8)).tolist() == [[[0, 0, 0]]]


# What is wrong is refused, and the message names the file and the cause.


def refused(match, function, *arguments, **options):
    with pytest.raises(UserError, match=match) as caught:
        check(function(*arguments, **options))
    assert "\n" not in str(caught.value)


def test_missing_roots_and_empty_splits(tmp_path, city):
    refused("no such folder", cityscapes, tmp_path / "nowhere", "train")
    refused("no such folder", gta5, tmp_path / "nowhere")
    refused(r"no split 'test' is in", cityscapes, city, "test")
    (city / "leftImg8bit/test/ulm").mkdir(parents=True)
    refused("split is empty", cityscapes, city, "test")
    refused("no images/ beside labels/", gta5, city)
    (tmp_path / "e/images").mkdir(parents=True)
    (tmp_path / "e/labels").mkdir()
    refused("empty", gta5, tmp_path / "e")


def test_missing_partners_are_counted_and_named(city, game):
    label = next((city / "gtFine/train").rglob("*000002*"))
    label.unlink()
    refused(r"3 pairs, but 1 picture\(s\) without label \(.*000002", cityscapes, city, "train")
    image = next((city / "leftImg8bit/val").rglob("*000004*"))
    image.unlink()
    refused(r"1 label\(s\) without picture \(.*000004", cityscapes, city, "val")
    (game / "labels/00003.png").unlink()
    refused(r"1 picture\(s\) without label \(.*00003", gta5, game)
    (game / "images/00003.png").unlink()
    (game / "images/00005.png").unlink()
    refused(r"1 label\(s\) without picture \(.*00005", gta5, game)
    for file in (city / "gtFine/val").rglob("*.png"):
        file.unlink()
    refused("no label is there", cityscapes, city, "val")


def test_train_ids_under_the_name_of_ids_and_the_reverse(tmp_path):
    for encoding, other in (("labelTrainIds", "labelIds"), ("labelIds", "labelTrainIds")):
        root = write_cityscapes(tmp_path / encoding, encoding=encoding)
        for file in list((root / "gtFine").rglob("*.png")):
            file.rename(file.with_name(file.name.replace(encoding, other)))
    refused("probably train ids", cityscapes, tmp_path / "labelTrainIds", "train")
    refused(r"expected train ids .*found the value (19|2\d|3\d)", cityscapes, tmp_path / "labelIds", "train")


def test_grey_train_ids_in_gta5_need_the_users_word(tmp_path):
    root = write_gta5(tmp_path / "t", encoding="trainIds")
    refused("probably train ids.*--gta5-encoding trainIds", gta5, root)
    check(gta5(root, encoding="trainIds"))
    refused(r"expected train ids", gta5, write_gta5(tmp_path / "g", encoding="grey"), encoding="trainIds")


def test_unknown_colours(tmp_path):
    root = write_gta5(tmp_path, encoding="rgb")
    label = np.array(Image.open(root / "labels/00001.png"))
    label[:8] = (1, 2, 3)  # a quarter: ignored
    save(root / "labels/00001.png", label)
    assert set(gta5(root, SIZE)[0][1][:8].flatten().tolist()) == {IGNORE}
    label[:20] = (1, 2, 3)
    save(root / "labels/00001.png", label)
    refused(r"00001\.png: 6.% of the pixels have colours that are in no", gta5, root)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_damaged_files_are_named(tmp_path, kind):
    for damage, said in ((lambda b: b[: len(b) // 2], "cut short or damaged"), (lambda b: b"", "0 bytes"),
                         (lambda b: b"GIF89a" + b, "expected a PNG or JPEG")):  # fmt: skip
        root = write_gta5(tmp_path / said[:3])
        file = root / kind / "00002.png"
        file.write_bytes(damage(file.read_bytes()))
        refused(rf"{kind}/00002\.png: .*{said}", gta5, root)


def test_sizes_that_cannot_be(city, tmp_path):
    file = next((city / "gtFine/train").rglob("*.png"))
    save(file, ids(0, (32, 32)))
    refused(r"is 32 x 32 but its picture .* is 48 x 32", cityscapes, city, "train")
    file = next((city / "leftImg8bit/val").rglob("*.png"))
    for side, said in ((60_000, "3600000000 pixels"), (12_000, "claims 12000 x 12000 pixels")):
        header = bytearray(file.read_bytes())
        header[16:24] = side.to_bytes(4, "big") * 2  # what the header claims, with a checksum that agrees
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        file.write_bytes(bytes(header))
        refused(said, cityscapes, city, "val")


def test_labels_of_another_kind(city, game):
    file = next((city / "gtFine/train").rglob("*.png"))
    save(file, CITYSCAPES_PALETTE[ids(0)])
    refused("colour rendering", cityscapes, city, "train")
    save(file, np.full((32, 48), 77, dtype=np.uint8))
    refused(r"expected Cityscapes ids \(0 to 34\), found the value 77", cityscapes, city, "train")
    for file in (game / "labels").iterdir():
        save(file, np.zeros((32, 48), dtype=np.uint8), palette=True)
    refused("dummy labels", gta5, game)


def test_dummy_labels_of_the_official_test_split(tmp_path):
    root = write_cityscapes(tmp_path)
    for file in (root / "gtFine/train").rglob("*.png"):
        save(file, np.random.default_rng(0).integers(0, 4, (32, 48), dtype=np.uint8))
    refused("dummy labels.*--unlabelled", cityscapes, root, "train")


def test_colours_that_a_tool_indexed_anew_are_no_ids(tmp_path):
    root = write_gta5(tmp_path, encoding="rgb")
    for file in (root / "labels").iterdir():
        Image.open(file).quantize().save(file)
    refused(r"labels/0000.\.png: .*re-indexed by an image tool", gta5, root)


def test_colours_that_a_tool_indexed_anew_are_no_train_ids_either(tmp_path):
    label = np.array([0, 8, 10, 13], dtype=np.uint8).repeat(24).reshape(8, 12)
    for name, palette in (("own", CITYSCAPES.palette), ("converted", CITYSCAPES_PALETTE)):
        image = Image.fromarray(label).convert("P")
        image.putpalette(palette.tobytes())
        image.save(tmp_path / f"{name}.png")
        assert (read_label(tmp_path / f"{name}.png", "trainIds", CITYSCAPES_LABELS).numpy() == label).all()
    grey = Image.fromarray(label).convert("P")
    grey.putpalette(np.arange(256, dtype=np.uint8).repeat(3).tobytes())
    grey.save(tmp_path / "grey.png")
    assert (read_label(tmp_path / "grey.png", "trainIds", CITYSCAPES_LABELS).numpy() == label).all()
    Image.fromarray(CITYSCAPES.palette[label]).quantize().save(tmp_path / "anew.png")
    refused("index . has the colour of .*re-indexed", read_label, tmp_path / "anew.png", "trainIds", CITYSCAPES_LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_labels_of_few_bits_hold_what_was_written(tmp_path, bits):
    """Pillow spreads 2 and 4 bits over 0 to 255: an id of 1 would be 85 or 17, and 17 is a pole."""
    label = np.random.default_rng(0).integers(0, 2**bits, (6, 16), dtype=np.uint8)
    rows = np.packbits(np.unpackbits(label[..., None], axis=2)[..., 8 - bits :].reshape(6, -1), axis=1)
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = (16).to_bytes(4, "big") + (6).to_bytes(4, "big") + bytes((bits, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")):
        content += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    (tmp_path / "label.png").write_bytes(content)
    found, held = raw_label(tmp_path / "label.png", "ids", CITYSCAPES_LABELS)
    assert held == "ids"
    assert np.array_equal(found, label)


def test_labels_with_compression_are_no_labels(tmp_path):
    root = write_gta5(tmp_path, encoding="grey")
    for file in list((root / "labels").iterdir()):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    refused("labels must be PNG", gta5, root)


def test_unknown_colours_stay_ignored_under_a_mapping_of_ones_own(tmp_path):
    root = write_gta5(tmp_path, encoding="rgb")
    label = np.array(Image.open(root / "labels/00001.png"))
    label[:8] = (1, 2, 3)
    save(root / "labels/00001.png", label)
    (root / "info.json").write_text(json.dumps({"label2train": [[0, 0], [254, 1], [7, 5]]}))
    assert set(gta5(root, SIZE)[0][1][:8].flatten().tolist()) == {IGNORE}


def test_folders_that_are_in_the_way(city, game, monkeypatch):
    (city / "loop").symlink_to(city / "loop")
    for name in ("leftImg8bit", "gtFine"):
        (city / "__MACOSX" / name / "train").mkdir(parents=True)
    assert_reads(cityscapes(city, "train", SIZE), range(4))
    (city / "a").symlink_to(city.parent / "elsewhere")  # a link to nowhere
    scandir = os.scandir

    def refuse(path="."):
        if Path(path).name in ("lost+found", "bochum"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (game / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert_reads(gta5(game, SIZE), range(6))
    refused("bochum: this folder cannot be read", cityscapes, city, "train", labelled=False)


def test_two_pictures_of_one_name(city):
    file = next((city / "leftImg8bit/train").rglob("*000000*"))
    (city / "leftImg8bit/train" / file.name).write_bytes(file.read_bytes())
    refused("have the same name", cityscapes, city, "train")


# Subsets


def test_a_limit_draws_the_same_pictures_with_labels_and_without(city, tmp_path):
    """The upper bound reads labels and an adaptation does not; they are compared."""
    names = [sample.name for sample in cityscapes(city, "train", SIZE).samples]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(reversed(names)))
    more = {"list_file": listed, "limit": 2}
    both = (cityscapes(city, "train", SIZE, labelled=labelled, **more) for labelled in (True, False))
    labelled, unlabelled = ([sample.name for sample in data.samples] for data in both)
    assert labelled == unlabelled


def test_hidden_folders_hold_no_pictures(city):
    hidden = next((city / "leftImg8bit/train").iterdir()) / ".ipynb_checkpoints"
    save(hidden / "x_leftImg8bit.png", picture(0))
    for labelled in (True, False):
        assert len(cityscapes(city, "train", SIZE, labelled=labelled)) == 4


def test_limit_is_the_same_for_everyone_and_nested_lists_select(game, tmp_path):
    names = [sample.name for sample in gta5(game, limit=3).samples]
    assert names == ["00003", "00004", "00006"]  # in every process, and in years to come
    assert len(gta5(game, limit=100)) == 6
    listed = tmp_path / "list.txt"
    listed.write_text("# chosen\n00005\nimages/00002.png\n\n")
    assert [sample.name for sample in gta5(game, list_file=listed).samples] == ["00002", "00005"]
    listed.write_text("\ufeff00004.jpg\n", encoding="utf-8")  # a byte-order mark, and another suffix
    assert [sample.name for sample in gta5(game, list_file=listed).samples] == ["00004"]
    (game / "labels/00003.png").unlink()  # a partial set is whole as far as the list goes
    assert len(gta5(game, list_file=listed)) == 1
    listed.write_text("00009\n")
    refused(r"list\.txt, line 1: 00009 is no picture", gta5, game, list_file=listed)
    refused("cannot be read", gta5, game, list_file=tmp_path / "none.txt")
    listed.write_text("\n")
    refused("names no picture", gta5, game, list_file=listed)


def test_held_out_share_is_apart_and_the_same_for_everyone(game):
    rest, held = gta5(game).hold_out(0.34)
    names = [{sample.name for sample in part.samples} for part in (rest, held)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 6
    assert len(names[1]) == 2
    assert names[1] == {sample.name for sample in gta5(game).hold_out(0.34)[1].samples}
    assert gta5(game).hold_out(0)[1] is None
    with pytest.raises(UserError, match="leaves none"):
        gta5(game, limit=1).hold_out(0.9)


def test_evaluation_labels_keep_their_own_resolution(city):
    image, label = cityscapes(city, "val", (24, 16))[0]
    assert image.shape == (3, 16, 24)
    assert label.shape == (32, 48)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_picture_that_its_exif_data_turn_is_refused(tmp_path, orientation):
    """predict.py turns it, and labels that were made so do not fit what training reads."""
    root = write_cityscapes(tmp_path, suffix=".jpg")
    for path in (root / "leftImg8bit/train").rglob("*.jpg"):
        image = Image.open(path)
        turned = image.getexif()
        turned[0x0112] = orientation
        image.save(path, exif=turned)
    data = cityscapes(root, "train", SIZE)
    if orientation == 1:
        check(data)
    else:
        with pytest.raises(UserError, match="turned by its EXIF data, and its label may not be"):
            check(data)


def test_the_19_classes_have_the_published_ids_and_colours():
    """cityscapesScripts' labels.py."""
    published = """
        7 road 128 64 128, 8 sidewalk 244 35 232, 11 building 70 70 70, 12 wall 102 102 156, 13 fence 190 153 153,
        17 pole 153 153 153, 19 traffic light 250 170 30, 20 traffic sign 220 220 0, 21 vegetation 107 142 35,
        22 terrain 152 251 152, 23 sky 70 130 180, 24 person 220 20 60, 25 rider 255 0 0, 26 car 0 0 142,
        27 truck 0 0 70, 28 bus 0 60 100, 31 train 0 80 100, 32 motorcycle 0 0 230, 33 bicycle 119 11 32
    """
    rows = [entry.split() for entry in published.replace("\n", " ").split(",")]
    for train_id, (number, *name, red, green, blue) in enumerate(rows):
        assert CLASS_NAMES[train_id] == " ".join(name)
        assert CITYSCAPES.palette[train_id].tolist() == [int(red), int(green), int(blue)]
        assert CITYSCAPES_PALETTE[int(number)].tolist() == [int(red), int(green), int(blue)]
        assert CITYSCAPES_ID_TO_TRAIN_ID[int(number)] == train_id
    assert sum(train_id < 19 for train_id in CITYSCAPES_ID_TO_TRAIN_ID.values()) == 19
