"""How fast is the Fourier translation, beside the same definition by whole-plane FFTs in NumPy on float64?

    python benchmarks/fda.py
    python benchmarks/fda.py --beta 0.01 0.05 0.09 --runs 11

The NumPy formulation is the published code's way: complex FFTs of both pictures, fftshift, the square swapped, back.
Both run in this process, in turn, on the same pictures; the figure is the ratio of medians. The results are compared
as well. With --device cuda the pictures of ours are on the GPU already, NumPy's in the processor's memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adaptation.fda import fda, half_width  # noqa: E402
from training.provenance import device_name  # noqa: E402
from utils.errors import Parser, run_script  # noqa: E402
from utils.flags import default_device, device, number, positive, size  # noqa: E402
from utils.tables import markdown  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(1024, 512), metavar="WxH", help="of the pictures (1024x512)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="(4)")
    parser.add_argument(
        "--beta", type=number(0, 0.499), nargs="+", default=[0.01, 0.05, 0.09], metavar="B", help="bands"
    )
    parser.add_argument("--runs", type=positive, default=7, metavar="N", help="of each, in turn (7)")
    parser.add_argument("--device", type=device, default=default_device(), metavar="DEV", help="of ours (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    width, height = args.size
    torch.manual_seed(0)
    source, target = torch.rand(2, args.batch_size, 3, height, width).unbind()
    arrays = source.double().numpy(), target.double().numpy()
    source, target = source.to(args.device), target.to(args.device)
    rows = []
    for beta in args.beta:
        b = half_width(height, width, beta)
        difference = np.abs(fda(source, target, beta).cpu().numpy() - by_numpy(*arrays, b)).max()
        ours, theirs = [], []
        for _ in range(args.runs):
            ours.append(seconds(lambda beta=beta: fda(source, target, beta), args.device))
            theirs.append(seconds(lambda b=b: by_numpy(*arrays, b), args.device))
        fast, slow = statistics.median(ours), statistics.median(theirs)
        rows.append([f"{beta:g}", str(b), f"{1e3 * fast:.1f}", f"{1e3 * slow:.0f}", f"{slow / fast:.2g}",
                     f"{difference:.1e}"])  # fmt: skip
    print(f"{args.batch_size} pictures of {width}x{height}, {args.runs} runs of each in turn, medians; ours on "
          f"{device_name(args.device)}, torch {torch.__version__}, NumPy {np.__version__}\n")  # fmt: skip
    header = ("beta", "b", "adaptation.fda.fda (ms)", "NumPy, whole plane (ms)", "times faster", "largest difference")
    print(markdown(header, rows))


def by_numpy(source: np.ndarray, target: np.ndarray, b: int) -> np.ndarray:
    """The definition, spelt out: float64 [B, 3, H, W] each -> the same shape."""
    spectrum = np.fft.fftshift(np.fft.fft2(source), axes=(-2, -1))
    style = np.fft.fftshift(np.abs(np.fft.fft2(target)), axes=(-2, -1))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    row, column = source.shape[-2] // 2, source.shape[-1] // 2
    square = (..., slice(row - b, row + b + 1), slice(column - b, column + b + 1))
    amplitude[square] = style[square]
    return np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(-2, -1))).real


def seconds(call: Callable[[], object], where: torch.device) -> float:
    """By the clock, the device's work included."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    start = time.perf_counter()
    call()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_script(main)
