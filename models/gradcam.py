"""Why a network sees a class at a place: Grad-CAM (Selvaraju et al., ICCV 2017), for segmentation as in Seg-Grad-CAM
(Vinogradova et al., AAAI 2020), on torch's hooks.

The score is one logit, or the sum of a class's logits over a set of pixels. Each channel of a layer weighs as much as
the score's mean gradient on it; the map is the positive part of the weighted sum of the channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def layer_named(model: nn.Module, name: str) -> nn.Module:
    """A part of the network by its name in `named_modules`. Raises ValueError."""
    parts = dict(model.named_modules())
    if name not in parts or not name:
        raise ValueError(f"no layer is called {name!r}; there are {', '.join(part for part in parts if part)}")
    return parts[name]


def grad_cam(model: nn.Module, layer: nn.Module, image: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """image: float [1, 3, H, W] in [0, 1]; score: logits [1, C, H, W] -> scalar. Returns float [h, w] of the layer's
    size, from 0 to 1; all 0 where nothing speaks for the score.

    The layer's output must be one tensor [1, K, h, w] that the score depends on: ValueError otherwise. Leaves the
    weights' gradients as they were.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # From here on the graph begins: what lies below needs no gradient, and frozen parts lose none.
        seen.append(output.detach().requires_grad_() if isinstance(output, Tensor) else output)
        # The layer that follows may work in place, which the first tensor of a graph does not allow.
        return seen[-1].clone() if isinstance(output, Tensor) else output

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            value = score(model(image))
    finally:
        handle.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].ndim != 4:
        raise ValueError("the layer must give one map of features, once in a pass")
    (gradient,) = torch.autograd.grad(value, seen[0], allow_unused=True)
    if gradient is None:
        raise ValueError("the score does not depend on this layer")
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = torch.relu((weights * seen[0].detach()).sum(dim=1))[0]
    return heat / heat.max() if heat.max() > 0 else heat
