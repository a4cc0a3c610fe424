"""What each network costs: parameters, MACs, FLOPs, memory, latency; the cost columns of steps 2 and 3.

    python measure_flops.py                                every network at 1024x512, on the device at hand
    python measure_flops.py --size 640x360 --only bisenet  some of them, at another size
    python measure_flops.py --no-latency --json cost.json --markdown cost.md

Three conventions meet in the published figures, and each has its own column here. fvcore's count is one per
multiply-accumulate of a convolution plus what it charges for batch normalisation and bilinear upsampling;
the convolutions' MACs are those alone; FLOPs = 2 x MACs. What fvcore does not count is listed below the table.
"""

from __future__ import annotations

from utils.errors import Parser, UserError, refuse_idle, run_script  # before torch, for a quick --help

# isort: split

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.deployment import Deployed
from reporting.costs import FEATURES_NOTE, count, example, networks
from training.gradients import PRECISIONS
from training.provenance import device_name
from utils.files import require_new, write_atomically, write_json
from utils.flags import default_device, device, positive, size
from utils.tables import markdown

PUBLISHED = (
    ("bisenet resnet18", "12.582 M parameters", "student report; counts the ImageNet classifier, which is never used"),
    ("bisenet resnet18", "25.78 G", "student report; fvcore's count at 1024x512"),
    ("bisenet resnet18", "16 ms", "student report; timed without synchronising"),
    ("deeplabv2 resnet101", "43.901 M parameters", "student report"),
    ("deeplabv2 resnet101", "0.375 T", "student report; fvcore's count at 1024x512"),
    ("deeplabv2 resnet101", "243 ms", "student report; timed without synchronising"),
    ("discriminator standard", "2.781 M parameters", "assignment sheet"),
    ("discriminator standard", "30.89e9 FLOPs", "assignment sheet; 2 x MACs at 1024x512, score map upsampled"),
    ("discriminator depthwise", "189.424 K parameters", "assignment sheet"),
    ("discriminator depthwise", "21.47e8 FLOPs", "assignment sheet; 2 x MACs at 1024x512, score map upsampled"),
)
"""Figures of others, with the convention each was taken in; never a result of this project."""


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--size", type=size, default=(1024, 512), metavar="WxH", help="input size, pixels (1024x512)")
    what.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="those with a TEXT in their name (all)")
    what.add_argument(
        "--batch-size", type=positive, default=1, metavar="N", help="pictures in a batch, for latency and memory (1)"
    )
    what.add_argument("--runs", type=positive, metavar="N", help="timed runs (GPU: 100, CPU: 10)")
    what.add_argument(
        "--precision", choices=PRECISIONS,
        help="number format of the deployed network, which is timed beside plain fp32 (GPU: fp16, CPU: fp32)"
    )
    what.add_argument("--compile", action="store_true", help="torch.compile the deployed network (GPU: CUDA graphs)")
    what.add_argument("--no-latency", action="store_true", help="only count; time nothing")
    output = parser.add_argument_group("output (files must be new)")
    output.add_argument("--json", type=Path, metavar="FILE", help="write all figures; report.py reads this file")
    output.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as they are printed")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="(the GPU, if any)")
    args = parser.parse_args()
    if args.no_latency:
        refuse_idle("--no-latency times nothing", "batch_size", "runs", "precision", "compile", "device")
    return args


def main() -> None:
    args, known = parse_args(), networks()
    chosen = {name: build for name, build in known.items() if any(text in name for text in args.only)}
    if not chosen:
        raise UserError(f"--only {' '.join(args.only)}: no network is called so; there are {', '.join(known)}")
    for path in (path for path in (args.json, args.markdown) if path is not None):
        require_new(path)
    if args.json is not None and args.markdown is not None and args.json.resolve() == args.markdown.resolve():
        raise UserError(f"--json and --markdown name one file, {args.json}; name two")
    costs = {}
    for name, build in chosen.items():
        model = build().eval()
        costs[name] = count(model, args.size)
        if not args.no_latency:
            costs[name]["timing"] = timings(model, args)
    text = tables(costs, args)
    print(text)
    if args.json is not None:
        write_json(args.json, {"size": args.size, "batch_size": args.batch_size, "device": device_name(args.device)}
                   | {"torch": str(torch.__version__), "networks": costs})  # fmt: skip
    if args.markdown is not None:
        write_atomically(args.markdown, lambda file: file.write((text + "\n").encode()))


