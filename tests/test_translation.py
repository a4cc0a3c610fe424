"""FDA against the definition with full complex FFTs in float64; LAB against tabulated colours."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL, SOURCE, assert_resumes_exactly, source_only
from torchvision.transforms.v2 import functional as F

from adaptation.entropy import charbonnier_entropy_loss
from adaptation.fda import fda, half_width
from adaptation.lab import lab_to_rgb, match_lab, rgb_to_lab
from adaptation.translation import TRANSLATIONS
from training.checkpoint import load_checkpoint
from training.gradients import Gradients
from training.run import Run


def definition(source, target, beta):
    """float64 [C, H, W] -> the same: full transforms, fftshift, block swap, inverse, real part."""
    spectrum = np.fft.fftshift(np.fft.fft2(source), axes=(-2, -1))
    other = np.fft.fftshift(np.fft.fft2(target), axes=(-2, -1))
    height, width = source.shape[-2:]
    b, y, x = int(np.floor(min(height, width) * beta)), height // 2, width // 2
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    block = np.s_[..., y - b : y + b + 1, x - b : x + b + 1]
    amplitude[block] = np.abs(other)[block]
    swapped = np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(-2, -1))
    return np.real(np.fft.ifft2(swapped))


def natural(seed, size):
    """A picture with the falling spectrum of real ones, in [0, 1]."""
    width, height = size
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((3, 9, 13)))
    picture = F.resize(coarse, [height, width]).numpy() * 0.8 + rng.random((3, height, width)) * 0.2
    return np.clip(picture, 0, 1)


@pytest.mark.parametrize("size", [(64, 48), (333, 251), (1024, 512), (1280, 720)])
@pytest.mark.parametrize("beta", [0.0, 0.001, 0.01, 0.05, 0.09])
def test_fda_is_the_definition(size, beta):
    source, target = natural(0, size), natural(1, size)
    found = fda(torch.from_numpy(source).float()[None], torch.from_numpy(target).float()[None], beta)
    assert found.dtype == torch.float32
    assert np.abs(found[0].numpy() - definition(source, target, beta)).max() < 1e-4


@pytest.mark.parametrize(("size", "beta"), [((1280, 720), 0.05), ((1280, 720), 0.3), ((1024, 512), 0.3)])
@pytest.mark.parametrize("seed", [4, 6])
def test_fda_keeps_the_phase_of_small_coefficients(size, beta, seed):
    """On large pictures some real coefficients are far below the picture's sum, and are no rounding."""
    width, height = size
    rng = np.random.default_rng(seed)
    smooth = [F.resize(torch.from_numpy(rng.random((3, 5, 7))), [height, width]).numpy() for _ in range(2)]
    source, target = (0.7 * picture + 0.3 * rng.random((3, height, width)) for picture in smooth)
    found = fda(torch.from_numpy(source).float()[None], torch.from_numpy(target).float()[None], beta)
    assert np.abs(found[0].numpy() - definition(source, target, beta)).max() < 1e-4


def test_fda_on_white_noise_and_in_batches():
    rng = np.random.default_rng(3)
    source, target = rng.random((3, 3, 60, 81)), rng.random((3, 3, 60, 81))
    found = fda(torch.from_numpy(source).float(), torch.from_numpy(target).float(), 0.2)
    for i in range(3):
        assert np.abs(found[i].numpy() - definition(source[i], target[i], 0.2)).max() < 1e-4


