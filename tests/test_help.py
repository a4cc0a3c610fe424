"""--help is quick and short, --help-all has every flag, and a flag that is not spelt out is pointed at."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import one_line_error, upper

from models import SEGMENTERS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted(path.stem for path in ROOT.glob("*.py")), "datasets.check", "datasets.street_scenes.writer"]
OWN = {"adversarial": "--discriminator", "dacs": "--recipe", "fda": "--beta", "pseudo_labels": "--labeller",
       "sac": "--init"}  # fmt: skip

RUN = """
import atexit, runpy, sys
def read():
    read = [name for name, module in [*sys.modules.items()] if getattr(module, "__file__", None)]
    print(*(name for name in read if name.startswith(("torch", "tensorboard"))), file=sys.stderr)
atexit.register(read)
sys.argv = [sys.argv[1].split(".")[-1] + ".py", *sys.argv[2:]]
"""
AS_SCRIPT = RUN + "sys.exit(runpy.run_module(sys.argv[0][:-3], run_name='__main__'))"
AS_MODULE = RUN + "import datasets.check; from datasets.street_scenes import writer\n{}.main()"


def apart(name: str, *flags: str) -> subprocess.CompletedProcess:
    """The script in a process of its own, which says on stderr what it read of torch."""
    code = AS_MODULE.format(name.removeprefix("datasets.street_scenes.")) if "." in name else AS_SCRIPT
    return subprocess.run([sys.executable, "-c", code, name, *flags], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_reads_no_torch_and_is_what_the_real_parser_says(name, flag, script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    done = apart(name, flag)
    assert (done.returncode, done.stderr.split()) == (0, [])
    monkeypatch.delitem(SEGMENTERS, "tiny")  # the tests' own
    assert done.stdout == script(name, flag).out


def test_where_a_stand_in_does_not_do_help_is_shown_with_torch(tmp_path):
    """A network of a user's, say, that computes a constant as it is imported."""
    (tmp_path / "mine.py").write_text(
        "from utils.errors import Parser\nimport torch\nHALF = torch.ones(3).sum() / 2\n"
        "parser = Parser()\nparser.add_argument('--half', help=f'{HALF:.1f} is half')\nparser.parse_args()\n"
    )
    command = [sys.executable, "mine.py", "-h"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1.5 is half" in done.stdout


def flags(text: str) -> set[str]:
    """Those of a help's list."""
    return set(re.findall(r"^ +(--[a-z][\w-]*)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["eval", *sorted(path.stem for path in ROOT.glob("train_*.py"))])
def test_the_short_help_has_ten_flags_and_leads_to_the_others(name, script):
    short, full = script(name, "--help").out, script(name, "--help-all").out
    assert len(flags(short) - {"--help-all"}) in (9, 10)
    assert flags(short) < flags(full)
    assert f"{len(flags(full) - flags(short))} more flags: {name}.py --help-all" in short
    assert OWN.get(name.removeprefix("train_"), "--cityscapes") in flags(short)


def test_help_is_shown_whatever_stands_beside_it(script):
    done = script("train_gta5", "--batch-size", "many", "--frobnicate", "--help")
    assert done.status == 0
    assert "--gta5 DIR" in done.out
    assert "unrecognized" in one_line_error(script("train_gta5", "--", "--help"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--batch=4", "did you mean --batch-size?"), ("--bach-size", "did you mean --batch-size?"),
     ("--checkpoint_minutes", "did you mean --checkpoint-minutes?"), ("--gta", "unrecognized arguments: --gta (see"),
     ("--max", "did you mean --max-steps or --max-bad-share?"), ("--zzz", "unrecognized arguments: --zzz (see")],
)  # fmt: skip
def test_a_flag_that_is_not_spelt_out_is_said(script, city, tmp_path, typed, meant):
    assert meant in one_line_error(script(*upper(city, tmp_path / "run", typed)))
    assert not (tmp_path / "run").exists()
