"""More than one process: `torchrun --nproc-per-node=N train_*.py ...`, one process a GPU.

The batch of --batch-size is the whole of it: each process (rank) takes its share of the same draws, so N processes
compute what one computes, whatever N is. Only rank 0 writes and prints. Without torchrun every function here does
nothing, or the obvious.

Gradients are averaged once a step, explicitly, and not by DistributedDataParallel: a step here has several backward
passes, some of which leave parameters out (a pass on the target has no auxiliary heads), and DistributedDataParallel
does not reduce what a parameter gathered before a last pass that leaves it out.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = datetime.timedelta(days=1)
"""How long ranks wait for one another: rank 0 may be preparing data or labelling the target."""


def start(device: torch.device) -> torch.device:
    """Joins the processes that torchrun started; returns this one's device. Raises ValueError without a GPU each, and
    where several processes were started by something else."""
    if not dist.is_available() or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return device
    if not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():  # some schedulers set WORLD_SIZE alone
        if os.environ["WORLD_SIZE"] == "1":
            return device
        raise ValueError("WORLD_SIZE is set, but LOCAL_RANK is not: start with torchrun, or unset WORLD_SIZE")
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        if here > torch.cuda.device_count():
            raise ValueError(f"torchrun started {here} processes here, for {torch.cuda.device_count()} GPU(s)")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Flags and figures travel by gloo, from the CPU; gradients by NCCL.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", errors="replace")  # noqa: SIM115 - for as long as the process lasts
    return device


def end() -> None:
    """Leaves the other processes, once all of them are done."""
    if ranks() > 1:
        dist.barrier()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def lost_another(error: Exception) -> bool:
    """Whether an error says that another of the processes is gone: its own last words say why."""
    said = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return ranks() > 1 and isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if ranks() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, device=torch.device("cpu"))
    return held[0]


def from_each(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    if ranks() == 1:
        return [value]
    values = [None] * ranks()
    # all_gather_object would send from the GPU where there is one; broadcasts go from the CPU.
    for sender in range(ranks()):
        held = [value]
        dist.broadcast_object_list(held, src=sender, device=torch.device("cpu"))
        values[sender] = held[0]
    return values


def highest(value: int) -> int:
    """The highest of the ranks' values, on every rank."""
    if ranks() == 1:
        return value
    held = torch.tensor(value)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


@contextlib.contextmanager
def first_then_others(together: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Rank 0 does what is inside alone, then the others do, and find there what it left.

    Gives what long work inside calls between two of its parts: it calls `together`, on all ranks at once while rank 0
    works, and nothing in the others' turn. Nothing else inside may wait for other ranks.
    """
    if ranks() == 1:
        yield together
    elif rank() == 0:

        def pause() -> None:
            from_first(True)
            together()

        yield pause
        from_first(False)
    else:
        while from_first(None):
            together()
        yield lambda: None


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a float tensor over ranks, on every rank; no gradient flows. Divide a rank's sum by the mean of the
    ranks' counts, and the mean over ranks of what comes out is the global mean."""
    if ranks() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / ranks()


_PARTS: list[list[Tensor]] = []
"""Of the present step: for each stream that has labels, those of every part of its batch."""


def note_parts(parts: Iterable[list[Tensor]]) -> None:
    """With --accumulate: which labels belong to one batch, of which a loss sees a part at a time."""
    _PARTS[:] = parts


def mean_over_batch(measure: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """`mean_over_ranks` of measure(labels); where `labels` are one part of a batch, of the mean over its parts. So a
    part's sum, divided by it, counts as much in the mean over parts and ranks as it does in the whole batch."""
    parts = next((parts for parts in _PARTS if any(part is labels for part in parts)), [labels])
    values = [measure(part) for part in parts]
    return mean_over_ranks(values[0] if len(values) == 1 else torch.stack(values).mean())


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over ranks, on every rank; exact for integers."""
    if ranks() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over ranks. All ranks have gradients for the same parameters."""
    if ranks() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, (flat / ranks()).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Rank 0's buffers on every rank: without SyncBatchNorm (on a CPU) each has seen its own part of the batches."""
    if ranks() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Batch normalisation over the whole batch, not a rank's share of it; torch has that on GPUs only."""
    if ranks() > 1 and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model
