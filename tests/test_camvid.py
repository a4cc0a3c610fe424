"""CamVid in its layouts: the same frames, splits and train ids from each; what is none of them is refused."""

import itertools
import json

import numpy as np
import pytest
from conftest import one_line_error, picture, save
from PIL import Image

from benchmarks import adaptation
from datasets import camvid
from datasets.check import check
from datasets.domains import open_target
from datasets.labels import CITYSCAPES, CITYSCAPES_LABELS, IGNORE
from training.checkpoint import classes_of, load_checkpoint
from utils.errors import UserError

NAMES = tuple(camvid.LABELS)
COLOURS = np.array([meaning.colour for meaning in camvid.LABELS.values()], dtype=np.uint8)
GROUPS = np.array([11 if m.group is None else camvid.OWN.index(m.group) for m in camvid.LABELS.values()], np.uint8)
CODES = tuple(reversed(NAMES))
FRAMES = {
    "train": ("0001TP_008490", "0001TP_008520", "0006R0_f00930", "0016E5_07920", "0016E5_08190"),
    "val": ("0016E5_07959", "0016E5_08159"),
    "test": ("0001TP_008550", "0001TP_008580", "Seq05VD_f00000", "Seq05VD_f05100"),
}
ALL = [*itertools.chain(*FRAMES.values())]
KAGGLE = {"train": ALL[::2], "val": ALL[1::4], "test": ALL[3::4]}
"""Whose split is another."""


