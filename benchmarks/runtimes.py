"""Runtimes beside PyTorch: pixels to class ids, and a picture's file to class ids. For `benchmarks/inference.py`."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets.files import read_image  # noqa: E402
from datasets.geometry import resize_image  # noqa: E402
from datasets.pairs import existing_root, pictures_below  # noqa: E402
from datasets.street_scenes.writer import draw_scene  # noqa: E402
from models.deployment import Deployed  # noqa: E402
from models.exporting import Coarse, channels_first, metadata, programs, quantised  # noqa: E402
from models.runtime import OnnxNetwork, package  # noqa: E402
from models.segmenter import Segmenter  # noqa: E402
from utils.errors import UserError  # noqa: E402

Ids = Callable[[np.ndarray], np.ndarray]
"""uint8 pixels [1, H, W, 3] -> uint8 class ids [1, H, W]."""

BASE = "PyTorch fp32, eager"
CALIBRATION = 8
SCENE = (2048, 1024)
"""Width and height of the pictures whose files are read: Cityscapes'."""
TENSORRT = "TensorrtExecutionProvider"
HEADER = ("network", "size", "threads", "runtime", "ms", "95 %", "CPU ms", "pictures/s", "times eager",
          "from the file, ms", "95 %", "ids equal (%)")  # fmt: skip
PAUSE = 0.01
"""Seconds before each run, in which the threads of the run before go to sleep."""


def scenes(folder: Path, count: int) -> list[Path]:
    """Drawn street scenes as JPEG files."""
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(draw_scene(0, number, "camera", SCENE)[0]).save(path, quality=95)
    return paths


