"""Tables, charts and pictures -> the documents of a report: one HTML file, LaTeX to write a paper around, Markdown."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from utils.tables import Table, escaped, latex

from .figures import MAIN
from .qualitative import KEY, Scene

TITLE = "Real-time domain adaptation for semantic segmentation"
DPI = 170

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 1180px;
  padding: 0 14px 40px; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
nav { font-size: .88rem; } nav a { margin-right: .9em; white-space: nowrap; }
details { border-bottom: 1px solid #ccc; } summary { font-size: 1.15rem; font-weight: 600; padding: .5rem 0;
  cursor: pointer; }
.first { max-width: 640px; }
@media (min-width: 800px) { .opening td:first-child { min-width: 17em; } }
figure { margin: 1rem 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
td { white-space: nowrap; } th { min-width: 4.5em; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7em; max-width: 12em;
  position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #333; vertical-align: bottom; }
.other { color: #444; font-style: italic; background: #f3f3f3; } .none { color: #666; }
.note { color: #444; font-size: .85rem; margin: .3rem 0; }
.charts { display: grid; gap: 0 24px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.charts img, .first img { width: 100%; height: auto; }
.charts figcaption, .first figcaption { font-weight: 400; font-size: .9rem; }
.tiles { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(min(47%, 230px), 1fr)); }
.tiles figure { margin: 0; } .tiles img { width: 100%; height: auto; image-rendering: auto; }
.tiles figcaption { font-weight: 400; font-size: .82rem; line-height: 1.25; }
.key { display: flex; flex-wrap: wrap; gap: .2rem .9rem; font-size: .82rem; padding: 0; list-style: none; }
.key span { display: inline-block; width: 1.3em; height: .9em; border: 1px solid #000; margin-right: .3em; }
"""


@dataclass(frozen=True)
class Drawn:
    """A chart as files: the name without ending, what stands below it, and the picture in two forms."""

    name: str
    caption: str
    png: bytes
    pdf: bytes


def drawn(name: str, caption: str, figure: Figure) -> Drawn:
    """A chart's PNG and PDF, the same bytes for the same chart."""
    files = []
    for kind, more in (("png", {"dpi": DPI}), ("pdf", {"metadata": {"CreationDate": None}})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, **more)
        figure.set_layout_engine("none")  # the first saving has placed everything
        files.append(file.getvalue())
    return Drawn(name, caption, *files)


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


# HTML


FIRST = ("assignment-1", "assignment-2", "assignment-3")
"""Tables that open the report, below the chart of all methods."""

FOLDED = {"comparison": "All methods", "assignment-4": "Step 4", "costs": "Costs", "report": "Student report's tables",
          "runs": "Runs"}  # fmt: skip
"""How a table's name begins -> the heading below which it is folded; other tables have one of their own."""


def html_document(about: Sequence[str], tables: Sequence[Table], charts: Sequence[Drawn], scenes: Sequence[Scene],
                  left_out: Sequence[str]) -> str:  # fmt: skip
    """One file that needs no other: pictures are inside. about: paragraphs at the top; left_out: what is not shown.

    It opens with all methods and the assignment's tables; the rest is folded.
    """
    opening = [table for table in tables if table.name in FIRST]
    below: dict[str, list[str]] = {heading: [] for heading in FOLDED.values()}
    for table in tables:
        heading = next((own for start, own in FOLDED.items() if table.name.startswith(start)), "Other tables")
        if table.name not in FIRST:
            below.setdefault(heading, []).append(table.html())

    def drawn_as(start: str) -> str:
        return _charts([c for c in charts if c.name.startswith(start)])

    lines = "".join(f"<li>{html.escape(line)}</li>" for line in left_out)
    folded = {heading: "\n".join(texts) for heading, texts in below.items()} | {
        "Curves": drawn_as("curve"),
        "Classes": drawn_as("per-class"),
        "Confusion": drawn_as("confusion"),
        "Pictures": _scenes(scenes),
        "Left out": f"<ul>{lines}</ul>" if lines else "",
    }
    folded = {name: content for name, content in folded.items() if content}
    first = [_charts([c for c in charts if c.name == "methods"], "first"), "<div class=opening>"]
    first += [*(table.html() for table in opening), "</div>"]
    links = [(table.name, table.title.partition(":")[0].removeprefix("Assignment, ")) for table in opening]
    links += [(_anchor(name), name) for name in folded]
    body = "\n".join(
        # The anchor is inside, so that a link to it unfolds.
        f"<details><summary>{html.escape(name)}</summary>\n<div id={_anchor(name)}>{content}</div></details>"
        for name, content in folded.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}: report</title><style>{STYLE}</style></head>\n<body>\n<h1>{TITLE}: report</h1>\n<nav>"
        + "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in links)
        + "</nav>\n"
        + "\n".join(first)
        + "\n"
        + "\n".join(f"<p class=note>{html.escape(paragraph)}</p>" for paragraph in about)
        + f"\n{body}\n</body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-").replace("'", "")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _charts(charts: Sequence[Drawn], kind: str = "charts") -> str:
    figures = [
        f'<figure id="{c.name}"><img src="{_uri(c.png, "png")}" alt="{html.escape(c.caption)}">'
        f"<figcaption>{html.escape(c.caption)}</figcaption></figure>"
        for c in charts
    ]
    return f"<div class={kind}>{''.join(figures)}</div>" if figures else ""


