"""The tables of networks and discriminators: each keeps the contract, and a new one is offered, counted, explained."""

import json

import pytest
import torch
from conftest import SMALL, SOURCE, each_network, one_line_error, picture, save, upper
from torch import nn

import measure_flops
import models
from adaptation.mean_teacher import main_output
from models.discriminator import DISCRIMINATORS, Kind
from models.gradcam import layer_named
from models.layers import resize
from models.segmenter import Segmenter, Settings
from models.weights import ImageNet, WeightsError, load_backbone
from reporting.results import experiments, read_run
from reporting.student_tables import student_tables
from reporting.tables import assignment_tables
from training.flags import training_parser


@pytest.mark.parametrize("build", each_network())
def test_a_network_keeps_the_contract(build):
    """Height and width are no multiple of 8, and 7 classes are as good as 19."""
    model = build(num_classes=7).eval()
    assert model.options == model.options | build.keywords | {"name": build.args[0], "num_classes": 7}
    images = torch.rand(2, 3, 41, 67)
    with torch.no_grad():
        features = model.features(images)
        logits = model(images)
        assert torch.equal(logits, model.decode(features, (41, 67)))
        trained, auxiliary = model.train()(images)
    assert features[0].shape[::2] == (2, 6)
    assert features[0].shape[3] == 9
    assert [tuple(maps.shape) for maps in (logits, trained)] == [(2, 7, 41, 67)] * 2
    shapes = [tuple(maps.shape) for maps in auxiliary]  # the last may say where boundaries are
    assert shapes in ([(2, 7, 41, 67)] * len(shapes), [(2, 7, 41, 67)] * (len(shapes) - 1) + [(2, 1, 41, 67)])
    assert model.weights_report
    assert main_output(model, images).shape == (2, 7, 41, 67), "decode asks the network's own flag"

    needed = [name for name, p in model.named_parameters() if not name.startswith("auxiliary")]
    model.eval()(images).sum().backward()
    reached = [name for name, p in model.named_parameters() if p.grad is not None]
    assert reached == needed, "exactly the parts named auxiliary* are for training only"
    assert model.inference_parameters() == sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert bool(auxiliary) == (len(reached) < len(list(model.parameters())))


@pytest.mark.parametrize(("name", "network"), models.SEGMENTERS.items())
def test_a_network_says_what_others_need_to_know(name, network):
    model = models.build_segmenter(name)
    assert model.options["backbone"] == network.default_backbone()
    assert network.title
    assert all(network.backbones.values())
    layer_named(model, network.cam_layer)
    parts = {part for part, _ in models.build_segmenter(name, **network.multi_level_options or {}).named_children()}
    assert network.rate_factors.keys() <= parts
    assert "paper" in network.settings
    flags = {action.dest for action in training_parser("", source=False)._actions}
    for settings in network.settings.values():
        assert settings._asdict().keys() <= flags
        assert settings.batch_size >= 2
        assert settings.lr > 0
    if network.multi_level_options is not None:
        adapted = models.build_segmenter(name, **network.multi_level_options).train()
        assert adapted(torch.rand(2, 3, 33, 33))[1][0].shape[1] == 19


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lraspp", "deeplab_vgg16", "pidnet"])
def test_every_script_trains_it_and_its_checkpoint_is_used(name, script, game, city, tmp_path):
    source = ("--gta5", game, *SOURCE)
    runs = {
        "train_cityscapes": (), "train_gta5": source, "train_adversarial": source, "train_fda": source,
        "train_dacs": source, "train_sac": (*source, "--views", 2),
        "train_pseudo_labels": (*source, "--labeller", tmp_path / "train_gta5", "--max-class-share", 1),
    }  # fmt: skip
    slow = ("--lr", 1e-5)  # the statistics of one step fit no network that moved far: its outputs would be no numbers
    for which, flags in runs.items():
        done = script(which, "--cityscapes", city, *SMALL, *slow, "--model", name, "--max-steps", 1, *flags,
                      "--run-dir", tmp_path / which)  # fmt: skip
        assert done.status == 0, done.err
    weights = tmp_path / "train_gta5/checkpoint_last.pt"
    save(tmp_path / "x.png", picture(1))
    for command in (("eval", weights, "--workers", 0), ("predict", weights, tmp_path / "x.png", "--cam", "road", "--at",
                    "3,3", "--out", tmp_path / "out", "--device", "cpu")):  # fmt: skip
        done = script(*command)
        assert done.status == 0, done.err
    assert (tmp_path / "out/x_cam-road.png").exists()
    multi = ("train_adversarial", "--cityscapes", city, *SMALL, "--model", name, *source, "--level", "multi",
             "--max-steps", 1, "--run-dir", tmp_path / "multi")  # fmt: skip
    if models.SEGMENTERS[name].multi_level_options is None:
        assert "has no auxiliary logits" in one_line_error(script(*multi))
    else:
        assert script(*multi).status == 0


