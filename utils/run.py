"""A run: its directory, its seeds, its steps, what it logs, and how it goes on after an interruption.

    config.json          arguments, versions, commit, data, what an epoch is
    metrics.jsonl        one line an evaluated epoch
    checkpoint_last.pt   the newest checkpoint: the headline of the run, and what --resume reads (while the run lasts
                         checkpoint_previous.pt is the one before it, should the newest be damaged)
    checkpoint_best.pt   the best epoch by the target's labels: an oracle, never the headline
    result.json          written at the end
    tensorboard/         scalars and example pictures

Everything that is drawn in step k is a function of (seed, k): data by `datasets.stream`, and torch's, NumPy's and
Python's generators, which are seeded anew at every step. That is why a resumed run computes what an uninterrupted
one computes, wherever it was interrupted: between two steps, or in the middle of an evaluation.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets import SegmentationSet
from datasets.geometry import Geometry
from datasets.labels import CLASS_NAMES
from datasets.prepared import prepared
from datasets.rare_classes import RareClasses
from datasets.stream import TrainingStream, batches, evaluation_loader, training_loader

from .appearance import to_float
from .checkpoint import BEST, LAST, PREVIOUS, load_newest, save_checkpoint, start_from, write_atomically, write_json
from .errors import UserError
from .evaluation import evaluate, predict
from .interruption import Interruption, Stop, worker_signals
from .lock import DirectoryLock
from .pictures import panel, row
from .provenance import commit, device_name, fingerprint, versions
from .tables import percent, result_tables

DEFAULT_EPOCHS = 50

READ_EVERY = 10
"""Steps between two readings of the losses: each reading waits for the device."""

EXAMPLES = 3
"""Target pictures shown in TensorBoard at every evaluation, always the same."""

FREE = {
    "root",
    "resume",
    "allow_changes",
    "checkpoint_minutes",
    "stop_after",
    "on_bad_sample",
    "max_bad_share",
    "no_cache",
    "cache",
    "run_dir",
    "workers",
    "device",
    "gta5",
    "cityscapes",
    "gta5_list",
    "cityscapes_list",
    "gta5_mapping",
    "labeller",
    "teacher_checkpoint",
    "pseudo_labels",
}
"""Arguments that may change on --resume: they do not touch the mathematics (that the data are the same is checked,
and a labeller's or teacher's content)."""


class Run:
    """One experiment's run. `epoch_of` is the set whose passes are the epochs; `others` are the other sets it reads."""

    def __init__(self, args: argparse.Namespace, epoch_of: SegmentationSet, *others: SegmentationSet) -> None:
        self.args, self.device = args, args.device
        self.steps_per_epoch = max(1, len(epoch_of) // args.batch_size)
        epochs = args.epochs or (sys.maxsize if args.max_steps else DEFAULT_EPOCHS)
        self.total_steps = min(epochs * self.steps_per_epoch, args.max_steps or sys.maxsize)
        self.step, self.epoch, self.closed = 0, 0, 0  # steps done, epoch in progress, epochs done and evaluated
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._kept: dict[str, Any] = {}
        self._losses: dict[str, Tensor] = {}
        self._epoch_losses: dict[str, list[float]] = {}
        self._streams: list[TrainingStream] = []
        self._evaluated: dict[str, SegmentationSet] = {}
        self._bad: dict[str, str] = {}
        self._interruption = Interruption(args.stop_after)
        self._saved = time.monotonic()
        self._changes: list[str] = []
        self.config = {
            "script": args.script,
            "arguments": {key: _plain(value) for key, value in vars(args).items()},
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            "data": {data.name: fingerprint(data) for data in (epoch_of, *others)},
            "versions": versions(),
            "commit": commit(),
            "device": device_name(self.device),
        }
        self.directory = args.run_dir
        self._begun = args.resume and (self.directory / "config.json").exists()
        self._refuse_another_run()
        seed_everything(args.seed, 0)
        print(
            f"run {self.directory}: {self.total_steps} steps of {args.batch_size}; an epoch is {self.steps_per_epoch} "
            f"steps, one pass over the {len(epoch_of)} pictures of {epoch_of.name} (the rest opens the next pass)"
        )

    # Directory, checkpoints, resumption

    def _refuse_another_run(self) -> None:
        """A directory is new, or empty, or this very run's and to be resumed."""
        directory, started = self.directory, (self.directory / "config.json").exists()
        if self._begun:
            self._compare_config(directory / "config.json")
        elif directory.exists() and (not directory.is_dir() or any(not _is_ours(path) for path in directory.iterdir())):
            raise UserError(
                f"--run-dir {directory} holds a run already; --resume goes on with it, another --run-dir starts anew"
                if started
                else f"--run-dir {directory} is not empty and holds no run; name another"
            )

    def _open_directory(self) -> None:
        """Once everything is built, so that a mistake in a flag leaves no directory behind."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(self.directory)
        except OSError as error:
            raise UserError(f"--run-dir {self.directory}: cannot be used ({error.strerror})") from None
        if not self._begun:
            self._refuse_another_run()  # another process may have been faster
        for left in self.directory.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
        if not self._begun:
            write_json(self.directory / "config.json", self.config)

    def _compare_config(self, path: Path) -> None:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            arguments, data = before["arguments"], before["data"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path}: damaged, the run cannot be compared with this command") from None
        now = self.config["arguments"]
        changed = [
            f"--{key.replace('_', '-')} was {arguments.get(key)}, is {now.get(key)}"
            for key in sorted(arguments.keys() | now.keys())
            if key not in FREE and arguments.get(key) != now.get(key)
        ]
        changed += [
            f"{name} holds other pictures, or its labels are read otherwise"
            for name, value in self.config["data"].items()
            if data.get(name) != value
        ]
        for what in ("commit", "versions"):
            if before.get(what) != self.config[what]:
                print(f"note: the run was started with another {what} ({before.get(what)})")
        if changed and not self.args.allow_changes:
            raise UserError(
                f"--resume {path.parent}: the run was started otherwise: {'; '.join(changed)}; --allow-changes goes on "
                "nevertheless, from the next step with what is asked for now"
            )
        for change in changed:
            print(f"note: {change}")
        self._changes = changed  # config.json says so from the first checkpoint on that was made under them
        self.config["changes"] = [*before.get("changes", []), *changed]

    def restore(self, model: nn.Module, **others: Any) -> None:
        """Names what checkpoints keep (`model` is the deployed network; others have state_dict) and, with --resume,
        brings all of it back; else, with --init, starts the network from another run's."""
        self._kept = {"model": model, **others}
        if not self._begun and self.args.init is not None:
            start_from(model, self.args.init)
        self._open_directory()
        checkpoint = load_newest(self.directory) if self._begun else None
        if checkpoint is not None:
            self._load(checkpoint)
        elif self._begun and self.args.init is not None:
            start_from(model, self.args.init)
        for name, part in others.items():
            if isinstance(part, Optimizer):
                self._watch_gradients(name, part)
        self.board = SummaryWriter(self.directory / "tensorboard", purge_step=self.step + 1 if self._begun else None)
        self._interruption.listen()
        self._saved = time.monotonic()

    def _load(self, checkpoint: dict[str, Any]) -> None:
        """Everything as the checkpoint has it; with --allow-changes rates and the like as the arguments have them."""
        others = {name: part for name, part in self._kept.items() if name != "model"}
        try:
            self._kept["model"].load_state_dict(checkpoint["weights"])
            for name, part in others.items():
                asked = [dict(group) for group in part.param_groups] if isinstance(part, Optimizer) else None
                if self._changes and isinstance(part, LRScheduler):
                    continue
                part.load_state_dict(checkpoint["training"][name])
                if self._changes and asked:
                    for group, settings in zip(part.param_groups, asked, strict=True):
                        group.update({key: value for key, value in settings.items() if key != "params"})
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.directory}: its checkpoint does not fit this run ({error})") from None
        self.step, self.epoch, self.closed = checkpoint["step"], checkpoint["epoch"], checkpoint["closed"]
        self.history, self.best = checkpoint["history"], checkpoint["best"]
        self._epoch_losses, self._bad = checkpoint["epoch_losses"], checkpoint["bad_samples"]
        if self.step >= self.total_steps:
            self.config["commit"] = checkpoint["config"]["commit"]  # nothing is left that this code could change
        if self._changes:
            if self.step > self.total_steps:
                raise UserError(
                    f"--resume {self.directory}: {self.step} steps are done already, more than the {self.total_steps} "
                    "asked for now"
                )
            evaluated = bool(self.history) and self.history[-1]["step"] == self.step
            # Another batch size or set makes other epochs; one whose evaluation is missing stays open.
            self.closed = (self.step if evaluated else max(0, self.step - 1)) // self.steps_per_epoch
            for part in others.values():
                if isinstance(part, LRScheduler):
                    _move_to(part, self.step)
        self._write_history()
        print(f"goes on after step {self.step}, epoch {self.epoch}")

    def _watch_gradients(self, name: str, optimizer: Optimizer) -> None:
        """Logs the norm of the gradients before every step; one that is not finite stops the run."""
        title = "gradient" if name == "optimizer" else f"gradient_{name.removesuffix('_optimizer')}"

        def norm(optimizer: Optimizer, *_: Any) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
            self.log(**{title: torch.linalg.vector_norm(norms)})

        optimizer.register_step_pre_hook(norm)

    def _content(self) -> dict[str, Any]:
        model = self._kept["model"]
        return {
            "network": model.options,
            "weights": model.state_dict(),
            "class_names": list(CLASS_NAMES),
            "config": self.config,
            "step": self.step,
            "epoch": self.epoch,
            "closed": self.closed,
            "metrics": self.history[-1] if self.history else None,
        }

    def _save(self, best: bool = False) -> None:
        """Raises `UserError` for a loss that is not finite, so that what is kept is good."""
        self._read_losses()
        self.board.flush()  # what is logged and what is kept end at the same step
        content = self._content()
        if best:
            save_checkpoint(self.directory / BEST, content)
        training = {name: part.state_dict() for name, part in self._kept.items() if name != "model"}
        content |= {"training": training, "history": self.history, "best": self.best}
        content |= {"epoch_losses": self._epoch_losses, "bad_samples": self._bad}
        save_checkpoint(self.directory / LAST, content, self.directory / PREVIOUS)
        if self._changes:
            write_json(self.directory / "config.json", self.config)
            self._changes = []
        self._write_history()
        self._saved = time.monotonic()

    def _write_history(self) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda file: file.write(lines.encode()))

    # Steps

    def stream(self, data: SegmentationSet, geometry: Geometry, rare: RareClasses | None = None) -> Iterator[Any]:
        """Batches of a training set from the run's present step to its last, as `datasets.stream` draws them."""
        batch, number = self.args.batch_size, len(self._streams)
        skip = self.args.on_bad_sample == "skip"
        data = self._prepared(data, with_labels=True, skip=skip)
        stream = TrainingStream(data, geometry, self.args.seed, number, self.total_steps * batch, skip, rare)
        self._streams.append(stream)

        def draw() -> Iterator[Any]:
            pin = self.device.type == "cuda"
            loader = training_loader(stream, batch, self.step * batch, self.args.workers, pin, worker_signals)
            for drawn, problems in batches(loader):
                if problems:
                    self._note_bad(data, problems)
                yield drawn

        return draw()

    def _prepared(self, data: SegmentationSet, with_labels: bool, skip: bool = False) -> SegmentationSet:
        """The set read from prepared arrays: below --cache, or below the data's own root, or, where that cannot be
        written to, beside the run."""
        if self.args.no_cache:
            return data
        own = [place / ".prepared" for place in (data.root, self.args.root.parent) if place is not None]
        places = own if self.args.cache is None else [self.args.cache]
        return prepared(data, places, self.args.workers, with_labels, skip, self.pause, worker_signals)

    def _note_bad(self, data: SegmentationSet, problems: dict[str, str]) -> None:
        """Lists pictures that were replaced; raises `UserError` when they are too many of their set."""
        found = {f"{data.name}: {name}": problem for name, problem in problems.items()}
        new = found.keys() - self._bad.keys()
        if not new:
            return
        for name in sorted(new):
            print(f"note: skipped {name} ({found[name]})")
        self._bad |= found
        lines = "".join(f"{name}\t{problem}\n" for name, problem in sorted(self._bad.items()))
        write_atomically(self.directory / "bad_samples.txt", lambda file: file.write(lines.encode()))
        bad = sum(name.startswith(f"{data.name}: ") for name in self._bad)
        if bad > self.args.max_bad_share * len(data):
            raise UserError(
                f"{bad} of {len(data)} pictures of {data.name} cannot be read, more than --max-bad-share "
                f"{self.args.max_bad_share:g}; they are listed in {self.directory / 'bad_samples.txt'}"
            )

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from 1; one that was interrupted is continued."""
        try:
            while self.closed * self.steps_per_epoch < self.total_steps:
                self.epoch = self.closed + 1
                yield self.epoch
                self.closed = self.epoch
        finally:
            self._interruption.close()
            self._lock.release()
            self.board.close()

    def steps(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """The steps of one epoch: a batch of each stream, on the device (one stream: the batch itself).

        Shows the progress; raises `UserError` when a logged loss is not finite. Ends the process, with a checkpoint,
        when it is to stop.
        """
        first = (self.epoch - 1) * self.steps_per_epoch
        count = min(first + self.steps_per_epoch, self.total_steps) - self.step
        if self.step == first:
            self._epoch_losses = {}
        with tqdm(total=count, desc=f"epoch {self.epoch}", unit="step", disable=None, leave=False) as bar:
            start, seen = time.perf_counter(), 0
            for position in range(count):
                self.pause()
                batch = [_to(next(stream), self.device) for stream in streams]
                seed_everything(self.args.seed, self.step + 1)
                yield batch[0] if len(batch) == 1 else tuple(batch)
                self.step += 1
                seen += self.args.batch_size
                bar.update()
                if (self.step - first) % READ_EVERY == 0 or position + 1 == count:  # wherever the run was resumed
                    losses = self._read_losses()
                    rate = seen / (time.perf_counter() - start)
                    shown = {k: f"{v:.3f}" for k, v in losses.items()}
                    bar.set_postfix(shown | {"rate": f"{self._rate():.1e}", "images/s": f"{rate:.1f}"})
                    self.board.add_scalar("speed/images_per_second", rate, self.step)
                    self.board.add_scalar("train/rate", self._rate(), self.step)

    def pause(self) -> None:
        """Between two steps, and between two batches of anything long: is it time for a checkpoint, or to stop?"""
        self._lock.touch()
        stop = self._interruption.stop()
        if stop is not None:
            self._stop(stop)
        minutes = self.args.checkpoint_minutes
        if time.monotonic() - self._saved >= 60 * minutes and self.step > 0:
            self._save()

    def _stop(self, stop: Stop) -> NoReturn:
        """Writes a checkpoint, says how to go on, ends the process."""
        self._save()
        self._interruption.close()
        self._lock.release()
        again = [Path(sys.argv[0]).name, *sys.argv[1:], "--run-dir", str(self.args.root), "--resume"]
        print(
            f"{stop.reason} after step {self.step} of {self.total_steps}, in epoch {self.epoch}; a checkpoint is "
            f"written. Go on with: python {shlex.join(again)}",
            flush=True,
        )
        raise SystemExit(stop.status)

    def _rate(self) -> float:
        """The segmenter's present learning rate."""
        return self._kept["optimizer"].param_groups[0]["lr"]

    def log(self, **values: Tensor | float) -> None:
        """Notes scalars of this step; tensors are not read before the next reading."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            self._losses.setdefault(name, []).append(value)

    def _read_losses(self) -> dict[str, float]:
        """Writes what was logged since the last reading; gives the means. Raises `UserError` at what is not finite."""
        means, wrong = {}, []
        for name, values in self._losses.items():
            read = torch.stack(values).tolist()
            for step, value in enumerate(read, start=self.step - len(read) + 1):
                self.board.add_scalar(f"train/{name}", value, step)
                if not math.isfinite(value):
                    wrong.append((step, name.startswith("gradient"), name, value))  # the loss is named first
            self._epoch_losses.setdefault(name, []).extend(read)
            means[name] = sum(read) / len(read)
        if wrong:
            step, _, name, value = min(wrong, key=lambda found: found[:3])
            last = self.directory / LAST
            raise UserError(
                f"{name} is {value} at step {step} (epoch {self.epoch}), on {self._pictures(step)}: the run stops. "
                "Try a lower --lr; "
                + (f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet")
            )
        self._losses = {}
        return means

    def _pictures(self, step: int) -> str:
        """What the batch of a step (from 1) was drawn from, by name."""
        batch = self.args.batch_size
        draws = range((step - 1) * batch, step * batch)
        return "; ".join(
            f"{stream.data.name} " + ", ".join(stream.data.samples[stream.index(draw)].name for draw in draws)
            for stream in self._streams
        )

    # Evaluation and the end

    def evaluate(
        self, model: nn.Module, beside: dict[str, nn.Module] | None = None, **sets: SegmentationSet | None
    ) -> None:
        """At the end of an epoch: the figures on each set, `target` first among them; writes last and best.

        beside: networks that are not the headline, evaluated on the target under their own name.
        """
        done = self.step >= self.total_steps
        self.pause()
        if self.epoch % self.args.eval_every and not done:
            return
        entry: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "rate": self._rate(),
            "train": {name: sum(values) / len(values) for name, values in self._epoch_losses.items()},
        }
        networks = dict.fromkeys(sets, model) | (beside or {})
        sets = sets | dict.fromkeys(beside or {}, sets["target"])
        for name, data in sets.items():
            if data is None:
                continue
            if data.name not in self._evaluated:
                self._evaluated[data.name] = self._prepared(data, with_labels=False)  # labels stay at their own size
            loader = evaluation_loader(self._evaluated[data.name], self.args.workers, worker_signals)
            watched = self._watched(batches(loader))
            entry[name] = metrics = evaluate(networks[name], watched, self.device, CLASS_NAMES)
            for figure in ("accuracy", "miou", "mean_class_accuracy", "entropy"):
                if metrics[figure] is not None:
                    self.board.add_scalar(f"{name}/{figure}", metrics[figure], self.step)
        self._show_examples(model, sets["target"])
        self.history.append(entry)
        target = entry["target"]
        if target["miou"] is not None and (self.best is None or target["miou"] > self.best["target"]["miou"]):
            self.best = entry
        shown = ", ".join(f"{k} {v:.3f}" for k, v in entry["train"].items())
        figures = ", ".join(
            f"{name} mIoU {percent(entry[name]['miou'])} entropy {entry[name]['entropy']:.3f}"
            for name in sets
            if name in entry
        )
        print(f"epoch {self.epoch}, step {self.step}/{self.total_steps}: {shown}; {figures}", flush=True)
        self.closed = self.epoch
        self._save(best=self.best is entry)

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.pause()
            yield batch

    @torch.no_grad()
    def _show_examples(self, model: nn.Module, data: SegmentationSet) -> None:
        for index in np.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).astype(int).tolist():
            image, label = data[index]
            prediction = predict(model(to_float(image[None].to(self.device))), image.shape[-2:])
            shown = panel(image, ([] if label is None else [("label", label)]) + [("prediction", prediction)])
            self.board.add_image(f"target/{index}", shown, self.step, dataformats="HWC")

    def show(self, tag: str, images: list[Tensor]) -> None:
        """Pictures float [3, H, W] and labels uint8 [H, W] side by side in TensorBoard; once an epoch, at its first
        step."""
        if self.step % self.steps_per_epoch == 0:
            self.board.add_image(tag, row(images), self.step)

    def finish(self) -> None:
        """Writes result.json and prints the table row: the last checkpoint, and apart from it the oracle."""
        last = self.history[-1]
        result = last["target"] | {
            "step": last["step"],
            "epoch": last["epoch"],
            "oracle": self.best and self.best["target"] | {"step": self.best["step"], "epoch": self.best["epoch"]},
            "source": last.get("source"),
            "script": self.args.script,
            "network": self._kept["model"].options,
            "seed": self.args.seed,
            "size": list(self.args.size),
            "commit": self.config["commit"],
        }
        write_json(self.directory / "result.json", result)
        (self.directory / PREVIOUS).unlink(missing_ok=True)
        rows = [(f"last (step {last['step']})", last["target"])]
        if self.best is not None:
            rows.append((f"oracle: best epoch by target labels ({self.best['epoch']})", self.best["target"]))
        if "source" in last:
            rows.append(("source, held out", last["source"]))
        print(f"\n{self.directory}: the headline is the last checkpoint\n")
        print(result_tables(rows))


def refuse_used(directories: Sequence[Path]) -> None:
    """For scripts of several runs: raises `UserError` before the first when a later one's directory is not empty."""
    for directory in directories:
        if directory.exists() and (not directory.is_dir() or any(not _is_ours(path) for path in directory.iterdir())):
            raise UserError(f"{directory} is not empty; --resume goes on with a run, another --run-dir starts anew")


def _is_ours(path: Path) -> bool:
    """What a process that was killed at its start leaves behind."""
    return path.name == ".lock" or (path.name.startswith(".") and path.suffix == ".tmp")


def _move_to(schedule: LRScheduler, step: int) -> None:
    """Where the schedule would be after that many steps."""
    schedule.last_epoch = step
    schedule._last_lr = schedule._get_closed_form_lr()
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def seed_everything(seed: int, step: int) -> None:
    """Seeds Python, NumPy and torch (all devices) as a function of (seed, step)."""
    mixed = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(part.to(device, non_blocking=True) for part in batch)


def _plain(value: Any) -> Any:
    """An argument as JSON gives it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
