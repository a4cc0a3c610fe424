"""Step 3b, adversarial adaptation: labelled GTA5, unlabelled Cityscapes, a discriminator between them.

AdaptSegNet (Tsai et al., CVPR 2018): the segmenter learns the source's labels and to make its predictions on the
target look like its predictions on the source. AdvEnt and MinEnt (Vu et al., CVPR 2019) are its siblings on entropy.

    python train_adversarial.py --gta5 DIR --cityscapes DIR                                  standard discriminator
    python train_adversarial.py --gta5 DIR --cityscapes DIR --discriminator depthwise        the lightweight one
    python train_adversarial.py --gta5 DIR --cityscapes DIR --input entropy                  AdvEnt
    python train_adversarial.py --gta5 DIR --cityscapes DIR --discriminator none --min-entropy      MinEnt
    python train_adversarial.py --gta5 DIR --cityscapes DIR --model deeplabv2 --level multi  multi-level
    python train_adversarial.py --demo                                          street scenes, minutes on a CPU

A forward pass on the target in training mode moves the running statistics of batch normalisation even at
--lambda-adv 0, so such a run is no source-only baseline: it measures that effect alone. --bn-statistics target keeps
the target's statistics only.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.optim import Adam

from adaptation.adabn import statistics_kept
from adaptation.adversarial import GANS, INPUTS, SOURCE, TARGET, domain_accuracy
from adaptation.entropy import min_entropy_loss
from adaptation.losses import PixelLoss, cross_entropy, segmentation_loss
from datasets.appearance import Appearance, to_float
from models import DISCRIMINATORS, SEGMENTERS, build_discriminator
from models.discriminator import MIN_SIDE
from training.building import fused, geometry, pixel_loss, poly, segmenter, sgd, source_sets, target_set
from training.flags import add_statistics_flag, parse, training_parser
from training.gradients import Gradients
from training.run import Run
from utils.errors import UserError, run_script
from utils.flags import number

SUFFIX = ("", "_auxiliary")
"""Of what is logged, by level: the main logits, and with --level multi the auxiliary ones."""


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True)
    adversarial = parser.add_argument_group("adversarial adaptation")
    adversarial.add_argument(
        "--discriminator", choices=(*DISCRIMINATORS, "none"), default="standard",
        help="; ".join(f"{name}: {kind.title}" for name, kind in DISCRIMINATORS.items()) + " (%(default)s)",
    )  # fmt: skip
    adversarial.add_argument(
        "--level",
        choices=("output", "multi", "feature"),
        default="output",
        help="where it looks: the main logits; a second one on the auxiliary logits too; or the features at 1/8 that "
        "the network makes its logits from (%(default)s)",
    )
    adversarial.add_argument(
        "--input", choices=sorted(INPUTS), default="softmax", help="what it sees; entropy is AdvEnt's (%(default)s)"
    )
    adversarial.add_argument("--gan", choices=sorted(GANS), default="vanilla", help="(%(default)s)")
    adversarial.add_argument("--lambda-adv", type=number(0, 100), default=1e-3, metavar="X", help="(0.001)")
    adversarial.add_argument("--lambda-adv-aux", type=number(0, 100), default=2e-4, metavar="X", help="(0.0002)")
    adversarial.add_argument(
        "--lr-d", type=number(0, 1), default=1e-4, metavar="X", help="the discriminator's rate (1e-4)"
    )
    adversarial.add_argument("--min-entropy", action="store_true", help="add MinEnt's loss on the target")
    adversarial.add_argument(
        "--lambda-entropy", type=number(0, 100), default=1e-3, metavar="X", help="MinEnt's (0.001)"
    )
    add_statistics_flag(adversarial)
    args = parse(parser)
    if args.level == "feature" and args.input == "entropy":
        raise UserError("--level feature with --input entropy: features are no probabilities and have no entropy")
    if args.level == "multi" and SEGMENTERS[args.model].multi_level_options is None:
        raise UserError(f"--level multi: {SEGMENTERS[args.model].title} has no auxiliary logits to look at")
    if args.level == "feature" and min(args.size + args.source_size) < 8 * MIN_SIDE:
        raise UserError(
            f"--level feature: features are at 1/8, so the discriminator needs --size and --source-size of at least "
            f"{8 * MIN_SIDE}x{8 * MIN_SIDE}"
        )
    if args.discriminator == "none" and not args.min_entropy:
        raise UserError("--discriminator none: nothing is left to adapt with; add --min-entropy, or use train_gta5.py")
    return args


def views(
    features: tuple[Tensor, ...], outputs: tuple[Tensor, tuple[Tensor, ...]], args: argparse.Namespace
) -> list[Tensor]:
    """What each discriminator sees of one domain: a list of [B, C, h, w], the main one first."""
    logits, auxiliary = outputs
    if args.level == "feature":
        return [features[0]]
    shown = [logits, auxiliary[0]] if args.level == "multi" else [logits]
    return [INPUTS[args.input](maps) for maps in shown]


def main() -> None:
    args = parse_args()
    train_source, held_out = source_sets(args)
    train_target, val = target_set(args, "train", labelled=False), target_set(args, "val")

    run = Run(args, train_source, train_target, val)
    model = segmenter(args, len(run.classes), multi_level=args.level == "multi")
    optimizer = sgd(model, args)
    schedule = poly(optimizer, run.total_steps)
    criterion = pixel_loss(args, train_source)
    discriminators = discriminators_for(model, args)
    optimizers_d = [Adam(d.parameters(), lr=args.lr_d, betas=(0.9, 0.99), fused=fused(d)) for d in discriminators]
    schedules_d = [poly(optimizer_d, run.total_steps) for optimizer_d in optimizers_d]
    run.restore(
        model,
        optimizer=optimizer,
        schedule=schedule,
        discriminator=discriminators,
        discriminator_optimizer=optimizers_d,
        discriminator_schedule=schedules_d,
    )
    source = run.stream(train_source, geometry(args, args.source_size))
    target = run.stream(train_target, geometry(args, args.size))
    appearance = Appearance(args.jitter, args.blur)
    weights = (args.lambda_adv, args.lambda_adv_aux)
    gradients = run.gradients

    for _ in run.epochs():
        model.train()
        for (images, labels), target_images in run.steps(source, target):
            images, target_images = appearance(images), to_float(target_images)
            run.show("adversarial/source-target", [images[0], target_images[0]])
            seen_source, seen_target = segmenter_gradients(
                model, discriminators, images, labels, target_images, weights, args, gradients, criterion
            )
            gradients.update(optimizer, schedule)
            discriminator_gradients(discriminators, seen_source, seen_target, args, gradients)
            for optimizer_d, schedule_d in zip(optimizers_d, schedules_d, strict=True):
                gradients.update(optimizer_d, schedule_d)
        run.evaluate(model, target=val, source=held_out)
    run.finish()


def discriminators_for(model: nn.Module, args: argparse.Namespace) -> list[nn.Module]:
    """None, one, or for multi-level two of them, on the run's device."""
    if args.discriminator == "none":
        return []
    channels = [model.options["num_classes"]] * (2 if args.level == "multi" else 1)
    if args.level == "feature":
        with torch.no_grad():
            was = model.training
            channels = [model.eval().features(torch.zeros(1, 3, 64, 64, device=args.device))[0].shape[1]]
            model.train(was)
    return [build_discriminator(args.discriminator, number).to(args.device) for number in channels]


