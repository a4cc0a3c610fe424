"""report.py: tables, charts and documents from whatever runs are there, and nothing lost where they are written.

Long, since all tests read the same few runs.
"""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, SOURCE, one_line_error, run_once, source_only, upper, write_cityscapes, write_gta5
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from datasets.labels import CLASS_NAMES
from datasets.pictures import WRONG, errors
from models import SEGMENTERS
from reporting.comparison import METHODS, comparison, reference
from reporting.documents import Drawn, html_document, markdown_document
from reporting.figures import MAIN, charts, series
from reporting.manifest import OwnFolder
from reporting.published import PER_CLASS, by_others
from reporting.results import experiments, find_runs, read_evaluations, read_run
from reporting.student_tables import student_tables
from reporting.tables import OTHERS, adversarial_with, assignment_tables, cost_table
from training.board import WIDTH, dense, pictured
from training.methods import earlier_networks, method_name, started_from
from utils.errors import UserError
from utils.tables import NOT_RUN, Table, duration, latex, result_tables


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An upper bound, two seeds of source only, an adversarial run, AdaBN on the seeds, and costs."""
    folder = tmp_path_factory.mktemp("runs")
    city, game = write_cityscapes(folder / "city"), write_gta5(folder / "game")
    model = ("--model", "bisenet")  # the tables of published figures have rows for it
    run_once(*upper(city, folder / "upper", *model, "--epochs", 1))
    for seed in (0, 1):
        options = (*model, "--epochs", 1, "--seed", seed, "--source-holdout", 0.3)
        run_once(*source_only(game, city, folder / f"source-{seed}", *options))
    for kind, name in (("standard", "adversarial"), ("depthwise", "depthwise")):
        run_once("train_adversarial", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, *model, "--discriminator",
                 kind, "--source-holdout", 0.3, "--epochs", 2, "--run-dir", folder / name)  # fmt: skip
    sources = [folder / f"source-{seed}/checkpoint_last.pt" for seed in (0, 1)]
    machine = ("--workers", 0, "--device", "cpu")
    run_once("eval", *sources, "--adapt-bn", "--mean", "--json", folder / "adabn.json", *machine)
    flags = ("--size", "64x32", "--only", "resnet18", "--runs", 1, "--device", "cpu")
    run_once("measure_flops", *flags, "--json", folder / "costs.json")
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """copied(name, new name, **figures): a run of its own, with other figures on the target."""

    def copy(name, new, **figures):
        shutil.copytree(runs / name, tmp_path / new, ignore=shutil.ignore_patterns("tensorboard", "*.pt"))
        path = tmp_path / new / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | figures))
        return tmp_path / new

    return copy


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """The report of all of them."""
    out = tmp_path_factory.mktemp("whole") / "report"
    inputs = [runs / name for name in ("upper", "source-0", "source-1", "adversarial", "depthwise",
                                       "adabn.json", "costs.json")]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(SEGMENTERS, "tiny")  # as a user's report has it
        run_once("report", *inputs, "--out", out, "--pictures", 2, "--device", "cpu")
    return out


def table(out, name):
    """A CSV as dicts."""
    return list(csv.DictReader(io.StringIO((out / f"tables/{name}.csv").read_text())))


class Page(HTMLParser):
    """Checks that what is opened is closed; keeps images and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.words, self.tags = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def check_latex(text, folder=None):
    """Environments nest, braces balance, special characters are escaped, tables are rectangular, files exist."""
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("%"))
    text = re.sub(r"%\n\s*", "", text)  # a comment that swallows the end of a line
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert kind == "begin" or stack.pop() == name
        stack += [name] if kind == "begin" else []
    assert stack == []
    bare = re.sub(r"\\[\\&%$#_{}~^]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "%" not in bare
    assert text.isascii()
    tables = re.findall(r"\\begin\{tabular\}\{((?:\w(?:\{[\d.]+em\})?)+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    assert len(tables) == text.count(r"\begin{tabular}")
    for types, body in tables:
        columns = re.sub(r"\{.*?\}", "", types)
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert lines
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines)
    outside = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", "", bare, flags=re.DOTALL)
    outside = re.sub(
        r"\\(input|includegraphics|label|newcommand|newcolumntype|fittable|usepackage)(\[[^]]*\])?\{[^}]*\}",
        "",
        outside,
    )
    assert not re.search(r"[&_^]|#(?!1)", outside), re.search(r".*[&_^#].*", outside)
    for file in re.findall(r"\\(?:input|includegraphics\[[^]]*\])\{([^}]*)\}", text):
        assert (folder / file).is_file(), file


# The whole


def test_the_report_holds_every_table_in_three_forms(whole):
    names = {f"assignment-{n}" for n in range(1, 5)} | {f"report-{n}" for n in range(1, 6)}
    names |= {"comparison", "costs-networks", "costs-discriminators", "runs"}
    assert {path.name for path in (whole / "tables").iterdir()} == {
        f"{n}.{k}" for n in names for k in ("md", "tex", "csv")
    }
    for name in names:
        check_latex((whole / f"tables/{name}.tex").read_text())
        assert r"\toprule" in (whole / f"tables/{name}.tex").read_text()
    text = (whole / "report.md").read_text()
    assert all((whole / f"tables/{name}.md").read_text().strip() in text for name in names)


def test_report_html_is_one_file_that_a_phone_can_show(whole):
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "://" not in text  # "http" alone may stand in a picture's base64
    assert not any(attributes.get("src", "data:")[:5] != "data:" for _, attributes in page.tags)
    assert len(page.images) > 10
    for image in page.images:
        assert image["alt"]
        Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).load()
    tables = text.count("<table>")
    assert tables == 13
    assert text.count("<div class=wide><table>") == tables  # each scrolls in its own box
    targets = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert targets <= {attributes.get("id") for _, attributes in page.tags}
    folded = {"all-methods", "step-4", "costs", "curves", "classes", "confusion", "pictures", "runs"}
    assert {f"assignment-{n}" for n in (1, 2, 3)} | folded <= targets
    opening = text.partition("<details>")[0]  # what is there before anything is unfolded
    order = [opening.index(f'id="{name}"') for name in ("methods", "assignment-1", "assignment-2", "assignment-3")]
    assert order == sorted(order)
    assert "confusion-1" not in opening


