"""What does adaptation in the stream bring, and cost? A network on a drive's frames in the order of their names.

    python benchmarks/stream.py RUN --cityscapes DUSK
    python benchmarks/stream.py RUN --cityscapes DUSK --windows 1 8 32 --json stream.json

Rows: the network as it was trained; AdaBN on the target's train split, before the drive (eval.py --adapt-bn); and
predict.py's --adapt-bn, which sees nothing but the frames that went by, at each of --windows. Mean IoU as eval.py takes
it; milliseconds are medians of the network alone on a frame, the rows in turn so that a busy machine is busy for all.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adaptation.stream import RunningBatchNorm  # noqa: E402
from datasets.appearance import to_float  # noqa: E402
from datasets.domains import TARGETS, add_roots, open_target, target_of  # noqa: E402
from datasets.labels import require_same_classes  # noqa: E402
from training.adabn import adapt_to  # noqa: E402
from training.checkpoint import (  # noqa: E402
    build_from_checkpoint,
    checkpoint_file,
    classes_of,
    load_checkpoint,
    trained_with,
)
from training.evaluation import predict  # noqa: E402
from training.provenance import commit, device_name  # noqa: E402
from utils.bar import tracked  # noqa: E402
from utils.errors import Parser, run_script  # noqa: E402
from utils.files import require_new, write_json  # noqa: E402
from utils.flags import add_machine_flags, positive  # noqa: E402
from utils.metrics import ConfusionMatrix  # noqa: E402
from utils.tables import counted, markdown, percent  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=checkpoint_file, metavar="CHECKPOINT", help="of any run, or the run")
    add_roots(parser, TARGETS, "root of {title} (default: the run's target)")
    parser.add_argument("--windows", type=positive, nargs="+", default=[1, 8, 32], metavar="N", help="(1 8 32)")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N frames")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    add_machine_flags(parser.add_argument_group("machine"))
    return parser.parse_args()


@torch.no_grad()
def timed(network: nn.Module, inputs: Tensor) -> tuple[Tensor, float]:
    """Logits, and the seconds that they took."""
    start = time.perf_counter()
    logits = network(inputs)
    logits[0, 0, 0, 0].item()  # a GPU is done only now
    return logits, time.perf_counter() - start


def main() -> None:
    args = parse_args()
    if args.json is not None:
        require_new(args.json)
    checkpoint = load_checkpoint(args.checkpoint)
    run, classes = trained_with(checkpoint, args.checkpoint), classes_of(checkpoint)
    given = run | {"limit": None}
    if target_of(vars(args)) is not None:
        given |= {key: vars(args)[key] for key in TARGETS}
    data = open_target(given, "val")
    require_same_classes(str(args.checkpoint), classes, data.name, data.classes)
    model = build_from_checkpoint(checkpoint, args.checkpoint).to(args.device).eval()
    rows = {"as it was trained": model, "AdaBN before the drive": copy.deepcopy(model)}
    adapt_to(rows["AdaBN before the drive"], open_target(given, "train", labelled=False), run["batch_size"],
             args.workers, args.device)  # fmt: skip
    for window in args.windows:
        rows[f"running window of {window}"] = copy.deepcopy(model)
        RunningBatchNorm(rows[f"running window of {window}"], window)
    matrices = {name: ConfusionMatrix(len(classes.names)) for name in rows}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    frames = min(len(data), args.limit or len(data))
    for number in tracked(range(frames), frames, data.name, "frame"):
        image, label = data[number]
        inputs = to_float(image[None].to(args.device))
        for name, network in rows.items():
            logits, taken = timed(network, inputs)
            seconds[name].append(taken)
            matrices[name].update(predict(logits, label.shape), label.to(args.device))
    figures = {
        name: {"miou": matrix.miou(), "milliseconds": 1000 * statistics.median(seconds[name])}
        for name, matrix in matrices.items()
    }
    print(f"\n{data.name}, {counted(frames, 'frame')} in order, {run['size'][0]}x{run['size'][1]}, "
          f"{device_name(args.device)}, torch {torch.__version__}, commit {commit()}\n")  # fmt: skip
    print(markdown(("batch normalisation", "mean IoU (%)", "ms a frame"),
                   [[n, percent(f["miou"]), f"{f['milliseconds']:.1f}"] for n, f in figures.items()]))  # fmt: skip
    if args.json is not None:
        write_json(args.json, {"stream": figures, "checkpoint": str(args.checkpoint), "data": data.name,
                               "commit": commit(), "device": device_name(args.device)})  # fmt: skip


if __name__ == "__main__":
    run_script(main)
