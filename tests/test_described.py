"""A set that a JSON file describes: what docs/data.md says is carried out; each mistake in the file is one line."""

import copy
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line_error, picture, save
from PIL import Image

from datasets.check import check
from datasets.described import Described, described_source, described_target
from datasets.labels import CITYSCAPES, IGNORE
from training.checkpoint import classes_of, load_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "docs/data.md").read_text(encoding="utf-8").split("\n## Your own set")[1].split("\n## ")[0]
EXAMPLE = json.loads(re.search(r"```json\n(.*?)```", SECTION, re.DOTALL)[1])
COMMANDS = re.search(r"```\n(python .*?)```", SECTION, re.DOTALL)[1].splitlines()
NAMES = tuple(class_["name"] for class_ in EXAMPLE["classes"])
IDS = np.array([0, 1, 2, 3, 7], dtype=np.uint8)
TRAIN_IDS = np.array([IGNORE, 0, 1, 1, 2], dtype=np.uint8)
COLOURS = np.array([(0, 0, 0), (10, 200, 30), (200, 100, 0), (1, 2, 3), (250, 250, 5)], dtype=np.uint8)
IN_COLOURS = EXAMPLE | {
    "labels": "colours",
    "classes": [
        {"name": "floor", "colour": [10, 200, 30]},
        {"name": "wall", "colour": [255, 0, 0], "colours": [[200, 100, 0], [1, 2, 3]]},
        {"name": "ceiling lamp", "colour": [250, 250, 5]},
    ],
    "ignored": [[0, 0, 0]],
}


def rows_of(number):
    """int [32, 48], which of `IDS` each pixel is, in 4x4 blocks."""
    return np.random.default_rng(number).integers(0, len(IDS), (8, 12)).repeat(4, axis=0).repeat(4, axis=1)


def write(folder, given=EXAMPLE, values=IDS, ending=""):
    """Four pictures for training and two for val, with their JSON file; returns the file."""
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        for number in numbers:
            save(folder / f"{split}/photos/{number}.png", picture(number))
            save(folder / f"{split}/labels/{number}{ending}.png", values[rows_of(number)])
    return describe(folder, given)


def describe(folder, given):
    file = folder / "rooms.json"
    file.write_text(json.dumps(given))
    return file


@pytest.mark.parametrize(("given", "values"), [(EXAMPLE, IDS), (IN_COLOURS, COLOURS)], ids=["ids", "colours"])
def test_labels_are_read_as_the_file_says(tmp_path, given, values):
    file = write(tmp_path, given | {"label_ending": "_L"}, values, "_L")
    for data in (described_source(file), described_target(file, "train")):
        assert data.classes.names == NAMES
        assert data.classes.colours[0] == (10, 200, 30)
        for number in range(4):
            assert np.array_equal(data.label(number).numpy(), TRAIN_IDS[rows_of(number)])
        assert "3 classes in 4 labels" in check(data)
    assert (described_source(file).name, described_target(file, "val").name) == ("Rooms", "Rooms val")


@pytest.mark.parametrize(("given", "values", "strange", "said"), [
    (EXAMPLE, IDS, 9, r"expected Rooms ids \(0 to 7\), found the value 9"),
    (IN_COLOURS, COLOURS, (9, 9, 9), r"expected colours that Rooms lists, found \[9, 9, 9\]; list it, or ignore"),
], ids=["ids", "colours"])  # fmt: skip
def test_what_is_not_listed_is_refused_or_ignored_as_the_file_says(tmp_path, given, values, strange, said):
    file = write(tmp_path, given, values)
    label = values[rows_of(0)]
    label[:24] = strange  # more than half
    save(tmp_path / "train/labels/0.png", label)
    with pytest.raises(UserError, match=rf"train/labels/0\.png: {said}"):
        described_source(file).label(0)
    found = described_source(describe(tmp_path, given | {"unlisted": "ignore"})).label(0).numpy()
    assert (found[:24] == IGNORE).all()
    assert np.array_equal(found[24:], TRAIN_IDS[rows_of(0)][24:])
    kept = [Described("--source-json", describe(tmp_path, given | more)).table.key()
            for more in ({}, {"unlisted": "refuse"}, {"unlisted": "ignore"})]  # fmt: skip
    assert kept[0] == kept[1] != kept[2]  # what was prepared with strange values is not read where they are refused


