"""From a loss to a step: precision, accumulation, the scaler's skips told apart from failures."""

import json
from argparse import Namespace

import pytest
import torch
from conftest import assert_resumes_exactly, one_line_error, same, source_only, upper
from torch import nn

from adaptation.losses import segmentation_loss
from models import build_segmenter
from training.building import fused
from training.checkpoint import load_checkpoint
from training.gradients import LEAST_SCALE, Gradients, compiled, default_precision
from utils.errors import UserError

CPU = torch.device("cpu")


def stepper(precision="fp32", accumulate=1):
    """(gradients, optimizer of one weight of 1, what was logged)."""
    logged = {}
    gradients = Gradients(precision, accumulate, CPU, lambda **values: logged.update(values))
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    gradients.watch("optimizer", optimizer)
    return gradients, optimizer, weight, logged


def test_an_update_logs_the_norm_steps_and_clears():
    gradients, optimizer, weight, logged = stepper()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    gradients.backward((weight * torch.tensor([3.0, 4.0])).sum())
    gradients.update(optimizer, schedule)
    assert logged["gradient"] == 5
    assert weight.tolist() == [-0.5, -1.0]
    assert weight.grad is None
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_parts_of_a_batch_add_up_to_the_whole():
    torch.manual_seed(0)
    images, labels = torch.rand(4, 3, 32, 32), torch.randint(0, 19, (4, 32, 32))
    model = build_segmenter("bisenet").train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # it would see a part of the batch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    segmentation_loss(model(images), labels).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()

    gradients = Gradients("fp32", 2, CPU, lambda **_: None)
    gradients.watch("optimizer", optimizer)
    gradients.last_part = False
    gradients.backward(segmentation_loss(model(images[:2]), labels[:2]))
    gradients.update(optimizer)
    gradients.backward(segmentation_loss(model(images[2:]), labels[2:]))
    for a, b in zip(whole, model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a, rtol=1e-4, atol=1e-5 * float(a.abs().max() + 1e-6))
    gradients.last_part = True
    gradients.update(optimizer)
    assert next(model.parameters()).grad is None


def test_fp16_leaves_out_a_step_that_overflows_and_scales_down():
    gradients, optimizer, weight, logged = stepper("fp16")
    before = gradients.scaler.get_scale()
    gradients.backward((weight * float("inf")).sum())
    gradients.update(optimizer)
    gradients.step_done()
    assert weight.tolist() == [1.0, 1.0]
    assert bool(logged["overflows"])
    assert logged["gradient"] == 0  # a skip is no failure
    assert gradients.scaler.get_scale() == before / 2
    gradients.backward((weight * 3.0).sum())
    gradients.update(optimizer)
    gradients.step_done()
    assert not bool(logged["overflows"])
    assert weight.tolist() == [-0.5, -0.5]  # unscaled


def test_fp16_gradients_that_always_overflow_stop_the_run():
    gradients, optimizer, weight, _ = stepper("fp16")
    while gradients.scaler.get_scale() >= LEAST_SCALE:
        gradients.check_scale()
        gradients.backward((weight * float("inf")).sum())
        gradients.update(optimizer)
        gradients.step_done()
    with pytest.raises(UserError, match="overflow in fp16 at every scale"):
        gradients.check_scale()
    assert gradients.scaler.get_scale() < LEAST_SCALE
    assert weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_that_of_convolutions_and_of_nothing_else(precision):
    torch.manual_seed(0)
    model = build_segmenter("bisenet").train()
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 19, (2, 64, 64))
    plain = segmentation_loss(model(images), labels)
    gradients = Gradients(precision, 1, CPU, lambda **_: None)
    with gradients.autocast():
        outputs = model(images)
        loss = segmentation_loss(outputs, labels)
    assert outputs[0].dtype == gradients.dtype != torch.float32
    assert loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    loss, plain = float(loss.detach()), float(plain.detach())
    assert 0 < abs(loss - plain) < 0.05 * plain


def test_the_default_is_native_bf16_or_fp32(monkeypatch):
    assert default_precision(CPU) == "fp32"
    for capability, expected in (((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert default_precision(torch.device("cuda")) == expected


def test_optimizers_step_in_one_kernel_on_a_gpu_alone():
    assert fused(nn.Linear(1, 1)) is None
    on_a_gpu = Namespace(parameters=lambda: iter([Namespace(is_cuda=True)]))
    assert fused(on_a_gpu) is True


@pytest.mark.parametrize("flags", [("--precision", "fp16"), ("--precision", "bf16", "--accumulate", 2)])
def test_runs_in_half_precision_and_in_parts_resume_exactly(script, monkeypatch, game, city, tmp_path, flags):
    def command(run_dir, *more):
        return source_only(game, city, run_dir, "--batch-size", 4, "--epochs", 3, *flags, *more)

    kept = assert_resumes_exactly(script, monkeypatch, tmp_path, command)
    assert ("scaler" in kept["training"]) == ("fp16" in flags)
    plain = tmp_path / "plain"
    assert script(*source_only(game, city, plain, "--batch-size", 4, "--epochs", 3)).status == 0
    assert not same(kept["weights"], load_checkpoint(plain / "checkpoint_last.pt")["weights"])  # the flags do something
    assert json.loads((tmp_path / "straight/result.json").read_text())["step"] == 3


def test_a_batch_that_cannot_be_parted_is_refused(script, city, tmp_path):
    done = script(*upper(city, tmp_path / "run", "--batch-size", 4, "--accumulate", 3))
    assert "--batch-size 4: not divisible" in one_line_error(done)
    done = script(*upper(city, tmp_path / "run", "--batch-size", 4, "--accumulate", 4))
    assert "at least 2 pictures a time" in one_line_error(done)
    assert not (tmp_path / "run").exists()


def test_a_segmenter_is_compiled_in_both_halves():
    """With another compiler than the user's, which takes a minute: what is called, not how fast."""
    calls = []
    model = build_segmenter("bisenet").eval()
    keys = list(model.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda part: lambda *x: calls.append(part.__name__) or part(*x))
        compiled(model)
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    assert calls == ["features", "decode"]
    assert list(model.state_dict()) == keys