def test_a_backbone_that_a_network_has_not_is_refused(script):
    done = script("benchmarks.inference", "--model", "deeplabv2", "--backbone", "resnet18", "--device", "cpu")
    assert "DeepLabV2 on backbone 'resnet18': expected one of resnet101" in one_line_error(done)


# A network that is not there yet


class Toy(Segmenter):
    """Three strided convolutions and a classifier."""

    title = "Toy-Net"
    backbones = {"plain": "three convolutions"}  # noqa: RUF012
    settings = {"paper": Settings(4, 0.125, 1e-4, aux_weight=1.0, flip=0.25)}  # noqa: RUF012
    cam_layer = "body"

    def __init__(self, num_classes=19, backbone="plain", weights="none", allow_partial_weights=False):
        super().__init__(backbone)
        self.body = nn.Sequential(*(nn.Conv2d(n, 8, 3, stride=2, padding=1) for n in (3, 8, 8)))
        self.classifier = nn.Conv2d(8, num_classes, 1)
        self.weights_report = load_backbone(self.body, backbone, weights, allow_partial_weights)

    def features(self, images):
        return (self.body(self.normalise(images)),)

    def decode(self, features, size):
        logits = resize(self.classifier(features[0]), size)
        return (logits, ()) if self.training else logits


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(models.SEGMENTERS, "toy", Toy)


@pytest.mark.usefixtures("toy")
def test_a_new_network_is_a_line_in_the_table(script, city, tmp_path):
    shown = " ".join(script("train_cityscapes", "--help-all").out.split())  # lines break anywhere
    assert "toy: Toy-Net" in shown
    assert "toy 0.125" in shown

    run = tmp_path / "run"
    assert script(*upper(city, run, "--model", "toy", "--max-steps", 1)).status == 0
    config = json.loads((run / "config.json").read_text())["arguments"]
    assert (config["backbone"], config["flip"]) == ("plain", 0.25)

    save(tmp_path / "x.png", picture(1))
    done = script("predict", run / "checkpoint_last.pt", tmp_path / "x.png", "--cam", "road", "--at", "3,3",
                  "--out", tmp_path / "out", "--device", "cpu")  # fmt: skip
    assert done.status == 0, done.err
    assert (tmp_path / "out/x_cam-road.png").exists()

    done = script("measure_flops", "--only", "toy", "--size", "64x64", "--no-latency")
    assert "| toy plain" in done.out
    done = script("benchmarks.inference", "--model", "toy", "--sizes", "64x32", "--batches", 1, "--rounds", 1,
                  "--precisions", "fp32", "--device", "cpu")  # fmt: skip
    assert "toy plain" in done.out

    tables = {table.name: table for table in assignment_tables(experiments([read_run(run)]), {})}
    assert "Toy-Net, three convolutions" in [row[0] for row in tables["assignment-1"].rows]
    assert "d) Toy-Net, three convolutions: upper bound" in [row[0] for row in tables["assignment-4"].rows]
    assert "toy plain" in [row[0] for row in tables["costs-networks"].rows]