def test_ids_below_the_number_of_classes_are_no_train_ids_by_mistake(tmp_path):
    file = write(tmp_path, values=np.array([0, 1, 2, 2, 1], dtype=np.uint8))
    assert "2 classes in 4 labels" in check(described_source(file))


@pytest.mark.parametrize(("key", "value", "said"), [
    ("name", 3, "name: expected a text, found 3"),
    ("labels", "rgb", 'labels: expected "ids" or "colours", found "rgb"'),
    ("classes", [], "classes: expected a list of 2 to 253 classes, found []"),
    ("classes.1", "wall", 'classes[1]: expected a table of name, colour, ids, found "wall"'),
    ("classes.1.ids", [1], "classes[1].ids: expected 1 once, it is floor already, found \"wall\""),
    ("classes.1.ids", [256], "classes[1].ids: expected whole numbers from 0 to 253, found 256"),
    ("classes.1.ids", 2, "classes[1].ids: expected a list of ids, found 2"),
    ("classes.1.name", "floor", 'classes[1].name: expected a name of its own, found "floor"'),
    ("classes.1.colour", "red", 'classes[1].colour: expected [red, green, blue], each from 0 to 255, found "red"'),
    ("classes.1.colur", [1, 2, 3], "classes[1]: expected name, colour, ids; found colur"),
    ("classes.1.ids", None, "classes[1]: expected name, colour, ids; ids is missing"),
    ("ignored", [7], 'ignored: expected 7 once, it is ceiling lamp already, found "ignored"'),
    ("unlisted", "keep", 'unlisted: expected "refuse" or "ignore", found "keep"'),
    ("splits", None, "the file: expected name, labels, classes, splits, ignored, unlisted, picture_ending, "
     "label_ending; splits is missing"),
    ("splits.train.labels", "lables", "splits.train.labels: expected a folder, named from the JSON file on, found "),
    ("splits.train.labels", None, "splits.train.labels: missing; this use of Rooms train needs its labels"),
    ("splits.val", None, "splits: no split 'val' is there; there: train"),
    ("label_ending", "_L", "splits.train.labels: expected PNG or JPEG files whose names end in _L in "),
], ids=str)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(script, tmp_path, key, value, said):
    given = copy.deepcopy(EXAMPLE)
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    inner = given
    for part in path:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    file = write(tmp_path, given)
    assert f"{file}: {said}" in one_line_error(script("datasets.check", "--target-json", file))


@pytest.mark.parametrize(("class_", "ignored"), [
    ({"name": "a", "colour": [9, 9, 9], "ids": [0]}, 254),  # which is also `UNKNOWN_COLOUR`
    ({"name": "a", "colour": [0, 0, 0], "ids": [1]}, 0),  # the file does not say in which colour 0 is shown
], ids=["an ignored 254", "a black class"])  # fmt: skip
def test_a_palette_says_nothing_against_ignored_ids(tmp_path, class_, ignored):
    classes = [{"name": "first", "colour": [200, 10, 10], "ids": [7]}, class_]
    file = write(tmp_path, EXAMPLE | {"classes": classes, "ignored": [ignored]}, np.array([0, 0, 7, 7, 7], np.uint8))
    for label in tmp_path.glob("*/labels/*.png"):
        image = Image.open(label).convert("P")
        image.putpalette(bytes(21) + bytes((200, 10, 10)) + bytes(744))
        image.save(label)
    expected = np.array([IGNORE if ignored == 0 else 1] * 2 + [0] * 3, np.uint8)
    assert np.array_equal(described_source(file).label(0).numpy(), expected[rows_of(0)])


