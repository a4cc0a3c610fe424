"""Step 4c, self-training: labelled source, and the target with the sure predictions of an earlier network as labels.

The earlier networks (--labeller) label the target's train pictures once, before training; of several the mean of their
softmax counts. Which pixels get a label is the rule's matter (--rule). BDL (Li et al., CVPR 2019) labels a pixel when
its probability reaches the smaller of 0.9 and the median of its class's probabilities over the target; FDA's rounds
(Yang and Soatto, CVPR 2020) take the 66th percentile for the median. CBST (Zou et al., ECCV 2018) labels the same share
of each class, IAST (Mei et al., ECCV 2020) by thresholds that follow the pictures.

    python train_pseudo_labels.py --gta5 DIR --cityscapes DIR --labeller runs/A                       BDL's rule
    python train_pseudo_labels.py ... --labeller runs/FDA/beta-* --percentile 66 --beta 0.01            FDA's
    python train_pseudo_labels.py ... --labeller runs/A --rounds 2                             then with its own labels
    python train_pseudo_labels.py ... --labeller runs/A --rounds 3 --rule cbst --continue                  CBST's
    python train_pseudo_labels.py ... --labels DIR                           labels from elsewhere, as of predict.py
    python train_pseudo_labels.py --demo --labeller runs/demo/source-only --adapt-bn

Each round starts anew from --weights or --init; with --continue, from the network that labels for it. The loss is that
of --loss on both domains, equally weighted; what CRST, IAST and ProDA do there are flags. Both domains pass through the
network in training, so batch normalisation's running statistics mix the two, unless --bn-statistics target keeps the
target's alone.

Not built of CBST's public code: spatial priors, target crops around rare classes, and one source picture to about four
of the target. Here it is one to one. The rate falls by the poly schedule, where CRST's is constant.
"""

from __future__ import annotations

from utils.errors import run_script  # before torch, for a quick --help

# isort: split

import argparse
from functools import partial
from pathlib import Path

from torch import nn

from adaptation.adabn import statistics_kept
from adaptation.fda import fda
from adaptation.losses import LOSSES
from adaptation.pseudo_labels import RULES
from adaptation.recolouring import Recolouring
from datasets import SegmentationSet
from datasets.appearance import Appearance, to_float
from models.ensemble import MeanSoftmax, Mirrored
from training.adabn import adapt_to
from training.building import (
    BothDomains,
    both_domains,
    geometry,
    given_labels,
    poly,
    pseudo_label_loss,
    segmenter,
    sgd,
    supervised_loss,
)
from training.checkpoint import checkpoint_file, network_for, sha256
from training.directory import several_runs
from training.flags import parse, training_parser
from training.labelling import pseudo_labelled, require_meaning
from training.method_flags import add_labels_flag, add_statistics_flag, add_style_flag
from training.methods import trained_as
from training.run import Run
from utils.distributed import first_then_others
from utils.flags import add_choice, number, positive


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True, first="--labeller")
    labels = parser.add_argument_group("self-training")
    labels.add_argument(
        "--labeller", type=checkpoint_file, nargs="+", default=[], metavar="CHECKPOINT",
        help="network(s) that label the target",
    )  # fmt: skip
    add_labels_flag(labels)
    add_choice(labels, "--rule", RULES, "bdl", "which pixels of the target get a label")
    labels.add_argument(
        "--percentile", type=number(0, 100), default=50.0, metavar="P",
        help="percentile of a class's probabilities, below which a pixel gets no label (50, BDL's; FDA's rounds: 66)",
    )  # fmt: skip
    labels.add_argument(
        "--confidence", type=number(0, 1), default=0.9, metavar="X",
        help="probability from which a pixel is labelled whatever the percentile (0.9)",
    )  # fmt: skip
    labels.add_argument(
        "--portion", type=number(0, 1), default=0.2, metavar="P",
        help="by CBST's rule: the share of each class that is labelled in the first round, about; by IAST's less (0.2)",
    )  # fmt: skip
    labels.add_argument(
        "--portion-step", type=number(0, 1), default=0.05, metavar="P", help="by how much it grows a round (0.05)"
    )
    labels.add_argument(
        "--portion-max", type=number(0, 1), default=0.5, metavar="P", help="and where it stops to grow (0.5)"
    )
    labels.add_argument(
        "--label-flip", action="store_true", help="label by the mean of each picture's softmax and its mirror image's"
    )
    labels.add_argument(
        "--max-class-share", type=number(0, 1), default=0.9, metavar="SHARE",
        help="stop where one class has more of all labelled pixels: the labels have collapsed (0.9)",
    )  # fmt: skip
    labels.add_argument(
        "--adapt-bn", action="store_true", help="first re-estimate the labellers' batch normalisation on the target"
    )
    labels.add_argument(
        "--rounds", type=positive, default=1, metavar="N",
        help="number of rounds; the network of one round labels the target for the next (1)",
    )  # fmt: skip
    labels.add_argument(
        "--continue", action="store_true", help="start each round from the network that labels for it, not anew"
    )
    labels.add_argument(
        "--pseudo-labels", type=Path, metavar="DIR",
        help="where the labels are kept; runs with the same labeller find them there (RUN/pseudo-labels)",
    )  # fmt: skip
    add_style_flag(labels)
    add_statistics_flag(labels)
    loss = parser.add_argument_group("loss on the pseudo-labels")
    loss.add_argument("--target-loss", choices=LOSSES, help="one of --loss's, for the target alone (as --loss says)")
    loss.add_argument(
        "--mrkld", type=number(0, 100), default=0.0, metavar="A",
        help="weight of the divergence from the uniform distribution on labelled pixels (0; CRST: 0.1, IAST: 0.0053)",
    )  # fmt: skip
    loss.add_argument(
        "--lambda-entropy", type=number(0, 100), default=0.0, metavar="X",
        help="weight of the entropy of pixels without a label (0; IAST: 0.465, which is 3/19 a pixel in nats)",
    )  # fmt: skip
    loss.add_argument(
        "--lambda-source", type=number(0, 100), default=1.0, metavar="X",
        help="weight of the source's loss; at 0 the source does not pass through the network, as in IAST (1)",
    )  # fmt: skip
    loss.add_argument(
        "--lambda-target", type=number(0, 100), default=1.0, metavar="X",
        help="weight of the target's loss; at 0 its labels teach nothing: what longer training alone brings (1)",
    )  # fmt: skip
    args = parse(parser)
    require_meaning(args)
    return args


