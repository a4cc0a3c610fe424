"""The mathematics of train_dacs.py: masks, mixtures, weights, the moving average; and that the script does it.

Long, since the parts are tested alone and then in the script.
"""

import copy
import json

import pytest
import torch
from conftest import SMALL, SOURCE, assert_resumes_exactly, one_line_error, same, source_only
from torch import nn

import train_dacs
from adaptation.losses import cross_entropy, weighted_by_pixel
from adaptation.masking import block_mask, block_side, masked
from adaptation.mean_teacher import DECAY, decay_over, follow, label, teach, teacher_of
from adaptation.mixing import StrongAugmentation, class_mask, mix, pseudo_label_weight
from datasets.geometry import PADDING
from datasets.labels import CITYSCAPES
from datasets.pictures import row
from datasets.rare_classes import RareClasses
from models import build_segmenter
from training.checkpoint import load_checkpoint, save_checkpoint
from training.gradients import Gradients
from training.run import Run


def test_the_mask_takes_half_of_the_classes_rounded_up_and_never_ignore():
    torch.manual_seed(0)
    labels = torch.randint(0, 19, (40, 12, 12), dtype=torch.uint8)
    for number, picture in enumerate(labels):
        picture[picture >= number % 19 + 1] = 255  # from one class up to nineteen, and pixels without a label
    labels[0] = 255
    mask = class_mask(labels)
    taken_classes = []
    for picture, taken in zip(labels, mask, strict=True):
        present = set(picture.unique().tolist()) - {255}
        chosen = set(picture[taken].unique().tolist())
        assert chosen <= present
        assert len(chosen) == (len(present) + 1) // 2
        assert torch.equal(taken, torch.isin(picture, torch.tensor(sorted(chosen), dtype=torch.uint8)))
        taken_classes.append(frozenset(chosen))
    assert not mask[0].any()
    again = class_mask(labels[18:19].expand(30, -1, -1))
    assert len({tuple(picture.flatten().tolist()) for picture in again}) > 20  # each picture draws its own
    torch.manual_seed(0)
    one = class_mask(labels)
    torch.manual_seed(0)
    assert torch.equal(one, class_mask(labels))


def test_every_class_is_taken_as_often():
    torch.manual_seed(0)
    labels = torch.arange(19, dtype=torch.uint8).view(1, 1, 19).expand(4000, 1, 19)
    share = class_mask(labels).float().mean(dim=(0, 1))
    assert torch.allclose(share, torch.full((19,), 10 / 19), atol=0.04)


def test_mixed_picture_label_and_weight_agree_pixel_by_pixel():
    torch.manual_seed(1)
    source, target = torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9)
    labels, pseudo = torch.randint(0, 5, (2, 2, 8, 9), dtype=torch.uint8)
    mask = class_mask(labels)
    mixed, mixed_labels = mix(mask, source, target), mix(mask, labels, pseudo)
    weights = mix(mask, torch.ones(2, 8, 9), torch.tensor(0.25).expand(2, 8, 9))
    for b in range(2):
        for y in range(8):
            for x in range(9):
                here = bool(mask[b, y, x])
                assert torch.equal(mixed[b, :, y, x], (source if here else target)[b, :, y, x])
                assert mixed_labels[b, y, x] == (labels if here else pseudo)[b, y, x]
                assert weights[b, y, x] == (1.0 if here else 0.25)


def test_the_weight_is_the_share_of_sure_pixels_and_weighs_each_pixel():
    confidence = torch.tensor([[[0.9, 0.968, 0.969, 1.0]]])
    assert pseudo_label_weight(confidence) == 0.5
    assert pseudo_label_weight(confidence, 0.8) == 1
    torch.manual_seed(2)
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3, 4))
    labels[0, 0] = 255
    weights = torch.rand(2, 3, 4, dtype=torch.float64)
    terms = [
        -weights[b, y, x] * logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b in range(2) for y in range(3) for x in range(4) if labels[b, y, x] != 255
    ]  # fmt: skip
    assert weighted_by_pixel(logits, labels, weights).item() == pytest.approx(float(sum(terms)) / 20, rel=1e-12)
    ones = torch.ones_like(weights)
    assert torch.allclose(weighted_by_pixel(logits, labels, ones), cross_entropy(logits, labels))


