"""An exported file computes what the network computes, by itself, or is not left."""

import errno
import json
import os
import re
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_line_error, picture, run_once, upper, write_cityscapes
from test_deployment import with_statistics

import export
from datasets.cityscapes import cityscapes
from datasets.domains import TARGETS
from datasets.labels import CITYSCAPES
from export import calibration_set, compared_on
from models import SEGMENTERS, build_segmenter
from models.exporting import Coarse, FromPixels, OnnxLogits, channels_first, metadata, programs, quantised, written
from models.runtime import OnnxNetwork, package, seal
from training.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint, trained_with
from training.exported import compare
from utils.errors import UserError
from utils.metrics import ConfusionMatrix

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow
PAGE = (Path(__file__).resolve().parent.parent / "docs/deployment.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, beside it the city it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    run_once(*upper(write_cityscapes(folder / "city"), folder / "run", "--max-steps", 2))
    return folder / "run/checkpoint_last.pt"


@pytest.fixture(scope="module")
def exported(trained):
    """What export.py leaves, int8 too."""
    out = trained.parent.parent / "exported"
    run_once("export", trained, "--out", out, "--int8")
    return out


def network_of(name, size=(64, 96), output="ids", grid=1, dynamic=False):
    """(a network with statistics, its Coarse, what its files say) at a size (H, W)."""
    model = with_statistics(build_segmenter(name))
    example = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    said = metadata(model, CITYSCAPES.names, CITYSCAPES.colours, size[::-1], output, grid, dynamic)
    return model, Coarse(model, example), said


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@torch.no_grad()
def logits_of(model, given):
    return model(torch.from_numpy(given).permute(0, 3, 1, 2) / 255)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_checkpoint_becomes_files_that_predict_as_it_does(trained, exported):
    assert sorted(file.name for file in exported.iterdir()) == ["network-int8.onnx", "network.onnx", "network.pt2"]
    model = build_from_checkpoint(load_checkpoint(trained), trained).eval()
    given = picture(77)[None]
    expected = logits_of(model, given).argmax(1).numpy()
    network = OnnxNetwork(exported / "network.onnx", threads=1)
    assert network(given).dtype == np.uint8
    assert (network(given) == expected).mean() > 0.999
    assert (network.names, network.colours) == (CITYSCAPES.names, CITYSCAPES.colours)
    assert (network.size, network.grid, network.dynamic, network.int8) == ((48, 32), 1, False, False)
    files = {"metadata.json": ""}
    program = torch.export.load(exported / "network.pt2", extra_files=files)
    assert (program.module()(torch.from_numpy(given)).numpy() == expected).mean() > 0.999
    assert json.loads(files["metadata.json"])["names"] == list(CITYSCAPES.names)
    with pytest.raises(ValueError, match=r"expected pixels uint8 \[1, 32, 48, 3\], found uint8 \[1, 32, 40, 3\]"):
        network(given[:, :, :40])
    with pytest.raises(ValueError, match="found float32"):
        network(given.astype(np.float32))


def test_int8_computes_in_whole_numbers_and_nearly_the_same(exported):
    network, whole = OnnxNetwork(exported / "network-int8.onnx", 1), OnnxNetwork(exported / "network.onnx", 1)
    assert network.int8
    given = picture(78)[None]
    assert (network(given) == whole(given)).mean() > 0.7  # of noise, by a network that learnt two steps
    model = onnx.load(exported / "network-int8.onnx")
    weights = [value for value in model.graph.initializer if value.data_type == onnx.TensorProto.INT8]
    assert len(weights) >= 10


def test_a_file_for_other_runtimes_gives_the_same_ids(exported, tmp_path):
    given = picture(80)[None]
    for name in ("network.onnx", "network-int8.onnx"):
        content = (exported / name).read_bytes()
        file = tmp_path / name
        file.write_bytes(channels_first(content))
        found, expected = OnnxNetwork(file, 1), OnnxNetwork(exported / name, 1)
        assert (found(given) == expected(given)).mean() > 0.999
        assert found.metadata == expected.metadata
        nodes = [node.op_type for node in onnx.load(file).graph.node]
        assert nodes.count("Transpose") == [n.op_type for n in onnx.load(exported / name).graph.node].count(
            "Transpose"
        ) - 1
        images = torch.from_numpy(given).permute(0, 3, 1, 2) / 255
        same(OnnxLogits(file.read_bytes(), file, 1)(images), OnnxLogits(content, file, 1)(images))


def test_the_page_runs_with_numpy_and_onnxruntime_alone(exported, monkeypatch, capsys, tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert re.findall(r"^import ([\w.]+)", code, re.MULTILINE) == ["json", "numpy", "onnxruntime"]
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(exported.parent)
    np.save("street.npy", picture(79))
    exec(code, {})
    ids = OnnxNetwork(exported / "network.onnx")(picture(79)[None])
    assert (np.load("coloured.npy") == CITYSCAPES.palette[ids[0]]).all()
    assert sum(json.loads(capsys.readouterr().out.replace("'", '"')).values()) == pytest.approx(1)


def test_any_size_several_pictures_logits_and_a_coarser_grid(tmp_path):
    model, coarse, said = network_of("tiny", output="logits", grid=2, dynamic=True)
    program, content = programs(coarse, said)
    file = tmp_path / "network.onnx"
    file.write_bytes(content)
    network = OnnxNetwork(file, 1)
    given = pixels(3, 50, 101)
    (found,) = network.session.run(None, {"pixels": given})
    assert found.shape == (3, 19, 25, 51)
    with torch.no_grad():
        expected = FromPixels(coarse, "logits", 2)(torch.from_numpy(given))
        same(program.module()(torch.from_numpy(given)), expected)
    same(torch.from_numpy(found), expected)
    assert network(given).shape == (3, 50, 101)
    assert (network(given)[:, 1::2, 1::2] == found.argmax(1)[:, :25, :50]).all()
    same(OnnxLogits(content, file, 1)(torch.from_numpy(given).permute(0, 3, 1, 2) / 255), logits_of(model, given))
    _, content = programs(coarse, said | {"output": "ids"})
    file.write_bytes(content)
    last = OnnxNetwork(file, 1)(given)
    file.write_bytes(channels_first(content))
    assert (OnnxNetwork(file, 1)(given) == last).mean() > 0.999
    assert (last == network(given)).mean() > 0.999


@pytest.mark.parametrize("name", [name for name in SEGMENTERS if name != "tiny"])
def test_every_network_is_exported(name, tmp_path):
    model, coarse, said = network_of(name)
    assert coarse.early
    assert coarse.centred
    program, content = programs(coarse, said)
    file = tmp_path / "network.onnx"
    file.write_bytes(content)
    given = pixels(1, 64, 96)
    expected = logits_of(model, given)
    same(OnnxLogits(content, file, 1)(torch.from_numpy(given).permute(0, 3, 1, 2) / 255), expected)
    assert (OnnxNetwork(file, 1)(given) == expected.argmax(1).numpy()).mean() > 0.999
    assert (program.module()(torch.from_numpy(given)) == expected.argmax(1)).float().mean() > 0.999
    file.write_bytes(quantised(content, said, [pixels(1, 64, 96)], tmp_path))
    assert OnnxNetwork(file, 1)(given).shape == (1, 64, 96)


def test_a_file_that_computes_something_else_is_not_left(script, trained, monkeypatch, tmp_path):
    other = with_statistics(build_segmenter("tiny"))
    monkeypatch.setattr(
        export, "programs", lambda coarse, said: programs(Coarse(other, torch.rand(1, 3, 32, 48)), said)
    )
    message = one_line_error(script("export", trained, "--out", tmp_path / "out"))
    assert "network.onnx does not compute what the network does, and was not kept" in message
    assert list(tmp_path.iterdir()) == []


def test_int8_that_was_calibrated_on_other_pictures_is_refused(trained, exported, tmp_path):
    model = build_from_checkpoint(load_checkpoint(trained), trained).eval()
    coarse = Coarse(model, torch.rand(1, 3, 32, 48))
    whole, black = exported / "network.onnx", [np.zeros((1, 32, 48, 3), np.uint8)]
    file = tmp_path / "network-int8.onnx"
    file.write_bytes(quantised(whole.read_bytes(), OnnxNetwork(whole).metadata, black, tmp_path))
    data = cityscapes(trained.parent.parent / "city", "val", (48, 32))
    assert compare(model, coarse, 1, whole, data).logits < 1e-5
    with pytest.raises(UserError, match=r"network-int8.onnx does not compute .* calibrate on pictures like those"):
        compare(model, coarse, 1, file, data)


def test_mean_iou_stands_beside_where_there_are_labels(script, trained, tmp_path):
    city = trained.parent.parent / "city"
    done = script("export", trained, "--out", tmp_path / "out", "--int8", "--calibrate", city / "leftImg8bit",
                  "--cityscapes", city, "--grid", 2, "--runtime", "openvino")  # fmt: skip
    assert done.status == 0, done.err
    assert "int8: calibrated on 6 pictures" in done.out
    assert "compared on Cityscapes val" in done.out
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in done.out.splitlines() if "|" in line}
    expected = json.loads((trained.parent / "result.json").read_text())["miou"]
    assert float(rows["the checkpoint"][-1]) == pytest.approx(100 * expected, abs=0.06)
    network, matrix = OnnxNetwork(tmp_path / "out/network.onnx"), ConfusionMatrix(19)
    data = cityscapes(city, "val", (48, 32))
    for index in range(len(data)):
        ids = network(data.image(index).permute(1, 2, 0)[None].contiguous().numpy())
        assert (ids[:, ::2, ::2] == ids[:, 1::2, 1::2]).all()  # each stands for 2x2 pixels
        matrix.update(torch.from_numpy(ids).long(), data.label(index)[None])
    assert float(rows["network.onnx"][-1]) == pytest.approx(100 * float(matrix.miou()), abs=0.06)
    file, image = tmp_path / "out/network.onnx", data.image(len(data) - 1)[None] / 255
    fine, coarse = (OnnxLogits(file.read_bytes(), file, 1, grid)(image).argmax(1).numpy() for grid in (1, 2))
    assert (coarse == ids).mean() > 0.999
    assert (fine != ids).any()
    assert float(rows["network-int8.onnx"][-1]) >= 0
    assert OnnxNetwork(tmp_path / "out/network.onnx").grid == 2
    for file in (tmp_path / "out").glob("*.onnx"):
        assert "enlarge" not in [node.name for node in onnx.load(file).graph.node]  # with channels last


def test_a_limit_on_val_leaves_calibration_its_pictures(trained):
    args = Namespace(calibrate=None, limit=1, **dict.fromkeys(TARGETS))
    run = trained_with(load_checkpoint(trained), trained)
    assert len(calibration_set(args, run, (48, 32))) == 4
    assert len(compared_on(args, run, (48, 32), None)) == 1
    args.calibrate = trained.parent
    with pytest.raises(UserError, match="--limit counts pictures of val"):
        compared_on(args, run, (48, 32), None)


def test_a_damaged_or_foreign_file_is_one_line(exported, tmp_path):
    whole = (exported / "network.onnx").read_bytes()
    file = tmp_path / "x.onnx"

    def said():
        with pytest.raises(UserError) as caught:
            OnnxNetwork(file)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "cannot be read (No such file" in said()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "other", *(
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])] for name in "xy"
    ))  # fmt: skip
    foreign = onnx.helper.make_model(graph).SerializeToString()
    for content in (b"", b"no network", whole[: len(whole) // 2], whole[:-1], foreign):
        file.write_bytes(content)
        assert "no network that export.py wrote, or cut short" in said()
    file.write_bytes(bytes(flipped))
    assert "damaged, its checksum does not fit" in said()
    file.write_bytes(b"junk" + seal(b"junk"))
    assert "cannot run it" in said()
    version = onnx.helper.make_opsetid("", 18)
    file.write_bytes(written(onnx.helper.make_model(graph, ir_version=9, opset_imports=[version]), {}))
    assert "says too little of itself" in said()
    file.write_bytes(whole)
    assert OnnxNetwork(file).names == CITYSCAPES.names


def test_mistakes_are_one_line_and_leave_nothing(script, trained, monkeypatch, tmp_path):
    def said(*flags):
        return one_line_error(script("export", trained, "--out", tmp_path / "out", *flags))

    assert "--runtime does nothing here: logits are laid" in said("--output", "logits", "--runtime", "tensorrt")
    assert "no PNG or JPEG is there" in said("--int8", "--calibrate", tmp_path)
    assert "no such folder" in said("--int8", "--calibrate", tmp_path / "none")
    city = trained.parent.parent / "city"
    city.rename(tmp_path / "moved")
    try:
        assert "no such folder; files are compared on real pictures: name some with --calibrate DIR" in said()
    finally:
        (tmp_path / "moved").rename(city)
    (tmp_path / "file").touch()
    below = script("export", trained, "--out", tmp_path / "file/below", "--calibrate", city)
    assert "file/below: cannot be written (" in one_line_error(below)
    (tmp_path / "file").unlink()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "deployment needs: pip install -r requirements-deploy.txt" in said()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    monkeypatch.undo()
    assert "nothing is overwritten" in said()


def test_a_signal_leaves_nothing_and_what_a_kill_left_is_not_in_the_way(tmp_path):
    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), export.beside(out) as folder:  # noqa: PT012
        assert Path(folder).is_dir()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
    out.mkdir()
    with export.beside(out) as folder:
        assert export.leftover(Path(folder))
    assert not export.leftover(out / "mine")


def test_a_network_that_predicts_nothing_is_not_exported(script, trained, city, tmp_path):
    content = load_checkpoint(trained)
    last = next(name for name in reversed(content["weights"]) if name.endswith("running_var"))
    content["weights"][last] = torch.full_like(content["weights"][last], -1.0)
    save_checkpoint(tmp_path / "diverged.pt", content)
    flags = ("--out", tmp_path / "out", "--calibrate", city, "--int8")
    assert "outputs are no numbers" in one_line_error(script("export", tmp_path / "diverged.pt", *flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["volume", "link"])
def test_files_are_moved_into_an_empty_folder_that_is_there(script, trained, monkeypatch, tmp_path, name):
    """Which may be a mount point: as there, no folder can take its place, and none is written beside it."""
    (tmp_path / "home/volume").mkdir(parents=True)
    (tmp_path / "home/link").symlink_to(tmp_path / "home/volume")
    busy = []

    def refusing(file, to, replace=os.replace):
        if Path(file).is_dir() or Path(to).name in busy:
            raise OSError(errno.EBUSY, "Device or resource busy")
        replace(file, to)

    monkeypatch.setattr(export.os, "replace", refusing)
    for file in ("network.onnx", "network.pt2"):
        busy[:] = [file]
        said = one_line_error(script("export", trained, "--out", tmp_path / "home" / name))
        assert "cannot be written (Device or resource busy)" in said
        assert list((tmp_path / "home/volume").iterdir()) == []
    busy.clear()
    done = script("export", trained, "--out", tmp_path / "home" / name)
    assert done.status == 0, done.err
    assert sorted(file.name for file in (tmp_path / "home/volume").iterdir()) == ["network.onnx", "network.pt2"]
    assert sorted(file.name for file in (tmp_path / "home").iterdir()) == ["link", "volume"]


def test_a_link_to_nothing_yet_leads_to_the_files(script, trained, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    done = script("export", trained, "--out", tmp_path / "link")
    assert done.status == 0, done.err
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["network.onnx", "network.pt2"]


def test_a_file_that_came_in_the_meantime_is_not_replaced(tmp_path):
    for folder, text in (("made", "ours"), ("out", "theirs")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "network.onnx").write_text(text)
    (tmp_path / "made/network.pt2").touch()
    with pytest.raises(FileExistsError):
        export.keep([tmp_path / "made/network.onnx", tmp_path / "made/network.pt2"], tmp_path / "out")
    assert [(file.name, file.read_text()) for file in (tmp_path / "out").iterdir()] == [("network.onnx", "theirs")]


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match="surely_not_there is not installed; deployment needs: pip install -r"):
        package("surely_not_there")


def test_the_program_has_the_size_output_and_shape_that_were_asked_for(script, trained, tmp_path, monkeypatch) -> None:
    seen = []

    def told(model, names, colours, size, output, grid, dynamic, **more):
        seen.append((size, output, grid, dynamic))
        raise UserError("told")

    monkeypatch.setattr("export.metadata", told)
    flags = ("--size", "96x64", "--output", "logits", "--grid", 2, "--dynamic")
    assert "told" in script("export", trained, "--out", tmp_path / "out", *flags).err
    assert seen == [((96, 64), "logits", 2, True)]
