"""How fast does a network predict: plain fp32, and as one would deploy it? And how does that grow with size and batch?

    python benchmarks/inference.py
    python benchmarks/inference.py --sizes 1024x512 --batches 1 8 --precisions fp16 bf16 --compile
    python benchmarks/inference.py --runtimes --threads 1 2 --model lraspp      beside ONNX Runtime, OpenVINO, TensorRT
    python benchmarks/inference.py --runtimes --checkpoint RUN --sizes 512x256

Plain is the network as it is built by most code of this field: contiguous, fp32, batch normalisation apart. Deployed is
`models.deployment`: folded, channels-last, in each of --precisions. All take the same pictures in turn; medians.

--runtimes measures on a CPU what export.py writes, from pixels to class ids, and from a picture's file to class ids
(decoded, resized, predicted), one picture at a time: medians and 95th percentiles.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.runtimes import HEADER, measured  # noqa: E402
from measure_flops import timed  # noqa: E402
from models import SEGMENTERS, Segmenter, build_segmenter  # noqa: E402
from models.deployment import Deployed  # noqa: E402
from training.checkpoint import build_from_checkpoint, checkpoint_file, load_checkpoint  # noqa: E402
from training.flags import add_network_flags  # noqa: E402
from training.gradients import PRECISIONS  # noqa: E402
from training.provenance import commit, device_name  # noqa: E402
from utils.errors import Parser, UserError, refuse_idle, run_script  # noqa: E402
from utils.flags import cores, default_device, device, positive, size  # noqa: E402
from utils.tables import markdown  # noqa: E402


class Autocast(nn.Module):
    """The network as it is, convolutions in `dtype`."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.dtype):
            return self.model(images)


WAYS = {
    "eager": lambda model, dtype: model if dtype == torch.float32 else Autocast(model, dtype),
    "folded": Deployed,
    "compiled": lambda model, dtype: Deployed(model, dtype, compiled=True, graphs=False),
    "CUDA graphs": lambda model, dtype: Deployed(model, dtype, compiled=True),
}
"""How a network runs: as it was trained, and each a step further from that."""


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_flags(parser)
    sizes = [(512, 256), (1024, 512), (2048, 1024)]
    parser.add_argument("--sizes", type=size, nargs="+", default=sizes, metavar="WxH", help="(512x256 to 2048x1024)")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 4], metavar="N", help="(1 4)")
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", help="(GPU: fp16; CPU: fp32 bf16)")
    parser.add_argument("--compile", action="store_true", help="torch.compile what is deployed")
    parser.add_argument("--rounds", type=positive, metavar="N", help="(GPU: 100; CPU: 7)")
    parser.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(%(default)s)")
    runtimes = parser.add_argument_group("beside other runtimes (pip install -r requirements-deploy.txt)")
    runtimes.add_argument("--runtimes", action="store_true", help="measure every runtime that is installed, on the CPU")
    runtimes.add_argument("--every-network", action="store_true", help="of every --model, on its first backbone")
    runtimes.add_argument("--checkpoint", type=checkpoint_file, metavar="RUN", help="its network, with its weights")
    both = sorted({1, cores()})
    runtimes.add_argument("--threads", type=positive, nargs="+", default=both, metavar="N", help="(1 and all cores)")
    runtimes.add_argument("--pictures", type=Path, metavar="DIR", help="of these (drawn street scenes of 2048x1024)")
    runtimes.add_argument("--grid", type=int, choices=(1, 2, 4, 8), default=1, help="as export.py has it (%(default)s)")
    args = parser.parse_args()
    if args.runtimes:
        refuse_idle("--runtimes times what export.py writes, on a CPU", "batches", "precisions", "compile", "device")
    else:
        refuse_idle("it takes --runtimes", "every_network", "checkpoint", "threads", "pictures", "grid")
    if args.checkpoint is not None:
        refuse_idle("--checkpoint names the network", "model", "backbone", "every_network")
    if args.every_network:
        refuse_idle("--every-network takes them all", "model", "backbone")
    gpu = args.device.type == "cuda"
    args.backbone = args.backbone or SEGMENTERS[args.model].default_backbone()
    args.precisions = args.precisions or (["fp16"] if gpu else ["fp32", "bf16"])
    args.rounds = args.rounds or (100 if gpu else 7)
    return args


def main() -> None:
    args = parse_args()
    if args.runtimes:
        rows = measured(_networks(args), args.sizes, args.threads, args.rounds, args.pictures, args.grid)
        print(f"{args.rounds} rounds in turn; {device_name(torch.device('cpu'))}, torch {torch.__version__}, commit "
              f"{commit()}\n\n{markdown(HEADER, rows)}")  # fmt: skip
        return
    try:
        plain = build_segmenter(args.model, backbone=args.backbone).to(memory_format=torch.contiguous_format)
    except ValueError as error:
        raise UserError(str(error)) from None
    plain = plain.eval().to(args.device)
    networks: dict[str, nn.Module] = {"plain fp32": plain}
    for precision in args.precisions:
        networks[f"deployed {precision}"] = Deployed(plain, PRECISIONS[precision], args.compile)
    rows = []
    for width, height in args.sizes:
        for batch in args.batches:
            images = torch.rand(batch, 3, height, width, device=args.device)
            median = medians(networks, images, args.rounds)
            for name, value in median.items():
                speed = [f"{1e3 * value:.2f}", f"{batch / value:.1f}", f"{median['plain fp32'] / value:.2f}"]
                rows.append([f"{width}x{height}", str(batch), name, *speed])
    print(f"{args.model} {args.backbone}, {args.rounds} rounds in turn, medians{', compiled' if args.compile else ''}; "
          f"{device_name(args.device)}, torch {torch.__version__}\n")  # fmt: skip
    print(markdown(("size", "batch", "network", "ms", "pictures/s", "times plain"), rows))


def _networks(args: argparse.Namespace) -> dict[str, Segmenter]:
    """Title -> a network as it is built: of the flags, of a checkpoint, or all with random weights."""
    if args.checkpoint is not None:
        model = build_from_checkpoint(load_checkpoint(args.checkpoint), args.checkpoint)
        return {f"{model.options['name']} {model.options['backbone']}": model.eval()}
    named = {args.model: args.backbone}
    if args.every_network:
        named = {name: network.default_backbone() for name, network in SEGMENTERS.items()}
    try:
        built = {f"{name} {backbone}": build_segmenter(name, backbone=backbone) for name, backbone in named.items()}
    except ValueError as error:
        raise UserError(str(error)) from None
    return {title: model.eval() for title, model in built.items()}


@torch.inference_mode()
def medians(networks: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, float]:
    """Seconds that each network takes for the pictures, all of them in turn, warmed up."""
    for network in networks.values():
        for _ in range(10 if images.is_cuda else 2):
            network(images)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds):
        for name, network in networks.items():
            seconds[name].append(timed(network, images))
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    run_script(main)
