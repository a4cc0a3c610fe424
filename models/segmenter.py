"""What every segmentation network here is and says of itself. A new one is a subclass and a line in `SEGMENTERS`.

The flags' choices and defaults, the costs that are counted, the layer that is explained and the titles in a report
follow from the class.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import Normalise

Outputs = Tensor | tuple[Tensor, tuple[Tensor, ...]]
"""Logits [B, num_classes, H, W] in evaluation; in training (logits, auxiliary logits), all of one size. The auxiliary
logits are a tuple, empty where there are none. Multi-level adaptation looks at the first. Behind the others may stand
[B, 1, H, W], logits of where boundaries are."""


class Settings(NamedTuple):
    """How a network is trained: what the flags of these names default to."""

    batch_size: int
    lr: float
    weight_decay: float
    aux_weight: float
    """Weight of each auxiliary loss."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    scales: tuple[float, ...] = (1.0,)
    """One is drawn per picture, before the crop."""
    loss: str = "ce"
    """On labelled pixels, as `--loss` names it."""


class Segmenter(nn.Module):
    """images [B, 3, H, W] in [0, 1], any H and W from 32 -> `Outputs` of the same H and W.

    A subclass says the class variables below, builds its parts, and has `features` and `decode`. Its constructor takes
    `num_classes`, `backbone`, `weights` and `allow_partial_weights`, and options of its own; it says what it started
    from in `weights_report`. Parts that are used in training only are named `auxiliary*`. A batch normalisation that
    is registered right after a convolution also follows it in the forward pass (`models.deployment` relies on it).
    """

    title: ClassVar[str]
    """What people call it."""
    backbones: ClassVar[dict[str, str]]
    """Name -> title of each backbone it can stand on; the first is the default."""
    settings: ClassVar[dict[str, Settings]]
    """`paper`: as its paper trains it, or as the papers that adapt it do; `report`: as the student report did, where
    the report trained it."""
    cam_layer: ClassVar[str]
    """The layer Grad-CAM looks at unless another is named: the last with the deepest features."""

    demo_lr: ClassVar[float | None] = None
    """The rate of the demo's few steps, where it is another than that of the settings."""
    rate_factors: ClassVar[dict[str, float]] = {}
    """Part -> the multiple of the rate at which it is trained."""
    pretrained_options: ClassVar[dict[str, Any]] = {}
    """Its constructor's options for training that starts from pretrained weights."""
    multi_level_options: ClassVar[dict[str, Any] | None] = None
    """Its constructor's options with which it has auxiliary logits for multi-level adaptation; None: it cannot."""
    variants: ClassVar[dict[str, dict[str, Any]]] = {}
    """Title -> options of other forms of it whose costs are worth counting."""

    weights_report: str
    """What it started from, in words."""

    def __init__(self, backbone: str) -> None:
        """Raises ValueError for a backbone that the class does not name."""
        super().__init__()
        if backbone not in self.backbones:
            raise ValueError(f"{self.title} on backbone {backbone!r}: expected one of {', '.join(self.backbones)}")
        self.normalise = Normalise()

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] in [0, 1] -> what `decode` needs. The first is [B, C, H/8, W/8], rounded up: the features that
        feature-level adaptation looks at."""
        raise NotImplementedError

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Outputs:
        """What `features` gave -> the outputs of `forward`, at `size` = (H, W); whether in training, `self.training`
        says."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Outputs:
        return self.decode(self.features(images), images.shape[-2:])

    @classmethod
    def default_backbone(cls) -> str:
        return next(iter(cls.backbones))

    def batch_norms(self) -> list[nn.Module]:
        """Its layers of batch normalisation; also SyncBatchNorm, which stands in their place where several GPUs train.
        Some networks have none."""
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def inference_parameters(self) -> int:
        """How many prediction needs: all but those of the parts named `auxiliary*`."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("auxiliary"))
