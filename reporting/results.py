"""Run directories and eval.py's JSON -> experiments: what was run, with which settings, and what was measured.

An experiment is one method with one set of settings, and one kind of network that it starts from or learns from; its
runs differ in their seed alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets.domains import SOURCES, TARGETS, sources_of, target_of
from training.checkpoint import BEST, LAST, sha256
from training.methods import evaluated_as, in_short, method_name, started_from
from training.provenance import same_data
from training.resumption import arguments_of
from utils.errors import UserError
from utils.files import is_there, parse_json, read_json
from utils.tables import means_in

from .sanity import config_is_sane, confusion_is_sane, figures_are_sane, history_is_sane

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a file raises that is not what it should be."""

BESIDE = {
    "seed",
    "run_dir",
    "root",
    "resume",
    "no_cache",
    "cache",
    "workers",
    "device",
    "compile",
    "checkpoint_minutes",
    "stop_after",
    "allow_changes",
    "on_bad_sample",
    "max_bad_share",
    "labeller",
    "labeller_sha256",
    "init",
    "earlier_networks",
    "intra",
    "intra_sha256",
    "recipe",
    "teacher_sha256",
    "pseudo_labels",
    "labels_sha256",
    "max_class_share",
}
"""Arguments in which the runs of one experiment may differ."""

BISENET_18 = ("bisenet", "resnet18")
"""The network whose figures other reports publish."""

TARGET = ("accuracy", "miou", "iou", "classes_evaluated", "step", "pictures")
"""Of result.json, and of eval.py's figures."""


class Unfinished(UserError):
    """A run that has begun and not ended."""


@dataclass(frozen=True)
class Measured:
    """One run's figures, or one evaluation's.

    target, oracle, source: `accuracy`, `miou` (fractions or None), `iou` (name -> fraction or None), ...; oracle and
    source None where there is none. confusion: pixels, a row a label. history: the lines of metrics.jsonl. seconds: of
    the whole run, None where it was not taken. earlier: `earlier_networks`, None where an earlier run does not say.
    """

    name: str
    seed: int | None
    settings: dict[str, Any]
    config: dict[str, Any]
    checkpoints: tuple[Path, ...]
    target: dict[str, Any] | None
    oracle: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    confusion: list[list[int]] | None = None
    history: tuple[dict[str, Any], ...] = ()
    adapt_bn: bool = False
    members: tuple[str, ...] = ()
    seconds: float | None = None
    earlier: tuple[str, ...] | None = None

    @property
    def key(self) -> str:
        """Equal for the runs of one experiment, whatever `earlier` says; runs that go on are one of their own."""
        data = {name: found | {"file_sizes": None} for name, found in (self.config.get("data") or {}).items()}
        read = [data, self.config["total_steps"]]  # runs of an earlier version have no sizes
        return json.dumps([self.settings, read, self.adapt_bn, self.members, self.target is None], sort_keys=True)


