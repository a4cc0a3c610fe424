"""Extension, a mean teacher with mixed sampling: DACS (Tranheden et al., WACV 2021).

The teacher, a moving average of the student, labels target pictures; half of a source picture's classes are pasted
onto a target picture, labels likewise; the student learns the source's labels and the mixed picture's.

    python train_dacs.py --gta5 DIR --cityscapes DIR
    python train_dacs.py --demo                        street scenes, minutes on a CPU

The teacher is the headline, what is kept and deployed: its batch normalisation has the target's statistics, the
student's a mixture's. The student's figures on the target stand beside it in metrics.jsonl and on the console.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

from datasets.geometry import resize_label
from models.layers import resize
from utils.appearance import Appearance, to_float
from utils.arguments import (
    geometry,
    number,
    parse,
    pixel_loss,
    poly,
    segmenter,
    sgd,
    source_sets,
    target_set,
    training_parser,
)
from utils.errors import run_script
from utils.losses import segmentation_loss, weighted_by_pixel
from utils.mean_teacher import follow, teach, teacher_of
from utils.mixing import StrongAugmentation, class_mask, mix, pseudo_label_weight
from utils.run import Run


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True)
    dacs = parser.add_argument_group("mean teacher and mixed sampling")
    dacs.add_argument(
        "--lambda-mix", type=number(0, 100), default=1.0, metavar="X", help="weight of the mixed pictures' loss (1)"
    )
    return parse(parser)


def main() -> None:
    args = parse_args()
    train_source, held_out = source_sets(args)
    train_target, val = target_set(args, "train", labelled=False), target_set(args, "val")

    run = Run(args, train_source, train_target, val)
    student = segmenter(args)
    teacher = teacher_of(student)
    optimizer = sgd(student, args)
    schedule = poly(optimizer, run.total_steps)
    criterion = pixel_loss(args, train_source)
    run.restore(teacher, student=student, optimizer=optimizer, schedule=schedule)
    source = run.stream(train_source, geometry(args, args.source_size))
    target = run.stream(train_target, geometry(args, args.size))
    appearance, augment = Appearance(args.jitter, args.blur), StrongAugmentation()
    gradients = run.gradients

    for _ in run.epochs():
        student.train()
        for (images, labels), target_images in run.steps(source, target):
            images, target_images = appearance(images), to_float(target_images)
            with gradients.autocast():
                loss = segmentation_loss(student(images), labels, args.aux_weight, criterion)
            gradients.backward(loss)
            run.log(loss=loss)

            with gradients.autocast():
                pseudo_labels, confidence = teach(teacher, target_images)
            if args.lambda_mix > 0:
                sure = pseudo_label_weight(confidence)
                images, labels = brought_to(target_images, images, labels)
                mask = class_mask(labels)
                mixed = augment(mix(mask, images, target_images))
                mixed_labels = mix(mask, labels, pseudo_labels)
                weights = mix(mask, torch.ones_like(confidence), sure.expand_as(confidence))
                run.show("dacs/source-target-mixed", [images[0], target_images[0], mixed[0]])
                criterion_mix = partial(weighted_by_pixel, weights=weights)
                with gradients.autocast():
                    loss_mix = segmentation_loss(student(mixed), mixed_labels, args.aux_weight, criterion_mix)
                gradients.backward(args.lambda_mix * loss_mix)
                run.log(loss_mix=loss_mix, sure=sure)
            gradients.update(optimizer, schedule)
            if gradients.last_part:
                follow(teacher, student, run.step)
        run.evaluate(teacher, target=val, source=held_out, beside={"student": student})
    run.finish()


def brought_to(target: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Source pictures [B, 3, h, w] and labels [B, h, w] at the target's size, so that they can be mixed."""
    height, width = target.shape[-2:]
    if images.shape[-2:] == target.shape[-2:]:
        return images, labels
    return resize(images, (height, width)), torch.stack([resize_label(label, (width, height)) for label in labels])


if __name__ == "__main__":
    run_script(main)
