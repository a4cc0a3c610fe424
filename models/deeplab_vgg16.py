"""DeepLab on VGG-16 (Chen et al., TPAMI 2018), as AdaptSegNet, ADVENT and FADA use it: no batch normalisation anywhere.

VGG-16 down to 1/8: its last two pools are left out, and conv5 is dilated by 2 instead. Its fully connected layers are
3x3 convolutions of 1,024 channels, dilated by 4, then follows DeepLabV2's ASPP. Pools round up, as Caffe's do. The
public code of AdaptSegNet returns from within its classifier's loop, so that only rates 6 and 12 are summed there;
here all four are, as the papers say. The VGG of FDA, BDL and CBST is another network: FCN-8s.

29,573,004 parameters; 325,545,099,264 MACs at 1024x512. A network without batch normalisation is the control for all
that statistics do in adaptation: AdaBN has nothing to adapt, and a target forward pass of weight 0 changes nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from .deeplabv2 import ASPP
from .layers import enlarge
from .segmenter import Outputs, Segmenter, Settings
from .weights import load_backbone, torchvision_imagenet

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of conv1 to conv5."""
POOLED = 3
"""Stages that a pool follows."""


class DeepLabVGG16(Segmenter):
    """No auxiliary logits. ImageNet's weights are those of the convolutions; the rest starts at random."""

    title = "DeepLab-VGG16"
    backbones = {"vgg16": "VGG-16"}
    # AdaptSegNet's (CVPR 2018), one rate for all; flip and scales are BiSeNet's.
    settings = {"paper": Settings(4, 2.5e-4, 5e-4, aux_weight=0.1, flip=0.5, scales=(0.75, 1.0, 1.5, 1.75, 2.0))}
    cam_layer = "connected"

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str = "vgg16",
        weights: str = "none",
        allow_partial_weights: bool = False,
    ) -> None:
        super().__init__(backbone)
        self.backbone = dilated_vgg16()
        self.connected = nn.Sequential(*convolution(512, 1024, dilation=4), *convolution(1024, 1024, dilation=4))
        self.classifier = ASPP(1024, num_classes)
        published = nn.ModuleDict({"features": self.backbone})  # the names in torchvision's weights
        self.weights_report = load_backbone(
            published, backbone, weights, allow_partial_weights, torchvision_imagenet(backbone, "classifier")
        )

    def features(self, images: Tensor) -> tuple[Tensor]:
        """[B, 3, H, W] in [0, 1] -> what enters the classifier [B, 1024, H/8, W/8]."""
        return (self.connected(self.backbone(self.normalise(images))),)

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Outputs:
        logits = enlarge(self.classifier(features[0]), size)
        return (logits, ()) if self.training else logits


def convolution(in_channels: int, out_channels: int, dilation: int = 1) -> tuple[nn.Module, nn.Module]:
    """3x3 and ReLU; starts as torchvision's VGG does."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    return conv, nn.ReLU(inplace=True)


def dilated_vgg16() -> nn.Sequential:
    """[B, 3, H, W] -> [B, 512, H/8, W/8]. Its parts have the numbers of torchvision's `vgg16().features`, of which the
    last two pools are left out."""
    layers: list[nn.Module] = []
    in_channels = 3
    for stage, (channels, number) in enumerate(STAGES):
        for _ in range(number):
            layers += convolution(in_channels, channels, dilation=2 if stage > POOLED else 1)
            in_channels = channels
        layers.append(nn.MaxPool2d(2, ceil_mode=True) if stage < POOLED else nn.Identity())
    return nn.Sequential(*layers)