def rows_of(frame, size=(48, 32)):
    """int [H, W], which of the 32 labels each pixel is, in 4x4 blocks; each of them is somewhere."""
    number = ALL.index(frame)
    blocks = np.random.default_rng(number).permutation(size[1] // 4 * size[0] // 4) % len(NAMES)
    return blocks.reshape(size[1] // 4, -1).repeat(4, axis=0).repeat(4, axis=1)


def write(root, layout):
    """The frames in a layout; returns the root that a user names."""
    placed = KAGGLE if layout == "kaggle" else FRAMES
    for split, frames in placed.items():
        for frame in frames:
            rows = rows_of(frame)
            pictures, labels, content = {
                "original": ("701_StillsRaw_full", f"LabeledApproved_full/{frame}_L.png", COLOURS[rows]),
                "segnet": (f"CamVid/{split}", f"CamVid/{split}annot/{frame}.png", GROUPS[rows]),
                "fastai": ("camvid/images", f"camvid/labels/{frame}_P.png", (len(NAMES) - 1 - rows).astype(np.uint8)),
                "kaggle": (f"CamVid/{split}", f"CamVid/{split}_labels/{frame}_L.png", COLOURS[rows]),
                "lih627": ("CamVid_RGB", f"CamVid_Label/{frame}_L.png", COLOURS[rows]),
                "grey": ("CamVid_RGB", f"CamVidGray/{frame}_L.png", np.where(GROUPS == 11, IGNORE, GROUPS)[rows]),
            }[layout]
            save(root / pictures / f"{frame}.png", picture(ALL.index(frame)))
            save(root / labels, content.astype(np.uint8))
    if layout == "fastai":
        (root / "camvid/codes.txt").write_text("\n".join(CODES) + "\n")
    return root


LAYOUTS = ("original", "segnet", "fastai", "kaggle", "lih627", "grey")
OF_32 = {layout for layout in LAYOUTS if layout not in ("segnet", "grey")}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    return request.param, write(tmp_path_factory.mktemp(request.param), request.param)


CITY = dict(zip(CITYSCAPES.names, range(19), strict=True))
EXPECTED = {
    "cityscapes": {"LaneMkgsDriv": "road", "Child": "person", "SUVPickupTruck": "car", "Truck_Bus": "bus",
                   "Train": "train", "MotorcycleScooter": "motorcycle", "VegetationMisc": "terrain", "Wall": "wall",
                   "TrafficLight": "traffic light", "Column_Pole": "pole", "Bicyclist": "bicycle", "Archway": None,
                   "Void": None, "OtherMoving": None, "ParkingBlock": None},
    "cityscapes11": {"LaneMkgsDriv": "road", "Child": "person", "SUVPickupTruck": "car", "Truck_Bus": "car",
                     "Train": "car", "MotorcycleScooter": "bicycle", "VegetationMisc": "vegetation",
                     "Wall": "building", "TrafficLight": "traffic sign", "Archway": "building", "Void": None,
                     "OtherMoving": "car", "ParkingBlock": "sidewalk", "Animal": "person", "TrafficCone": "pole"},
}  # fmt: skip


def test_every_layout_is_read_to_the_same_frames_and_train_ids(layout):
    name, root = layout
    for split, frames in FRAMES.items():
        for classes in camvid.CLASSES:
            data = camvid.camvid(root, split, (48, 32), classes=classes)
            assert data.name == f"CamVid {split}"
            assert [sample.name for sample in data.samples] == sorted(frames)
            assert len(data.classes) == (11 if classes == "camvid11" else 19)
            for index, frame in enumerate(sorted(frames)):
                found, rows = data.label(index).numpy(), rows_of(frame)
                assert np.array_equal(data.image(index).permute(1, 2, 0), picture(ALL.index(frame)))
                if classes == "camvid11":
                    assert np.array_equal(found, np.where(GROUPS == 11, IGNORE, GROUPS)[rows])
                    continue
                kept = classes if name in OF_32 else "cityscapes11"  # the 11 alone do not say more
                for label, class_ in EXPECTED[kept].items():
                    assert set(found[rows == NAMES.index(label)]) == {CITY.get(class_, IGNORE)}, (label, class_)
            assert "ignored" in check(data)


def test_day_and_dusk_are_drives_and_share_no_name(layout):
    _, root = layout
    day = camvid.camvid_day(root, (48, 32))
    dusk = {split: camvid.camvid_dusk(root, split, (48, 32)) for split in ("train", "val")}
    names = [[sample.name for sample in data.samples] for data in (day, *dusk.values())]
    assert names[0] == [n for split in FRAMES.values() for n in sorted(split) if not n.startswith("0001TP")]
    assert names[1:] == [["0001TP_008490", "0001TP_008520"], ["0001TP_008550", "0001TP_008580"]]
    assert sorted(itertools.chain(*names)) == sorted(ALL)
    assert [data.name for data in (day, *dusk.values())] == ["CamVid day", "CamVid dusk train", "CamVid dusk val"]


def test_the_rule_gives_the_numbers_of_the_lists_of_segnet():
    drives = [("0001TP_{:06d}", 6690, 10380, 30), ("0006R0_f{:05d}", 930, 3930, 30), ("Seq05VD_f{:05d}", 0, 5100, 30),
              ("0016E5_{:05d}", 390, 2400, 30), ("0016E5_{:05d}", 4350, 7920, 30), ("0016E5_{:05d}", 8190, 8640, 30),
              ("0016E5_{:05d}", 7959, 8159, 2)]  # fmt: skip
    names = [name.format(frame) for name, low, high, step in drives for frame in range(low, high + 1, step)]
    assert len(names) == 701
    counts = {split: sum(camvid.segnet_split(name) == split for name in names) for split in camvid.SPLITS}
    assert counts == {"train": 367, "val": 101, "test": 233}


def test_pictures_alone_do_where_no_label_is_used(tmp_path):
    root = write(tmp_path, "original")
    for file in (root / "LabeledApproved_full").iterdir():
        file.unlink()
    (root / "LabeledApproved_full").rmdir()
    assert not camvid.camvid(root, "train", labelled=False).labelled
    with pytest.raises(UserError, match=r"found none of CamVid's layouts \(701_StillsRaw_full and LabeledApproved"):
        camvid.camvid(root, "train")


def test_what_is_none_of_its_layouts_is_refused_with_the_likely_cause(script, tmp_path, city):
    def said(*flags):
        return one_line_error(script("datasets.check", *flags))

    assert said("--camvid", city).endswith("It is laid out as Cityscapes: say --cityscapes")
    assert said("--camvid-day", city).endswith("are --camvid-day and --cityscapes swapped?")
    fastai = write(tmp_path / "fastai", "fastai")
    assert said("--cityscapes", fastai).endswith("It is laid out as CamVid: say --camvid")
    assert said("--gta5", fastai).endswith("It is laid out as CamVid by day: say --camvid-day")
    with pytest.raises(UserError, match=r"no split 'other' .*; there: train, val$"):
        open_target({"cityscapes": city, "size": (48, 32)}, "other")  # laid out as it should be
    codes = fastai / "camvid/codes.txt"
    for text, found in (("Road\nSky\nCars\n", "found Cars"), ("Road\nRoad\n", "found Road"), ("\n", "found nothing")):
        codes.write_text(text)
        assert said("--camvid", fastai).endswith(f"one a line and each once, such as SignSymbol; {found}")
    codes.write_text("\n".join(CODES[:20]))
    assert "expected CamVid ids (0 to 19), found the value 20" in said("--camvid", fastai)
    codes.unlink()
    assert "images and labels and codes.txt" in said("--camvid", fastai)

    root = write(tmp_path / "segnet", "segnet")
    strange = root / "CamVid/train/street.png"
    save(strange, picture(1))
    assert f"{strange} and 0 more of 12: expected frames of CamVid, such as 0016E5_07959.png" in said("--camvid", root)
    strange.rename(root / "CamVid/val/0001TP_008490.png")
    assert "0001TP_008490.png have the same name; expected one file a picture" in said("--camvid", root)
    (root / "CamVid/val/0001TP_008490.png").unlink()
    (root / "CamVid/trainannot/0001TP_008490.png").unlink()
    assert "CamVid train: 4 pairs, but 1 picture(s) without label" in said("--camvid", root)
    with pytest.raises(UserError, match="no split 'trainval' is in CamVid; there: train, val, test"):
        camvid.camvid(root, "trainval")
    save(root / "CamVid/trainannot/0001TP_008490.png", GROUPS[rows_of("0001TP_008490")])
    for file in (root / "CamVid/val").iterdir():
        file.unlink()
    assert "no frame of CamVid val is in train, val, test of" in said("--camvid", root)


def test_labels_of_cityscapes_are_refused_and_unknown_colours_ignored(script, tmp_path):
    root = write(tmp_path / "colours", "original")
    file = root / "LabeledApproved_full/0001TP_008490_L.png"
    before = np.array(Image.open(file))
    mixed = before.copy()
    mixed[:4] = (60, 40, 222)  # as no label of CamVid's is coloured
    Image.fromarray(mixed).save(file)
    found = camvid.camvid(root, "train").label(0).numpy()
    assert (found[:4] == IGNORE).all()
    assert np.array_equal(found[4:], camvid.camvid(write(tmp_path / "b", "original"), "train").label(0).numpy()[4:])
    Image.fromarray(CITYSCAPES_LABELS.palette[rows_of("0001TP_008490")]).save(file)
    assert "have colours that are in no CamVid palette" in one_line_error(script("datasets.check", "--camvid", root))
    root = write(tmp_path / "ids", "segnet")
    Image.fromarray(np.full((32, 48), 26, np.uint8)).save(root / "CamVid/trainannot/0001TP_008490.png")
    said = one_line_error(script("datasets.check", "--camvid", root))
    assert "expected CamVid ids (0 to 11), found the value 26; another data set's label?" in said


QUICK = ("--model", "tiny", "--weights", "none", "--batch-size", 2, "--workers", 0, "--device", "cpu", "--lr", 0.01,
         "--max-steps", 3, "--size", "48x32")  # fmt: skip
MACHINE = ("--workers", 0, "--device", "cpu")


@pytest.mark.slow
def test_eleven_classes_of_its_own_go_through_every_script(script, tmp_path):
    root = write(tmp_path / "camvid", "kaggle")
    run = tmp_path / "run"
    own = ("--camvid-classes", "camvid11")
    done = script("train_cityscapes", "--camvid", root, *own, *QUICK, "--run-dir", run)
    assert done.status == 0, done.err
    checkpoint = run / "checkpoint_last.pt"
    assert classes_of(load_checkpoint(checkpoint)) == camvid.OWN
    result = json.loads((run / "result.json").read_text())
    assert list(result["iou"]) == list(camvid.ELEVEN)
    assert result["network"]["num_classes"] == 11
    assert result["pictures"] == 2

    done = script("eval", checkpoint, "--split", "test", "--save-predictions", tmp_path / "seen", *MACHINE)
    assert done.status == 0, done.err
    assert "CamVid test, 4 pictures" in done.out
    assert "| Pavement  " in done.out
    colours = {tuple(c) for f in (tmp_path / "seen").iterdir() for c in np.array(Image.open(f)).reshape(-1, 3).tolist()}
    assert colours <= set(camvid.OWN.colours)
    frame = next(root.rglob("0016E5_07959.png"))
    done = script("predict", checkpoint, frame, "--out", tmp_path / "out", "--device", "cpu", "--cam", "SignSymbol",
                  "--at", "9,9")  # fmt: skip
    assert done.status == 0, done.err
    assert (tmp_path / "out/0016E5_07959_cam-SignSymbol.png").exists()
    done = script("report", run, "--out", tmp_path / "report", "--pictures", 1, "--device", "cpu")
    assert done.status == 0, done.err
    page = (tmp_path / "report/report.html").read_text()
    assert '<span style="background:rgb(0, 0, 192)"></span>Pavement</li>' in page

    again = ("train_cityscapes", "--camvid", root, *QUICK, "--run-dir", run, "--resume")
    assert "--camvid-classes was camvid11, is cityscapes" in one_line_error(script(*again))
    assert script(*again, *own).status == 0


def test_day_to_dusk_is_one_root_on_both_sides(script, tmp_path, game):
    root = write(tmp_path / "camvid", "segnet")
    both = ("--camvid-day", root, "--camvid-dusk", root)
    run = tmp_path / "run"
    done = script("train_gta5", *both, *QUICK, "--source-size", "48x32", "--run-dir", run)
    assert done.status == 0, done.err
    assert "CamVid day: 7 pictures" in done.out
    assert "CamVid dusk val: 2 pictures" in done.out
    result = json.loads((run / "result.json").read_text())
    assert result["classes_evaluated"] == 11
    done = script("eval", run, "--adapt-bn", "--camvid", root, "--split", "test", *MACHINE)
    assert "CamVid test, 4 pictures" in done.out, done.err
    finer = write(tmp_path / "of 32", "original")
    seen = [script("eval", run, "--camvid", finer, *flags, *MACHINE, "--json", tmp_path / f"{number}.json")
            for number, flags in enumerate([(), ("--camvid-classes", "cityscapes11")])]  # fmt: skip
    assert [done.status for done in seen] == [0, 0], seen[0].err + seen[1].err
    evaluated = [json.loads((tmp_path / f"{n}.json").read_text())["evaluations"][0] for n in (0, 1)]
    assert [figures["classes_evaluated"] for figures in evaluated] == [17, 11]
    mixed = ("train_gta5", "--gta5", game, "--camvid", root, "--camvid-classes", "camvid11", *QUICK, "--source-size",
             "48x32", "--run-dir", tmp_path / "never")  # fmt: skip
    assert "GTA5 has 19 classes and CamVid val 11" in one_line_error(script(*mixed))
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_networks_of_labels_that_are_read_differently_are_not_compared(script, tmp_path):
    """Both have the 19 classes and the same pictures."""
    root = write(tmp_path / "camvid", "original")
    for classes in ("cityscapes", "cityscapes11"):
        run = ("--camvid-classes", classes, *QUICK, "--run-dir", tmp_path / classes)
        assert script("train_cityscapes", "--camvid", root, *run).status == 0
    both = ("eval", tmp_path / "cityscapes", tmp_path / "cityscapes11", *MACHINE)
    assert "figures by different labels do not compare" in one_line_error(script(*both))
    assert script(*both, "--camvid-classes", "cityscapes").status == 0


@pytest.mark.slow
def test_a_report_keeps_runs_of_other_classes_apart(script, tmp_path):
    """One root, two lists of classes: no gap between them, and each picture in its own colours."""
    root = write(tmp_path / "camvid", "original")
    sides = ("--size", "48x32", "--source-size", "48x32")
    for classes in ("cityscapes11", "camvid11"):
        given = ("--camvid-dusk", root, "--camvid-classes", classes, *QUICK)
        assert script("train_cityscapes", *given, "--run-dir", tmp_path / f"upper {classes}").status == 0
    given = ("--camvid-day", root, *given, *sides)
    assert script("train_gta5", *given, "--run-dir", tmp_path / "source only").status == 0
    runs = [tmp_path / name for name in ("upper cityscapes11", "upper camvid11", "source only")]
    done = script("report", *runs, "--out", tmp_path / "report", "--pictures", 1, "--device", "cpu")
    assert done.status == 0, done.err
    assert "no pictures" not in done.out
    page = (tmp_path / "report/report.html").read_text()
    assert "</span>Pavement</li>" in page
    assert "</span>sidewalk</li>" in page


def test_the_table_of_methods_reads_it_from_one_root(monkeypatch):
    given = ["--camvid-day", "C", "--camvid-dusk", "C", "--camvid-classes", "cityscapes11"]
    monkeypatch.setattr("sys.argv", ["adaptation.py", *given])
    plan = adaptation.plan_of(adaptation.parse_args(), adaptation.CELLS)
    own = ["--camvid-classes", "cityscapes11"]
    assert plan.command("upper bound", 0)[1:5] == ["--camvid-dusk", "C", *own]
    command = plan.command("DACS", 0)
    assert command[command.index("--camvid-day") :][:4] == ["--camvid-day", "C", *own]


PUBLISHED = """
64 128 64 Animal, 192 0 128 Archway, 0 128 192 Bicyclist, 0 128 64 Bridge, 128 0 0 Building, 64 0 128 Car,
64 0 192 CartLuggagePram, 192 128 64 Child, 192 192 128 Column_Pole, 64 64 128 Fence, 128 0 192 LaneMkgsDriv,
192 0 64 LaneMkgsNonDriv, 128 128 64 Misc_Text, 192 0 192 MotorcycleScooter, 128 64 64 OtherMoving,
64 192 128 ParkingBlock, 64 64 0 Pedestrian, 128 64 128 Road, 128 128 192 RoadShoulder, 0 0 192 Sidewalk,
192 128 128 SignSymbol, 128 128 128 Sky, 64 128 192 SUVPickupTruck, 0 0 64 TrafficCone, 0 64 64 TrafficLight,
192 64 128 Train, 128 128 0 Tree, 192 128 192 Truck_Bus, 64 0 64 Tunnel, 192 192 0 VegetationMisc, 0 0 0 Void,
64 192 0 Wall
"""
"""CamVid's label_colors.txt."""
GROUPED = {
    "Sky": "Sky",
    "Building": "Archway Bridge Building Tunnel Wall",
    "Pole": "Column_Pole TrafficCone",
    "Road": "LaneMkgsDriv LaneMkgsNonDriv Road",
    "Pavement": "ParkingBlock RoadShoulder Sidewalk",
    "Tree": "Tree VegetationMisc",
    "SignSymbol": "Misc_Text SignSymbol TrafficLight",
    "Fence": "Fence",
    "Car": "Car OtherMoving SUVPickupTruck Train Truck_Bus",
    "Pedestrian": "Animal CartLuggagePram Child Pedestrian",
    "Bicyclist": "Bicyclist MotorcycleScooter",
}
"""SegNet's 11 classes."""
AS_CITYSCAPES = {
    "road": "LaneMkgsDriv LaneMkgsNonDriv Road",
    "sidewalk": "Sidewalk",
    "building": "Building",
    "wall": "Wall",
    "fence": "Fence",
    "pole": "Column_Pole",
    "traffic light": "TrafficLight",
    "traffic sign": "SignSymbol",
    "vegetation": "Tree",
    "terrain": "VegetationMisc",
    "sky": "Sky",
    "person": "Child Pedestrian",
    "car": "Car SUVPickupTruck",
    "bus": "Truck_Bus",
    "train": "Train",
    "motorcycle": "MotorcycleScooter",
    "bicycle": "Bicyclist",
}


def test_the_labels_are_the_published_ones():
    rows = [entry.split() for entry in PUBLISHED.replace("\n", " ").split(",")]
    assert {name: meaning.colour for name, meaning in camvid.LABELS.items()} == {
        name: tuple(map(int, colour)) for *colour, name in rows
    }
    for table, column in ((GROUPED, "group"), (AS_CITYSCAPES, "class_")):
        expected = {label: name for name, labels in table.items() for label in labels.split()}
        assert {name: getattr(meaning, column) for name, meaning in camvid.LABELS.items()} == {
            name: expected.get(name) for name in camvid.LABELS
        }