@pytest.mark.parametrize("size", [(64, 32), (333, 251)])
@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_fda_with_flat_pictures(size, grey):
    """Amplitudes of zero have the phase 0, in the source and in the target."""
    width, height = size
    flat, textured = np.full((3, height, width), grey), natural(2, size)
    found = fda(torch.from_numpy(textured).float()[None], torch.from_numpy(flat).float()[None], 0.05)[0].numpy()
    assert np.abs(found - definition(textured, flat, 0.05)).max() < 1e-4
    found = fda(torch.from_numpy(flat).float()[None], torch.from_numpy(flat * 0.3).float()[None], 0.05)[0].numpy()
    assert np.abs(found - grey * 0.3).max() < 1e-4
    found = fda(torch.from_numpy(flat).float()[None], torch.from_numpy(textured).float()[None], 0.05)[0].numpy()
    exact = np.zeros((3, height, width), dtype=complex)  # the source's spectrum has no rounding here
    exact[:, 0, 0] = grey * height * width
    b = half_width(height, width, 0.05)
    amplitude = np.abs(np.fft.fft2(textured))
    for k in range(-b, b + 1):
        for column in range(-b, b + 1):
            exact[:, k, column] = amplitude[:, k, column]
    assert np.abs(found - np.real(np.fft.ifft2(exact))).max() < 1e-4


def test_fda_resizes_the_target_to_the_source():
    source, target = torch.rand(2, 3, 40, 60), torch.rand(2, 3, 33, 21)
    resized = F.resize(target, [40, 60], antialias=True)
    assert torch.equal(fda(source, target, 0.05), fda(source, resized, 0.05))


def test_fda_of_a_picture_with_itself_changes_nothing():
    picture = torch.rand(1, 3, 50, 70)
    assert torch.allclose(fda(picture, picture, 0.09), picture, atol=1e-6)


def test_fda_is_float32_under_autocast_and_restores_the_precision():
    picture, other = torch.rand(2, 1, 3, 32, 48)
    plain = fda(picture, other, 0.1)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(fda(picture, other, 0.1), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_makes_no_sense_is_refused():
    picture = torch.rand(1, 3, 32, 32)
    for beta in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="beta"):
            fda(picture, picture, beta)
    for function in (lambda s, t: fda(s, t, 0.01), match_lab):
        with pytest.raises(ValueError, match="differ in batch"):
            function(picture, torch.rand(2, 3, 32, 32))


# CIELAB under D65: values of the sRGB primaries and greys as colour science tabulates them.
TABLE = {
    (0, 0, 0): (0, 0, 0), (255, 255, 255): (100, 0.005, -0.010), (255, 0, 0): (53.241, 80.092, 67.203),
    (0, 255, 0): (87.735, -86.183, 83.179), (0, 0, 255): (32.297, 79.188, -107.860),
    (255, 255, 0): (97.139, -21.554, 94.478), (0, 255, 255): (91.113, -48.088, -14.131),
    (255, 0, 255): (60.324, 98.234, -60.825), (128, 128, 128): (53.585, 0.003, -0.006),
}  # fmt: skip


def test_lab_agrees_with_tabulated_colours():
    rgb = torch.tensor(list(TABLE), dtype=torch.float64).T.view(1, 3, 1, -1) / 255
    lab = rgb_to_lab(rgb)[0, :, 0].T
    assert torch.allclose(lab, torch.tensor(list(TABLE.values()), dtype=torch.float64), atol=0.02)


