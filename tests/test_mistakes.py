"""A user's mistake is one clear line and status 2, and leaves nothing behind."""

import numpy as np
import pytest
import torch
from conftest import SMALL, SOURCE, ids, one_line_error, source_only, upper, write_cityscapes, write_gta5
from PIL import Image

import train_gta5
from training.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.files import require_place


def test_several_processes_that_torchrun_did_not_start_are_refused(script, city, game, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start with torchrun" in one_line_error(script(*source_only(game, city, tmp_path / "run")))
    monkeypatch.setenv("WORLD_SIZE", "1")  # as some schedulers set it for one
    assert "mIoU" in script(*source_only(game, city, tmp_path / "run"), "--max-steps", 1).out


def test_the_check_refuses_flags_of_sets_that_are_not_named(script, city):
    said = one_line_error(script("datasets.check", "--cityscapes", city, "--gta5-encoding", "trainIds"))
    assert "--gta5-encoding does nothing here" in said


def test_mistakes_in_data_are_one_line(script, city, game, tmp_path):
    run = tmp_path / "never"
    assert "no such folder" in one_line_error(script(*upper(tmp_path / "nowhere", run)))
    assert "no such folder" in one_line_error(script(*source_only(tmp_path / "nowhere", city, run)))
    assert "--cityscapes DIR (or " in one_line_error(script("train_cityscapes", "--weights", "none"))
    assert "--gta5 DIR (or " in one_line_error(script("train_gta5", "--cityscapes", city))
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


def test_what_lies_at_a_root_is_said(script, game, city, tmp_path):
    def said(*flags):
        return one_line_error(script("datasets.check", *flags))

    assert "up to three folders below (there: gtFine, leftImg8bit). It is laid out as Cityscapes: are --gta5 and " in (
        one_line_error(script(*source_only(city, game, tmp_path / "never")))
    )
    assert "(there: images, labels)" in said("--cityscapes", game)
    assert said("--cityscapes", game).endswith("It is laid out as GTA5: are --cityscapes and --gta5 swapped?")

    packed = tmp_path / "packed"
    for name in ("leftImg8bit/train/x.png", "sub/gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.ZIP"):
        (packed / name).parent.mkdir(parents=True, exist_ok=True)
        (packed / name).write_bytes(b"x")
    archives = "(leftImg8bit_trainvaltest.ZIP, sub/gtFine_trainvaltest.zip there: to be unpacked first)"
    assert "no gtFine/train with their labels " + archives in said("--cityscapes", packed)
    assert "images/ beside labels/ up to three folders below " + archives in said("--gta5", packed)

    for part in ("train", "trainannot", "val", "valannot"):
        (tmp_path / "CamVid" / part).mkdir(parents=True)
    camvid = said("--cityscapes", tmp_path / "CamVid")
    assert "(there: train, trainannot, val and 1 more)" in camvid
    assert camvid.endswith("docs/data.md, also for CamVid and for other sets")
    (tmp_path / "bare").mkdir()
    assert "(there: nothing)" in said("--gta5", tmp_path / "bare")


@pytest.mark.parametrize("encoding", ["labelIds", "labelTrainIds"])
def test_labels_of_other_classes_are_not_learnt_under_the_names_of_cityscapes(script, tmp_path, encoding):
    """CamVid's, as SegNet has them: 11 classes from 0, and 11 for the rest."""
    root = write_cityscapes(tmp_path / "camvid", encoding=encoding, counts=(("train", 12), ("val", 2)))
    for file in (root / "gtFine").rglob("*.png"):
        Image.fromarray(np.array(Image.open(file)) % 12).save(file)
    said = one_line_error(script("datasets.check", "--cityscapes", root))
    assert "no value is over 12, so no car is there" in said
    assert "such as CamVid's 11? docs/data.md says how" in said
    file = next((root / "gtFine/train").rglob("*.png"))
    Image.fromarray(np.full((32, 48), 26 if encoding == "labelIds" else 13, np.uint8)).save(file)  # a car
    assert "CamVid" not in script("datasets.check", "--cityscapes", root).err


def test_a_split_that_is_not_there_is_said(script, city, trained):
    said = one_line_error(script("eval", trained, "--split", "vall", "--device", "cpu"))
    assert f"no split 'vall' is in {city / 'leftImg8bit'}; there: train, val" in said


def test_eval_refuses_classes_of_a_set_that_it_does_not_read(script, trained):
    said = one_line_error(script("eval", trained, "--camvid-classes", "camvid11", "--device", "cpu"))
    assert "--camvid-classes does nothing here: it takes --camvid or" in said


def test_a_demo_takes_no_other_data(script, game, city, tmp_path):
    flags = ("--demo", "--device", "cpu", "--run-dir", tmp_path / "never")
    said = one_line_error(script("train_cityscapes", *flags, "--cityscapes", city))
    assert said == "error: --demo has street scenes of its own; leave out --cityscapes, or --demo"
    said = one_line_error(script("train_gta5", *flags, f"--gta5={game}", "--cityscapes", city))
    assert "leave out --gta5 and --cityscapes, or --demo" in said
    assert not (tmp_path / "never").exists()


def test_a_batch_larger_than_the_set_is_said(script, city, tmp_path):
    done = script(*upper(city, tmp_path / "run", "--batch-size", 6, "--max-steps", 1))
    assert done.status == 0, done.err
    said = "note: Cityscapes train has 4 pictures and a batch 6: some come twice in it; take more pictures, or "
    assert said + "--batch-size 4\n" in done.out
    assert "some come twice" not in script(*upper(city, tmp_path / "4", "--batch-size", 4, "--max-steps", 1)).out


def test_a_report_of_a_checkpoint_says_what_to_name(script, trained):
    said = one_line_error(script("report", trained))
    assert f"no finished run is there to report: {trained} is a checkpoint; name its run, {trained.parent}" in said


def test_a_start_that_fails_leaves_no_directory(script, city, tmp_path):
    for flags in (("--weights", "missing.pth"), ("--init", "missing.pt")):
        one_line_error(script(*upper(city, tmp_path / "run", *flags)))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--size", "1024"), "WIDTHxHEIGHT"), (("--size", "0x512"), "32 to 8192"), (("--size", "99999x99999"), "32 to"),
     (("--size=-4x9",), "WIDTHxHEIGHT"), (("--batch-size", "0"), "at least 1"), (("--batch-size", "1"), "at least 2"),
     (("--seed", "10000000000000000000000000"), "a whole number of at most 1000000000000000,"),
     (("--limit", "1000000000000001"), "of at most 1000000000000000,"),
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
    for name in ("network.pt2", "network-int8.onnx"):
        (tmp_path / name).touch()
        assert "by its name a file of export.py" in one_line_error(script("eval", tmp_path / name))
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


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train_adversarial --lambda-entropy 0.1", "--lambda-entropy does nothing here: it takes --min-entropy"),
        ("train_adversarial --entropy-range=0.3", "--entropy-range does nothing here: it takes --min-entropy"),
        ("train_adversarial --min-entropy --lambda-entropy-aux 1", "--lambda-entropy-aux does nothing here: it takes"),
        ("train_adversarial --discriminator none --min-entropy --level multi", "add --lambda-entropy-aux, ADVENT's is"),
        ("train_sac --lambda-target 0 --confidence 0.5", "--confidence does nothing here: --lambda-target 0 leaves"),
        ("train_dacs --lambda-mix 0 --confidence 0.5", "--confidence does nothing here: no loss is left that takes"),
        ("train_adversarial --lambda-adv-aux 1", "--lambda-adv-aux does nothing here: it takes --level multi"),
        ("train_adversarial --lambda-prior 1", "--lambda-prior does nothing here: it takes --class-prior"),
        ("train_adversarial --level feature --input softmax", "--input does nothing here: --level feature shows"),
        *(
            (f"train_adversarial --discriminator none --min-entropy {flag}", "does nothing here: there is no discr")
            for flag in ("--lambda-adv 1", "--lr-d 1", "--gan least-squares", "--input entropy", "--lambda-adv-aux 1")
        ),
        ("train_fda --translation lab --beta 0.05", "--beta does nothing here: --translation lab has no band"),
        ("train_fda --lambda-entropy 0 --eta 1", "--eta does nothing here: --lambda-entropy is 0"),
        ("train_fda --lambda-entropy 0 --entropy-from 9", "--entropy-from does nothing here: --lambda-entropy is 0"),
        ("train_gta5 --model lraspp --aux-weight 1", "--aux-weight does nothing here: LR-ASPP has no auxiliary losses"),
        ("train_gta5 --model deeplabv2 --aux-weight 1", "--aux-weight does nothing here: DeepLabV2 has no auxiliary"),
        ("train_gta5 --synthia-list x", "--synthia-list does nothing here: it takes --synthia"),
        ("train_gta5 --camvid-list x", "--camvid-list does nothing here: it takes --camvid"),
        ("train_gta5 --camvid-classes camvid11", "--camvid-classes does nothing here: it takes --camvid or"),
        ("train_dacs --labels L --confidence 0.5", "--confidence does nothing here: every given label is sure"),
        ("train_pseudo_labels --labels L --rule cbst", "--rule does nothing here: the labels are given, and there"),
        ("train_pseudo_labels --labels L --portion 0.3", "--portion does nothing here: the labels are given"),
        ("train_pseudo_labels --labels L --rounds 2 --portion 0.3", "--portion does nothing here: --rule bdl has none"),
        ("train_pseudo_labels --labels L --rounds 2 --portion-step 0", "--portion-step does nothing here: --rule bdl"),
        ("train_adversarial --discriminator none --min-entropy --level feature", "--level feature is what the discrim"),
        ("train_pseudo_labels --labels L --lambda-source 0 --bn-statistics target", "--bn-statistics does nothing"),
        ("train_pseudo_labels --labels L --lambda-source 0 --loss ohem --target-loss ce", "--loss does nothing here"),
        ("train_pseudo_labels --labels L --lambda-source 0 --beta 0.05", "--beta does nothing here: --lambda-source 0"),
        ("train_pseudo_labels --labeller C --lambda-target 0 --mrkld 1", "--mrkld does nothing here: --lambda-t"),
        ("train_pseudo_labels --labels L --rounds 2 --rule iast --percentile 9", "--percentile does nothing here"),
        ("train_gta5 --gta5-encoding trainIds --gta5-mapping m.json", "--gta5-mapping does nothing here: it maps ids"),
        ("datasets.check --gta5-encoding trainIds --gta5-mapping m.json", "--gta5-mapping does nothing here: it maps"),
        ("train_gta5 --init C --weights f.pth", "--weights does nothing here: the network starts from "),
        ("train_pseudo_labels --labeller C --continue --weights f.pth", "--weights does nothing here: the netw"),
        ("train_pseudo_labels --labels L --lambda-target 0", "--labels does nothing here: --lambda-target 0 leaves"),
        ("train_pseudo_labels --labeller C --lambda-target 0 --rule cbst", "--rule does nothing here: --lambda-target"),
        ("train_gta5 --allow-changes", "--allow-changes does nothing here: it takes --resume"),
        ("train_gta5 --no-cache --cache c", "--cache does nothing here: --no-cache keeps no prepared pictures"),
        ("train_gta5 --max-bad-share 0.5", "--max-bad-share does nothing here: --on-bad-sample stop allows none"),
        ("train_cityscapes", "--gta5 does nothing here: no labelled source is read; train_gta5.py trains on one"),
        ("train_gta5 --init C --weights none --allow-partial-weights", "--allow-partial-weights does nothing here"),
        ("train_pseudo_labels --labeller C --rule cbst --portion-max 1", "--portion-max does nothing here: there is"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(script, game, city, tmp_path, command, said):
    (tmp_path / "C").touch()
    name, *flags = command.replace(" L ", f" {tmp_path} ").replace(" C ", f" {tmp_path}/C ").split()
    place = () if name == "datasets.check" else ("--run-dir", tmp_path / "never")
    found = one_line_error(script(name, "--gta5", game, "--cityscapes", city, *place, *flags))
    assert said in found
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--weights", "none"),
        ("--demo",),  # which stands for --weights none
        ("--model", "deeplabv2", "--weights", "imagenet"),  # its batch normalisation is frozen then
        ("--weights", "f.pth", "--allow-partial-weights", "--resume"),  # as tables.py gives them to all rows
    ],
)
def test_weights_beside_another_start_pass_where_they_do_something_or_no_harm(
    script, game, city, tmp_path, monkeypatch, flags
):
    (tmp_path / "C").touch()
    monkeypatch.setattr("training.flags.street_scenes.ensure", lambda *_, **__: (game, city))
    data = () if "--demo" in flags else ("--gta5", game, "--cityscapes", city)
    words = ["train_gta5.py", *data, "--init", tmp_path / "C", "--run-dir", tmp_path / "run", *flags]
    monkeypatch.setattr("sys.argv", [*map(str, words)])
    assert train_gta5.parse_args().init == tmp_path / "C"


