"""The mathematics against numbers written down beside their source: small inputs, sums that fit a line of paper.

Elsewhere each of these is compared with another way to compute it, at random inputs. Here a reader sees what is meant.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adaptation.adversarial import GANS, SOURCE, TARGET
from adaptation.entropy import (
    charbonnier_entropy_loss,
    min_entropy_loss,
    prediction_entropy,
    weighted_self_information,
)
from adaptation.losses import cross_entropy
from adaptation.mixing import class_mask, mix, pseudo_label_weight
from datasets.labels import IGNORE
from training.building import poly
from utils.metrics import ConfusionMatrix


def logits(*pixels: tuple[float, ...]) -> Tensor:
    """Probabilities, a tuple for each pixel -> logits [1, C, 1, pixels]."""
    return torch.tensor(pixels).log().T[None, :, None]


def test_cross_entropy_is_the_mean_of_minus_log_p_over_labelled_pixels() -> None:
    predicted = logits((0.5, 0.25, 0.25), (0.1, 0.1, 0.8), (0.2, 0.7, 0.1))
    labels = torch.tensor([[[0, 2, IGNORE]]], dtype=torch.uint8)
    assert float(cross_entropy(predicted, labels)) == pytest.approx((math.log(2) - math.log(0.8)) / 2)


def test_adversarial_losses() -> None:
    """AdaptSegNet (Tsai et al., CVPR 2018), equations 1 and 4, with its code's domain labels: source 0, target 1.
    LSGAN (Mao et al., ICCV 2017), equation 2, without its factor of a half."""
    assert (SOURCE, TARGET) == (0, 1)
    score = torch.full((1, 1, 1, 1), math.log(3))  # the sigmoid is 3/4
    assert float(GANS["vanilla"].loss(score, TARGET)) == pytest.approx(-math.log(3 / 4))
    assert float(GANS["vanilla"].loss(score, SOURCE)) == pytest.approx(-math.log(1 / 4))
    score = torch.full((1, 1, 1, 1), 0.75)
    assert float(GANS["least-squares"].loss(score, TARGET)) == pytest.approx(1 / 16)
    assert float(GANS["least-squares"].loss(score, SOURCE)) == pytest.approx(9 / 16)


def test_entropies() -> None:
    """ADVENT (Vu et al., CVPR 2019), equations 2, 3 and 8; FDA (Yang and Soatto, CVPR 2020), equation 5 with eta 2.

    Of (1/2, 1/4, 1/4): each class has 1/2 bit, out of log2 3 at most.
    """
    predicted, bit = logits((0.5, 0.25, 0.25)), 1 / math.log2(3)
    assert weighted_self_information(predicted).flatten().tolist() == pytest.approx([bit / 2] * 3)
    assert float(prediction_entropy(predicted)) == pytest.approx(1.5 * bit)
    both = logits((0.5, 0.25, 0.25), (1 / 3, 1 / 3, 1 / 3))
    assert float(min_entropy_loss(both)) == pytest.approx((1.5 * bit + 1) / 2)
    # Its code's Charbonnier function, (x^2 + 1e-8)^2, on the entropy.
    assert float(charbonnier_entropy_loss(both)) == pytest.approx((((1.5 * bit) ** 2 + 1e-8) ** 2 + 1) / 2)


def test_classmix_pastes_half_of_the_classes() -> None:
    """ClassMix (Olsson et al., WACV 2021), section 3.1: M is 1 on half of the classes, and x = M x_s + (1 - M) x_t."""
    labels = torch.tensor([[[0, 0, 3, 3, 7, 7, 9, IGNORE]]], dtype=torch.uint8)
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        mask = class_mask(labels)
        pasted = tuple(labels[mask].unique().tolist())
        assert torch.equal(mask, torch.isin(labels, torch.tensor(pasted, dtype=torch.uint8)))
        seen.add(pasted)
        assert mix(mask, labels, labels * 0 + 5)[~mask].unique().tolist() == [5]
    assert seen == {(0, 3), (0, 7), (0, 9), (3, 7), (3, 9), (7, 9)}


def test_dacs_weighs_the_target_by_the_share_of_sure_pixels() -> None:
    """DACS (Tranheden et al., WACV 2021), section 3.3 and its code: the share above 0.968, of the batch."""
    confidence = torch.tensor([[[0.97, 0.968, 0.5, 0.99]], [[0.2, 0.3, 0.4, 0.9681]]])
    assert float(pseudo_label_weight(confidence)) == 3 / 8


def test_poly_schedule() -> None:
    """DeepLab (Chen et al., TPAMI 2018), section 4.1: rate (1 - step / steps)^power, power 0.9."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.025)
    schedule, rates = poly(optimizer, 4), []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.025, 0.019296, 0.013397, 0.0071794], rel=1e-4)


def test_iou_is_intersection_over_union_of_all_pixels() -> None:
    """Cityscapes (Cordts et al., CVPR 2016), section 4.1: TP / (TP + FP + FN), summed over the set, void left out."""
    matrix = ConfusionMatrix(3)
    labels = torch.tensor([[0, 0, 0, 0, 1, 1, 1, IGNORE]], dtype=torch.uint8)
    matrix.update(torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]]), labels)
    assert matrix.iou().tolist()[:2] == pytest.approx([3 / 4, 2 / 4])  # class 0: 3, 0, 1; class 1: 2, 1, 1
    assert matrix.accuracy() == pytest.approx(5 / 7)
