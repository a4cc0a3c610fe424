"""Batch normalisation by the statistics of the last frames of a stream: test-time adaptation without a gradient.

Prediction-time batch normalisation (Nado et al., 2020; Schneider et al., NeurIPS 2020) takes the statistics of the test
batch. A video comes frame by frame, so here they are those of the frames just seen, this one among them.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningBatchNorm:
    """From now on each batch normalisation of `model` normalises by mean and variance over the last `window` pictures
    that went through it, until `close`, which brings back those that it was trained with.

    The variance is that over all pixels of the window: the mean of the pictures' variances, and the variance of their
    means. What an earlier picture left in a deep layer was computed under the statistics of then. A layer behind global
    pooling sees one value a picture, which would be normalised away: it keeps what it was trained with.

    A picture costs sums over the inputs of these layers, and no second pass of the network (docs/results.md). The
    network must be in evaluation mode and run as it is built: folded or exported ones have no such layer any more.
    Raises ValueError for a network without batch normalisation, and for a window of no picture.
    """

    def __init__(self, model: nn.Module, window: int) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if not self.layers:
            raise ValueError("this network has no batch normalisation, so there is nothing to adapt")
        if window < 1:
            raise ValueError(f"a window has at least one picture, found {window}")
        model.eval()
        self._trained = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in self.layers]
        self._seen: dict[nn.Module, deque[tuple[Tensor, Tensor]]] = {
            layer: deque(maxlen=window) for layer in self.layers
        }
        self._hooks = [layer.register_forward_pre_hook(self._look) for layer in self.layers]

    @torch.no_grad()
    def _look(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        (features,) = inputs
        if features.ndim < 4 or features[0, 0].numel() == 1:
            return
        seen, pixels = self._seen[layer], features.float()
        means = pixels.mean(dim=(2, 3), keepdim=True)
        variances = (pixels - means).square().mean(dim=(2, 3))  # torch.var_mean takes fifteen times as long on a CPU
        seen.extend(zip(means[:, :, 0, 0], variances, strict=True))
        means, variances = (torch.stack(part) for part in zip(*seen, strict=True))
        layer.running_mean.copy_(means.mean(dim=0))
        layer.running_var.copy_(variances.mean(dim=0) + means.var(dim=0, correction=0))

    def __enter__(self) -> RunningBatchNorm:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """The network is as it was."""
        for hook in self._hooks:
            hook.remove()
        for layer, (mean, variance) in zip(self.layers, self._trained, strict=True):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