def test_weights_beside_a_moving_teacher_are_refused(script, game, city, trained, tmp_path):
    flags = ("--teacher-checkpoint", trained, "--teacher", "moving", "--allow-partial-weights")
    found = one_line_error(script("train_dacs", "--gta5", game, "--cityscapes", city, *SMALL, *flags))
    assert f"--allow-partial-weights does nothing here: the network starts from {trained}" in found


def test_flags_of_other_scripts_that_would_do_nothing_are_refused(script, trained):
    assert "--mean does nothing here: one network is named" in one_line_error(script("eval", trained, "--mean"))
    found = one_line_error(script("report", trained.parent, "--pictures", 2))
    assert "--pictures does nothing here: no report is written without --out" in found
    found = one_line_error(script("measure_flops", "--no-latency", "--runs", 3))
    assert "--runs does nothing here: --no-latency times nothing" in found
    assert "--force does nothing here: it is for --json" in one_line_error(script("eval", trained, "--force"))


def test_several_bands_do_not_begin_below_a_run_of_one(script, game, city, tmp_path):
    common = ("--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--max-steps", 1, "--run-dir", tmp_path / "run")
    assert script("train_fda", *common, "--beta", 0.05).status == 0
    for more in ((), ("--resume",)):
        found = one_line_error(script("train_fda", *common, "--beta", 0.05, 0.1, *more))
        assert "holds one run, and this command makes 2 of them in folders of their own" in found
    assert not list((tmp_path / "run").glob("beta-*"))


