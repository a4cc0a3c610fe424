"""Checkpoints that somebody made to harm, with checksums that fit: each is refused in one line, and nothing is opened,
fetched or asked of memory."""

import collections
import errno
import os
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import one_line_error, upper

import models.weights
from models import build_segmenter
from training.checkpoint import (
    FORMAT,
    build_from_checkpoint,
    checksum,
    classes_of,
    load_checkpoint,
    load_newest,
    trained_with,
)
from utils.errors import UserError

resource = pytest.importorskip("resource")


@pytest.fixture(autouse=True)
def two_gigabytes():
    """No request over 2 GB is granted."""
    if sys.platform != "linux":
        pytest.skip("limits a process's memory as Linux does")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def whole():
    model = build_segmenter("tiny")
    return {"network": model.options, "weights": model.state_dict(), "step": 3, "epoch": 1, "closed": 1,
            "config": {"arguments": {"size": [48, 32], "batch_size": 2}}}  # fmt: skip


def sealed(path, content, name=""):
    """As `save_checkpoint` writes it, whatever it is; with its checksum, where one can be had."""
    if isinstance(content, dict):
        rest = {key: value for key, value in content.items() if key != "format"}
        content = {"format": FORMAT, "checksum": "none" if name in ENDLESS else checksum(rest)} | content
    torch.save(content, path)


def used(path):
    """As eval.py uses one."""
    checkpoint = load_checkpoint(path)
    trained_with(checkpoint, path)
    classes_of(checkpoint)
    return build_from_checkpoint(checkpoint, path)


