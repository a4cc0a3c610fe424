"""Carries out what docs/extending.md says, word for word, in a copy of the project, and trains ten steps with it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ids, picture, save, write_cityscapes

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
ROOMS = ("utils", "datasets", "models", "adaptation", "training", "reporting")
MOST = 30
"""Lines of a block, less blank lines and imports."""

BLOCK = re.compile(
    r"(?P<what>Write into|Write|Import it in|Add a line to)\s+`(?P<name>[\w/.]+)`(?:\s+in\s+`(?P<file>[\w/.]+)`)?"
    r"(?:, above its table)?:\n\n```python\n(?P<code>.*?)```",
    re.DOTALL,
)


def blocks(page: str) -> list[tuple[str, str, str, str]]:
    """(section, what to do, where, code) of every block of the page."""
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    return [
        (section.partition("\n")[0], block["what"], block["file"] or block["name"], block["code"])
        if block["what"] != "Add a line to"
        else (section.partition("\n")[0], f"Add a line to {block['name']}", block["file"], block["code"])
        for section in sections
        for block in BLOCK.finditer(section)
    ]


def table_in(text: str, name: str | None = None) -> ast.expr:
    """The dict that a table of a module is: the one of that name, or the last."""
    found = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)
        if name is None or ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target) == name
    ]
    return found[-1]


def place(text: str, line: int, column: int) -> int:
    """Where in the text a place of ast's is."""
    return sum(len(row) for row in text.splitlines(keepends=True)[: line - 1]) + column


def carry_out(root: Path, what: str, where: str, code: str) -> None:
    path = root / where
    if what == "Write":
        assert not path.exists(), where
        path.write_text(code, encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    if what == "Import it in":
        text = text.replace("from __future__ import annotations\n", f"from __future__ import annotations\n{code}", 1)
    elif what == "Write into":
        start = place(text, table_in(text).lineno, 0)
        text = f"{text[:start]}{code}\n\n{text[start:]}"
    else:
        table = table_in(text, what.removeprefix("Add a line to ")).value
        end = place(text, table.end_lineno, table.end_col_offset) - 1
        before = text[:end].rstrip()
        text = f"{before}{'' if before.endswith(',') else ','}\n    {code}{text[end:]}"
    path.write_text(text, encoding="utf-8")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with all that the page adds, and data for it."""
    root = tmp_path_factory.mktemp("extended")
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, root)
    for _, what, where, code in blocks(PAGE):
        carry_out(root, what, where, code)
    write_cityscapes(root / "city")
    for number in range(6):
        save(root / f"synthetic/rgb/{number}.png", picture(number))
        save(root / f"synthetic/seg/{number}.png", ids(number))
    return root


def run(root: Path, *command: object) -> str:
    """A command in the copy; what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SMALL = ("--size", "48x32", "--weights", "none", "--batch-size", 2, "--workers", 0, "--device", "cpu", "--lr", 0.01)
FLAGS = [*SMALL, "--model", "pocketnet", "--cityscapes", "city", "--max-steps", 10, "--eval-every", 100]


def test_the_page_has_a_block_for_each_thing_and_every_block_is_short() -> None:
    found = blocks(PAGE)
    assert {section for section, *_ in found} == {
        "A network", "A source or a target", "A loss", "A labelling rule", "A method"
    }  # fmt: skip
    assert len(found) == PAGE.count("```python")
    for section, what, where, code in found:
        lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
        assert len(lines) < MOST, (section, what, where)
    for section in ("A network", "A source or a target"):
        assert [what.partition(" to ")[0] for own, what, *_ in found if own == section] == [
            "Write", "Import it in", "Add a line"
        ]  # fmt: skip
    for section in ("A loss", "A labelling rule"):
        assert [what.partition(" to ")[0] for own, what, *_ in found if own == section] == ["Write into", "Add a line"]


def test_network_source_and_loss_train_ten_steps(extended: Path) -> None:
    unlabelled = "import torch; from adaptation.losses import LOSSES, IGNORE; logits = torch.randn(2, 3, 4, 4); " \
        "print(float(LOSSES['poly'].function(logits, torch.full((2, 4, 4), IGNORE))))"
    assert run(extended, "-c", unlabelled).strip() == "0.0"
    source = ["--synthetic", "synthetic", "--source-size", "48x32", "--loss", "poly"]
    out = run(extended, "train_gta5.py", *FLAGS, *source, "--run-dir", "runs/new")
    assert "Synthetic: 6 pictures" in out
    result = json.loads((extended / "runs/new/result.json").read_text())
    assert result["network"]["name"] == "pocketnet"
    assert result["step"] == 10
    losses = [json.loads(line)["train"]["loss"] for line in (extended / "runs/new/metrics.jsonl").open()]
    assert losses[-1] > 0
    assert "PocketNet" in run(extended, "train_gta5.py", "--help-all")
    counted = run(extended, "measure_flops.py", "--only", "pocketnet", "--size", "64x32", "--no-latency")
    assert "pocketnet plain" in counted
    out = run(extended, "report.py", "runs/new", "--out", "report", "--pictures", 1)
    page = (extended / "report/report.md").read_text(encoding="utf-8")
    assert "source only from Synthetic + loss poly" in out + page

    labels = [*FLAGS, *source, "--labeller", "runs/new/checkpoint_last.pt", "--rule", "fixed", "--confidence", 0.01,
              "--max-class-share", 1]  # fmt: skip
    assert "100% of all pixels kept" in run(extended, "train_pseudo_labels.py", *labels, "--run-dir", "runs/fixed")
    assert "--rule" in run(extended, "train_pseudo_labels.py", "--help-all")


def test_a_method_trains_and_resumes(extended: Path) -> None:
    flags = [*FLAGS, "--synthetic", "synthetic", "--source-size", "48x32", "--run-dir", "runs/mirror"]
    run(extended, "train_mirror.py", *flags)
    entry = json.loads((extended / "runs/mirror/metrics.jsonl").read_text().splitlines()[-1])
    assert entry["step"] == 10
    assert entry["train"]["loss_mirror"] > 0
    assert "resumed after" in run(extended, "train_mirror.py", *flags, "--resume")
