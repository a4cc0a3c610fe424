"""Jitter and blur of a batch against torchvision's, picture by picture, with the same draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from adaptation.mixing import StrongAugmentation
from datasets import appearance
from datasets.appearance import Appearance


def pictures(count: int) -> Tensor:
    """uint8 [B, 3, 30, 44]: smooth and noisy, grey, black, white, and pure colours."""
    torch.manual_seed(9)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 5), (30, 44), mode="bilinear")
    images = (255 * (0.8 * smooth + 0.2 * torch.rand(count, 3, 30, 44))).byte()
    images[0, :] = images[0, :1]  # grey: no hue
    images[1, :, :10], images[1, :, 10:20] = 0, 255
    images[2] = (torch.arange(44) // 4 % 3 == torch.arange(3)[:, None])[:, None] * 255
    return images.contiguous(memory_format=torch.channels_last)


def one_by_one(images: Tensor, *transforms: v2.Transform) -> Tensor:
    for transform in transforms:
        images = torch.stack([transform(image) for image in images])
    return images


REPORT = v2.ColorJitter(0.5, 0.5, 0.5, 0.05), v2.GaussianBlur(3, (0.2, 0.8))
STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.25, 0.25, 0.25, 0.25)], p=0.8),
        v2.RandomApply([v2.GaussianBlur(9, (0.15, 1.15))], p=0.5),
    ]
)


@pytest.fixture(params=["one by one", "all at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU's way, and the GPU's, which must give the same pictures."""
    if request.param == "all at once":
        monkeypatch.setattr(appearance, "fits_caches", lambda device: False)
    return request.param


@pytest.mark.parametrize("seed", range(6))
def test_the_reports_appearance_is_torchvisions(way: str, seed: int) -> None:
    images = pictures(7)
    torch.manual_seed(seed)
    expected = one_by_one(images.float() / 255, *REPORT)
    after = torch.rand(3)
    torch.manual_seed(seed)
    found = Appearance(jitter=True, blur=True)(images)
    assert (found - expected).abs().max() < 1e-5
    assert torch.equal(torch.rand(3), after)  # as many random numbers were drawn


@pytest.mark.parametrize("seed", range(6))
def test_strong_augmentation_is_torchvisions(way: str, seed: int) -> None:
    images = pictures(9).float() / 255 * 1.2 - 0.1  # FDA may leave [0, 1]
    before = images.clone()
    torch.manual_seed(seed)
    expected = one_by_one(images.clamp(0, 1), STRONG)
    torch.manual_seed(seed)
    found = StrongAugmentation()(images)
    assert (found - expected).abs().max() < 1e-5
    assert torch.equal(images, before)


@pytest.mark.parametrize("alone", ["brightness", "contrast", "saturation", "hue"])
def test_each_operation_alone(alone: str) -> None:
    images = pictures(5).float().contiguous() / 255
    for factor in (-0.5, -0.2, 0.0, 0.4) if alone == "hue" else (0.0, 0.3, 1.0, 1.7):
        expected = getattr(v2.functional, f"adjust_{alone}")(images, factor)
        found = getattr(appearance, alone)(images.clone(), torch.full((5, 1, 1, 1), factor))
        assert (found - expected).abs().max() < 1e-5
