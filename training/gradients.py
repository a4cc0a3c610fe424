"""From a loss to a step of the optimizer: precision, accumulation, several processes, and the watch over gradients."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.distributed import average_gradients
from utils.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NATIVE_BF16 = (8, 0)
"""The CUDA compute capability from which bf16 is computed natively; below it is emulated, slowly."""
LEAST_SCALE = 2.0**-14
"""Of the loss, in fp16: gradients that overflow even then are not the scale's fault."""

GRAPHS = 32
"""Of one compiled function, at most: one for each shape, in training or not, with gradients or not. A run needs
seven, and torch's own limit is eight."""


def default_precision(device: torch.device) -> str:
    """bf16 where a GPU computes it natively. On a CPU fp32: where bf16 is faster there is known by measurement only."""
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= NATIVE_BF16
    return "bf16" if native else "fp32"


class Gradients:
    """One run's. `log` takes named scalars of the present step.

    accumulate: into how many parts, one after the other, each batch goes; `last_part` says that the present part is the
    last one of its batch, without which `update` does nothing.
    """

    def __init__(self, precision: str, accumulate: int, device: torch.device, log: Callable[..., None]) -> None:
        self.dtype, self.accumulate, self.device, self.log = PRECISIONS[precision], accumulate, device, log
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if self.scaler.is_enabled():  # torch cannot tell a step that the scaler left out from one that was forgotten
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.last_part = True
        self._titles: dict[int, str] = {}
        self._parameters: list[nn.Parameter] = []

    def watch(self, name: str, optimizer: Optimizer) -> None:
        """Names the norm of the optimizer's gradients in the log."""
        title = "gradient" if name == "optimizer" else f"gradient_{name.removesuffix('_optimizer')}"
        self._titles[id(optimizer)] = title
        self._parameters += [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def autocast(self) -> contextlib.AbstractContextManager:
        """Within it convolutions compute in --precision. Losses are computed in float32 wherever they stand."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Adds the loss's gradients. weight: by what `loss` was multiplied already; it matters in fp16, below 1.

        In fp16 the loss's gradients are taken without such a factor, to the next power of two, and get it in float32.
        At the scale that suits the cross-entropy most gradients of an adversarial loss (weight 0.001, batch 16,
        1024x512) would be rounded to zero on their way through the network (tests/test_gradients.py).
        """
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        if not self.scaler.is_enabled() or not 0 < weight < 1:
            self.scaler.scale(loss).backward()
            return
        factor = 2.0 ** round(-math.log2(weight))
        before = [(parameter, parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        for parameter, _ in before:
            parameter.grad = None
        self.scaler.scale(loss * factor).backward()
        found = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_mul_(found, 1 / factor)
        for parameter, gradient in before:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    def update(self, optimizer: Optimizer, *schedules: LRScheduler) -> None:
        """After the batch's last part: averages the gradients over processes, logs their norm, steps optimizer and
        schedules, and clears the gradients."""
        if not self.last_part:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        average_gradients(parameters)  # before unscaling, so that all ranks find the same overflow
        if self.scaler.is_enabled() and parameters:
            self.scaler.unscale_(optimizer)
        norm = norm_of([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.scaler.is_enabled():
            overflow = ~torch.isfinite(norm)
            self.log(overflows=overflow)
            norm = torch.where(overflow, 0.0, norm)  # this step is left out, which is the scaler's work and no failure
        self.log(**{self._titles[id(optimizer)]: norm})
        self.scaler.step(optimizer)
        for schedule in schedules:
            schedule.step()
        optimizer.zero_grad()

    def step_done(self) -> None:
        """After all of a step's updates."""
        if self.scaler.is_enabled():
            self.scaler.update()

    def check_scale(self) -> None:
        """Raises `UserError` when gradients overflow at any scale of the loss; waits for the device."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise UserError(
                "gradients overflow in fp16 at every scale of the loss; try --precision bf16 or fp32, or a lower --lr"
            )


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The norm of all of them together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def compiled(module: nn.Module) -> None:
    """torch.compile, in place; the weights keep their names. Of a segmenter both halves, which methods call alone."""
    if hasattr(torch._dynamo.config, "recompile_limit"):
        torch._dynamo.config.recompile_limit = GRAPHS
    else:  # before torch 2.7
        torch._dynamo.config.cache_size_limit = GRAPHS
        torch._dynamo.config.inline_inbuilt_nn_modules = True  # or 2.4 takes the statistics' momentum for a constant
    if hasattr(module, "decode"):
        module.features = torch.compile(module.features, dynamic=False)
        module.decode = torch.compile(module.decode, dynamic=False)
    else:
        module.compile(dynamic=False)