@pytest.mark.parametrize(
    "command",
    ["train_gta5 --gta5=", "train_gta5 --gta5 G --cityscapes=", "train_gta5 --gta5 G --init=", "eval x.pt --save-ids=",
     "train_gta5 --gta5 G --run-dir=", "datasets.check --gta5=", "export x.pt --out=", "tables --out="],
)  # fmt: skip
def test_an_empty_name_is_not_the_current_folder(script, game, monkeypatch, command):
    """As of a variable in quotes that is not set."""
    monkeypatch.chdir(game)
    name, *words = command.split()
    said = one_line_error(script(name, *words))
    flag = words[-1].removesuffix("=")
    assert f"argument {flag}: expected a file or folder, found an empty name; is a variable not set?" in said


def test_a_place_that_cannot_be_used_is_one_line(script, city, game, tmp_path):
    long = "x" * 300
    assert "File name too long" in one_line_error(script("eval", tmp_path / long))
    assert "File name too long" in one_line_error(script("train_gta5", "--gta5", tmp_path / long, "--cityscapes", "C"))
    (tmp_path / "file").touch()
    below = script("tables", "--gta5", game, "--cityscapes", city, "--out", tmp_path / "file/tables")
    assert "Not a directory" in one_line_error(below)


def test_a_place_for_figures_is_looked_at_before_the_work(script, trained, tmp_path, monkeypatch):
    missing, below = tmp_path / "no/figures.json", tmp_path / "file/out"
    (tmp_path / "file").touch()
    for command in (("measure_flops", "--json", missing), ("measure_flops", "--markdown", missing)):
        assert "does not exist" in one_line_error(script(*command))
    for command in (("eval", trained, "--json"), ("eval", trained, "--save-side-by-side")):
        assert "is no folder" in one_line_error(script(*command, below))
    assert "is no folder" in one_line_error(script("report", trained.parent, "--out", below))
    for folder in (False, True):
        require_place(tmp_path / "new", folder)
    require_place(tmp_path / "new/and/deeper", folder=True)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    for folder in (False, True):
        with pytest.raises(UserError, match="cannot be written to"):
            require_place(tmp_path / "new", folder)
