"""Starting weights of a backbone: ImageNet's, a file's, or none; never a silent mismatch."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError),
    *(struct.error, OverflowError, MemoryError),
)
"""What `torch.load` is known to raise for a file that is damaged or something else."""


class WeightsError(ValueError):
    """Weights that were asked for could not be had, or do not fit."""


def load_state(
    module: nn.Module,
    state: dict[str, Tensor],
    name: str,
    allow_partial: bool = False,
    classifier: tuple[str, ...] = ("fc",),
    may_lack: tuple[str, ...] = (),
) -> str:
    """Copies `state` into `module` and says what was loaded.

    The 1000-way ImageNet classifier, which no segmenter here has, may be left over; `classifier` names its parts. The
    module's parts `may_lack` start at random where the state has nothing of them. Anything else that is missing, left
    over or of another shape raises `WeightsError`, unless `allow_partial`; then it is only said.
    """
    own = module.state_dict()
    state = {key.removeprefix("module."): value for key, value in state.items()}
    lacking = [part for part in may_lack if not any(key.startswith(f"{part}.") for key in state)]
    own = {key: value for key, value in own.items() if key.partition(".")[0] not in lacking}
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    shape = [key for key in state if key in own and key not in fits]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in own and key.partition(".")[0] not in classifier]
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
    found = [part for part in classifier if any(key.startswith(f"{part}.") for key in state)]
    if found:
        said += f", left its ImageNet classifier ({', '.join(found)}) out"
    if lacking:
        said += f"; it has no {' and '.join(lacking)}, which start from random weights"
    return said + (f"; PARTIAL: {'; '.join(problems)}" if problems else "")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a state dict (name -> tensor), by itself or as the `state_dict` of a dictionary, with `weights_only=True`.
    Raises `WeightsError`."""
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist (expected imagenet, none or a state dict's path)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise WeightsError(f"{path} is not a state dict that torch can read safely (weights_only)") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} holds no state dict of tensors; to start from a checkpoint of this project, use --init"
        )
    return state


class ImageNet(NamedTuple):
    """A backbone's published ImageNet weights, as its network says. A file of --weights holds the same tensors."""

    name: str
    download: Callable[[], dict[str, Tensor]]
    """Raises `WeightsError` when they cannot be had."""
    classifier: tuple[str, ...] = ("fc",)
    """The parts of them that no segmenter has."""
    may_lack: tuple[str, ...] = ()
    """The backbone's parts that they may not have."""


def torchvision_imagenet(arch: str, classifier: str = "fc") -> ImageNet:
    """torchvision's IMAGENET1K_V1 of its network `arch`."""

    def download() -> dict[str, Tensor]:
        published = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
        try:
            return published.get_state_dict(progress=False, check_hash=True)
        except UNREADABLE as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            kept = Path(torch.hub.get_dir(), "checkpoints", Path(published.url).name)
            if kept.exists():
                raise WeightsError(
                    f"{kept}, which should hold the ImageNet weights of {arch}, cannot be read ({error}); delete it, "
                    "and it is downloaded again, or give --weights FILE (torchvision's state dict)"
                ) from None
            raise WeightsError(
                f"the ImageNet weights of {arch} could not be downloaded ({error}); "
                "give --weights FILE (torchvision's state dict) or --weights none"
            ) from None

    return ImageNet("torchvision's IMAGENET1K_V1", download, (classifier,))


def load_backbone(
    module: nn.Module, backbone: str, weights: str, allow_partial: bool = False, imagenet: ImageNet | None = None
) -> str:
    """Fills `module` from `weights`: `imagenet`, `none`, or a path. The argument imagenet: None where there are none.

    Returns a sentence that says what was loaded. Raises `WeightsError` when they cannot be had or do not fit.
    """
    if weights == "none":
        return f"{backbone} starts from random weights"
    if weights != "imagenet":
        name, state = weights, read_tensors(Path(weights))
    elif imagenet is not None:
        name, state = imagenet.name, imagenet.download()
    else:
        raise WeightsError(f"there are no ImageNet weights of {backbone}; give --weights FILE or --weights none")
    known = () if imagenet is None else (imagenet.classifier, imagenet.may_lack)
    return f"{backbone}: " + load_state(module, state, name, allow_partial, *known)