def test_report_tex_is_a_papers_skeleton_whose_files_are_there(whole):
    text = (whole / "report.tex").read_text()
    check_latex(text, whole)
    headings = re.findall(r"\\section\{(.*?)\}", text)
    assert headings == ["Introduction", "Related work", "Method", "Experiments", "Conclusion"]
    assert len(re.findall(r"\\input\{", text)) == 13
    cited = set(re.findall(r"\\cite\{(\w+)\}", text))
    assert cited == set(re.findall(r"@\w+\{(\w+),", (whole / "references.bib").read_text()))
    assert {"methods", "curve-miou-target"} <= set(re.findall(r"figures/([\w-]+)\.pdf", text)) <= set(MAIN)
    for part in text.split(r"\clearpage"):
        assert len(re.findall(r"\\input\{|\\begin\{figure\}", part)) < 18  # LaTeX keeps no more floats in mind
    assert set(re.findall(r"\\usepackage(?:\[.*?\])?\{(\w+)\}", text)) == {"geometry", "array", "booktabs", "graphicx"}
    assert all(path.read_bytes().startswith(b"%PDF") for path in (whole / "figures").glob("*.pdf"))


def test_the_assignments_tables_are_as_the_sheet_has_them(whole, runs):
    """One upper bound, one adversarial run and one with the depthwise discriminator fill Tables 1, 2 and 3; the costs
    are counted by the report itself."""

    def figures(name):
        result = json.loads((runs / name / "result.json").read_text())
        return [repr(100 * result[figure]) for figure in ("accuracy", "miou")]

    first = table(whole, "assignment-1")
    header = ["network", *FIGURE_COLUMNS, "published: [accuracy /] mIoU (%)", OTHERS, "runs", "setting"]
    assert list(first[0]) == header
    setting = "48x32, 2 x 2, from scratch"
    rows = [
        ["BiSeNet (50 epochs, ResNet-18 as backbone)", *filled(figures("upper")),
         "71.5 / 45.6 (assignment sheet); 41.8 (student report)", "47 to 54", "1", setting],
        ["BiSeNet (50 epochs, ResNet-101 as backbone)", *[NOT_RUN, ""] * 2,
         "80.5 / 54.7 (public report of the sheet's year)", "-", NOT_RUN, NOT_RUN],
    ]  # fmt: skip
    assert [list(row.values()) for row in first] == rows

    header = ["", *FIGURE_COLUMNS, "total parameters", "FLOPs", "published: [accuracy /] mIoU (%)",
              "published: parameters; FLOPs", OTHERS, "runs", "setting"]  # fmt: skip
    setting = "48x32, 4 x 2, from scratch"
    second, third = table(whole, "assignment-2"), table(whole, "assignment-3")
    assert list(second[0]) == list(third[0]) == header
    assert [list(row.values()) for row in second] == [
        ["Adversarial domain adaptation", *filled(figures("adversarial")), "2,781,121", "30.88e9",
         "66.8 / 28.8 (assignment sheet); 23.9 (student report)", "2.781 M; 30.89e9 (2 x MACs, with upsampling)",
         "33.2", "1", setting],
    ]  # fmt: skip
    assert [list(row.values()) for row in third] == [
        ["Lightweight adversarial domain adaptation", *filled(figures("depthwise")), "189,424", "2.14e9",
         "70.6 / 30.7 (assignment sheet)", "189.424 K; 21.47e8 (2 x MACs, with upsampling)", "-", "1", setting],
        ["shallow discriminator", *[NOT_RUN, ""] * 2, "12,912", "1.04e9", "-", "-", "-", NOT_RUN, NOT_RUN],
    ]  # fmt: skip
    assert "Table 2: Adversarial domain adaptation" in (whole / "tables/assignment-2.md").read_text()
    assert "Table 3: Lightweight adversarial domain adaptation" in (whole / "tables/assignment-3.md").read_text()


FIGURE_COLUMNS = ["accuracy (%), mean", "accuracy (%), deviation", "mIoU (%), mean", "mIoU (%), deviation"]


def filled(figures):
    """Accuracy and mIoU of one run, which has no deviation."""
    return [cell for figure in figures for cell in (figure, "")]


def test_measured_and_published_figures_stand_in_columns_of_their_own(whole, runs):
    methods = {row["method"]: row for row in table(whole, "comparison")}
    row = methods["source only"]
    mious = [100 * json.loads((runs / f"source-{seed}/result.json").read_text())["miou"] for seed in (0, 1)]
    assert float(row["mIoU (%), mean"]) == pytest.approx(np.mean(mious))
    assert float(row["mIoU (%), deviation"]) == pytest.approx(np.std(mious, ddof=1), abs=1e-9)
    assert row["runs"] == "2"
    assert row["published mIoU (%)"].startswith("20.8 (student report)")
    assert methods["DACS"][OTHERS] == "40.6"
    assert methods["MinEnt"]["published mIoU (%)"] == "-"  # ADVENT's figures are of two levels
    shift = {row["IoU (%)"]: row for row in table(whole, "report-3")}
    assert {name: shift[name]["source only, published"] for name in CLASS_NAMES} == PER_CLASS[()]
    iou = json.loads((runs / "source-0/result.json").read_text())["iou"]["sky"]
    other = json.loads((runs / "source-1/result.json").read_text())["iou"]["sky"]
    assert float(shift["sky"]["source only, mean"]) == pytest.approx(50 * (iou + other))


def test_what_was_not_run_says_so(whole):
    variations = {row["variation"]: row for row in table(whole, "assignment-4")}
    row = variations["d) a different real-time network"]
    assert [row[column] for column in ("setting", "runs", *FIGURE_COLUMNS[::2])] == [NOT_RUN] * 4
    assert {row["both"] for row in table(whole, "report-4")} == {NOT_RUN}
    assert {row["measured"] for row in table(whole, "report-1")} == {NOT_RUN}
    methods = {row["method"]: row for row in table(whole, "comparison")}
    assert set(METHODS) <= set(methods)
    assert methods["DACS"]["mIoU (%), mean"] == NOT_RUN
    assert methods["DACS"]["gap recovered (%), mean"] == NOT_RUN


