"""PIDNet (Xu et al., CVPR 2023): three branches, for semantics (I), detail (P) and boundaries (D); a real-time network.

Modules have the names of the authors' code, so that their ImageNet weights load. Never start from their Cityscapes
weights: those have seen the target's labels. Where that code expects sides of a multiple of 8, this one takes any. The
two heads of training see what the rectifier left, as they do in that code, where it works in place.

|   | blocks (stem, I) | channels | pooling | parameters in inference | MACs at 1024x512 |
| S | 2, 3 | 32 | PAPPM 96  |  7,625,715 | 11,798,593,536 |
| M | 2, 3 | 64 | PAPPM 96  | 28,538,515 | 44,332,253,184 |
| L | 3, 4 | 64 | DAPPM 112 | 36,939,571 | 68,733,452,288 |

In training S has 95,220 parameters more: an extra semantic head on P and the boundary head on D.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from .layers import enlarge, resize
from .segmenter import Outputs, Segmenter, Settings
from .weights import ImageNet, WeightsError, load_backbone


class Size(NamedTuple):
    """blocks, deep: residual blocks of a stage, in the stem and P, and in I; channels: the stem's; pooled: of a branch
    of the pyramid; head: of the final head and the extra semantic one."""

    blocks: int
    deep: int
    channels: int
    pooled: int
    head: int
    light: bool
    """PAPPM and Light-Bag in place of DAPPM and Bag, and a thinner D."""


SIZES = {"s": Size(2, 3, 32, 96, 128, True), "m": Size(2, 3, 64, 96, 128, True), "l": Size(3, 4, 64, 112, 256, False)}
POOLS = ((5, 2), (9, 4), (17, 8))
"""Kernel and stride of the pyramid's average pools; a fourth one is global."""


