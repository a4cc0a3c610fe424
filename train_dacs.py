"""Extension, a mean teacher with mixed sampling: DACS (Tranheden et al., WACV 2021), and what others added to it.

The teacher, a moving average of the student, labels target pictures; half of a source picture's classes are pasted
onto a target picture, labels likewise; the student learns the source's labels and the mixed picture's.

    python train_dacs.py --gta5 DIR --cityscapes DIR                 DACS
    python train_dacs.py ... --rare-classes                          + DAFormer's sampling of the source (CVPR 2022)
    python train_dacs.py ... --lambda-mask 1                         + masked image consistency (MIC, CVPR 2023)
    python train_dacs.py ... --beta 0.01                             + the source in the target's style (FDA, CVPR 2020)
    python train_dacs.py ... --recipe best                           without labels of the target, RECIPES below
    python train_dacs.py ... --recipe labels                         with them
    python train_dacs.py ... --teacher-checkpoint FILE               distillation: a heavier network labels the target
    python train_dacs.py ... --labels DIR                            so do files, which any network may have made
    python train_dacs.py --demo                                      street scenes, minutes on a CPU

The moving average is the headline: it is what checkpoints keep, also where a frozen network of another architecture
labels in its place. Its batch normalisation has the target's statistics, taken from pictures as they are trained on
(scaled and cropped; `eval.py --adapt-bn` takes whole ones). The student's has those of mixed pictures. Its figures on
the target stand beside the headline in metrics.jsonl and on the console.

A target picture that was scaled down is surrounded by the mean colour. It has no label that says where, so the teacher
labels that border too. `--scales 1,1.5,1.75,2` avoids such borders, in both domains.
"""

from __future__ import annotations

from utils.errors import refuse_idle, run_script  # before torch, for a quick --help

# isort: split

import argparse
from typing import Any

import torch
from torch import Tensor

from adaptation.fda import fda
from adaptation.losses import cross_entropy, weighted_by_pixel
from adaptation.masking import masked
from adaptation.mean_teacher import decay_over, follow, label, main_output, teach, teacher_of
from adaptation.mixing import SURE, StrongAugmentation, class_mask, labelled_share, mix, pseudo_label_weight
from adaptation.recolouring import Recolouring
from datasets.appearance import Appearance, to_float
from datasets.frequencies import class_counts
from datasets.geometry import resize_label
from datasets.labels import IGNORE
from datasets.rare_classes import RareClasses
from models.layers import resize
from training.building import both_domains, geometry, given_labels, poly, segmenter, sgd, supervised_loss
from training.checkpoint import network_for
from training.flags import parse, training_parser
from training.method_flags import add_labels_flag, add_style_flag
from training.run import Run
from training.teachers import add_teacher_flags, choose_teacher
from utils.flags import number

RECIPES = {
    "dacs": {},
    "best": {"beta": 0.01, "decay": None, "average_share": 0.029, "confidence": 1.0, "loss": "tempered"},
    "labels": {"beta": 0.01, "decay": None, "average_share": 0.029, "confidence": 0.8, "loss": "weighted"},
}
"""What --recipe stands for: defaults of this script's flags, chosen on seeds that are in no table (docs/results.md), in
700 steps from scratch; 0.029 of those is 20 steps, a decay of 0.95. In `best` no pixel is surer than 1: source pixels
are pasted on the target's pictures, whose own pixels teach nothing. `labels` is 1 point better from day to dusk, and 2
to 5 points worse from drawn scenes to photographs, where the labels are often wrong."""


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True, first="--recipe")
    dacs = parser.add_argument_group("mean teacher and mixed sampling")
    dacs.add_argument(
        "--recipe", choices=RECIPES, default="dacs",
        help="defaults of other flags. dacs: the paper's; "
        + "; ".join(f"{recipe}: {said(RECIPES[recipe])}" for recipe in ("best", "labels"))
        + ". A flag given beside it wins (%(default)s)",
    )  # fmt: skip
    dacs.add_argument(
        "--lambda-mix", type=number(0, 100), default=1.0, metavar="X", help="weight of the loss on mixed pictures (1)"
    )
    dacs.add_argument(
        "--lambda-mask", type=number(0, 100), default=0.0, metavar="X",
        help="weight of the loss on target pictures with hidden blocks; MIC's is 1 (0)",
    )  # fmt: skip
    dacs.add_argument(
        "--rare-classes", action=argparse.BooleanOptionalAction, default=False,
        help="draw source pictures with rare classes more often; an epoch has as many draws as there are pictures",
    )  # fmt: skip
    add_style_flag(dacs)
    dacs.add_argument(
        "--confidence", type=number(0, 1), default=SURE, metavar="P",
        help="a pixel is sure when the teacher gives its class a higher probability. The share of sure pixels is the "
        "weight of all pixels of the target; 1: they teach nothing (%(default)s)",
    )  # fmt: skip
    add_teacher_flags(dacs)
    add_labels_flag(dacs)
    return parse(parser, RECIPES, settle)


