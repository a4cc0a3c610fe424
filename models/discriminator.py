"""The domain discriminator of AdaptSegNet (Tsai et al., CVPR 2018), and its lightweight counterpart.

Five 4x4 convolutions of stride 2, leaky ReLU 0.2 after all but the last; the score map is 1/32 of the input, and the
loss is taken on it. What "lightweight" changes is the convolution alone: `standard` mixes space and channels at once,
`depthwise` first filters each channel by itself (4x4), then mixes channels (1x1) (MobileNet, Howard et al., 2017).

At 19 input channels: 2,781,121 and 189,424 parameters; at 1024x512 15,439,233,024 and 1,067,712,512 MACs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512, 1)
MIN_SIDE = 2 ** len(CHANNELS)
"""The smallest input side that leaves a score."""


def standard_convolution(in_channels: int, out_channels: int) -> nn.Module:
    """4x4 over all channels, with a bias."""
    return nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)


def depthwise_separable_convolution(in_channels: int, out_channels: int) -> nn.Module:
    """4x4 on each channel alone, then 1x1 across channels; neither has a bias."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 4, stride=2, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
    )


class Kind(NamedTuple):
    """What one discriminator has that another has not."""

    convolution: Callable[[int, int], nn.Module]
    """in_channels, out_channels -> the module that stands in each of the five places."""
    help: str


DISCRIMINATORS: dict[str, Kind] = {
    "standard": Kind(standard_convolution, "of 4x4 convolutions, as published"),
    "depthwise": Kind(depthwise_separable_convolution, "of depthwise separable convolutions, lightweight"),
}


class Discriminator(nn.Sequential):
    """[B, in_channels, H, W] -> logits [B, 1, H/32, W/32], one score a patch; H and W of at least 32."""

    def __init__(self, kind: str, in_channels: int) -> None:
        if kind not in DISCRIMINATORS:
            raise ValueError(f"discriminator {kind!r}: expected one of {', '.join(DISCRIMINATORS)}")
        layers: list[nn.Module] = []
        for out_channels in CHANNELS:
            layers += [DISCRIMINATORS[kind].convolution(in_channels, out_channels), nn.LeakyReLU(0.2, inplace=True)]
            in_channels = out_channels
        super().__init__(*layers[:-1])

    def forward(self, maps: Tensor) -> Tensor:
        if min(maps.shape[-2:]) < MIN_SIDE:
            height, width = maps.shape[-2:]
            raise ValueError(
                f"the discriminator needs maps of at least {MIN_SIDE} x {MIN_SIDE}, found {width} x {height}"
            )
        return super().forward(maps)