@pytest.mark.usefixtures("toy")
def test_what_a_new_network_has_not_is_said_in_a_line(script, game, city, tmp_path):
    flags = ("--cityscapes", city, "--model", "toy", "--run-dir", tmp_path / "run")
    assert "Toy-Net has paper only" in one_line_error(script("train_cityscapes", *flags, "--settings", "report"))
    assert "no ImageNet weights of plain" in one_line_error(script("train_cityscapes", *flags))
    more = ("--gta5", game, "--level", "multi")
    assert "Toy-Net has no auxiliary logits" in one_line_error(script("train_adversarial", *flags, *more))


def test_the_costs_of_every_network_keep_their_names(monkeypatch):
    monkeypatch.delitem(models.SEGMENTERS, "tiny")
    assert list(measure_flops.networks()) == [
        "bisenet resnet18",
        "bisenet resnet101",
        "deeplabv2 resnet101",
        "deeplabv2 resnet101 multi-level",
        "lraspp mobilenet_v3_large",
        "deeplab_vgg16 vgg16",
        "pidnet s",
        "pidnet m",
        "pidnet l",
        "discriminator standard",
        "discriminator depthwise",
        "discriminator shallow",
        "discriminator class",
    ]


# Weights of another kind


def test_a_backbone_brings_weights_of_its_own(tmp_path):
    body, source = nn.Linear(2, 3), nn.Linear(2, 3)
    published = {**source.state_dict(), "head.weight": torch.zeros(1)}
    own = ImageNet("the authors' file", lambda: published, classifier=("head",))
    said = load_backbone(body, "small", "imagenet", imagenet=own)
    assert said == "small: loaded 2 tensors from the authors' file, left its ImageNet classifier (head) out"
    assert torch.equal(body.weight, source.weight)
    torch.save(published, tmp_path / "small.pth")
    assert "(head) out" in load_backbone(nn.Linear(2, 3), "small", str(tmp_path / "small.pth"), imagenet=own)
    with pytest.raises(WeightsError, match="left over"):
        load_backbone(body, "small", str(tmp_path / "small.pth"))


# Discriminators


def test_a_new_discriminator_is_a_line_in_the_table(script, game, city, tmp_path, monkeypatch):
    def pointwise(in_channels, out_channels):
        return nn.Conv2d(in_channels, out_channels, 1, stride=2)

    monkeypatch.setitem(DISCRIMINATORS, "pointwise", Kind(pointwise, "1x1 convolutions"))
    assert "pointwise: 1x1 convolutions" in " ".join(script("train_adversarial", "--help-all").out.split())
    done = script("train_adversarial", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--max-steps", 1,
                  "--discriminator", "pointwise", "--run-dir", tmp_path / "run")  # fmt: skip
    assert done.status == 0, done.err
    assert "| discriminator pointwise" in script("measure_flops", "--only", "pointwise", "--no-latency").out
    tables = {table.name: table for table in (*assignment_tables([], {}), *student_tables([], {}))}
    assert "pointwise discriminator" in [row[0] for row in tables["assignment-3"].rows]
    assert "discriminator pointwise" in [row[0] for row in tables["costs-discriminators"].rows]
    assert "pointwise" in tables["report-5"].header


@pytest.mark.parametrize(
    ("name", "batch_size", "lr", "weight_decay"),
    [("lraspp", 16, 1e-2, 5e-4), ("deeplab_vgg16", 4, 2.5e-4, 5e-4), ("pidnet", 12, 1e-2, 5e-4)],
)
def test_other_networks_have_their_papers_settings(name, batch_size, lr, weight_decay):
    assert models.SEGMENTERS[name].settings["paper"][:3] == (batch_size, lr, weight_decay)
