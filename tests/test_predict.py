"""predict.py: any picture, at its own size, nothing lost; Grad-CAM is the gradient it says it is."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import one_line_error, picture, save
from PIL import Image

from adaptation.entropy import prediction_entropy
from datasets.files import read_image
from datasets.labels import CITYSCAPES, CLASS_NAMES, Classes
from datasets.pictures import legend
from datasets.video import frames_below
from models import build_segmenter
from models.gradcam import grad_cam, layer_named
from models.layers import resize
from training import prediction
from training.checkpoint import build_from_checkpoint, load_checkpoint
from training.places import named_files


def pixels(path):
    return np.array(Image.open(path))


def test_predictions_are_evals_at_the_pictures_own_size(script, predicted, checkpoint, tmp_path):
    city = checkpoint.parent.parent / "city"
    done = predicted(city / "leftImg8bit/val", "--confidence", "--entropy")
    assert done.status == 0, done.err
    assert "2 of 2" in done.out
    assert script("eval", checkpoint, "--save-predictions", tmp_path / "eval", "--workers", 0).status == 0
    coloured = sorted((tmp_path / "eval").rglob("*.png"))
    found = sorted((tmp_path / "out").rglob("*_labelTrainIds.png"))
    assert len(found) == len(coloured) == 2
    for ids, colours in zip(found, coloured, strict=True):
        assert (CITYSCAPES.palette[pixels(ids)] == pixels(colours)).all()
    assert found[0].parent != found[1].parent  # folders are kept: the two cities'
    model = build_from_checkpoint(load_checkpoint(checkpoint), checkpoint).eval()
    image = next((city / "leftImg8bit/val").rglob(f"{found[0].stem.removesuffix('_labelTrainIds')}.png"))
    with torch.no_grad():
        logits = model(read_image(image)[None] / 255)
    at = str(found[0]).replace
    assert np.abs(pixels(at("_labelTrainIds", "_confidence")) / 255 - logits.softmax(1).amax(1)[0].numpy()).max() < 0.01
    assert np.abs(pixels(at("_labelTrainIds", "_entropy")) / 255 - prediction_entropy(logits)[0].numpy()).max() < 0.01
    overlay = pixels(at("_labelTrainIds", "_overlay"))
    assert overlay.shape[0] > 32  # the legend
    assert overlay.shape[1] >= 48
    expected = 0.45 * pixels(image) + 0.55 * CITYSCAPES.palette[pixels(found[0])]
    assert np.abs(overlay[:32, :48] - expected).max() <= 1


def test_hidden_files_in_a_folder_are_no_pictures(predicted, tmp_path):
    """macOS leaves one beside each picture on a disk of another system."""
    save(tmp_path / "a/x.png", picture(1))
    (tmp_path / "a/._x.png").write_bytes(b"\0\5\x16\7")
    done = predicted(tmp_path / "a")
    assert done.status == 0, done.err
    assert "1 of 1" in done.out
    assert "has an empty name; is a variable not set?" in one_line_error(predicted(""))
    frames = list(frames_below(tmp_path / "a", Fraction(1)).decoded)
    assert len(frames) == 1


def test_nothing_is_overwritten_without_force_and_inputs_never(predicted, tmp_path):
    save(tmp_path / "a/x.png", picture(1))
    save(tmp_path / "b/x.png", picture(2))
    assert predicted(tmp_path / "a/x.png").status == 0
    mine = tmp_path / "out/x_overlay.png"
    mine.write_bytes(b"edited by hand")
    assert "--force replaces it" in one_line_error(predicted(tmp_path / "a/x.png"))
    assert mine.read_bytes() == b"edited by hand"
    assert predicted(tmp_path / "a/x.png", "--force").status == 0
    assert pixels(mine).shape[1] >= 48
    assert "one by one" in one_line_error(predicted(tmp_path / "a/x.png", tmp_path / "b/x.png", "--force"))
    save(tmp_path / "out/y.png", picture(3))
    save(tmp_path / "out/y_overlay.png", picture(4))
    clash = predicted(tmp_path / "out/y.png", tmp_path / "out/y_overlay.png", "--force")
    assert "one of the files to be read" in one_line_error(clash)


def test_files_folders_and_globs(predicted, tmp_path):
    for number, name in enumerate(("in/a.png", "in/deep/b.JPG", "more/c.jpeg", "more/c.txt")):
        save((tmp_path / name).with_suffix(".png"), picture(number))
        (tmp_path / name).with_suffix(".png").rename(tmp_path / name)
    Image.fromarray(picture(1)).save(tmp_path / "in/deep/b.JPG", format="JPEG")
    Image.fromarray(picture(2)).save(tmp_path / "more/c.jpeg")
    done = predicted(tmp_path / "in", tmp_path / "more/*.jpeg")
    assert done.status == 0, done.err
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*_labelTrainIds.png")}
    assert found == {"a_labelTrainIds.png", "deep/b_labelTrainIds.png", "c_labelTrainIds.png"}
    assert "no PNG or JPEG is there" in one_line_error(predicted(tmp_path / "nothing/*.png"))


def test_folders_that_a_pattern_matches_and_linked_ones_are_read(tmp_path):
    for number, name in enumerate(("train/aachen/a.png", "train/bochum/b.png", "far/c.png")):
        save(tmp_path / name, picture(number))
    (tmp_path / "train/bochum/linked").symlink_to(tmp_path / "far")
    expected = {"aachen/a.png": "a.png", "bochum/b.png": "b.png", "bochum/linked/c.png": "linked/c.png"}
    found = named_files([str(tmp_path / "train/*")])
    assert {str(path.relative_to(tmp_path / "train")): str(below) for path, below in found.items()} == expected
    assert list(named_files([str(tmp_path / "train")])) == list(found)
    assert set(map(str, named_files([str(tmp_path / "train/**/*.png")]).values())) >= {"a.png", "b.png"}


def test_odd_pictures_are_predicted_or_refused_by_name(predicted, tmp_path):
    inside = tmp_path / "in"
    image = Image.fromarray(picture(1, (40, 24)))
    inside.mkdir()
    odd = {"grey": image.convert("L"), "palette": image.convert("P"), "alpha": image.convert("RGBA"),
           "bilevel": image.convert("1"), "tiny": image.resize((1, 1)), "thin": image.resize((900, 3)),
           "portrait": image.resize((30, 70))}  # fmt: skip
    for name, one in odd.items():
        one.save(inside / f"{name}.png")
    turned = image.getexif()
    turned[0x0112] = 6  # the camera was held upright
    image.save(inside / "turned.jpg", exif=turned)
    assert predicted(inside).status == 0
    for name, one in odd.items():
        assert Image.open(tmp_path / f"out/{name}_labelTrainIds.png").size == one.size, name
    assert Image.open(tmp_path / "out/turned_labelTrainIds.png").size == (24, 40)

    Image.fromarray(np.full((24, 40), 40000, dtype=np.uint16)).save(inside / "deep.png")
    (inside / "broken.png").write_bytes((inside / "grey.png").read_bytes()[:60])
    huge = bytearray((inside / "grey.png").read_bytes())
    huge[16:24] = (60000).to_bytes(4, "big") * 2  # a header that claims 3.6 thousand million pixels
    (inside / "huge.png").write_bytes(huge)
    done = predicted(inside, "--force")
    assert done.status == 2
    assert "3 of 11 pictures cannot be read" in done.err
    for name, why in (("deep.png", "16"), ("broken.png", "cannot be decoded"), ("huge.png", "")):
        (line,) = [line for line in (done.out + done.err).splitlines() if name in line]
        assert why in line


def test_a_wrong_place_and_a_name_that_is_too_long_are_one_line(predicted, script, checkpoint, tmp_path):
    """Before anything is predicted."""
    source = tmp_path / "in.png"
    Image.fromarray(picture(1, (40, 24))).save(source)
    (tmp_path / "out").write_text("mine")
    assert "out is a file; name a folder" in one_line_error(predicted(source))
    flags = ("--device", "cpu")
    message = one_line_error(script("predict", checkpoint, source, "--out", tmp_path / "out/below", *flags))
    assert "cannot be made (Not a directory)" in message
    (tmp_path / "out").unlink()
    assert "File name too long" in one_line_error(predicted("x" * 300))
    assert "File name too long" in one_line_error(script("predict", checkpoint, source, "--out", "x" * 300, *flags))
    long = source.rename(tmp_path / f"{'ä' * 120}.png")
    assert "File name too long" in one_line_error(predicted(long))  # with what is added to it
    fits = long.rename(tmp_path / f"{'a' * 235}.png")
    assert predicted(fits).status == 0
    assert (tmp_path / f"out/{'a' * 235}_labelTrainIds.png").exists()


def test_a_picture_of_a_street_has_no_side_of_a_million_pixels(predicted, tmp_path):
    """What stands beside it would be as long, and much wider."""
    Image.new("RGB", (1, 70_000)).save(tmp_path / "thin.png")
    Image.new("RGB", (1, 60_000)).save(tmp_path / "thinner.png")
    done = predicted(tmp_path / "thin.png", tmp_path / "thinner.png")
    assert done.status == 2
    assert "claims 1 x 70000 pixels, over the limit of 100,000,000 or of 65,535 a side" in done.out + done.err
    assert "1 of 2 pictures predicted" in done.out


def test_maps_in_bands_are_the_maps_in_one(monkeypatch):
    logits = torch.randn(1, 19, 13, 9, generator=torch.Generator().manual_seed(0))
    whole = prediction.maps(logits, (101, 57))
    monkeypatch.setattr(prediction, "BAND_PIXELS", 7 * 57)
    banded = prediction.maps(logits, (101, 57))
    assert np.abs(whole.confidence - banded.confidence).max() < 1e-5
    assert np.abs(whole.entropy - banded.entropy).max() < 1e-5
    sure = whole.confidence > 0.2
    assert (whole.classes == banded.classes)[sure].all()


def test_a_picture_of_another_shape_keeps_its_shape():
    assert prediction.working_size(2048, 1024, (1024, 512)) == (1024, 512)
    assert prediction.working_size(1920, 990, (1024, 512)) == (1024, 512)
    width, height = prediction.working_size(1000, 2000, (1024, 512))
    assert height == pytest.approx(2 * width, rel=0.01)
    assert width * height == pytest.approx(1024 * 512, rel=0.01)
    assert np.prod(prediction.working_size(100_000, 1, (1024, 512))) <= 1024 * 512


def test_the_legend_names_colours_and_shares():
    drawn = legend([0, 13], CITYSCAPES, 400, [0.75, 0.25])
    for class_id in (0, 13):
        assert (drawn == CITYSCAPES.palette[class_id]).all(axis=2).sum() > 50
    assert legend([0, 13], CITYSCAPES, 120).shape[1] == 120


# Grad-CAM


def direct(features, gradient):
    heat = F.relu((features * gradient.mean(dim=(2, 3), keepdim=True)).sum(1))[0]
    return heat / heat.max()


def test_a_class_whose_name_is_no_file_name_is_explained_too(predicted, monkeypatch, tmp_path):
    names = tuple("car/van" if name == "car" else name for name in CLASS_NAMES)
    monkeypatch.setattr("predict.classes_of", lambda checkpoint: Classes(names, CITYSCAPES.colours))
    save(tmp_path / "x.png", picture(1))
    done = predicted(tmp_path / "x.png", "--cam", "car/van", "--at", "1,1")
    assert done.status == 0, done.err
    assert (tmp_path / "out/x_cam-car-van.png").is_file()


def test_grad_cam_on_hooks_is_the_gradient_of_the_network_written_out():
    torch.manual_seed(0)
    model = build_segmenter("bisenet", backbone="resnet18").eval().requires_grad_(False)
    image = torch.rand(1, 3, 64, 96)

    def score(logits):
        return logits[0, 13, 40:50, 10:30].sum()

    found = grad_cam(model, layer_named(model, model.cam_layer), image, score)
    x = model.normalise(image)
    spatial, (features16, features32) = model.spatial_path(x), model.context_path(x)
    features32.requires_grad_()
    refined16 = resize(model.refine16(features16), spatial.shape[-2:])
    tail = features32.mean(dim=(2, 3), keepdim=True)
    refined32 = resize(model.refine32(features32) * tail, spatial.shape[-2:])
    fused = model.fusion(torch.cat((spatial, refined16, refined32), dim=1))
    (gradient,) = torch.autograd.grad(score(model.classifier(resize(fused, image.shape[-2:]))), features32)
    assert found.shape == features32.shape[-2:]
    assert torch.allclose(found, direct(features32.detach(), gradient), atol=1e-5)
    assert found.max() == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grad_cam_weights_are_finite_differences():
    """A channel's weight is what the score gains when the channel is raised everywhere, by the mean of pixels."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Conv2d(4, 2, 3)).double()
    image = torch.rand(1, 3, 12, 10, dtype=torch.float64)

    def score(logits):
        return logits[0, 1].square().sum()

    features = model[1](model[0](image)).detach()
    raised, size = torch.eye(4, dtype=torch.float64).view(4, 1, 4, 1, 1) * 1e-6, features[0, 0].numel()
    weights = (
        torch.stack([(score(model[2](features + e)) - score(model[2](features - e))) / 2e-6 for e in raised]) / size
    )
    expected = F.relu((weights.detach().view(1, 4, 1, 1) * features).sum(1))[0]
    assert torch.allclose(grad_cam(model, model[1], image, score), expected / expected.max(), atol=1e-6)


