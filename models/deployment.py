"""A network as one would deploy it: batch normalisation folded away, half precision, compiled."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in which every batch normalisation that follows a convolution is part of it.

    In evaluation batch normalisation is a fixed scale and shift of each channel, and so a change of the convolution's
    weights and bias: exact but for rounding. A convolution and the normalisation registered right after it follow one
    another in the forward pass too, in every network here. The copy is for inference: it cannot be trained or adapted.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in model.modules():
        before: tuple[str, nn.Conv2d] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Identity())
            before = (name, child) if isinstance(child, nn.Conv2d) else None
    return model


class Deployed(nn.Module):
    """A copy of a network for inference: folded, channels-last, its weights and arithmetic in `dtype`.

    Takes and gives what the network does in evaluation, in float32. With `compiled` torch.compile makes kernels for the
    shapes it sees, on a GPU as CUDA graphs, unless `graphs` is off; the first passes are slow.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype = torch.float32, compiled: bool = False, graphs: bool = True
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = folded(model).to(dtype=dtype, memory_format=torch.channels_last)
        self.graphs = compiled and graphs and next(model.parameters()).device.type == "cuda"
        if compiled:
            self.network.compile(mode="reduce-overhead" if self.graphs else "default", dynamic=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        return self.network(images).to(torch.float32, copy=self.graphs)  # a graph writes its next result over this one
