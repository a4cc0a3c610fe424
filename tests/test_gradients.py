"""From a loss to a step: precision, accumulation, the scaler's skips told apart from failures.

Long, since what only a GPU would show is tested here too: all of it is about that one way.
"""

import json
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import assert_resumes_exactly, ids, one_line_error, same, save, source_only, upper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam

import models
from adaptation.adversarial import SOURCE, vanilla
from adaptation.losses import LOSSES, segmentation_loss
from adaptation.mixing import labelled_share
from models import DISCRIMINATORS, build_discriminator, build_segmenter
from training.archive import _load_part
from training.building import fused, sgd
from training.checkpoint import load_checkpoint
from training.gradients import GRAPHS, LEAST_SCALE, Gradients, compiled, default_precision
from utils.distributed import note_parts
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


@pytest.mark.parametrize("name", ["ce", "focal", "weighted"])
def test_every_pixel_of_a_batch_counts_alike_in_parts(name):
    """The first part has few labels; the mean of the parts' means would count each of them several times."""
    torch.manual_seed(1)
    logits, labels = torch.randn(4, 5, 8, 8), torch.randint(0, 5, (4, 8, 8), dtype=torch.uint8)
    labels[:2, :, 1:] = 255
    weight = {"weight": torch.tensor([0.2, 3.0, 1.0, 7.0, 0.5])} if name == "weighted" else {}
    loss = partial(LOSSES[name].function, **weight)
    whole = logits.clone().requires_grad_()
    loss(whole, labels).backward()
    parts = [logits[:2].clone().requires_grad_(), logits[2:].clone().requires_grad_()]
    of_parts = [labels[:2], labels[2:]]
    try:
        note_parts([of_parts])
        for part, own in zip(parts, of_parts, strict=True):
            (loss(part, own) / 2).backward()
    finally:
        note_parts([])
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)
    assert torch.equal(loss(logits, labels), loss(logits, labels.clone())), "labels of no part are a batch of their own"


def test_hard_pixels_of_a_part_count_by_its_labels():
    torch.manual_seed(2)
    logits, labels = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 8, 8), dtype=torch.uint8)
    labels[0, 2:] = 255
    of_parts = [labels[:1], labels[1:]]
    alone = [LOSSES["ohem"].function(logits[i : i + 1], own) for i, own in enumerate(of_parts)]
    try:
        note_parts([of_parts])
        together = [LOSSES["ohem"].function(logits[i : i + 1], own) for i, own in enumerate(of_parts)]
    finally:
        note_parts([])
    for own, part, pixels in zip(alone, together, (16, 64), strict=True):
        assert part == pytest.approx(float(own) * pixels / 40, rel=1e-5)


def test_given_labels_weigh_each_part_by_the_share_of_the_whole_batch():
    torch.manual_seed(3)
    logits, labels = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 8, 8), dtype=torch.uint8)
    labels[1, 1:] = 255
    of_parts = [labels[:1], labels[1:]]
    whole = labelled_share(labels) * LOSSES["ce"].function(logits, labels)
    try:
        note_parts([of_parts])
        parts = [labelled_share(own) * LOSSES["ce"].function(logits[i : i + 1], own) for i, own in enumerate(of_parts)]
    finally:
        note_parts([])
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_a_batch_in_parts_is_pictured_once(script, game, city, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("training.journal.Journal.show", lambda self, tag, *_: shown.append((tag, self.progress.step)))
    flags = source_only(game, city, tmp_path / "run", "--batch-size", 4, "--accumulate", 2, "--max-steps", 1)
    done = script("train_fda", *flags[1:])
    assert done.status == 0, done.err
    assert len(shown) == 1


@pytest.mark.parametrize("flags", [(), ("--loss", "weighted")])
def test_a_scripts_first_step_in_parts_is_that_of_the_whole_batch(script, game, city, tmp_path, monkeypatch, flags):
    for number in (2, 4):  # frames with few labels
        save(game / "labels" / f"{number:05d}.png", np.where(np.arange(48) < 6, ids(number), 0).astype(np.uint8), True)
    monkeypatch.setattr(_BatchNorm, "train", lambda self, mode=True: nn.Module.train(self, False))
    found = []

    class Done(BaseException):  # an Exception would be shown, with status 1
        pass

    def update(self, optimizer, *schedules):
        if self.last_part:
            found.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])
            raise Done

    monkeypatch.setattr(Gradients, "update", update)
    for parts in (1, 2):
        with pytest.raises(Done):
            script(*source_only(game, city, tmp_path / str(parts), "--batch-size", 4, "--accumulate", parts, *flags))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


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


