"""Step 4a and 4b, image translation: the source's pictures in the target's style, with the source's labels.

FDA (Yang and Soatto, CVPR 2020) swaps the amplitude of low frequencies; LAB (He et al., CVPR 2021) matches colour
statistics. Which target picture styles which source picture is random at every step, and seeded.

    python train_fda.py --gta5 DIR --cityscapes DIR --beta 0.01              one band
    python train_fda.py --gta5 DIR --cityscapes DIR --beta 0.01 0.05 0.09    one network per band, trained in turn
    python train_fda.py --gta5 DIR --cityscapes DIR --translation lab
    python train_fda.py --demo                                               street scenes, minutes on a CPU

The loss is the cross-entropy on the translated source, plus lambda_entropy times the Charbonnier entropy of the
prediction on the target. Until that term starts (--entropy-from), and always at --lambda-entropy 0, no target picture
passes through the network, so the statistics of batch normalisation stay the translated source's.
"""

from __future__ import annotations

import argparse
import copy

from adaptation.entropy import charbonnier_entropy_loss
from adaptation.fda import fda
from adaptation.lab import match_lab
from adaptation.losses import segmentation_loss
from datasets import SegmentationSet
from datasets.appearance import Appearance, to_float
from training.building import geometry, pixel_loss, poly, segmenter, sgd, source_sets, target_set
from training.directory import refuse_used
from training.flags import parse, training_parser
from training.run import Run
from utils.errors import UserError, run_script
from utils.flags import number, whole


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True)
    translation = parser.add_argument_group("translation")
    translation.add_argument("--translation", choices=("fda", "lab"), default="fda", help="(%(default)s)")
    translation.add_argument(
        "--beta",
        type=number(0, 0.499),
        nargs="+",
        default=[0.01],
        metavar="B",
        help="FDA's band: half-width of the swapped square over the shorter side (0.01; the paper's: 0.01 0.05 0.09)",
    )
    translation.add_argument(
        "--lambda-entropy", type=number(0, 100), default=0.005, metavar="X", help="weight of the entropy (0.005)"
    )
    translation.add_argument("--eta", type=number(0, 10), default=2.0, metavar="X", help="exponent of its penalty (2)")
    translation.add_argument(
        "--entropy-from", type=whole, metavar="STEP", help="step at which it starts (a third of the run, as published)"
    )
    return parse(parser)


def main() -> None:
    args = parse_args()
    train_source, held_out = source_sets(args)
    train_target, val = target_set(args, "train", labelled=False), target_set(args, "val")
    bands = args.beta if args.translation == "fda" else [None]
    places = [args.root] if len(bands) == 1 else [args.root / f"beta-{beta:g}" for beta in bands]
    if len(set(places)) < len(places):
        raise UserError(f"--beta {' '.join(f'{beta:g}' for beta in bands)}: two of them are the same band")
    if not args.resume:
        refuse_used(places[1:])
    for beta, place in zip(bands, places, strict=True):
        band = copy.copy(args)
        band.beta, band.run_dir = beta, place
        train(band, train_source, held_out, train_target, val)


def train(
    args: argparse.Namespace,
    train_source: SegmentationSet,
    held_out: SegmentationSet | None,
    train_target: SegmentationSet,
    val: SegmentationSet,
) -> None:
    """One network, on one band."""
    run = Run(args, train_source, train_target, val)
    model = segmenter(args, len(run.classes))
    optimizer = sgd(model, args)
    schedule = poly(optimizer, run.total_steps)
    criterion = pixel_loss(args, train_source)
    run.restore(model, optimizer=optimizer, schedule=schedule)
    source = run.stream(train_source, geometry(args, args.source_size))
    target = run.stream(train_target, geometry(args, args.size))
    appearance = Appearance(args.jitter, args.blur)
    entropy_from = run.total_steps // 3 if args.entropy_from is None else args.entropy_from
    gradients = run.gradients

    for _ in run.epochs():
        model.train()
        for (images, labels), target_images in run.steps(source, target):
            pictures, style = appearance(images), to_float(target_images)
            translated = match_lab(pictures, style) if args.beta is None else fda(pictures, style, args.beta)
            run.show("translation/source-target-translated", [pictures[0], style[0], translated[0]])

            with gradients.autocast():
                loss = segmentation_loss(model(translated), labels, args.aux_weight, criterion)
            gradients.backward(loss)
            run.log(loss=loss)
            if args.lambda_entropy > 0 and run.step >= entropy_from:
                with gradients.autocast():
                    entropy = charbonnier_entropy_loss(model(style)[0], args.eta)
                gradients.backward(args.lambda_entropy * entropy)
                run.log(entropy=entropy)
            gradients.update(optimizer, schedule)
        run.evaluate(model, target=val, source=held_out)
    run.finish()


if __name__ == "__main__":
    run_script(main)
