"""LR-ASPP: torchvision's network, its counts, its ImageNet weights, and statistics that follow short runs."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from models import WeightsError, build_segmenter
from reporting.costs import count


def test_it_has_the_known_counts():
    counted = count(build_segmenter("lraspp").eval(), (1024, 512))
    assert counted["parameters_training"] == counted["parameters_inference"] == 3_221_198
    assert counted["conv_macs"] == 3_944_947_584


@pytest.mark.parametrize("size", [(64, 96), (41, 67)])
@torch.no_grad()
def test_with_equal_weights_its_logits_are_torchvisions(size):
    torch.manual_seed(0)
    model = build_segmenter("lraspp", num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=7).eval()
    named = {key.replace("head.", "classifier."): value for key, value in model.state_dict().items()}
    theirs.load_state_dict({key: value for key, value in named.items() if not key.startswith("normalise")})
    images = torch.rand(2, 3, *size)
    expected = theirs(model.normalise(images))["out"]
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


def test_its_statistics_follow_the_batches_as_those_of_the_other_networks_do():
    momenta = [module.momentum for module in build_segmenter("lraspp").modules() if isinstance(module, nn.BatchNorm2d)]
    assert momenta == [0.1] * 47


def test_its_imagenet_weights_come_through_torchvision(monkeypatch):
    """The real loading path, with torchvision's download replaced by a state dict made here."""
    state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    member = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1
    asked = []
    monkeypatch.setattr(type(member), "get_state_dict", lambda self, **_: asked.append(self) or state)
    model = build_segmenter("lraspp", weights="imagenet")
    assert asked == [member]
    own = model.backbone.state_dict()
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in own.items())
    assert f"loaded {len(own)} tensors" in model.weights_report
    assert "classifier (classifier)" in model.weights_report


def test_weights_of_another_backbone_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match="made for another backbone"):
        build_segmenter("lraspp", weights=str(tmp_path / "resnet18.pth"))