def test_a_first_step_that_overflows_leaves_no_momentum_in_fused_sgd(monkeypatch):
    """torch's kernel makes room for the momentum of the step that it leaves out, and never fills it."""
    monkeypatch.setattr("training.building.fused", lambda model: True)
    monkeypatch.setattr(nn.Linear, "rate_factors", {}, raising=False)
    model, scaler = nn.Linear(300, 1), torch.amp.GradScaler("cpu")
    before, optimizer = model.weight.detach().clone(), sgd(model, lr=0.1, weight_decay=0.0)
    torch.use_deterministic_algorithms(True)  # new memory holds NaN then
    try:
        for gradient in (float("inf"), 2.0):
            scaler.scale(gradient * model(torch.ones(1, 300)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(model.weight.detach(), before - 0.2)


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
        patch.setattr(torch, "compile", lambda part, **_: lambda *x: calls.append(part.__name__) or part(*x))
        compiled(model)
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    assert calls == ["features", "decode"]
    assert list(model.state_dict()) == keys


# What only a GPU would show


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_small_weight_does_not_cost_its_gradients_in_fp16(kind):
    """An adversarial loss's gradients on the logits, as small as they are at batch 16 and 1024x512."""
    torch.manual_seed(3)
    logits = nn.functional.interpolate(torch.randn(2, 19, 8, 16), (64, 128), mode="bilinear")
    smaller = logits.numel() / (16 * 19 * 512 * 1024)
    discriminator = build_discriminator(kind).requires_grad_(False)

    def adversarial(seen):
        return 1e-3 * smaller * vanilla(discriminator(seen.softmax(1)), SOURCE)

    exact = logits.clone().requires_grad_()
    adversarial(exact).backward()

    def likeness(*weight):
        """The cosine between the exact gradients and those that came through half precision."""
        gradients, optimizer, _, _ = stepper("fp16")
        shift = nn.Parameter(torch.zeros_like(logits))
        optimizer.add_param_group({"params": [shift]})
        gradients.watch("optimizer", optimizer)
        gradients.backward(adversarial((logits + shift).half().float()), *weight)
        found = shift.grad.double() / gradients.scaler.get_scale()
        if weight:
            assert found.norm() == pytest.approx(float(exact.grad.double().norm()), rel=0.05)
        one, other = (nn.functional.normalize(g.double().flatten(), dim=0, eps=0) for g in (found, exact.grad))
        return float(one.nan_to_num() @ other)

    assert likeness() < 0.95
    assert likeness(1e-3) > 0.99


def test_a_small_weight_adds_to_what_is_there():
    for weight in (1.0, 0.3, 1e-3, 5.0, 0.0):
        gradients, optimizer, parameter, logged = stepper("fp16")
        gradients.backward(3 * parameter[0])
        gradients.backward(weight * 4 * parameter[1], weight)
        gradients.update(optimizer)
        assert logged["gradient"] == pytest.approx((9 + (4 * weight) ** 2) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("name", models.SEGMENTERS)
def test_logits_are_enlarged_in_float32(name, monkeypatch):
    network = models.SEGMENTERS[name]
    model = build_segmenter(name, **network.multi_level_options or {}).train()
    enlarged = []
    interpolate = torch.nn.functional.interpolate

    def spy(maps, size, **how):
        if tuple(size) == (48, 64):  # the picture's own
            enlarged.append(maps.dtype)
        return interpolate(maps, size, **how)

    monkeypatch.setattr("torch.nn.functional.interpolate", spy)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(2, 3, 48, 64))
    assert enlarged
    assert set(enlarged) == {torch.float32}


def test_float32_is_float32_and_convolutions_are_searched_for(script, city, tmp_path):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    try:
        for flags, searched in (((), True), (("--deterministic",), False)):
            cudnn.allow_tf32 = matmul.allow_tf32 = True
            assert script(*upper(city, tmp_path / str(searched), "--max-steps", 1, *flags)).status == 0
            assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (False, False, searched)
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
        torch.use_deterministic_algorithms(False)


def test_an_optimizers_state_comes_back_for_the_device_it_is_on():
    """torch puts Adam's count of steps where the saved group's `fused` wants it, and then runs the present one's."""
    weight = nn.Parameter(torch.ones(2))
    saved = Adam([weight])
    weight.sum().backward()
    saved.step()
    asked = []

    class OnGPU(Adam):
        def load_state_dict(self, state):
            asked.append([group["fused"] for group in state["param_groups"]])
            super().load_state_dict(state)

    resumed = OnGPU([weight], lr=0.5, fused=True)
    state = saved.state_dict()
    _load_part(resumed, state, changed=False)
    assert asked == [[True]]
    assert state["param_groups"][0]["fused"] is None, "what was read stays as it was"
    assert (resumed.param_groups[0]["fused"], resumed.param_groups[0]["lr"]) == (True, 1e-3)
    assert resumed.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_run_may_go_on_with_a_scaler_or_without(script, city, tmp_path, before, after):
    run = tmp_path / "run"
    assert script(*upper(city, run, "--max-steps", 1, "--precision", before)).status == 0
    refused = script(*upper(city, run, "--max-steps", 2, "--precision", after, "--resume"))
    assert "--precision was" in one_line_error(refused)
    done = script(*upper(city, run, "--max-steps", 2, "--precision", after, "--resume", "--allow-changes"))
    assert done.status == 0, done.err
    assert ("scaler" in load_checkpoint(run / "checkpoint_last.pt")["training"]) == (after == "fp16")


def test_a_compiled_network_has_a_graph_for_each_of_its_shapes(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: asked.append(how) or function)
    compiled(build_segmenter("bisenet"))
    assert asked == [{"dynamic": False}] * 2
    config = torch._dynamo.config
    assert getattr(config, "recompile_limit", config.cache_size_limit) == GRAPHS