def timings(model: nn.Module, args: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Plain fp32, and as one would deploy it (`models.deployment`). The two are interleaved."""
    half = args.device.type == "cuda"
    inputs = example(model, args.size, args.batch_size).to(args.device)
    model = model.to(args.device, memory_format=torch.contiguous_format)
    precision = args.precision or ("fp16" if half else "fp32")
    deployed = Deployed(model, PRECISIONS[precision], args.compile)
    name = f"{precision}, deployed" + (", compiled" if args.compile else "")
    variants = {"fp32": (model, inputs), name: (deployed, inputs)}
    runs = args.runs or (100 if half else 10)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    memory = {}
    with torch.inference_mode():
        for variant, (network, x) in variants.items():  # this is the warm-up too, on a CPU all of it
            if args.compile:
                network(x)  # compiling takes memory of its own
            memory[variant] = peak_memory(network, x)
            for _ in range(10 if half else 0):
                network(x)
        for _ in range(runs):
            for variant, (network, x) in variants.items():
                seconds[variant].append(timed(network, x))
    return {
        variant: {
            "latency_median_ms": 1e3 * statistics.median(values),
            "latency_p95_ms": 1e3 * sorted(values)[min(len(values) - 1, round(0.95 * (len(values) - 1)))],
            "images_per_second": args.batch_size / statistics.median(values),
            "peak_memory_mib": memory[variant],
            "runs": runs,
        }
        for variant, values in seconds.items()
    }


def timed(network: nn.Module, x: Tensor) -> float:
    """Seconds of one forward pass: between CUDA events on a GPU, by the clock on a CPU."""
    if x.device.type != "cuda":
        start = time.perf_counter()
        network(x)
        return time.perf_counter() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    network(x)
    last.record()
    torch.cuda.synchronize(x.device)
    return first.elapsed_time(last) / 1e3


def peak_memory(network: nn.Module, x: Tensor) -> float | None:
    """MiB that one forward pass takes beyond what is allocated before it: the allocator's peak on a GPU, the
    process's resident peak on Linux (reset through /proc), None elsewhere."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        network(x)
        torch.cuda.synchronize(x.device)
        return (torch.cuda.max_memory_allocated(x.device) - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        network(x)
        return (resident("VmHWM") - before) / 2**10
    except (OSError, StopIteration):
        network(x)
        return None


def resident(field: str) -> int:
    """KiB in this process's /proc status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def tables(costs: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """The counts, the timings, the published figures and what fvcore left out, as Markdown that reads as text."""
    width, height = args.size
    counts = [
        [
            name,
            f"{cost['parameters_training']:,}",
            f"{cost['parameters_inference']:,}",
            f"{cost['fvcore'] / 1e9:.2f} G",
            f"{cost['conv_macs']:,}",
            f"{cost['conv_flops'] / 1e9:.2f} G",
        ]
        for name, cost in costs.items()
    ]
    header = ("network", "parameters, training", "inference", "fvcore's count", "conv MACs", "FLOPs = 2 x conv MACs")
    features = f". {FEATURES_NOTE}" if "discriminator class" in costs else ""
    parts = [f"Counts at {width}x{height}, one picture{features}", markdown(header, counts)]
    times = [
        [
            name,
            variant,
            f"{t['latency_median_ms']:.1f}",
            f"{t['latency_p95_ms']:.1f}",
            f"{t['images_per_second']:.1f}",
            "-" if t["peak_memory_mib"] is None else f"{t['peak_memory_mib']:.0f}",
        ]
        for name, cost in costs.items()
        for variant, t in cost.get("timing", {}).items()
    ]
    if times:
        parts.append(
            f"On {device_name(args.device)}, {width}x{height}, batch {args.batch_size}, torch {torch.__version__}"
        )
        header = ("network", "as", "median (ms)", "95th percentile (ms)", "images/s", "peak memory (MiB)")
        parts.append(markdown(header, times))
    published = [list(row) for row in PUBLISHED if row[0] in costs]
    if published:
        parts += ["Published by others", markdown(("network", "published", "by whom, in which convention"), published)]
    parts.append("Not counted by fvcore (calls)")
    parts.append(
        "\n".join(
            f"- {name}: " + (", ".join(f"{op} {n}" for op, n in c["not_counted_by_fvcore"].items()) or "nothing")
            for name, c in costs.items()
        )
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    run_script(main)