def test_the_check_takes_a_train_split_without_labels_where_it_is_told(script, tmp_path):
    given = copy.deepcopy(EXAMPLE)
    del given["splits"]["train"]["labels"]
    file = write(tmp_path, given)
    flags = ("datasets.check", "--target-json", file)
    assert one_line_error(script(*flags)).endswith("this use of Rooms train needs its labels")
    done = script(*flags, "--unlabelled-train")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0].endswith(", used without labels")
    said = one_line_error(script("datasets.check", "--source-json", write(tmp_path), "--unlabelled-train"))
    assert said.endswith("--unlabelled-train does nothing here: no target is given")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    file = write(tmp_path)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(described_source(file)) == 4


def test_a_file_that_is_none_is_one_line(script, tmp_path):
    file = write(tmp_path)
    file.write_text("{")
    said = one_line_error(script("datasets.check", "--source-json", file))
    assert f"{file}: expected JSON, could not read it" in said
    said = one_line_error(script("datasets.check", "--source-json", tmp_path))
    assert f"--source-json {tmp_path}: expected a JSON file that describes the set" in said


QUICK = ("--model", "tiny", "--weights", "none", "--batch-size", 2, "--workers", 0, "--device", "cpu", "--lr", 0.01,
         "--max-steps", 3)  # fmt: skip


@pytest.mark.slow
def test_what_the_page_says_is_carried_out(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rooms")
    said = {}
    for command in COMMANDS:
        _, *words = shlex.split(command)
        name, *flags = words[1:] if words[0] == "-m" else words
        name = name.removesuffix(".py")
        flags = [flag.replace("640x480", "48x32") for flag in flags]
        more = {"train_cityscapes": QUICK, "eval": ("--workers", 0, "--device", "cpu"), "predict": ("--device", "cpu"),
                "report": ("--device", "cpu", "--pictures", 1)}  # fmt: skip
        done = script(name, *flags, *more.get(name, ()))
        assert done.status == 0, done.err
        said[name] = done.out
    assert list(said) == ["datasets.check", "train_cityscapes", "eval", "predict", "report"]
    assert "the 3 classes can be read" in said["datasets.check"]
    classes = classes_of(load_checkpoint(tmp_path / "runs/rooms/checkpoint_last.pt"))
    assert classes.names == NAMES
    assert classes.colours == tuple(tuple(class_["colour"]) for class_ in EXAMPLE["classes"])
    result = json.loads((tmp_path / "runs/rooms/result.json").read_text())
    assert result["network"]["num_classes"] == 3
    assert "Rooms val, 2 pictures" in said["eval"]
    assert "| ceiling lamp |" in said["eval"]
    assert np.array(Image.open(tmp_path / "seen/4_labelTrainIds.png")).max() < 3
    page = (tmp_path / "report/report.html").read_text()
    assert '<span style="background:rgb(250, 250, 5)"></span>ceiling lamp</li>' in page


@pytest.mark.slow
def test_it_is_a_source_and_a_target_of_adaptation(script, tmp_path, game):
    source, target = write(tmp_path / "drawn", IN_COLOURS, COLOURS), write(tmp_path / "seen")
    flags = (*QUICK, "--size", "48x32", "--source-size", "48x32")
    both = ("--source-json", source, "--target-json", target)
    done = script("train_dacs", *both, *flags, "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    done = script("eval", tmp_path / "run", "--source-json", source, "--workers", 0, "--device", "cpu")
    assert "Rooms, 4 pictures" in done.out, done.err
    said = one_line_error(script("train_dacs", "--gta5", game, *both[2:], *flags, "--run-dir", tmp_path / "never"))
    assert "GTA5 has 19 classes and Rooms train 3" in said

    named = enumerate(zip(CITYSCAPES.names, CITYSCAPES.colours, strict=True))
    nineteen = [{"name": name, "colour": colour, "ids": [at]} for at, (name, colour) in named]
    write(tmp_path / "own", EXAMPLE | {"classes": nineteen, "ignored": []})
    done = script("train_gta5", "--gta5", game, "--target-json", tmp_path / "own/rooms.json", *flags,
                  "--run-dir", tmp_path / "from the game")  # fmt: skip
    assert done.status == 0, done.err
