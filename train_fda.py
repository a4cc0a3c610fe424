"""Step 4a and 4b, image translation: the source's pictures in the target's style, with the source's labels.

FDA (Yang and Soatto, CVPR 2020) swaps the amplitude of low frequencies; LAB (He et al., CVPR 2021) matches colour
statistics. Which target picture styles which source picture is random at every step, and seeded.

    python train_fda.py --gta5 DIR --cityscapes DIR --beta 0.01              one band
    python train_fda.py --gta5 DIR --cityscapes DIR --beta 0.01 0.05 0.09    one network per band, trained in turn
    python train_fda.py --gta5 DIR --cityscapes DIR --translation lab
    python train_fda.py --demo                                               street scenes, minutes on a CPU

The loss is the cross-entropy on the translated source, plus lambda_entropy times the Charbonnier entropy of the
prediction on the target. The entropy term starts late (--entropy-from). Before that, and always at --lambda-entropy 0,
no target picture passes through the network: batch normalisation then has the statistics of the translated source.
The entropy is that of the enlarged prediction; the paper's code takes it of the network's own resolution.

Pictures are translated after scale and crop. So the mean colour around one that was scaled down counts in amplitudes
and in LAB's statistics; `--scales 1,1.5,1.75,2` avoids it, in both domains.
"""

from __future__ import annotations

from utils.errors import UserError, refuse_idle, run_script  # before torch, for a quick --help

# isort: split

import argparse
from functools import partial

from adaptation.entropy import charbonnier_entropy_loss
from adaptation.recolouring import Recolouring
from adaptation.translation import TRANSLATIONS
from datasets.appearance import Appearance, to_float
from training.building import BothDomains, both_domains, geometry, poly, segmenter, sgd, supervised_loss
from training.directory import several_runs
from training.flags import parse, training_parser
from training.run import Run
from utils.flags import add_choice, number, whole


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True, first="--beta")
    translation = parser.add_argument_group("translation")
    add_choice(translation, "--translation", TRANSLATIONS, "fda", "how the source gets the target's style")
    translation.add_argument(
        "--beta", type=number(0, 0.499), nargs="+", default=[0.01], metavar="B",
        help="FDA's band: half the side of the swapped square, as a share of the picture's shorter side. Several bands "
        "train one network each (0.01; the paper's three: 0.01 0.05 0.09)",
    )  # fmt: skip
    translation.add_argument(
        "--lambda-entropy", type=number(0, 100), default=0.005, metavar="X", help="weight of the entropy loss (0.005)"
    )
    translation.add_argument(
        "--eta", type=number(0, 10), default=2.0, metavar="X", help="exponent of the entropy loss (2)"
    )
    translation.add_argument(
        "--entropy-from", type=whole, metavar="STEP",
        help="step at which the entropy loss on the target starts (a third of the run; the paper's code: 50,000 of a "
        "schedule of 150,000, of which it runs 100,000)",
    )  # fmt: skip
    args = parse(parser)
    if "beta" not in TRANSLATIONS[args.translation].settings:
        refuse_idle(f"--translation {args.translation} has no band", "beta")
    if args.lambda_entropy == 0:
        refuse_idle("--lambda-entropy is 0", "eta", "entropy_from")
    return args


def main() -> None:
    args = parse_args()
    data = both_domains(args)
    bands = args.beta if "beta" in TRANSLATIONS[args.translation].settings else [None]
    names = [f"beta-{beta:g}" for beta in bands if beta is not None] or [args.translation]
    if len(set(names)) < len(names):
        raise UserError(f"--beta {' '.join(f'{beta:g}' for beta in bands)}: two of them are the same band")
    for beta, run_args in zip(bands, several_runs(args, names), strict=True):
        run_args.beta = beta
        train(run_args, data)


def train(args: argparse.Namespace, data: BothDomains) -> None:
    """One network, on one band."""
    run = Run(args, data.source, data.target, data.val)
    model = segmenter(args, len(run.classes))
    optimizer = sgd(model, args.lr, args.weight_decay)
    schedule = poly(optimizer, run.total_steps)
    criterion = supervised_loss(args, data.source)
    run.restore(model, optimizer=optimizer, schedule=schedule)
    source = run.stream(data.source, geometry(args, args.source_size))
    target = run.stream(data.target, geometry(args, args.size))
    appearance, recolour = Appearance(args.jitter, args.blur), Recolouring(args.recolour)
    translation = TRANSLATIONS[args.translation]
    translate = partial(translation.translate, **{name: vars(args)[name] for name in translation.settings})
    entropy_from = run.total_steps // 3 if args.entropy_from is None else args.entropy_from
    if args.lambda_entropy > 0 and entropy_from >= run.total_steps:
        steps = run.total_steps
        print(f"note: the entropy loss never starts: --entropy-from {entropy_from} is not below {steps} steps")
    gradients = run.gradients

    for _ in run.epochs():
        model.train()
        for (images, labels), target_images in run.steps(source, target):
            pictures, style = recolour(appearance(images), labels), to_float(target_images)
            translated = translate(pictures, style)
            run.show("translation/source-target-translated", [pictures[0], style[0], translated[0]])

            with gradients.autocast():
                loss = criterion(model(translated), labels)
            gradients.backward(loss)
            run.log(loss=loss)
            if args.lambda_entropy > 0 and run.step >= entropy_from:
                with gradients.autocast():
                    entropy = charbonnier_entropy_loss(model(style)[0], args.eta)
                gradients.backward(args.lambda_entropy * entropy, args.lambda_entropy)
                run.log(entropy=entropy)
            gradients.update(optimizer, schedule)
        run.evaluate(model, target=data.val, source=data.held_out)
    run.finish()


if __name__ == "__main__":
    run_script(main)
