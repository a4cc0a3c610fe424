"""What is deployed computes what was trained."""

import json

import pytest
import torch
from conftest import one_line_error
from torch import nn

from measure_flops import networks
from models import build_discriminator, build_segmenter
from models.deployment import Deployed, folded


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


NETWORKS = {name: build for name, build in networks().items() if not name.startswith("discriminator")}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_folding_leaves_the_logits(build):
    model = with_statistics(build())
    images = torch.rand(2, 3, 64, 96)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits, copy = model(images), folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    torch.testing.assert_close(copy(images), logits, rtol=0, atol=2e-5 * float(logits.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # the model is untouched
    for module in model.batch_norms()[:1]:  # some network has none
        module.bias.add_(1)
        assert not torch.allclose(folded(model)(images), logits)  # the statistics are in there


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
