"""README, CONTRIBUTING and docs/: links resolve, commands exist with their flags, and README is short and plain."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml  # fvcore's
from conftest import Done

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS, WORDS_A_SENTENCE = 1000, 18
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def code(text: str) -> list[str]:
    """Lines of code blocks, continued ones joined, and what stands between backquotes in the prose."""
    blocks = BLOCK.findall(text)
    pieces = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line.split("  #")[0] for line in lines] + [" ".join(piece.split()) for piece in pieces]


def sentences(text: str) -> list[str]:
    """Of the prose: no code blocks, tables, headings or pictures. A list item or a paragraph ends a sentence too."""
    prose = re.sub(r"^(\||#|!).*$", "\n", BLOCK.sub("\n", text), flags=re.MULTILINE)
    prose = re.sub(r"^- ", "\n\n", prose, flags=re.MULTILINE)
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    found = [
        s for paragraph in re.split(r"\n\s*\n", prose) for s in re.split(r"(?<=[.!?])\s+|(?<=[.!?]\))\s+", paragraph)
    ]
    return [s for s in (" ".join(s.split()) for s in found) if s]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(script as it is named, flags) of every `python X.py ...`, `python -m X ...` and `torchrun ... X.py ...`."""
    found = []
    for line in code(text):
        named = re.search(r"(?:python(?: -m)?|torchrun [^|]*?) ([\w./]+)(.*)", line)
        if named and (named[1].endswith(".py") or " -m " in line) and named[1] not in ("pytest", "venv", "pip"):
            found.append((named[1], re.findall(r"(?<=\s)--[a-z][\w-]*", named[2])))
    return found


def module(name: str) -> str:
    """benchmarks/fda.py -> benchmarks.fda; tests are imported by their own name."""
    return name.removesuffix(".py").replace("/", ".").removeprefix("tests.")


@pytest.fixture
def known(script: Callable[..., Done]) -> Callable[[str], set[str]]:
    """known("eval") -> the flags that its --help-all names."""

    def flags(name: str) -> set[str]:
        done = script(name, "--help-all")
        assert done.status == 0, name
        return set(re.findall(r"--[a-z][\w-]*", done.out))

    return flags


@each_document
def test_every_relative_link_leads_to_a_file(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    lost = [link for link in links if not re.match(r"https?:", link) and not (path.parent / link).exists()]
    assert lost == []


@each_document
def test_every_file_of_the_project_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    written = re.findall(r"Write\s+`([\w/.]+)`", text)  # by the reader
    named = [piece for piece in code(text) if re.fullmatch(r"[\w/]+/[\w/]*(\.py)?", piece) and piece not in written]
    own = [piece for piece in named if (ROOT / piece.split("/")[0] / "__init__.py").is_file() or "tests/" in piece]
    assert [piece for piece in own if not (ROOT / piece).exists()] == []


def test_readme_links_to_every_page() -> None:
    links = re.findall(r"\]\(docs/(\w+\.md)\)", README.read_text(encoding="utf-8"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(links)


def test_every_command_exists_with_its_flags(known: Callable[[str], set[str]]) -> None:
    used: dict[str, set[str]] = {}
    for path in DOCUMENTS:
        for name, flags in commands(path.read_text(encoding="utf-8")):
            used.setdefault(name, set()).update(flags)
    assert len(used) > 15
    for name, flags in used.items():
        assert name.count(".py") == 0 or (ROOT / name).is_file(), name
        assert flags <= known(module(name)), name


def test_the_rules_of_make_exist_with_their_flags_and_a_stopped_demo_goes_on(
    known: Callable[[str], set[str]],
) -> None:
    rules = re.findall(r"^\t@?\$\(RUN\) ([\w/]+\.py)(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(rules) > 8
    for name, rest in rules:
        flags = set(re.findall(r"(?<=\s)--[a-z][\w-]*", rest))
        assert flags <= known(module(name)), name
        assert not name.startswith("train_") or {"--demo", "--resume"} <= flags, name


def test_the_first_table_of_results_is_the_readmes() -> None:
    def rows(text: str) -> dict[str, list[str]]:
        lines = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
        return {cells[0]: cells[1:] for cells in lines}

    section = (ROOT / "docs/results.md").read_text(encoding="utf-8").split("\n## One recipe")[1]
    measured = rows(section.split("\n`--recipe best` minus")[0])
    shown = rows(README.read_text(encoding="utf-8").split("\n## Where to start")[1].split("\n```")[0])
    shown = {name: cells for name, cells in shown.items() if re.match(r"\d", cells[0])}
    assert len(shown) > 5
    for name, cells in shown.items():
        dusk, test, val = (measured[name][column] for column in (5, 1, 3))
        assert cells == [re.sub(r" ± (.*)", r" (\1)", figure) for figure in (dusk, test, val)], name


def test_every_flag_named_alone_is_a_flag_of_some_script(known: Callable[[str], set[str]]) -> None:
    modules = ("datasets.check", "benchmarks.adaptation", "benchmarks.gpu")
    scripts = [*sorted(path.stem for path in ROOT.glob("*.py")), *modules]
    flags = set().union(*map(known, scripts))
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for added in re.findall(r'^"(\w+)": Domain\(', text, re.MULTILINE):  # a line in a table, which makes flags
            flags |= {f"--{added}", f"--{added}-list"}
        for piece in code(text):
            if piece.startswith("--"):
                assert set(re.findall(r"(?:^|(?<=\s))--[a-z][\w-]*", piece)) <= flags, (path.name, piece)


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / ".pre-commit-config.yaml", ROOT / ".github/workflows/tests.yml"],
                         ids=lambda path: path.name)  # fmt: skip
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    pieces = code(text) if path.suffix == ".md" else re.findall(r"(?:run|entry): (.*)", text)
    called = [name for piece in pieces if piece.startswith("make ") for name in re.findall(r" (\w+)(?= |$)", piece)[:1]]
    assert set(called) <= targets
    if path.suffix != ".md":
        assert len(called) == len(pieces) > 0, "a hosted step or a hook does what the Makefile does not have"


def test_readme_is_short_and_its_sentences_are() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) < WORDS
    own = sentences(text)
    assert sum(len(s.split()) for s in own) / len(own) < WORDS_A_SENTENCE


@pytest.mark.parametrize("table", ["Table 1", "Table 2", "Table 3"])
@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
def test_the_tables_of_the_assignment_are_found_by_their_names(page: str, table: str) -> None:
    assert table in (ROOT / page).read_text(encoding="utf-8")


def test_the_citation_names_every_paper_in_full() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    for paper in cited["references"]:
        assert {"type", "title", "authors", "year"} <= paper.keys(), paper["title"]
        assert "journal" in paper or "name" in paper["conference"], paper["title"]
    titles = [paper["title"] for paper in cited["references"]]
    assert len(titles) == len(set(titles))


def test_the_readme_is_taken_apart_rightly() -> None:
    text = "# Head\n\nOne two `three`. (Four [five\nsix](x.md)!) Seven.\n\n- eight\n- nine\n\n| a | b |\n\n"
    text += "```\npython eval.py --x \\\n    --y  # of b\n```\n"
    assert sentences(text) == ["One two `three`.", "(Four five six!)", "Seven.", "eight", "nine"]
    assert code(text) == ["python eval.py --x --y", "three"]
    assert commands(text) == [("eval.py", ["--x", "--y"])]