def test_latency_comes_from_measure_flops_alone(whole, runs):
    first, second, *_ = table(whole, "costs-networks")
    assert first["parameters, training"] == "12,068,672"
    assert first["published count"] == "25.78 G (fvcore's)"
    timing = json.loads((runs / "costs.json").read_text())["networks"]["bisenet resnet18"]["timing"]["fp32"]
    shown = f"{timing['latency_median_ms']:.1f} [{timing['latency_p95_ms']:.1f}]"
    assert first["latency (ms), median [95th percentile]"] == shown
    assert second["parameters, training"] == NOT_RUN  # no run has that network
    note = (whole / "tables/costs-networks.md").read_text()
    assert "Counts at 64x32" in note
    assert "Latency: median at 64x32, batch 1, fp32" in note
    (_, depthwise, _, _) = table(whole, "costs-discriminators")
    assert depthwise["latency (ms), median [95th percentile]"] == NOT_RUN
    assert "Counts at 1024x512" in (whole / "tables/costs-discriminators.md").read_text()


def test_an_uneven_timing_is_warned_of():
    cost = {"parameters_training": 1, "parameters_inference": 1, "fvcore": 1, "conv_flops": 2, "counted_at": "."}
    for high, warned in ((1.4, False), (1.6, True)):
        timing = {"fp32": {"latency_median_ms": 1.0, "latency_p95_ms": high}}
        made = cost_table({"net": cost | {"timing": timing}}, "costs", "Costs", ["net"])
        assert any("net is uneven" in note for note in made.notes) == warned


def test_every_run_says_where_it_comes_from(whole, runs):
    rows = {row["run"]: row for row in table(whole, "runs")}
    assert set(rows) == {"upper", "source-0", "source-1", "adversarial", "depthwise"}
    config = json.loads((runs / "adversarial/config.json").read_text())
    row = rows["adversarial"]
    assert row["experiment"] == "adversarial, standard"
    assert row["command"] == config["command"]
    assert row["device"] == config["device"]
    assert row["commit"] == (config["commit"] or "-")[:12]
    seconds = json.loads((runs / "adversarial/result.json").read_text())["seconds"]
    assert row["duration"] == duration(seconds)


def test_a_duration_is_read_at_a_glance():
    assert [duration(s) for s in (7.4, 99, 100, 5999, 6000, 100_000)] == [
        "7 s", "99 s", "2 min", "1 h 40 min", "1 h 40 min", "1 d 3 h"]  # fmt: skip


def test_experiments_that_differ_in_one_flag_differ_in_its_name_alone(copied):
    made = []
    for number, changed in enumerate(({}, {}, {"batch_size": 4}, {"flip": 0.1})):
        made.append(copied("source-0", str(number)))
        config = json.loads((made[-1] / "config.json").read_text())
        config["arguments"] |= {"limit": number} if number == 1 else {}
        config["arguments"] |= changed
        (made[-1] / "config.json").write_text(json.dumps(config))
    labels = [e.label for e in experiments([read_run(path) for path in made])]
    assert labels == ["source only", "source only limit=1", "source only batch_size=4", "source only flip=0.1"]


def test_adabn_is_a_row_of_its_own_and_means_are_left_in(whole, runs):
    methods = {row["method"]: row for row in table(whole, "comparison")}
    row = methods["source only + AdaBN"]
    records = json.loads((runs / "adabn.json").read_text())["evaluations"]
    assert float(row["mIoU (%), mean"]) == pytest.approx(50 * sum(record["miou"] for record in records[:2]))
    assert row["runs"] == "2"
    assert float(methods["mean of 2 (source only) + AdaBN"]["mIoU (%), mean"]) == pytest.approx(
        100 * records[2]["miou"]
    )
    assert methods["source only"]["runs"] == "2"


def test_an_evaluation_in_two_files_counts_once(script, runs, tmp_path):
    shutil.copy(runs / "adabn.json", tmp_path / "copy.json")
    sources = (runs / "source-0", runs / "source-1", runs / "adabn.json")
    once, twice = (script("report", *sources, *more) for more in ((), (tmp_path / "copy.json",)))
    assert twice.status == 0, twice.err
    assert twice.out.count("evaluated in two files, of which the first one counts") == 3
    assert twice.out.endswith(once.out)


def test_a_mean_of_two_networks_is_reported(script, runs, city, tmp_path):
    assert script(*upper(runs / "city", tmp_path / "tiny", "--epochs", 1, "--batch-size", 4)).status == 0
    both = [path / "checkpoint_last.pt" for path in (runs / "upper", tmp_path / "tiny")]
    made = tmp_path / "mean.json"
    done = script("eval", *both, "--mean", "--adapt-bn", "--json", made, "--workers", 0, "--device", "cpu")
    assert done.status == 0, done.err
    done = script("report", runs / "upper", tmp_path / "tiny", made, "--out", tmp_path / "report", "--pictures", 1,
                  "--device", "cpu")  # fmt: skip
    assert done.status == 0, done.err
    rows = {row["method"]: row for row in table(tmp_path / "report", "comparison")}
    assert rows["mean of 2 (upper bound) + AdaBN"]["gap recovered (%), mean"] == "-"
    settings = [row["setting"] for row in table(tmp_path / "report", "comparison")]
    assert sum(setting.startswith("tiny narrow, ") for setting in settings) == 2


def test_curves_bars_matrices_and_pictures_are_drawn(whole):
    drawn = {path.stem for path in (whole / "figures").glob("*.png")}
    expected = {
        "curve-miou-target",
        "curve-miou-source",
        "curve-losses",
        "curve-discriminator",
        "methods",
        "per-class-1",
        "confusion-1",
    }
    expected |= {"scene-1", "scene-2"}
    assert expected <= drawn
    assert not any("gradient" in name for name in drawn)


# Gaps, groups, names


