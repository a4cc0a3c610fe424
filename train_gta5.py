"""Step 3, the domain shift: BiSeNet trained on GTA5, tested on Cityscapes (Tables 3 and 4 of the student report).

No target picture is seen in training. The rows of the augmentation table are flags:

    python train_gta5.py --gta5 DIR --cityscapes DIR --settings report                             none
    python train_gta5.py --gta5 DIR --cityscapes DIR --settings report --flip 0.15 --jitter        colour jitter
    python train_gta5.py --gta5 DIR --cityscapes DIR --settings report --flip 0.15 --blur          Gaussian blur
    python train_gta5.py --gta5 DIR --cityscapes DIR --settings report --flip 0.15 --jitter --blur both
    python train_gta5.py --demo                                                     street scenes, minutes on a CPU
"""

from __future__ import annotations

from utils.errors import run_script  # before torch, for a quick --help

# isort: split

import argparse

from adaptation.recolouring import Recolouring
from datasets.appearance import Appearance
from training.building import geometry, poly, segmenter, sgd, source_sets, supervised_loss, target_set
from training.flags import parse, training_parser
from training.run import Run


def parse_args() -> argparse.Namespace:
    return parse(training_parser(__doc__, source=True))


def main() -> None:
    args = parse_args()
    train, held_out = source_sets(args)
    val = target_set(args, "val")

    run = Run(args, train, val)
    model = segmenter(args, len(run.classes))
    optimizer = sgd(model, args.lr, args.weight_decay)
    schedule = poly(optimizer, run.total_steps)
    criterion = supervised_loss(args, train)
    run.restore(model, optimizer=optimizer, schedule=schedule)
    source = run.stream(train, geometry(args, args.source_size))
    appearance, recolour = Appearance(args.jitter, args.blur), Recolouring(args.recolour)
    gradients = run.gradients

    for _ in run.epochs():
        model.train()
        for images, labels in run.steps(source):
            pictures = recolour(appearance(images), labels)
            with gradients.autocast():
                loss = criterion(model(pictures), labels)
            gradients.backward(loss)
            gradients.update(optimizer, schedule)
            run.log(loss=loss)
        run.evaluate(model, target=val, source=held_out)
    run.finish()


if __name__ == "__main__":
    run_script(main)
