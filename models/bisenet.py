"""BiSeNet (Yu et al., ECCV 2018), in the variant whose fusion module ends in `num_classes` channels.

That is the variant behind the published 25.78 G at 1024x512 (ResNet-18). In training it has 12,068,672 parameters
(ResNet-101: 48,752,192), in inference 14,630 fewer: the two auxiliary heads. The published 12.582 M counts the
ResNet's ImageNet classifier too, which is never used and is not here.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from .layers import enlarge, resize
from .segmenter import Outputs, Segmenter, Settings
from .weights import load_backbone, torchvision_imagenet

CHANNELS = {"resnet18": (256, 512), "resnet101": (1024, 2048)}
"""Channels of the context path's 1/16 and 1/32 features."""


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ContextPath(nn.Module):
    """A ResNet down to 1/32, without its classifier (section 3.2)."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        resnet = torchvision.models.get_model(arch, weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            resnet.layer1,
            resnet.layer2,
            resnet.layer3,
            resnet.layer4,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> features at 1/16 and at 1/32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features16 = self.layer3(self.layer2(self.layer1(x)))
        return features16, self.layer4(features16)


class AttentionRefinement(nn.Module):
    """Channel attention from the global average (figure 2b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape."""
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))


class FeatureFusion(nn.Module):
    """Concatenation, 3x3 block to `num_classes` channels, then channel attention with a skip (figure 2c)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.block = ConvBlock(in_channels, num_classes, stride=1)
        self.conv1 = nn.Conv2d(num_classes, num_classes, 1)
        self.conv2 = nn.Conv2d(num_classes, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, num_classes, h, w]."""
        features = self.block(features)
        attention = self.conv2(torch.relu(self.conv1(features.mean(dim=(2, 3), keepdim=True))))
        return features + features * torch.sigmoid(attention)


class BiSeNet(Segmenter):
    """Spatial path + context path; two auxiliary heads, on the context path's features at 1/16 and at 1/32."""

    title = "BiSeNet"
    backbones = {"resnet18": "ResNet-18", "resnet101": "ResNet-101"}
    settings = {
        # Section 4.1.
        "paper": Settings(16, 2.5e-2, 1e-4, aux_weight=1.0, flip=0.5, scales=(0.75, 1.0, 1.5, 1.75, 2.0)),
        # As written; the report's augmentations are flags: --flip 0.15, --jitter, --blur.
        "report": Settings(4, 2.5e-4, 1e-4, aux_weight=1.0),
    }
    demo_lr = 2.5e-2
    cam_layer = "context_path.layer4"
    multi_level_options = {}

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str = "resnet18",
        weights: str = "none",
        allow_partial_weights: bool = False,
    ) -> None:
        super().__init__(backbone)
        channels16, channels32 = CHANNELS[backbone]
        self.spatial_path = nn.Sequential(
            ConvBlock(3, 64, stride=2), ConvBlock(64, 128, stride=2), ConvBlock(128, 256, stride=2)
        )
        self.refine16 = AttentionRefinement(channels16)
        self.refine32 = AttentionRefinement(channels32)
        self.fusion = FeatureFusion(256 + channels16 + channels32, num_classes)
        self.classifier = nn.Conv2d(num_classes, num_classes, 1)
        self.auxiliary16 = nn.Conv2d(channels16, num_classes, 1)
        self.auxiliary32 = nn.Conv2d(channels32, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.context_path = ContextPath(backbone)  # after the loop: torchvision's own initialisation stays
        self.weights_report = load_backbone(
            self.context_path, backbone, weights, allow_partial_weights, torchvision_imagenet(backbone)
        )

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> what enters the fusion module [B, C, H/8, W/8], and the refined context features
        at 1/16 and 1/32, both brought to 1/8."""
        x = self.normalise(images)
        spatial = self.spatial_path(x)
        features16, features32 = self.context_path(x)
        tail = features32.mean(dim=(2, 3), keepdim=True)
        refined16 = resize(self.refine16(features16), spatial.shape[-2:])
        refined32 = resize(self.refine32(features32) * tail, spatial.shape[-2:])
        return torch.cat((spatial, refined16, refined32), dim=1), refined16, refined32

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Outputs:
        fused, refined16, refined32 = features
        logits = self.classifier(enlarge(self.fusion(fused), size))
        if not self.training:
            return logits
        return logits, (enlarge(self.auxiliary16(refined16), size), enlarge(self.auxiliary32(refined32), size))
