"""Step 3, adversarial adaptation (Tables 2 and 3): labelled GTA5, unlabelled Cityscapes, a discriminator between them.

AdaptSegNet (Tsai et al., CVPR 2018): the segmenter learns the source's labels and to make its predictions on the
target look like its predictions on the source. AdvEnt and MinEnt (Vu et al., CVPR 2019) are its siblings on entropy.
FADA (Wang et al., ECCV 2020) aligns features, class by class. IntraDA (Pan et al., CVPR 2020) adapts a second time,
from the target's easy pictures to its hard ones.

    python train_adversarial.py --gta5 DIR --cityscapes DIR                                  standard discriminator
    python train_adversarial.py --gta5 DIR --cityscapes DIR --discriminator depthwise        the lightweight one
    python train_adversarial.py --gta5 DIR --cityscapes DIR --discriminator shallow          RTDA's, lighter still
    python train_adversarial.py --gta5 DIR --cityscapes DIR --input entropy                  AdvEnt
    python train_adversarial.py --gta5 DIR --cityscapes DIR --discriminator none --min-entropy      MinEnt
    python train_adversarial.py --gta5 DIR --cityscapes DIR --model deeplabv2 --level multi  multi-level
    python train_adversarial.py --gta5 DIR --cityscapes DIR --discriminator class --level feature   FADA
    python train_adversarial.py --cityscapes DIR --input entropy --intra runs/ADVENT         IntraDA
    python train_adversarial.py --demo                                          street scenes, minutes on a CPU

The target passes through the network in training mode and moves the running statistics of batch normalisation, also at
--lambda-adv 0. Such a run is no source-only baseline: it measures that effect alone. --bn-statistics target keeps the
target's statistics only.

A target picture that was scaled down is surrounded by the mean colour. Discriminator and MinEnt see that border too;
`--scales 1,1.5,1.75,2` avoids it, in both domains.
"""

from __future__ import annotations

from utils.errors import run_script  # before torch, for a quick --help

# isort: split

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptation.adabn import statistics_kept
from adaptation.adversarial import GANS, INPUTS, SOURCE, TARGET, Gan, View
from adaptation.class_level import soft_labels
from adaptation.entropy import class_prior_loss, min_entropy_loss
from adaptation.losses import Outputs, SegmentationLoss, segmentation_loss
from adaptation.recolouring import Recolouring
from datasets.appearance import Appearance, to_float
from datasets.frequencies import class_counts, class_shares
from models import DISCRIMINATORS
from training.adversaries import discriminators_for, gan_for, require_meaning
from training.building import adam, geometry, poly, segmenter, sgd, supervised_loss
from training.flags import parse, training_parser
from training.gradients import Gradients
from training.intra_domain import add_intra_flags, domains, split_by_entropy
from training.method_flags import add_statistics_flag
from training.run import Run
from utils.flags import add_choice, number

ENDINGS = ("", "_auxiliary")
"""Of what is logged: for the discriminator of the main logits, and for that of the auxiliary ones."""


