"""The domain discriminator of AdaptSegNet (Tsai et al., CVPR 2018), and its lightweight counterparts.

Five 4x4 convolutions of stride 2, leaky ReLU 0.2 after all but the last; the score map is 1/32 of the input, and the
loss is taken on it. What "lightweight" changes is the convolution alone: `standard` mixes space and channels at once,
`depthwise` first filters each channel by itself (4x4), then mixes channels (1x1) (MobileNet, Howard et al., 2017).
`shallow` has three of these instead of five, and so a score for every patch of 8x8 (RTDA, Tavera et al.,
arXiv 2110.11662; RTDA's own have biases too, which makes it 13,316 parameters).

`class` is another thing: FADA's (Wang et al., ECCV 2020). It looks at features and keeps their size: three 3x3
convolutions of stride 1, the last to two scores for each class, "this class of the source" and "of the target" (the
public code has a convolution for each half, which is the same). What its scores mean: `adaptation/class_level.py`.

At 19 input channels: 2,781,121, 189,424 and 12,912 parameters; at 1024x512 15,439,233,024, 1,067,712,512 and
519,045,120 MACs. `class`, on the 1,024 feature channels of BiSeNet with ResNet-18 at 1/8: 2,698,406 and 22,101,884,928.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


def standard_convolution(in_channels: int, out_channels: int) -> nn.Module:
    """4x4 over all channels, with a bias."""
    return nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)


def small_convolution(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 over all channels, with a bias; keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def depthwise_separable_convolution(in_channels: int, out_channels: int) -> nn.Module:
    """4x4 on each channel alone, then 1x1 across channels; neither has a bias."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 4, stride=2, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
    )


class Kind(NamedTuple):
    """What one discriminator has that another has not."""

    convolution: Callable[[int, int], nn.Module]
    """in_channels, out_channels -> the module that stands in each place; it halves height and width, or, where scores
    are by class, keeps them."""
    help: str
    channels: tuple[int, ...] = (64, 128, 256, 512, 1)
    """That leave each place."""
    by_class: bool = False
    """Whether it looks at features, and one place more leaves two scores for each class."""

    @property
    def min_side(self) -> int:
        """The smallest input side that leaves a score."""
        return 1 if self.by_class else 2 ** len(self.channels)


DISCRIMINATORS: dict[str, Kind] = {
    "standard": Kind(standard_convolution, "of 4x4 convolutions, as published"),
    "depthwise": Kind(depthwise_separable_convolution, "of depthwise separable convolutions, lightweight"),
    "shallow": Kind(depthwise_separable_convolution, "of three of these, RTDA's", (64, 128, 1)),
    "class": Kind(small_convolution, "FADA's, which tells classes apart too; with --level feature", (256, 128), True),
}


class Discriminator(nn.Sequential):
    """[B, in_channels, H, W] -> logits [B, 1, H/s, W/s], one score a patch; s: the kind's `min_side`, that H and W must
    have. By class: [B, 2 * num_classes, H, W], first the classes of the source, then those of the target."""

    def __init__(self, kind: str, in_channels: int, num_classes: int = 19) -> None:
        if kind not in DISCRIMINATORS:
            raise ValueError(f"discriminator {kind!r}: expected one of {', '.join(DISCRIMINATORS)}")
        chosen = DISCRIMINATORS[kind]
        layers: list[nn.Module] = []
        for out_channels in (*chosen.channels, *([2 * num_classes] if chosen.by_class else [])):
            layers += [chosen.convolution(in_channels, out_channels), nn.LeakyReLU(0.2, inplace=True)]
            in_channels = out_channels
        super().__init__(*layers[:-1])
        self.min_side, self.by_class = chosen.min_side, chosen.by_class

    def forward(self, maps: Tensor) -> Tensor:
        if min(maps.shape[-2:]) < self.min_side:
            height, width = maps.shape[-2:]
            raise ValueError(
                f"the discriminator needs maps of at least {self.min_side} x {self.min_side}, found {width} x {height}"
            )
        return super().forward(maps)
