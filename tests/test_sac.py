"""train_sac.py: views and what is brought together from them, prior, thresholds, loss; and that the script does it."""

import math

import pytest
import torch
from conftest import SMALL, SOURCE, assert_resumes_exactly, one_line_error, picture, same, source_only
from torch import nn

import train_sac
from adaptation.sac import ClassPrior, confident_focal_loss, labels_by_threshold, thresholds
from adaptation.views import Views, averaged, draw_views, unwarp, warp
from datasets.appearance import to_float
from models import build_segmenter
from reporting.published import METHODS, by_others
from training.checkpoint import load_checkpoint
from training.gradients import Gradients
from training.methods import method_name


def views_at(*which: tuple[int, int, float, bool], size: tuple[int, int]) -> Views:
    """Of one picture of (height, width): (top, left, side, mirrored) each, in its pixels."""
    height, width = size
    scale = torch.tensor([[-side if mirrored else side, side] for _, _, side, mirrored in which])
    shift = torch.tensor([[2 * left / width + side - 1, 2 * top / height + side - 1] for top, left, side, _ in which])
    return Views(scale, shift, len(which))


def bilinear(picture: torch.Tensor, y: float, x: float, clamped: bool) -> torch.Tensor:
    """[C, H, W] at pixel coordinates; beyond the border 0, or the border's value."""
    height, width = picture.shape[-2:]
    total = torch.zeros(len(picture))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            at = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
            if clamped or at == (row, column):
                total += weight * picture[:, at[0], at[1]]
    return total


def test_the_first_view_is_the_picture_and_the_others_lie_in_it():
    torch.manual_seed(0)
    views = draw_views(400, 4)
    side, shift = views.scale[:, 1].view(400, 4), views.shift.view(400, 4, 2)
    assert torch.equal(views.scale[:, 0].abs(), views.scale[:, 1])  # crops have the picture's shape
    assert (side[:, 0] == 1).all()
    assert not shift[:, 0].any()
    assert (shift.abs() + side[..., None] <= 1 + 1e-6).all()
    others = side[:, 1:]
    assert 0.5 <= others.min() < 0.51
    assert 0.99 < others.max() <= 1
    assert others.mean().item() == pytest.approx(0.75, abs=0.02)
    assert shift.mean((0, 1)).abs().max() < 0.02
    mirrored = (views.scale[:, 0] < 0).view(400, 4).float().mean(0)
    assert torch.allclose(mirrored, torch.full((4,), 0.5), atol=0.08)
    torch.manual_seed(0)
    assert same(views, draw_views(400, 4))


def test_a_view_and_back_is_the_picture_where_the_view_reaches():
    torch.manual_seed(1)
    height, width = 24, 40
    down, across = torch.meshgrid(torch.arange(24.0), torch.arange(40.0), indexing="ij")
    ramps = torch.stack((across, down)).expand(3, -1, -1, -1)
    views = draw_views(3, 5)
    seen = warp(ramps, views)
    back, coverage = unwarp(seen, views), unwarp(torch.ones_like(seen), views)
    reached = coverage > 1 - 1e-6
    expected = ramps[:, None].expand(-1, 5, -1, -1, -1).flatten(0, 1)
    assert reached.float().mean((1, 2, 3)).min() > 0.15
    # In a band at the picture's border the view repeats the border's pixels.
    inner = reached & (across > 0) & (across < width - 1) & (down > 0) & (down < height - 1)
    torch.testing.assert_close(back[inner], expected[inner], atol=1e-4, rtol=0)
    assert (coverage[::5] > 1 - 1e-5).all()
    noise = torch.rand(1, 3, 24, 40)
    mirrored = warp(noise, views_at((0, 0, 1.0, True), size=(24, 40)))
    torch.testing.assert_close(mirrored, noise.flip(-1), atol=2e-5, rtol=0)


