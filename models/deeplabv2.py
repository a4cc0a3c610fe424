"""DeepLabV2 (Chen et al., TPAMI 2018): ResNet-101 at output stride 8 with an ASPP classifier; the heavy network.

The published definition is Caffe's, and so is this one: the stride of a stage is on its first 1x1 convolution, the
max-pool rounds up (features of 65x129 at 1024x512), and every block of the last two stages is dilated, by 2 and by 4.
torchvision's ResNet has the stride on the 3x3. Its ImageNet weights load here without change, but were trained with
a stride one convolution later, which their first epochs of fine-tuning have to absorb. (torchvision's
`replace_stride_with_dilation` would also give the first block of a stage the dilation of the stage before.)

43,901,068 parameters: 42,500,160 of the ResNet without its ImageNet classifier, and four 3x3 convolutions of 350,227.
Multi-level adaptation (AdaptSegNet) adds a second classifier on the output of layer3.
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from .layers import enlarge
from .segmenter import Outputs, Segmenter, Settings
from .weights import load_backbone, torchvision_imagenet

RATES = (6, 12, 18, 24)


class ASPP(nn.Module):
    """Four parallel 3x3 convolutions of rates 6, 12, 18, 24, summed (figure 7, ASPP-L)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in RATES
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, num_classes, h, w]."""
        return sum(branch(features) for branch in self.branches)


class DeepLabV2(Segmenter):
    """One classifier; with `multi_level` a second, auxiliary one, without it no auxiliary logits.

    frozen_batch_norm: statistics and affine parameters of batch normalisation stay as the weights brought them; meant
    for pretrained weights. Without it batch normalisation is trained like everything else.
    """

    title = "DeepLabV2"
    backbones = {"resnet101": "ResNet-101"}
    settings = {
        # Rate, decay and auxiliary weight of AdaptSegNet (CVPR 2018), whose auxiliary classifier exists in multi-level
        # adaptation. It takes batches of 1, unscaled and not mirrored; flip and scales are BiSeNet's.
        "paper": Settings(4, 2.5e-4, 5e-4, aux_weight=0.1, flip=0.5, scales=(0.75, 1.0, 1.5, 1.75, 2.0)),
        "report": Settings(4, 1e-4, 5e-4, aux_weight=0.1),
    }
    cam_layer = "backbone.layer4"
    rate_factors = {"classifier": 10.0, "auxiliary": 10.0}
    pretrained_options = {"frozen_batch_norm": True}
    multi_level_options = {"multi_level": True}
    variants = {"multi-level": {"multi_level": True}}

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str = "resnet101",
        multi_level: bool = False,
        frozen_batch_norm: bool = False,
        weights: str = "none",
        allow_partial_weights: bool = False,
    ) -> None:
        super().__init__(backbone)
        self.backbone = dilated_resnet101()
        self.classifier = ASPP(2048, num_classes)
        self.auxiliary = ASPP(1024, num_classes) if multi_level else None
        self.weights_report = load_backbone(
            self.backbone, backbone, weights, allow_partial_weights, torchvision_imagenet(backbone)
        )
        self.frozen_batch_norm = frozen_batch_norm
        if frozen_batch_norm:
            for module in self.batch_norms():
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> DeepLabV2:
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.batch_norms():
                module.eval()
        return self

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> what enters the classifier [B, 2048, H/8, W/8], and the output of layer3."""
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(self.normalise(images)))))
        layer3 = net.layer3(net.layer2(net.layer1(x)))
        return net.layer4(layer3), layer3

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Outputs:
        last, layer3 = features
        logits = enlarge(self.classifier(last), size)
        if not self.training:
            return logits
        return logits, () if self.auxiliary is None else (enlarge(self.auxiliary(layer3), size),)


def dilated_resnet101() -> nn.Module:
    """torchvision's ResNet-101 without its classifier, strides and dilations as published."""
    net = torchvision.models.resnet101(weights=None)
    del net.fc, net.avgpool
    net.maxpool.ceil_mode = True
    for stage, stride, dilation in ((net.layer2, 2, 1), (net.layer3, 1, 2), (net.layer4, 1, 4)):
        first = stage[0]
        first.conv1.stride, first.conv2.stride = (stride, stride), (1, 1)
        first.downsample[0].stride = (stride, stride)
        for block in stage:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    return net
