"""A network as a file that needs no code of ours: uint8 pixels in, class ids out; ONNX, torch's program, int8.

What is exported computes what the network computes in another order. Both normalisations are part of convolutions, that
of pixels too, up to the picture's edges. The 1x1 convolution behind BiSeNet's enlarging comes before it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deployment import folded
from .runtime import SEAL_KEY, package, seal, session
from .segmenter import Segmenter

OUTPUTS = ("ids", "logits")
OPSET = 18
CENTRE, BESIDE = 128.0, 127.0
"""Pixels less the first lie around 0; the second is the value of the channel beside them. int8 and bf16 hold both."""
SAME = 1e-4
"""Two ways of computing the same logits may differ by so much of the largest."""


class Coarse(nn.Module):
    """uint8 [B, H, W, 3] RGB -> logits [B, C, h, w] as they are before they are enlarged to [H, W].

    A copy of the network, folded. `example`: pictures in [0, 1], [B, 3, H, W], on which each rearrangement is compared
    with the network as it is. One that gives other logits, of a network that is built otherwise, is left out.
    """

    @torch.no_grad()
    def __init__(self, model: Segmenter, example: Tensor) -> None:
        super().__init__()
        self.network = folded(model).to("cpu", memory_format=torch.contiguous_format)
        example = example.cpu()
        expected = self.network(example)
        self.early = _same(enlarged(_decoded(self.network, example, early=True), example.shape[-2:]), expected)
        self.centred = False
        centred = _takes_centred_pixels(self.network, example)
        pixels = (example * 255).round().byte()
        if centred is not None and _same(centred(_centred(pixels.float())), self.network(pixels.float() / 255)):
            self.network, self.centred = centred, True

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.to(torch.float32).permute(0, 3, 1, 2)
        return _decoded(self.network, _centred(images) if self.centred else images / 255, self.early)


class FromPixels(nn.Module):
    """uint8 [B, H, W, 3] RGB -> uint8 ids [B, H', W'] or float logits [B, C, H', W'], at 1/grid of the sides, rounded
    up."""

    def __init__(self, coarse: Coarse, output: str, grid: int) -> None:
        super().__init__()
        self.coarse, self.output, self.grid = coarse, output, grid

    def forward(self, pixels: Tensor) -> Tensor:
        size = [(side + self.grid - 1) // self.grid for side in pixels.shape[1:3]]
        logits = enlarged(self.coarse(pixels), size)
        return logits.argmax(dim=1).to(torch.uint8) if self.output == "ids" else logits


def enlarged(logits: Tensor, size: Iterable[int]) -> Tensor:
    """[B, C, h, w] -> [B, C, *size], as the networks do it."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _decoded(network: Segmenter, images: Tensor, early: bool) -> Tensor:
    """early: at the size of the features, of which a 1x1 convolution behind the enlarging takes a 64th of the work."""
    features = network.features(images)
    return network.decode(features, features[0].shape[-2:] if early else images.shape[-2:])


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and float((found - expected).abs().max()) <= SAME * float(expected.abs().max())


def _centred(images: Tensor) -> Tensor:
    """Pixels from 0 to 255, [B, 3, H, W] -> [B, 4, H, W]: less `CENTRE`, and a channel of `BESIDE`."""
    return torch.cat((images - CENTRE, torch.full_like(images[:, :1], BESIDE)), dim=1)


