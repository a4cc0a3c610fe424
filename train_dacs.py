"""Extension, a mean teacher with mixed sampling: DACS (Tranheden et al., WACV 2021), and what others added to it.

The teacher, a moving average of the student, labels target pictures; half of a source picture's classes are pasted
onto a target picture, labels likewise; the student learns the source's labels and the mixed picture's.

    python train_dacs.py --gta5 DIR --cityscapes DIR                 DACS
    python train_dacs.py ... --rare-classes                          + DAFormer's sampling of the source (CVPR 2022)
    python train_dacs.py ... --lambda-mask 1                         + masked image consistency (MIC, CVPR 2023)
    python train_dacs.py ... --beta 0.01                             + the source in the target's style (FDA, CVPR 2020)
    python train_dacs.py ... --recipe best                           the ablation's best so far, RECIPES below
    python train_dacs.py ... --teacher-checkpoint FILE               distillation: a heavier network labels the target
    python train_dacs.py --demo                                      street scenes, minutes on a CPU

The moving average is the headline, what is kept and deployed, also where a frozen network of another architecture
labels in its place. Its batch normalisation has the target's statistics, of pictures as they are trained on (scaled
and cropped; `eval.py --adapt-bn` takes whole ones), the student's a mixture's. The student's figures on the target
stand beside it in metrics.jsonl and on the console.

A target picture scaled down is surrounded by the mean colour, and having no label says nowhere where: the teacher
labels that border too. `--scales 1 1.5 1.75 2` leaves it out, for both domains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptation.fda import fda
from adaptation.losses import cross_entropy, segmentation_loss, weighted_by_pixel
from adaptation.masking import masked
from adaptation.mean_teacher import DECAY, follow, label, main_output, teach, teacher_of
from adaptation.mixing import SURE, StrongAugmentation, class_mask, mix, pseudo_label_weight
from datasets.appearance import Appearance, to_float
from datasets.frequencies import class_counts
from datasets.geometry import resize_label
from datasets.labels import Classes
from datasets.rare_classes import RareClasses
from models.layers import resize
from training.building import geometry, pixel_loss, poly, segmenter, sgd, source_sets, target_set
from training.checkpoint import describe, load_checkpoint, network_for, sha256
from training.flags import parse, training_parser
from training.run import Run
from utils.errors import UserError, run_script
from utils.flags import number

RECIPES = {
    "dacs": {},
    "best": {"beta": 0.01, "decay": 0.95, "confidence": 0.8, "loss": "weighted"},
}
"""What --recipe stands for: defaults of this script's flags. `best` is what the ablation chose, on seeds that are in
no table (docs/results.md; 700 steps from scratch)."""


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True)
    dacs = parser.add_argument_group("mean teacher and mixed sampling")
    dacs.add_argument(
        "--recipe", choices=RECIPES, default="dacs",
        help="dacs: the paper's; best: " + ", ".join(f"{flag} {value}" for flag, value in RECIPES["best"].items())
        + ". Flags given beside it win (%(default)s)",
    )  # fmt: skip
    dacs.add_argument(
        "--lambda-mix", type=number(0, 100), default=1.0, metavar="X", help="weight of the mixed pictures' loss (1)"
    )
    dacs.add_argument(
        "--lambda-mask", type=number(0, 100), default=0.0, metavar="X",
        help="weight of the loss on target pictures of which blocks are hidden, MIC's: 1 (0)",
    )  # fmt: skip
    dacs.add_argument(
        "--rare-classes", action=argparse.BooleanOptionalAction, default=False,
        help="draw source pictures by their classes, rare ones more often; an epoch is as many draws as pictures",
    )  # fmt: skip
    dacs.add_argument(
        "--beta", type=number(0, 0.499), metavar="B", help="the source in the target's style: FDA's band (off)"
    )
    dacs.add_argument(
        "--confidence", type=number(0, 1), default=SURE, metavar="P",
        help="a pixel of which the teacher is surer counts as sure; the share of them weighs the target's pixels "
        "(%(default)s)",
    )  # fmt: skip
    dacs.add_argument(
        "--decay", type=number(0, 0.9999), default=DECAY, metavar="D",
        help="of the teacher's average, over about the last 1 / (1 - D) steps: less for short runs (%(default)s)",
    )  # fmt: skip
    dacs.add_argument(
        "--teacher-checkpoint", type=Path, metavar="FILE", help="a network, adapted before, that labels the target"
    )
    dacs.add_argument(
        "--teacher", choices=("frozen", "moving"),
        help="frozen: any network, as it is; moving: one of the student's architecture, from which both start, then "
        "the student's average (moving; with --teacher-checkpoint frozen)",
    )  # fmt: skip
    return parse(parser, RECIPES)


def main() -> None:
    args = parse_args()
    train_source, held_out = source_sets(args)
    frozen = with_teacher(args, train_source.classes)
    train_target, val = target_set(args, "train", labelled=False), target_set(args, "val")

    run = Run(args, train_source, train_target, val)
    if args.teacher == "moving" and args.teacher_checkpoint is not None:
        args.init = args.teacher_checkpoint
    student = segmenter(args, len(run.classes))
    teacher = teacher_of(student)
    optimizer = sgd(student, args)
    schedule = poly(optimizer, run.total_steps)
    counts = class_counts(train_source, args.workers, args.on_bad_sample == "skip") if args.rare_classes else None
    rare = None if counts is None else RareClasses(counts, train_source.classes)
    criterion = pixel_loss(args, train_source, counts)
    run.restore(teacher, init=args.init, student=student, optimizer=optimizer, schedule=schedule)
    if run.step == 0:  # --init went to the network that checkpoints keep; both start from it
        student.load_state_dict(teacher.state_dict())
    source = run.stream(train_source, geometry(args, args.source_size), rare)
    target = run.stream(train_target, geometry(args, args.size))
    appearance, augment = Appearance(args.jitter, args.blur), StrongAugmentation()
    if rare is not None:
        print(f"source pictures by class, an epoch is as many draws as there are pictures: {rare}")
    gradients = run.gradients

    for _ in run.epochs():
        student.train()
        for (images, labels), target_images in run.steps(source, target):
            images, target_images = appearance(images), to_float(target_images)
            if args.beta is not None:
                images = fda(images, target_images, args.beta)
            with gradients.autocast():
                loss = segmentation_loss(student(images), labels, args.aux_weight, criterion)
            gradients.backward(loss)

            with gradients.autocast():
                pseudo_labels, confidence = teach(teacher, target_images)
                if frozen is not None:
                    pseudo_labels, confidence = label(frozen, target_images)
            sure = pseudo_label_weight(confidence, args.confidence)
            run.log(loss=loss, sure=sure)
            if args.lambda_mix > 0:
                images, labels = brought_to(target_images, images, labels)
                mask = class_mask(labels)
                mixed = augment(mix(mask, images, target_images))
                mixed_labels = mix(mask, labels, pseudo_labels)
                weights = mix(mask, torch.ones_like(confidence), sure.expand_as(confidence))
                shown = [images[0], target_images[0], pseudo_labels[0], mixed[0], mixed_labels[0]]
                run.show("dacs/source-target-labels-mixed-labels", shown)
                # The main output alone: the auxiliary losses are the source's, DACS has none.
                with gradients.autocast():
                    loss_mix = weighted_by_pixel(main_output(student, mixed), mixed_labels, weights)
                gradients.backward(args.lambda_mix * loss_mix)
                run.log(loss_mix=loss_mix)
            if args.lambda_mask > 0:
                hidden = masked(augment(target_images))
                run.show("mic/target-masked-labels", [target_images[0], hidden[0], pseudo_labels[0]])
                with gradients.autocast():
                    loss_mask = sure * cross_entropy(main_output(student, hidden), pseudo_labels)
                gradients.backward(args.lambda_mask * loss_mask)
                run.log(loss_mask=loss_mask)
            gradients.update(optimizer, schedule)
            if gradients.last_part:
                follow(teacher, student, run.step, args.decay)
        run.evaluate(teacher, target=val, source=held_out, beside={"student": student})
    run.finish()


def with_teacher(args: argparse.Namespace, classes: Classes) -> nn.Module | None:
    """What --teacher and --teacher-checkpoint ask for: a frozen network that labels the target, or None where the
    student's average does; notes the content of the checkpoint. Raises `UserError` for what cannot be combined."""
    path = args.teacher_checkpoint
    args.teacher = args.teacher or ("moving" if path is None else "frozen")
    args.teacher_sha256 = path and sha256(path)
    if path is None:
        if args.teacher == "frozen":
            raise UserError("--teacher frozen: name the network that labels, --teacher-checkpoint FILE")
        return None
    if args.teacher == "frozen":
        return network_for(path, classes).to(args.device).requires_grad_(False).eval()
    if args.init is not None:
        raise UserError("--teacher moving: the student starts from --teacher-checkpoint; leave --init out")
    found = load_checkpoint(path)["network"]
    if (found.get("name"), found.get("backbone")) != (args.model, args.backbone):
        raise UserError(
            f"--teacher moving: {path} holds {describe(found)}, and an average of {args.model} with {args.backbone} "
            "cannot start from it; --teacher frozen takes any network"
        )
    return None


def brought_to(target: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Source pictures [B, 3, h, w] and labels [B, h, w] at the target's size, so that they can be mixed."""
    height, width = target.shape[-2:]
    if images.shape[-2:] == target.shape[-2:]:
        return images, labels
    return resize(images, (height, width)), torch.stack([resize_label(ids, (width, height)) for ids in labels])


if __name__ == "__main__":
    run_script(main)
