"""A run: its directory, its seeds, its steps, what it logs, and how it goes on after an interruption.

    config.json          arguments, versions, commit, data, what an epoch is
    metrics.jsonl        one line an evaluated epoch
    checkpoint_last.pt   the newest checkpoint: the headline of the run, and what --resume reads
    checkpoint_best.pt   the best epoch by the target's labels: an oracle, never the headline
    result.json          written at the end
    tensorboard/         scalars and example pictures

Everything that is drawn in step k is a function of (seed, k): data by `datasets.stream`, and torch's, NumPy's and
Python's generators, which are seeded anew at every step. That is why a resumed run computes what an uninterrupted
one computes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets import SegmentationSet
from datasets.geometry import Geometry
from datasets.labels import CLASS_NAMES
from datasets.stream import TrainingStream, batches, evaluation_loader, training_loader
from models.layers import resize

from .appearance import to_float
from .checkpoint import load_checkpoint, save_checkpoint, start_from, write_atomically, write_json
from .errors import UserError
from .evaluation import evaluate, predict
from .pictures import panel
from .provenance import commit, device_name, fingerprint, versions
from .tables import percent, result_tables

DEFAULT_EPOCHS = 50

CACHE_BYTES = 2**31
"""Decoded pictures that a training stream keeps in memory, over all its workers (Cityscapes at 1024x512: a third)."""

READ_EVERY = 10
"""Steps between two readings of the losses: each reading waits for the device."""

EXAMPLES = 3
"""Target pictures shown in TensorBoard at every evaluation, always the same."""

FREE = {
    "resume",
    "no_cache",
    "run_dir",
    "workers",
    "device",
    "gta5",
    "cityscapes",
    "gta5_list",
    "cityscapes_list",
    "gta5_mapping",
    "labeller",
    "pseudo_labels",
}
"""Arguments that may change on --resume: they do not touch the mathematics (that the data are the same is checked,
and a labeller's content)."""


class Run:
    """One experiment's run. `epoch_of` is the set whose passes are the epochs; `others` are the other sets it reads."""

    def __init__(self, args: argparse.Namespace, epoch_of: SegmentationSet, *others: SegmentationSet) -> None:
        self.args, self.device = args, args.device
        self.steps_per_epoch = max(1, len(epoch_of) // args.batch_size)
        epochs = args.epochs or (sys.maxsize if args.max_steps else DEFAULT_EPOCHS)
        self.total_steps = min(epochs * self.steps_per_epoch, args.max_steps or sys.maxsize)
        self.step, self.epoch = 0, 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._kept: dict[str, Any] = {}
        self._losses: dict[str, Tensor] = {}
        self._epoch_losses: dict[str, list[float]] = {}
        self._streams = 0
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
        self.directory = args.run_dir or default_directory(args)
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
        if self.args.resume and started:
            self._compare_config(directory / "config.json")
        elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(
                f"--run-dir {directory} holds a run already; --resume goes on with it, another --run-dir starts anew"
                if started
                else f"--run-dir {directory} is not empty and holds no run; name another"
            )

    def _open_directory(self) -> None:
        """Once everything is built, so that a mistake in a flag leaves no directory behind."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--run-dir {self.directory}: cannot be made ({error.strerror})") from None
        if not (self.directory / "config.json").exists():
            write_json(self.directory / "config.json", self.config)
        self.board = SummaryWriter(self.directory / "tensorboard", purge_step=self.step + 1 if self.step else None)

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
        if changed:
            raise UserError(f"--resume {path.parent}: the run was started otherwise: {'; '.join(changed)}")

    def restore(self, model: nn.Module, **others: Any) -> None:
        """Names what checkpoints keep (`model` is the deployed network; others have state_dict) and, with --resume,
        brings all of it back; else, with --init, starts the network from another run's."""
        self._kept = {"model": model, **others}
        path = self.directory / "checkpoint_last.pt"
        if self.args.resume and path.exists():
            checkpoint = load_checkpoint(path)
            try:
                model.load_state_dict(checkpoint["weights"])
                for name, part in others.items():
                    part.load_state_dict(checkpoint["training"][name])
            except (KeyError, ValueError, RuntimeError) as error:
                raise UserError(f"{path}: does not fit this run ({error})") from None
            self.step, self.epoch = checkpoint["step"], checkpoint["epoch"]
            self.history, self.best = checkpoint["history"], checkpoint["best"]
            self._write_history()
            print(f"goes on after step {self.step}, epoch {self.epoch}")
        elif self.args.init is not None:
            start_from(model, self.args.init)
        self._open_directory()

    def _content(self) -> dict[str, Any]:
        model = self._kept["model"]
        return {
            "network": model.options,
            "weights": model.state_dict(),
            "class_names": list(CLASS_NAMES),
            "config": self.config,
            "step": self.step,
            "epoch": self.epoch,
            "metrics": self.history[-1] if self.history else None,
        }

    def _save(self) -> None:
        content = self._content()
        if self.best is not None and self.best["step"] == self.step:
            save_checkpoint(self.directory / "checkpoint_best.pt", content)
        training = {name: part.state_dict() for name, part in self._kept.items() if name != "model"}
        content |= {"training": training, "history": self.history, "best": self.best}
        save_checkpoint(self.directory / "checkpoint_last.pt", content)
        self._write_history()

    def _write_history(self) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.directory / "metrics.jsonl", lambda file: file.write(lines.encode()))

    # Steps

    def stream(self, data: SegmentationSet, geometry: Geometry) -> Iterator[Any]:
        """Batches of a training set from the run's present step to its last, as `datasets.stream` draws them."""
        number, self._streams = self._streams, self._streams + 1
        batch = self.args.batch_size

        def draw() -> Iterator[Any]:
            cache = 0 if self.args.no_cache else CACHE_BYTES // max(1, self.args.workers)
            stream = TrainingStream(data, geometry, self.args.seed, number, self.total_steps * batch, cache)
            pin = self.device.type == "cuda"
            yield from batches(training_loader(stream, batch, self.step * batch, self.args.workers, pin))

        return draw()

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from 1."""
        while self.step < self.total_steps:
            self.epoch += 1
            yield self.epoch
        self.board.close()

    def steps(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """The steps of one epoch: a batch of each stream, on the device (one stream: the batch itself).

        Shows the progress; raises `UserError` when a logged loss is not finite.
        """
        count = min(self.steps_per_epoch, self.total_steps - self.step)
        self._epoch_losses = {}
        with tqdm(total=count, desc=f"epoch {self.epoch}", unit="step", disable=None, leave=False) as bar:
            start, seen = time.perf_counter(), 0
            for position in range(count):
                batch = [_to(next(stream), self.device) for stream in streams]
                seed_everything(self.args.seed, self.step + 1)
                yield batch[0] if len(batch) == 1 else tuple(batch)
                self.step += 1
                seen += self.args.batch_size
                bar.update()
                if (position + 1) % READ_EVERY == 0 or position + 1 == count:
                    losses = self._read_losses()
                    rate = seen / (time.perf_counter() - start)
                    shown = {k: f"{v:.3f}" for k, v in losses.items()}
                    bar.set_postfix(shown | {"rate": f"{self._rate():.1e}", "images/s": f"{rate:.1f}"})
                    self.board.add_scalar("speed/images_per_second", rate, self.step)
                    self.board.add_scalar("train/rate", self._rate(), self.step)

    def _rate(self) -> float:
        """The segmenter's present learning rate."""
        return self._kept["optimizer"].param_groups[0]["lr"]

    def log(self, **values: Tensor | float) -> None:
        """Notes scalars of this step; tensors are not read before the next reading."""
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            self._losses.setdefault(name, []).append(value)

    def _read_losses(self) -> dict[str, float]:
        means = {}
        for name, values in self._losses.items():
            read = torch.stack(values).tolist()
            for offset, value in enumerate(read):
                if not math.isfinite(value):
                    step = self.step - len(read) + offset + 1
                    last = self.directory / "checkpoint_last.pt"
                    raise UserError(
                        f"{name} is {value} at step {step} (epoch {self.epoch}): the run stops. Try a lower --lr; "
                        + (f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet")
                    )
                self.board.add_scalar(f"train/{name}", value, self.step - len(read) + offset + 1)
            self._epoch_losses.setdefault(name, []).extend(read)
            means[name] = sum(read) / len(read)
        self._losses = {}
        return means

    # Evaluation and the end

    def evaluate(self, model: nn.Module, **sets: SegmentationSet | None) -> None:
        """At the end of an epoch: the figures on each set, `target` first among them; writes last and best."""
        done = self.step >= self.total_steps
        if self.epoch % self.args.eval_every and not done:
            return
        entry: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "rate": self._rate(),
            "train": {name: sum(values) / len(values) for name, values in self._epoch_losses.items()},
        }
        for name, data in sets.items():
            if data is None:
                continue
            loader = evaluation_loader(data, self.args.workers)
            entry[name] = metrics = evaluate(model, batches(loader), self.device, CLASS_NAMES)
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
        self._save()

    @torch.no_grad()
    def _show_examples(self, model: nn.Module, data: SegmentationSet) -> None:
        for index in np.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).astype(int).tolist():
            image, label = data[index]
            prediction = predict(model(to_float(image[None].to(self.device))), image.shape[-2:])
            shown = panel(image, ([] if label is None else [("label", label)]) + [("prediction", prediction)])
            self.board.add_image(f"target/{index}", shown, self.step, dataformats="HWC")

    def show(self, tag: str, images: list[Tensor]) -> None:
        """Pictures float [3, H, W] side by side in TensorBoard, clipped to [0, 1]; once an epoch, at its first step."""
        if self.step % self.steps_per_epoch == 0:
            size = images[0].shape[-2:]
            row = torch.cat([resize(image.detach().float().cpu()[None], size)[0].clamp(0, 1) for image in images], -1)
            self.board.add_image(tag, row, self.step)

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
        rows = [(f"last (step {last['step']})", last["target"])]
        if self.best is not None:
            rows.append((f"oracle: best epoch by target labels ({self.best['epoch']})", self.best["target"]))
        if "source" in last:
            rows.append(("source, held out", last["source"]))
        print(f"\n{self.directory}: the headline is the last checkpoint\n")
        print(result_tables(rows))


def default_directory(args: argparse.Namespace) -> Path:
    """Where a run goes that was given no --run-dir."""
    name = f"{args.script}-{args.model}-{args.backbone}-seed{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs", name)


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