def test_gap_recovered_is_taken_seed_by_seed(copied):
    made = [
        copied("upper", "u0", miou=0.5), copied("source-0", "s0", miou=0.1), copied("source-1", "s1", miou=0.2),
        copied("adversarial", "a0", miou=0.3),
    ]  # fmt: skip
    config = json.loads((made[3] / "config.json").read_text())
    config["arguments"] |= {"epochs": 1, "seed": 1}
    (made[3] / "config.json").write_text(json.dumps(config))
    found = experiments([read_run(path) for path in made])
    rows = {row[0]: row for row in comparison(found).rows}
    # The upper bound has no seed 1, so the means are compared: (0.3 - 0.15) / (0.5 - 0.15).
    assert rows["adversarial, standard"][4] == pytest.approx([100 * 0.15 / 0.35])
    assert rows["source only"][4] == "-"
    made.append(copied("upper", "u1", miou=0.4))
    config = json.loads((made[4] / "config.json").read_text())
    config["arguments"]["seed"] = 1
    (made[4] / "config.json").write_text(json.dumps(config))
    rows = {row[0]: row for row in comparison(experiments([read_run(path) for path in made])).rows}
    assert rows["adversarial, standard"][4] == pytest.approx([100 * 0.1 / 0.2])
    assert rows["adversarial, standard"][8] == "-"
    without = [read_run(path) for path in made if path.name[0] != "u"]
    rows = {row[0]: row for row in comparison(experiments(without)).rows}
    assert rows["adversarial, standard"][4] == NOT_RUN
    assert rows["upper bound"][4] == NOT_RUN


def test_references_of_another_size_are_none_and_other_settings_are_named(copied):
    made = [copied("upper", "u"), copied("source-0", "s"), copied("adversarial", "a", miou=0.3)]
    config = json.loads((made[2] / "config.json").read_text())

    def row(**changed):
        (made[2] / "config.json").write_text(json.dumps(config | {"arguments": config["arguments"] | changed}))
        rows = comparison(experiments([read_run(path) for path in made])).rows
        return next(row for row in rows if row[0].startswith("adversarial, standard") and row[1] != NOT_RUN)

    assert row(jitter=True, lr=0.5)[8] == "epochs, jitter, lr"
    assert row(size=[64, 32])[4] == NOT_RUN


def test_methods_are_named_as_in_the_literature(runs):
    settings = read_run(runs / "adversarial").settings
    assert method_name(settings) == "adversarial, standard"
    assert method_name(settings | {"input": "entropy", "lambda_adv": 0.01}) == "AdvEnt, standard + lambda_adv 0.01"
    assert method_name(settings | {"discriminator": "none", "min_entropy": True}) == "MinEnt"
    multi = settings | {"level": "multi", "lambda_entropy_aux": 2e-4}
    assert by_others(method_name(multi | {"input": "entropy"})).startswith("43.8 (DeepLabV2")
    assert by_others(method_name(multi | {"discriminator": "none", "min_entropy": True})).startswith("42.3 (DeepLabV2")
    assert method_name(settings | {"bn_statistics": "target"}) == "adversarial, standard + bn_statistics target"
    assert method_name(settings | {"script": "train_fda", "translation": "fda", "beta": 0.05}) == "FDA, beta 0.05"
    lab = settings | {"script": "train_fda", "translation": "lab", "beta": None}
    assert method_name(lab | {"jitter": True}) == "LAB + jitter"
    again = {"script": "train_pseudo_labels", "rule": "bdl", "adapt_bn": True, "percentile": 66.0, "beta": 0.01}
    again["lambda_entropy"] = 0.0
    assert method_name(settings | again) == "pseudo-labels by AdaBN, percentile 66, FDA beta 0.01"
    dacs = settings | {"script": "train_dacs", "rare_classes": False, "lambda_mask": 0.0, "beta": None}
    dacs |= {"teacher_checkpoint": None, "lambda_mix": 1.0, "decay": 0.99, "confidence": 0.968}
    assert method_name(dacs) == "DACS"
    assert method_name(dacs | {"beta": 0.01, "decay": 0.95}) == "DACS + FDA beta 0.01 + decay 0.95"
    assert method_name(dacs | {"decay": None, "average_share": 0.029}) == "DACS + average_share 0.029"
    taught = dacs | {"teacher": "frozen", "teacher_checkpoint": "heavy/checkpoint_last.pt"}
    assert method_name(taught) == "DACS + frozen teacher"
    assert started_from(taught) is None
    assert started_from(taught | {"teacher": "moving"}) == "heavy/checkpoint_last.pt"
    assert started_from(dacs | {"teacher": "moving"}) is None
    assert started_from(dacs | {"teacher": "moving", "init": "a.pt"}) == "a.pt"


def test_seeds_with_a_teacher_of_their_own_are_one_experiment(copied):
    made = [copied("source-0", "a"), copied("source-1", "b"), copied("source-0", "c")]
    for run, teacher in zip(made, ("heavy-0/checkpoint_last.pt", "heavy-1/checkpoint_last.pt", None), strict=True):
        config = json.loads((run / "config.json").read_text())
        config["arguments"]["teacher_checkpoint"] = teacher
        (run / "config.json").write_text(json.dumps(config))
    assert [len(one.runs) for one in experiments([read_run(path) for path in made])] == [2, 1]


def test_labels_of_networks_that_were_trained_otherwise_make_another_experiment(copied):
    """Seeds have labellers of their own; labels after FDA are not one more seed of labels after source only."""
    made = [copied("source-0", name) for name in "abc"]
    for run, method in zip(made, ("source only", "source only", "FDA, beta 0.01"), strict=True):
        config = json.loads((run / "config.json").read_text())
        config["arguments"] |= {"labeller": [f"{run.name}/checkpoint_last.pt"], "labeller_method": [method]}
        (run / "config.json").write_text(json.dumps(config))
    found = experiments([read_run(path) for path in made])
    assert [len(one.runs) for one in found] == [2, 1]
    assert "FDA, beta 0.01" in found[1].label


