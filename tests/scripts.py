"""Runs a script in a process of its own, as `python SCRIPT.py` does, with the tests' network in the table:

    python tests/scripts.py train_gta5.py --model tiny --gta5 DIR ...

With SECONDS_A_PICTURE in the environment every picture takes so long to read.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402, F401

from datasets import SegmentationSet  # noqa: E402
from utils.errors import run_script  # noqa: E402


def slowly(image, seconds):
    def read(*arguments):
        time.sleep(seconds)
        return image(*arguments)

    return read


if __name__ == "__main__":
    if "SECONDS_A_PICTURE" in os.environ:
        SegmentationSet.image = slowly(SegmentationSet.image, float(os.environ["SECONDS_A_PICTURE"]))
    sys.argv = sys.argv[1:]
    run_script(importlib.import_module(Path(sys.argv[0]).stem).main)