def test_a_crop_is_enlarged_and_brought_back_as_loops_say():
    """Whole-pixel crops of an 8x16 map; the mean over the views, and what each view gets of it."""
    torch.manual_seed(2)
    size = (8, 16)
    places = [(0, 0, 1.0, False), (2, 6, 0.5, False), (4, 0, 0.5, True)]
    views = views_at(*places, size=size)
    probabilities = torch.rand(3, 5, *size).softmax(1)
    height, width = size
    total, weight = torch.zeros(5, *size), torch.zeros(size)
    for (top, left, side, mirrored), seen in zip(places, probabilities, strict=True):
        seen = seen.flip(-1) if mirrored else seen
        for y in range(height):
            for x in range(width):
                at = (y + 0.5 - top) / side - 0.5, (x + 0.5 - left) / side - 0.5
                total[:, y, x] += bilinear(seen, *at, clamped=False)
                weight[y, x] += bilinear(torch.ones(1, *size), *at, clamped=False)[0]
    mean = total / weight
    found = averaged(probabilities, views)
    for (top, left, side, mirrored), own in zip(places, found, strict=True):
        own = own.flip(-1) if mirrored else own
        for y in range(height):
            for x in range(width):
                at = top + (y + 0.5) * side - 0.5, left + (x + 0.5) * side - 0.5
                torch.testing.assert_close(own[:, y, x], bilinear(mean, *at, clamped=True), atol=1e-5, rtol=0)
    assert not torch.allclose(found[0], probabilities[0], atol=0.01)


def test_views_that_agree_keep_what_they_say_and_one_view_alone_too():
    torch.manual_seed(3)
    of_pictures = torch.rand(2, 5, 1, 1).softmax(1)
    views = draw_views(2, 4)
    said = of_pictures[:, None].expand(-1, 4, -1, 12, 20).flatten(0, 1)
    torch.testing.assert_close(averaged(said, views), said, atol=1e-6, rtol=0)
    alone = torch.rand(3, 5, 12, 20).softmax(1)
    torch.testing.assert_close(averaged(alone, draw_views(3, 1)), alone, atol=1e-5, rtol=0)  # T = 1: a mean teacher


@pytest.mark.parametrize("chi", [[1e-4, 1e-3, 1e-2, 0.3, 1e-3], [10.0] * 5])
def test_thresholds_and_labels_as_loops_say(chi):
    torch.manual_seed(4)
    chi = torch.tensor(chi)
    probabilities = (4 * torch.rand(3, 5, 6, 7)).softmax(1)
    probabilities[:, 4] *= 0.1  # never the most probable
    probabilities /= probabilities.sum(1, keepdim=True)
    confidence, prediction = probabilities.max(1)
    found, sure = labels_by_threshold(probabilities, chi, 0.35)
    assert torch.equal(sure, confidence)
    assert found.dtype == torch.uint8
    limits = thresholds(prediction, confidence, chi, 0.35)
    for b in range(3):
        for c in range(5):
            own = confidence[b][prediction[b] == c].tolist()
            limit = max(0.35, 0.75 * (1 - math.exp(-float(chi[c]) / 1e-3)) * max(own, default=0))
            assert limits[b, c].item() == pytest.approx(limit, rel=1e-5)
            for y, x in (prediction[b] == c).nonzero().tolist():
                assert found[b, y, x] == (c if confidence[b, y, x] > limit else 255)
    assert 0 < (found == 255).float().mean() < 1
    assert (limits == 0.35).any()  # the bound
    assert (limits > 0.35).any()


def test_a_common_class_needs_three_quarters_of_its_highest_probability():
    factors = thresholds(torch.arange(3).view(1, 1, 3), torch.ones(1, 1, 3), torch.tensor([1e-3, 1e-2, 1.0]), 0)
    assert factors[0].tolist() == pytest.approx([0.474, 0.75, 0.75], abs=1e-3)


def test_the_prior_is_a_moving_average_that_begins_with_its_first_value():
    torch.manual_seed(5)
    first, later = torch.rand(2, 4, 3, 3).softmax(1), torch.rand(2, 4, 3, 3).softmax(1)
    prior, in_parts = ClassPrior(4), ClassPrior(4, 0.99**0.5)
    torch.testing.assert_close(prior.follow(first), first.mean((0, 2, 3)))
    for _ in range(20):
        chi = prior.follow(later)
    expected = 0.99**20 * first.mean((0, 2, 3)) + (1 - 0.99**20) * later.mean((0, 2, 3))
    torch.testing.assert_close(chi, expected)
    in_parts.follow(first)
    for _ in range(40):  # two parts of a batch move it as far as a batch
        chi = in_parts.follow(later)
    torch.testing.assert_close(chi, expected)
    again = ClassPrior(4)
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(again.follow(later), prior.follow(later))


