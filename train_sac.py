"""Extension, augmentation consistency: SAC (Araslanov and Roth, CVPR 2021).

The teacher, a moving average of the student, sees each target picture in several views: whole, and in random crops. The
mean of what it says labels every view, with a threshold for each class that is lower for rare classes. The student
learns the source's labels, and those of the views after a change of colour and blur.

    python train_sac.py --gta5 DIR --cityscapes DIR --init RUN     from an adapted network, as the paper does
    python train_sac.py ... --lambda-target 2 --confidence 0.1     the paper's constants for VGG-16
    python train_sac.py ... --decay 0.95                           a teacher for short runs
    python train_sac.py --demo --decay 0.95                        street scenes, minutes on a CPU

A step sees --batch-size views of the target, and so --batch-size / --views pictures: as many views as source pictures.
--scales and --flip move source pictures alone, since views are crops, and mirrored, themselves.

The moving average is the headline: it is what checkpoints keep. Its batch normalisation has the target's statistics,
taken from views; the paper freezes those of the network that it starts from, as DeepLabV2 with ImageNet weights does
here. Not built are the paper's sampling of target pictures by predicted class, and its normalisation of source pictures
to the target's colours. The strong augmentation is the one of train_dacs.py. The rate falls by the poly schedule; the
paper's is constant.
"""

from __future__ import annotations

from utils.errors import UserError, refuse_idle, run_script  # before torch, for a quick --help

# isort: split

import argparse

from adaptation.mean_teacher import follow, main_output, taught_probabilities, teacher_of
from adaptation.mixing import StrongAugmentation
from adaptation.recolouring import Recolouring
from adaptation.sac import KEPT, LEAST, ClassPrior, confident_focal_loss, labels_by_threshold
from adaptation.views import averaged, draw_views, warp
from datasets.appearance import Appearance, to_float
from datasets.geometry import Geometry
from datasets.labels import IGNORE
from training.building import both_domains, geometry, poly, segmenter, sgd, supervised_loss
from training.flags import parse, training_parser
from training.run import Run
from utils.distributed import ranks
from utils.flags import number, positive


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True, first="--init")
    sac = parser.add_argument_group("augmentation consistency")
    sac.add_argument(
        "--views", type=positive, default=4, metavar="T", help="of each target picture; the first is all of it (4)"
    )
    sac.add_argument(
        "--lambda-target", type=number(0, 100), default=5.0, metavar="X",
        help="weight of the loss on views of the target (5; the paper's for VGG-16: 2)",
    )  # fmt: skip
    sac.add_argument(
        "--confidence", type=number(0, 1), default=LEAST, metavar="P",
        help="a label's probability at least, however low its class's threshold (%(default)s; the paper's for VGG-16: "
        "0.1)",
    )  # fmt: skip
    sac.add_argument(
        "--decay", type=number(0, 0.9999), default=0.9999, metavar="D",
        help="the teacher averages about the last 1 / (1 - D) steps, without --init at most all so far; take a lower D "
        "for short runs (%(default)s, which is the paper's 0.99 once in 100 steps)",
    )  # fmt: skip
    args = parse(parser)
    if args.lambda_target == 0:
        refuse_idle("--lambda-target 0 leaves the labels out", "confidence")
    parts = ranks() * args.accumulate
    if args.batch_size % (args.views * parts):
        raise UserError(
            f"--batch-size {args.batch_size}: a batch is {args.views} views of each of several target pictures, so it "
            f"has to be divisible by --views {args.views} x {ranks()} process(es) x --accumulate {args.accumulate}"
        )
    return args


def main() -> None:
    args = parse_args()
    data = both_domains(args)
    run = Run(args, data.source, data.target, data.val)
    student = segmenter(args, len(run.classes))
    teacher = teacher_of(student)
    prior = ClassPrior(len(run.classes), KEPT ** (1 / args.accumulate)).to(args.device)
    optimizer = sgd(student, args.lr, args.weight_decay)
    schedule = poly(optimizer, run.total_steps)
    criterion = supervised_loss(args, data.source)
    run.restore(teacher, student=student, prior=prior, optimizer=optimizer, schedule=schedule)
    if run.step == 0:  # --init went to the network that checkpoints keep; both start from it
        student.load_state_dict(teacher.state_dict())
    source = run.stream(data.source, geometry(args, args.source_size))
    target = run.stream(data.target, Geometry(args.size), pictures=args.batch_size // args.views)
    appearance, recolour = Appearance(args.jitter, args.blur), Recolouring(args.recolour)
    augment = StrongAugmentation()
    gradients = run.gradients

    for _ in run.epochs():
        student.train()
        for (images, labels), target_images in run.steps(source, target):
            images = recolour(appearance(images), labels)
            with gradients.autocast():
                loss = criterion(student(images), labels)
            gradients.backward(loss)

            drawn = draw_views(len(target_images), args.views, args.device)
            views = warp(to_float(target_images), drawn)
            with gradients.autocast():
                probabilities = taught_probabilities(teacher, views)
            chi = prior.follow(probabilities)
            pseudo_labels, confidence = labels_by_threshold(averaged(probabilities, drawn), chi, args.confidence)
            run.log(loss=loss, labelled=(pseudo_labels != IGNORE).float().mean())
            if args.lambda_target > 0:
                strong = augment(views)
                shown = min(1, args.views - 1)  # a crop, where there is one
                run.show("sac/view-strong-labels", [views[shown], strong[shown], pseudo_labels[shown]])
                # On the main output alone, as in train_dacs.py.
                with gradients.autocast():
                    logits = main_output(student, strong)
                    loss_target = confident_focal_loss(logits, pseudo_labels, confidence, chi)
                gradients.backward(args.lambda_target * loss_target, args.lambda_target)
                run.log(loss_target=loss_target)
            gradients.update(optimizer, schedule)
            if gradients.last_part:
                follow(teacher, student, run.step, args.decay, warm_up=args.init is None)
        run.evaluate(teacher, target=data.val, source=data.held_out, beside={"student": student})
    run.finish()


if __name__ == "__main__":
    run_script(main)
