"""The simulated device is one: what CUDA refuses is refused, where it makes the host wait is known, values are true."""

from __future__ import annotations

import pytest
import torch
from simulated_cuda import DEVICE, HostWaits, OnCuda, WrongDevice, simulated_cuda, waiting, watched
from torch import nn

VECTOR = torch.arange(3.0)

WRONG = {
    "sum": lambda x: x + VECTOR,
    "in place": lambda x: x.add_(VECTOR),
    "to the CPU's": lambda x: VECTOR.add_(x),
    "stack": lambda x: torch.stack([x.sum(), VECTOR.sum()]),
    "scatter": lambda x: x.scatter_(0, torch.tensor([0]), 1.0),
    "where": lambda x: torch.where(x > 0, x, VECTOR),
    "Adam's steps": lambda x: torch._foreach_add_([x.sum(), VECTOR.sum()], 1),
}
WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x[0] > 0),
    "list": lambda x: x.tolist(),
    "to the CPU": lambda x: x.cpu(),
    "from the CPU": lambda x: VECTOR.to(DEVICE),
    "made there": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "copied": lambda x: x.copy_(VECTOR),
    "mask": lambda x: x[x > 0],
    "written by mask": lambda x: x.__setitem__(x > 0, x[1:].clone()),
    "index of the CPU": lambda x: x[torch.tensor([0, 1])],
    "places": lambda x: x.nonzero(),
    "counts": lambda x: x.long().bincount(),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
}
DOES_NOT_WAIT = {
    "non-blocking": lambda x: VECTOR.to(DEVICE, non_blocking=True),
    "filled": lambda x: torch.full((3,), 1.0, device=DEVICE),
    "a number of the CPU": lambda x: x * torch.tensor(2.0),
    "set by mask": lambda x: x.__setitem__(x > 0, 0.0),
    "index": lambda x: x[x.argsort()],
    "slice": lambda x: x[1:].clamp_(0, 1),
    "copy": lambda x: x.to(DEVICE),
}


@pytest.mark.parametrize("what", WRONG)
def test_devices_do_not_mix(what: str) -> None:
    with simulated_cuda(), pytest.raises(WrongDevice):
        WRONG[what](VECTOR.to(DEVICE))


@pytest.mark.parametrize("what", WAITS)
def test_the_host_waits_for(what: str) -> None:
    with simulated_cuda():
        x = VECTOR.to(DEVICE)
        WAITS[what](x)
        with waiting(False), pytest.raises(HostWaits):
            WAITS[what](x)


@pytest.mark.parametrize("what", DOES_NOT_WAIT)
def test_the_host_does_not_wait_for(what: str) -> None:
    with simulated_cuda():
        x = VECTOR.to(DEVICE)
        with waiting(False):
            DOES_NOT_WAIT[what](x)


def test_from_the_second_batch_on_the_host_may_not_wait() -> None:
    with simulated_cuda():
        total, batches = VECTOR.to(DEVICE).sum(), watched(range(3))
        assert next(batches) == 0
        assert total.item() == 3
        assert next(batches) == 1
        with pytest.raises(HostWaits):
            total.item()
        assert list(batches) == [2]
        assert total.item() == 3


def test_tensors_are_cudas_and_values_true() -> None:
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = torch.autograd.grad(layer(images).square().sum(), layer.weight)[0]
    with simulated_cuda():
        layer.to(DEVICE)
        assert isinstance(layer.weight, OnCuda)
        assert layer.weight.is_cuda
        assert layer.weight.device == DEVICE
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        out = layer(images.to(DEVICE))
        assert out.is_contiguous(memory_format=torch.channels_last)
        out.square().sum().backward()
        torch.testing.assert_close(layer.weight.grad.cpu(), expected)
        with pytest.raises((TypeError, RuntimeError)):
            out.detach().numpy()


def test_autocast_is_cudas() -> None:
    with simulated_cuda():
        layer, images = nn.Conv2d(3, 4, 3).to(DEVICE), torch.rand(2, 3, 8, 8).to(DEVICE)
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(images)
            assert out.dtype == torch.bfloat16
            assert out.softmax(1).dtype == torch.float32
        with pytest.raises(RuntimeError):
            layer(out)
        out.float().sum().backward()
        assert layer.weight.grad.dtype == torch.float32
