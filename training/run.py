"""A run: its directory, its seeds, its steps, what it logs, and how it goes on after an interruption.

    config.json          arguments, versions, commit, data, what an epoch is
    metrics.jsonl        one line an evaluated epoch
    checkpoint_last.pt   the newest checkpoint: the headline of the run, and what --resume reads (while the run lasts
                         checkpoint_previous.pt is the one before it, should the newest be damaged)
    checkpoint_best.pt   the best epoch by the target's labels: an oracle, never the headline
    result.json          written at the end, and beside it model_card.md
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
from collections.abc import Iterator
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
from datasets.appearance import to_float
from datasets.geometry import Geometry
from datasets.labels import CLASS_NAMES
from datasets.pictures import panel, row
from datasets.prepared import prepared
from datasets.rare_classes import RareClasses
from datasets.stream import Share, TrainingStream, batches, evaluation_loader, training_loader
from utils.distributed import first_then_others, from_each, from_first, highest, rank, ranks, share_buffers
from utils.errors import UserError
from utils.files import write_atomically, write_json
from utils.interruption import Interruption, Stop, worker_signals
from utils.tables import percent, result_tables

from .bad_samples import BadSamples
from .board import dense, log_arguments, narrow, pictured
from .checkpoint import BEST, LAST, PREVIOUS, load_newest, save_checkpoint, start_from
from .evaluation import evaluate, predict
from .gradients import Gradients, compiled
from .lock import DirectoryLock
from .model_card import NAME as MODEL_CARD
from .model_card import model_card
from .provenance import commit, device_name, fingerprint, versions
from .resumption import changes, move_to, used
from .scalars import Scalars

DEFAULT_EPOCHS = 50

READ_EVERY = 10
"""Steps between two readings of the losses: each reading waits for the device."""

EXAMPLES = 3
"""Target pictures shown in TensorBoard at every evaluation, always the same."""


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
        self.confusion: dict[str, list[list[int]]] = {}  # of the last evaluation, by set
        self._kept: dict[str, Any] = {}
        self._scalars = Scalars()
        self._epoch_losses: dict[str, list[float]] = {}
        self._latest: list[Any] = [0, {}]  # the last step whose scalars are on the board, and they
        self.gradients = Gradients(args.precision, args.accumulate, self.device, self.log)
        self._streams: list[TrainingStream] = []
        self._evaluated: dict[str, SegmentationSet] = {}
        self._bad = BadSamples(args.run_dir, args.max_bad_share)
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
            "ranks": ranks(),
        }
        self.directory = args.run_dir
        self._lock: DirectoryLock | None = None  # rank 0's, who alone writes
        self._begun = from_first(args.resume and (self.directory / "config.json").exists())
        if self._begun or rank() == 0:
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
            path = directory / "config.json"
            self._changes, earlier = changes(path, self.config, self.device, self.args.allow_changes)
            self.config["changes"] = [*earlier, *self._changes]  # kept with the first checkpoint made under them
        elif used(directory):
            raise UserError(
                f"--run-dir {directory} holds a run already; --resume goes on with it, another --run-dir starts anew"
                if started
                else f"--run-dir {directory} is not empty and holds no run; name another"
            )

    def _open_directory(self) -> None:
        """Once everything is built, so that a mistake in a flag leaves no directory behind."""
        if rank() > 0:
            return
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

    def restore(self, model: nn.Module, **others: Any) -> None:
        """Names what checkpoints keep (`model` is the deployed network; others have state_dict) and, with --resume,
        brings all of it back; else, with --init, starts the network from another run's."""
        if self.gradients.scaler.is_enabled():
            others["scaler"] = self.gradients.scaler
        self._kept = {"model": model, **others}
        if not self._begun and self.args.init is not None:
            start_from(model, self.args.init)
        with first_then_others():
            self._open_directory()
        checkpoint = load_newest(self.directory) if self._begun else None
        if checkpoint is not None:
            self._load(checkpoint)
        elif self._begun and self.args.init is not None:
            start_from(model, self.args.init)
        for name, part in others.items():
            if isinstance(part, Optimizer):
                self.gradients.watch(name, part)
        for part in (model, *others.values()) if self.args.compile else ():
            if isinstance(part, nn.Module):
                compiled(part)
        # Figures of an evaluation that was cut off may be there at this step: they go, with the step's own scalars.
        cut_off = self._begun and self.closed < self.epoch and self.step == self._end_of_epoch()
        purge = self.step + (0 if cut_off else 1) if self._begun else None
        self.board = SummaryWriter(self.directory / "tensorboard", purge_step=purge) if rank() == 0 else _NoBoard()
        if cut_off and self._latest[0] == self.step:
            for tag, value in self._latest[1].items():
                self.board.add_scalar(tag, value, self.step)
        self._interruption.listen()
        if rank() == 0:
            log_arguments(self.board, self.config["arguments"])
        self._saved = time.monotonic()

    def _load(self, checkpoint: dict[str, Any]) -> None:
        """Everything as the checkpoint has it; with --allow-changes rates and the like as the arguments have them."""
        others = {name: part for name, part in self._kept.items() if name != "model"}
        try:
            self._kept["model"].load_state_dict(checkpoint["weights"])
            for name, part in others.items():
                asked = [dict(group) for group in part.param_groups] if isinstance(part, Optimizer) else []
                if self._changes and isinstance(part, LRScheduler):
                    continue
                part.load_state_dict(checkpoint["training"][name])
                for group, settings in zip(part.param_groups if asked else [], asked, strict=True):
                    taken = settings if self._changes else {"fused": settings["fused"]}  # the device's, not the run's
                    group.update({key: value for key, value in taken.items() if key != "params"})
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.directory}: its checkpoint does not fit this run ({error})") from None
        self.step, self.epoch, self.closed = checkpoint["step"], checkpoint["epoch"], checkpoint["closed"]
        self.history, self.best = checkpoint["history"], checkpoint["best"]
        self._epoch_losses, self._bad.problems = checkpoint["epoch_losses"], checkpoint["bad_samples"]
        self._latest = checkpoint.get("latest", [0, {}])
        self.confusion = checkpoint.get("confusion", {})  # checkpoints of before had none
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
                    move_to(part, self.step)
        self._write_history()
        print(f"goes on after step {self.step}, epoch {self.epoch}")

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
        """On all ranks at once. Raises `UserError` for a loss that is not finite, so that what is kept is good."""
        self._read_losses()
        self._saved = time.monotonic()
        if rank() > 0:
            self._changes = []
            return
        self.board.flush()  # what is logged and what is kept end at the same step
        content = self._content()
        if best:
            save_checkpoint(self.directory / BEST, content)
        training = {name: part.state_dict() for name, part in self._kept.items() if name != "model"}
        content |= {"training": training, "history": self.history, "best": self.best}
        content |= {"epoch_losses": self._epoch_losses, "bad_samples": self._bad.problems, "confusion": self.confusion}
        content["latest"] = self._latest
        save_checkpoint(self.directory / LAST, content, self.directory / PREVIOUS)
        if self._changes:
            write_json(self.directory / "config.json", self.config)
            self._changes = []
        self._write_history()

    def _write_history(self) -> None:
        if rank() > 0:
            return
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda file: file.write(lines.encode()))

    # Steps

    def stream(self, data: SegmentationSet, geometry: Geometry, rare: RareClasses | None = None) -> Iterator[Any]:
        """Batches of a training set from the run's present step to its last, as `datasets.stream` draws them: of each
        this rank's share, in --accumulate parts."""
        batch, number = self.args.batch_size, len(self._streams)
        skip = self.args.on_bad_sample == "skip"
        data = self._prepared(data, with_labels=True, skip=skip)
        stream = TrainingStream(data, geometry, self.args.seed, number, self.total_steps * batch, skip, rare)
        self._streams.append(stream)

        def draw() -> Iterator[Any]:
            pin = self.device.type == "cuda"
            share = Share(self.step * batch, len(stream), batch, rank(), ranks())
            part = batch // ranks() // self.args.accumulate
            loader = training_loader(stream, part, share, self.args.workers, pin, worker_signals)
            for drawn, problems in batches(loader):
                if problems:
                    self._bad.note(data, problems)
                yield drawn

        return draw()

    def _prepared(self, data: SegmentationSet, with_labels: bool, skip: bool = False) -> SegmentationSet:
        """The set read from prepared arrays: below --cache, or below the data's own root, or, where that cannot be
        written to, beside the run."""
        if self.args.no_cache:
            return data
        own = [place / ".prepared" for place in (data.root, self.args.root.parent) if place is not None]
        places = own if self.args.cache is None else [self.args.cache]
        with first_then_others():
            return prepared(data, places, self.args.workers, with_labels, skip, self.pause_within, worker_signals)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from 1; one that was interrupted is continued."""
        try:
            while self.closed * self.steps_per_epoch < self.total_steps:
                self.epoch = self.closed + 1
                yield self.epoch
                self.closed = self.epoch
        finally:
            self._interruption.close()
            self._release()
            self.board.close()

    def steps(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """The steps of one epoch: a batch of each stream, on the device (one stream: the batch itself); with
        --accumulate every step comes as so many parts of its batch.

        Shows the progress, and the share of the time that steps wait for data; raises `UserError` when a logged loss is
        not finite. Ends the process, with a checkpoint, when it is to stop.
        """
        first = (self.epoch - 1) * self.steps_per_epoch
        count = self._end_of_epoch() - self.step
        if self.step == first:
            self._epoch_losses = {}
        silent = True if rank() > 0 else None
        with tqdm(total=count, desc=f"epoch {self.epoch}", unit="step", disable=silent, leave=False) as bar:
            start, seen, waited = time.perf_counter(), 0, 0.0
            for position in range(count):
                self.pause()
                for part in range(self.args.accumulate):
                    asked = time.perf_counter()
                    batch = [_to(next(stream), self.device) for stream in streams]
                    waited += time.perf_counter() - asked
                    self.gradients.last_part = part + 1 == self.args.accumulate
                    seed_everything(self.args.seed, self.step + 1, rank(), part)
                    yield batch[0] if len(batch) == 1 else tuple(batch)
                self.gradients.step_done()
                self.step += 1
                seen += self.args.batch_size
                bar.update()
                if (self.step - first) % READ_EVERY == 0 or position + 1 == count:  # wherever the run was resumed
                    losses = self._read_losses()
                    passed = time.perf_counter() - start
                    shown = {k: f"{v:.3f}" for k, v in losses.items()} | {"rate": f"{self._rate():.1e}"}
                    speed = {"images/s": f"{seen / passed:.1f}", "waiting": f"{100 * waited / passed:.0f}%"}
                    bar.set_postfix(shown | speed)
                    self.board.add_scalar("speed/images_per_second", seen / passed, self.step)
                    self.board.add_scalar("speed/share_waiting_for_data", waited / passed, self.step)
                    self._scalar("train/rate", self._rate(), self.step)

    def pause(self) -> None:
        """Between two steps, on all ranks at once: is it time for a checkpoint, or to stop?"""
        self._touch()
        stop = self._interruption.stop()
        due = time.monotonic() - self._saved >= 60 * self.args.checkpoint_minutes and self.step > 0
        wanted = highest(2 if stop is not None else int(due))
        if wanted == 2:
            self._stop(next(found for found in from_each(stop) if found is not None))
        if wanted == 1:
            self._save()

    def pause_within(self) -> None:
        """Between two batches of anything long, which ranks do one by one: alone it is a `pause`."""
        if ranks() == 1:
            self.pause()
        else:
            self._touch()

    def _touch(self) -> None:
        if self._lock is not None:
            self._lock.touch()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _stop(self, stop: Stop) -> NoReturn:
        """Writes a checkpoint, says how to go on, ends the process."""
        self._save()
        self._interruption.close()
        self._release()
        again = [Path(sys.argv[0]).name, *sys.argv[1:], "--run-dir", str(self.args.root), "--resume"]
        start = "python" if ranks() == 1 else f"torchrun --nproc-per-node={ranks()}"
        print(
            f"{stop.reason} after step {self.step} of {self.total_steps}, in epoch {self.epoch}; a checkpoint is "
            f"written. Go on with: {start} {shlex.join(again)}",
            flush=True,
        )
        raise SystemExit(stop.status)

    def _rate(self) -> float:
        """The segmenter's present learning rate."""
        return self._kept["optimizer"].param_groups[0]["lr"]

    def log(self, **values: Tensor | float) -> None:
        """Notes scalars of this step; tensors are not read before the next reading."""
        self._scalars.add(self.step + 1, values)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        """To the board; those of the newest step are kept."""
        self.board.add_scalar(tag, value, step)
        if step > self._latest[0]:
            self._latest = [step, {}]
        if step == self._latest[0]:
            self._latest[1][tag] = value

    def _end_of_epoch(self) -> int:
        """The last step of the epoch in progress."""
        return min(self.epoch * self.steps_per_epoch, self.total_steps)

    def _read_losses(self) -> dict[str, float]:
        """On all ranks at once: writes what was logged since the last reading; gives the means. Raises `UserError` at
        what is not finite."""
        means, wrong = {}, []
        for name, read in self._scalars.read().items():
            for step, value in read.items():
                if dense(step):
                    self._scalar(f"train/{name}", value, step)
                if not math.isfinite(value):
                    wrong.append((step, name.startswith("gradient"), name, value))  # the loss is named first
            self._epoch_losses.setdefault(name, []).extend(read.values())
            means[name] = sum(read.values()) / len(read)
        self._bad.gather()
        if wrong:
            step, _, name, value = min(wrong, key=lambda found: found[:3])
            last = self.directory / LAST
            raise UserError(
                f"{name} is {value} at step {step} (epoch {self.epoch}), on {self._pictures(step)}: the run stops. "
                "Try a lower --lr; "
                + (f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet")
            )
        self.gradients.check_scale()
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
            share = (rank(), ranks())
            loader = evaluation_loader(self._evaluated[data.name], self.args.workers, worker_signals, share)
            watched = self._watched(batches(loader))
            share_buffers(networks[name])
            entry[name] = metrics = evaluate(networks[name], watched, self.device, CLASS_NAMES)
            self.confusion[name] = metrics.pop("confusion")  # too long for every line of metrics.jsonl
            for figure in ("accuracy", "miou", "mean_class_accuracy", "entropy"):
                if metrics[figure] is not None:
                    self.board.add_scalar(f"{name}/{figure}", metrics[figure], self.step)
        if self._pictured(self.args.eval_every):
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
            self.pause_within()
            yield batch

    @torch.no_grad()
    def _show_examples(self, model: nn.Module, data: SegmentationSet) -> None:
        if rank() > 0:
            return
        for index in np.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).astype(int).tolist():
            image, label = data[index]
            prediction = predict(model(to_float(image[None].to(self.device))), image.shape[-2:])
            image = (narrow(image.float()) + 0.5).byte()
            shown = panel(image, ([] if label is None else [("label", label)]) + [("prediction", prediction)])
            self.board.add_image(f"target/{index}", shown, self.step, dataformats="HWC")

    def _pictured(self, every: int = 1) -> bool:
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        return pictured(math.ceil(self.epoch / every), math.ceil(epochs / every))

    def show(self, tag: str, images: list[Tensor]) -> None:
        """Pictures float [3, H, W] and labels uint8 [H, W] side by side in TensorBoard; at an epoch's first step."""
        if self.step % self.steps_per_epoch == 0 and self._pictured():
            shown = [narrow(image.detach().float()) if image.ndim == 3 else image for image in images]
            self.board.add_image(tag, row(shown), self.step)

    def finish(self) -> None:
        """Writes result.json and prints the table row: the last checkpoint, and apart from it the oracle."""
        if rank() > 0:
            return
        last = self.history[-1]
        result = last["target"] | {
            "step": last["step"],
            "epoch": last["epoch"],
            "oracle": self.best and self.best["target"] | {"step": self.best["step"], "epoch": self.best["epoch"]},
            "source": last.get("source"),
            "confusion": self.confusion.get("target"),
            "script": self.args.script,
            "network": self._kept["model"].options,
            "seed": self.args.seed,
            "size": list(self.args.size),
            "commit": self.config["commit"],
        }
        card = model_card(self.config, result).encode()
        write_atomically(self.directory / MODEL_CARD, lambda file: file.write(card))
        write_json(self.directory / "result.json", result)
        (self.directory / PREVIOUS).unlink(missing_ok=True)
        rows = [(f"last (step {last['step']})", last["target"])]
        if self.best is not None:
            rows.append((f"oracle: best epoch by target labels ({self.best['epoch']})", self.best["target"]))
        if "source" in last:
            rows.append(("source, held out", last["source"]))
        print(f"\n{self.directory}: the headline is the last checkpoint\n")
        print(result_tables(rows))


def seed_everything(seed: int, step: int, rank: int = 0, part: int = 0) -> None:
    """Seeds Python, NumPy and torch (all devices) as a function of (seed, step), and of which share of a step's batch
    this is, where it is one of several."""
    which = (rank, part) if rank or part else ()
    mixed = int(np.random.SeedSequence((seed, step, *which)).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


class _NoBoard:
    """Takes what rank 0 writes to TensorBoard, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(part.to(device, non_blocking=True) for part in batch)


def _plain(value: Any) -> Any:
    """An argument as JSON gives it back."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
