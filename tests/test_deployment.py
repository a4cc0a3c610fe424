"""What is deployed computes what was trained."""

import json

import pytest
import torch
from conftest import each_network, one_line_error
from torch import nn

from models import SEGMENTERS, build_discriminator, build_segmenter
from models.deployment import Deployed, folded
from models.exporting import Coarse, enlarged


def with_statistics(model):
    """As after a training: no scale is 1, no shift 0."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


BEFORE_A_RECTIFIER = {("pidnet", "s"): 11, ("pidnet", "m"): 11, ("pidnet", "l"): 15}
"""Batch normalisation that follows no convolution, and so stays."""


@pytest.mark.parametrize("build", each_network())
@torch.no_grad()
def test_folding_leaves_the_logits(build):
    model = with_statistics(build())
    images = torch.rand(2, 3, 64, 96)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits, copy = model(images), folded(model)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    assert left == BEFORE_A_RECTIFIER.get((model.options["name"], model.options["backbone"]), 0)
    rounding = 1e-3 if left else 2e-5  # PIDNet with random weights lets it grow
    torch.testing.assert_close(copy(images), logits, rtol=0, atol=rounding * float(logits.abs().max()))
    pixels = (images[:1] * 255).byte().permute(0, 2, 3, 1)
    coarse, expected = Coarse(model, images[:1]), model(pixels.permute(0, 3, 1, 2) / 255)
    assert coarse.early  # what is exported is rearranged more
    assert coarse.centred
    found = enlarged(coarse(pixels), (64, 96))
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding * float(expected.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # the model is untouched
    for module in model.batch_norms()[:1]:  # some network has none
        module.bias.add_(1)
        assert not torch.allclose(folded(model)(images), logits)  # the statistics are in there


def test_a_network_that_is_built_otherwise_is_exported_as_it_is():
    """One that looks at the normalised picture before a convolution, and whose logits are finer than its features."""

    class Other(SEGMENTERS["tiny"]):
        def features(self, images):
            return super().features(self.normalise(images).tanh())

        def decode(self, features, size):
            return super().decode(features, size).round(decimals=1)

    model = with_statistics(Other())
    coarse = Coarse(model, torch.rand(1, 3, 48, 64))
    assert not coarse.centred
    assert not coarse.early
    given = torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(coarse(given).argmax(1), model(given.permute(0, 3, 1, 2) / 255).argmax(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_logits_near_the_networks(dtype):
    model = with_statistics(build_segmenter("bisenet"))
    images = torch.rand(1, 3, 64, 64)
    logits = model(images).detach()
    found = Deployed(model, dtype)(images)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    error = float((found - logits).abs().max() / logits.abs().max())
    assert 0 < error < 0.05


def test_discriminators_are_deployed_too():
    model, maps = build_discriminator("depthwise"), torch.rand(1, 19, 64, 64)
    torch.testing.assert_close(Deployed(model)(maps), model(maps).detach())


def test_eval_in_half_precision_is_near_fp32_and_says_which(script, trained, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        path = tmp_path / f"{precision}.json"
        done = script("eval", trained, "--precision", precision, "--json", path, "--device", "cpu")
        assert done.status == 0, done.err
        (found[precision],) = json.loads(path.read_text())["evaluations"]
    assert found["bf16"]["precision"] == "bf16"
    assert found["bf16"]["accuracy"] == pytest.approx(found["fp32"]["accuracy"], abs=0.05)
    assert found["bf16"]["entropy"] != found["fp32"]["entropy"]
    assert "--precision" in one_line_error(script("eval", trained, "--precision", "int8"))


def test_costs_show_the_deployed_network_beside_plain_fp32(script):
    done = script("measure_flops", "--only", "bisenet resnet18", "--size", "64x64", "--runs", 1, "--precision", "bf16",
                  "--device", "cpu")  # fmt: skip
    assert done.status == 0, done.err
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in done.out.splitlines() if "ms" not in line]
    assert {row[1] for row in rows if row[:1] == ["bisenet resnet18"] and "p" in row[1]} >= {"fp32", "bf16, deployed"}
