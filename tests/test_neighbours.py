"""How far features mix two domains, as a share of chance."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import one_line_error, run_once, source_only, write_cityscapes, write_gta5

from adaptation.neighbours import chance, mixing
from datasets.cityscapes import cityscapes
from datasets.domains import arguments
from datasets.gta5 import gta5
from eval import _given
from models.gradcam import layer_named
from training.checkpoint import build_from_checkpoint, load_checkpoint
from training.neighbours import domain_mixing, pooled


def random(n, seed=0, size=8):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_domains_apart_give_0_and_one_set_split_in_two_about_1():
    one, other = random(60), random(60, seed=1)
    axis = torch.eye(8)[0] * 50
    assert mixing(one + axis, other - axis, 10) == 0
    assert mixing(one, other, 10) == pytest.approx(1, abs=0.08)
    assert mixing(one, one + 1e-4 * other, 1) == pytest.approx(1 / chance(60))  # each one's nearest is its twin
    assert chance(60) == 60 / 119


def test_neither_length_nor_order_counts_and_each_domain_is_the_other_s_other():
    one, other = random(40), random(40, seed=1) + 0.5
    expected = mixing(one, other, 5)
    assert 0.2 < expected < 0.98
    assert mixing(other, one, 5) == pytest.approx(expected)
    assert mixing(3 * one, 0.1 * other, 5) == pytest.approx(expected)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert mixing(one[order], other[order.flip(0)], 5) == pytest.approx(expected)


def test_by_hand():
    """Two pictures of each: at 0 and 10 degrees, at 5 and 90."""
    angles = torch.deg2rad(torch.tensor([0.0, 10, 5, 90]))
    features = torch.stack((angles.cos(), angles.sin()), dim=1)
    # The nearest: 0 -> 5 (other), 10 -> 5 (other), 5 -> 0 or 10 (other), 90 -> 10 (other).
    assert mixing(features[:2], features[2:], 1) == pytest.approx(1 / chance(2))
    with pytest.raises(ValueError, match="more than 2, found 2"):
        mixing(features[:2], features[2:], 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    city = write_cityscapes(folder / "city", counts=(("train", 2), ("val", 4)))
    run_once(*source_only(write_gta5(folder / "game", count=9), city, folder / "run", "--max-steps", 2))
    return folder / "run"


def test_eval_says_it_of_the_named_source_and_the_targets_split(script, run, tmp_path):
    game, out = run.parent / "game", tmp_path / "x.json"
    done = script("eval", run, "--gta5", game, "--neighbours", 2, "--json", out, "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    assert "4 pictures each of GTA5 and Cityscapes val" in done.out
    model = build_from_checkpoint(load_checkpoint(run / "checkpoint_last.pt"), run).eval()
    sets = gta5(game, (48, 32), labelled=False), cityscapes(run.parent / "city", "val", (48, 32), labelled=False)
    expected, pictures = domain_mixing(model, *sets, 2, torch.device("cpu"))
    (record,) = json.loads(out.read_text())["evaluations"]
    assert (record["domain_mixing"], pictures, record["data"]) == (expected, 4, "Cityscapes val")
    seen = []
    layer_named(model, model.cam_layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = pooled(model, sets[0], 3, torch.device("cpu"))
    assert torch.equal(features[1], seen[1][0].mean(dim=(1, 2)))
    assert features.shape == (3, 16)


def test_a_run_that_read_no_source_reads_one_at_the_sources_own_size():
    args = Namespace(**arguments() | {"gta5": Path("G"), "limit": None, "size": None})
    run = arguments() | {"cityscapes": "C", "source_holdout": 0.0, "source_size": (64, 32)}
    assert _given(args, run | {"gta5": "G"})["source_size"] == (64, 32)
    assert _given(args, run | {"intra": "r/advent"})["source_size"] == (1280, 720)


def test_mistakes_are_one_line(script, run):
    flags = ("--workers", 0, "--device", "cpu", "--neighbours")
    assert "name its root with --gta5" in one_line_error(script("eval", run, *flags, 2))
    assert "--neighbours 4 needs more" in one_line_error(script("eval", run, "--gta5", run.parent / "game", *flags, 4))