@pytest.mark.parametrize("decay", [DECAY, 0.9])
def test_the_teacher_follows_the_closed_form_and_has_no_gradient(decay):
    """With decays d_t = min(1 - 1 / (t + 1), decay) the teacher is sum_t (1 - d_t) prod_{u > t} d_u student_t."""
    torch.manual_seed(3)
    student = nn.Linear(3, 2).double()
    teacher = teacher_of(student)
    history = []
    for step in range(150):
        with torch.no_grad():
            student.weight.normal_()
        history.append(student.weight.detach().clone())
        follow(teacher, student, step, decay)
    expected = torch.zeros_like(student.weight)
    for value, step in zip(history, range(150), strict=True):
        expected = min(1 - 1 / (step + 1), decay) * expected + (1 - min(1 - 1 / (step + 1), decay)) * value
    assert torch.allclose(teacher.weight, expected, rtol=1e-12)
    assert torch.allclose(teacher_after(history[:100]), torch.stack(history[:100]).mean(0), rtol=1e-10)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_without_warm_up_the_teacher_keeps_what_it_started_from():
    """SAC's: after n steps the first network still has decay^n of the average."""
    student = nn.Linear(3, 2).double()
    teacher = teacher_of(student)
    first = student.weight.detach().clone()
    with torch.no_grad():
        student.weight.zero_()
    for step in range(70):
        follow(teacher, student, step, 0.99, warm_up=False)
    assert torch.allclose(teacher.weight, 0.99**70 * first, rtol=1e-12)


def teacher_after(history):
    """For the first hundred steps the average is the plain mean."""
    student = nn.Linear(3, 2).double()
    teacher = teacher_of(student)
    for step, value in enumerate(history):
        with torch.no_grad():
            student.weight.copy_(value)
        follow(teacher, student, step)
    return teacher.weight


def test_the_teacher_labels_with_the_statistics_of_its_batch_and_keeps_the_targets():
    torch.manual_seed(4)
    teacher = teacher_of(build_segmenter("bisenet"))
    reference = copy.deepcopy(teacher).train()
    images = torch.rand(3, 3, 32, 48)
    labels, confidence = teach(teacher, images)
    with torch.no_grad():
        softmax = reference(images)[0].softmax(1)
    assert torch.allclose(confidence, softmax.max(1).values, atol=1e-6)
    assert (labels == softmax.argmax(1)).float().mean() > 0.999
    for (name, value), expected in zip(teacher.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), expected.float(), atol=1e-6), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not confidence.requires_grad
    before = copy.deepcopy(teacher.state_dict())
    label(teacher.eval(), images)
    assert same(before, teacher.state_dict())  # a frozen network's statistics stay