def segmenter_gradients(
    model: nn.Module,
    discriminators: list[nn.Module],
    images: Tensor,
    labels: Tensor,
    target_images: Tensor,
    weights: tuple[float, ...],
    args: argparse.Namespace,
    gradients: Gradients,
    criterion: PixelLoss = cross_entropy,
) -> tuple[list[Tensor], list[Tensor]]:
    """(1) and (2) of AdaptSegNet, algorithm of section 4: adds the segmenter's gradients, and none of a discriminator.

    images, target_images: float [B, 3, H, W] in [0, 1], each domain at its own size; labels: uint8 [B, H, W].
    Returns what the discriminators see of source and target, detached.
    """
    for discriminator in discriminators:
        discriminator.requires_grad_(False)

    # (1) L_seg: cross-entropy on the source.
    with gradients.autocast(), statistics_kept(model, args.bn_statistics == "target"):
        features = model.features(images)
        outputs = model.decode(features, images.shape[-2:])
        loss = segmentation_loss(outputs, labels, args.aux_weight, criterion)
    gradients.backward(loss)
    seen_source = [view.detach() for view in views(features, outputs, args)]
    gradients.log(loss=loss)

    # (2) lambda_adv * L_adv: the target's predictions should be taken for the source's.
    with gradients.autocast():
        features = model.features(target_images)
        outputs = model.decode(features, target_images.shape[-2:])
        seen_target = views(features, outputs, args)
        loss = torch.zeros((), device=target_images.device)
        for level, (discriminator, view, weight) in enumerate(zip(discriminators, seen_target, weights, strict=False)):
            adversarial = GANS[args.gan](discriminator(view), SOURCE)
            loss = loss + weight * adversarial
            gradients.log(**{f"adversarial{SUFFIX[level]}": adversarial})
        if args.min_entropy:
            entropy = min_entropy_loss(outputs[0])
            loss = loss + args.lambda_entropy * entropy
            gradients.log(min_entropy=entropy)
    gradients.backward(loss)

    for discriminator in discriminators:
        discriminator.requires_grad_(True)
    return seen_source, [view.detach() for view in seen_target]


def discriminator_gradients(
    discriminators: list[nn.Module],
    seen_source: list[Tensor],
    seen_target: list[Tensor],
    args: argparse.Namespace,
    gradients: Gradients,
) -> None:
    """(3) L_D: adds each discriminator's gradients on detached predictions of both domains, halved each."""
    for level, discriminator in enumerate(discriminators):
        for name, view, domain in (("source", seen_source[level], SOURCE), ("target", seen_target[level], TARGET)):
            with gradients.autocast():
                scores = discriminator(view)
                loss = GANS[args.gan](scores, domain) / 2
            gradients.backward(loss)
            title, accuracy = f"discriminator{SUFFIX[level]}", domain_accuracy(scores.detach(), domain, args.gan)
            gradients.log(**{f"{title}_{name}": loss, f"{title}_accuracy_{name}": accuracy})


if __name__ == "__main__":
    run_script(main)
