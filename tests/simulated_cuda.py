"""A CUDA device where there is none: its tensors keep their values on the CPU and compute there.

To torch they are tensors on `cuda:0`, so autograd, autocast, the gradient scaler and the optimizers take the paths of a
GPU, and every script runs as it would there, with true values. What a GPU refuses raises `WrongDevice`; where the host
would wait for the device, and may not, it raises `HostWaits`. CUDA's own kernels are not tested.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from training import checkpoint

T = TypeVar("T")
DEVICE = torch.device("cuda:0")
ROOMS = ("utils", "datasets", "models", "adaptation", "training")

WAITING = {
    *("_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive"),
}
"""Operations whose result, or its size, the host reads. Copies and indices are judged by their arguments."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
TAKES_HOST_SCALARS = {"fill", "fill_", "masked_fill", "masked_fill_"}
"""Beside the pointwise operations, which take a tensor without dimensions from the CPU as they take a number."""


class WrongDevice(Exception):
    """Tensors of both devices met."""


class HostWaits(Exception):
    """Something was read from the device, or copied to it, where the host may not wait."""


class OnCuda(Tensor):
    """A tensor on `DEVICE`; `held` has its values.

    Torch's dispatcher and all Python code take it for CUDA's. Where torch's own C++ code asks for its device, as the
    autograd engine does to find a stream, it is `meta`, which needs no driver.
    """

    held: Tensor
    device = DEVICE
    is_cuda, is_meta = True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCuda:
        shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made = Tensor._make_subclass(cls, shape, device_for_backend_keys=DEVICE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(function, args, kwargs or {})

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __setitem__(self, index: Any, value: Any) -> None:
        """A number is written as CUDA writes it: from the CPU, so that a mask of places need not be read."""
        super().__setitem__(index, value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype))

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({self.held})"


class _Device(TorchDispatchMode):
    """Puts on the device what is made there or brought there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if OnCuda in types or _is_cuda(kwargs.get("device")):
            return _computed(function, args, kwargs)
        return function(*args, **kwargs)


# The documentation's lists for CUDA ("Autocast Op Reference"), as Python names them. All else is computed as it comes.
HALF = {
    *("__matmul__", "__rmatmul__", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d"),
    *("conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "gru_cell", "linear"),
    *("lstm_cell", "matmul", "mm", "multi_dot", "mv", "prelu", "rnn_tanh_cell", "scaled_dot_product_attention"),
}
FLOAT = {
    *("__pow__", "__rdiv__", "__rpow__", "__rtruediv__", "acos", "asin", "binary_cross_entropy_with_logits", "cdist"),
    *("cosh", "cosine_embedding_loss", "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "dist", "erfinv"),
    *("exp", "expm1", "group_norm", "hinge_embedding_loss", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p"),
    *("log2", "log_softmax", "margin_ranking_loss", "mse_loss", "nll_loss", "norm", "poisson_nll_loss", "pow", "prod"),
    *("reciprocal", "rsqrt", "sinh", "smooth_l1_loss", "softmax", "softplus", "sum", "tan", "triplet_margin_loss"),
}


class _Autocast(TorchFunctionMode):
    """What `torch.autocast("cuda", ...)` does to CUDA's tensors; torch's own code does not take these for such."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if (name in HALF or name in FLOAT) and torch.is_autocast_enabled("cuda"):
            to = torch.get_autocast_dtype("cuda") if name in HALF else torch.float32

            def cast(leaf: Any) -> Any:
                eligible = isinstance(leaf, OnCuda) and leaf.is_floating_point() and leaf.dtype != torch.float64
                return leaf.to(to) if eligible else leaf

            args, kwargs = tree_map(cast, (args, kwargs))
        return function(*args, **kwargs)


class Record:
    """What the device was asked for."""

    def __init__(self) -> None:
        self.convolutions: set[torch.dtype] = set()
        """In which they were computed."""
        self.pinned: list[bool] = []
        """Of each loader: whether it was to pin its memory."""
        self.may_wait = [True]
        """The last entry says whether the host may wait for the device now."""


_record = Record()


