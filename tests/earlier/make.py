"""Makes the runs of this folder and records what commit 88ebe6d computes from them. Works at that commit only:

    git worktree add /tmp/then 88ebe6d && cd /tmp/then
    PYTHONPATH=.:tests OMP_NUM_THREADS=1 python PATH/tests/earlier/make.py PATH/tests/earlier

Every run is one of that commit's own scripts on the data sets of its tests/conftest.py: 4 steps, stopped after 2, 3
and 4 of them and resumed. At each stop the weights and the optimizers' averages are replaced by a short
repeated pattern, and `save_checkpoint` of that commit writes the checkpoint again. So format, names, shapes and
checksum are that commit's, and every figure is of the weights that lie beside it; but 100 MB pack into 20 kB.

KIND.tar.xz.xz holds begun/KIND, the run as it was after step 3, and runs/KIND, the finished run. Of the finished
runs' checkpoints only those in `FINISHED` are kept; TensorBoard's files and pseudo-labels are not. KIND.png is what
predict.py makes of a picture; expected.json holds everything else.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import lzma
import math
import os
import shutil
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import picture, save, write_cityscapes, write_gta5
from torch import Tensor, nn
from utils.checkpoint import build_from_checkpoint, load_checkpoint, save_checkpoint
from utils.run import Run

from utils.interruption import Stop

CPU = ("--workers", "0", "--device", "cpu")
TARGET = "--cityscapes city --size 48x32 --weights none --batch-size 2 --max-steps 4 --lr 0.002 --scales 1"
BOTH = f"{TARGET} --gta5 game --source-size 48x32"
KINDS = {
    "cityscapes": f"train_cityscapes {TARGET}",
    "gta5": f"train_gta5 {BOTH} --source-holdout 0.3 --jitter --blur --loss focal",
    "multi-level": f"train_adversarial {BOTH} --level multi --bn-statistics target",
    "depthwise": f"train_adversarial {BOTH} --discriminator depthwise --input entropy --gan least-squares "
    "--min-entropy",
    "fda": f"train_fda {BOTH} --beta 0.01 0.05",
    "pseudo-labels": f"train_pseudo_labels {BOTH} --labeller begun/gta5/checkpoint_last.pt --percentile 66",
    "dacs": f"train_dacs {BOTH} --recipe best --confidence 0.06 --rare-classes --lambda-mask 1",
    "deeplabv2": f"train_adversarial {BOTH} --model deeplabv2 --level multi",
}
BANDS = {"fda": ["beta-0.01", "beta-0.05"]}
TEXTS = ("config.json", "metrics.jsonl", "result.json", "model_card.md")
FINISHED = {Path("runs/dacs/checkpoint_best.pt"), Path("runs/deeplabv2/checkpoint_best.pt")}
PERIOD = 61
stop_at: list[Any] = []
"""Directory's name and step at which `pause` stops a run; empty: nowhere."""


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    write_runs(out)
    record(out)


def in_new_folder() -> None:
    """Goes where the data sets are, and nothing else."""
    os.chdir(tempfile.mkdtemp())
    write_cityscapes(Path("city"))
    write_gta5(Path("game"))
    save(Path("street.png"), picture(99, (12, 8)).repeat(4, axis=0).repeat(4, axis=1))


