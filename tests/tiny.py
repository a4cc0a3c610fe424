"""A BiSeNet in miniature, for tests of the life of a run: 12,000 parameters instead of 12 million.

Importing this module adds it to the table of networks, as `--model tiny`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from models import SEGMENTERS
from models.bisenet import AttentionRefinement, BiSeNet, ConvBlock, FeatureFusion
from models.segmenter import Segmenter
from models.weights import load_backbone

CHANNELS = {"narrow": 8, "wide": 16}
"""Of every layer but the deepest, which has twice as many."""


class ThinContextPath(nn.Module):
    """Strided convolutions where the ResNet has stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2, ceil_mode=True)
        self.layer2 = ConvBlock(channels, channels, stride=2)
        self.layer3 = ConvBlock(channels, channels, stride=2)
        self.layer4 = ConvBlock(channels, 2 * channels, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> features at 1/16 and at 1/32."""
        features16 = self.layer3(self.layer2(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return features16, self.layer4(features16)


class Tiny(BiSeNet):
    """The same parts under the same names, each thin."""

    title = "Tiny"
    backbones: ClassVar = {"narrow": "8 channels", "wide": "16 channels"}

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str = "narrow",
        weights: str = "none",
        allow_partial_weights: bool = False,
    ) -> None:
        Segmenter.__init__(self, backbone)
        thin = CHANNELS[backbone]
        self.spatial_path = nn.Sequential(
            ConvBlock(3, thin, stride=2), ConvBlock(thin, thin, stride=2), ConvBlock(thin, thin, stride=2)
        )
        self.refine16 = AttentionRefinement(thin)
        self.refine32 = AttentionRefinement(2 * thin)
        self.fusion = FeatureFusion(4 * thin, num_classes)
        self.classifier = nn.Conv2d(num_classes, num_classes, 1)
        self.auxiliary16 = nn.Conv2d(thin, num_classes, 1)
        self.auxiliary32 = nn.Conv2d(2 * thin, num_classes, 1)
        self.context_path = ThinContextPath(thin)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.weights_report = load_backbone(self.context_path, backbone, weights, allow_partial_weights)


SEGMENTERS["tiny"] = Tiny
