"""A source and a target with classes, ids and colours of their own go through every script; others are refused."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import one_line_error, picture, save, source_only, upper
from PIL import Image
from test_house import FLOORS, ROOT

from datasets import SegmentationSet, domains
from datasets.domains import Domain
from datasets.files import read_label
from datasets.labels import CITYSCAPES, CITYSCAPES_LABELS, ENCODINGS, IGNORE, Classes, Label, LabelTable
from datasets.pairs import by_key, limited, match, pictures_below
from datasets.prepared import prepared
from training.checkpoint import classes_of, load_checkpoint, save_checkpoint
from training.provenance import fingerprint
from utils.errors import UserError

CLASSES = Classes(("floor", "wall", "ceiling lamp"), ((10, 200, 30), (200, 100, 0), (250, 250, 5)))
ROOMS = LabelTable(
    "Rooms",
    CLASSES,
    (
        Label(0, "void", IGNORE, (0, 0, 0)),
        Label(10, "floor", 0, (10, 200, 30)),
        Label(20, "wall", 1, (200, 100, 0)),
        Label(21, "door", 1, (1, 2, 3)),
        Label(30, "ceiling lamp", 2, (250, 250, 5)),
    ),
)
IDS = [row.id for row in ROOMS.rows]
COLOURS = np.array([row.colour for row in ROOMS.rows], dtype=np.uint8)
TRAIN_IDS = np.array([row.train_id for row in ROOMS.rows], dtype=np.uint8)


def rooms(root, size, labelled=True, list_file=None, limit=None, encoding="auto", name="Rooms"):
    """A source: ROOT/pictures/*.png with ROOT/classes/*.png."""
    pictures = by_key(pictures_below(root / "pictures"), lambda file: file.stem)
    labels = by_key(pictures_below(root / "classes"), lambda file: file.stem) if labelled else None
    samples = limited(match(pictures, labels, list_file, name), limit)
    return SegmentationSet(name, samples, size, encoding, root=root, table=ROOMS)


def flat(root, split, size, **options):
    """A target: the same below ROOT/SPLIT."""
    return rooms(root / split, size, **options, name=f"Flat {split}")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What one line in each table does."""
    monkeypatch.setitem(domains.SOURCES, "rooms", Domain("Rooms", rooms, (48, 32), ENCODINGS))
    monkeypatch.setitem(domains.TARGETS, "flat", Domain("Flat", flat, (48, 32)))


def rows_of(number):
    """int [32, 48], which row of the table each pixel is, in 4x4 blocks."""
    return np.random.default_rng(number).integers(0, len(IDS), (8, 12)).repeat(4, axis=0).repeat(4, axis=1)


def write(root, numbers, colours=False):
    for number in numbers:
        save(root / "pictures" / f"{number}.png", picture(number))
        rows = rows_of(number)
        save(root / "classes" / f"{number}.png", COLOURS[rows] if colours else np.array(IDS, dtype=np.uint8)[rows])
    return root


QUICK = ("--model", "tiny", "--weights", "none", "--batch-size", 2, "--workers", 0, "--device", "cpu", "--lr", 0.01,
         "--max-steps", 2)  # fmt: skip
MACHINE = ("--workers", 0, "--device", "cpu")


@pytest.fixture
def data(tmp_path):
    """The flags that name a source in colours, and a target in ids."""
    write(tmp_path / "rooms", range(4), colours=True)
    write(tmp_path / "flat/train", range(10, 14))
    write(tmp_path / "flat/val", range(20, 22))
    return ("--rooms", tmp_path / "rooms", "--flat", tmp_path / "flat")


@pytest.fixture
def trained(script, data, tmp_path):
    """The checkpoint of a short run on them, at the sizes of their tables."""
    flags = ("--source-holdout", 0.3, "--loss", "weighted", "--run-dir", tmp_path / "run")
    done = script("train_gta5", *data, *QUICK, *flags)
    assert done.status == 0, done.err
    assert "class weights from Rooms: floor " in done.out
    return tmp_path / "run/checkpoint_last.pt"


def test_labels_are_read_by_the_table_of_their_set(tmp_path):
    rows = rows_of(1)
    expected = TRAIN_IDS[rows]
    for name, pixels in (("ids", np.array(IDS, dtype=np.uint8)[rows]), ("colours", COLOURS[rows])):
        save(tmp_path / f"{name}.png", pixels)
        assert np.array_equal(read_label(tmp_path / f"{name}.png", "auto", ROOMS).numpy(), expected)
    save(tmp_path / "trainIds.png", expected)
    assert np.array_equal(read_label(tmp_path / "trainIds.png", "trainIds", ROOMS).numpy(), expected)
    refused = {
        "ids": (7, r"expected Rooms ids \(0 to 30\), found the value 7"),
        "trainIds": (3, r"expected train ids \(0 to 2, 255\), found the value 3"),
    }
    for encoding, (value, said) in refused.items():
        save(tmp_path / "wrong.png", np.full((4, 4), value, dtype=np.uint8))
        with pytest.raises(UserError, match=said):
            read_label(tmp_path / "wrong.png", encoding, ROOMS)
    save(tmp_path / "wrong.png", np.full((4, 4, 3), 128, dtype=np.uint8))
    with pytest.raises(UserError, match="in no Rooms palette; expected the palette of the 3 classes"):
        read_label(tmp_path / "wrong.png", "auto", ROOMS)


def test_a_run_keeps_its_classes_and_every_script_goes_by_them(script, trained, tmp_path):
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert list(result["iou"]) == list(result["source"]["iou"]) == list(CLASSES.names)
    assert np.shape(result["confusion"]) == (3, 3)
    assert result["network"]["num_classes"] == 3
    checkpoint = load_checkpoint(trained)
    assert classes_of(checkpoint) == CLASSES
    assert checkpoint["config"]["arguments"]["size"] == checkpoint["config"]["arguments"]["source_size"] == [48, 32]
    assert "3 classes: floor, wall, ceiling lamp" in (tmp_path / "run/model_card.md").read_text()

    out = tmp_path / "out"
    done = script("eval", trained, "--json", tmp_path / "eval.json", "--save-predictions", out, "--adapt-bn", *MACHINE)
    assert done.status == 0, done.err
    assert "| ceiling lamp |" in done.out
    seen = np.unique(np.concatenate([np.array(Image.open(file)).reshape(-1, 3) for file in out.iterdir()]), axis=0)
    assert {tuple(colour) for colour in seen.tolist()} <= set(CLASSES.colours)
    done = script("eval", trained, "--rooms", tmp_path / "rooms", "--save-side-by-side", tmp_path / "beside", *MACHINE)
    assert "Rooms held out, 1 pictures" in done.out, done.err

    save(tmp_path / "x.png", picture(1))
    explain = ("predict", trained, tmp_path / "x.png", "--out", tmp_path / "seen", "--device", "cpu", "--cam")
    done = script(*explain, "Ceiling-Lamp", "--at", "9,9")
    assert done.status == 0, done.err
    assert (tmp_path / "seen/x_cam-ceiling-lamp.png").exists()
    ids, legend = (np.array(Image.open(tmp_path / f"seen/x_{kind}.png")) for kind in ("labelTrainIds", "overlay"))
    for train_id in np.unique(ids):
        assert (legend[32:] == CLASSES.colours[train_id]).all(axis=2).sum() > 50
    assert "none of the classes: floor, wall, ceiling lamp" in one_line_error(script(*explain, "car"))


@pytest.mark.slow
def test_a_report_names_and_colours_them(script, data, city, tmp_path):
    model = ("--model", "bisenet")  # whose classes have a table
    flags = (*model, "--source-holdout", 0.3, "--run-dir", tmp_path / "run")
    assert script("train_gta5", *data, *QUICK, *flags).status == 0
    assert script(*upper(city, tmp_path / "other", *model, "--max-steps", 1)).status == 0
    done = script("report", tmp_path / "run", "--out", tmp_path / "report", "--pictures", 1, "--device", "cpu")
    assert done.status == 0, done.err
    page = (tmp_path / "report/report.html").read_text()
    assert '<span style="background:rgb(250, 250, 5)"></span>ceiling lamp</li>' in page
    assert "left out" not in done.out
    table = (tmp_path / "report/tables/report-3.csv").read_text()
    assert [line.partition(",")[0] for line in table.splitlines()] == ["IoU (%)", *CLASSES.names, "mean"]
    assert re.search(r"source only \(.+ to .+\)", (tmp_path / "report/report.md").read_text())
    done = script("report", tmp_path / "run", tmp_path / "other", "--out", tmp_path / "both", "--device", "cpu")
    assert done.status == 0, done.err
    table = (tmp_path / "both/tables/report-3.csv").read_text()
    assert {*CLASSES.names, *CITYSCAPES.names} < {line.partition(",")[0] for line in table.splitlines()}


def test_self_training_and_rare_classes_go_by_them(script, trained, data, tmp_path):
    done = script("train_pseudo_labels", *data, *QUICK, "--labeller", trained, "--run-dir", tmp_path / "pseudo")
    assert done.status == 0, done.err
    (summary,) = (tmp_path / "pseudo/pseudo-labels").glob("*/summary.json")
    assert list(json.loads(summary.read_text())["classes"]) == list(CLASSES.names)
    done = script("train_dacs", *data, *QUICK, "--rare-classes", "--run-dir", tmp_path / "dacs")
    assert done.status == 0, done.err
    assert "ceiling lamp " in done.out
    assert classes_of(load_checkpoint(tmp_path / "dacs/checkpoint_last.pt")) == CLASSES


