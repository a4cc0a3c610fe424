"""The networks: counts that are published, shapes at any size, and weights that never load silently wrong."""

import argparse
from pathlib import Path

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis

from models import WeightsError, build_segmenter
from models.weights import load_state
from training.building import segmenter
from utils.errors import UserError


@pytest.mark.parametrize(
    ("backbone", "training", "inference", "flops"),
    [
        ("resnet18", 12_068_672, 12_054_042, 25_778_833_618),
        pytest.param("resnet101", 48_752_192, 48_693_786, 91_919_538_898, marks=pytest.mark.slow),
    ],
)
def test_bisenet_has_the_published_counts(backbone, training, inference, flops):
    model = build_segmenter("bisenet", backbone=backbone).eval()
    heads = sum(p.numel() for n, p in model.named_parameters() if n.startswith("auxiliary"))
    total = sum(p.numel() for p in model.parameters())
    assert (total, total - heads) == (training, inference)
    count = FlopCountAnalysis(model, torch.zeros(1, 3, 512, 1024))
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert count.total() == flops


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (50, 100), (176, 240), (97, 32)])
def test_logits_have_the_pictures_size(size):
    model = build_segmenter("bisenet").eval()
    images = torch.rand(2, 3, *size)
    assert model(images).shape == (2, 19, *size)
    model.train()
    logits, auxiliary = model(images)
    assert [tuple(x.shape) for x in (logits, *auxiliary)] == [(2, 19, *size)] * 3


def test_every_parameter_is_trained():
    model = build_segmenter("bisenet").train()
    logits, auxiliary = model(torch.rand(2, 3, 64, 64))
    (logits.square().mean() + sum(extra.square().mean() for extra in auxiliary)).backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert dead == []


def test_normalisation_is_the_networks_own():
    model = build_segmenter("bisenet")
    picture = model.normalise.mean.expand(1, 3, 4, 4) + 2 * model.normalise.deviation
    assert torch.allclose(model.normalise(picture), torch.full((1, 3, 4, 4), 2.0), atol=1e-6)


def test_forward_is_the_published_definition():
    """Spelt out once more with plain functions from the same weights, at a size that is a multiple of 32."""
    torch.manual_seed(0)
    net = build_segmenter("bisenet").eval()
    for module in net.modules():  # statistics that differ from 0 and 1, or the test would not see them
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.rand(2, 3, 64, 96)
    f = torch.nn.functional

    def bn(t, b):
        return f.batch_norm(t, b.running_mean, b.running_var, b.weight, b.bias)

    def refine(t, arm):
        pooled = f.conv2d(f.adaptive_avg_pool2d(t, 1), arm.conv.weight, arm.conv.bias)
        return t * torch.sigmoid(bn(pooled, arm.bn))

    with torch.no_grad():
        n = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        spatial = n
        for conv, norm, _ in net.spatial_path:
            spatial = f.relu(bn(f.conv2d(spatial, conv.weight, stride=2, padding=1), norm))
        resnet = torchvision.models.resnet18(weights=None).eval()
        resnet.load_state_dict(net.context_path.state_dict(), strict=False)
        c = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(n))))
        c16 = resnet.layer3(resnet.layer2(resnet.layer1(c)))
        c32 = resnet.layer4(c16)
        tail = c32.mean(3, keepdim=True).mean(2, keepdim=True)
        r16 = f.interpolate(refine(c16, net.refine16), scale_factor=2, mode="bilinear")
        r32 = f.interpolate(refine(c32, net.refine32) * tail, scale_factor=4, mode="bilinear")
        fused = torch.cat((spatial, torch.cat((r16, r32), 1)), 1)
        fused = f.relu(bn(f.conv2d(fused, net.fusion.block[0].weight, padding=1), net.fusion.block[1]))
        a = f.adaptive_avg_pool2d(fused, 1)
        a = f.conv2d(f.relu(f.conv2d(a, net.fusion.conv1.weight, net.fusion.conv1.bias)),
                     net.fusion.conv2.weight, net.fusion.conv2.bias)  # fmt: skip
        fused = fused * torch.sigmoid(a) + fused
        expected = f.conv2d(f.interpolate(fused, scale_factor=8, mode="bilinear"),
                            net.classifier.weight, net.classifier.bias)  # fmt: skip
        error = (net(x) - expected).abs().max() / expected.abs().max()
        assert float(error) < 1e-5