def settle(args: argparse.Namespace) -> None:
    """Which network labels and when its labels are sure. Raises `UserError` for flags that mean nothing together."""
    choose_teacher(args)
    if args.lambda_mix == args.lambda_mask == 0:
        refuse_idle("no loss is left that takes the labels", "confidence", "labels", "teacher_checkpoint")
    if args.labels is not None and args.confidence == 1:
        args.confidence = SURE  # a recipe's; every given label is sure
    if args.confidence == 1:
        reason = "--confidence is 1, here or in --recipe best, and no pixel of the target is surer; give a lower one"
        refuse_idle(reason, "lambda_mask", *(["teacher_checkpoint"] if args.teacher == "frozen" else []))


def said(recipe: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in recipe.items() if value is not None)


def main() -> None:
    args = parse_args()
    data = both_domains(args)
    frozen = None
    if args.teacher == "frozen":
        frozen = network_for(args.teacher_checkpoint, data.source.classes).to(args.device).requires_grad_(False).eval()

    labelled_target = given_labels(args, data.target)
    run = Run(args, data.source, data.target, data.val)
    if args.teacher == "moving":
        args.init = args.teacher_checkpoint or args.init
    student = segmenter(args, len(run.classes))
    teacher = teacher_of(student)
    optimizer = sgd(student, args.lr, args.weight_decay)
    schedule = poly(optimizer, run.total_steps)
    counts = class_counts(data.source, args.workers, args.on_bad_sample == "skip") if args.rare_classes else None
    rare = None if counts is None else RareClasses(counts, data.source.classes)
    criterion = supervised_loss(args, data.source, counts)
    run.restore(teacher, init=args.init, student=student, optimizer=optimizer, schedule=schedule)
    if run.step == 0:  # --init went to the network that checkpoints keep; both start from it
        student.load_state_dict(teacher.state_dict())
    source = run.stream(data.source, geometry(args, args.source_size), rare)
    target = run.stream(labelled_target, geometry(args, args.size))
    appearance, recolour = Appearance(args.jitter, args.blur), Recolouring(args.recolour)
    augment = StrongAugmentation()
    if rare is not None:
        print(f"source pictures by class, an epoch has as many draws as there are pictures: {rare}")
    gradients = run.gradients
    decay = args.decay if args.average_share is None else decay_over(args.average_share * run.total_steps)

    for _ in run.epochs():
        student.train()
        for (images, labels), drawn in run.steps(source, target):
            target_images, given = (drawn, None) if args.labels is None else drawn
            images, target_images = recolour(appearance(images), labels), to_float(target_images)
            if args.beta is not None:
                images = fda(images, target_images, args.beta)
            with gradients.autocast():
                loss = criterion(student(images), labels)
            gradients.backward(loss)

            with gradients.autocast():
                pseudo_labels, confidence = teach(teacher, target_images)
                if frozen is not None:
                    pseudo_labels, confidence = label(frozen, target_images)
                elif given is not None:
                    pseudo_labels, confidence = given, (given != IGNORE).float()
            sure = pseudo_label_weight(confidence, args.confidence) if given is None else labelled_share(given)
            run.log(loss=loss, sure=sure)
            if args.lambda_mix > 0:
                images, labels = brought_to(target_images, images, labels)
                mask = class_mask(labels)
                mixed = augment(mix(mask, images, target_images))
                mixed_labels = mix(mask, labels, pseudo_labels)
                weights = mix(mask, torch.ones_like(confidence), sure.expand_as(confidence))
                shown = [images[0], target_images[0], pseudo_labels[0], mixed[0], mixed_labels[0]]
                run.show("dacs/source-target-labels-mixed-labels", shown)
                # On the main output alone: DACS has no auxiliary losses, those here are the source's.
                with gradients.autocast():
                    loss_mix = weighted_by_pixel(main_output(student, mixed), mixed_labels, weights)
                gradients.backward(args.lambda_mix * loss_mix, args.lambda_mix)
                run.log(loss_mix=loss_mix)
            if args.lambda_mask > 0:
                hidden = masked(augment(target_images))
                run.show("mic/target-masked-labels", [target_images[0], hidden[0], pseudo_labels[0]])
                with gradients.autocast():
                    loss_mask = sure * cross_entropy(main_output(student, hidden), pseudo_labels)
                gradients.backward(args.lambda_mask * loss_mask, args.lambda_mask)
                run.log(loss_mask=loss_mask)
            gradients.update(optimizer, schedule)
            if gradients.last_part:
                follow(teacher, student, run.step, decay)
        run.evaluate(teacher, target=data.val, source=data.held_out, beside={"student": student})
    run.finish()


def brought_to(target: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Source pictures [B, 3, h, w] and labels [B, h, w] at the target's size, so that they can be mixed."""
    height, width = target.shape[-2:]
    if images.shape[-2:] == target.shape[-2:]:
        return images, labels
    return resize(images, (height, width)), torch.stack([resize_label(ids, (width, height)) for ids in labels])


if __name__ == "__main__":
    run_script(main)
