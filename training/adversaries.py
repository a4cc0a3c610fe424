"""The discriminators of a run: which ones go with which flags and networks, and what they are trained by."""

from __future__ import annotations

import argparse

import torch
from torch import nn

import models
from adaptation.adversarial import GANS, Gan
from adaptation.class_level import CLASS_LEVEL
from models import DISCRIMINATORS, SEGMENTERS
from utils.errors import UserError, refuse_idle


def require_meaning(args: argparse.Namespace) -> None:
    """Raises `UserError` for flags of `train_adversarial.py` that mean nothing together."""
    kind = DISCRIMINATORS.get(args.discriminator)
    if args.level == "feature" and args.input == "entropy":
        raise UserError("--level feature with --input entropy: features are no probabilities and have no entropy")
    if args.level == "multi" and SEGMENTERS[args.model].multi_level_options is None:
        raise UserError(f"--level multi: {SEGMENTERS[args.model].title} has no auxiliary logits to look at")
    if kind is not None and kind.by_class and args.level != "feature":
        raise UserError(f"--discriminator {args.discriminator} looks at features: add --level feature")
    if kind is not None and kind.by_class and args.gan != "vanilla":
        raise UserError(f"--discriminator {args.discriminator} has a loss of its own: leave out --gan")
    least = 0 if kind is None else 8 * kind.min_side
    if args.level == "feature" and min(args.size + args.source_size) < least:
        raise UserError(
            f"--level feature: features are at 1/8, so the discriminator needs --size and --source-size of at least "
            f"{least}x{least}"
        )
    if kind is None and not args.min_entropy:
        raise UserError("--discriminator none: nothing is left to adapt with; add --min-entropy, or use train_gta5.py")
    if kind is None and args.level == "multi" and args.lambda_entropy_aux == 0:
        raise UserError("--level multi looks at the auxiliary logits: add --lambda-entropy-aux, ADVENT's is 0.0002")
    if kind is None and args.level == "feature":
        raise UserError("--level feature is what the discriminator looks at: leave it out, or take a discriminator")
    if kind is None:
        refuse_idle("there is no discriminator", "lambda_adv", "lambda_adv_aux", "lr_d", "gan", "input")
    if not args.min_entropy:
        refuse_idle("it takes --min-entropy", "lambda_entropy", "lambda_entropy_aux", "entropy_range")
    if args.level == "feature":
        refuse_idle("--level feature shows features", "input")
    if args.level != "multi":
        refuse_idle("it takes --level multi", "lambda_adv_aux", "lambda_entropy_aux")
    if args.class_prior == 0:
        refuse_idle("it takes --class-prior", "lambda_prior")


def gan_for(kind: str, name: str) -> Gan:
    """The loss of a discriminator's scores: the one of this name, or its own where they are by class."""
    return CLASS_LEVEL if kind in DISCRIMINATORS and DISCRIMINATORS[kind].by_class else GANS[name]


def discriminators_for(model: nn.Module, kind: str, level: str) -> list[nn.Module]:
    """None, one, or for multi-level two of them, on the segmenter's device."""
    if kind == "none":
        return []
    device, classes = next(model.parameters()).device, model.options["num_classes"]
    channels = [classes] * (2 if level == "multi" else 1)
    if level == "feature":
        with torch.no_grad():
            was = model.training
            channels = [model.eval().features(torch.zeros(1, 3, 64, 64, device=device))[0].shape[1]]
            model.train(was)
    return [models.build_discriminator(kind, number, classes).to(device) for number in channels]