def parse_args() -> argparse.Namespace:
    parser = training_parser(__doc__, source=True, first="--discriminator")
    adversarial = parser.add_argument_group("adversarial adaptation")

    def add(flag: str, default: float, what: str, most: float = 100) -> None:
        kind, said = number(0, most), f"{what} ({default:g})"
        adversarial.add_argument(flag, type=kind, default=default, metavar="X", help=said)

    add_choice(adversarial, "--discriminator", DISCRIMINATORS, "standard", "the network that tells the domains apart",
               none="no adversary")  # fmt: skip
    adversarial.add_argument(
        "--level", choices=("output", "multi", "feature"), default="output",
        help="where the discriminator looks. output: the main logits; multi: a second one looks at the auxiliary "
        "logits; feature: the features at 1/8 that the network makes its logits from (%(default)s)",
    )  # fmt: skip
    add_choice(adversarial, "--input", INPUTS, "softmax", "what the discriminator sees of the logits")
    add_choice(adversarial, "--gan", GANS, "vanilla", "loss of the discriminator's scores")
    add("--lambda-adv", 1e-3, "weight of the adversarial loss")
    add("--lambda-adv-aux", 2e-4, "the same for the auxiliary logits, with --level multi")
    add("--lr-d", 1e-4, "learning rate of the discriminator", most=1)
    adversarial.add_argument("--min-entropy", action="store_true", help="add MinEnt's loss on the target")
    add("--lambda-entropy", 1e-3, "weight of MinEnt's loss")
    add("--lambda-entropy-aux", 0.0, "the same for the auxiliary logits, with --level multi; ADVENT's is 0.0002")
    add("--entropy-range", 1.0, "MinEnt's loss: over this share of a picture's pixels, the unsure; ADVENT: 0.3", most=1)
    add("--class-prior", 0.0, "have each class expect this part of its share of the source; ADVENT: 0.5", most=1)
    add("--lambda-prior", 1e-3, "weight of the loss for that; no source that we know names one")
    add_intra_flags(adversarial)
    add_statistics_flag(adversarial)
    args = parse(parser)
    require_meaning(args)
    return args


def main() -> None:
    args = parse_args()
    data = domains(args)

    run = Run(args, data.source, data.target, data.val)
    model = segmenter(args, len(run.classes), multi_level=args.level == "multi")
    optimizer = sgd(model, args.lr, args.weight_decay)
    schedule = poly(optimizer, run.total_steps)
    counts = class_counts(data.source, args.workers, args.on_bad_sample == "skip") if args.class_prior > 0 else None
    criterion = supervised_loss(args, data.source, counts)
    discriminators = discriminators_for(model, args.discriminator, args.level)
    optimizers_d = [adam(discriminator, args.lr_d) for discriminator in discriminators]
    schedules_d = [poly(optimizer_d, run.total_steps) for optimizer_d in optimizers_d]
    run.restore(model, optimizer=optimizer, schedule=schedule, discriminator=discriminators,
                discriminator_optimizer=optimizers_d, discriminator_schedule=schedules_d)  # fmt: skip
    data = split_by_entropy(args, run, data)
    source = run.stream(data.source, geometry(args, args.source_size))
    target = run.stream(data.target, geometry(args, args.size))
    appearance, recolour = Appearance(args.jitter, args.blur), Recolouring(args.recolour)
    gradients = run.gradients
    aux = (args.lambda_entropy_aux,) if args.level == "multi" and args.lambda_entropy_aux > 0 else ()
    step = AdversarialStep(
        model, discriminators, gradients, criterion, args.level, args.input, gan_for(args.discriminator, args.gan),
        lambda_adv=(args.lambda_adv, args.lambda_adv_aux)[: len(discriminators)],
        lambda_entropy=(args.lambda_entropy, *aux) if args.min_entropy else (),
        entropy_range=args.entropy_range,
        least=None if counts is None else args.class_prior * class_shares(counts).to(args.device),
        lambda_prior=0.0 if counts is None else args.lambda_prior,
        target_statistics=args.bn_statistics == "target",
    )  # fmt: skip

    for _ in run.epochs():
        model.train()
        for (images, labels), target_images in run.steps(source, target):
            images, target_images = recolour(appearance(images), labels), to_float(target_images)
            run.show("adversarial/source-target", [images[0], target_images[0]])
            seen_source = step.source_gradients(images, labels)
            seen_target = step.target_gradients(target_images)
            gradients.update(optimizer, schedule)
            step.discriminator_gradients(seen_source, seen_target)
            for optimizer_d, schedule_d in zip(optimizers_d, schedules_d, strict=True):
                gradients.update(optimizer_d, schedule_d)
        run.evaluate(model, target=data.val, source=data.held_out)
    run.finish()