@dataclass
class Experiment:
    """The runs of one method with one set of settings."""

    runs: list[Measured] = field(default_factory=list)
    label: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return self.runs[0].settings

    @property
    def method(self) -> str:
        """The method's name, with what was done to its networks afterwards."""
        run = self.runs[0]
        return evaluated_as(method_name(run.config["arguments"]), run.members, run.adapt_bn)

    @property
    def earlier(self) -> tuple[str, ...]:
        """Its runs' earlier networks; none where no run says."""
        return next((run.earlier for run in self.runs if run.earlier is not None), ())

    @property
    def network(self) -> tuple[str, str]:
        """(model, backbone); of a mean the first one's."""
        arguments = self.runs[0].config["arguments"]
        return arguments["model"], arguments["backbone"]

    @property
    def script(self) -> str:
        return self.runs[0].config["script"]

    @property
    def finished(self) -> bool:
        return self.runs[0].target is not None

    @property
    def plain(self) -> bool:
        """Whether it is a run's own figure: no AdaBN afterwards, no mean of several networks."""
        return not self.runs[0].adapt_bn and not self.runs[0].members

    @property
    def of_row(self) -> bool:
        """Whether it may fill a row that names its method alone, whatever its data: it is plain, with a source of its
        own, and without means over a part of the classes."""
        return self.plain and not self.means and self.runs[0].config["arguments"].get("intra") is None

    @property
    def of_assignment(self) -> bool:
        """Whether it may stand for the assignment's rows, and the student report's, which know GTA5 and Cityscapes."""
        known = sources_of(self.settings) in ([], ["gta5"]) and target_of(self.settings) == "cityscapes"
        return self.of_row and known

    @property
    def data(self) -> str:
        """Its domains, in words."""
        titles = [SOURCES[key].title for key in sources_of(self.settings) if self.script != "train_cityscapes"]
        return " to ".join(filter(None, [" and ".join(titles), TARGETS[target_of(self.settings)].title]))

    def figure(self, part: str, name: str) -> list[float]:
        """Per cent of each run that has it. part: target, oracle or source; name: accuracy, a mean, or a class."""
        found = [one for one in (getattr(run, part) for run in self.runs) if one is not None]
        values = [one["iou"].get(name, one.get(name)) for one in found]
        return [100 * value for value in values if value is not None]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that its networks tell apart, in their order; none where it has not finished."""
        return tuple(self.runs[0].target["iou"]) if self.finished else ()

    @property
    def means(self) -> list[str]:
        """The means over a part of the classes that it has: those of SYNTHIA's benchmark, which is not GTA5's."""
        return means_in(run.target for run in self.runs if run.target is not None)

    def by_seed(self) -> dict[int | None, float]:
        """mIoU on the target (fraction) of each seed that has one; the mean where several runs have it."""
        found: dict[int | None, list[float]] = {}
        for run in self.runs:
            if run.target["miou"] is not None:
                found.setdefault(run.seed, []).append(run.target["miou"])
        return {seed: statistics.mean(values) for seed, values in found.items()}

    def on_pictures_of(self, other: Experiment) -> bool:
        """Whether both have their figures of the same pictures and labels, as far as their runs say."""
        own, others = (one.runs[0].config.get("data") or {} for one in (self, other))
        shared = [name for name in own.keys() & others.keys() if name.endswith(" val")]
        return all(same_data(own[name], others[name]) for name in shared)

    def repeated_seeds(self) -> list[int]:
        """Seeds that more than one of its runs has."""
        seeds = [run.seed for run in self.runs if run.seed is not None]
        return sorted({seed for seed in seeds if seeds.count(seed) > 1})

    def classes(self) -> str:
        """Over how many classes its mean runs."""
        return "/".join(sorted({str(run.target["classes_evaluated"]) for run in self.runs}))

    def setting(self) -> str:
        """Size, length and start, in a few words; before them the network, where it is not the published rows'."""
        config = self.runs[0].config
        s = config["arguments"]
        start = {"none": "scratch", "imagenet": "ImageNet"}.get(s["weights"], "a file")
        start = "an earlier run" if started_from(s) else start
        words = "" if self.network == BISENET_18 else f"{' '.join(self.network)}, "
        words += f"{_by(s['size'])}, {config['total_steps']} x {s['batch_size']}, from {start}"
        return words + (", street scenes" if s["demo"] else "")


def class_names(experiments: Iterable[Experiment]) -> tuple[str, ...]:
    """The classes of several experiments, each once, in their order."""
    return tuple(dict.fromkeys(name for e in experiments for name in e.class_names))


