"""Step 2, the upper bound: BiSeNet trained and tested on Cityscapes (Table 1).

BiSeNet (Yu et al., ECCV 2018): SGD with the poly schedule, cross-entropy on the main and the two auxiliary outputs.

    python train_cityscapes.py --cityscapes DIR                     the paper's settings
    python train_cityscapes.py --cityscapes DIR --settings report   the student report's
    python train_cityscapes.py --demo                               street scenes, minutes on a CPU
"""

from __future__ import annotations

from utils.errors import run_script  # before torch, for a quick --help

# isort: split

import argparse

from datasets.appearance import to_float
from training.building import geometry, poly, segmenter, sgd, supervised_loss, target_set
from training.flags import parse, training_parser
from training.run import Run


def parse_args() -> argparse.Namespace:
    return parse(training_parser(__doc__, source=False))


def main() -> None:
    args = parse_args()
    train, val = target_set(args, "train"), target_set(args, "val")

    run = Run(args, train, val)
    model = segmenter(args, len(run.classes))
    optimizer = sgd(model, args.lr, args.weight_decay)
    schedule = poly(optimizer, run.total_steps)
    criterion = supervised_loss(args, train)
    run.restore(model, optimizer=optimizer, schedule=schedule)
    target = run.stream(train, geometry(args, args.size))
    gradients = run.gradients

    for _ in run.epochs():
        model.train()
        for images, labels in run.steps(target):
            pictures = to_float(images)
            with gradients.autocast():
                loss = criterion(model(pictures), labels)
            gradients.backward(loss)
            gradients.update(optimizer, schedule)
            run.log(loss=loss)
        run.evaluate(model, target=val)
    run.finish()


if __name__ == "__main__":
    run_script(main)
