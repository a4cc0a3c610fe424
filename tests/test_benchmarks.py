"""The benchmarks measure what they say; how fast it is is no test's business."""

import argparse
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import one_line_error, write_gta5

from benchmarks import adaptation, loading, pseudo_labels, runtimes
from benchmarks.adaptation import CELLS, refused_by_network
from benchmarks.evaluation import example, ours, plain
from benchmarks.prototypes import prototypes, weights
from benchmarks.runtimes import compiles
from reporting.plan import SOURCE_ONLY, Plan, Row, slug


def rows(out):
    lines = [line for line in out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize("size", [(64, 32), (51, 37)])
def test_both_ways_of_counting_get_the_same_predictions(size):
    prediction, label = example(size, torch.device("cpu"))
    assert prediction.shape == label.shape == (size[1], size[0])
    assert torch.equal(ours(prediction, label), plain(prediction, label))
    assert int(ours(prediction, label).sum()) == int((label != 255).sum()) > 0


def test_evaluation_and_inference_print_a_row_a_way(script):
    done = script("benchmarks.evaluation", "--size", "64x32", "--rounds", 1, "--device", "cpu")
    assert [row[0] for row in rows(done.out)] == ["ours", "NumPy"]
    done = script("benchmarks.inference", "--sizes", "64x32", "--batches", 1, 2, "--rounds", 1, "--device", "cpu")
    ways = ["plain fp32", "deployed fp32", "deployed bf16"]
    assert [row[:3] for row in rows(done.out)] == [["64x32", batch, way] for batch in "12" for way in ways]


def test_runtimes_are_timed_beside_pytorch_and_give_its_ids(script, trained, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(runtimes, "SCENE", (96, 48))
    flags = ("--runtimes", "--sizes", "64x32", "--threads", 1, "--rounds", 3)
    done = script("benchmarks.inference", *flags, "--checkpoint", trained)
    assert done.status == 0, done.err
    found = {row[3]: row for row in rows(done.out)}
    assert list(found)[:4] == ["PyTorch fp32, eager", "PyTorch bf16, folded", "ONNX Runtime fp32", "ONNX Runtime int8"]
    assert found["PyTorch fp32, eager"][:3] == ["tiny narrow", "64x32", "1"]
    assert found["PyTorch fp32, eager"][8] == "1.00"
    assert all(float(cell) > 0 for row in found.values() for cell in row[4:])
    assert float(found["ONNX Runtime fp32"][-1]) > 99.9


def test_inference_refuses_flags_that_would_do_nothing(script, trained):
    for flags, named in (
        (("--every-network",), "--every-network"),
        (("--threads", 1), "--threads"),
        (("--runtimes", "--compile"), "--compile"),
        (("--runtimes", "--checkpoint", trained, "--model", "lraspp"), "--model"),
        (("--runtimes", "--every-network", "--backbone", "s"), "--backbone"),
    ):
        assert f"{named} does nothing here" in one_line_error(script("benchmarks.inference", *flags))


def test_translation_and_augmentation_are_compared_as_they_are_timed(script):
    flags = ("--size", "96x64", "--batch-size", 2, "--runs", 1, "--device", "cpu")
    for name, count in (("fda", 3), ("appearance", 2)):
        found = rows(script(f"benchmarks.{name}", *flags).out)
        assert len(found) == count
        assert all(float(row[-2]) > 0 and float(row[-1]) < 1e-5 for row in found)


def test_what_checks_cost_is_taken_from_arrays_that_are_there(script, tmp_path):
    command = ("benchmarks.checks", "--size", "64x32", "--scenes", 3, "--rounds", 1, "--out", tmp_path)
    first, again = script(*command).out, script(*command).out
    assert "preparing images" in first
    assert "preparing" not in again
    assert all(float(cell) >= 0 for cell in rows(again)[0])
    assert float(rows(again)[0][1]) > 0


@pytest.fixture
def small_scenes(monkeypatch):
    """Full size takes long to draw; for small ones, starting processes does."""
    monkeypatch.setattr(loading, "SOURCE_SIZE", (96, 48))
    monkeypatch.setattr(loading, "TARGET_SIZE", (96, 48))
    monkeypatch.setattr(loading, "cores", lambda: 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small_scenes")
def test_training_times_the_scripts_beside_plain_loops(script, tmp_path):
    done = script("benchmarks.training", "--size", "64x32", "--scenes", 2, "--batch-size", 2, "--steps", 1,
                  "--rounds", 1, "--workers", 0, "--device", "cpu", "--out", tmp_path)  # fmt: skip
    assert done.status == 0, done.err
    found = rows(done.out)
    ways = [[method, way] for method in ("source only", "adversarial", "FDA") for way in ("plain", "ours")]
    assert [row[:2] for row in found] == ways
    assert all(float(row[2]) >= 0 and 0 <= float(row[5]) <= 100 for row in found)
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == ["drawn", "source", "target"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_scenes")
def test_methods_are_timed_in_steps_of_source_only(script, tmp_path):
    done = script("benchmarks.methods", "--size", "64x32", "--scenes", 2, "--batch-size", 2, "--steps", 1,
                  "--rounds", 2, "--workers", 0, "--device", "cpu", "--out", tmp_path,
                  "--only", "DACS", "DACS, recipe best")  # fmt: skip
    assert done.status == 0, done.err
    found = rows(done.out)
    assert [row[0] for row in found] == ["source only", "DACS", "DACS, recipe best"]
    assert found[0][2:] == ["1.00", "1.00 to 1.00"]
    assert all(float(row[1]) > 0 < float(row[2]) for row in found)


SMALL = ("--size", "48x32", "--batch-size", 2, "--steps", 1, "--device", "cpu", "--workers", 0)


def write_cells(folder, row, mious, steps=1):
    for seed, miou in enumerate(mious):
        cell = {"size": [48, 32], "batch_size": 2, "steps": steps, "precision": "fp32", "accuracy": 0.5, "oracle": 0.6}
        (folder / f"{slug(row, seed)}.json").write_text(json.dumps(cell | {"miou": miou}))


def test_adaptation_pairs_its_rows_by_seed(script, city, game, tmp_path):
    cells = tmp_path / "cells"
    cells.mkdir()
    write_cells(cells, "source only", [0.10, 0.20, 0.30])
    write_cells(cells, "upper bound", [0.30, 0.60, 0.40])
    write_cells(cells, "DACS", [0.20, 0.30])  # of seed 2 there is none
    command = ("benchmarks.adaptation", "--gta5", game, "--cityscapes", city, *SMALL, "--cells", cells, "--no-run")
    found = {row[0]: row[1:] for row in rows(script(*command).out)}
    assert list(found) == list(CELLS)
    assert found["DACS"] == ["2", "50.0 ± 0.0", "25.0 ± 7.1", "+10.0 ± 0.0", "37.5 ± 17.7", "2.2", "60.0 ± 0.0"]
    assert found["source only"] == ["3", "50.0 ± 0.0", "20.0 ± 10.0", "-", "-", "1.0", "60.0 ± 0.0"]
    assert found["upper bound"] == ["3", "50.0 ± 0.0", "43.3 ± 15.3", "+23.3 ± 15.3", "-", "1.0", "60.0 ± 0.0"]
    assert set(found["LAB"]) == {"not run"}
    other = one_line_error(script(*command, "--model", "pidnet"))  # cells that name no network are BiSeNet-18's
    assert "was made at other settings" in other
    assert "'model': 'pidnet', 'backbone': 's'" in other
    assert "pidnet s, 48x32" in script(*command, "--model", "pidnet", "--cells", tmp_path / "none").out
    found = json.loads((cells / f"{slug('DACS', 1)}.json").read_text()) | {"data": {"GTA5": {"pictures": 7}}}
    (cells / f"{slug('DACS', 1)}.json").write_text(json.dumps(found))
    assert script(*command).status == 0
    (cells / f"{slug('DACS', 0)}.json").write_text(json.dumps(found | {"data": {"GTA5": {"pictures": 8}}}))
    assert "was made from other pictures or labels of GTA5" in one_line_error(script(*command))
    write_cells(cells, "DACS", [0.2, None])  # a network whose outputs were no numbers
    assert {row[0]: row[1:] for row in rows(script(*command).out)}["DACS"][0] == "1"
    write_cells(cells, "DACS", [0.2, 0.3])
    write_cells(cells, "LAB", [0.2], steps=2)
    before = script(*command[:-1], "--only", "FADA")
    assert "LAB-seed0.json was made at other settings" in one_line_error(before)
    assert "$" not in before.out, "it trained first"
    assert "LAB-seed0.json was made at other settings" in one_line_error(script(*command))


@pytest.mark.slow
def test_adaptation_runs_what_is_missing_once(script, city, game, tmp_path):
    network = ("--model", "lraspp")
    command = ("benchmarks.adaptation", "--gta5", game, "--cityscapes", city, *SMALL, "--seeds", 3, *network,
               "--out", tmp_path / "runs", "--cells", tmp_path / "cells", "--only", "source only + AdaBN")  # fmt: skip
    first = script(*command)
    assert first.status == 0, first.err
    assert [line.split()[2] for line in first.out.splitlines() if line.startswith("$")] == ["train_gta5.py", "eval.py"]
    cell = json.loads((tmp_path / "cells" / "source-only-seed3.json").read_text())
    trained = json.loads((tmp_path / "runs" / "source-only-seed3" / "result.json").read_text())
    assert (cell["miou"], cell["step"], cell["row"], cell["seed"]) == (trained["miou"], 1, "source only", 3)
    assert (cell["model"], cell["backbone"]) == ("lraspp", "mobilenet_v3_large")
    trained_with = json.loads((tmp_path / "runs/source-only-seed3/config.json").read_text())["arguments"]
    assert (trained_with["model"], trained_with["backbone"]) == ("lraspp", "mobilenet_v3_large")
    found = {row[0]: row[1:] for row in rows(first.out.rpartition("last checkpoint")[2])}
    assert {name for name, row in found.items() if row[0] == "1"} == {"source only", "source only + AdaBN"}
    again = script(*command)
    assert "$" not in again.out
    assert rows(again.out) == rows(first.out.rpartition("last checkpoint")[2])
    assert cell["data"]["GTA5"]["pictures"] == 6
    fewer = write_gta5(tmp_path / "fewer", count=4)
    other = script(*command, "--gta5", fewer)
    assert "was made from other pictures or labels of GTA5" in one_line_error(other)
    elsewhere = script(*command, "--gta5", fewer, "--cells", tmp_path / "elsewhere")  # a run that is done is no excuse
    assert "source-only-seed3 was made from other pictures" in one_line_error(elsewhere)
    longer = script(*command, "--steps", 2, "--cells", tmp_path / "elsewhere")
    assert "source-only-seed3 was trained at other settings than" in one_line_error(longer)
    moved = ("--gta5", write_gta5(tmp_path / "moved"), "--cells", tmp_path / "elsewhere")
    assert f"was trained on {game}" in one_line_error(script(*command, *moved))
    assert not list((tmp_path / "elsewhere").glob("*.json"))
    other = script(*command, "--split", "train")  # the same networks
    assert [line.split()[2] for line in other.out.splitlines() if line.startswith("$")] == ["eval.py"]
    assert "--split train" in other.out
    assert "1 steps in fp32, seeds [3], last checkpoint, train" in other.out
    assert (tmp_path / "cells" / "source-only---AdaBN--train-seed3.json").exists()


@pytest.mark.slow
def test_adaptation_goes_on_from_the_network_that_labels(script, city, game, tmp_path):
    row = "pseudo-labels after source only, recoloured, with AdaBN"
    done = script("benchmarks.adaptation", "--gta5", game, "--cityscapes", city, *SMALL, "--seeds", 3,
                  "--out", tmp_path, "--only", row)  # fmt: skip
    assert done.status == 0, done.err
    started, going_on = [line for line in done.out.splitlines() if line.startswith("$")]
    network = str(tmp_path / slug("source only, recoloured", 3) / "checkpoint_last.pt")
    assert "--recolour 0.7" in started
    assert "--init" not in started
    assert f"--labeller {network} --init {network} " in going_on
    assert "--max-class-share 1" in going_on
    shares = json.loads((tmp_path / f"{slug(row, 3)}.json").read_text())["labels_kept"]
    assert 0 < shares["all"] <= 1
    found = [cells for cells in rows(done.out) if cells[0] == row]
    assert found[0][6] == "3.0"  # the network that labels, and two passes a step
    assert found[1][2] == f"{100 * shares['all']:.0f}"
    settings = json.loads((tmp_path / slug(row, 3) / "config.json").read_text())["arguments"]
    assert {key: settings[key] for key in ("adapt_bn", "bn_statistics", "lr", "recolour", "rule")} == {
        "adapt_bn": True, "bn_statistics": "target", "lr": 0.01, "recolour": 0.7, "rule": "bdl"
    }  # fmt: skip


@pytest.mark.parametrize(("model", "backbone", "refused"), [
    ("bisenet", "resnet18", []), ("lraspp", "mobilenet_v3_large", ["adversarial, multi-level", "MinEnt, multi-level"]),
    ("deeplab_vgg16", "vgg16", ["source only + AdaBN", "after FDA, IAST", "adversarial, standard, target statistics"]),
])  # fmt: skip
def test_rows_that_a_network_refuses_are_left_out(model, backbone, refused):
    found = refused_by_network(argparse.Namespace(model=model, backbone=backbone))
    assert set(refused) <= found
    assert bool(found) == bool(refused)
    assert not found & {"source only", "upper bound", "FDA, beta 0.01", "DACS, recipe best"}


def test_a_row_that_labels_nothing_starts_from_the_network_that_it_needs(tmp_path):
    command = Plan(CELLS, tmp_path, [], [], []).command("after FDA, SAC", 3)
    assert command[0] == "train_sac.py"
    assert "--labeller" not in command
    assert command[command.index("--init") + 1] == str(tmp_path / slug("FDA, beta 0.01", 3) / "checkpoint_last.pt")


@pytest.mark.slow
def test_adaptation_says_which_script_failed(script, city, game, tmp_path):
    (tmp_path / "runs/source-only-seed3").mkdir(parents=True)
    (tmp_path / "runs/source-only-seed3/config.json").write_text("{")
    command = ("benchmarks.adaptation", "--gta5", game, "--cityscapes", city, *SMALL, "--seeds", 3,
               "--out", tmp_path / "runs", "--only", "source only")  # fmt: skip
    assert "train_gta5.py failed; see above" in one_line_error(script(*command))
    assert not (tmp_path / "runs" / "source-only-seed3.json").exists()


def test_prototypes_are_means_over_pictures_and_weigh_by_distance():
    """Of two pictures of 4x8 places: class 0 on the left, class 1 on the right, class 2 on too few places."""
    features = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 8).clone()
    features[:, :, :, 4:] += 10
    labels = torch.zeros(2, 4, 8, dtype=torch.uint8)
    labels[:, :, 4:] = 1
    labels[1, 0] = 2
    probabilities = torch.nn.functional.one_hot(1 - labels.long().clamp(max=1), 4).permute(0, 3, 1, 2).float()
    pictures = [(features[i : i + 1], probabilities[i : i + 1], labels[i : i + 1]) for i in range(2)]
    assert prototypes(iter(pictures), of_labels=True)[:, 0].tolist() == [0.5, 10.5, 1e6, 1e6]
    # By the network, in the second picture: 16 places at 11 and 4 at 1.
    assert prototypes(iter(pictures), of_labels=False)[:2, 0].tolist() == [9.5, 0.5]
    eta = torch.zeros(19, 2)
    eta[1:, 0] = 5.0
    w = weights(torch.zeros(1, 2, 3, 4), eta, 1.0)
    assert w.shape == (1, 19, 3, 4)
    assert w[0, 0].flatten().tolist() == pytest.approx([1 / (1 + 18 * math.exp(-5))] * 12)
    assert weights(torch.zeros(1, 2, 3, 4), eta, 5.0)[0, 0, 0, 0].item() == pytest.approx(1 / (1 + 18 * math.exp(-1)))


@pytest.mark.slow
def test_the_pilot_of_prototypes_says_how_right_labels_are(script, trained):
    flags = (trained, "--adapt-bn", "--workers", 0, "--device", "cpu")
    done = script("benchmarks.prototypes", *flags, "--temperatures", 2)
    assert done.status == 0, done.err
    found = {row[0]: row[1:] for row in rows(done.out)}
    assert len(found["pixels right"]) == 3  # p, weighed, nearest
    assert 0 < float(found["largest w, mean"][1]) <= 100
    own = script("eval", *flags, "--split", "train")
    assert f"| {found['mIoU'][0]} " in next(line for line in own.out.splitlines() if line.startswith("| mean "))


def test_labels_are_counted_by_their_true_class():
    """Six pixels: one without a truth, one left out, one wrong."""
    truth, given = torch.tensor([0, 0, 0, 1, 1, 255]), torch.tensor([0, 0, 255, 1, 0, 1])
    found = pseudo_labels.counts(truth, given, 2)
    assert found.tolist() == [[2, 0, 1], [1, 1, 0]]
    assert pseudo_labels.figures(found[0].sum(), found[0, :-1].sum(), found[0, 0], found[:, 0].sum()) == "66.7 / 66.7"
    assert pseudo_labels.figures(*torch.zeros(3)) == "- / -"


def test_a_file_that_ends_its_compiler_is_left_out(tmp_path):
    """As one that is not there does, or OpenVINO that is not installed."""
    assert not compiles(tmp_path / "absent.onnx", "f32")


@pytest.mark.slow
def test_a_rule_that_labels_all_is_as_right_as_its_network(script, trained):
    flags = (trained, "--workers", 0, "--device", "cpu")
    done = script("benchmarks.pseudo_labels", *flags, "--rules", "argmax", "cbst")
    assert done.status == 0, done.err
    found = {row[0]: row[1:] for row in rows(done.out)}
    kept, right = (float(figure) for figure in found["all"][0].split(" / "))
    assert kept == 100
    assert float(found["all"][1].split(" / ")[0]) < 100
    assert f"| {right} " in script("eval", *flags, "--split", "train").out


def test_a_cell_keeps_the_last_and_the_best_epoch_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "require_same_run", lambda *given: None)
    (tmp_path / "config.json").write_text(json.dumps({"commit": "c", "device": "d"}))
    figures = dict.fromkeys(adaptation.FIGURES, 0.2) | {"oracle": {"miou": 0.4}}
    plan = SimpleNamespace(rows={"source only": Row(SOURCE_ONLY)}, run=lambda name, seed: figures,
                           directory=lambda name, seed: tmp_path)  # fmt: skip
    args = argparse.Namespace(cells=tmp_path, size=(48, 32), batch_size=2, steps=1, precision="fp32", model="tiny",
                              backbone="narrow", data={}, device=torch.device("cpu"), split="val")  # fmt: skip
    adaptation.keep_cell(args, plan, "source only", 0)
    cell = adaptation.read_cell(args, "source only", 0)
    assert (cell["miou"], cell["oracle"]) == (0.2, 0.4)
