"""Thousands of broken files: each is read, or refused with one line that names it; none hangs, crashes or floods
memory."""

import contextlib
import io
import json
import os
import random
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ids,
    one_line_error,
    peak_growth,
    picture,
    run_once,
    source_only,
    upper,
    write_cityscapes,
    write_gta5,
)
from PIL import Image

from datasets import cityscapes, gta5
from datasets.check import check
from datasets.files import read_image, read_label
from datasets.labels import CITYSCAPES, CITYSCAPES_LABELS, CITYSCAPES_PALETTE, IGNORE, load_mapping
from report import read_costs
from reporting.comparison import comparison
from reporting.figures import charts
from reporting.manifest import OwnFolder
from reporting.results import experiments, read_run
from reporting.tables import assignment_tables
from training.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint
from training.directory import DirectoryClaim
from utils.errors import UserError

TIMES = int(os.environ.get("FUZZ", 1))
SEED = int(os.environ.get("FUZZ_SEED", 0))
"""FUZZ=10 takes ten times as many of the inputs that are drawn from what runs keep, FUZZ_SEED=1 others."""

SECONDS = 5
MEBIBYTES = 700
"""A picture just under the limit of 100 million pixels may be decoded; nothing may take more."""


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """Flipped bits, bytes of another value, a piece cut out, doubled, or replaced by noise; an end cut off."""
    torn = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(torn)), rng.randrange(1, 40)
        kind = rng.randrange(6)
        if kind == 0:
            torn[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            torn[at] = rng.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del torn[at : at + length]
        elif kind == 3:
            torn[at:at] = torn[at : at + length]
        elif kind == 4:
            torn[at : at + length] = rng.randbytes(length)
        else:
            del torn[at:]
        if not torn:
            break
    return bytes(torn)


def refixed(png: bytes) -> bytes:
    """The same chunks with right checksums, so that mutations reach what lies behind them."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + length]
        out += struct.pack(">I", max(0, len(body) - 4)) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def survive(path: Path, contents: list[bytes], read, named: str | None = None) -> tuple[int, int]:
    """(read, refused); anything else than a result or a one-line `UserError` that names the file fails. named: what
    the message names in its place."""
    outcomes = [0, 0]

    def read_each() -> None:
        for number, content in enumerate(contents):
            path.write_bytes(content)
            began, message = time.monotonic(), None
            try:
                read(path)
            except UserError as error:
                message = str(error)
            outcomes[message is not None] += 1
            assert message is None or ((named or path.name) in message and "\n" not in message), (number, message)
            assert time.monotonic() - began < SECONDS, number

    assert (peak_growth(read_each) or 0) < MEBIBYTES
    return outcomes[0], outcomes[1]


def legal_label(path: Path, encoding: str) -> None:
    label = read_label(path, encoding, CITYSCAPES_LABELS)
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) <= {*range(len(CITYSCAPES)), IGNORE}


def legal_image(path: Path) -> None:
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


PALETTE = Image.fromarray(ids(1))
PALETTE.putpalette(CITYSCAPES_PALETTE.tobytes())
COLOURS = Image.fromarray(CITYSCAPES_PALETTE[ids(2)])
SEEDS = {
    "grey label": (encoded(Image.fromarray(ids(0)), "PNG"), lambda path: legal_label(path, "ids")),
    "palette label": (encoded(PALETTE, "PNG"), lambda path: legal_label(path, "auto")),
    "colour label": (
        encoded(Image.fromarray(CITYSCAPES_PALETTE[ids(2)]), "PNG"),
        lambda path: legal_label(path, "auto"),
    ),
    "PNG picture": (encoded(Image.fromarray(picture(3)), "PNG"), legal_image),
    "JPEG picture": (encoded(Image.fromarray(picture(4)), "JPEG"), legal_image),
}


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_pictures_are_read_or_refused(tmp_path, name):
    whole, read = SEEDS[name]
    rng = random.Random(name)
    contents = [mutated(whole, rng) for _ in range(600)]
    if "JPEG" not in name:
        contents = contents[:300] + [refixed(content) for content in contents[300:]]
    good, refused = survive(tmp_path / "broken.png", contents, read)
    assert good + refused == 600
    assert refused > 100


def test_pictures_that_claim_to_be_huge_are_refused_unread(tmp_path):
    def claiming(width, height, data):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        chunks = (b"IHDR" + header, b"IDAT" + data, b"IEND")
        body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
        return b"\x89PNG\r\n\x1a\n" + body

    bomb = zlib.compress(bytes(20_000_000))
    sides = [
        (60_000, 60_000),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (2**31 - 1, 2**31 - 1),
        (100_000, 100_000),
        (0, 5),
        (5, 0),
    ]
    contents = [claiming(width, height, data) for width, height in sides for data in (bomb, b"", zlib.compress(b"x"))]
    whole = encoded(Image.fromarray(picture(4)), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    contents.append(whole[:at] + struct.pack(">HH", 65_000, 65_000) + whole[at + 4 :])
    good, refused = survive(tmp_path / "huge.png", contents, legal_image)
    assert (good, refused) == (0, len(contents))


def test_mutated_mappings_are_read_or_refused(tmp_path):
    whole = json.dumps({"label2train": [[i, i % 20 - 1] for i in range(35)]}).encode()
    rng = random.Random(5)
    contents = [mutated(whole, rng) for _ in range(250)]
    contents += [b"[" * 100_000, b'{"label2train": [[1e999, 0]]}', b'{"label2train": [[NaN, 0]]}', b"\xff\xfe", b"null",
                 b'{"label2train": {"1": 2}}', b'{"label2train": [[0, 99999999999999999999999]]}']  # fmt: skip

    def read(path):
        mapping = load_mapping(path, CITYSCAPES)
        assert all(isinstance(key, int) and 0 <= value <= 255 for key, value in mapping.items())

    good, refused = survive(tmp_path / "mapping.json", contents, read)
    assert good + refused == 257
    assert refused > 150


def test_mutated_checkpoints_are_read_or_refused(tmp_path):
    from models import build_segmenter

    path = tmp_path / "whole.pt"
    model = build_segmenter("tiny")
    small = {name: value for name, value in model.state_dict().items() if value.numel() < 100}
    content = {
        "network": model.options,
        "weights": small,
        "config": {"arguments": {}},
        "step": 1,
        "epoch": 1,
        "closed": 1,
    }
    save_checkpoint(path, content)
    rng = random.Random(6)
    contents = [mutated(path.read_bytes(), rng) for _ in range(250)]

    def read(found):
        loaded = load_checkpoint(found)
        assert loaded["network"] == model.options  # what passes the checksum is what was written
        with pytest.raises(UserError, match="do not fit"):
            build_from_checkpoint(loaded, found)

    good, refused = survive(tmp_path / "broken.pt", contents, read)
    assert good + refused == 250
    assert refused > 200


NAMES = ["with space", "ünïcødé 漢字", "new\nline", "quote'\"s", "-dash", "semi;colon", "a" * 100]


@pytest.mark.parametrize("name", NAMES)
def test_strange_names_in_trees_work(tmp_path, name):
    root = write_cityscapes(tmp_path / name)
    for file in list(root.rglob("*.png")):
        file.rename(file.with_name(file.name.replace("_000019", f"_{name}")))
    data = cityscapes(root, "train", (48, 32))
    assert "4 pictures" in check(data)
    assert data[0][0].shape == (3, 32, 48)
    torn = data.samples[1].image
    torn.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        data.image(1)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such names")
def test_names_that_are_no_text_work_in_data_and_are_refused_for_a_run(script, tmp_path):
    odd = os.fsdecode(b"\xff\xe9")
    city, game = write_cityscapes(tmp_path / f"city{odd}"), write_gta5(tmp_path / "game")
    for file in list(city.rglob("*.png")):
        file.rename(file.with_name(file.name.replace("_000019", f"_{odd}")))
    torn = next(path for path in sorted((city / "leftImg8bit/train").rglob("*.png")))
    torn.write_bytes(torn.read_bytes()[:90])
    message = one_line_error(script(*upper(city, tmp_path / "run", "--epochs", 1)))
    assert "cannot be decoded" in message
    Image.fromarray(picture(0)).save(torn)
    message = one_line_error(script(*upper(city, tmp_path / odd, "--epochs", 1)))
    assert "TensorBoard takes names in UTF-8 alone" in message
    assert not (tmp_path / odd).exists()
    assert script(*source_only(game, city, tmp_path / "run", "--epochs", 1)).status == 0
    assert script(*source_only(game, city, tmp_path / "run", "--epochs", 2, "--allow-changes", "--resume")).status == 0
    last = tmp_path / "run/checkpoint_last.pt"
    done = script(
        "eval", last, "--workers", 0, "--save-side-by-side", tmp_path / odd, "--json", tmp_path / f"{odd}.json"
    )
    assert done.status == 0, done.err
    done = script("predict", last, city, "--out", tmp_path / f"predicted{odd}", "--device", "cpu")
    assert done.status == 0, done.err
    inputs = (tmp_path / "run", tmp_path / f"{odd}.json", tmp_path / f"none{odd}")
    done = script("report", *inputs, "--out", tmp_path / f"report{odd}", "--pictures", 1, "--device", "cpu")
    assert done.status == 0, done.err


def test_symbolic_links_work_and_loops_end(tmp_path):
    real = write_gta5(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "images").symlink_to(real / "images")
    (linked / "labels").mkdir()
    for file in (real / "labels").iterdir():
        (linked / "labels" / file.name).symlink_to(file)
    (linked / "loop").symlink_to(linked)
    data = gta5(linked, (48, 32))
    assert len(data) == 6
    assert np.array_equal(data.image(0), gta5(real, (48, 32)).image(0))
    (linked / "labels/00001.png").unlink()
    (linked / "labels/00001.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"00001\.png"):
        gta5(linked, (48, 32)).label(0)


# What runs leave, damaged or made by somebody else


HOSTILE = [None, [], {}, "", "x", "$\\frac{", "\ud800", "../../x", "=1", "<b>", "a\nb", "x" * 5000, -3, 0.5, 10**30,
           float("nan"), float("inf"), True, [None], {"a": None}, [[[]]]]  # fmt: skip


def places_in(value, path=()):
    """The paths of all values in a JSON; of a list the first two."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places_in(item, (*path, key))


def replaced(text: str, path, value) -> str:
    """A JSON with another value there."""
    whole = [json.loads(text)]
    at = whole
    for key, following in zip((0, *path), (*path, None), strict=True):
        if following is None:
            at[key] = value
        else:
            at = at[key]
    return json.dumps(whole[0])


@pytest.fixture(scope="module")
def run_of_somebody(tmp_path_factory):
    home = tmp_path_factory.mktemp("somebody")
    city, game = write_cityscapes(home / "city"), write_gta5(home / "game")
    run_once(*source_only(game, city, home / "run", "--epochs", 1, "--source-holdout", 0.3))
    return home / "run"


def survive_runs(run: Path, names: list[str], inputs: int, show) -> int:
    """Puts hostile values everywhere into a run's files, and nests one value deeply; show(run) must end or raise a
    one-line `UserError`. Returns how often it ended."""
    rng, shown = random.Random(8 + SEED), 0
    wholes = {name: (run / name).read_text() for name in names}
    paths = [(name, path) for name, whole in wholes.items() for path in places_in(json.loads(whole))]
    for number in range(inputs * TIMES):
        name, path = rng.choice(paths)
        text = replaced(wholes[name], path, rng.choice(HOSTILE))
        if number % 50 == 0:
            text = replaced(wholes[name], path, "DEEP").replace('"DEEP"', "[" * 10**5 + "]" * 10**5)
        (run / name).write_text(text)
        began, message = time.monotonic(), ""
        try:
            show(run)
            shown += 1
        except UserError as error:
            message = str(error)
        assert "\n" not in message, (name, path)
        assert time.monotonic() - began < SECONDS, (name, path)
        (run / name).write_text(wholes[name])
    return shown


@pytest.mark.slow
def test_hostile_values_in_a_run_are_shown_or_refused(run_of_somebody):
    """In tables, in charts, and where a run is resumed."""

    def show(run):
        found = experiments([read_run(run)])
        for table in (*assignment_tables(found, {}), comparison(found)):
            assert all((table.html(), table.latex(), table.markdown(), table.csv()))
        assert all(name and "/" not in name for name, _, _ in charts(found))

    run, config = run_of_somebody, json.loads((run_of_somebody / "config.json").read_text())
    assert 150 < survive_runs(run, ["config.json", "result.json", "metrics.jsonl"], 500, show) / TIMES < 450
    with contextlib.redirect_stdout(io.StringIO()):
        resumed = survive_runs(
            run, ["config.json"], 1500, lambda run: DirectoryClaim(run, dict(config), True, True, torch.device("cpu"))
        )
    assert 750 < resumed / TIMES < 1500


@pytest.mark.slow
@pytest.mark.parametrize("word", ["$\\frac{", "$x$", "\ud800", "%\\", "<b>"])
def test_a_hostile_name_is_drawn_as_it_is(script, run_of_somebody, tmp_path, word):
    for copy in ("one", "two"):
        shutil.copytree(run_of_somebody, tmp_path / copy)
    config = json.loads((tmp_path / "one/config.json").read_text())
    config["arguments"]["settings"] = word
    (tmp_path / "one/config.json").write_text(json.dumps(config))
    inputs = (tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out", "--pictures", 1, "--device", "cpu")
    done = script("report", *inputs)
    assert done.status == 0, done.err
    assert "left out" not in done.out
    assert "settings=" in (tmp_path / "out/report.html").read_text()


def test_hostile_manifests_and_costs_are_read_or_refused(tmp_path):
    """Whatever a manifest says, what lies beside its folder stays as it is."""
    out, victim, rng = tmp_path / "out", tmp_path / "victim", random.Random(9)
    victim.write_bytes(b"mine")
    files = {"report.md": b"1", "tables/a.csv": b"2", "old.md": b"mine"}
    OwnFolder(out).write(files)
    whole = (out / "manifest.json").read_text()
    others = ["../victim", str(victim), "tables/../../victim", ".", "tables", "\0", "\ud800", "x" * 999]
    contents = [mutated(whole.encode(), rng) for _ in range(200)]
    contents += [whole.replace("old.md", json.dumps(name)[1:-1]).encode() for name in others]
    contents += [replaced(whole, path, value).encode() for path in places_in(json.loads(whole)) for value in HOSTILE]

    def write(manifest):
        said = manifest.read_bytes()
        shutil.rmtree(out)
        OwnFolder(out).write(files)
        manifest.write_bytes(said)
        OwnFolder(out).write({"report.md": b"3", "tables/a.csv": b"2"})

    written, refused = survive(out / "manifest.json", contents, write, named=str(out))
    assert victim.read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "victim"}
    assert min(written, refused) > 50
    counts = dict.fromkeys(("parameters_training", "parameters_inference", "fvcore", "conv_flops"), 1.0)
    times = {"latency_median_ms": 2.0, "latency_p95_ms": 2.0}
    timing = {"timing": {"eager": times}, "device": "d", "torch": "2", "batch_size": 1}
    whole = json.dumps({"size": [64, 32], "networks": {"bisenet resnet18": counts | timing}} | timing)
    read = 0
    for path in places_in(json.loads(whole)):
        for value in HOSTILE:
            (tmp_path / "costs.json").write_text(replaced(whole, path, value))
            costs = {}
            read += read_costs(tmp_path / "costs.json", costs)
            assert all(table.markdown() for table in assignment_tables([], costs))
    assert read > 50
