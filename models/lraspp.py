"""LR-ASPP on MobileNetV3-Large (Howard et al., ICCV 2019, section 6.4): a real-time network of few parameters.

The modules are torchvision's, with its dilated last stage, and the result is that of `lraspp_mobilenet_v3_large` with
the same weights. 3,221,198 parameters, all of them needed in inference; 3,944,947,584 MACs at 1024x512, of which a CPU
or GPU is bound by memory for those of depthwise convolutions: measure its latency, the MACs do not say it.

torchvision's batch normalisation has TensorFlow's momentum of 0.01 in all layers of the backbone. In a run of 200 steps
13 % of a running statistic would be its initial value still, so here it is 0.1, as in the other networks.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from .layers import enlarge, resize
from .segmenter import Outputs, Segmenter, Settings
from .weights import load_backbone, torchvision_imagenet

MOMENTUM = 0.1


class LRASPP(Segmenter):
    """No auxiliary logits."""

    title = "LR-ASPP"
    backbones = {"mobilenet_v3_large": "MobileNetV3-Large"}
    # The paper names none for Cityscapes: mmsegmentation's; flip and scales are BiSeNet's.
    settings = {"paper": Settings(16, 1e-2, 5e-4, aux_weight=1.0, flip=0.5, scales=(0.75, 1.0, 1.5, 1.75, 2.0))}
    cam_layer = "backbone.16"

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str = "mobilenet_v3_large",
        weights: str = "none",
        allow_partial_weights: bool = False,
    ) -> None:
        super().__init__(backbone)
        net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)
        self.backbone, self.head = net.backbone, net.classifier
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
        published = nn.ModuleDict({"features": self.backbone})  # the names in torchvision's weights
        self.weights_report = load_backbone(
            published, backbone, weights, allow_partial_weights, torchvision_imagenet(backbone, "classifier")
        )

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> what enters the classifiers at 1/8: [B, 128, H/8, W/8] from the last stage, and the
        [B, 40, H/8, W/8] of an early one."""
        seen = self.backbone(self.normalise(images))
        low, high = seen["low"], seen["high"]
        return resize(self.head.cbr(high) * self.head.scale(high), low.shape[-2:]), low

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Outputs:
        deep, low = features
        logits = enlarge(self.head.low_classifier(low) + self.head.high_classifier(deep), size)
        return (logits, ()) if self.training else logits