def _scenes(scenes: Sequence[Scene]) -> str:
    parts = []
    for scene in scenes:
        tiles = "".join(
            f'<figure><figcaption>{html.escape(title)}</figcaption><img src="{_uri(*_small(pixels, title))}" '
            f'alt="{html.escape(f"{scene.name}: {title}")}"></figure>'
            for title, pixels in scene.tiles()
        )
        parts.append(f"<h3>{html.escape(scene.name)}</h3><div class=tiles>{tiles}</div>")
    if not parts:
        return ""
    shown = {(c, scene.classes.names[c], scene.classes.colours[c]) for scene in scenes for c in scene.shown()}
    key = "".join(
        f'<li><span style="background:rgb{colour}"></span>{html.escape(name)}</li>' for _, name, colour in sorted(shown)
    )
    intro = "The same pictures for every experiment (its first seed, last checkpoint): prediction above, errors below."
    return f"<p>{intro} {html.escape(KEY)}</p><ul class=key>{key}</ul>" + "\n".join(parts)


def _small(pixels: np.ndarray, title: str) -> tuple[bytes, str]:
    """A photograph as JPEG, flat colours as PNG."""
    if title != "picture":
        return png(pixels), "png"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=88)
    return file.getvalue(), "jpeg"


# LaTeX

PREAMBLE = r"""\documentclass[10pt,twocolumn]{article}
\usepackage[a4paper,margin=1.9cm]{geometry}
\usepackage{array}
\usepackage{booktabs}
\usepackage{graphicx}
\newcolumntype{L}[1]{>{\raggedright\arraybackslash}p{#1}}
\newcolumntype{R}[1]{>{\raggedleft\arraybackslash}p{#1}}
\newsavebox{\tablebox}
\newcommand{\fittable}[1]{\sbox{\tablebox}{#1}%
  \ifdim\wd\tablebox>\linewidth\resizebox{\linewidth}{!}{\usebox{\tablebox}}\else\usebox{\tablebox}\fi}
"""

FLOATS = 8
"""Tables and figures in a row before LaTeX must set them all: it keeps no more than 18 in mind."""

SECTIONS = (
    ("Introduction", "What is the task, why must it run in real time, what goes wrong between the domains?",
     "Domain adaptation for semantic segmentation on GTA5~\\cite{richter2016} and Cityscapes~\\cite{cordts2016}."),
    ("Related work", "Segmentation networks; adaptation by statistics, alignment, translation, self-training.",
     "BiSeNet~\\cite{yu2018}, DeepLab~\\cite{chen2018}; AdaBN~\\cite{li2018}, AdaptSegNet~\\cite{tsai2018}, "
     "ADVENT~\\cite{vu2019}, RTDA~\\cite{tavera2021}, FDA~\\cite{yang2020}, LAB~\\cite{he2021}, BDL~\\cite{li2019}, "
     "DACS~\\cite{tranheden2021}, MIC~\\cite{hoyer2023}."),
    ("Method", "The networks, the losses, and what each method sees of the target.", ""),
    ("Experiments", "Data, settings, seeds, hardware; then what the tables and figures say.", ""),
    ("Conclusion", "What was learnt, what it cannot tell, what comes next.", ""),
)  # fmt: skip
"""Heading, what belongs there, and the papers that a reader will look for there."""


def latex_document(tables: Sequence[Table], charts: Sequence[Drawn], scenes: Sequence[str]) -> str:
    r"""A paper's skeleton in two columns: headings to write under, tables (\input), the main charts, pictures, and the
    references of `references.bib`. scenes: their files."""
    parts = [PREAMBLE + rf"\title{{{TITLE}}}" + "\n" + r"\author{}" + "\n" + r"\begin{document}" + "\n" + r"\maketitle"]
    for heading, hint, sentence in SECTIONS:
        parts.append("\n".join(filter(None, [rf"\section{{{heading}}}", f"% {hint}", sentence])))
        if heading == "Experiments":
            caption = f"Picture, ground truth, and for each experiment its prediction and its errors. {KEY}"
            floats = [_figure(f"figures/{c.name}.pdf", c.caption, c.name) for c in charts if c.name in MAIN]
            floats += [rf"\input{{tables/{table.name}.tex}}" for table in tables]
            floats += [_figure(file, caption, f"scene-{n}", "*") for n, file in enumerate(scenes, start=1)]
            for first in range(0, len(floats), FLOATS):
                parts += [*floats[first : first + FLOATS], r"\clearpage"]
    return "\n\n".join([*parts, r"\bibliographystyle{plain}", r"\bibliography{references}", r"\end{document}"]) + "\n"


def _figure(file: str, caption: str, label: str, wide: str = "") -> str:
    """wide: `*` for one across both columns."""
    return "\n".join(
        [
            rf"\begin{{figure{wide}}}[htbp]",
            r"\centering",
            rf"\includegraphics[width=\linewidth,height=0.85\textheight,keepaspectratio]{{{file}}}",
            rf"\caption{{{latex(caption)}}}\label{{fig:{label}}}",
            rf"\end{{figure{wide}}}",
        ]
    )


# Markdown


def markdown_document(about: Sequence[str], tables: Sequence[Table], charts: Sequence[Drawn], scenes: Sequence[str],
                      left_out: Sequence[str]) -> str:  # fmt: skip
    """The same for a repository's pages; pictures are the files beside it."""
    parts = [f"# {TITLE}: report", *about, "## Tables", *(table.markdown().strip() for table in tables), "## Charts"]
    parts += [f"![{escaped(c.caption)}](figures/{c.name}.png)\n\n*{escaped(c.caption)}*" for c in charts]
    parts += ["## Pictures", KEY, *(f"![]({file})" for file in scenes)] if scenes else []
    parts += ["## Left out", "\n".join(f"- {escaped(line)}" for line in left_out)] if left_out else []
    return "\n\n".join(parts) + "\n"