def main() -> None:
    args = parse_args()
    data = both_domains(args)
    labellers, labelled_target = args.labeller, given_labels(args, data.target)
    for before, round_args in enumerate(several_runs(args, [f"round-{n}" for n in range(1, args.rounds + 1)])):
        round_args.round, round_args.labeller = before + 1, labellers
        round_args.labeller_sha256 = [sha256(path) for path in labellers]
        round_args.labeller_method = [trained_as(path) for path in labellers]
        grown = min(args.portion + before * args.portion_step, args.portion_max)
        round_args.portion = max(args.portion, grown)
        train(round_args, labellers, data, labelled_target if before == 0 else data.target)
        labellers = [round_args.run_dir / "checkpoint_last.pt"]


def train(args: argparse.Namespace, labellers: list[Path], data: BothDomains, target: SegmentationSet) -> None:
    """One round: label the target, unless it is given with labels, then train on both domains."""
    run = Run(args, data.source, data.target, data.val)
    networks = [network_for(path, run.classes).to(args.device) for path in labellers]
    if vars(args)["continue"]:
        args.init = labellers[0]
    model = segmenter(args, len(run.classes))
    optimizer = sgd(model, args.lr, args.weight_decay)
    schedule = poly(optimizer, run.total_steps)
    criterion = supervised_loss(args, data.source)
    criterion_target = pseudo_label_loss(args, criterion, data.source)
    run.restore(model, init=args.init, optimizer=optimizer, schedule=schedule)

    if not target.labelled:
        target = labelled_by(networks[0] if len(networks) == 1 else MeanSoftmax(networks), args, run, target)
    del networks
    source = run.stream(data.source, geometry(args, args.source_size))
    labelled_target = run.stream(target, geometry(args, args.size))
    appearance, recolour = Appearance(args.jitter, args.blur), Recolouring(args.recolour)
    gradients = run.gradients

    for _ in run.epochs():
        model.train()
        for (images, labels), (target_images, pseudo_labels) in run.steps(source, labelled_target):
            pictures, target_pictures = recolour(appearance(images), labels), to_float(target_images)
            if args.beta is not None:
                pictures = fda(pictures, target_pictures, args.beta)
            run.show("self-training/source-target-labels", [pictures[0], target_pictures[0], pseudo_labels[0]])

            if args.lambda_source > 0:
                with gradients.autocast(), statistics_kept(model, args.bn_statistics == "target"):
                    loss = criterion(model(pictures), labels)
                gradients.backward(args.lambda_source * loss, args.lambda_source)
                run.log(loss=loss)
            with gradients.autocast():
                loss_target = criterion_target(model(target_pictures), pseudo_labels)
            gradients.backward(args.lambda_target * loss_target, args.lambda_target)
            gradients.update(optimizer, schedule)
            run.log(loss_target=loss_target)
        run.evaluate(model, target=data.val, source=data.held_out)
    run.finish()


def labelled_by(labeller: nn.Module, args: argparse.Namespace, run: Run, target: SegmentationSet) -> SegmentationSet:
    """The target with the labels of this network. They name what they were made from, so that another run can find
    them."""
    made_from = {"labeller_sha256": args.labeller_sha256, "adapt_bn": args.adapt_bn and args.batch_size}
    made_from |= {"label_flip": True} if args.label_flip else {}  # which earlier labels do not name
    settings = {name: vars(args)[flag] for name, flag in RULES[args.rule].settings.items()}
    folder = args.pseudo_labels or run.directory / "pseudo-labels"
    with first_then_others(run.pause) as pause:
        machine = (args.workers, args.device, pause)
        adapt = partial(adapt_to, labeller, target, args.batch_size, *machine) if args.adapt_bn else lambda: None
        views = MeanSoftmax([labeller, Mirrored(labeller)]) if args.label_flip else labeller
        more = (*machine, args.max_class_share, adapt)
        return pseudo_labelled(views, target, folder, made_from, args.rule, settings, *more)


if __name__ == "__main__":
    run_script(main)