def _takes_centred_pixels(network: Segmenter, example: Tensor) -> Segmenter | None:
    """A copy that takes `_centred` pixels: the first convolutions normalise. None where something else comes first.

    A scale goes into the weights. A shift cannot go into the bias, since the padding around a normalised picture is 0:
    at the edges fewer taps see it. So it goes into the weights of one more channel, which is 0 in the padding too.
    """
    network = folded(network)
    normalised: list[Tensor] = []
    first: list[nn.Conv2d] = []

    def look(convolution: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        if normalised and inputs[0] is normalised[0]:
            first.append(convolution)

    hooks = [network.normalise.register_forward_hook(lambda module, inputs, output: normalised.append(output))]
    hooks += [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(example)
    for hook in hooks:
        hook.remove()
    if not first or any(c.groups > 1 or c.padding_mode != "zeros" for c in first):
        return None
    mean, deviation = network.normalise.mean, network.normalise.deviation
    for convolution in first:
        weight = convolution.weight / deviation
        beside = (weight * (CENTRE / 255 - mean)).sum(dim=1, keepdim=True) / BESIDE
        convolution.weight = nn.Parameter(torch.cat((weight / 255, beside), dim=1), requires_grad=False)
        convolution.in_channels += 1
    network.normalise = nn.Identity()
    return network


# Files


def metadata(
    model: Segmenter, names: tuple[str, ...], palette: tuple[tuple[int, ...], ...], size: tuple[int, int], output: str,
    grid: int, dynamic: bool, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """What a file says of itself; see `models.runtime.OnnxNetwork`."""
    own = {"network": model.options["name"], "backbone": model.options["backbone"], "names": names, "palette": palette}
    return own | {"size": size, "output": output, "grid": grid, "dynamic": dynamic, "int8": False} | more


def programs(coarse: Coarse, said: dict[str, Any]) -> tuple[Any, bytes]:
    """(torch's program of `FromPixels`, the ONNX file that gives the same) for what `metadata` says."""
    package("onnxscript")
    width, height = said["size"]
    any_size = torch.export.Dim.DYNAMIC
    shapes = ({0: any_size, 1: any_size, 2: any_size},) if said["dynamic"] else None
    pixels = torch.zeros(2 if said["dynamic"] else 1, height, width, 3, dtype=torch.uint8)
    whole = FromPixels(coarse, said["output"], said["grid"]).eval()
    with torch.no_grad(), _quiet():
        program = torch.export.export(whole, (pixels,), dynamic_shapes=shapes)
        network = torch.export.export(coarse.eval(), (pixels,), dynamic_shapes=shapes)
        converted = torch.onnx.export(
            network, dynamo=True, opset_version=OPSET, input_names=["pixels"], output_names=["coarse"], verbose=False
        )
    return program, _finished(converted.model_proto, said)


def save_program(program: Any, said: dict[str, Any], path: Path) -> None:
    """Read by torch.export.load(path, extra_files={"metadata.json": ""})."""
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(said)})


def _finished(model: Any, said: dict[str, Any]) -> bytes:
    """The ONNX of `Coarse`, with what comes after it and the metadata.

    Logits are enlarged with their channels last, where ONNX Runtime takes half the time for that and the argmax.
    """
    onnx = package("onnx")
    node, graph = onnx.helper.make_node, model.graph
    for anything in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        anything.ClearField("metadata_props")  # the exporter's notes
        anything.ClearField("doc_string")
    classes, grid = len(said["names"]), said["grid"]

    def constant(name: str, *values: int) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    last = said["output"] == "ids"
    if said["dynamic"]:
        graph.node.extend([
            node("Shape", ["pixels"], ["pixels_shape"], start=0, end=3),
            node("Add", ["pixels_shape", constant("grid_less_1", 0, grid - 1, grid - 1)], ["pixels_rounded"]),
            node("Div", ["pixels_rounded", constant("grid", 1, grid, grid)], ["output_shape"]),
            node("Split", ["output_shape", constant("batch_and_sides", 1, 2)], ["output_batch", "output_sides"]),
            node("Concat", ["output_batch", "output_sides", constant("classes", classes)] if last else
                 ["output_batch", constant("classes", classes), "output_sides"], ["sizes"], axis=0),
        ])  # fmt: skip
        batch, sides = "batch", ["height", "width"] if grid == 1 else [None, None]
    else:
        batch, sides = 1, [-(-side // grid) for side in reversed(said["size"])]
        constant("sizes", *((1, *sides, classes) if last else (1, classes, *sides)))
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if last:
        graph.node.extend([
            node("Transpose", ["coarse"], ["coarse_last"], name=TAIL[0], perm=[0, 2, 3, 1]),
            node("Resize", ["coarse_last", "", "", "sizes"], ["enlarged"], name=TAIL[1], **how),
            node("ArgMax", ["enlarged"], ["ids_64"], name=TAIL[2], axis=3, keepdims=0),
            node("Cast", ["ids_64"], ["ids"], name=TAIL[3], to=onnx.TensorProto.UINT8),
        ])  # fmt: skip
        out = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.UINT8, [batch, *sides])
    else:
        graph.node.append(node("Resize", ["coarse", "", "", "sizes"], ["logits"], name=TAIL[0], **how))
        out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, classes, *sides])
    graph.output.pop()
    graph.output.append(out)
    if said["dynamic"]:
        for place, name in enumerate(("batch", "height", "width")):
            graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
        del graph.value_info[:]  # they name the sides otherwise
    return written(model, said)