def test_seeds_that_start_from_networks_of_their_own_are_one_experiment(copied):
    made = [copied("source-0", name) for name in "abcde"]
    starts = [("fda-0", "FDA, beta 0.01"), ("fda-1", "FDA, beta 0.01"), ("so-0", "source only")]
    starts += [("x", None), ("y", None)]
    for run, (start, method) in zip(made, starts, strict=True):
        config = json.loads((run / "config.json").read_text())
        config["arguments"] |= {"init": f"{start}/checkpoint_last.pt", "init_method": method}
        (run / "config.json").write_text(json.dumps(config))
    found = experiments([read_run(path) for path in made])
    assert [len(one.runs) for one in found] == [2, 1, 1, 1]  # of earlier runs nobody knows
    assert found[0].label.startswith("source only + init FDA, beta 0.01")
    assert len({one.label for one in found}) == 4


@pytest.mark.slow
def test_seeds_whose_labellers_are_of_another_network_or_length_are_no_one_experiment(script, game, city, tmp_path):
    labellers = {"narrow-0": ("--seed", 0), "narrow-1": ("--seed", 1), "wide": ("--backbone", "wide"), "long": ()}
    made = []
    for seed, (name, flags) in enumerate(labellers.items()):
        steps = 2 if name == "long" else 1
        assert script(*upper(city, tmp_path / name, "--max-steps", steps, *flags)).status == 0
        made.append(tmp_path / f"after-{name}")
        done = script("train_pseudo_labels", "--gta5", game, "--cityscapes", city, *SMALL, *SOURCE, "--max-steps", 1,
                      "--max-class-share", 1, "--labeller", tmp_path / name, "--seed", seed,
                      "--run-dir", made[-1])  # fmt: skip
        assert done.status == 0, done.err

    def found(*runs):
        return [(e.label, len(e.runs)) for e in experiments([read_run(run) for run in runs])]

    assert found(*made[:2]) == [("pseudo-labels", 2)]
    said = ("narrow, 1 step", "wide, 1 step", "narrow, 2 steps")
    grouped = [(f"pseudo-labels, labeller tiny {words}", n) for words, n in zip(said, (2, 1, 1), strict=True)]
    assert found(*made) == grouped
    printed = script("report", *made).out
    assert all(f"tiny-narrow 48x32, labeller tiny {words}" in printed for words in said)

    machine = ("--workers", 0, "--device", "cpu", "--mean", "--json", tmp_path / "means.json", "--force")
    means = []
    for pair in (made[:2], made[2:]):
        assert script("eval", *pair, *machine).status == 0
        means += read_evaluations(tmp_path / "means.json", print)
    assert [len(e.runs) for e in experiments(means)] == [1, 1]

    kept = json.loads((made[1] / "config.json").read_text())  # as of before this was recorded
    del kept["arguments"]["earlier_networks"]
    (made[1] / "config.json").write_text(json.dumps(kept))
    assert found(*made[:2]) == [("pseudo-labels", 2)]
    assert found(*made) == [(grouped[0][0], 1), ("pseudo-labels", 1), *grouped[1:]]

    chained = {"init": made[2] / "checkpoint_best.pt", "labeller": [made[0] / "checkpoint_last.pt", tmp_path / "gone"]}
    assert earlier_networks(chained) == [
        "init tiny narrow, best epoch of 1 step (labeller tiny wide, 1 step)",
        "labeller tiny narrow, 1 step (labeller tiny narrow, 1 step)",
    ]


def test_runs_of_other_data_or_that_were_changed_midway_are_no_seeds_of_one_experiment(copied):
    made = [copied("source-0", name) for name in "abcd"]
    others = ({}, {"data": {}}, {"changes": ["--lr was 0.5, is 0.01"]}, {"total_steps": 7})
    for run, change in zip(made, others, strict=True):
        config = json.loads((run / "config.json").read_text()) | change
        (run / "config.json").write_text(json.dumps(config))
    found = experiments([read_run(path) for path in made])
    assert [len(one.runs) for one in found] == [1, 1, 1, 1]
    assert "changes=--lr was 0.5, is 0.01" in found[2].label
    assert len({one.label for one in found}) == 4


@pytest.mark.parametrize(("change", "said"), [
    ({"step": 1}, "of step 1, and its run went on to step"), ({"precision": "bf16"}, "measured in bf16"),
    ({"read": {"Cityscapes val": {"pictures": 2}}}, "by labels read in another way"),
    ({"sha256": "0" * 64}, "of another network than"),
    ({"size": [192, 128]}, "measured at 192x128, where its run measures itself at 48x32"),
])  # fmt: skip
def test_figures_of_adabn_that_are_not_of_the_finished_run_are_left_out(runs, tmp_path, change, said):
    record = json.loads((runs / "adabn.json").read_text())["evaluations"][0]
    notes = []
    for more, number in (({}, 1), (change, 0)):
        (tmp_path / "figures.json").write_text(json.dumps({"evaluations": [record | more]}))
        assert len(read_evaluations(tmp_path / "figures.json", notes.append)) == number
    assert said in notes[0]


@pytest.mark.slow
def test_figures_of_another_network_size_or_other_train_pictures_are_left_out(script, game, city, tmp_path):
    """Each as somebody comes by them: eval.py's flags, and a run that was deleted and trained anew."""
    runs, json_file = [tmp_path / "source-0", tmp_path / "source-1"], tmp_path / "figures.json"
    for seed, run in enumerate(runs):
        assert script(*source_only(game, city, run, "--max-steps", 1, "--seed", seed)).status == 0
    assert script(*upper(city, tmp_path / "upper", "--max-steps", 1)).status == 0

    def names():
        notes = []
        found = read_evaluations(json_file, notes.append)
        return [one.name for one in found], " ".join(notes)

    def evaluated(*arguments):
        done = script("eval", *arguments, "--json", json_file, "--force", "--workers", 0, "--device", "cpu")
        assert done.status == 0, done.err
        return names()

    both, each = [*runs, "--adapt-bn"], ["source-0 + AdaBN", "source-1 + AdaBN"]
    assert evaluated(*both, "--size", "64x32") == ([], names()[1])
    assert names()[1].count("measured at 64x32, where its run measures itself at 48x32") == 2
    assert evaluated(*runs, "--mean", "--size", "64x32")[0] == []
    for run in (*runs, tmp_path / "upper"):  # val has two pictures, so the limit leaves it whole
        assert evaluated(run, "--adapt-bn", "--limit", 2)[0] == []
        assert "adapted to other train pictures than its run's (2 of them)" in names()[1]
        assert evaluated(run, "--adapt-bn") == ([f"{run.name} + AdaBN"], "")
    assert evaluated(*both, "--mean", "--limit", 2)[0] == []

    assert evaluated(*both, "--mean") == ([*each, "mean of 2"], "")
    kept = (runs[1] / "checkpoint_last.pt").read_bytes()
    (runs[1] / "checkpoint_last.pt").unlink()
    assert names() == ([*each, "mean of 2"], "")  # there is nothing to compare with
    shutil.rmtree(runs[1])
    assert script(*source_only(game, city, runs[1], "--max-steps", 1, "--seed", 1, "--lr", 0.02)).status == 0
    assert names()[0] == each[:1]
    assert names()[1].count(f"of another network than {runs[1] / 'checkpoint_last.pt'} holds now") == 2
    assert (runs[1] / "checkpoint_last.pt").read_bytes() != kept
    earlier = json.loads(json_file.read_text())
    for record in earlier["evaluations"]:
        for key in ("sha256", "size", "adapted_on"):
            del record[key]
    json_file.write_text(json.dumps(earlier))
    assert names() == ([*each, "mean of 2"], "")


