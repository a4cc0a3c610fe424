"""Prepared arrays give what the files give, are made anew when anything changed, and survive kills and races."""

import errno
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import one_line_error, same, source_only, without_costs
from soak import ENVIRONMENT, ROOT

import datasets.arrays
import datasets.prepared
import datasets.segmentation
from datasets import cityscapes, gta5
from datasets.geometry import Geometry
from datasets.prepared import prepared
from datasets.stream import TrainingStream, batches, evaluation_loader, training_loader
from utils.errors import UserError

SIZE = (40, 24)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "place"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_from_arrays_are_those_from_files(game, city, place, monkeypatch, workers):
    geometry = Geometry(SIZE, (0.75, 1.0, 2.0), 0.5)

    def drawn(data):
        stream = TrainingStream(data, geometry, seed=1, stream=0, draws=16)
        training = [batch for batch, _ in batches(training_loader(stream, 4, range(len(stream)), workers, pin=False))]
        return training, list(batches(evaluation_loader(data, workers)))

    sets = (gta5(game, SIZE), cityscapes(city, "train", SIZE), cityscapes(city, "train", SIZE, labelled=False))
    expected = [drawn(data) for data in sets]
    ready = [prepared(data, [place], workers) for data in sets]
    ready = [pickle.loads(pickle.dumps(data)) for data in ready]  # as a spawned worker gets it
    monkeypatch.setattr(datasets.segmentation, "read_image", None)  # no picture is decoded any more
    for data, (training, evaluation) in zip(ready, expected, strict=True):
        found = drawn(data)
        for one, other in zip(training, found[0], strict=True):
            pairs = [(one, other)] if isinstance(one, torch.Tensor) else zip(one, other, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        for (images, labels), (more, ids) in zip(evaluation, found[1], strict=True):
            assert torch.equal(images, more)
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(labels, ids, strict=True))


def test_evaluation_reads_labels_at_their_own_size(city, place):
    data = prepared(cityscapes(city, "val", SIZE), [place], 0, with_labels=False)
    assert [path.name.split("-")[0] for path in place.iterdir()] == ["images"]
    assert data[0][0].shape == (3, 24, 40)
    assert data[0][1].shape == (32, 48)