def test_torchvisions_weights_load_whole(tmp_path):
    resnet = torchvision.models.resnet18(weights=None)
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    model = build_segmenter("bisenet", weights=str(tmp_path / "resnet18.pth"))
    own = model.context_path.state_dict()
    assert all(torch.equal(own[key], value) for key, value in resnet.state_dict().items() if not key.startswith("fc."))
    assert f"loaded {len(own)} tensors" in model.weights_report
    assert "classifier (fc)" in model.weights_report


def test_data_parallel_prefix_and_old_files_load(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    old = {f"module.{key}": value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert "PARTIAL" not in build_segmenter("bisenet", weights=str(tmp_path / "old.pth")).weights_report


def test_partial_weights_are_an_error_unless_asked_for(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    missing = {key: value for key, value in state.items() if not key.startswith("layer4")}
    torch.save(missing, tmp_path / "partial.pth")
    path = str(tmp_path / "partial.pth")
    with pytest.raises(WeightsError, match=r"missing \(first: layer4"):
        build_segmenter("bisenet", weights=path)
    report = build_segmenter("bisenet", weights=path, allow_partial_weights=True).weights_report
    assert "PARTIAL" in report
    assert "layer4" in report
    with pytest.raises(WeightsError, match="do not fit"):  # a state dict of something else altogether
        load_state(build_segmenter("bisenet"), {"a": torch.zeros(1)}, "file", allow_partial=True)


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_unreadable_weights_are_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        build_segmenter("bisenet", weights=str(path))


def test_imagenet_weights_come_through_torchvision(monkeypatch):
    """The real loading path, with torchvision's download replaced by a state dict made here."""
    state = torchvision.models.resnet18(weights=None).state_dict()
    member = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    asked = []

    def download(self, *args, **kwargs):
        asked.append(self)
        return state

    monkeypatch.setattr(type(member), "get_state_dict", download)
    model = build_segmenter("bisenet", weights="imagenet")
    assert asked == [member]
    assert torch.equal(model.context_path.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])

    def offline(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(type(member), "get_state_dict", offline)
    with pytest.raises(WeightsError, match="--weights none"):
        build_segmenter("bisenet", weights="imagenet")


@pytest.mark.parametrize("content", [b"", b"<html>log in first</html>"])
def test_a_damaged_download_is_named(monkeypatch, tmp_path, content):
    """What lies in torch's cache is read as it is; a hash is only looked at after a download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{kept}.* delete it"):
        build_segmenter("bisenet", weights="imagenet")


def test_keys_that_are_no_names_are_no_weights(tmp_path):
    torch.save({0: torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        build_segmenter("bisenet", weights=str(tmp_path / "x.pt"))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="expected one of"):
        build_segmenter("unet")
    with pytest.raises(ValueError, match="expected one of"):
        build_segmenter("bisenet", backbone="vgg")


# DeepLabV2


@pytest.mark.slow
@pytest.mark.parametrize(("multi_level", "parameters"), [(False, 43_901_068), (True, 44_601_560)])
def test_deeplabv2_has_the_published_counts(multi_level, parameters):
    model = build_segmenter("deeplabv2", multi_level=multi_level).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    if not multi_level:
        with torch.no_grad():
            count = FlopCountAnalysis(model, torch.zeros(1, 3, 512, 1024))
            count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            assert count.total() == 374_664_739_584  # published: 0.375 T
            assert count.by_operator()["conv"] == 373_656_133_632


def test_deeplabv2_strides_and_dilations_are_caffes():
    net = build_segmenter("deeplabv2").backbone
    assert net.maxpool.ceil_mode
    for stage, stride, dilation in ((net.layer1, 1, 1), (net.layer2, 2, 1), (net.layer3, 1, 2), (net.layer4, 1, 4)):
        assert stage[0].conv1.stride == stage[0].downsample[0].stride == (stride, stride)
        for block in stage:
            assert block.conv2.stride == (1, 1)
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)


def test_deeplabv2_computes_the_published_definition():
    """A bottleneck of every stage and the classifier, spelt out with plain functions from the same weights."""
    torch.manual_seed(0)
    net = build_segmenter("deeplabv2", multi_level=True).eval()
    f = torch.nn.functional

    def bn(t, b):
        return f.batch_norm(t, b.running_mean, b.running_var, b.weight, b.bias)

    def stage(t, blocks, stride, dilation):
        for i, block in enumerate(blocks):
            s = stride if i == 0 else 1
            y = f.relu(bn(f.conv2d(t, block.conv1.weight, stride=s), block.bn1))
            y = f.relu(bn(f.conv2d(y, block.conv2.weight, padding=dilation, dilation=dilation), block.bn2))
            y = bn(f.conv2d(y, block.conv3.weight), block.bn3)
            if i == 0:
                t = bn(f.conv2d(t, block.downsample[0].weight, stride=s), block.downsample[1])
            t = f.relu(y + t)
        return t

    x = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        b = net.backbone
        y = f.relu(bn(f.conv2d(net.normalise(x), b.conv1.weight, stride=2, padding=3), b.bn1))
        y = f.max_pool2d(y, 3, 2, 1, ceil_mode=True)
        layer3 = stage(stage(stage(y, b.layer1, 1, 1), b.layer2, 2, 1), b.layer3, 1, 2)
        layer4 = stage(layer3, b.layer4, 1, 4)
        for features, head, logits in ((layer4, net.classifier, net(x)), (layer3, net.auxiliary, None)):
            expected = sum(
                f.conv2d(features, branch.weight, branch.bias, padding=rate, dilation=rate)
                for branch, rate in zip(head.branches, (6, 12, 18, 24), strict=True)
            )
            expected = f.interpolate(expected, size=(40, 56), mode="bilinear", align_corners=False)
            found = net.decode(net.features(x), (40, 56)) if logits is not None else None
            if found is None:
                net.train()  # the auxiliary logits exist in training; statistics as in evaluation
                for module in net.batch_norms():
                    module.eval()
                found = net(x)[1][0]
            assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.slow
def test_statistics_that_stay_as_they_are_cannot_be_the_targets():
    flags = {"model": "deeplabv2", "backbone": "resnet101", "weights": "imagenet", "allow_partial_weights": False}
    args = argparse.Namespace(**flags, init=Path("run"), resume=False, bn_statistics="target", device="cpu")
    with pytest.raises(UserError, match=r"keeps the statistics of its pretrained weights.*take --weights none"):
        segmenter(args, 19)
    args.weights = "none"
    segmenter(args, 19)


def test_deeplabv2_loads_torchvisions_weights_and_freezes_batch_norm(tmp_path):
    state = torchvision.models.resnet101(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet101.pth")
    net = build_segmenter("deeplabv2", weights=str(tmp_path / "resnet101.pth"), frozen_batch_norm=True)
    own = net.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith("fc."))
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items() if "running" in key}
    logits, auxiliary = net(torch.rand(2, 3, 33, 33))
    assert auxiliary == ()
    assert logits.shape == (2, 19, 33, 33)
    logits.mean().backward()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None for module in net.batch_norms() for p in module.parameters())
    assert build_segmenter("deeplabv2").train().backbone.bn1.training
    several = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net).train()  # as with several GPUs
    assert isinstance(several.backbone.bn1, torch.nn.SyncBatchNorm)
    assert not any(module.training for module in several.batch_norms())
    assert len(several.batch_norms()) == 104
    with pytest.raises(ValueError, match="resnet101"):
        build_segmenter("deeplabv2", backbone="resnet18")


def test_deeplabv2s_classifier_learns_at_ten_times_the_rate():
    from training.building import sgd

    net = build_segmenter("deeplabv2", multi_level=True)
    optimizer = sgd(net, lr=2.5e-4, weight_decay=5e-4)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        assert rate[id(parameter)] == pytest.approx(2.5e-3 if "backbone" not in name else 2.5e-4)
        assert decay[id(parameter)] == (5e-4 if parameter.ndim > 1 else 0)