def test_rows_of_the_assignment_take_its_data_alone(copied):
    other = {"gta5": None, "camvid_day": "D"}, {"cityscapes": None, "camvid": "D"}, {"intra": "lab/checkpoint_last.pt"}
    for number, change in enumerate(({}, *other)):
        run = copied("adversarial", f"run-{number}")
        config = json.loads((run / "config.json").read_text())
        config["arguments"] |= change
        (run / "config.json").write_text(json.dumps(config))
        (found,) = experiments([read_run(run)])
        assert adversarial_with("standard")(found) == (change == {})


def test_report_groups_seeds_and_tells_settings_apart(script, copied):
    again = copied("source-0", "flipped")
    config = json.loads((again / "config.json").read_text())
    config["arguments"]["flip"] = 0.0
    (again / "config.json").write_text(json.dumps(config))
    made = [copied("source-0", "a", miou=0.2), copied("source-1", "b", miou=0.4), again]
    done = script("report", *made, made[0])  # one run named twice is one run
    assert done.status == 0, done.err
    first, second = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines()[2:4]]
    assert (first[1], second[1]) == ("2", "1")
    assert "seed" not in done.out
    assert "flip=0.5" in first[0]
    assert "flip=0.0" in second[0]
    assert first[3] == "30.0 ± 14.1"
    assert "several runs have the seed 0" in script("report", *made[:1], copied("source-0", "again")).out


def test_data_that_were_moved_are_the_same_data(runs, copied):
    """A cluster's jobs unpack them in a new place each."""
    moved = copied("source-1", "moved")
    config = json.loads((moved / "config.json").read_text())
    roots = {"cityscapes": "/scratch/7/city", "gta5": "/scratch/7/game"}
    (moved / "config.json").write_text(json.dumps(config | {"arguments": config["arguments"] | roots}))
    places = [runs / "upper", runs / "source-0", moved]
    upper, source = experiments([read_run(place) for place in places])
    assert [run.name for run in source.runs] == ["source-0", "moved"]
    assert reference(source, "train_cityscapes", [upper, source])[0] is upper
    config["data"]["GTA5"]["names"] = "of others"
    (moved / "config.json").write_text(json.dumps(config | {"arguments": config["arguments"] | roots}))
    assert len(experiments([read_run(place) for place in places])) == 3


def test_a_folder_of_runs_stands_for_them(runs, tmp_path):
    found, files = find_runs([runs, runs / "upper", runs / "costs.json", tmp_path])
    assert [path.name for path in found[:4]] == ["adversarial", "depthwise", "source-0", "source-1"]
    assert [path.name for path in found[4:-1]] == ["upper"]
    assert found[5:] == [tmp_path]  # to be named as no run
    assert files == sorted(runs.glob("*.json"))
    (tmp_path / "out/evaluations").mkdir(parents=True)
    for name, content in (("tables.json", {"data": []}), ("evaluations/a.json", {"evaluations": []}), ("b.json", [])):
        (tmp_path / "out" / name).write_text(json.dumps(content))
    assert find_runs([tmp_path / "out"])[1] == [tmp_path / "out/evaluations/a.json"]
    assert find_runs([runs / "upper"])[1] == []
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer/bands").symlink_to(runs)
    assert [path.name for path in find_runs([tmp_path / "outer"])[0]] == [path.name for path in found[:5]]


# Runs that are not whole, folders that are not ours


def test_unfinished_and_damaged_runs_are_named_and_left_out(script, copied, tmp_path):
    good, going, broken, odd, none = (copied("source-0", name) for name in ("good", "going", "broken", "odd", "none"))
    (going / "result.json").unlink()
    (broken / "metrics.jsonl").write_text('{"epoch": 1, "st')
    result = json.loads((odd / "result.json").read_text())
    (odd / "result.json").write_text(json.dumps(result | {"miou": 4.5}))
    shutil.rmtree(none)
    (tmp_path / "notes.json").write_text("[1, 2]")
    inputs = (good, going, broken, odd, none, tmp_path / "notes.json")
    done = script("report", *inputs, "--out", tmp_path / "report", "--pictures", 0)
    assert done.status == 0, done.err
    notes = [line for line in done.out.splitlines() if line.startswith("note: left out: ")]
    assert len(notes) == 5
    for path, why in ((going, "has not ended"), (broken, "damaged"), (odd, "damaged"), (none, "no run is there")):
        assert any(str(path) in line and why in line for line in notes), path
    assert "its curves are shown" in next(line for line in notes if "going" in line)
    (row,) = [row for row in table(tmp_path / "report", "comparison") if row["setting"] != NOT_RUN]
    assert row["runs"] == "1"
    text = (tmp_path / "report/report.html").read_text()
    assert all(str(path) in text for path in (going, broken, odd, none))
    labels = [
        text.get_text()
        for _, _, figure in charts(experiments([read_run(good)]))
        for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))
    ]
    assert not any("unfinished" in label for label in labels)
    assert "no finished run" in one_line_error(script("report", going, broken))


