"""Runs a script in a process of its own, as `python SCRIPT.py` does, with the tests' network in the table:

    python tests/scripts.py train_gta5.py --model tiny --gta5 DIR ...
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402, F401

from utils.errors import run_script  # noqa: E402

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    run_script(importlib.import_module(Path(sys.argv[0]).stem).main)