class Calls:
    """Comes back from a file as what a function returns."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def enlarged():
    """A storage of four bytes under a tensor of 40 GB: torch enlarges it."""
    storage = torch.zeros(1).storage()
    return Calls(torch._utils._rebuild_tensor_v2, storage, 0, (100_000, 100_000), (100_000, 1), False, OrderedDict())


def doubled():
    """Thirty lists: 2 ** 30 values to whoever goes through them."""
    value = ["x"]
    for _ in range(30):
        value = [value, value]
    return value


def endless():
    value = []
    value.append(value)
    return value


def deep():
    value = []
    for _ in range(300):
        value = [value]
    return value


def network(**more):
    return lambda w: w | {"network": w["network"] | more}


def arguments(**more):
    return lambda w: w | {"config": {"arguments": w["config"]["arguments"] | more}}


ENDLESS = ("expanded", "doubled", "endless", "sparse", "quantised")
"""Of these nobody can write a checksum."""

CRAFTED = {
    "expanded": lambda w: w | {"weights": w["weights"] | {"x": torch.zeros(1).expand(10**12)}},
    "expanded a little, often": lambda w: w | {"training": {"x": {i: torch.zeros(1).expand(10**6) for i in range(99)}}},
    "enlarged": lambda w: w | {"weights": w["weights"] | {"x": enlarged()}},
    "a call for memory": lambda w: w | {"x": Calls(bytearray, 10**11)},
    "a counter": lambda w: w | {"x": collections.Counter("aab")},
    "sparse": lambda w: w | {"weights": w["weights"] | {"x": torch.eye(3).to_sparse()}},
    "complex": lambda w: w | {"weights": w["weights"] | {"x": torch.zeros(3, dtype=torch.complex64)}},
    "quantised": lambda w: w | {"x": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)},
    "doubled": lambda w: w | {"x": doubled()},
    "endless": lambda w: w | {"x": endless()},
    "deep": lambda w: w | {"x": deep()},
    "keys that are no names": lambda w: w | {(1, 2): 3},
    "no table": lambda w: [w],
    "a tensor": lambda w: torch.zeros(3),
    "format as tensor": lambda w: w | {"format": torch.tensor([1, 2])},
    "no network": lambda w: w | {"network": None},
    "network without name": lambda w: w | {"network": {}},
    "unknown network": network(name="unet"),
    "network's name": network(name=3),
    "classes without end": network(num_classes=10**9),
    "negative classes": network(num_classes=-1),
    "classes as text": network(num_classes="19"),
    "another backbone": network(backbone="../../x"),
    "unknown option": network(depth=3),
    "weights that are no tensors": lambda w: w | {"weights": {"a": 1}},
    "weights as list": lambda w: w | {"weights": [1]},
    "weights of another shape": lambda w: w | {"weights": {k: v[:1] if v.ndim else v for k, v in w["weights"].items()}},
    "names": lambda w: w | {"class_names": [1] * 19, "class_colours": [[0, 0, 0]] * 19},
    "names without colours": lambda w: w | {"class_names": ["a"] * 3},
    "other classes than outputs": lambda w: w | {"class_names": ["a"], "class_colours": [[0, 0, 0]]},
    "colours": lambda w: w | {"class_names": ["a"] * 19, "class_colours": [[0, 0, 256]] * 19},
    "no configuration": lambda w: w | {"config": None},
    "no arguments": lambda w: w | {"config": {"arguments": None}},
    "a tensor among arguments": arguments(lr=torch.tensor([1, 2])),
    "no size": lambda w: w | {"config": {"arguments": {"batch_size": 2}}},
    "size without end": arguments(size=[100_000, 100_000]),
    "size as text": arguments(size="48x32"),
    "negative size": arguments(size=[-48, 32]),
    "batch size": arguments(batch_size=10**12),
    "limit": arguments(limit="x"),
    "root": arguments(cityscapes=7),
    "encoding": arguments(gta5_encoding="x"),
    "held out": arguments(source_holdout=float("nan")),
    "step": lambda w: w | {"step": "3"},
    "no epoch": lambda w: {k: v for k, v in w.items() if k != "epoch"},
    "history": lambda w: w | {"history": [1]},
    "training": lambda w: w | {"training": {"optimizer": None}},
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_checkpoint_is_refused_in_one_line(tmp_path, whole, name):
    path = tmp_path / "crafted.pt"
    sealed(path, CRAFTED[name](whole), name)
    with pytest.raises(UserError, match=r"crafted\.pt") as caught:
        used(path)
    assert "not enough memory" not in str(caught.value)


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path, whole):
    sealed(tmp_path / "a.pt", whole)
    assert used(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, \
            zipfile.ZipFile(tmp_path / "crafted.pt", "w", zipfile.ZIP_DEFLATED) as packed:  # fmt: skip
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        packed.writestr("x/data/99", bytes(10**7))
    with pytest.raises(UserError, match="more than it does"):
        used(tmp_path / "crafted.pt")


@pytest.mark.parametrize("weights", ["imagenet", "elsewhere.pt"])
def test_a_checkpoint_opens_and_fetches_no_other_weights(tmp_path, whole, monkeypatch, weights):
    for name in ("read_tensors", "torchvision_imagenet", "load_backbone"):
        monkeypatch.setattr(models.weights, name, None)
    path = tmp_path / "crafted.pt"
    sealed(path, network(weights=weights, allow_partial_weights=True)(whole))
    assert used(path)


def test_scripts_refuse_in_one_line_too(script, trained, tmp_path, city):
    checkpoint = torch.load(trained, weights_only=True)
    del checkpoint["checksum"]
    for name in ("expanded", "size without end", "no arguments", "classes without end"):
        sealed(tmp_path / "crafted.pt", CRAFTED[name](checkpoint), name)
        assert "crafted.pt" in one_line_error(script("eval", tmp_path / "crafted.pt"))
        picture = next((city / "leftImg8bit/val").rglob("*.png"))
        assert "crafted.pt" in one_line_error(script("predict", tmp_path / "crafted.pt", picture))
    state = checkpoint["training"]
    group = state["optimizer"]["param_groups"][0]
    for number, crafted in enumerate((
        {"training": {}},
        {"training": state | {"optimizer": {}}},
        {"training": state | {"optimizer": {"state": {0: 1}, "param_groups": [group]}}},
        {"step": 99},
        {"epoch_losses": 3},
        {"latest": 3},
        {"spent": []},
        {"spent": {5: {"seconds": "long"}}},
        {"seconds": "long"},
        {"confusion": {"target": 3}},
        {"bad_samples": [1]},
        {"history": [{"step": 1, "epoch": 1}]},
        {"weights": {}},
        {"config": {}},
        {"config": {"arguments": {"size": [48, 32], "batch_size": 2}, "data": 3}},
        {},
    )):  # fmt: skip
        run_dir = shutil.copytree(trained.parent, tmp_path / f"run {number}")
        sealed(run_dir / trained.name, checkpoint | crafted)
        done = script(*upper(city, run_dir, "--max-steps", 2, "--resume"))
        assert done.status == 0 if not crafted else str(run_dir) in one_line_error(done)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(script, trained, tmp_path, city, monkeypatch):
    opened = Path.open

    def refuses(path, *mode, **more):
        if path == trained:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *mode, **more)

    trained.with_name("checkpoint_previous.pt").write_bytes(trained.read_bytes())
    monkeypatch.setattr(Path, "open", refuses)
    message = one_line_error(script(*upper(city, tmp_path / "run", "--max-steps", 2, "--resume")))
    assert "Permission denied" in message
    assert "damaged" not in message
    assert "another" not in message
    assert "Permission denied" in one_line_error(script("eval", trained))
    monkeypatch.undo()
    content = torch.load(trained, weights_only=True)
    sealed(trained, content | {"format": FORMAT + 1})
    with pytest.raises(UserError, match=f"format {FORMAT + 1}.*once it can be read"):
        load_newest(trained.parent)
