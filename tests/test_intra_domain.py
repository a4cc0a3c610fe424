"""IntraDA: the ranking against entropies by hand, the split, labels of every pixel, and the script without a source."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_resumes_exactly, one_line_error, write_cityscapes, write_gta5
from PIL import Image
from soak import INTRA

from adaptation.intra_domain import easy_and_hard, mean_entropy
from adaptation.losses import cross_entropy
from adaptation.pseudo_labels import Argmax, class_probabilities
from benchmarks.adaptation import ROWS
from datasets import cityscapes
from datasets.appearance import to_float
from reporting.plan import Plan
from training.building import supervised_loss
from training.checkpoint import load_checkpoint, network_for, save_checkpoint
from training.intra_domain import _kept
from training.methods import method_name, trained_as


def test_the_mean_entropy_is_that_by_hand() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 3, 4)
    logits[0] = 0  # all classes alike
    logits[1], logits[1, 2] = -1e4, 1e4  # one class alone
    logits[3] = logits[2] / 3  # less sure
    found = mean_entropy(logits).tolist()
    for picture, value in zip(logits.double().softmax(1), found, strict=True):
        columns = picture.flatten(1).T.tolist()
        each = [-sum(p * math.log2(p) for p in column if p > 0) / math.log2(5) for column in columns]
        assert value == pytest.approx(sum(each) / 12, abs=1e-6)
    assert (found[0], found[1]) == pytest.approx((1, 0))
    assert easy_and_hard(torch.tensor(found), 0.5) == ([1, 2], [3, 0])


def test_the_split_takes_whole_pictures_and_equal_ones_keep_their_order() -> None:
    easy, hard = easy_and_hard(torch.tensor([0.5, 0.2, 0.5, 0.2, 0.9, 0.2, 0.1]), 0.67)
    assert (easy, hard) == ([6, 1, 3, 5], [0, 2, 4])  # int(7 * 0.67) = 4
    many = torch.zeros(2975)
    assert easy_and_hard(many, 0.67) == (list(range(1993)), list(range(1993, 2975)))


def test_every_pixel_gets_its_most_probable_class() -> None:
    logits = torch.randn(2, 5, 3, 4)
    labels = Argmax(5, "cpu").label(class_probabilities(logits))
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, logits.argmax(1).to(torch.uint8))


# The script


@pytest.fixture
def city(tmp_path: Path) -> Path:
    return write_cityscapes(tmp_path / "cityscapes", counts=(("train", 7), ("val", 2)))


def intra(city, run_dir, labeller, *more):
    return ("train_adversarial", "--cityscapes", city, *SMALL, *INTRA, labeller, "--epochs", 2, "--run-dir", run_dir,
            *more)  # fmt: skip


def test_the_target_is_split_by_the_networks_entropy_and_labelled_by_it(
    script, city, trained, tmp_path, monkeypatch
) -> None:
    for label in (city / "gtFine/train").rglob("*.png"):
        label.write_bytes(b"")  # never opened
    game = write_gta5(tmp_path / "gta5")
    for file in game.rglob("*.png"):
        file.write_bytes(b"")
    monkeypatch.setenv("GTA5", str(game))  # nor is the source
    done = script(*intra(city, tmp_path / "intra", trained))
    assert done.status == 0, done.err

    target = cityscapes(city, "train", (64, 32), labelled=False)
    network = network_for(trained, target.classes).eval()
    with torch.no_grad():
        logits = [network(to_float(target.image(index)[None])) for index in range(7)]
    probabilities = [maps.double().softmax(1) for maps in logits]
    entropy = [float(-(p * p.log()).sum(1).mean()) for p in probabilities]
    ranked = sorted(range(7), key=entropy.__getitem__)
    parts = [(tmp_path / f"intra/{name}.txt").read_text().splitlines() for name in ("easy", "hard")]
    names = [target.samples[index].name for index in ranked]
    assert [part[1:] for part in parts] == [names[:4], names[4:]]

    files = {path.name: path for path in (tmp_path / "intra/pseudo-labels").rglob("*.png")}
    assert set(files) == {f"{name}_gtFine_labelTrainIds.png" for name in names[:4]}
    for index in ranked[:4]:
        label = np.array(Image.open(files[f"{target.samples[index].name}_gtFine_labelTrainIds.png"]))
        assert (label == logits[index].argmax(1)[0].numpy()).mean() > 0.999  # a batch may round otherwise
        assert label.max() < 19

    arguments = json.loads((tmp_path / "intra/config.json").read_text())["arguments"]
    assert (arguments["gta5"], arguments["easy_share"], arguments["source_size"]) == (None, 0.67, [64, 32])
    assert method_name(arguments) == "IntraDA after upper bound (AdvEnt, depthwise)"
    assert arguments["earlier_networks"] == ["intra tiny narrow, 2 steps"]
    assert script("eval", tmp_path / "intra", "--workers", 0).status == 0
    listed = cityscapes(city, "train", (64, 32), labelled=False, list_file=tmp_path / "intra/easy.txt")
    assert sorted(sample.name for sample in listed.samples) == sorted(names[:4])


def test_the_streams_are_the_two_parts(script, city, trained, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("training.run.Run.stream", lambda self, data, geometry: seen.append(data) or iter(()))
    done = script(*intra(city, tmp_path / "intra", trained, "--easy-share", 0.3))
    assert "as many draws of each half as there are pictures in Cityscapes train" in done.out
    easy, hard = seen
    assert (len(easy), len(hard)) == (2, 5)
    assert (easy.labelled, hard.labelled) == (True, False)
    assert {s.name for s in easy.samples} | {s.name for s in hard.samples} == {
        s.name for s in cityscapes(city, "train", (48, 32), labelled=False).samples
    }


def test_a_ranking_is_taken_up_again_unless_it_is_another_networks(tmp_path, city) -> None:
    samples = cityscapes(city, "train", (48, 32), labelled=False).samples
    files = tmp_path / "easy.txt", tmp_path / "hard.txt"
    assert _kept(files, "# a", samples) is None
    for file, part in zip(files, (samples[4:], samples[:4]), strict=True):
        file.write_text("\n".join(["# a", *(sample.name for sample in part), ""]))
    assert _kept(files, "# a", samples) == [samples[4:], samples[:4]]
    assert _kept(files, "# b", samples) is None
    assert _kept(files, "# a", samples[1:]) is None


@pytest.mark.slow
def test_an_interrupted_run_goes_on_exactly(script, city, trained, tmp_path, monkeypatch) -> None:
    assert_resumes_exactly(script, monkeypatch, tmp_path, lambda run_dir, *more: intra(city, run_dir, trained, *more))


def test_what_does_not_go_with_it_is_refused(script, city, game, trained, tmp_path) -> None:
    run = tmp_path / "never"

    def said(*more):
        return one_line_error(script(*intra(city, run, trained, *more)))

    assert "leave out --gta5" in said("--gta5", game)
    assert "leave out --camvid-day" in said("--camvid-day", game)
    assert "leave out --source-size" in said("--source-size", "48x32")
    assert "leave out --source-holdout" in said("--source-holdout", 0.1)
    assert "no class weights" in said("--loss", "weighted")
    assert "no class prior" in said("--class-prior", 0.5)
    assert "leaves an empty part" in said("--easy-share", 0.1)
    alone = ("train_adversarial", "--cityscapes", city, "--gta5", game, *SMALL, "--run-dir", run)
    assert "--intra CHECKPOINT" in one_line_error(script(*alone, "--easy-share", 0.5))
    assert not run.exists()


def test_labels_that_a_network_made_teach_no_boundary() -> None:
    """Of a network that says where boundaries are, its last auxiliary logits."""
    outputs = torch.randn(2, 19, 8, 8), (torch.randn(2, 1, 8, 8),)
    labels = torch.randint(0, 19, (2, 8, 8), dtype=torch.uint8)
    args = {"loss": "ce", "workers": 0, "device": "cpu", "aux_weight": 1.0}
    plain = cross_entropy(outputs[0], labels)
    by_a_network = supervised_loss(Namespace(**args, intra=Path("a")), None)
    assert torch.equal(by_a_network(outputs, labels), plain)
    by_people = supervised_loss(Namespace(**args, intra=None), None)
    assert by_people(outputs, labels) > plain


def test_the_benchmark_hands_the_checkpoint_on_and_no_source() -> None:
    plan = Plan(ROWS, Path("out"), ["--size", "48x32"], ["--gta5", "G"], [])
    command = plan.command("IntraDA", 3)
    assert command[command.index("--intra") + 1] == str(plan.directory("AdvEnt", 3) / "checkpoint_last.pt")
    assert "--gta5" not in command
    assert "--labeller" not in command
    assert "--gta5" in plan.command("AdvEnt", 3)


OTHERS = {"script": "train_pseudo_labels", "labels": None, "labeller": ["a.pt"], "rule": "mine", "adapt_bn": False}


@pytest.mark.parametrize("said", [{"script": "train_pseudo_labels", "arguments": OTHERS}, {"arguments": OTHERS}, {}])
def test_a_network_of_unknown_training_has_no_method(trained, tmp_path, said) -> None:
    """As from another version of this code, to which somebody added a rule."""
    save_checkpoint(tmp_path / "mine.pt", load_checkpoint(trained) | {"config": said})
    assert trained_as(tmp_path / "mine.pt") is None


def test_it_has_a_name() -> None:
    settings = {"script": "train_adversarial", "discriminator": "standard", "input": "entropy", "min_entropy": False,
                "level": "multi", "intra": "runs/a/checkpoint_last.pt", "easy_share": 0.67}  # fmt: skip
    assert method_name(settings) == "IntraDA (AdvEnt, standard) + level multi"
    more = {"easy_share": 0.5, "level": "output"}
    assert method_name(settings | more) == "IntraDA (AdvEnt, standard), easy share 0.5"
    after = {"intra_after": "MinEnt from SYNTHIA", "level": "output"}
    assert method_name(settings | after) == "IntraDA after MinEnt from SYNTHIA (AdvEnt, standard)"