def test_whatever_is_damaged_in_a_run_is_named_or_harmless(runs, copied):
    """Bytes changed, cut or doubled in its files, and values of other types: a figure, or one line about the run."""
    run, rng = copied("adversarial", "hurt"), np.random.default_rng(0)
    read, refused = 0, 0
    for name in ("result.json", "config.json", "metrics.jsonl"):
        whole = (run / name).read_bytes()
        for kind in range(60):
            hurt = bytearray(whole)
            at = int(rng.integers(len(hurt)))
            if kind % 3 == 0:
                hurt[at : at + int(rng.integers(1, 40))] = b""
            elif kind % 3 == 1:
                hurt[at] = int(rng.integers(32, 127))
            else:
                values = [m.span(1) for m in re.finditer(rb": (\d[\d.e-]*|null|\"[^\"]*\"|true|false)", whole)]
                first, last = values[int(rng.integers(len(values)))]
                hurt[first:last] = [b"null", b'"x"', b"[]", b"-3", b"{}", b"NaN"][kind % 6]
            (run / name).write_bytes(bytes(hurt))
            try:
                found = experiments([read_run(run)])
            except UserError as error:
                refused += str(run) in str(error)
                continue
            for table in (*assignment_tables(found, {}), *student_tables(found, {}), comparison(found)):
                assert table.markdown()
                assert table.latex()
                assert table.csv()
            assert [
                series(e.runs, value) for e in found for value in (lambda x: x["train"]["loss"], lambda x: x["step"])
            ]
            assert [np.array(r.confusion).sum() for e in found for r in e.runs]
            read += 1
        (run / name).write_bytes(whole)
    assert read + refused == 180
    assert min(read, refused) > 20
    read_run(run)


def test_a_report_replaces_its_own_files_and_nothing_else(script, runs, tmp_path, monkeypatch):
    few = [chart for chart in charts(experiments([read_run(runs / "source-0")])) if chart[0].startswith("curve-miou")]
    monkeypatch.setattr("reporting.figures.charts", lambda found: few[: len(found)])
    out = tmp_path / "report"
    command = ("report", runs / "upper", "--out", out, "--pictures", 0)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("mine")
    assert "was not written by this script" in one_line_error(script(*command[:3], tmp_path / "thesis"))
    assert script("report", runs / "source-0", *command[1:]).status == 0
    old = (out / "report.tex").read_text()
    assert "curve-miou-source" in old
    (out / "report.tex").write_text("my paper")
    (out / "mine.txt").write_text("my notes")
    done = script(*command)
    assert "changed by hand and stays" in done.out
    assert (out / "report.tex").read_text() == "my paper"
    assert (out / "mine.txt").read_text() == "my notes"
    new = (out / "report.new.tex").read_text()
    assert "curve-miou-source" not in new
    assert not (out / "figures/curve-miou-source.png").exists()  # of the report before; nothing replaces it
    assert (out / "figures/curve-miou-target.png").exists()
    (out / "report.new.tex").write_text("mine too")
    assert "move one of them away" in one_line_error(script(*command))
    assert ((out / "report.tex").read_text(), (out / "report.new.tex").read_text()) == ("my paper", "mine too")