def test_masked_blocks_are_blocks_and_seven_in_ten_are_hidden():
    torch.manual_seed(6)
    assert [block_side(*size) for size in ((1024, 2048), (512, 1024), (176, 240), (1, 1))] == [64, 32, 9, 1]
    hidden = block_mask(40, 512, 1024)
    blocks = hidden.view(40, 16, 32, 32, 32)
    assert torch.equal(blocks.amin((2, 4)), blocks.amax((2, 4)))  # each is hidden whole, or not at all
    assert blocks.amax((2, 4)).float().mean().item() == pytest.approx(0.7, abs=0.02)  # of 20480
    assert len({tuple(picture.flatten().tolist()) for picture in blocks.amax((2, 4))}) == 40
    cut = block_mask(2, 103, 135)  # the last blocks are cut at the edge
    side = block_side(103, 135)
    assert cut.shape == (2, 103, 135)
    for y, x in ((0, 0), (102 // side * side, 134 // side * side)):
        assert len(cut[0, y : y + side, x : x + side].unique()) == 1
    torch.manual_seed(7)
    images = torch.rand(3, 3, 100, 130)
    out = masked(images)
    gone = (out == torch.tensor(PADDING).view(1, 3, 1, 1) / 255).all(1)
    assert 0.4 < gone.float().mean() < 0.95
    assert torch.equal(out.permute(0, 2, 3, 1)[~gone], images.permute(0, 2, 3, 1)[~gone])


def test_pictures_and_labels_stand_side_by_side():
    image, ids = torch.rand(3, 4, 6), torch.tensor([[0, 1], [255, 18]], dtype=torch.uint8)
    shown = row([image, ids], CITYSCAPES)
    assert shown.shape == (3, 4, 12)
    assert torch.allclose(shown[:, :, :6], image)
    assert torch.equal((shown[:, 0, 9] * 255).round().byte(), torch.from_numpy(CITYSCAPES.palette[1]).byte())
    assert not shown[:, 3, 6].any()  # no label: black


def test_strong_augmentation_is_per_picture_and_stays_a_picture():
    torch.manual_seed(5)
    images = torch.rand(1, 3, 24, 32).expand(12, -1, -1, -1)
    out = StrongAugmentation()(images)
    assert out.shape == images.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert len({float(picture.sum()) for picture in out}) > 6


# The script


def dacs(game, city, run_dir, *more):
    return ("train_dacs", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--epochs", 2, "--run-dir", run_dir,
            *more)  # fmt: skip


EVERYTHING = ("--rare-classes", "--lambda-mask", 1, "--beta", 0.05, "--jitter", "--decay", 0.9, "--confidence", 0.2,
              "--teacher-checkpoint")  # fmt: skip


@pytest.mark.parametrize("extended", [False, True], ids=["dacs", "everything"])
def test_dacs_resumes_exactly_with_sets_of_different_size(script, game, city, tmp_path, trained, monkeypatch, extended):
    for file in (city / "gtFine/train").rglob("*.png"):
        file.write_bytes(b"")  # the target's train labels are never opened

    def command(run_dir, *more):
        return dacs(game, city, run_dir, "--size", "64x32", *((*EVERYTHING, trained) if extended else ()), *more)

    straight = assert_resumes_exactly(script, monkeypatch, tmp_path, command)
    assert set(straight["training"]) == {"student", "optimizer", "schedule"}
    student, teacher = straight["training"]["student"], straight["weights"]
    assert not torch.equal(student["classifier.weight"], teacher["classifier.weight"])
    entry = straight["history"][-1]
    assert {"student", "target", "train"} <= entry.keys()
    assert {"loss", "loss_mix", "sure"} <= entry["train"].keys()
    assert ("loss_mask" in entry["train"]) == extended
    result = json.loads((tmp_path / "straight/result.json").read_text())
    assert result["miou"] == entry["target"]["miou"]  # the teacher is the headline
    assert script("eval", tmp_path / "straight/checkpoint_last.pt", "--workers", 0, "--device", "cpu").status == 0


def test_weight_zero_trains_the_student_as_source_only_does(script, game, city, tmp_path):
    assert script(*source_only(game, city, tmp_path / "plain")).status == 0
    assert script(*dacs(game, city, tmp_path / "zero", "--lambda-mix", 0)).status == 0
    assert script(*dacs(game, city, tmp_path / "one")).status == 0
    plain, zero, one = (load_checkpoint(tmp_path / n / "checkpoint_last.pt") for n in ("plain", "zero", "one"))
    assert same(plain["weights"], zero["training"]["student"])
    assert same(plain["training"]["optimizer"], zero["training"]["optimizer"])
    assert not same(plain["training"]["optimizer"], one["training"]["optimizer"])


def test_the_style_is_that_of_train_fda(script, game, city, tmp_path):
    flags = ("--beta", 0.05, "--max-steps", 2)
    fda = ("train_fda", *source_only(game, city, tmp_path / "fda", *flags, "--lambda-entropy", 0)[1:])
    assert script(*fda).status == 0
    assert script(*dacs(game, city, tmp_path / "dacs", *flags, "--lambda-mix", 0)).status == 0
    styled, zero = (load_checkpoint(tmp_path / name / "checkpoint_last.pt") for name in ("fda", "dacs"))
    assert same(styled["weights"], zero["training"]["student"])


def test_the_script_trains_on_what_the_mathematics_says(script, game, city, tmp_path, monkeypatch):
    """Every tensor between the loaders and the losses of one step, against the definition."""
    seen: dict[str, list] = {}

    def noting(place, name, changed=None):
        original = getattr(place, name)

        def noted(*given):
            found = original(*given)
            found = found if changed is None else changed(found)
            seen.setdefault(name, []).append((given, found))
            return found

        monkeypatch.setattr(place, name, noted)

    shades = iter((0.25, 0.5))

    class Augmentation:
        def __call__(self, images):
            return images * next(shades)

    monkeypatch.setattr(train_dacs, "StrongAugmentation", Augmentation)
    noting(train_dacs, "teach", lambda found: (found[0], torch.linspace(0, 1, found[1].numel()).view_as(found[1])))
    for name in ("brought_to", "class_mask", "main_output", "masked", "weighted_by_pixel", "cross_entropy"):
        noting(train_dacs, name)
    noting(Gradients, "backward")
    flags = ("--max-steps", 1, "--confidence", 0.7, "--lambda-mix", 0.5, "--lambda-mask", 2, "--flip", 0)
    assert script(*dacs(game, city, tmp_path / "run", *flags)).status == 0

    (((_, target), (pseudo_labels, confidence)),) = seen["teach"]
    sure = float((confidence > 0.7).float().mean())
    assert 0.2 < sure < 0.4
    (((_, _, _), (images, labels)),) = seen["brought_to"]
    (((masked_labels,), mask),) = seen["class_mask"]
    assert masked_labels is labels
    assert 0 < mask.float().mean() < 1
    ((_, mixed), _), ((_, hidden), _) = seen["main_output"]
    (((_, mixed_labels, weights), loss_mix),) = seen["weighted_by_pixel"]
    ((hidden_of,), hidden_found), *_ = seen["masked"]
    (((_, mask_labels), consistency),) = seen["cross_entropy"]

    pasted = mask[:, None].expand_as(mixed)
    assert torch.equal(mixed[pasted], (images * 0.25)[pasted])
    assert torch.equal(mixed[~pasted], (target * 0.25)[~pasted])
    assert torch.equal(mixed_labels[mask], labels[mask])
    assert torch.equal(mixed_labels[~mask], pseudo_labels[~mask])
    assert (weights[mask] == 1).all()
    torch.testing.assert_close(weights[~mask], torch.full_like(weights[~mask], sure))
    assert torch.equal(hidden_of, target * 0.5)
    assert hidden is hidden_found
    assert not torch.equal(hidden, hidden_of)
    assert mask_labels is pseudo_labels

    (_, source_loss), (_, mix_loss), (_, mask_loss) = [(one, loss.detach()) for (one, loss, *_), _ in seen["backward"]]
    logged = load_checkpoint(tmp_path / "run/checkpoint_last.pt")["history"][-1]["train"]
    expected = {"loss": float(source_loss), "loss_mix": 2 * float(mix_loss), "loss_mask": float(mask_loss) / 2}
    assert logged["sure"] == pytest.approx(sure)
    assert {name: logged[name] for name in expected} == pytest.approx(expected)
    assert float(mix_loss) == pytest.approx(0.5 * float(loss_mix.detach()))
    assert float(mask_loss) == pytest.approx(2 * sure * float(consistency.detach()))


def test_a_lower_confidence_weighs_the_target_more(script, game, city, tmp_path):
    shares = []
    for confidence in (0, 1):
        run = tmp_path / str(confidence)
        assert script(*dacs(game, city, run, "--confidence", confidence, "--max-steps", 2)).status == 0
        shares.append(load_checkpoint(run / "checkpoint_last.pt")["history"][-1]["train"]["sure"])
    assert shares == [1, 0]


def test_a_decay_of_zero_keeps_the_students_newest_parameters(script, game, city, tmp_path):
    assert script(*dacs(game, city, tmp_path / "run", "--decay", 0)).status == 0
    checkpoint = load_checkpoint(tmp_path / "run/checkpoint_last.pt")
    parameters = dict(build_segmenter("tiny").named_parameters())
    assert all(torch.equal(checkpoint["weights"][n], checkpoint["training"]["student"][n]) for n in parameters)


def test_an_average_over_a_share_of_the_run_is_as_long_as_the_run_makes_it(script, game, city, tmp_path):
    assert [decay_over(steps) for steps in (0, 1, 0.029 * 700, 1000)] == [0, 0, 0.95, 0.999]
    for flags in (("--decay", 0.5), ("--average-share", 0.5), ("--recipe", "best", "--decay", 0.5)):
        assert script(*dacs(game, city, tmp_path / flags[0], "--max-steps", 4, *flags)).status == 0
    by_decay, by_share = (load_checkpoint(tmp_path / n / "checkpoint_last.pt") for n in ("--decay", "--average-share"))
    assert same(by_decay["weights"], by_share["weights"])
    assert not same(by_decay["weights"], by_decay["training"]["student"])
    said = [(given["decay"], given["average_share"]) for given in (
        arguments(tmp_path / name) for name in ("--decay", "--average-share", "--recipe"))]  # fmt: skip
    assert said == [(0.5, None), (None, 0.5), (0.5, None)]
    both = ("--decay", 0.5, "--average-share", 0.5)
    assert "--average-share does nothing here" in one_line_error(script(*dacs(game, city, tmp_path / "both", *both)))


def test_masked_pictures_alone_teach_what_the_teacher_says(script, game, city, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train_dacs, "masked", lambda images: seen.append(images) or masked(images))
    flags = ("--lambda-mix", 0, "--max-steps", 2)
    for weight in (0, 1):
        assert script(*dacs(game, city, tmp_path / str(weight), *flags, "--lambda-mask", weight)).status == 0
    assert len(seen) == 2
    without, with_it = (load_checkpoint(tmp_path / n / "checkpoint_last.pt") for n in ("0", "1"))
    assert "loss_mask" not in without["history"][-1]["train"]
    assert with_it["history"][-1]["train"]["loss_mask"] >= 0
    assert not same(without["training"]["student"], with_it["training"]["student"])


def arguments(run_dir):
    return json.loads((run_dir / "config.json").read_text())["arguments"]


def test_a_recipe_is_a_set_of_defaults(script, game, city, tmp_path):
    assert script(*dacs(game, city, tmp_path / "best", "--recipe", "best", "--max-steps", 1)).status == 0
    best = train_dacs.RECIPES["best"]
    assert best.items() <= arguments(tmp_path / "best").items()
    flags = ("--recipe", "labels", "--lambda-mask", 0.5, "--no-rare-classes", "--beta", 0.09, "--max-steps", 1)
    assert script(*dacs(game, city, tmp_path / "mine", *flags)).status == 0
    mine = {"lambda_mask": 0.5, "rare_classes": False, "beta": 0.09}
    assert (train_dacs.RECIPES["labels"] | mine).items() <= arguments(tmp_path / "mine").items()


def test_the_best_recipe_learns_source_pixels_on_target_pictures_alone(script, game, city, tmp_path, monkeypatch):
    """Its mixed loss is the cross-entropy of what was pasted, over all pixels, whatever the teacher says."""
    seen, says = [], []
    monkeypatch.setattr(train_dacs, "weighted_by_pixel", lambda *given: seen.append(given) or weighted_by_pixel(*given))
    monkeypatch.setattr(train_dacs, "class_mask", lambda labels: says.append(class_mask(labels)) or says[-1])
    assert script(*dacs(game, city, tmp_path / "run", "--recipe", "best", "--max-steps", 2)).status == 0
    assert len(seen) == len(says) == 2
    for (_, _, weights), mask in zip(seen, says, strict=True):
        assert torch.equal(weights, mask.float())
        assert 0 < mask.float().mean() < 1
    history = load_checkpoint(tmp_path / "run/checkpoint_last.pt")["history"]
    assert history[-1]["train"]["sure"] == 0 < history[-1]["train"]["loss_mix"]


def test_what_the_best_recipe_leaves_out_is_refused(script, game, city, tmp_path, heavy):
    for flags in (("--lambda-mask", 1), ("--teacher-checkpoint", heavy)):
        done = script(*dacs(game, city, tmp_path / "run", "--recipe", "best", *flags))
        assert f"{flags[0]} does nothing here" in one_line_error(done)


# Distillation


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A DeepLabV2 that is sure of class 3 everywhere."""
    network = build_segmenter("deeplabv2")
    with torch.no_grad():
        for parameter in network.classifier.parameters():
            parameter.zero_()
            if parameter.ndim == 1:
                parameter[3] = 50
    content = {"network": network.options, "weights": network.state_dict(), "config": {}, "step": 0, "epoch": 0}
    path = tmp_path_factory.mktemp("heavy") / "checkpoint.pt"
    save_checkpoint(path, content)
    return path


def test_a_frozen_network_of_any_architecture_labels_and_the_small_one_is_kept(
    script, game, city, tmp_path, heavy, monkeypatch
):
    labelled = []
    monkeypatch.setattr(train_dacs, "label", lambda *given: labelled.append(label(*given)) or labelled[-1])
    done = script(*dacs(game, city, tmp_path / "run", "--teacher-checkpoint", heavy, "--max-steps", 2))
    assert done.status == 0, done.err
    assert len(labelled) == 2
    assert all((found == 3).all() for found, _ in labelled)
    run = load_checkpoint(tmp_path / "run/checkpoint_last.pt")
    assert run["network"]["name"] == "tiny"
    assert run["history"][-1]["train"]["sure"] == 1
    card = (tmp_path / "run/model_card.md").read_text().splitlines()
    assert [str(heavy) in line for line in card if line.startswith("| target labelled by ")] == [True]
    used = arguments(tmp_path / "run")
    assert (used["teacher"], len(used["teacher_sha256"])) == ("frozen", 64)
    assert used["teacher_method"] is None  # the checkpoint does not say
    assert used["earlier_networks"] == ["teacher deeplabv2 resnet101, 0 steps"]
    assert script("eval", tmp_path / "run/checkpoint_last.pt", "--workers", 0, "--device", "cpu").status == 0


def test_a_teacher_may_move_and_must_be_the_same(script, game, city, tmp_path, trained):
    def command(teacher, *more):
        return dacs(game, city, tmp_path / "taught", "--teacher-checkpoint", teacher, "--max-steps", 1, *more)

    assert script(*command(trained)).status == 0
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes(trained.read_bytes())
    done = script(*command(elsewhere, "--resume"))
    assert done.status == 0, done.err
    elsewhere.write_bytes((tmp_path / "taught/checkpoint_last.pt").read_bytes())
    assert "teacher" in one_line_error(script(*command(elsewhere, "--resume")))


def test_a_moving_teacher_and_its_student_start_from_the_checkpoint(script, game, city, tmp_path, trained):
    flags = ("--max-steps", 2, "--teacher", "moving", "--teacher-checkpoint", trained)
    assert script(*dacs(game, city, tmp_path / "moving", *flags)).status == 0
    card = (tmp_path / "moving/model_card.md").read_text()
    assert f"the network of {trained}" in card
    assert "the moving average of the student" in card
    assert script(*dacs(game, city, tmp_path / "init", "--max-steps", 2, "--init", trained)).status == 0
    start = load_checkpoint(trained)["weights"]
    parameters = dict(build_segmenter("tiny").named_parameters())
    for begun in (flags, ("--init", trained)):  # a rate of 0 leaves parameters where they started
        run = tmp_path / f"still{begun[-2]}"
        assert script(*dacs(game, city, run, *begun, "--max-steps", 1, "--lr", 0)).status == 0
        still = load_checkpoint(run / "checkpoint_last.pt")
        for kept in (still["weights"], still["training"]["student"]):
            assert all(torch.equal(kept[name], start[name]) for name in parameters)
    moving, init = (load_checkpoint(tmp_path / name / "checkpoint_last.pt") for name in ("moving", "init"))
    assert same(moving["weights"], init["weights"])
    assert same(moving["training"], init["training"])


def test_what_cannot_teach_is_one_line(script, game, city, tmp_path, heavy, trained):
    def said(*flags):
        return one_line_error(script(*dacs(game, city, tmp_path / "never", *flags)))

    assert "--teacher-checkpoint FILE" in said("--teacher", "frozen")
    assert "deeplabv2" in said("--teacher", "moving", "--teacher-checkpoint", heavy)
    multi = tmp_path / "multi.pt"
    checkpoint = load_checkpoint(trained)
    save_checkpoint(multi, checkpoint | {"network": checkpoint["network"] | {"num_classes": 7}})
    refused = said("--teacher", "moving", "--teacher-checkpoint", multi)
    assert "num_classes 7" in refused
    assert "--init" not in refused
    assert "--init" in said("--teacher", "moving", "--teacher-checkpoint", trained, "--init", trained)
    assert "cannot be read" in said("--teacher-checkpoint", tmp_path / "none.pt")
    assert not (tmp_path / "never").exists()


def test_the_teacher_follows_once_a_step_and_is_what_is_kept(script, game, city, tmp_path, monkeypatch):
    steps, rares, stream = [], [], Run.stream
    monkeypatch.setattr("train_dacs.follow", lambda *given: steps.append(given[2]) or follow(*given))
    monkeypatch.setattr(Run, "stream", lambda self, data, geometry, rare=None, *more:
                        rares.append(rare) or stream(self, data, geometry, rare, *more))  # fmt: skip
    flags = ("--max-steps", 2, "--batch-size", 4, "--accumulate", 2, "--rare-classes")
    assert script("train_dacs", *source_only(game, city, tmp_path / "run", *flags)[1:]).status == 0
    assert steps == [0, 1]
    assert isinstance(rares[0], RareClasses)
    assert rares[1] is None
    again = ("--json", tmp_path / "figures.json", "--workers", 0, "--device", "cpu")
    assert script("eval", tmp_path / "run", *again).status == 0
    (found,) = json.loads((tmp_path / "figures.json").read_text())["evaluations"]
    result = json.loads((tmp_path / "run/result.json").read_text())
    student = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["student"]
    assert found["entropy"] == result["entropy"] != student["entropy"]


def test_the_recipes_constants_are_those_of_the_tables():
    """docs/results.md: one recipe for both shifts."""
    averaged = {"beta": 0.01, "decay": None, "average_share": 0.029}
    constants = {
        "dacs": {},
        "best": averaged | {"confidence": 1.0, "loss": "tempered"},
        "labels": averaged | {"confidence": 0.8, "loss": "weighted"},
    }
    assert constants == train_dacs.RECIPES