def test_grad_cam_explains_a_layer_that_the_next_one_overwrites():
    torch.manual_seed(2)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(4, 2, 3)
    model, image = torch.nn.Sequential(*layers).eval(), torch.rand(1, 3, 12, 10)
    found = grad_cam(model, model[1], image, lambda logits: logits[0, 1].sum())
    model[2] = torch.nn.ReLU()
    assert torch.equal(found, grad_cam(model, model[1], image, lambda logits: logits[0, 1].sum()))
    assert found.max() == 1


def test_grad_cam_refuses_what_it_cannot_explain():
    model = build_segmenter("bisenet", backbone="resnet18").eval()
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="one map of features"):
        grad_cam(model, model.context_path, image, lambda logits: logits.sum())
    with pytest.raises(ValueError, match="no layer is called"):
        layer_named(model, "layer9")
    model.train()
    with pytest.raises(ValueError, match="does not depend"):
        grad_cam(model, model.auxiliary16, image.repeat(2, 1, 1, 1), lambda outputs: outputs[0].sum())


def test_predict_explains_a_class_at_a_place(predicted, tmp_path):
    save(tmp_path / "x.png", picture(1, (96, 64)))
    done = predicted(tmp_path / "x.png", "--cam", "traffic-light", "--at", "90,10")
    assert done.status == 0, done.err
    shown = pixels(tmp_path / "out/x_cam-traffic-light.png")
    assert shown.shape == (64, 96, 3)
    ids = pixels(tmp_path / "out/x_labelTrainIds.png")
    missing = next(name for i, name in enumerate(CLASS_NAMES) if not (ids == i).any())
    there = CLASS_NAMES[int(np.bincount(ids.ravel()).argmax())]
    assert predicted(tmp_path / "x.png", "--cam", there, "--force").status == 0
    other = predicted(tmp_path / "x.png", "--cam", there, "--cam-layer", "spatial_path", "--force")
    assert other.status == 0, other.err
    assert "no pixel is predicted" in predicted(tmp_path / "x.png", "--cam", missing, "--force").out
    assert "lies outside" in predicted(tmp_path / "x.png", "--cam", there, "--at", "96,0", "--force").out
    assert "no layer is called" in one_line_error(
        predicted(tmp_path / "x.png", "--cam", there, "--cam-layer", "x", "--force")
    )
    whole = predicted(tmp_path / "x.png", "--cam", there, "--cam-layer", "context_path", "--force")
    assert "one map of features" in one_line_error(whole)
    assert "none of the classes" in one_line_error(predicted(tmp_path / "x.png", "--cam", "tree"))
    assert "expected X,Y" in one_line_error(predicted(tmp_path / "x.png", "--cam", "car", "--at", "middle"))
    assert "name it with --cam" in one_line_error(predicted(tmp_path / "x.png", "--at", "1,1"))


def test_a_model_card_lies_beside_the_checkpoint(checkpoint):
    card = (checkpoint.parent / "model_card.md").read_text()
    result = json.loads((checkpoint.parent / "result.json").read_text())
    assert f"| {100 * result['miou']:.1f} " in card
    assert "oracle" in card
    assert "Limits" in card
    assert "python train_cityscapes.py --cityscapes" in card
    assert "| Cityscapes train | 4        | training" in card