def test_a_run_of_before_a_data_set_was_known_is_resumed_and_reported_with_later_ones(
    script, game, city, tmp_path, monkeypatch
):
    with monkeypatch.context() as before:
        before.delitem(domains.SOURCES, "rooms")
        before.delitem(domains.TARGETS, "flat")
        assert script(*source_only(game, city, tmp_path / "run", "--max-steps", 1)).status == 0
    done = script(*source_only(game, city, tmp_path / "run", "--max-steps", 1, "--resume"))
    assert done.status == 0, done.err
    assert script(*source_only(game, city, tmp_path / "later", "--max-steps", 1, "--seed", 1)).status == 0
    done = script("report", tmp_path / "run", tmp_path / "later")
    assert "| 2    |" in done.out, done.out + done.err  # two seeds of one experiment


def test_a_run_goes_on_where_its_data_were_moved_to(script, data, tmp_path):
    command = ("train_gta5", *QUICK, "--run-dir", tmp_path / "run")
    assert script(*command, *data).status == 0
    (tmp_path / "rooms").rename(tmp_path / "moved")
    done = script(*command, "--rooms", tmp_path / "moved", "--flat", tmp_path / "flat", "--resume")
    assert done.status == 0, done.err


def test_what_does_not_fit_together_is_refused_in_one_line(script, trained, data, game, city, tmp_path):
    new = (*QUICK, "--run-dir", tmp_path / "new")
    rooms_, flat_ = data[:2], data[2:]
    two = one_line_error(script("train_gta5", "--gta5", game, *data, *new))
    assert "GTA5 has 19 classes and Rooms 3" in two
    assert "--cityscapes and --flat: a run has one target" in one_line_error(
        script("train_gta5", *data, "--cityscapes", city, *new)
    )
    mixed = one_line_error(script("train_gta5", "--gta5", game, *flat_, "--source-size", "48x32", *new))
    assert "GTA5 has 19 classes and Flat val 3" in mixed
    assert "Flat val alone has floor, ceiling lamp" in mixed
    assert re.search(r"--gta5 DIR \(or .*--rooms\) is missing", one_line_error(script("train_gta5", *flat_, *new)))
    lacking = one_line_error(script("train_gta5", *rooms_, *new))
    assert re.search(r"--cityscapes DIR \(or .*--flat\) is missing", lacking)
    assert "3 classes and Cityscapes val 19" in one_line_error(script("eval", trained, "--cityscapes", city, *MACHINE))
    ids = one_line_error(script("eval", trained, "--save-ids", tmp_path / "ids", *MACHINE))
    assert "3 classes and Cityscapes' test server 19" in ids

    assert script(*source_only(game, city, tmp_path / "city", "--max-steps", 1)).status == 0
    other = tmp_path / "city/checkpoint_last.pt"
    assert "3 classes and" in one_line_error(script("eval", trained, other, "--unlabelled", *MACHINE))
    assert "19 classes and this run 3" in one_line_error(script("train_gta5", *data, *new, "--init", other))
    for script_, flag in (("train_pseudo_labels", "--labeller"), ("train_dacs", "--teacher-checkpoint")):
        assert "19 classes and this run 3" in one_line_error(script(script_, *data, *new, flag, other)), script_
    assert not (tmp_path / "new").exists()


