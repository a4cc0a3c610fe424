"""train_pseudo_labels.py: thresholds, what is kept, what is reused, and what an interruption leaves.

Long, since every test needs the same labellers and pictures.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    SMALL,
    SOURCE,
    assert_resumes_exactly,
    assert_same_runs,
    one_line_error,
    peak_growth,
    upper,
    write_cityscapes,
)
from PIL import Image
from torch import nn

from adaptation.pseudo_labels import IAST, RULES, ConfidenceHistogram, pseudo_label
from datasets import cityscapes
from datasets.labels import CLASS_NAMES
from reporting.results import read_run
from train_pseudo_labels import labelled_by
from training.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint
from training.labelling import pseudo_labelled
from training.methods import method_name
from utils.files import read_json

CPU = torch.device("cpu")


def by_bdl(network, data, folder, made_from, percentile=50.0):
    """The set with labels by BDL's rule."""
    settings = {"percentile": percentile, "at_most": 0.9}
    return pseudo_labelled(network, data, folder, made_from, "bdl", settings, 0, CPU)


def exact(confidence, percentile, at_most):
    """As BDL's and FDA's published code has it, on all confidences of a class at once."""
    if len(confidence) == 0:
        return at_most
    ordered = np.sort(confidence)
    return min(at_most, ordered[min(len(ordered) - 1, round(len(ordered) * percentile / 100))])


@pytest.mark.parametrize("percentile", [0, 10, 50, 66, 100])
@pytest.mark.parametrize("at_most", [0.9, 1.0])
def test_streamed_percentiles_equal_exact_ones(percentile, at_most):
    rng = np.random.default_rng(percentile)
    histogram, seen = ConfidenceHistogram(6), {c: [] for c in range(6)}
    for _ in range(20):  # class 5 never appears, class 4 once
        prediction = rng.integers(0, 4, (2, 15, 20))
        confidence = (rng.random(prediction.shape) ** (1 + prediction)).astype(np.float32)
        for c in range(4):
            seen[c] += confidence[prediction == c].tolist()
        histogram.update(torch.from_numpy(prediction), torch.from_numpy(confidence))
    histogram.update(torch.tensor([4]), torch.tensor([0.4242]))
    seen[4] = [0.4242]
    found = histogram.thresholds(percentile, at_most)
    for c in range(6):
        assert found[c].item() == pytest.approx(exact(np.array(seen[c]), percentile, at_most), abs=1e-3)
    assert found[5].item() == pytest.approx(at_most)


