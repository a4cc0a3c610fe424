"""How fast does a network predict: plain fp32, and as one would deploy it? And how does that grow with size and batch?

    python benchmarks/inference.py
    python benchmarks/inference.py --sizes 1024x512 --batches 1 8 --precisions fp16 bf16 --compile

Plain is the network as it is built by most code of this field: contiguous, fp32, batch normalisation apart. Deployed is
`models.deployment`: folded, channels-last, in each of --precisions. All take the same pictures in turn; medians.
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

from measure_flops import timed  # noqa: E402
from models import SEGMENTERS, build_segmenter  # noqa: E402
from models.deployment import Deployed  # noqa: E402
from training.flags import add_network_flags  # noqa: E402
from training.gradients import PRECISIONS  # noqa: E402
from training.provenance import device_name  # noqa: E402
from utils.errors import Parser, UserError, run_script  # noqa: E402
from utils.flags import default_device, device, positive, size  # noqa: E402
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
    args = parser.parse_args()
    gpu = args.device.type == "cuda"
    args.backbone = args.backbone or SEGMENTERS[args.model].default_backbone()
    args.precisions = args.precisions or (["fp16"] if gpu else ["fp32", "bf16"])
    args.rounds = args.rounds or (100 if gpu else 7)
    return args


def main() -> None:
    args = parse_args()
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