def test_an_interrupted_writing_leaves_nothing_that_seems_changed(tmp_path, monkeypatch):
    OwnFolder(tmp_path / "out").write({"a.txt": b"1", "b.txt": b"1"})

    def stop(path, write):
        if path.name == "b.txt":
            raise KeyboardInterrupt
        path.write_bytes(b"2")

    folder = OwnFolder(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("reporting.manifest.write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            folder.write({"a.txt": b"2", "b.txt": b"2"})
    assert OwnFolder(tmp_path / "out").write({"a.txt": b"3", "b.txt": b"3"}) == []
    assert (tmp_path / "out/a.txt").read_bytes() == b"3"
    assert not (tmp_path / "out/a.new.txt").exists()


def test_a_manifest_reaches_nothing_outside_its_folder(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    sums = [hashlib.sha256(b"mine").hexdigest()]
    out, real = tmp_path / "out", tmp_path / "real"
    OwnFolder(out).write({"a.txt": b"1"})
    real.mkdir()
    (out / "link").symlink_to(tmp_path)
    for name in ("../victim.txt", str(victim), "link/victim.txt", "a/../../victim.txt", "..", "", "a\0", "x/.."):
        (out / "manifest.json").write_text(json.dumps({"files": {name: sums}}))
        with pytest.raises(UserError, match="outside this folder"):
            OwnFolder(out)
        (out / "manifest.json").write_text(json.dumps({"files": {}}))
        with pytest.raises(UserError, match="outside this folder"):
            OwnFolder(out).write({name: b"new"})
    for odd in ("[" * 100_000, "null", '{"files": null}', '{"files": {"a.txt": 3}}', '{"files": ["a.txt"]}', "\xff"):
        (out / "manifest.json").write_text(odd)
        with pytest.raises(UserError, match="not written by this script"):
            OwnFolder(out)
    (out / "manifest.json").write_text(json.dumps({"files": {"a.txt": [None, {}]}}))
    assert OwnFolder(out).write({"a.txt": b"2"}) == ["a.txt"]  # as changed by hand
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "real", "victim.txt"]


# Charts and pictures


def test_bands_are_the_deviation_over_seeds(runs):
    seeds = [read_run(runs / f"source-{seed}") for seed in (0, 1)]
    steps, means, deviations = series(seeds, lambda entry: entry["target"]["miou"])
    values = [run.history[0]["target"]["miou"] for run in seeds]
    assert steps == [seeds[0].history[0]["step"]]
    assert means == pytest.approx([np.mean(values)])
    assert deviations == pytest.approx([np.std(values, ddof=1)])


def test_every_chart_has_labelled_axes_and_a_legend_that_hides_nothing(runs):
    found = experiments([read_run(runs / name) for name in ("upper", "source-0", "source-1", "adversarial")])
    for name, caption, figure in charts(found):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        assert figure.axes[-1].get_xlabel() or name.startswith("confusion"), name
        assert axes.get_ylabel() or name.startswith(("per-class", "methods")), name
        assert caption.endswith(".")
        for box in figure.legends:
            assert not box.get_window_extent().overlaps(axes.get_window_extent()), name
        styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.get_lines()}
        assert len(styles) == len(axes.get_lines()), name


def test_errors_are_marked_where_a_labelled_pixel_is_wrong():
    image = np.full((2, 3, 3), 200, dtype=np.uint8)
    label = np.array([[0, 1, 255], [2, 2, 2]], dtype=np.uint8)
    prediction = np.array([[0, 0, 0], [2, 3, 2]], dtype=np.uint8)
    marked = (errors(image, prediction, label) == WRONG).all(axis=2)
    assert marked.tolist() == [[False, True, False], [False, True, False]]


def test_latex_escapes_what_it_would_read():
    text = latex(r"100% & under_score #1 $5 {x} ~ ^ \ ± < > |")
    check_latex(text)
    strange = Table("t", "a_b & 5%", ("x_1", "y|z"), [["50%", [1.0, 2.0]], ["a&b", []]], ("n_1",))
    check_latex(strange.latex())
    assert "1.5 ± 0.7" in strange.markdown()


def test_a_bar_in_a_name_ends_no_column():
    figures = dict.fromkeys(("accuracy", "miou", "mean_class_accuracy", "entropy", "classes_evaluated"), 0.5)
    table = result_tables([("last", figures | {"iou": {"a|b": 0.5}})])
    assert r"| a\|b    | 50.0 |" in table
    assert r"y\|z" in Table("t", "t", ("x", "y|z"), [["1", "2"]], ()).markdown()


HOSTILE = "=cmd()|'a'!A1 <script>alert(1)</script> [x](javascript:y) ![z](http://w) `q` **b**\n\n# h\n\n<img src=u>"


def test_a_name_stays_text_in_every_form():
    hostile = Table("t", HOSTILE, ("run", HOSTILE, "mIoU (%)"), [[HOSTILE, "-2.5", [1.0, 2.0]], ["@x", "-", "\t=y"]],
                    (HOSTILE,))  # fmt: skip
    charts, left_out = [Drawn("curve-loss", HOSTILE, b"", b"")], [HOSTILE]
    document = markdown_document(["about"], [hostile], charts, [], left_out)
    assert not re.search(r"<|(?<!\\)(`|\*\*)|[xz]\]\(", document.replace("\\]", ""))
    assert re.findall(r"^#+ \w+", document, flags=re.MULTILINE) == ["# Real", "## Tables", "## Charts", "## Left"]
    assert len({line.count("|") - line.count("\\|") for line in document.splitlines() if line.startswith("|")}) == 1
    check_latex(hostile.latex())
    page = Page(html_document(["about"], [hostile], charts, [], left_out))
    assert {"script", "a"} & {tag for tag, _ in page.tags} == {"a"}
    rows = list(csv.reader(io.StringIO(hostile.csv())))
    assert rows[0][1].startswith("'=cmd()")
    assert rows[1] == [f"'{HOSTILE}", "-2.5", "1.5", str(2**-0.5)]
    assert rows[2] == ["'@x", "-", "'\t=y", ""]


# What runs keep for it


def test_a_run_keeps_its_confusion_and_metrics_does_not(runs):
    result = json.loads((runs / "source-0/result.json").read_text())
    matrix = np.array(result["confusion"])
    assert np.trace(matrix) / matrix.sum() == pytest.approx(result["accuracy"])
    union = matrix[10].sum() + matrix[:, 10].sum() - matrix[10, 10]
    assert matrix[10, 10] / union == pytest.approx(result["iou"]["sky"])
    assert "confusion" not in (runs / "source-0/metrics.jsonl").read_text()
    record = json.loads((runs / "adabn.json").read_text())["evaluations"][0]
    assert np.array(record["confusion"]).sum() == matrix.sum()


def test_tensorboard_has_the_arguments_and_stays_small(runs):
    events = EventAccumulator(str(runs / "adversarial/tensorboard")).Reload()
    content = events.PluginTagToContent("hparams")
    start = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["lambda_adv"].number_value == 0.001
    described = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert {metric.name.tag for metric in described.metric_infos} <= {*events.Tags()["scalars"]}
    assert [step for step in range(90, 131) if dense(step)] == [*range(90, 101), 110, 120, 130]
    assert sum(pictured(epoch, 50) for epoch in range(1, 51)) <= 20
    assert all(pictured(epoch, 7) for epoch in range(1, 8))
    assert pictured(50, 50)
    assert WIDTH <= 256


def test_help_of_every_script_has_groups_and_an_example(script):
    root = Path(__file__).resolve().parent.parent
    for path in sorted(
        [*root.glob("train_*.py"), *(root / f"{name}.py" for name in ("eval", "predict", "report", "measure_flops"))]
    ):
        done = script(path.stem, "--help")
        assert done.status == 0
        assert f"python {path.name} " in done.out, path.name
        groups = [line for line in done.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert len(groups) >= 3, (path.name, groups)


def test_every_recipe_is_a_command_that_its_script_takes(script, monkeypatch, tmp_path):
    text = (Path(__file__).resolve().parent.parent / "docs/recipes.md").read_text()
    commands = [line for line in re.findall(r"`python ([^`]*)`", text) if "--cityscapes" in line]
    assert len(commands) == 14
    more = [line.replace("`", "") for line in re.findall(r"`(--[^`]*)`", text) if "--run-dir runs" in line]
    source = next(line for line in commands if line.startswith("train_gta5"))
    adversarial = next(line for line in commands if line.startswith("train_adversarial"))
    dacs = next(line for line in commands if line.startswith("train_dacs"))
    bases = {"--discriminator": adversarial, "--bn-statistics": adversarial, "--recipe": dacs}
    commands += [f"{bases.get(line.split()[0], source)} {line}" for line in more]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        name, *arguments = command.replace("-S", "-0").replace("--seed S", "--seed 0").split()
        message = one_line_error(script(name.removesuffix(".py"), *arguments))
        assert re.search(r"--(gta5 G|cityscapes C)", message), (command, message)
