"""Loader processes: what they need of the machine, and how it is said when they do not get it.

What a loader process has read comes through shared memory (/dev/shm), each tensor by an open file. Where either runs
out torch waits for ever or ends in tracebacks: so what is needed is asked for before, and a process that cannot send
says so, or ends. What it leaves is read by the others, and at last by the run itself.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.queues
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert, get_worker_info

from utils.errors import UserError

try:
    import resource
except ImportError:  # Windows: no limit to ask for
    resource = None

SHARED = Path("/dev/shm")
AHEAD = 2
"""Batches that each process has ready, torch's default."""

FILES = 8
"""Open files a loader process, for its queues; tensors apart."""

WAY_OUT = "Take fewer --workers (0 needs none), or give the container more: docker run --shm-size 1g"


class WorkerLost(Exception):
    """A loader process cannot send what it has read; the run itself is well."""


def loader(
    data: Dataset,
    workers: int,
    size: int,
    tensors: int,
    collate: Callable[[Any], Any] = default_convert,
    on_worker: Callable[[int], None] | None = None,
    **how: Any,
) -> DataLoader:
    """torch's, with `how` its other arguments. size, tensors: bytes of a batch, and how many tensors it is.

    Raises `UserError` where the machine has no room for so many loader processes.
    """
    if workers:
        _require_memory(workers, AHEAD * workers * size)
        _require_files(workers * (FILES + AHEAD * tensors))
    return DataLoader(
        data, num_workers=workers, collate_fn=_Sent(collate), worker_init_fn=partial(_begin, on_worker), **how
    )


def loaded(items: DataLoader) -> Iterator[Any]:
    """What the loader gives, once. Where a loader process is lost, mostly for lack of memory, one less reads the rest,
    and at last this process does: what comes is the same."""
    done, workers, received = 0, items.num_workers, _begun(items)
    while True:
        try:
            item = next(received)
            lost = str(item) if isinstance(item, WorkerLost) else None
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            lost = str(error) or type(error).__name__
            of_ours = lost.startswith("Caught ") and "in pin memory thread" not in lost
            if workers == 0 or of_ours:
                raise
        if lost is None:
            done += 1
            yield item
        else:
            workers -= 1
            print(
                f"note: a loader process was lost, {workers} go on ({' '.join(lost.split())}) {WAY_OUT}",
                file=sys.stderr,
            )
            received = _begun(_rest(items, done, workers))


def _begun(items: DataLoader) -> Iterator[Any]:
    with _children_unheard():
        return iter(items)


def _rest(items: DataLoader, done: int, workers: int) -> DataLoader:
    """What a loader gives after so many items, by so many processes."""
    how = {"batch_size": None, "sampler": itertools.islice(items.sampler, done, None)}
    if items.batch_sampler is not None:
        how = {"batch_sampler": itertools.islice(items.batch_sampler, done, None)}
    return DataLoader(
        items.dataset, num_workers=workers, collate_fn=items.collate_fn, pin_memory=items.pin_memory,
        worker_init_fn=items.worker_init_fn, **how,
    )  # fmt: skip


@contextlib.contextmanager
def _children_unheard() -> Iterator[None]:
    """Torch begins to listen for loader processes that die, and raises its error in whatever is done just then, in the
    middle of a step. Without that it looks when it waits for one."""
    listens = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if listens else None
    yield
    if listens:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _require_memory(workers: int, needed: int) -> None:
    if SHARED.is_dir() and (free := shutil.disk_usage(SHARED).free) < needed:
        raise UserError(
            f"{workers} loader processes need {needed / 1e9:.2f} GB of shared memory, and {SHARED} has "
            f"{free / 1e9:.2f} GB free. {WAY_OUT}"
        )


def _require_files(more: int) -> None:
    """Raises the limit of open files where it may be raised, else `UserError`."""
    if resource is None:
        return
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    needed = used + more + 32  # checkpoints, pictures, TensorBoard
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"the loader processes need {needed} open files, and this shell allows {hard}: say ulimit -n {needed}, or "
            "take fewer --workers (0 needs none)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _begin(on_worker: Callable[[int], None] | None, worker: int) -> None:
    """In a loader process: what cannot be sent ends it, else the run would wait for it for ever."""

    def fails(error: Exception, item: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"error: a loader process cannot send what it has read ({error})\n".encode())
        os._exit(0)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(fails)
    if on_worker is not None:
        on_worker(worker)


class _Sent:
    """Puts a batch into shared memory here, in the process's main thread; the queue's own would fail unheard."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Any) -> Any:
        if get_worker_info() is None:
            return self.collate(items)
        try:
            return _shared(self.collate(items))
        except (RuntimeError, OSError) as error:
            if not any(word in str(error) for word in ("shared memory", "torch_", "Too many open files", "No space")):
                raise
            return WorkerLost(f"shared memory or open files ran out: {error}")


def _shared(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.share_memory_()
    if isinstance(value, tuple | list):
        for item in value:
            _shared(item)
    return value
