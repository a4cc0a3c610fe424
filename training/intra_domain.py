"""IntraDA's two sets: the target's train pictures, ranked by a network and split, the easy ones with its labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptation.intra_domain import easy_and_hard, mean_entropy
from adaptation.losses import LOSSES
from datasets import SegmentationSet
from datasets.appearance import to_float
from datasets.domains import SOURCES, source_with_protocol
from datasets.pairs import Sample
from datasets.stream import batches, evaluation_loader
from utils.bar import tracked
from utils.distributed import first_then_others
from utils.errors import UserError
from utils.files import write_atomically
from utils.flags import flag, number, spelt
from utils.interruption import worker_signals

from .building import BothDomains, both_domains, target_set
from .checkpoint import checkpoint_file, load_checkpoint, network_for, sha256
from .evaluation import require_numbers
from .labelling import pseudo_labelled
from .methods import trained_as
from .run import Run

SHARE = 0.67
"""Of the pictures that are easy: the paper's."""


def add_intra_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--intra", type=checkpoint_file, metavar="CHECKPOINT",
        help="IntraDA: adapt from the target's easy pictures, as this network ranks and labels them, to its hard ones; "
        "no source is read",
    )  # fmt: skip
    said = f"with --intra: of the pictures, the easy ones ({SHARE})"
    group.add_argument("--easy-share", type=number(0, 1), metavar="SHARE", help=said)


def domains(args: argparse.Namespace) -> BothDomains:
    """What an adversarial run reads, checked. With --intra the source is the target too, until `split_by_entropy`, so
    that an epoch is as long as the target's pictures make it. The checkpoint's digest and method are in the arguments,
    so that reports keep IntraDA after one method apart from that after another, and so is the source whose protocol its
    figures have. Raises `UserError` for flags that mean nothing then, or without it."""
    args.intra_sha256 = args.intra_after = args.intra_protocol = None
    if args.intra is None:
        if args.easy_share is not None:
            raise UserError("--easy-share: a share of what? Name the network that ranks the target, --intra CHECKPOINT")
        return both_domains(args)
    of_source = [f"{flag(key)}{more}" for key in SOURCES for more in ("", "-list", "-encoding", "-mapping")]
    named = [name for name in (*of_source, "--source-size", "--source-holdout") if name in spelt()]
    if named:
        raise UserError(f"--intra reads no source, the target's easy pictures take its place: leave out {named[0]}")
    if args.class_prior > 0 or LOSSES[args.loss].class_weights is not None:
        raise UserError("--intra: no class prior and no class weights, since no labels are there that could be counted")
    args.easy_share = SHARE if args.easy_share is None else args.easy_share
    vars(args).update({**dict.fromkeys(SOURCES), "source_size": args.size, "source_holdout": 0.0})
    args.intra_sha256 = sha256(args.intra)
    args.intra_after = trained_as(args.intra)
    args.intra_protocol = source_with_protocol(load_checkpoint(args.intra)["config"].get("arguments", {}))
    target, val = target_set(args, "train", labelled=False), target_set(args, "val")
    if not 0 < int(len(target) * args.easy_share) < len(target):
        raise UserError(f"--easy-share {args.easy_share:g} of {len(target)} pictures leaves an empty part")
    return BothDomains(target, None, target, val)


def split_by_entropy(args: argparse.Namespace, run: Run, data: BothDomains) -> BothDomains:
    """Once the run's directory is its own: the easy pictures with the labels of --intra's network for the source, the
    hard ones for the target. The ranking is kept in RUN/easy.txt and RUN/hard.txt, names from sure to unsure, and taken
    from there when the run goes on; the labels in RUN/pseudo-labels. Without --intra the data as they are."""
    if args.intra is None:
        return data
    header = f"# by mean entropy, {args.easy_share:g} of the pictures easy, of the network {args.intra_sha256}"
    files = run.directory / "easy.txt", run.directory / "hard.txt"
    with first_then_others(run.pause) as pause:
        machine = (args.workers, args.device, pause)
        labeller = network_for(args.intra, run.classes).to(args.device).eval()
        parts = _kept(files, header, data.target.samples)
        if parts is None:
            ranked = easy_and_hard(entropies(labeller, data.target, *machine), args.easy_share)
            parts = [[data.target.samples[index] for index in part] for part in ranked]
            for file, part in zip(files, parts, strict=True):
                text = "\n".join([header, *(sample.name for sample in part), ""])
                write_atomically(file, lambda out, text=text: out.write(text.encode(errors="surrogateescape")))
        easy, hard = (
            replace(data.target, name=f"{data.target.name}, {name}", samples=part)
            for name, part in zip(("easy", "hard"), parts, strict=True)
        )
        made_from = {"labeller_sha256": [args.intra_sha256]}
        easy = pseudo_labelled(labeller, easy, run.directory / "pseudo-labels", made_from, "argmax", {}, *machine)
    return data._replace(source=easy, target=hard)


@torch.no_grad()
def entropies(
    network: nn.Module, data: SegmentationSet, workers: int, device: torch.device, pause: Callable[[], None]
) -> Tensor:
    """One pass over the set: each picture's mean entropy, float32 [N], on the CPU. Raises `UserError` for NaN."""
    loader, found = evaluation_loader(data, workers, worker_signals), []
    for images, _ in tracked(batches(loader), len(loader), "entropies"):
        pause()
        found.append(mean_entropy(network(to_float(images.to(device, non_blocking=True)))))
        require_numbers(found[-1])
    return torch.cat(found).cpu()


def _kept(files: tuple[Path, Path], header: str, samples: list[Sample]) -> list[list[Sample]] | None:
    """The ranking that lies there, None where it is of other pictures or another network, or where there is none."""
    known = {sample.name: sample for sample in samples}
    try:
        parts = [file.read_text(encoding="utf-8", errors="surrogateescape").splitlines() for file in files]
    except OSError:
        return None
    names = [part[1:] for part in parts]
    if any(part[:1] != [header] for part in parts) or sorted(names[0] + names[1]) != sorted(known):
        return None
    return [[known[name] for name in part] for part in names]
