"""The walls of the house: an import only goes down a floor."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"utils": 1, "datasets": 2, "models": 2, "adaptation": 3, "training": 4, "reporting": 5}
"""Room -> its floor. Scripts and `benchmarks/` are on the sixth, and nothing imports them."""
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} | {"benchmarks"}
ROOM_FILES = sorted(path for room in FLOORS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, first part of the module's absolute name) of every import, those inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            names = [*above, *(node.module or "").split(".")] if node.module else list(above)
            yield from ((node.lineno, names[0] if names else alias.name) for alias in node.names)


def runs_up(path: Path) -> list[str]:
    """What a room's file imports and may not: a script, a higher floor, or the other room of its own floor."""
    room = path.relative_to(ROOT).parts[0]
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(path)
        if name in SCRIPTS or (name in FLOORS and name != room and FLOORS[name] >= FLOORS[room])
    ]


@pytest.mark.parametrize("path", ROOM_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    assert runs_up(path) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("utils/x.py", "from datasets.labels import IGNORE", True),
        ("utils/x.py", "def f():\n    import training.run", True),
        ("datasets/x.py", "from models import layers", True),
        ("models/x.py", "import datasets", True),
        ("adaptation/x.py", "from training.run import Run", True),
        ("training/x.py", "import train_gta5", True),
        ("training/x.py", "from reporting import tables", True),
        ("training/x.py", "from adaptation.fda import fda\nfrom .run import Run", False),
        ("datasets/street_scenes/x.py", "from ..labels import IGNORE", False),
        ("datasets/street_scenes/x.py", "from ...models import layers", True),
    ],
)
def test_the_wall_holds(file: str, line: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_house.ROOT", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert bool(runs_up(path)) is found


def test_every_room_says_what_lives_there() -> None:
    for room in FLOORS:
        said = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")))
        assert said, room
        assert len(said.splitlines()) <= 4, room


def test_an_installation_brings_the_requirements_and_no_room(tmp_path: Path) -> None:
    """What `pip install -e .` asks of pyproject.toml; a room called `datasets` would hide a package of that name."""
    pytest.importorskip("setuptools", minversion="68")
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for room in FLOORS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    code = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_editable('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = tmp_path / done.stdout.splitlines()[-1]
    metadata = (found / "METADATA").read_text().splitlines()
    needed = [line.removeprefix("Requires-Dist: ") for line in metadata if line.startswith("Requires-Dist: ")]
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert needed == [line for line in lines if line and not line.startswith("#")]
    assert (found / "top_level.txt").read_text().split() == []