@dataclass
class AdversarialStep:
    """The three losses of AdaptSegNet (the algorithm of its section 4), with what stays the same over a run. Each part
    adds gradients and updates nothing. Pictures are float [B, 3, H, W] in [0, 1], each domain at its own size; labels
    are uint8 [B, H, W]. lambda_adv: of the main and the auxiliary discriminator; lambda_entropy: MinEnt's of the main
    and the auxiliary logits, if any; least: see `class_prior_loss`, None without it."""

    model: nn.Module
    discriminators: list[nn.Module]
    gradients: Gradients
    criterion: SegmentationLoss = segmentation_loss
    level: str = "output"
    input: str = "softmax"
    gan: Gan = GANS["vanilla"]
    lambda_adv: tuple[float, ...] = (1e-3, 2e-4)
    lambda_entropy: tuple[float, ...] = ()
    entropy_range: float = 1.0
    least: Tensor | None = None
    lambda_prior: float = 0.0
    target_statistics: bool = False

    def views(self, features: tuple[Tensor, ...], outputs: Outputs) -> list[View]:
        """What each discriminator sees of one domain, the main one first."""
        logits, auxiliary = outputs
        if self.level == "feature":
            return [View(features[0], soft_labels(logits, features[0].shape[-2:]) if self.gan.by_class else None)]
        shown = [logits, auxiliary[0]] if self.level == "multi" else [logits]
        return [View(INPUTS[self.input].function(maps)) for maps in shown]

    def source_gradients(self, images: Tensor, labels: Tensor) -> list[View]:
        """(1) L_seg: the segmenter learns the source's labels. Returns the source's views, detached."""
        with self.gradients.autocast(), statistics_kept(self.model, self.target_statistics):
            features = self.model.features(images)
            outputs = self.model.decode(features, images.shape[-2:])
            loss = self.criterion(outputs, labels)
        self.gradients.backward(loss)
        self.gradients.log(loss=loss)
        return [view.detached() for view in self.views(features, outputs)]

    def target_gradients(self, images: Tensor) -> list[View]:
        """(2) lambda_adv * L_adv: the segmenter learns to make its predictions on the target look like the source's.
        The discriminators get no gradients. Returns the target's views, detached."""
        for discriminator in self.discriminators:
            discriminator.requires_grad_(False)
        with self.gradients.autocast():
            features = self.model.features(images)
            outputs = self.model.decode(features, images.shape[-2:])
            seen = self.views(features, outputs)
            loss = torch.zeros((), device=images.device)
            for level, discriminator in enumerate(self.discriminators):
                adversarial = seen[level].loss(self.gan, discriminator(seen[level].maps), SOURCE)
                loss = loss + self.lambda_adv[level] * adversarial
                self.gradients.log(**{f"adversarial{ENDINGS[level]}": adversarial})
            for level, weight in enumerate(self.lambda_entropy):
                entropy = min_entropy_loss((outputs[0], *outputs[1])[level], self.entropy_range)
                loss = loss + weight * entropy
                self.gradients.log(**{f"min_entropy{ENDINGS[level]}": entropy})
            if self.least is not None:
                lacking = class_prior_loss(outputs[0], self.least)
                loss = loss + self.lambda_prior * lacking
                self.gradients.log(class_prior=lacking)
        self.gradients.backward(loss, max([*self.lambda_adv, *self.lambda_entropy, self.lambda_prior]))
        for discriminator in self.discriminators:
            discriminator.requires_grad_(True)
        return [view.detached() for view in seen]

    def discriminator_gradients(self, seen_source: list[View], seen_target: list[View]) -> None:
        """(3) L_D: each discriminator learns to tell the two domains' views apart; each domain counts half."""
        for level, discriminator in enumerate(self.discriminators):
            title = f"discriminator{ENDINGS[level]}"
            for name, view, domain in (("source", seen_source[level], SOURCE), ("target", seen_target[level], TARGET)):
                with self.gradients.autocast():
                    scores = discriminator(view.maps)
                    loss = view.loss(self.gan, scores, domain) / 2
                self.gradients.backward(loss)
                right = self.gan.accuracy(scores.detach(), domain)
                self.gradients.log(**{f"{title}_{name}": loss, f"{title}_accuracy_{name}": right})


if __name__ == "__main__":
    run_script(main)