def test_any_change_prepares_anew_and_what_is_alike_is_shared(city, place, capsys):
    def made(data, with_labels=True):
        prepared(data, [place], 0, with_labels)
        return capsys.readouterr().out.count("preparing")

    assert made(cityscapes(city, "train", SIZE)) == 2
    assert made(cityscapes(city, "train", SIZE)) == 0
    assert made(cityscapes(city, "train", SIZE, labelled=False)) == 0  # the same pictures
    assert made(cityscapes(city, "train", (24, 40))) == 2
    assert made(cityscapes(city, "train", SIZE, limit=2)) == 2
    label = next((city / "gtFine/train").rglob("*.png"))
    os.utime(label, ns=(1, 1))
    assert made(cityscapes(city, "train", SIZE)) == 1
    picture = next((city / "leftImg8bit/train").rglob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert made(cityscapes(city, "train", SIZE)) == 1
    data = cityscapes(city, "train", SIZE)
    assert made(datasets.segmentation.replace(data, mapping={7: 3})) == 1
    picture.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        made(data)


def test_without_room_the_files_are_read_and_that_is_said(city, tmp_path, monkeypatch, capsys):
    data = cityscapes(city, "train", SIZE)
    blocked = tmp_path / "a file"
    blocked.write_text("x")
    ready = prepared(data, [blocked / "inside", tmp_path / "second"], 0)
    assert ready.images.home.parent == tmp_path / "second"  # where the first place cannot be written to
    shutil.rmtree(tmp_path / "second")
    capsys.readouterr()
    monkeypatch.setattr("datasets.prepared.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    ready = prepared(data, [blocked / "inside", tmp_path / "second"], 0)
    said = capsys.readouterr().out
    assert "no place for 0.00 GB of prepared images" in said
    assert "Not a directory" in said
    assert "has 0.0 GB free" in said
    assert (ready.images, ready.labels) == (None, None)
    assert torch.equal(ready.image(0), data.image(0))


def test_a_bad_file_stops_the_preparation_or_is_noted(city, place, monkeypatch):
    data = cityscapes(city, "train", SIZE)
    data.samples[1].image.write_bytes(b"x")
    with pytest.raises(UserError, match="expected a PNG or JPEG"):
        prepared(data, [place], 0)
    assert list(place.iterdir()) == []
    ready = prepared(data, [place], 0, skip=True)
    assert torch.equal(ready.image(0), data.image(0))
    for again in (ready, prepared(data, [place], 0)):
        with pytest.raises(UserError, match="expected a PNG or JPEG"):
            again.image(1)
    whole, status = data.samples[0].image.read_bytes(), data.samples[1].image.stat()
    reader = datasets.segmentation.read_image
    assert whole
    monkeypatch.setattr(datasets.segmentation, "read_image", lambda path: reader(data.samples[0].image))
    assert torch.equal(prepared(data, [place], 0).image(1), data.image(0))  # what can be read again is prepared again
    assert data.samples[1].image.stat().st_mtime_ns == status.st_mtime_ns


def noise(home):
    content = bytearray((home / "array.npy").read_bytes())
    content[-2000:] = os.urandom(2000)
    (home / "array.npy").write_bytes(content)


def test_a_row_that_was_altered_comes_from_its_file_and_the_array_is_made_anew(city, place, capsys):
    data = cityscapes(city, "train", SIZE)
    expected = [data.training_pair(index) for index in range(len(data))]

    def agrees(found):
        pairs = [found.training_pair(index) for index in range(len(data))] * 2
        return all(same(list(pair), list(own)) for pair, own in zip(pairs, expected * 2, strict=True))

    assert agrees(prepared(data, [place], 0))
    for home in place.iterdir():
        noise(home)
    damaged = prepared(data, [place], 0)
    capsys.readouterr()
    assert agrees(pickle.loads(pickle.dumps(damaged)))
    assert agrees(damaged)
    said = capsys.readouterr().out.splitlines()
    assert sum("is damaged (row" in line for line in said) == len(said) == 4  # images and labels, of both copies
    again = prepared(data, [place], 0)
    assert capsys.readouterr().out.count("preparing") == 2
    assert agrees(again)
    assert capsys.readouterr().out == ""


def alter(home, **changed):
    record = json.loads((home / "files.json").read_text())
    (home / "files.json").write_text(json.dumps(record | changed))


DAMAGES = {
    "truncated": lambda home: os.truncate(home / "array.npy", 3000),
    "longer": lambda home: (home / "array.npy").write_bytes((home / "array.npy").read_bytes() + b"x"),
    "empty": lambda home: (home / "array.npy").write_bytes(b""),
    "no array": lambda home: (home / "array.npy").unlink(),
    "array is a folder": lambda home: ((home / "array.npy").unlink(), (home / "array.npy").mkdir()),
    "no record": lambda home: (home / "files.json").unlink(),
    "empty record": lambda home: (home / "files.json").write_text(""),
    "torn record": lambda home: os.truncate(home / "files.json", 90),
    "null": lambda home: (home / "files.json").write_text("null"),
    "nested": lambda home: (home / "files.json").write_text("[" * 100_000),
    "no text": lambda home: (home / "files.json").write_bytes(b"\xff\xfe\x00"),
    "of an earlier version": lambda home: alter(home, checksums=None),
    "rows missing": lambda home: alter(home, checksums=[1, 2]),
    "another size": lambda home: alter(home, size=[1, 1]),
    "bad rows": lambda home: alter(home, bad={"x": "?"}),
    "bad rows beyond": lambda home: alter(home, bad={"99": "?"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_array_that_is_not_whole_is_made_anew_at_the_start(city, place, capsys, damage):
    data = cityscapes(city, "train", SIZE, labelled=False)
    (home,) = (prepared(data, [place], 0).images.home,)
    DAMAGES[damage](home)
    capsys.readouterr()
    for times in (1, 0):
        ready = prepared(data, [place], 0)
        said = capsys.readouterr().out
        assert (said.count("is of no use ("), said.count("preparing")) == (times, times)
        assert all(torch.equal(ready.image(index), data.image(index)) for index in range(len(data)))
    assert list(place.iterdir()) == [home]


def test_arrays_under_one_anothers_names_are_noticed(city, place, capsys):
    sets = [cityscapes(city, "train", SIZE, labelled=False, limit=2), cityscapes(city, "val", SIZE, labelled=False)]
    one, other = (prepared(data, [place], 0).images.home for data in sets)
    one.rename(place / "aside")
    other.rename(one)
    (place / "aside").rename(other)
    for data in sets:
        assert torch.equal(prepared(data, [place], 0).image(1), data.image(1))
    assert capsys.readouterr().out.count("is another set's") == 2


def test_another_users_array_that_cannot_be_read_is_left_alone(city, tmp_path, monkeypatch, capsys):
    data = cityscapes(city, "train", SIZE, labelled=False)
    first = prepared(data, [tmp_path / "a"], 0).images.home
    reader = datasets.arrays.read_json

    def refuses(path, most):
        if path.parent == first:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return reader(path, most)

    monkeypatch.setattr(datasets.arrays, "read_json", refuses)
    for places, home in (([tmp_path / "a", tmp_path / "b"], tmp_path / "b"), ([tmp_path / "a"], None)):
        ready = prepared(data, places, 0)
        assert ready.images is home is None or ready.images.home.parent == home
        assert torch.equal(ready.image(2), data.image(2))
    assert "Permission denied" in capsys.readouterr().out
    assert first.is_dir()


def test_an_array_that_is_taken_away_while_in_use_changes_nothing(city, place, capsys):
    data = cityscapes(city, "train", SIZE)
    ready = prepared(data, [place], 0)
    later = pickle.dumps(ready)
    shutil.rmtree(place)
    for found in (ready, pickle.loads(later)):
        pairs = [found.training_pair(index) for index in range(len(data))]
        assert same([list(pair) for pair in pairs], [list(data.training_pair(index)) for index in range(len(data))])
    assert capsys.readouterr().out.count("is damaged (No such file") == 2  # the copy's images and labels


def test_an_array_that_is_cut_short_while_in_use_changes_nothing(city, place, capsys):
    """Reading on in its map would end the process by SIGBUS."""
    data = cityscapes(city, "train", SIZE)
    ready = prepared(data, [place], 0)
    for home in place.iterdir():
        os.truncate(home / "array.npy", 0)
    pairs = [ready.training_pair(index) for index in range(len(data))]
    assert same([list(pair) for pair in pairs], [list(data.training_pair(index)) for index in range(len(data))])
    assert capsys.readouterr().out.count("another length") == 2


def test_what_a_killed_process_of_this_number_left_is_removed(city, place, capsys):
    data = cityscapes(city, "train", SIZE, labelled=False)
    home = prepared(data, [place], 0).images.home
    home.rename(f"{home}.{socket.gethostname()}.{os.getpid()}")
    assert prepared(data, [place], 0).images.home == home
    assert list(place.iterdir()) == [home]


@pytest.mark.skipif(sys.platform != "linux", reason="names open files by /proc")
def test_an_array_is_on_the_disk_before_its_name(city, place, monkeypatch):
    order = []
    rename = datasets.prepared.Path.rename
    monkeypatch.setattr(os, "fsync", lambda file: order.append(Path(os.readlink(f"/proc/self/fd/{file}")).name))
    monkeypatch.setattr(datasets.prepared.Path, "rename", lambda *paths: (order.append("rename"), rename(*paths)))
    home = prepared(cityscapes(city, "train", SIZE, labelled=False), [place], 0).images.home
    building = f"{home.name}.{socket.gethostname()}.{os.getpid()}"
    assert order == ["array.npy", "files.json", building, "rename", place.name]


@pytest.mark.slow
def test_a_processor_that_resizes_otherwise_has_arrays_of_its_own(city, place):
    data = cityscapes(city, "train", SIZE)
    subprocess.run([sys.executable, "-c", BUILD, city, place, "live"], cwd=ROOT, check=True,
                   env=ENVIRONMENT | {"ATEN_CPU_CAPABILITY": "default"})  # fmt: skip
    ready = prepared(data, [place], 0)
    assert all(torch.equal(ready.image(index), data.image(index)) for index in range(len(data)))
    assert len([path for path in place.iterdir() if path.name.startswith("labels")]) == 1


BUILD = """
import os, sys
from pathlib import Path
sys.path[:0] = [os.getcwd(), "tests"]
from datasets import cityscapes
from datasets import prepared as module
read = module._Rows.__getitem__
def dies(self, index):
    if index == 2 and sys.argv[3] == "die":
        os.kill(os.getpid(), 9)
    return read(self, index)
module._Rows.__getitem__ = dies
data = module.prepared(cityscapes(sys.argv[1], "train", (40, 24)), [Path(sys.argv[2])], 0)
print(sum(int(data.image(i).sum()) for i in range(len(data))))
"""


@pytest.mark.slow
def test_a_killed_preparation_is_begun_anew_and_two_at_once_agree(city, place):
    def build(how):
        return subprocess.Popen([sys.executable, "-c", BUILD, city, place, how], cwd=ROOT, env=ENVIRONMENT,
                                stdout=subprocess.PIPE, text=True)  # fmt: skip

    killed = build("die")
    assert killed.wait() == -9
    (left,) = place.iterdir()
    assert not (left / "files.json").exists()
    both = [build("live"), build("live")]
    data = cityscapes(city, "train", SIZE)
    expected = sum(int(data.image(i).sum()) for i in range(len(data)))
    for process in both:
        out = process.communicate()[0]
        assert process.returncode == 0
        assert int(out.splitlines()[-1]) == expected
    assert sorted(path.name.split("-")[0] for path in place.iterdir()) == ["images", "labels"]
    assert all((path / "files.json").is_file() for path in place.iterdir())


def test_git_never_sees_what_is_prepared(script, game, city, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert script(*source_only(game, city, tmp_path / "run", "--max-steps", 2)).status == 0
    seen = subprocess.run(["git", "-C", tmp_path, "status", "--porcelain", "-uall"], capture_output=True, text=True)
    assert "images/00001.png" in seen.stdout
    assert ".prepared" not in seen.stdout
    (game / ".prepared/.gitignore").write_text("mine\n")
    assert script(*source_only(game, city, tmp_path / "2", "--max-steps", 2, "--limit", 3)).status == 0
    assert (game / ".prepared/.gitignore").read_text() == "mine\n"


def test_scripts_prepare_where_they_are_told(script, game, city, tmp_path):
    flags = ("--max-steps", 2)
    assert script(*source_only(game, city, tmp_path / "a", *flags)).status == 0
    assert len(list((game / ".prepared").glob("*-*"))) == 2
    assert len(list((city / ".prepared").glob("*-*"))) == 1  # the pictures of val
    shutil.rmtree(game / ".prepared")
    shutil.rmtree(city / ".prepared")
    assert script(*source_only(game, city, tmp_path / "b", *flags, "--cache", tmp_path / "cache")).status == 0
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert script(*source_only(game, city, tmp_path / "c", *flags, "--no-cache")).status == 0
    assert not (game / ".prepared").exists()
    results = [without_costs(json.loads((tmp_path / name / "result.json").read_text())) for name in "abc"]
    assert results[0] == results[1] == results[2]
    file = sorted((game / "images").iterdir())[2]
    file.write_bytes(file.read_bytes()[:90])
    assert str(file) in one_line_error(script(*source_only(game, city, tmp_path / "d", *flags)))