def test_a_network_with_other_classes_of_the_same_number_is_no_start(script, trained, data, tmp_path):
    checkpoint = load_checkpoint(trained)
    save_checkpoint(trained, checkpoint | {"class_names": ["floor", "ceiling lamp", "wall"]})
    said = one_line_error(script("train_gta5", *data, *QUICK, "--init", trained, "--run-dir", tmp_path / "new"))
    assert "another order" in said


def test_checkpoints_without_colours_have_those_of_cityscapes(script, city, tmp_path):
    assert script(*upper(city, tmp_path / "run", "--max-steps", 1)).status == 0
    checkpoint = load_checkpoint(tmp_path / "run/checkpoint_last.pt")
    assert classes_of(checkpoint) == CITYSCAPES
    del checkpoint["class_colours"]
    assert classes_of(checkpoint) == CITYSCAPES


def test_prepared_labels_and_resumed_runs_depend_on_the_table(data):
    assert CITYSCAPES_LABELS.key() == []  # what was made before tables had a key is found again
    one = rooms(data[1], (48, 32))
    other = dataclasses.replace(one, table=dataclasses.replace(ROOMS, rows=ROOMS.rows[:-1]))
    assert fingerprint(one)["labels"] != fingerprint(other)["labels"]
    places = [data[1] / "prepared"]
    assert prepared(one, places, 0).labels.home != prepared(other, places, 0).labels.home


def test_the_nineteen_are_known_only_where_they_belong():
    known = ("CLASS_NAMES", "CITYSCAPES")
    allowed = {"datasets/labels.py"}  # the table; who reads by it:
    allowed |= {"datasets/cityscapes.py", "datasets/gta5.py", "datasets/synthia.py", "datasets/camvid.py"}
    allowed |= {"reporting/published.py", "training/checkpoint.py", "eval.py"}  # others' figures, old files, --save-ids
    allowed |= {"export.py"}  # for pictures without labels
    allowed |= {"training/vetting.py", "datasets/domains.py"}  # old files too; a variable of the environment
    files = [path for room in FLOORS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    names = {str(path.relative_to(ROOT)) for path in files if any(word in path.read_text() for word in known)}
    assert {name for name in names if not name.startswith("datasets/street_scenes/")} <= allowed