def run(script: str, *arguments: object) -> tuple[int, str]:
    """(exit status, what it printed)."""
    sys.argv = [f"{script}.py", *map(str, arguments)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            importlib.import_module(script).main()
    except SystemExit as stop:
        return stop.code, printed.getvalue()
    return 0, printed.getvalue()


def pause(self: Run) -> None:
    """In place of `Run.pause`: stops the run as a signal would."""
    if stop_at == [self.directory.name, self.step]:
        self._stop(Stop("stopped to be kept", 75))


# Runs


def write_runs(out: Path) -> None:
    in_new_folder()
    Run.pause = pause
    for kind in KINDS:
        train(kind)
        pack(kind, out)


def train(kind: str) -> None:
    """runs/KIND to its end; begun/KIND as it was after step 3 (of the last band)."""
    place, folders = Path("runs", kind), folders_of(Path("runs", kind))
    command = [*KINDS[kind].split(), *CPU, "--run-dir", place]
    for folder in folders:
        for step in (2, 3, 4):
            stop_at[:] = [folder.name, step]
            status, _ = run(*command, *(["--resume"] if place.exists() else []))
            assert status == 75, (kind, step, status)
            settle(folder / "checkpoint_last.pt")
            if step == 3 and folder == folders[-1] and kind != "deeplabv2":
                shutil.copytree(place, Path("begun", kind))
    stop_at.clear()
    status, _ = run(*command, "--resume")
    assert status == 0


def folders_of(place: Path) -> list[Path]:
    return [place / band for band in BANDS.get(place.name, [""])]


def settle(path: Path) -> None:
    """Writes the checkpoint again with patterns for what was learned."""
    content = load_checkpoint(path)
    pattern = f"{path.parent} {content['step']}"
    replace(content["weights"], pattern)
    for name, part in content["training"].items():
        replace(part, f"{pattern} {name}")
    spread(content, path)
    save_checkpoint(path, content)


def replace(value: object, pattern: str, name: str = "") -> None:
    """Fills every tensor of real numbers below it, in place; single numbers and ImageNet's mean stay."""
    if isinstance(value, Tensor):
        if value.ndim and value.is_floating_point() and "normalise." not in name:
            value.copy_(filled(value.shape, pattern, name))
        return
    for key, item in value.items() if isinstance(value, dict) else []:
        replace(item, pattern, f"{name}.{key}")


def filled(shape: torch.Size, pattern: str, name: str) -> Tensor:
    """Eighths from -1 to 1 of sum 0, again and again, scaled so that activations and steps keep their size."""
    generator = np.random.default_rng(zlib.crc32(pattern.encode()))
    half = generator.integers(1, 9, PERIOD // 2) / 8
    values = np.resize(generator.permutation([0, *half, *-half]), tuple(shape))
    if name.endswith("exp_avg_sq"):
        values = 0 * values + 2.0**-8
    elif name.endswith(("running_var", "weight")) and len(shape) == 1:
        values = 1 + values / 4
    elif len(shape) == 1:
        values = values / 8
    else:
        values = values * 2.0 ** round(math.log2(math.sqrt(6 / math.prod(shape[1:]))))
    if "auxiliary" in name or "classifier" in name:
        values = values / 4
    return torch.from_numpy(values.astype(np.float32)) * (8 if name.endswith("momentum_buffer") else 1)


@torch.no_grad()
def spread(content: dict[str, Any], path: Path) -> None:
    """Batch normalisation gets statistics of the val pictures, one number a layer, and BiSeNet's last one a number a
    channel, all to eight bits: so several classes are predicted."""
    model = build_from_checkpoint(content, path).train()
    images = torch.stack([torch.from_numpy(picture(number)).permute(2, 0, 1) / 255 for number in (4, 5)])
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    model(images)
    for layer in layers:
        layer.running_var.fill_((layer.running_var.mean() + layer.running_mean.var(correction=0)).bfloat16())
        layer.running_mean.fill_(layer.running_mean.mean().bfloat16())
    if content["network"]["name"] == "bisenet":
        convolution, last, _ = model.fusion.block
        convolution.register_forward_hook(lambda _, __, output: seen.append(output))
        seen: list[Tensor] = []
        model.eval()(images)
        variance, mean = torch.var_mean(seen[0], dim=(0, 2, 3))
        last.running_mean.copy_(mean.bfloat16())
        last.running_var.copy_(variance.bfloat16())
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            content["weights"][name].copy_(value)


def pack(kind: str, out: Path) -> None:
    """Twice through xz: what the first makes of a repeated pattern is again a repeated pattern."""
    best = {"preset": 9 | lzma.PRESET_EXTREME}
    with (
        lzma.open(out / f"{kind}.tar.xz.xz", "wb", **best) as outer,
        lzma.open(outer, "wb", **best) as inner,
        tarfile.open(fileobj=inner, mode="w|") as tar,
    ):
        for path in sorted(Path().glob(f"*/{kind}/**/*")):
            last = path.parts[0] == "begun" and path.name == "checkpoint_last.pt"
            if last or path.name in TEXTS or path in FINISHED:
                member = tar.gettarinfo(path)
                member.mode, member.uid, member.gid, member.mtime = 0o644, 0, 0, 0
                member.uname = member.gname = ""
                with path.open("rb") as content:
                    tar.addfile(member, content)


# What this commit computes from them


def record(out: Path) -> None:
    in_new_folder()
    for path in sorted(out.glob("*.tar.xz.xz")):
        with lzma.open(path) as outer, lzma.open(outer) as inner, tarfile.open(fileobj=inner, mode="r|") as archive:
            archive.extractall()
    for kind, checkpoint in checkpoints().items():
        run("predict", checkpoint, "street.png", "--out", f"seen/{kind}", "--device", "cpu")
        shutil.copy(Path("seen", kind, "street_labelTrainIds.png"), out / f"{kind}.png")
    expected = {
        "checkpoints": {kind: str(path) for kind, path in checkpoints().items()},
        "eval": evaluated(),
        "report": run("report", *sorted(Path("runs").iterdir()))[1].splitlines(),
        "resumed": {kind: resumed(kind) for kind in KINDS if kind != "deeplabv2"},
    }
    (out / "expected.json").write_text(pretty(without_iou(expected)) + "\n")


def checkpoints() -> dict[str, Path]:
    """One of each kind."""
    found = {kind: folders_of(Path("begun", kind))[-1] / "checkpoint_last.pt" for kind in KINDS}
    return found | {"deeplabv2": Path("runs/deeplabv2/checkpoint_best.pt")}


def evaluated() -> list[dict[str, Any]]:
    """eval.py's arguments and figures."""
    calls = [
        [*checkpoints().values(), "runs/dacs/checkpoint_best.pt", "--no-mean"],
        ["begun/fda/beta-0.01/checkpoint_last.pt", "begun/fda/beta-0.05/checkpoint_last.pt"],
        ["begun/dacs/checkpoint_last.pt", "--adapt-bn"],
        ["begun/gta5/checkpoint_last.pt", "--gta5", "game"],
    ]
    found = []
    for arguments in calls:
        status, _ = run("eval", *arguments, "--json", "figures.json", *CPU)
        assert status == 0
        figures = json.loads(Path("figures.json").read_text())["evaluations"]
        found.append({"arguments": [str(argument) for argument in arguments], "evaluations": figures})
    return found


def resumed(kind: str) -> dict[str, Any]:
    """Of begun/KIND, resumed to its end: result.json, the last line of metrics.jsonl, the norm of what is kept."""
    place = shutil.copytree(Path("begun", kind), Path("resumed", kind))
    status, _ = run(*KINDS[kind].split(), *CPU, "--run-dir", place, "--resume")
    assert status == 0
    folder = folders_of(place)[-1]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    checkpoint = load_checkpoint(folder / "checkpoint_last.pt")
    norms = {name: norm(part) for name, part in {"weights": checkpoint["weights"], **checkpoint["training"]}.items()}
    result = json.loads((folder / "result.json").read_text())
    return {"result": result, "metrics": json.loads(lines[-1]), "norms": norms}


def norm(value: Any) -> float:
    """The Euclidean norm of all tensors of real numbers below it."""
    if isinstance(value, Tensor):
        return value.norm().item() if value.is_floating_point() else 0.0
    return math.hypot(*(norm(item) for item in value.values())) if isinstance(value, dict) else 0.0


def pretty(value: Any, indent: str = "") -> str:
    """JSON, a line for what holds no dict."""
    between, inner = (",\n" + indent + " "), indent + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {pretty(item, inner)}" for key, item in value.items()]
        return f"{{\n{inner}{between.join(lines)}\n{indent}}}"
    if isinstance(value, list) and isinstance(value[0], dict):
        return f"[\n{inner}{between.join(pretty(item, inner) for item in value)}\n{indent}]"
    return json.dumps(value, separators=(",", ":"))


def without_iou(value: Any) -> Any:
    """IoU per class follows from the confusion matrix."""
    if isinstance(value, dict):
        return {key: without_iou(item) for key, item in value.items() if key != "iou"}
    return [without_iou(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
