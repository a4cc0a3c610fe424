"""Step 4c, self-training: labelled source, and the target with the sure predictions of an earlier network as labels.

A pixel of the target is labelled when its probability reaches the smaller of 0.9 and a percentile of its class's
probabilities over the target's train pictures: the median in BDL (Li et al., CVPR 2019), the 66th in FDA's rounds
(Yang and Soatto, CVPR 2020). Several labellers are averaged (their softmax). The labels are made once, before training.

    python train_pseudo_labels.py --gta5 DIR --cityscapes DIR --labeller runs/A/checkpoint_last.pt            BDL's rule
    python train_pseudo_labels.py ... --labeller runs/FDA/beta-*/checkpoint_last.pt --percentile 66 --beta 0.01   FDA's
    python train_pseudo_labels.py ... --labeller runs/A/checkpoint_last.pt --rounds 2    then with its own labels again
    python train_pseudo_labels.py --demo --labeller runs/demo/source-only/checkpoint_last.pt --adapt-bn

Each round starts anew from --weights or --init. The loss is the cross-entropy (--loss) on both domains, equally
weighted; both pass through the network in training, so batch normalisation's running statistics mix the two, unless
--bn-statistics target keeps the target's alone.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from torch import nn

from adaptation.adabn import adapt_to, statistics_kept
from adaptation.fda import fda
from adaptation.losses import segmentation_loss
from adaptation.pseudo_labels import pseudo_labelled
from datasets import SegmentationSet
from datasets.appearance import Appearance, to_float
from models.ensemble import MeanSoftmax
from training.building import geometry, pixel_loss, poly, segmenter, sgd, source_sets, target_set
from training.checkpoint import network_for, sha256
from training.directory import refuse_used
from training.flags import add_statistics_flag, parse, training_parser
from training.run import Run
from utils.distributed import first_then_others
from utils.errors import UserError, run_script
from utils.flags import number, positive


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True)
    labels = parser.add_argument_group("self-training")
    labels.add_argument(
        "--labeller", type=Path, nargs="+", required=True, metavar="CHECKPOINT", help="network(s) that label the target"
    )
    labels.add_argument(
        "--percentile", type=number(0, 100), default=50.0, metavar="P",
        help="of a class's probabilities: below it no pixel is labelled (50, BDL's; FDA's rounds: 66)",
    )  # fmt: skip
    labels.add_argument(
        "--confidence", type=number(0, 1), default=0.9, metavar="X", help="a probability that always suffices (0.9)"
    )
    labels.add_argument(
        "--adapt-bn", action="store_true", help="first re-estimate the labellers' batch normalisation on the target"
    )
    labels.add_argument(
        "--rounds", type=positive, default=1, metavar="N",
        help="how often; each later round is labelled by the one before (1)",
    )  # fmt: skip
    labels.add_argument(
        "--pseudo-labels", type=Path, metavar="DIR",
        help="where labels are kept, and found again by runs with the same labeller (RUN/pseudo-labels)",
    )  # fmt: skip
    labels.add_argument(
        "--beta", type=number(0, 0.499), metavar="B", help="train on the source in the target's style: FDA's band (off)"
    )
    add_statistics_flag(labels)
    return parse(parser)


def main() -> None:
    args = parse_args()
    train_source, held_out = source_sets(args)
    train_target, val = target_set(args, "train", labelled=False), target_set(args, "val")
    labellers = args.labeller
    places = [args.root] if args.rounds == 1 else [args.root / f"round-{n}" for n in range(1, args.rounds + 1)]
    if not args.resume:
        refuse_used(places[1:])
    for place in places:
        this = copy.copy(args)
        this.run_dir = place
        this.labeller_sha256 = [sha256(path) for path in labellers]
        train(this, labellers, train_source, held_out, train_target, val)
        labellers = [this.run_dir / "checkpoint_last.pt"]


def train(
    args: argparse.Namespace,
    labellers: list[Path],
    train_source: SegmentationSet,
    held_out: SegmentationSet | None,
    train_target: SegmentationSet,
    val: SegmentationSet,
) -> None:
    """One round: label the target, then train on both."""
    run = Run(args, train_source, train_target, val)
    networks = [network_for(path, run.classes).to(args.device) for path in labellers]
    model = segmenter(args, len(run.classes))
    optimizer = sgd(model, args)
    schedule = poly(optimizer, run.total_steps)
    criterion = pixel_loss(args, train_source)
    run.restore(model, optimizer=optimizer, schedule=schedule)
    with first_then_others():
        pseudo = label(args, networks, train_target, run)
    del networks
    source = run.stream(train_source, geometry(args, args.source_size))
    target = run.stream(pseudo, geometry(args, args.size))
    appearance = Appearance(args.jitter, args.blur)
    gradients = run.gradients

    for _ in run.epochs():
        model.train()
        for (images, labels), (target_images, pseudo_labels) in run.steps(source, target):
            pictures, target_pictures = appearance(images), to_float(target_images)
            if args.beta is not None:
                pictures = fda(pictures, target_pictures, args.beta)
            run.show("self-training/source-target-labels", [pictures[0], target_pictures[0], pseudo_labels[0]])

            with gradients.autocast(), statistics_kept(model, args.bn_statistics == "target"):
                loss = segmentation_loss(model(pictures), labels, args.aux_weight, criterion)
            gradients.backward(loss)
            with gradients.autocast():
                loss_target = segmentation_loss(model(target_pictures), pseudo_labels, args.aux_weight, criterion)
            gradients.backward(loss_target)
            gradients.update(optimizer, schedule)
            run.log(loss=loss, loss_target=loss_target)
        run.evaluate(model, target=val, source=held_out)
    run.finish()


def label(args: argparse.Namespace, networks: list[nn.Module], target: SegmentationSet, run: Run) -> SegmentationSet:
    """The target's train pictures with pseudo-labels of the networks' mean prediction."""
    if args.adapt_bn:
        for network in networks:
            try:
                adapt_to(network, target, args.batch_size, args.workers, args.device, run.pause_within)
            except ValueError as error:
                raise UserError(f"--adapt-bn: {error}") from None
    return pseudo_labelled(
        networks[0] if len(networks) == 1 else MeanSoftmax(networks),
        target,
        args.pseudo_labels or run.directory / "pseudo-labels",
        {"labeller_sha256": args.labeller_sha256, "adapt_bn": args.adapt_bn and args.batch_size},
        args.percentile,
        args.confidence,
        args.device,
        args.workers,
        run.pause_within,
    )


if __name__ == "__main__":
    run_script(main)
