"""DeepLab on VGG-16: its counts, its definition, its ImageNet weights, and that no statistics adapt."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import SMALL, SOURCE, one_line_error

from adaptation.adabn import adapt_batch_norm
from models import WeightsError, build_segmenter
from reporting.costs import count
from training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def published():
    """Names and shapes of torchvision's weights, of which the classifier is never held in memory."""
    with torch.device("meta"):
        return torchvision.models.vgg16(weights=None).state_dict()


@pytest.fixture
def state(published):
    """As torchvision would give them, from random numbers; the classifier is as good as empty."""
    torch.manual_seed(0)
    return {key: torch.randn(value.shape if key.startswith("features") else 1) for key, value in published.items()}


def test_it_has_the_known_counts():
    counted = count(build_segmenter("deeplab_vgg16").eval(), (256, 128))
    assert counted["parameters_training"] == counted["parameters_inference"] == 29_573_004
    assert counted["conv_macs"] == 325_545_099_264 // 16


@torch.no_grad()
def test_it_computes_the_published_definition():
    """Spelt out from its weights: three pools, conv5 dilated by 2, fc6 and fc7 by 4, four rates summed."""
    torch.manual_seed(0)
    model = build_segmenter("deeplab_vgg16", num_classes=7)
    images = torch.rand(2, 3, 48, 64)
    convolutions = [module for module in model.backbone if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 13
    x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    for i, conv in enumerate(convolutions, 1):
        dilation = 2 if i > 10 else 1
        x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=dilation, dilation=dilation))
        x = F.max_pool2d(x, 2) if i in (2, 4, 7) else x
    for conv in (model.connected[0], model.connected[2]):
        x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=4, dilation=4))
    x = sum(
        F.conv2d(x, branch.weight, branch.bias, padding=rate, dilation=rate)
        for branch, rate in zip(model.classifier.branches, (6, 12, 18, 24), strict=True)
    )
    expected = F.interpolate(x, size=(48, 64), mode="bilinear", align_corners=False)
    assert expected.std() > 1e-3
    torch.testing.assert_close(model.eval()(images), expected, rtol=1e-5, atol=1e-5)


def test_its_imagenet_weights_come_through_torchvision(state, monkeypatch):
    """The real loading path, with torchvision's download replaced by a state dict made here."""
    member = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    asked = []
    monkeypatch.setattr(type(member), "get_state_dict", lambda self, **_: asked.append(self) or state)
    model = build_segmenter("deeplab_vgg16", weights="imagenet")
    assert asked == [member]
    own = model.backbone.state_dict()
    assert len(own) == 26
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in own.items())
    assert "classifier (classifier)" in model.weights_report


def test_weights_of_another_backbone_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match="made for another backbone"):
        build_segmenter("deeplab_vgg16", weights=str(tmp_path / "resnet18.pth"))


def test_adabn_has_nothing_to_adapt():
    model = build_segmenter("deeplab_vgg16")
    assert model.batch_norms() == []
    with pytest.raises(ValueError, match="no batch normalisation, so AdaBN has nothing to adapt"):
        adapt_batch_norm(model, [torch.zeros(2, 3, 32, 32, dtype=torch.uint8)], torch.device("cpu"))


@pytest.mark.slow
def test_a_target_forward_pass_of_weight_0_is_source_only_bit_for_bit(script, game, city, tmp_path):
    both = ("--cityscapes", city, "--gta5", game, *SMALL, *SOURCE, "--model", "deeplab_vgg16", "--max-steps", 2)
    weight_0 = ("train_adversarial", "--discriminator", "none", "--min-entropy", "--lambda-entropy", 0)
    for name, command in (("source", ("train_gta5",)), ("weight-0", weight_0)):
        done = script(*command, *both, "--run-dir", tmp_path / name)
        assert done.status == 0, done.err
    last = (tmp_path / name / "checkpoint_last.pt" for name in ("source", "weight-0"))
    source, other = (load_checkpoint(path)["weights"] for path in last)
    assert source.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in source.items())

    said = one_line_error(script("eval", tmp_path / "source/checkpoint_last.pt", "--adapt-bn", "--workers", 0))
    assert "--adapt-bn: this network has no batch normalisation, so AdaBN has nothing to adapt" in said
    refused = script(*weight_0, *both, "--bn-statistics", "target", "--run-dir", tmp_path / "no")
    assert "--bn-statistics target: DeepLab-VGG16 has no batch normalisation" in one_line_error(refused)
