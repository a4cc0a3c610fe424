"""A user's mistake is one clear line and status 2, and leaves nothing behind."""

import numpy as np
import pytest
import torch
from conftest import ids, one_line_error, source_only, upper, write_cityscapes, write_gta5
from PIL import Image

from training.checkpoint import save_checkpoint


def test_mistakes_in_data_are_one_line(script, city, game, tmp_path):
    run = tmp_path / "never"
    assert "no such folder" in one_line_error(script(*upper(tmp_path / "nowhere", run)))
    assert "no such folder" in one_line_error(script(*source_only(tmp_path / "nowhere", city, run)))
    assert "--cityscapes DIR is missing" in one_line_error(script("train_cityscapes", "--weights", "none"))
    assert "--gta5 DIR is missing" in one_line_error(script("train_gta5", "--cityscapes", city))
    empty = write_cityscapes(tmp_path / "empty", counts=(("train", 2),))
    (empty / "leftImg8bit/val").mkdir()
    assert "split is empty" in one_line_error(script(*upper(empty, run)))
    lonely = write_cityscapes(tmp_path / "lonely")
    next((lonely / "gtFine/train").rglob("*.png")).unlink()
    assert "without label" in one_line_error(script(*upper(lonely, run)))
    lonely = write_cityscapes(tmp_path / "lonely 2")
    next((lonely / "leftImg8bit/train").rglob("*.png")).unlink()
    assert "without picture" in one_line_error(script(*upper(lonely, run)))
    grey = write_gta5(tmp_path / "grey", encoding="trainIds")
    assert "probably train ids" in one_line_error(script(*source_only(grey, city, run)))
    assert "expected train ids" in one_line_error(script(*source_only(game, city, run, "--gta5-encoding", "trainIds")))
    colours = write_gta5(tmp_path / "colours", encoding="rgb")
    for file in (colours / "labels").iterdir():
        Image.fromarray(np.full((32, 48, 3), 9, dtype=np.uint8)).save(file)
    assert "have colours that are in no" in one_line_error(script(*source_only(colours, city, run)))
    torn = write_gta5(tmp_path / "torn")
    file = torn / "labels/00001.png"
    file.write_bytes(file.read_bytes()[:-40])
    assert "labels/00001.png" in one_line_error(script(*source_only(torn, city, run)))
    file.write_bytes(b"")
    assert "0 bytes" in one_line_error(script(*source_only(torn, city, run)))
    shape = write_cityscapes(tmp_path / "shape")
    Image.fromarray(ids(0, (40, 40))).save(next((shape / "gtFine/train").rglob("*.png")))
    assert "is 40 x 40 but its picture" in one_line_error(script(*upper(shape, run)))
    assert not run.exists()


def test_a_start_that_fails_leaves_no_directory(script, city, tmp_path):
    for flags in (("--weights", "missing.pth"), ("--init", "missing.pt")):
        one_line_error(script(*upper(city, tmp_path / "run", *flags)))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--size", "1024"), "WIDTHxHEIGHT"), (("--size", "0x512"), "32 to 8192"), (("--size", "99999x99999"), "32 to"),
     (("--size=-4x9",), "WIDTHxHEIGHT"), (("--batch-size", "0"), "at least 1"), (("--batch-size", "1"), "at least 2"),
     (("--lr", "fast"), "from 0 to 100"), (("--device", "cuda:99"), "CUDA device"), (("--device", "tpu9"), "cpu, cuda"),
     (("--device", "meta"), "cpu, cuda"),
     (("--flip", "2"), "from 0 to 1"), (("--scales", "1,x"), "from 0.1 to 10"), (("--epochs", "-1"), "at least 1"),
     (("--weights", "missing.pth"), "does not exist"), (("--init", "missing.pt"), "no such file"),
     (("--frobnicate",), "unrecognized arguments"), (("--cityscapes-list", "none.txt"), "cannot be read")],
)  # fmt: skip
def test_mistakes_in_flags_are_one_line(script, city, tmp_path, flags, said):
    assert said in one_line_error(script(*upper(city, tmp_path / "run", *flags)))


def test_mistakes_in_checkpoints_are_one_line(script, city, trained, tmp_path):
    assert "no such file" in one_line_error(script("eval", tmp_path / "none.pt"))
    whole = trained.read_bytes()
    bad = tmp_path / "bad.pt"
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        assert "no checkpoint of this project" in one_line_error(script("eval", bad))
    torch.save({"weights": {}}, bad)
    assert "lacks the network" in one_line_error(script("eval", bad))
    torch.save(torch.zeros(3), bad)
    assert "no checkpoint of this project" in one_line_error(script("eval", bad))
    checkpoint = torch.load(trained, weights_only=True)
    save_checkpoint(bad, checkpoint | {"network": checkpoint["network"] | {"backbone": "wide"}})
    assert "do not fit" in one_line_error(script("eval", bad))
    save_checkpoint(bad, checkpoint | {"network": checkpoint["network"] | {"name": "unet"}})
    assert "unet" in one_line_error(script("eval", bad))
    assert "does not exist" in one_line_error(script("eval", trained, "--json", tmp_path / "no/where.json"))
    mine = tmp_path / "mine.json"
    mine.write_text("[1]")
    assert "name another file" in one_line_error(script("eval", trained, "--json", mine))


def test_a_malicious_checkpoint_executes_nothing(script, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"format": 1, "network": Evil(), "weights": {}, "config": {}}, tmp_path / "evil.pt")
    one_line_error(script("eval", tmp_path / "evil.pt"))
    assert not (tmp_path / "owned").exists()


def test_the_check_runs_alone(script, city, game):
    done = script("datasets.check", "--gta5", game, "--cityscapes", city)
    assert done.status == 0, done.err
    assert "GTA5: 6 pictures" in done.out
    assert "Cityscapes val: 2 pictures" in done.out
    assert "nothing to check" in one_line_error(script("datasets.check"))