def test_the_loss_is_the_mean_over_all_pixels_as_loops_say():
    torch.manual_seed(6)
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (2, 3, 5), dtype=torch.uint8)
    labels[0, 1:] = 255
    confidence, chi = torch.rand(2, 3, 5, dtype=torch.float64), torch.tensor([0.0, 0.5, 0.1, 1.0], dtype=torch.float64)
    loss = confident_focal_loss(logits, labels, confidence, chi)
    total = 0.0
    for b, y, x in (labels != 255).nonzero().tolist():
        own = int(labels[b, y, x])
        weight = float((1 - chi[own]) ** 3 * confidence[b, y, x])
        total -= weight * float(logits[b, :, y, x].detach().log_softmax(0)[own])
    assert loss.item() == pytest.approx(total / 30, rel=1e-12)
    loss.backward()
    counts = (labels != 255) & (labels != 3)  # the class with chi 1 counts nothing
    assert torch.equal(logits.grad.abs().sum(1) > 0, counts)
    nothing = confident_focal_loss(logits, torch.full_like(labels, 255), confidence, chi)
    assert nothing.item() == 0


# The script


def sac(game, city, run_dir, *more):
    return ("train_sac", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2, "--views", 2,
            "--decay", 0.9, "--run-dir", run_dir, *more)  # fmt: skip


@pytest.mark.slow
def test_sac_resumes_exactly_with_sets_of_different_size(script, game, city, tmp_path, monkeypatch):
    for file in (city / "gtFine/train").rglob("*.png"):
        file.write_bytes(b"")  # the target's train labels are never opened

    def command(run_dir, *more):
        return sac(game, city, run_dir, "--size", "64x32", "--confidence", 0.05, *more)

    straight = assert_resumes_exactly(script, monkeypatch, tmp_path, command)
    training = straight["training"]
    assert set(training) == {"student", "prior", "optimizer", "schedule"}
    assert training["prior"]["chi"].sum().item() == pytest.approx(1, abs=1e-5)
    assert not torch.equal(training["student"]["classifier.weight"], straight["weights"]["classifier.weight"])
    entry = straight["history"][-1]
    assert {"loss", "loss_target", "labelled"} <= entry["train"].keys()
    assert "student" in entry
    assert script("eval", tmp_path / "straight/checkpoint_last.pt", "--workers", 0, "--device", "cpu").status == 0
    assert "the moving average of the student" in (tmp_path / "straight/model_card.md").read_text()


@pytest.mark.slow
def test_weight_zero_trains_the_student_as_source_only_does(script, game, city, tmp_path):
    assert script(*source_only(game, city, tmp_path / "plain")).status == 0
    assert script(*sac(game, city, tmp_path / "zero", "--lambda-target", 0)).status == 0
    assert script(*sac(game, city, tmp_path / "five", "--confidence", 0)).status == 0
    plain, zero, five = (load_checkpoint(tmp_path / n / "checkpoint_last.pt") for n in ("plain", "zero", "five"))
    assert same(plain["weights"], zero["training"]["student"])
    assert not same(plain["training"]["optimizer"], five["training"]["optimizer"])


def test_the_script_trains_on_what_the_mathematics_says(script, game, city, tmp_path, monkeypatch):
    """Every tensor between the loaders and the losses of one step with two parts, against the definition."""
    seen: dict[str, list] = {}

    def noting(place, name):
        original = getattr(place, name)

        def noted(*given):
            found = original(*given)
            seen.setdefault(name, []).append((given, found))
            return found

        monkeypatch.setattr(place, name, noted)

    class Augmentation:
        def __call__(self, images):
            return images * 0.5

    monkeypatch.setattr(train_sac, "StrongAugmentation", Augmentation)
    monkeypatch.setattr("training.run.seed_everything", lambda *_: torch.manual_seed(7))  # both parts draw alike
    for name in ("warp", "taught_probabilities", "averaged", "labels_by_threshold", "main_output",
                 "confident_focal_loss"):  # fmt: skip
        noting(train_sac, name)
    noting(ClassPrior, "follow")
    noting(Gradients, "backward")
    flags = ("--max-steps", 1, "--batch-size", 8, "--accumulate", 2, "--lambda-target", 3, "--confidence", 0.05,
             "--scales", 2, "--flip", 1)  # fmt: skip
    assert script(*sac(game, city, tmp_path / "run", *flags)).status == 0

    assert all(len(calls) == 2 for name, calls in seen.items() if name != "backward")
    for part in range(2):
        ((pictures, views), warped), ((_, taught), probabilities) = (
            seen[name][part] for name in ("warp", "taught_probabilities")
        )
        assert len(pictures) == 2
        assert all(  # neither scaled nor mirrored before the views are
            any(torch.equal(shown, to_float(torch.from_numpy(picture(n)).permute(2, 0, 1))) for n in range(4))
            for shown in pictures
        )
        assert taught is warped
        torch.testing.assert_close(warped[::2], torch.where(  # of each picture the first view is all of it
            views.scale[::2, 0, None, None, None] < 0, pictures.flip(-1), pictures), atol=2e-5, rtol=0)  # fmt: skip
        ((prior, observed), chi) = seen["follow"][part]
        assert observed is probabilities
        assert prior.kept == pytest.approx(0.99**0.5)
        ((mean_of, mean_views), mean) = seen["averaged"][part]
        assert mean_of is probabilities
        assert mean_views is views
        ((labelled, used, least), (labels, confidence)) = seen["labels_by_threshold"][part]
        assert labelled is mean
        assert used is chi
        assert least == 0.05
        ((_, student_saw), logits) = seen["main_output"][part]
        assert torch.equal(student_saw, warped * 0.5)
        (given, loss) = seen["confident_focal_loss"][part]
        assert given[0] is logits
        assert given[1] is labels
        assert given[2] is confidence
        assert given[3] is chi
        (_, backward_loss, weight), _ = seen["backward"][2 * part + 1]
        assert weight == 3
        assert float(backward_loss.detach()) == pytest.approx(3 * float(loss.detach()))
    logged = load_checkpoint(tmp_path / "run/checkpoint_last.pt")["history"][-1]["train"]
    kept = [float((found[0] != 255).float().mean()) for _, found in seen["labels_by_threshold"]]
    assert logged["labelled"] == pytest.approx(sum(kept) / 2)
    assert 0 < logged["labelled"] < 1


