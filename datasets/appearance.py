"""How pictures look: from uint8 to float in [0, 1], colour jitter and blur; on the device, pictures only.

Jitter and blur are torchvision's (v2.ColorJitter, v2.GaussianBlur), with draws of its own for each picture, in the same
order from torch's global generator, which a run seeds anew at every step. Torchvision would take the pictures one by
one; here each operation takes all pictures of the batch that are due for it at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [0, 1]."""
    return images.float() / 255


class Jitter(NamedTuple):
    """One picture's draws: the order of the four operations, as indices into the others, and their factors."""

    order: tuple[int, ...]
    factors: tuple[float, ...]


class ColourJitter:
    """Brightness, contrast and saturation are drawn from [1 - x, 1 + x], the hue's shift from [-x, x] of a turn."""

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        self.ranges = [(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation)] + [(-hue, hue)]

    def draw(self) -> Jitter:
        """For one picture."""
        order = tuple(torch.randperm(len(OPERATIONS)).tolist())
        return Jitter(order, tuple(_uniform(low, high) for low, high in self.ranges))

    def __call__(self, images: Tensor, drawn: Sequence[Jitter | None]) -> Tensor:
        """Float [B, 3, H, W] in [0, 1], changed in place and given back; None: the picture stays."""
        for place in range(len(OPERATIONS)):
            for number, operation in enumerate(OPERATIONS):
                due = [i for i, jitter in enumerate(drawn) if jitter is not None and jitter.order[place] == number]
                for part, factors in together(images, {i: drawn[i].factors[number] for i in due}):
                    images[part] = operation(images[part], factors)
        return images


class GaussianBlur:
    """A kernel of `size` pixels a side, its sigma drawn from `sigma`; pictures are reflected at their edges."""

    def __init__(self, size: int, sigma: tuple[float, float]) -> None:
        self.size, self.sigma = size, sigma

    def draw(self) -> float:
        """A sigma, for one picture."""
        return _uniform(*self.sigma)

    def __call__(self, images: Tensor, drawn: Sequence[float | None]) -> Tensor:
        """Float [B, 3, H, W], changed in place and given back; None: the picture stays."""
        due = {i: sigma for i, sigma in enumerate(drawn) if sigma is not None}
        for part, sigmas in together(images, due):
            # Sums of shifted pictures, along one side and then the other: on a CPU faster than convolutions of single
            # channels.
            planes = F.pad(images[part], (self.size // 2,) * 4, mode="reflect")
            weights = self.kernels(sigmas)
            for side in (-1, -2):
                length = planes.shape[side] - self.size + 1
                shifted = [planes.narrow(side, shift, length) for shift in range(self.size)]
                planes = shifted[0] * weights[0]
                for picture, weight in zip(shifted[1:], weights[1:], strict=True):
                    planes.addcmul_(picture, weight)
            images[part] = planes
        return images

    def kernels(self, sigmas: Tensor) -> Tensor:
        """[B, 1, 1, 1] -> [size, B, 1, 1, 1], each picture's weights from one side of the kernel to the other."""
        limit = (self.size - 1) / (2 * math.sqrt(2))  # so exp(-x^2 / (2 sigma^2)) at whole pixels x
        along = torch.linspace(-limit, limit, self.size, device=sigmas.device).view(-1, 1, 1, 1, 1)
        return (-(along / sigmas).square()).softmax(dim=0)


def together(images: Tensor, values: dict[int, float]) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Which pictures of the batch to take at once, and each one's value [n, 1, 1, 1]: all that have one; or one by
    one, each in place, where a picture fits the processor's caches and a batch does not."""
    if fits_caches(images.device):
        for picture, value in values.items():
            yield slice(picture, picture + 1), torch.tensor(value).view(1, 1, 1, 1)
    elif values:
        of_each = torch.tensor(list(values.values())).view(-1, 1, 1, 1).to(images.device, non_blocking=True)
        yield torch.tensor(list(values)).to(images.device, non_blocking=True), of_each


def fits_caches(device: torch.device) -> bool:
    return device.type == "cpu"


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """factors: [B, 1, 1, 1], as for the other two; changes `images` in place."""
    return images.mul_(factors).clamp_(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factors).add_(mean * (1 - factors)).clamp_(0, 1)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    grey = _grey(images).mul_(1 - factors)
    return images.mul_(factors).add_(grey).clamp_(0, 1)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shifts the hue by so many turns, [B, 1, 1, 1] in [-0.5, 0.5]."""
    red, green, blue = images.unbind(1)
    largest = torch.maximum(red, green).maximum(blue)
    least = torch.minimum(red, green).minimum(blue)
    chroma = largest - least
    divisor = chroma.clamp(min=torch.finfo(chroma.dtype).tiny)
    # In sixths of a turn, from red: on which side of the largest channel's colour the other two put it.
    sixths = torch.where(largest == green, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4))
    sixths = torch.where(largest == red, (green - blue).div_(divisor), sixths).add_(6 * turns[:, 0]).remainder_(6)
    shares = (sixths - 3).abs_().sub_(1), 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_()
    for channel, share in enumerate(shares):
        images[:, channel] = torch.addcmul(least, chroma, share.clamp_(0, 1))
    return images


OPERATIONS = (brightness, contrast, saturation, hue)


def _grey(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> luma [B, 1, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _uniform(low: float, high: float) -> float:
    return torch.empty(1).uniform_(low, high).item()


JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
BLUR = {"size": 3, "sigma": (0.2, 0.8)}
"""The student report's."""


class Appearance:
    """uint8 [B, 3, H, W] -> float32 [B, 3, H, W] in [0, 1], each picture jittered and blurred by draws of its own."""

    def __init__(self, jitter: bool = False, blur: bool = False) -> None:
        self.transforms = [ColourJitter(**JITTER)] if jitter else []
        self.transforms += [GaussianBlur(**BLUR)] if blur else []

    def __call__(self, images: Tensor) -> Tensor:
        pictures = to_float(images)
        if self.transforms:
            pictures = pictures.contiguous()  # jitter and blur take channels apart
        for transform in self.transforms:
            pictures = transform(pictures, [transform.draw() for _ in pictures])
        return pictures