TAIL = ("enlarge_first", "enlarge", "choose", "ids_as_bytes")
"""Names of the nodes behind the logits; the first takes them."""


def channels_first(content: bytes) -> bytes:
    """A file of ids that enlarges logits as they come: in OpenVINO ten times as fast as what `_finished` lays out."""
    onnx = package("onnx")
    model = onnx.load_from_string(content)
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key != SEAL_KEY}
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]  # shapes, as they were
    first, enlarge, choose = (next(node for node in graph.node if node.name == name) for name in TAIL[:3])
    enlarge.input[0], enlarge.name = first.input[0], first.name
    graph.node.remove(first)
    next(attribute for attribute in choose.attribute if attribute.name == "axis").i = 1
    for value in graph.initializer:
        if value.name == "sizes":
            value.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(value)[[0, 3, 1, 2]], "sizes"))
    for node in graph.node:
        if "sizes" in node.output:
            node.input[1], node.input[2] = node.input[2], node.input[1]
    return written(model, said)


def written(model: Any, said: dict[str, Any]) -> bytes:
    """A file of an onnx.ModelProto with its metadata and its seal. Raises onnx's errors for a model that is none."""
    onnx = package("onnx")
    model.producer_name = "export.py"
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in said.items()})
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    return content + seal(content)


class OnnxLogits(nn.Module):
    """Pictures in [0, 1], [B, 3, H, W] -> logits [B, C, H, W] of an exported file, as the network gives them, for
    checks and evaluation. A file of fixed size is given its pictures one by one. grid: as coarse as ids at 1/grid of
    the sides are, each for grid x grid pixels; 1 for the logits that these are chosen from."""

    def __init__(self, content: bytes, path: Path, threads: int | None = None, grid: int = 1) -> None:
        super().__init__()
        self.grid = grid
        onnx = package("onnx")
        model = onnx.load_from_string(content)
        (first,) = (node for node in model.graph.node if node.name == TAIL[0])
        model.graph.output.append(onnx.helper.make_tensor_value_info(first.input[0], onnx.TensorProto.FLOAT, None))
        self.session, self.logits = session(model.SerializeToString(), path, threads), first.input[0]

    def forward(self, images: Tensor) -> Tensor:
        pixels = np.ascontiguousarray((images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        found = [self.session.run([self.logits], {"pixels": one[None]})[0] for one in pixels]
        sides = images.shape[-2:]
        logits = torch.from_numpy(np.concatenate(found)).to(images.device)
        logits = enlarged(logits, tuple((side + self.grid - 1) // self.grid for side in sides))
        if self.grid == 1:
            return logits
        blocks = logits.repeat_interleave(self.grid, -2).repeat_interleave(self.grid, -1)
        return blocks[..., : sides[0], : sides[1]]


# Whole numbers


def quantised(content: bytes, said: dict[str, Any], pictures: Iterable[np.ndarray], folder: Path) -> bytes:
    """The file in int8: weights by output channel, activations by what the calibration pictures, uint8 [1, H, W, 3],
    make of them (static quantisation). What enlarges the logits stays in floating point. folder: for files in between.
    """
    package("onnx")
    tools = package("onnxruntime.quantization")
    source, target = folder / "quantise.onnx", folder / "quantised.onnx"
    source.write_bytes(content)
    feed = ({"pixels": one} for one in pictures)

    class Reader(tools.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feed, None)

    with _quiet():
        tools.quantize_static(
            source, target, Reader(), quant_format=tools.QuantFormat.QDQ, per_channel=True,
            activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8, nodes_to_exclude=[*TAIL],
        )  # fmt: skip
    model = package("onnx").load(target)
    del model.metadata_props[:]
    return written(model, said | {"int8": True})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say beside their work: progress, advice, deprecations of their own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