def some(folder: Path) -> list[Path]:
    """Eight pictures of a folder, evenly. Raises `UserError` where none is there."""
    found = pictures_below(existing_root(folder, "--pictures"))
    if not found:
        raise UserError(f"--pictures {folder}: no PNG or JPEG is there")
    return [found[i * len(found) // CALIBRATION] for i in range(CALIBRATION)]


def decoded(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture's file -> pixels at a working size (width, height)."""
    return np.ascontiguousarray(resize_image(read_image(path), size).permute(1, 2, 0).numpy())[None]


def by_torch(network: torch.nn.Module) -> Ids:
    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return network(images).argmax(dim=1).to(torch.uint8).numpy()

    return run


def by_openvino(path: Path, precision: str, threads: int) -> Ids:
    openvino = package("openvino")
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(path), "CPU", hints)
    return lambda pixels: compiled([pixels])[0]


def compiles(path: Path, precision: str) -> bool:
    """Whether OpenVINO comes back from compiling a file; PIDNet's int8 file ends the whole process (2026.4.1)."""
    code = (
        "import sys, openvino; core = openvino.Core(); "
        "core.compile_model(core.read_model(sys.argv[1]), 'CPU', {'INFERENCE_PRECISION_HINT': sys.argv[2]})"
    )
    return subprocess.run([sys.executable, "-c", code, str(path), precision], capture_output=True).returncode == 0


def exported(
    model: Segmenter, size: tuple[int, int], calibration: Sequence[np.ndarray], folder: Path, grid: int
) -> dict[str, Path]:
    """fp32 and int8, each laid out for ONNX Runtime and, as `first-`, for others."""
    coarse = Coarse(model, torch.from_numpy(calibration[0]).permute(0, 3, 1, 2) / 255)
    outputs = model.options["num_classes"]
    names, colours = ([part] * outputs for part in ("class", (0, 0, 0)))  # of any set of classes; nobody reads them
    said = metadata(model, names, colours, size, "ids", grid, dynamic=False)
    _, content = programs(coarse, said)
    found = {"fp32": content, "int8": quantised(content, said, calibration, folder)}
    found |= {f"first-{name}": channels_first(held) for name, held in found.items()}
    paths = {name: folder / f"{name}.onnx" for name in found}
    for name, path in paths.items():
        path.write_bytes(found[name])
    return paths


def runtimes(model: Segmenter, files: dict[str, Path], threads: int) -> dict[str, Ids]:
    """Every way that is installed here; PyTorch's take `torch.set_num_threads`."""
    found = {
        BASE: by_torch(model),
        "PyTorch bf16, folded": by_torch(Deployed(model, torch.bfloat16)),
        "ONNX Runtime fp32": OnnxNetwork(files["fp32"], threads),
        "ONNX Runtime int8": OnnxNetwork(files["int8"], threads),
    }
    if importlib.util.find_spec("openvino") is not None:
        ways = {"fp32": ("first-fp32", "f32"), "bf16": ("first-fp32", "bf16"), "int8 and bf16": ("first-int8", "bf16")}
        for name, (file, how) in ways.items():
            if compiles(files[file], how):
                found[f"OpenVINO {name}"] = by_openvino(files[file], how, threads)
            else:
                print(f"OpenVINO {name}: cannot compile {model.title}; left out")
    if TENSORRT in package("onnxruntime").get_available_providers():
        half, whole = ((TENSORRT, {"trt_fp16_enable": True}),), ((TENSORRT, {"trt_int8_enable": True}),)
        found["TensorRT fp16"] = OnnxNetwork(files["first-fp32"], threads, half)
        found["TensorRT int8"] = OnnxNetwork(files["first-int8"], threads, whole)
    return found


def measured(
    networks: dict[str, Segmenter], sizes: Sequence[tuple[int, int]], threads: Sequence[int], rounds: int,
    pictures: Path | None = None, grid: int = 1,
) -> list[list[str]]:
    """Rows of `HEADER`. In each round every runtime takes the same picture once as pixels, once as a file, in turn. CPU
    ms: what all threads together compute for the pixels; the wall clock also counts other work on the machine.

    pictures: a folder of them, of which eight are taken; None: drawn scenes. Raises `UserError` where none is there.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = scenes(folder, CALIBRATION) if pictures is None else some(pictures)
        for title, model in networks.items():
            for size in sizes:
                pixels = [decoded(path, size) for path in files]
                written = exported(model, size, pixels, folder, grid)
                for number in threads:
                    torch.set_num_threads(number)
                    ways = runtimes(model, written, number)
                    rows += _rows([title, "{}x{}".format(*size), str(number)], ways, size, files, pixels, rounds)
                    print(".", end="", file=sys.stderr, flush=True)
    return rows


def _rows(
    head: list[str], ways: dict[str, Ids], size: tuple[int, int], files: list[Path], pixels: list[np.ndarray],
    rounds: int,
) -> list[list[str]]:  # fmt: skip
    expected = [ways[BASE](one) for one in pixels]
    equal: dict[str, Any] = {}
    for name, way in ways.items():  # warm
        equal[name] = np.mean([_alike(way(one), ids) for one, ids in zip(pixels, expected, strict=True)])
    alone: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        place = number % len(files)
        for name, way in ways.items():
            time.sleep(PAUSE)
            way(pixels[place])  # as in a stream: its threads are awake, and the caches hold its own
            start, computing = time.perf_counter(), time.process_time()
            way(pixels[place])
            busy[name].append(time.process_time() - computing)
            middle = time.perf_counter()
            way(decoded(files[place], size))
            whole[name].append(time.perf_counter() - middle)
            alone[name].append(middle - start)
    rows = []
    for name in ways:
        median = statistics.median(alone[name])
        ratio = statistics.median(alone[BASE]) / median
        late = [f"{1e3 * float(np.percentile(found[name], 95)):.1f}" for found in (alone, whole)]
        rows.append([*head, name, f"{1e3 * median:.1f}", late[0],
                     f"{1e3 * statistics.median(busy[name]):.1f}", f"{1 / median:.1f}", f"{ratio:.2f}",
                     f"{1e3 * statistics.median(whole[name]):.1f}", late[1], f"{100 * equal[name]:.2f}"])  # fmt: skip
    return rows


def _alike(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of equal ids; those on a coarser grid are repeated."""
    grid = -(-expected.shape[1] // found.shape[1])
    if grid > 1:
        found = found.repeat(grid, 1).repeat(grid, 2)[:, : expected.shape[1], : expected.shape[2]]
    return float((found == expected).mean())