def test_probabilities_of_one_and_of_zero_are_counted():
    histogram = ConfidenceHistogram(1)
    histogram.update(torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert histogram.thresholds(50, 1.0).item() == pytest.approx(1.0, abs=1e-3)
    assert histogram.thresholds(0, 1.0).item() == 0


def test_kept_pixels_are_exactly_those_at_or_over_the_threshold():
    thresholds = torch.tensor([0.9, 0.5, 0.0])
    below, above = np.nextafter(np.float32(0.9), np.float32(0)), np.nextafter(np.float32(0.9), np.float32(1))
    prediction = torch.tensor([[0, 0, 0, 1, 1, 2]])
    confidence = torch.tensor([[float(below), 0.9, float(above), 0.4999, 0.5, 0.0]])
    assert pseudo_label(prediction, confidence, thresholds).tolist() == [[255, 0, 0, 255, 1, 2]]


class Colours(nn.Module):
    """A network whose logits are the picture's channels, so that a test knows what it predicts."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images):
        nothing = torch.full((len(images), 16, *images.shape[-2:]), -1e4)
        return torch.cat((self.factor * images, nothing), dim=1)


def labels_of(data, factor=1.0, percentile=50.0, at_most=0.9):
    """The definition, on the whole set's probabilities at once."""
    probability = torch.stack([(factor * data.image(i) / 255).softmax(0) for i in range(len(data))])
    confidence, prediction = probability.max(1)
    limits = [exact(confidence[prediction == c].numpy(), percentile, at_most) for c in range(3)]
    return prediction, confidence, limits


@pytest.mark.parametrize("percentile", [50.0, 66.0])
def test_labels_follow_the_definition_and_are_summed_up(tmp_path, city, percentile):
    dull = np.full((32, 48, 3), 7, dtype=np.uint8)  # nothing is sure in it
    dull[:16, :, 0] = dull[16:, :, 1] = 8
    Image.fromarray(dull).save(next((city / "leftImg8bit/train").rglob("*.png")))
    data = cityscapes(city, "train", (48, 32), labelled=False)
    found = by_bdl(Colours(9.0), data, tmp_path / "labels", {"n": 1}, percentile)
    prediction, confidence, limits = labels_of(data, 9.0, percentile)
    (home,) = (tmp_path / "labels").iterdir()
    summary = json.loads((home / "summary.json").read_text())
    kept = np.zeros(19, dtype=int)
    for index in range(len(data)):
        label = found.label(index)
        threshold = torch.tensor([row["threshold"] for row in summary["classes"].values()])[prediction[index]]
        expected = torch.where(confidence[index] >= threshold, prediction[index], 255)
        assert torch.equal(label.long(), expected)
        kept += np.bincount(label.flatten().numpy(), minlength=256)[:19]
        assert found.samples[index].image == data.samples[index].image
    empty = [index for index in range(len(data)) if data.image(index).max() == 8]
    assert all((found.label(index) == 255).all() for index in empty)
    assert len(empty) == 1
    for c, name in enumerate(CLASS_NAMES):
        row = summary["classes"][name]
        assert row["kept_pixels"] == kept[c]
        if c < 3:
            assert row["threshold"] == pytest.approx(limits[c], abs=1e-3)
            assert row["kept_share"] == kept[c] / int((prediction == c).sum())
        else:
            assert (row["predicted_pixels"], row["kept_share"]) == (0, None)
            assert row["threshold"] == pytest.approx(0.9)
    assert summary["kept_share"] == kept.sum() / prediction.numel()
    # In Cityscapes' layout: the loader reads them where the pictures lie beside them.
    (home / "leftImg8bit").symlink_to(city / "leftImg8bit")
    again = cityscapes(home, "train", (48, 32))
    assert [torch.equal(again.label(i), found.label(i)) for i in range(len(data))] == [True] * len(data)


def test_labels_are_reused_only_when_made_from_the_same(tmp_path, city, capsys):
    data = cityscapes(city, "train", (48, 32), labelled=False)

    def make(made_from, percentile, source=data):
        labelled = by_bdl(Colours(), source, tmp_path / "labels", made_from, percentile)
        return labelled, "used again" in capsys.readouterr().out

    first, reused = make({"n": 1}, 50.0)
    assert not reused
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").rglob("*.png")}
    assert len(stamps) == 4
    assert make({"n": 1}, 50.0)[1]
    for other in (({"n": 2}, 50.0), ({"n": 1}, 66.0), ({"n": 1}, 50.0, cityscapes(city, "val", (48, 32), False)),
                  ({"n": 1}, 50.0, cityscapes(city, "train", (24, 16), False))):  # fmt: skip
        labelled, reused = make(*other)
        assert not reused
        assert labelled.samples[0].label not in stamps
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # the old ones stay as they were
    first.samples[2].label.unlink()
    assert not make({"n": 1}, 50.0)[1]  # one is missing: made again
    assert first.samples[2].label.is_file()


def test_labels_that_were_replaced_are_made_again(tmp_path, city, capsys):
    data = cityscapes(city, "train", (48, 32), labelled=False)

    def make():
        labelled = by_bdl(Colours(), data, tmp_path / "labels", {"n": 1})
        return [sample.label.read_bytes() for sample in labelled.samples], capsys.readouterr().out

    whole, _ = make()
    (summary,) = (tmp_path / "labels").glob("*/summary.json")
    vouching = summary.read_text()
    labels = sorted(summary.parent.rglob("*.png"))
    assert "used again" in make()[1]

    def swap():
        one, other = (path.read_bytes() for path in labels[:2])
        labels[0].write_bytes(other)
        labels[1].write_bytes(one)

    def alter():
        status = labels[0].stat()
        Image.fromarray(255 - np.array(Image.open(labels[0]))).save(labels[0])
        os.utime(labels[0], ns=(status.st_atime_ns, status.st_mtime_ns))

    earlier = json.dumps({key: value for key, value in json.loads(vouching).items() if key != "labels_sha256"})
    damages = [swap, alter] + [lambda text=text: summary.write_text(text) for text in (earlier, "", "null", "[" * 9999)]
    for damage in damages:
        damage()
        again, said = make()
        assert "not those that its summary vouches for; made again" in said
        assert again == whole
        assert summary.read_text() == vouching


KILLED = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
import test_self_training as t
import training.checkpoint as checkpoint
replace, done = os.replace, []
def dies(source, destination):
    if len(done) == 2:
        os.kill(os.getpid(), 9)  # the third label is written to its temporary file, and goes no further
    done.append(replace(source, destination))
checkpoint.os.replace = dies
data = t.cityscapes(sys.argv[1], "train", (48, 32), labelled=False)
t.by_bdl(t.Colours(), data, Path(sys.argv[2]), {"n": 1})
"""


@pytest.mark.slow
def test_a_killed_pass_leaves_nothing_that_is_trusted(tmp_path, city, capsys):
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", KILLED, city, tmp_path / "labels"], cwd=root, env=environment)
    assert done.returncode == -9
    left = list((tmp_path / "labels").rglob("*.png"))
    assert len([path for path in left if not path.name.startswith(".")]) == 2
    assert not list((tmp_path / "labels").rglob("summary.json"))
    for path in left:
        Image.open(path).load()  # what has a label's name is a whole label
    data = cityscapes(city, "train", (48, 32), labelled=False)
    again = by_bdl(Colours(), data, tmp_path / "labels", {"n": 1})
    assert "used again" not in capsys.readouterr().out
    fresh = by_bdl(Colours(), data, tmp_path / "fresh", {"n": 1})
    assert [torch.equal(again.label(i), fresh.label(i)) for i in range(4)] == [True] * 4


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """Probabilities of 450 more pictures would take 1.3 GB, their classes and confidences 80 MB."""
    grown = []
    for count in (50, 50, 500):  # the first is the warm-up
        root = write_cityscapes(tmp_path / str(len(grown)), counts=(("train", 4),), labels=False, size=(256, 128))
        data = cityscapes(root, "train", (256, 128), labelled=False)
        data.samples.extend(data.samples * (count // 4))
        grown.append(peak_growth(partial(by_bdl, Colours(), data, tmp_path / f"labels{len(grown)}", {})))
    if None in grown:
        pytest.skip("the system does not tell the peak of memory")
    assert grown[2] - grown[1] < 30


# The script


@pytest.fixture
def command(game, city, trained):
    for label_file in (city / "gtFine/train").rglob("*.png"):
        label_file.write_bytes(b"")  # the target's train labels are never opened

    def build(run_dir, *more):
        return ("train_pseudo_labels", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2,
                "--labeller", trained, "--run-dir", run_dir, *more)  # fmt: skip

    return build


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["cbst", "iast"])
def test_rounds_by_the_other_rules_resume_exactly(script, command, tmp_path, monkeypatch, rule):
    monkeypatch.setattr(IAST, "first", 0.1)  # or a network that has learnt nothing labels nothing
    flags = ("--rule", rule, "--rounds", 2, "--continue", "--label-flip", "--max-class-share", 1)
    assert_resumes_exactly(script, monkeypatch, tmp_path, lambda run_dir, *more: command(run_dir, *flags, *more))


def test_a_round_that_was_killed_while_it_labelled_starts_from_its_labeller(script, command, tmp_path, monkeypatch):
    flags = ("--rule", "cbst", "--rounds", 2, "--continue", "--max-class-share", 1)
    assert script(*command(tmp_path / "straight", *flags)).status == 0

    def killed(labeller, args, run, target):
        if args.round == 2:
            run._claim.release()  # as the end of the process does
            raise KeyboardInterrupt
        return labelled_by(labeller, args, run, target)

    with monkeypatch.context() as patch:
        patch.setattr("train_pseudo_labels.labelled_by", killed)
        assert script(*command(tmp_path / "killed", *flags)).status == 130
    assert not list((tmp_path / "killed/round-2").glob("*.pt"))
    assert script(*command(tmp_path / "killed", *flags, "--resume")).status == 0
    assert_same_runs(tmp_path / "straight", tmp_path / "killed")


def test_labels_of_one_class_stop_the_script(script, command, trained, tmp_path):
    content = load_checkpoint(trained)
    biases = [name for name, tensor in content["weights"].items() if name.endswith("bias") and tensor.shape == (19,)]
    assert biases
    for name in biases:
        content["weights"][name][CLASS_NAMES.index("sky")] += 100
    save_checkpoint(tmp_path / "sky.pt", content)
    flags = ("--labeller", tmp_path / "sky.pt")
    assert "100% of all labelled pixels are sky" in one_line_error(script(*command(tmp_path / "stopped", *flags)))
    assert not list((tmp_path / "stopped").rglob("summary.json"))
    assert script(*command(tmp_path / "on", *flags, "--max-class-share", 1, "--max-steps", 1)).status == 0


def test_self_training_runs_and_resumes_exactly(script, command, tmp_path, monkeypatch):
    flags = ("--percentile", 66, "--beta", 0.05, "--adapt-bn", "--bn-statistics", "target")
    assert_resumes_exactly(script, monkeypatch, tmp_path, lambda run_dir, *more: command(run_dir, *flags, *more))
    assert (tmp_path / "straight/pseudo-labels").is_dir()
    summary = json.loads(next((tmp_path / "straight/pseudo-labels").rglob("summary.json")).read_text())
    assert summary["made_from"]["percentile"] == 66
    assert summary["made_from"]["adapt_bn"] == 2
    with monkeypatch.context() as patch:
        patch.setattr("train_pseudo_labels.adapt_to", lambda *_: pytest.fail("the labels are there"))
        more = ("--pseudo-labels", tmp_path / "straight/pseudo-labels", "--max-steps", 1)
        assert "used again" in script(*command(tmp_path / "shared", *flags, *more)).out
    assert script("eval", tmp_path / "straight/checkpoint_last.pt", "--workers", 0).status == 0


def test_a_run_from_before_there_were_rules_goes_on_by_bdls(script, command, tmp_path):
    run = tmp_path / "mine"
    assert script(*command(run, "--max-steps", 1)).status == 0
    (summary,) = (run / "pseudo-labels").rglob("summary.json")
    made_from = json.loads(summary.read_text())["made_from"]
    assert made_from.keys() == {"labeller_sha256", "adapt_bn", "percentile", "at_most", "size", "pictures"}
    config = json.loads((run / "config.json").read_text())
    assert config["arguments"].pop("rule") == "bdl"
    assert config["arguments"].pop("labeller_method") == ["upper bound"]
    assert config["arguments"].pop("earlier_networks") == ["labeller tiny narrow, 2 steps"]
    (run / "config.json").write_text(json.dumps(config))
    done = script(*command(run, "--max-steps", 1, "--resume"))
    assert done.status == 0, done.err
    assert "used again" in done.out
    assert read_run(run).settings["rule"] == "bdl"


class Surest:
    """Labels the surest pixel of each picture, once it has seen the set."""

    title, help, settings = "surest pixels", "the surest pixel of each picture", {"number": "percentile"}

    def __init__(self, num_classes, device, number):
        self.thresholds, self.number, self.seen = torch.zeros(num_classes), number, 0

    def observe(self, probabilities):
        assert torch.allclose(probabilities.sum(dim=1), torch.ones(()))
        self.seen += len(probabilities)

    def label(self, probabilities):
        assert (self.seen, self.number, probabilities.shape[1]) == (4, 7.0, 19)
        confidence, classes = probabilities.max(dim=1)
        surest = confidence == confidence.amax(dim=(1, 2), keepdim=True)
        return torch.where(surest, classes, 255).to(torch.uint8)


def test_a_rule_is_a_class_and_a_line(script, command, tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "surest", Surest)
    done = script(*command(tmp_path / "mine", "--max-steps", 1, "--rule", "surest", "--percentile", 7,
                           "--max-class-share", 1))  # fmt: skip
    assert done.status == 0, done.err
    (summary,) = (tmp_path / "mine/pseudo-labels").rglob("summary.json")
    made_from = json.loads(summary.read_text())["made_from"]
    assert (made_from["rule"], made_from["number"], "at_most" in made_from) == ("surest", 7, False)
    assert json.loads(summary.read_text())["kept_share"] > 0
    run = read_run(tmp_path / "mine")
    assert method_name(run.settings).startswith("surest pixels")


def test_the_pseudo_labels_are_what_is_trained_on(script, command, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("train_pseudo_labels.pseudo_labelled",
                        lambda *arguments: seen.append(pseudo_labelled(*arguments)) or seen[-1])  # fmt: skip
    kept = {}
    for confidence in (0.0, 1.0):  # every pixel; only the surest of each class
        flags = ("--max-steps", 1, "--confidence", confidence, "--percentile", 100)
        done = script(*command(tmp_path / str(confidence), *flags))
        assert done.status == 0, done.err
        kept[confidence] = sum(int((seen[-1].label(i) != 255).sum()) for i in range(4))
    metrics = [
        json.loads((tmp_path / str(c) / "metrics.jsonl").read_text().splitlines()[0])["train"] for c in (0.0, 1.0)
    ]
    assert kept[0.0] == 4 * 48 * 32
    assert 0 < kept[1.0] < kept[0.0]
    assert metrics[0]["loss"] == metrics[1]["loss"]
    assert metrics[0]["loss_target"] != metrics[1]["loss_target"]


def test_statistics_of_the_target_alone_are_kept_on_request(script, command, tmp_path):
    states = {}
    for kept in ("both", "target"):
        flags = ("--max-steps", 1, "--bn-statistics", kept)
        assert script(*command(tmp_path / kept, *flags)).status == 0
        states[kept] = load_checkpoint(tmp_path / kept / "checkpoint_last.pt")["weights"]
    changed = {name for name, value in states["both"].items() if not torch.equal(value, states["target"][name])}
    assert changed == {name for name in states["both"] if "running" in name}


def test_a_round_is_labelled_by_the_one_before(script, command, tmp_path, trained, monkeypatch):
    labellers = []

    def recorded(network, *arguments):
        labellers.append(network)
        return pseudo_labelled(network, *arguments)

    monkeypatch.setattr("train_pseudo_labels.pseudo_labelled", recorded)
    done = script(*command(tmp_path / "rounds", "--rounds", 2, "--max-steps", 1))
    assert done.status == 0, done.err
    for labeller, path in zip(labellers, (trained, tmp_path / "rounds/round-1/checkpoint_last.pt"), strict=True):
        expected = build_from_checkpoint(load_checkpoint(path), path).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in labeller.state_dict().items())
    assert (tmp_path / "rounds/round-2/result.json").is_file()
    again = script(*command(tmp_path / "rounds", "--rounds", 2, "--max-steps", 1, "--resume"))
    assert again.status == 0, again.err
    assert again.out.count("used again") == 2
    one, other = (read_json(tmp_path / f"rounds/round-{n}/config.json")["arguments"] for n in (1, 2))
    assert one["labeller"] == [str(trained)]
    assert other["labeller"] == [str(tmp_path / "rounds/round-1/checkpoint_last.pt")]
    assert other["earlier_networks"] == ["labeller tiny narrow, 1 step (labeller tiny narrow, 2 steps)"]


def test_several_labellers_are_averaged_and_another_one_is_noticed(script, command, city, tmp_path, trained):
    other = tmp_path / "other"
    assert script(*upper(city, other, "--max-steps", 1, "--seed", 5, "--cityscapes", write_cityscapes(
        tmp_path / "whole"))).status == 0  # fmt: skip
    softened = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for path, soft in zip((trained, other / "checkpoint_last.pt"), softened, strict=True):
        content = load_checkpoint(path)  # two networks that are sure of different classes would leave a tie
        for name in [name for name in content["weights"] if name.startswith("classifier.")]:
            content["weights"][name] *= 0.02
        save_checkpoint(soft, content)
    both = ("--labeller", *softened, "--max-steps", 1, "--confidence", 1)
    shared = ("--pseudo-labels", tmp_path / "shared")
    done = script(*command(tmp_path / "first", *both, *shared))
    assert done.status == 0, done.err
    networks = [build_from_checkpoint(load_checkpoint(p), p).eval() for p in softened]
    labels = list((tmp_path / "shared").rglob("*.png"))
    data = cityscapes(city, "train", (48, 32), labelled=False)
    for index, sample in enumerate(data.samples):
        with torch.no_grad():
            mean = sum(network(data.image(index)[None] / 255).softmax(1) for network in networks)[0]
        (path,) = [path for path in labels if sample.name in path.name]
        found = torch.from_numpy(np.array(Image.open(path))).long()
        first, second = mean.topk(2, dim=0).values
        told = (found != 255) & (first - second > 1e-5)  # two networks, each sure of another class, are even
        assert told.sum() > 0.25 * told.numel()
        assert torch.equal(found[told], mean.argmax(0)[told])
    assert "used again" in script(*command(tmp_path / "twin", *both, *shared, "--seed", 1)).out
    softened[1].write_bytes(softened[0].read_bytes())
    message = one_line_error(script(*command(tmp_path / "first", *both, *shared, "--resume")))
    assert "labeller" in message
    assert "No such file" in one_line_error(script(*command(tmp_path / "no", "--labeller", tmp_path / "no.pt")))