def find_runs(places: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(run directories, JSON files), each once. A folder of runs, or of such folders (train_fda.py's with several
    bands), stands for the runs in it, and for the figures that lie beside them, or in evaluations/ as tables.py's."""
    directories: dict[Path, Path] = {}
    files: dict[Path, Path] = {}
    for place in places:
        if place.is_file():
            files.setdefault(place.resolve(), place)
            continue
        below = ("config.json",) if (place / "config.json").exists() else ("*/config.json", "*/*/config.json")
        inner = sorted(path.parent for pattern in below for path in place.glob(pattern))
        for run in inner or [place]:
            directories.setdefault(run.resolve(), run)
        for file in () if place in inner else sorted([*place.glob("*.json"), *place.glob("evaluations/*.json")]):
            if _holds_figures(file):
                files.setdefault(file.resolve(), file)
    return list(directories.values()), list(files.values())


def _holds_figures(path: Path) -> bool:
    """Whether a JSON file looks like one of eval.py's or measure_flops.py's."""
    try:
        return bool({"evaluations", "networks"} & read_json(path).keys())
    except DAMAGED:
        return False


def read_run(directory: Path) -> Measured:
    """A finished run. Raises `UserError` for one that is missing or damaged, `Unfinished` for one that goes on."""
    config_file, path = directory / "config.json", directory / "result.json"
    if not config_file.exists() and not path.exists():
        raise UserError(f"{directory}: no run is there")
    if not path.exists():
        raise Unfinished(f"{directory}: has not ended (--resume goes on)")
    try:
        result = read_json(path)
        target = {key: result[key] for key in (*TARGET, *means_in([result]))}
        parts = [figures for figures in (target, result["oracle"], result["source"]) if figures is not None]
        whole = all(figures_are_sane(figures, target["iou"]) for figures in parts)
        run = _run(directory, target, result["oracle"], result["source"], result.get("confusion"))
        whole &= confusion_is_sane(run.confusion, len(target["iou"]))
    except DAMAGED:
        whole = False
    if not whole:
        raise UserError(f"{directory}: result.json, config.json or metrics.jsonl is damaged")
    return run


def read_unfinished(directory: Path) -> Measured | None:
    """What a run that goes on has logged: its curves, no figures. None where there is nothing yet."""
    try:
        run = _run(directory, None)
    except DAMAGED:
        return None
    return run if run.history else None


def _run(directory: Path, target: dict[str, Any] | None, *figures: Any) -> Measured:
    config = read_json(directory / "config.json")
    config["arguments"] = arguments_of(config)
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    history = tuple(parse_json(line) for line in lines)
    if not (config_is_sane(config) and history_is_sane(history)):
        raise ValueError("it cannot be shown")
    settings = {key: value for key, value in config["arguments"].items() if key not in BESIDE}
    if (start := config["arguments"].get("init")) is not None:  # earlier runs do not say how it was trained
        settings["init_method"] = settings.get("init_method") or start
    if config.get("changes"):
        settings["changes"] = "; ".join(config["changes"])
    if settings.get("teacher_checkpoint") is not None:
        settings["teacher_checkpoint"] = "a run"  # of its own for each seed, as labellers are
    if settings.get("labels") is not None:
        settings["labels"] = Path(settings["labels"]).name
    if target_of(settings) is None:
        raise ValueError("no target is named")
    seed, earlier = config["arguments"]["seed"], config["arguments"].get("earlier_networks")
    run = Measured(directory.name, seed, settings, config, (directory / LAST,), target, *figures, history=history,
                   seconds=history[-1].get("seconds") if history else None,
                   earlier=None if earlier is None else tuple(map(str, earlier)))  # fmt: skip
    _ = Experiment([run]).method, Experiment([run]).setting()
    return run


def read_evaluations(path: Path, note: Callable[[str], None]) -> list[Measured]:
    """Of eval.py's figures, those that no run has itself: AdaBN's, and means of several networks. What is no such
    figure of a last checkpoint on the target's val set is named by `note` and left out. Raises `UserError`."""
    try:
        records = read_json(path)["evaluations"]
        found = [_evaluation(record, path, note) for record in records]
    except DAMAGED:
        raise UserError(f"{path}: neither figures of eval.py nor of measure_flops.py, or damaged") from None
    return [one for one in found if one is not None]


def _evaluation(record: dict[str, Any], path: Path, note: Callable[[str], None]) -> Measured | None:
    several = isinstance(record["checkpoint"], list)
    checkpoints = tuple(Path(file) for file in (record["checkpoint"] if several else [record["checkpoint"]]))
    if not several and not record["adapt_bn"]:
        return None  # the run says so itself
    where = f"{path}, {record['name']}"
    if not record["data"].endswith(" val"):
        return note(f"{where}: measured on {record['data']}, not on the target's val set")
    if any(file.name == BEST for file in checkpoints):
        return note(f"{where}: of an epoch that was chosen by the target's labels (an oracle)")
    try:
        runs = [read_run(file.parent) for file in checkpoints]
    except UserError as error:
        return note(f"{where}: its run cannot be read ({error})")
    if any(run.target["pictures"] != record["pictures"] for run in runs):
        return note(f"{where}: measured on other pictures than its run")
    read = record.get("read", {})
    if not all(same_data(run.config["data"].get(name), found) for run in runs for name, found in read.items()):
        return note(f"{where}: measured on other pictures than its run, or by labels read in another way")
    if not several and record["step"] != runs[0].target["step"]:
        return note(f"{where}: of step {record['step']}, and its run went on to step {runs[0].target['step']}")
    if (misfit := _misfit(record, runs, checkpoints)) is not None:
        return note(f"{where}: {misfit}")
    if record.get("precision", "fp32") != "fp32":
        return note(f"{where}: measured in {record['precision']}, where runs measure themselves in fp32")
    target = {key: record[key] for key in (*TARGET, *means_in([record]))}
    square = confusion_is_sane(record.get("confusion"), len(target["iou"]))
    if not (figures_are_sane(target, runs[0].target["iou"]) and square and isinstance(record["name"], str)):
        raise ValueError("figures out of range")
    first, seeds = runs[0], {run.seed for run in runs}
    settings = {k: v for k, v in first.settings.items() if all(run.settings.get(k) == v for run in runs)}
    known = [run.earlier for run in runs if run.earlier is not None]
    return Measured(
        record["name"], first.seed if len(seeds) == 1 else None, settings if several else first.settings, first.config,
        checkpoints, target, confusion=record.get("confusion"), adapt_bn=record["adapt_bn"],
        members=tuple(sorted(method_name(run.settings) for run in runs)) if several else (),
        earlier=tuple(sorted({name for one in known for name in one})) if len(known) == len(runs) else None,
    )  # fmt: skip


def _misfit(record: dict[str, Any], runs: Sequence[Measured], checkpoints: Sequence[Path]) -> str | None:
    """Of which other network, size or train pictures an evaluation was than these runs and their checkpoints are, in
    words; None where it was of none. Earlier records do not say, and a checkpoint may have been taken away since."""
    if "sha256" not in record:
        return None
    size, several = _by(record["size"]), isinstance(record["checkpoint"], list)
    digests, adapted = ((record[key] if several else [record[key]]) for key in ("sha256", "adapted_on"))
    for run, file, digest, train in zip(runs, checkpoints, digests, adapted, strict=True):
        arguments = run.config["arguments"]
        try:
            if is_there(file) and sha256(file) != digest:
                return f"of another network than {file} holds now"
        except UserError as error:
            return f"its network cannot be compared ({error})"
        if size != _by(arguments["size"]):
            return f"measured at {size}, where its run measures itself at {_by(arguments['size'])}"
        if train is not None and not _same_pictures(train, run.config):
            return f"adapted to other train pictures than its run's ({train['pictures']} of them)"
    return None


def _same_pictures(train: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether AdaBN's pictures, as eval.py records them, are the run's. One that did not adapt has not read the
    target's train set, and says only what its --limit is; one that read its labels may have another order."""
    seen = config["data"].get(train["data"])
    if seen is None:
        return train["limit"] == config["arguments"].get("limit")
    compared = "names" if seen["labels"] == train["labels"] else "pictures"
    return train[compared] == seen[compared]


def _by(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)


def experiments(runs: Sequence[Measured]) -> list[Experiment]:
    """Runs grouped, in the order of their first; each labelled by its method and what tells it from the others."""
    runs = _at_common_roots(runs)
    known: dict[str, set[tuple[str, ...]]] = {}
    for run in runs:
        known.setdefault(run.key, set()).update(() if run.earlier is None else [run.earlier])
    groups: dict[tuple[str, tuple[str, ...] | None], Experiment] = {}
    for run in runs:  # those that do not say belong to the others, unless these are of several kinds
        kind = run.earlier if len(known[run.key]) > 1 else None
        groups.setdefault((run.key, kind), Experiment()).runs.append(run)
    found = list(groups.values())
    labels = told_apart(found, lambda e: e.method)
    for place, (experiment, label) in enumerate(zip(found, labels, strict=True)):
        before = labels[:place].count(label)  # what differs has no name: other pictures of one set's name, for example
        experiment.label = f"{label} ({before + 1})" if before else label
    return found


def _at_common_roots(runs: Sequence[Measured]) -> list[Measured]:
    """The runs, with one path for a data set that lay in several places: a cluster's jobs unpack it anew."""
    roots: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    named = []
    for run in runs:
        settings = dict(run.settings)
        for key, domain in (SOURCES | TARGETS).items():
            titles = (domain.title, f"{domain.title} train", f"{domain.title} val")
            own = {name: found for name, found in (run.config.get("data") or {}).items() if name in titles}
            if settings.get(key) is not None and own:
                known = roots.setdefault(key, [])
                root = next((root for root, other in known if _one_set(own, other)), settings[key])
                known.append((root, own))
                settings[key] = root
        named.append(replace(run, settings=settings))
    return named


def _one_set(own: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs read the same pictures and labels of a data set, of all parts that both read."""
    shared = own.keys() & other.keys()
    alike = (
        same_data(own[name], other[name])
        if own[name].get("labels") == other[name].get("labels")
        else own[name].get("pictures") == other[name].get("pictures")  # one of them did not look at the labels
        for name in shared
    )
    return bool(shared) and all(alike)


def told_apart(experiments: Sequence[Experiment], short: Callable[[Experiment], str]) -> list[str]:
    """Each experiment's short name, with the settings that tell it from others of that name: where it has another
    value than most of them, or, without a majority, than none and off; with the earlier networks where these alone
    differ."""
    named = []
    for own in experiments:
        alike = [other.settings for other in experiments if short(other) == short(own)]
        keys = dict.fromkeys(key for settings in alike for key in settings)
        differing = [key for key in keys if not _usual(own.settings.get(key), [s.get(key) for s in alike])]
        named.append(" ".join([short(own), *(f"{key}={in_short(own.settings.get(key))}" for key in differing)]))
    kinds: dict[str, set[tuple[str, ...]]] = {}
    for own, name in zip(experiments, named, strict=True):
        kinds.setdefault(name, set()).add(own.earlier)
    named = [
        f"{name}, {'; '.join(own.earlier)}" if own.earlier and len(kinds[name]) > 1 else name
        for own, name in zip(experiments, named, strict=True)
    ]
    return ["".join(letter if letter.isprintable() else "?" for letter in name) for name in named]


def _usual(value: Any, values: Sequence[Any]) -> bool:
    """Whether it is what most have; without a majority, whether it is none or off."""
    if 2 * max(map(values.count, values)) > len(values):
        return 2 * values.count(value) > len(values)
    return value is None or value is False