def normalised(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def activated(in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1) -> list[nn.Module]:
    """Batch normalisation, ReLU, convolution without bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv]


class Residual(nn.Module):
    """A residual block: [B, in_channels, h, w] -> [B, channels * expansion, h / stride, w / stride]."""

    expansion = 1
    kernels = (3, 3)
    """Of its convolutions; the stride is on the first of 3x3, the expansion on the last."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, rectified: bool = False) -> None:
        super().__init__()
        self.rectified = rectified
        before, last, strided = in_channels, len(self.kernels), self.kernels.index(3) + 1
        for number, kernel in enumerate(self.kernels, 1):
            after = channels * (self.expansion if number == last else 1)
            step = stride if number == strided else 1
            conv = nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
            before = after
        same = stride == 1 and in_channels == before
        self.downsample = None if same else normalised(in_channels, before, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, len(self.kernels) + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            x = torch.relu(x) if number < len(self.kernels) else x + shortcut
        return torch.relu(x) if self.rectified else x


class Bottleneck(Residual):
    """Of three convolutions, to twice the channels."""

    expansion = 2
    kernels = (1, 3, 1)


def stage(block: type[Residual], in_channels: int, channels: int, number: int, stride: int = 1) -> nn.Sequential:
    """Blocks in a row, the first of them strided. What leaves the last one is not rectified; no bottleneck is."""
    blocks = [block(in_channels, channels, stride, rectified=block is Residual and number > 1)]
    for place in range(2, number + 1):
        blocks.append(block(channels * block.expansion, channels, rectified=block is Residual and place < number))
    return nn.Sequential(*blocks)


class Head(nn.Module):
    """[B, in_channels, h, w] -> logits [B, out_channels, h, w]."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


class Pag(nn.Module):
    """Pixel-attention-guided fusion: detail takes over from semantics where the two agree."""

    def __init__(self, channels: int, compared: int) -> None:
        super().__init__()
        self.f_x, self.f_y = normalised(channels, compared), normalised(channels, compared)

    def forward(self, detail: Tensor, semantics: Tensor) -> Tensor:
        """[B, C, h, w] and [B, C, h', w'] -> [B, C, h, w]."""
        size = detail.shape[-2:]
        agreement = torch.sigmoid((self.f_x(detail) * resize(self.f_y(semantics), size)).sum(1, keepdim=True))
        return (1 - agreement) * detail + agreement * resize(semantics, size)


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, 1, 1]."""
        return x.mean(dim=(2, 3), keepdim=True)


class Pyramid(nn.Module):
    """Pyramid pooling at 1/64, [B, C, h, w] -> [B, out_channels, h, w]; what its two kinds share."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(kernel, stride, kernel // 2) for kernel, stride in POOLS]
        self.scale0 = nn.Sequential(*activated(in_channels, channels))
        for number, pool in enumerate([*pools, GlobalMean()], 1):
            self.add_module(f"scale{number}", nn.Sequential(pool, *activated(in_channels, channels)))
        self.compression = nn.Sequential(*activated(5 * channels, out_channels))
        self.shortcut = nn.Sequential(*activated(in_channels, out_channels))

    def pooled(self, number: int, x: Tensor) -> Tensor:
        return resize(getattr(self, f"scale{number}")(x), x.shape[-2:])

    def context(self, x: Tensor, unpooled: Tensor) -> list[Tensor]:
        """What is concatenated after the branch without a pool."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        unpooled = self.scale0(x)
        return self.compression(torch.cat([unpooled, *self.context(x, unpooled)], 1)) + self.shortcut(x)


class PAPPM(Pyramid):
    """The parallel kind, the paper's own."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__(in_channels, channels, out_channels)
        self.scale_process = nn.Sequential(*activated(4 * channels, 4 * channels, 3, groups=4))

    def context(self, x: Tensor, unpooled: Tensor) -> list[Tensor]:
        return [self.scale_process(torch.cat([self.pooled(number, x) + unpooled for number in range(1, 5)], 1))]


class DAPPM(Pyramid):
    """The sequential kind, DDRNet's (Hong et al., 2021)."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__(in_channels, channels, out_channels)
        for number in range(1, 5):
            self.add_module(f"process{number}", nn.Sequential(*activated(channels, channels, 3)))

    def context(self, x: Tensor, unpooled: Tensor) -> list[Tensor]:
        found = [unpooled]
        for number in range(1, 5):
            found.append(getattr(self, f"process{number}")(self.pooled(number, x) + found[-1]))
        return found[1:]


class LightBag(nn.Module):
    """Boundary-attention-guided fusion: detail at boundaries, semantics elsewhere."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_p, self.conv_i = normalised(channels, channels), normalised(channels, channels)

    def forward(self, detail: Tensor, semantics: Tensor, boundary: Tensor) -> Tensor:
        """Three of [B, C, h, w] -> the same shape."""
        edge = torch.sigmoid(boundary)
        return self.conv_p((1 - edge) * semantics + detail) + self.conv_i(semantics + edge * detail)


class Bag(nn.Module):
    """The same with one larger convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*activated(channels, channels, 3))

    def forward(self, detail: Tensor, semantics: Tensor, boundary: Tensor) -> Tensor:
        """Three of [B, C, h, w] -> the same shape."""
        edge = torch.sigmoid(boundary)
        return self.conv(edge * detail + (1 - edge) * semantics)


def not_published() -> NoReturn:
    raise WeightsError(
        "PIDNet's ImageNet weights cannot be downloaded from here: its authors link them in the README of "
        "github.com/XuJiacong/PIDNet; give --weights FILE (theirs) or --weights none"
    )


AUTHORS = ImageNet("the authors' file", not_published, ("down5", "last_layer", "linear"), may_lack=("spp", "dfm"))


class PIDNet(Segmenter):
    """Auxiliary logits: of the extra semantic head, and one channel that says where a boundary is."""

    title = "PIDNet"
    backbones = {"s": "S", "m": "M", "l": "L"}
    # Section 4.2 and the authors' configuration, but for the size of the crops and their class weights for Cityscapes
    # (0.84 to 1.15).
    settings = {
        "paper": Settings(
            12, 1e-2, 5e-4, aux_weight=0.4, flip=0.5, scales=tuple(n / 10 for n in range(5, 22)), loss="pidnet"
        )
    }
    cam_layer = "layer5"
    multi_level_options = {}

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str = "s",
        weights: str = "none",
        allow_partial_weights: bool = False,
    ) -> None:
        super().__init__(backbone)
        blocks, deep, c, pooled, head, light = SIZES[backbone]
        thin = c if light else 2 * c  # of D's first stage
        self.conv1 = nn.Sequential(
            *(nn.Conv2d(3, c, 3, 2, padding=1), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
            *(nn.Conv2d(c, c, 3, 2, padding=1), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
        )
        self.layer1 = stage(Residual, c, c, blocks)
        self.layer2 = stage(Residual, c, 2 * c, blocks, stride=2)
        self.layer3 = stage(Residual, 2 * c, 4 * c, deep, stride=2)
        self.layer4 = stage(Residual, 4 * c, 8 * c, deep, stride=2)
        self.layer5 = stage(Bottleneck, 8 * c, 8 * c, 2, stride=2)
        self.compression3, self.compression4 = normalised(4 * c, 2 * c), normalised(8 * c, 2 * c)
        self.pag3, self.pag4 = Pag(2 * c, c), Pag(2 * c, c)
        self.layer3_ = stage(Residual, 2 * c, 2 * c, blocks)
        self.layer4_ = stage(Residual, 2 * c, 2 * c, blocks)
        self.layer5_ = stage(Bottleneck, 2 * c, 2 * c, 1)
        self.layer3_d = Residual(2 * c, thin)
        self.layer4_d = stage(Bottleneck, c, c, 1) if light else Residual(2 * c, 2 * c)
        self.layer5_d = stage(Bottleneck, 2 * c, 2 * c, 1)
        self.diff3, self.diff4 = normalised(4 * c, thin, 3), normalised(8 * c, 2 * c, 3)

        self.spp = (PAPPM if light else DAPPM)(16 * c, pooled, 4 * c)
        self.dfm = (LightBag if light else Bag)(4 * c)
        pretrained = nn.ModuleDict({name: part for name, part in self.named_children() if name != "normalise"})
        self.final_layer = Head(4 * c, head, num_classes)
        self.auxiliary_p, self.auxiliary_d = Head(2 * c, head, num_classes), Head(2 * c, c, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.weights_report = load_backbone(pretrained, f"pidnet {backbone}", weights, allow_partial_weights, AUTHORS)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> what enters the final head [B, 4C, H/8, W/8]; and what enters the heads that exist
        in training only, P and D on their way, [B, 2C, H/8, W/8] each."""
        x = self.layer1(self.conv1(self.normalise(images)))
        x = torch.relu(self.layer2(torch.relu(x)))
        size = x.shape[-2:]
        p, d = self.layer3_(x), self.layer3_d(x)

        x = torch.relu(self.layer3(x))
        p = torch.relu(self.pag3(p, self.compression3(x)))
        d = torch.relu(d + resize(self.diff3(x), size))
        seen_p = p

        x = torch.relu(self.layer4(x))
        p = torch.relu(self.pag4(self.layer4_(p), self.compression4(x)))
        d = torch.relu(self.layer4_d(d) + resize(self.diff4(x), size))
        seen_d = d

        x = resize(self.spp(self.layer5(x)), size)
        return self.dfm(self.layer5_(p), x, self.layer5_d(d)), seen_p, seen_d

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Outputs:
        fused, p, d = features
        logits = enlarge(self.final_layer(fused), size)
        if not self.training:
            return logits
        return logits, (enlarge(self.auxiliary_p(p), size), enlarge(self.auxiliary_d(d), size))
