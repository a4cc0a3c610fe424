"""A run: what a training script calls, from its first step to its result, through any number of interruptions.

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
import random
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets import SegmentationSet
from datasets.domains import protocol_of
from datasets.geometry import Geometry
from datasets.rare_classes import RareClasses
from datasets.segmentation import shared_classes
from utils.distributed import first_then_others, from_each, highest, note_parts, rank, ranks
from utils.errors import UserError
from utils.files import is_there
from utils.interruption import Interruption, Stop
from utils.tables import counted

from .archive import Archive, numbered
from .bad_samples import BadSamples
from .checkpoint import start_from
from .console import ProgressBar
from .directory import DirectoryClaim
from .evaluator import Evaluator
from .gradients import Gradients, compiled
from .journal import Journal, oracle
from .methods import earlier_networks, trained_as
from .preparation import Preparation
from .progress import Progress
from .provenance import configuration
from .result import result_text, withdraw_result, write_result
from .streams import Streams


class Run:
    """One experiment's run: its steps and epochs, when it pauses, and how it stops.

    `epoch_of` is the set whose passes are the epochs; `others` are the other sets it reads. What the run keeps, says
    and measures is the work of its `archive`, `journal` and `evaluator`; `gradients` leads from a loss to a step.
    """

    def __init__(self, args: argparse.Namespace, epoch_of: SegmentationSet, *others: SegmentationSet) -> None:
        self.directory, self.device = args.run_dir, args.device
        self.classes = shared_classes(epoch_of, *others)
        self._seed, self._batch_size, self._accumulate = args.seed, args.batch_size, args.accumulate
        self._eval_every, self._checkpoint_minutes = args.eval_every, args.checkpoint_minutes
        self._init, self._compile, self._root = args.init, args.compile, args.root
        self.progress = Progress.planned(len(epoch_of), args.batch_size, args.epochs, args.max_steps)
        args.init_method = None if args.init is None or not is_there(args.init) else trained_as(args.init)
        args.earlier_networks = earlier_networks(vars(args))
        self.config = configuration(vars(args), self.progress, (epoch_of, *others), self.device)
        self.gradients = Gradients(args.precision, args.accumulate, self.device, self.log)
        self._bad = BadSamples(self.directory, args.max_bad_share)
        prepare = Preparation(args.cache, args.root.parent, args.no_cache, args.workers, self.pause)
        self._streams = Streams(
            self.progress, prepare, self._bad, batch_size=args.batch_size, accumulate=args.accumulate, seed=args.seed,
            skip=args.on_bad_sample == "skip", workers=args.workers, device=self.device,
        )  # fmt: skip
        self.journal = Journal(self.directory, self.progress, self._streams.pictures, self.device)
        protocol = protocol_of(vars(args))
        self.evaluator = Evaluator(prepare, args.workers, self.device, self.classes, self.pause, protocol)
        kept = (self.journal, self._bad, self.evaluator)
        self.archive = Archive(self.directory, self.config, self.classes, self.progress, kept)
        self._interruption = Interruption(args.stop_after)
        self._claim = DirectoryClaim(self.directory, self.config, args.resume, args.allow_changes, self.device)
        seed_everything(args.seed, 0)
        one_pass = "about one pass over" if len(epoch_of) % args.batch_size else "one pass over"
        if len(epoch_of.parts) > 1:
            one_pass = "as many draws in turn as there are pictures in"
        elif getattr(args, "intra", None) is not None:
            one_pass = "as many draws of each half as there are pictures in"
        print(
            f"run {self.directory}: {counted(self.total_steps, 'step')} with batch size {args.batch_size}; an epoch is "
            f"{counted(self.progress.steps_per_epoch, 'step')}, {one_pass} {epoch_of.name} "
            f"({counted(len(epoch_of), 'picture')})"
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.progress.total_steps

    def restore(self, model: nn.Module, init: Path | None = None, **parts: Any) -> None:
        """Names what checkpoints keep: `model`, the deployed network, and everything else that has a state_dict; a
        list's members are `numbered`. With --resume all of it is brought back. A new run's network starts from
        another run's checkpoint, where --init or `init` names one.
        """
        parts, init = numbered(parts), init or self._init
        if self.gradients.scaler.is_enabled():
            parts["scaler"] = self.gradients.scaler
        self.archive.hold(model, parts)
        resumed = self._claim.resumed
        if init is not None and not resumed:
            start_from(model, init, self.classes)
        with first_then_others():
            if not resumed:
                self.archive.require_room()
            self._claim.open()
        try:
            if resumed and not self.archive.restore(self._claim.goes_on_changed) and init is not None:
                start_from(model, init, self.classes)  # it was interrupted before its first checkpoint
        except UserError:
            self._claim.release()
            raise
        for name, part in parts.items():
            if isinstance(part, Optimizer):
                self.gradients.watch(name, part)
        for part in (model, *parts.values()) if self._compile else ():
            if isinstance(part, nn.Module):
                compiled(part)
        self._interruption.listen()
        self.journal.open(resumed, self.config["arguments"])

    def stream(
        self, data: SegmentationSet, geometry: Geometry, rare: RareClasses | None = None, pictures: int | None = None
    ) -> Iterator[Any]:
        """Batches of a training set for `steps`, from the present step to the run's last; of so many `pictures`, where
        it is not the run's batch size."""
        return self._streams.add(data, geometry, rare, pictures)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from 1; one that was interrupted is continued."""
        try:
            while not self.progress.all_closed:
                self.progress.epoch = self.progress.closed + 1
                yield self.progress.epoch
                self.progress.closed = self.progress.epoch
        finally:
            self._interruption.close()
            self._claim.release()
            self.journal.board.close()

    def steps(self, *streams: Iterator[Any]) -> Iterator[Any]:
        """The steps of one epoch: a batch of each stream, on the device (one stream: the batch itself); with
        --accumulate every step comes as so many parts of its batch.

        Shows the progress, and the share of the time that steps wait for data; raises `UserError` when a logged loss is
        not finite. Ends the process, with a checkpoint, when it is to stop.
        """
        progress = self.progress
        if progress.step == progress.first_step:
            self.journal.begin_epoch()
        with ProgressBar(progress, self.device) as bar:
            while progress.step < progress.last_step:
                self.pause()
                with bar.waiting():
                    parts = [[next(stream) for stream in streams] for _ in range(self._accumulate)]
                by_stream = zip(*parts, strict=True)
                note_parts([part[1] for part in own] for own in by_stream if isinstance(own[0], tuple))
                for part, batch in enumerate(parts):
                    self.gradients.last_part = part + 1 == self._accumulate
                    seed_everything(self._seed, progress.step + 1, rank(), part)
                    yield batch[0] if len(batch) == 1 else tuple(batch)
                self.gradients.step_done()
                progress.step += 1
                bar.step_done(self._batch_size)
                if self.journal.reads_at(progress.step):
                    self.journal.pace(bar, self._read(), self._rate())
                bar.say()

    def log(self, **values: Tensor | float) -> None:
        """Notes scalars of this step; tensors are not read before the next reading."""
        self.journal.note(self.step + 1, values)

    def show(self, tag: str, images: list[Tensor]) -> None:
        """Pictures float [3, H, W] and labels uint8 [H, W] side by side in TensorBoard; at an epoch's first step."""
        first = self.step % self.progress.steps_per_epoch == 0 and self.gradients.last_part  # of one part of a batch
        if first and self.journal.is_pictured():
            self.journal.show(tag, images, self.classes)

    def evaluate(
        self, model: nn.Module, beside: dict[str, nn.Module] | None = None, **sets: SegmentationSet | None
    ) -> None:
        """At the end of an epoch: the figures on each set, `target` first among them; writes last and best.

        beside: networks that are not the headline, evaluated on the target under their own name.
        """
        self.pause()
        if self.progress.epoch % self._eval_every and not self.progress.done:
            return
        networks = {name: (model, data) for name, data in sets.items() if data is not None}
        networks |= {name: (network, sets["target"]) for name, network in (beside or {}).items()}
        figures = self.evaluator.measure(networks)
        if rank() == 0 and self.journal.is_pictured(self._eval_every):
            for number, pixels in self.evaluator.examples(model, sets["target"]).items():
                self.journal.board.add_image(f"target/{number}", pixels, self.step, dataformats="HWC")
        entry = self.journal.evaluated(self._rate(), figures)
        self.progress.closed = self.progress.epoch
        self._save(best=entry is oracle(self.journal.history))
        self.journal.say()

    def finish(self) -> None:
        """Writes result.json and prints the table row: the last checkpoint, and apart from it the oracle."""
        if rank() == 0:
            history, confusion = self.journal.history, self.evaluator.confusion.get("target")
            spent = self.journal.spent.get(history[-1]["step"], {})
            write_result(self.directory, self.config, self.archive.model.options, history, confusion, spent)
            self.archive.finish()
            print(result_text(self.directory, history))
        highest(0)  # waits for all: the others may need the last checkpoint next, which rank 0 has just written

    # Pausing, stopping

    def pause(self) -> None:
        """Between two steps, or two batches of anything long, on all ranks at once: is it time for a checkpoint, or to
        stop?"""
        self._claim.touch()
        stop = self._interruption.stop()
        due = self.step > 0 and self.archive.is_due(self._checkpoint_minutes)
        wanted = highest(2 if stop is not None else int(due))
        if wanted == 2:
            self._stop(next(found for found in from_each(stop) if found is not None))
        if wanted == 1:
            self._save()

    def _stop(self, stop: Stop) -> NoReturn:
        """Writes a checkpoint, says how to go on, ends the process. On all ranks at once."""
        self._save()
        highest(0)  # waits for all: torchrun ends the others as soon as one has ended
        self._interruption.close()
        self._claim.release()
        again = command_to_continue(self._root)
        print(f"{stop.reason} after {self.progress}. A checkpoint is saved. To continue: {again}", flush=True)
        raise SystemExit(stop.status)

    def _save(self, best: bool = False) -> None:
        """On all ranks at once. Raises `UserError` for a loss that is not finite, so that what is kept is good."""
        self._read()
        if rank() == 0:
            withdraw_result(self.directory)
        self.journal.board.flush()  # what is logged and what is kept end at the same step
        self.archive.save(best)
        self._claim.keep_changes()
        self.journal.write_history()

    def _read(self) -> dict[str, float]:
        """The means of what was logged since the last reading; on all ranks at once. Raises `UserError` when a loss is
        not finite, or gradients overflow at every scale."""
        self._bad.gather()
        means = self.journal.read()
        self.gradients.check_scale()
        return means

    def _rate(self) -> float:
        """The segmenter's present learning rate."""
        return self.archive.parts["optimizer"].param_groups[0]["lr"]


def command_to_continue(root: Path) -> str:
    """What a user types to go on with the present command's run, or runs, below `root`."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--run-dir")
    own.add_argument("--resume", action="store_true")
    again = [Path(sys.argv[0]).name, *own.parse_known_args()[1], "--run-dir", str(root), "--resume"]
    return ("python " if ranks() == 1 else f"torchrun --nproc-per-node={ranks()} ") + shlex.join(again)


def seed_everything(seed: int, step: int, rank: int = 0, part: int = 0) -> None:
    """Seeds Python, NumPy and torch (all devices) as a function of (seed, step), and of which share of a step's batch
    this is, where it is one of several."""
    which = (rank, part) if rank or part else ()
    mixed = int(np.random.SeedSequence((seed, step, *which)).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
