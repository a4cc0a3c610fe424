"""Starting weights of a ResNet: ImageNet's through torchvision, a file's, or none; never a silent mismatch."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import torch
import torchvision
from torch import nn

UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError),
    *(struct.error, OverflowError, MemoryError),
)
"""What `torch.load` is known to raise for a file that is damaged or something else."""


class WeightsError(ValueError):
    """Weights that were asked for could not be had, or do not fit."""


def load_state(module: nn.Module, state: dict[str, torch.Tensor], name: str, allow_partial: bool = False) -> str:
    """Copies `state` into `module` and says what was loaded.

    The 1000-way ImageNet classifier (`fc.*`), which no segmenter here has, may be left over. Anything else that is
    missing, left over or of another shape raises `WeightsError`, unless `allow_partial`; then it is only said.
    """
    own = module.state_dict()
    state = {key.removeprefix("module."): value for key, value in state.items()}
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    shape = [key for key in state if key in own and key not in fits]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in own and not key.startswith("fc.")]
    problems = [
        f"{len(keys)} {what} (first: {keys[0]})"
        for keys, what in ((missing, "missing"), (shape, "of another shape"), (left_over, "left over"))
        if keys
    ]
    if not fits or (problems and not allow_partial):
        raise WeightsError(
            f"weights from {name} do not fit: {len(fits)} of {len(own)} tensors match; {'; '.join(problems)}. "
            "Was the file made for another backbone? (--allow-partial-weights loads what fits)"
        )
    module.load_state_dict(fits, strict=False)
    said = f"loaded {len(fits)} tensors from {name}"
    if any(key.startswith("fc.") for key in state):
        said += ", left its ImageNet classifier (fc) out"
    return said + (f"; PARTIAL: {'; '.join(problems)}" if problems else "")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a plain state dict (name -> tensor), with `weights_only=True`. Raises `WeightsError`."""
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist (expected imagenet, none or a state dict's path)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise WeightsError(f"{path} is not a state dict that torch can read safely (weights_only)") from None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(
            f"{path} holds no state dict of tensors; to start from a checkpoint of this project, use --init"
        )
    return state


def load_resnet_weights(module: nn.Module, arch: str, weights: str, allow_partial: bool = False) -> str:
    """Fills the ResNet `module` from `weights`: `imagenet` (torchvision's IMAGENET1K_V1), `none`, or a path.

    Returns a sentence that says what was loaded. Raises `WeightsError` when they cannot be had or do not fit.
    """
    if weights == "none":
        return f"{arch} starts from random weights"
    if weights != "imagenet":
        return f"{arch}: " + load_state(module, read_tensors(Path(weights)), weights, allow_partial)
    try:
        state = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"].get_state_dict(
            progress=False, check_hash=True
        )
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise WeightsError(
            f"the ImageNet weights of {arch} could not be downloaded ({error}); "
            "give --weights FILE (torchvision's state dict) or --weights none"
        ) from None
    return f"{arch}: " + load_state(module, state, "torchvision's IMAGENET1K_V1", allow_partial)