def test_lab_agrees_with_scikit_image():
    colour = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).random((31, 37, 3))
    mine = rgb_to_lab(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(mine - colour.rgb2lab(rgb)).max() < 1e-3
    back = lab_to_rgb(torch.from_numpy(colour.rgb2lab(rgb)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(back - rgb).max() < 1e-3


def test_lab_and_back_is_the_same_picture():
    picture = torch.rand(2, 3, 20, 30)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(picture)), picture, atol=1e-4)


def test_match_lab_gives_the_targets_statistics():
    torch.manual_seed(0)
    source, target = torch.rand(2, 3, 20, 30) * 0.3 + 0.2, torch.rand(2, 3, 25, 15) * 0.2 + 0.45
    found = rgb_to_lab(match_lab(source, target))
    std, mean = torch.std_mean(found, dim=(-2, -1), correction=0)
    std_t, mean_t = torch.std_mean(rgb_to_lab(target), dim=(-2, -1), correction=0)
    assert torch.allclose(mean, mean_t, atol=0.05)
    assert torch.allclose(std, std_t, atol=0.05)
    flat = torch.full((1, 3, 8, 8), 0.5)
    moved = rgb_to_lab(match_lab(flat, target[:1])).mean(dim=(-2, -1))
    assert torch.allclose(moved, mean_t[:1], atol=0.05)


# The script


def fda_command(game, city, run_dir, *more):
    return ("train_fda", "--gta5", game, "--cityscapes", city, *SMALL, "--size", "64x32", *SOURCE, "--epochs", 2,
            "--run-dir", run_dir, *more)  # fmt: skip


def test_one_network_per_band_is_trained_in_turn(script, game, city, tmp_path):
    for label in (city / "gtFine/train").rglob("*.png"):
        label.write_bytes(b"")  # the target's train labels are never opened
    done = script(*fda_command(game, city, tmp_path / "run", "--beta", 0.01, 0.09, "--max-steps", 2))
    assert done.status == 0, done.err
    states = [load_checkpoint(tmp_path / f"run/beta-{beta}/checkpoint_last.pt")["weights"] for beta in ("0.01", "0.09")]
    assert not all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    again = script(*fda_command(game, city, tmp_path / "run", "--beta", 0.01, 0.09, "--max-steps", 2, "--resume"))
    assert again.status == 0
    assert again.out.count("the headline is the last checkpoint") == 2


def test_source_is_translated_and_entropy_starts_when_it_should(script, game, city, tmp_path, monkeypatch):
    seen, starts = [], []

    def recorded(pictures, style, *, beta):
        seen.append((pictures.shape, style.shape, beta))
        return fda(pictures, style, beta)

    monkeypatch.setitem(TRANSLATIONS, "fda", replace(TRANSLATIONS["fda"], translate=recorded))
    log = Run.log
    monkeypatch.setattr(
        Run, "log", lambda self, **v: (starts.append(self.step) if "entropy" in v else None, log(self, **v))
    )
    done = script(*fda_command(game, city, tmp_path / "a", "--max-steps", 4, "--entropy-from", 2))
    assert done.status == 0, done.err
    assert seen == [((2, 3, 32, 48), (2, 3, 32, 64), 0.01)] * 4
    assert starts == [2, 3]
    starts.clear()
    assert script(*fda_command(game, city, tmp_path / "b", "--max-steps", 3)).status == 0
    assert starts == [1, 2]
    starts.clear()
    done = script(*fda_command(game, city, tmp_path / "late", "--max-steps", 2, "--entropy-from", 2))
    assert "note: the entropy loss never starts: --entropy-from 2 is not below 2 steps" in done.out
    assert starts == []
    assert script(*fda_command(game, city, tmp_path / "c", "--max-steps", 2, "--lambda-entropy", 0)).status == 0
    assert starts == []


def test_lab_runs_and_resumes_like_the_others(script, game, city, tmp_path, monkeypatch):
    flags = ("--translation", "lab", "--jitter")

    def command(run_dir, *more):
        return fda_command(game, city, run_dir, *flags, *more)

    assert_resumes_exactly(script, monkeypatch, tmp_path, command)


def test_the_entropy_has_its_exponent_and_its_weight(script, game, city, tmp_path, monkeypatch):
    etas, losses, backward = [], [], Gradients.backward
    monkeypatch.setattr("train_fda.charbonnier_entropy_loss",
                        lambda logits, eta: etas.append(eta) or charbonnier_entropy_loss(logits, eta))  # fmt: skip
    monkeypatch.setattr(Gradients, "backward", lambda self, loss, weight=1.0:
                        losses.append((float(loss.detach()), weight)) or backward(self, loss, weight))  # fmt: skip
    flags = ("--max-steps", 1, "--entropy-from", 0, "--lambda-entropy", 0.25, "--eta", 3)
    assert script("train_fda", *source_only(game, city, tmp_path / "run", *flags)[1:]).status == 0
    (metrics,) = (tmp_path / "run").rglob("metrics.jsonl")
    entropy = json.loads(metrics.read_text())["train"]["entropy"]
    assert etas == [3]
    assert losses[1] == (pytest.approx(0.25 * entropy), 0.25)