def _computed(function: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnCuda)}
    on_host = [tensor for tensor in tensors if not isinstance(tensor, OnCuda)]
    name = function.overloadpacket.__name__
    if on_device and on_host and not _may_meet(function, name, args, on_host):
        raise WrongDevice(f"{function} met tensors of cuda and of the CPU, of shape {tuple(on_host[0].shape)}")
    if not _record.may_wait[-1] and _waits(name, args, kwargs):
        raise HostWaits(f"{function} waits for the device")
    if name == "convolution":
        _record.convolutions.add(args[0].dtype)
    goes_to_device = bool(on_device)
    if kwargs.get("device") is not None:
        goes_to_device = _is_cuda(kwargs["device"])
        kwargs = kwargs | {"device": "cpu"}
    args, kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnCuda) else leaf, (args, kwargs))
    own = {id(tensor) for tensor in on_host}

    def put(result: Any) -> Any:
        if not isinstance(result, Tensor) or not goes_to_device or id(result) in own:
            return result
        return on_device[id(result)] if id(result) in on_device else OnCuda(result)

    return tree_map(put, function(*args, **kwargs))


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")


def _may_meet(function: Any, name: str, args: tuple, on_host: list[Tensor]) -> bool:
    """Whether CUDA takes these tensors of the CPU beside its own."""
    if name in ("copy_", "_copy_from"):
        return True
    if name in INDEXING:
        indices = {id(index) for index in args[1]}
        return isinstance(args[0], OnCuda) and all(id(t) in indices or t.ndim == 0 for t in on_host)
    takes_scalars = torch.Tag.pointwise in function.tags or name in TAKES_HOST_SCALARS
    return takes_scalars and all(tensor.ndim == 0 for tensor in on_host)


def _waits(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether the host would wait for the device. For a non-blocking copy to it, it does not."""
    if name == "_to_copy":
        here = isinstance(args[0], OnCuda)
        there = _is_cuda(kwargs["device"]) if kwargs.get("device") is not None else here
        return here != there and not (there and kwargs.get("non_blocking"))
    if name == "copy_":
        to, origin = (isinstance(tensor, OnCuda) for tensor in args[:2])
        return to != origin and not (to and (kwargs.get("non_blocking") or (len(args) > 2 and args[2])))
    if name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(not isinstance(index, OnCuda) for index in indices):
            return True
        filled = len(args) > 2 and not isinstance(args[2], OnCuda) and args[2].numel() == 1  # torch's masked_fill
        return not filled and any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    return name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None)


# Where the host may wait


@contextmanager
def waiting(allowed: bool) -> Iterator[None]:
    """Within it the host may wait for the device, or may not."""
    entries = _record.may_wait  # a generator that was left alone may end under another record
    entries.append(allowed)
    try:
        yield
    finally:
        entries.pop()


def reading(function: Callable[..., T]) -> Callable[..., T]:
    """The function may wait, wherever it is called."""

    def read(*args: Any, **kwargs: Any) -> T:
        with waiting(True):
            return function(*args, **kwargs)

    return read


def watched(batches: Iterable[T]) -> Iterator[T]:
    """From the second of these batches to the last the host may not wait: neither where they are used nor where they
    are brought. The first is free, since constants are made there once."""
    batches = iter(batches)
    with ExitStack() as stack:
        for batch in batches:
            yield batch
            break
        stack.enter_context(waiting(False))
        yield from batches


# The device


@contextmanager
def simulated_cuda() -> Iterator[Record]:
    """Within it this machine has one CUDA device, and no other."""
    global _record
    _record = Record()
    lifts = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, torch.autograd.set_multithreading_enabled(False):
        if not torch.cuda.is_available():
            patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        for name, answer in {
            "is_available": True, "device_count": 1, "current_device": 0, "manual_seed_all": None,
            "get_device_capability": (8, 0), "get_device_name": "simulated", "is_bf16_supported": True,
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        patch.setattr(torch.cuda, "set_device", torch.cuda._utils._get_device_index)  # refuses what torch does
        for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            patch.setattr(torch.optim.Optimizer, name, lambda _: None, raising=False)
        patch.setattr(DataLoader, "__init__", _without_pinning(DataLoader.__init__))
        for name in ("vet", "require_fit"):
            patch.setattr(checkpoint, name, _aside(getattr(checkpoint, name)))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) starts on the CPU
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Device(), _Autocast():
                yield _record
        finally:
            _forget_constants()
            torch._C._set_only_lift_cpu_tensors(lifts)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _aside(function: Callable[..., None]) -> Callable[..., None]:
    """What uses torch's `meta` itself, and no device, sees nothing of the simulation, for which `meta` stands."""

    def called(*args: Any) -> None:
        with _disable_current_modes():
            function(*args)

    return called


def _without_pinning(init: Callable[..., None]) -> Callable[..., None]:
    def begin(*args: Any, pin_memory: bool = False, **kwargs: Any) -> None:
        _record.pinned.append(pin_memory)
        init(*args, **kwargs)

    return begin


def _forget_constants() -> None:
    """What the rooms keep of each device, made once: no other test may find it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ROOMS:
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