@pytest.mark.slow
def test_teacher_and_student_start_from_init(script, game, city, tmp_path, trained):
    def run(name, *flags):
        done = script(*sac(game, city, tmp_path / name, "--max-steps", 1, *flags))
        assert done.status == 0, done.err
        return load_checkpoint(tmp_path / name / "checkpoint_last.pt")

    begun = load_checkpoint(trained)["weights"]
    held = run("init", "--init", trained, "--lr", 0)
    for name, _ in build_segmenter("tiny").named_parameters():
        torch.testing.assert_close(begun[name], held["weights"][name])  # an average of equals, rounded
        assert torch.equal(begun[name], held["training"]["student"][name])
    moved = run("moved", "--init", trained)  # the first step forgets nothing of it
    for name, _ in build_segmenter("tiny").named_parameters():
        mean = 0.9 * begun[name] + 0.1 * moved["training"]["student"][name]
        torch.testing.assert_close(moved["weights"][name], mean)
    assert not same(begun, moved["weights"])
    assert held["config"]["arguments"]["init_method"] == "upper bound"
    assert held["config"]["arguments"]["earlier_networks"] == ["init tiny narrow, 2 steps"]
    assert not same(run("own", "--lr", 0)["weights"], held["weights"])


def test_a_batch_holds_as_many_views_as_it_says(script, game, city, tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(train_sac, "main_output", lambda network, images: shapes.append(images.shape) or
                        nn.Module.__call__(network, images)[0])  # fmt: skip
    for views, pictures in ((1, 4), (4, 1)):
        drawn = []
        monkeypatch.setattr(train_sac, "draw_views", lambda *given, drawn=drawn: drawn.append(given) or
                            draw_views(*given))  # fmt: skip
        flags = ("--batch-size", 4, "--views", views, "--max-steps", 1)
        assert script(*sac(game, city, tmp_path / str(views), *flags)).status == 0
        assert [given[:2] for given in drawn] == [(pictures, views)]
    assert [shape[0] for shape in shapes] == [4, 4]
    said = one_line_error(script(*sac(game, city, tmp_path / "odd", "--batch-size", 6, "--views", 4)))
    assert "--batch-size 6" in said
    assert "divisible by --views 4" in said
    assert not (tmp_path / "odd").exists()


def test_reports_say_what_is_not_published() -> None:
    published = {"script": "train_sac", "views": 4, "lambda_target": 5.0, "confidence": 0.2, "decay": 0.9999}
    assert method_name(published) == "SAC"
    other = published | {"views": 2, "decay": 0.95, "init": "runs/fda/checkpoint_last.pt"}
    assert method_name(other) == "SAC, views 2, decay 0.95 + init checkpoint_last.pt"
    from_adapted = published | {"init": "runs/fda/checkpoint_last.pt"}  # as the paper does
    assert by_others(method_name(from_adapted)) == METHODS["SAC"]
    assert by_others(method_name(other)) == "-"
