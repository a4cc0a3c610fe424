"""What a run's method is called in the literature, from its script and its flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptation.adversarial import INPUTS
from adaptation.mean_teacher import DECAY
from adaptation.mixing import SURE
from adaptation.pseudo_labels import RULES
from adaptation.sac import LEAST
from adaptation.translation import TRANSLATIONS
from datasets.domains import SOURCES, sources_of
from models import SEGMENTERS
from utils.files import is_there
from utils.tables import counted

from .checkpoint import load_checkpoint
from .resumption import arguments_of

PLAIN = {
    "loss": "ce",
    "level": "output",
    "gan": "vanilla",
    "lambda_adv": 1e-3,
    "lambda_adv_aux": 2e-4,
    "lr_d": 1e-4,
    "recolour": 0.0,
    "bn_statistics": "both",
    "rounds": 1,
    "init": None,
}
"""What a method's name does not say: the values in which it is as published."""
WEIGHT = 1e-3
"""Of MinEnt's loss, as published; and of the loss on the class prior, which has no published one."""
FADA = "class"
"""The discriminator that makes a method FADA, which looks at features."""
PLAIN_SELF_TRAINING = {"target_loss": None, "mrkld": 0, "lambda_entropy": 0, "lambda_source": 1, "lambda_target": 1}
"""The same of the loss on pseudo-labels."""


def trained_as(path: Path) -> str | None:
    """The method by which the network of a checkpoint was trained; None where it does not say, or in words of another
    version of this code."""
    config = load_checkpoint(path)["config"]
    try:
        return method_name(arguments_of(config))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def earlier_networks(given: Mapping[str, Any]) -> list[str]:
    """The networks that a run with these arguments starts from or has its labels from, each by its role, architecture
    and steps, and in brackets those that it came from itself: `labeller bisenet resnet18, 8000 steps`. A method's name
    says neither. One that lies there no more is left out: only a run that goes on does without."""
    roles = {"init": [given.get("init")], "intra": [given.get("intra")], "teacher": [given.get("teacher_checkpoint")]}
    roles["labeller"] = given.get("labeller") or []
    return [
        f"{role} {_trained_for(path)}"
        for role, paths in roles.items()
        for path in paths
        if path is not None and is_there(path)
    ]


def _trained_for(path: Path) -> str:
    """Architecture and steps of a checkpoint's network, in words."""
    checkpoint = load_checkpoint(path)
    network, config = checkpoint["network"], checkpoint["config"]
    length, planned = counted(checkpoint.get("step"), "step"), config.get("total_steps")
    if "training" not in checkpoint and planned is not None:
        length = f"best epoch of {counted(planned, 'step')}"  # which is another in each seed
    before = config.get("arguments", {}).get("earlier_networks")
    return f"{network.get('name')} {network.get('backbone')}, {length}" + (
        f" ({'; '.join(map(str, before))})" if before and isinstance(before, list) else ""
    )


def started_from(settings: dict[str, Any]) -> str | None:
    """The run whose network a run started from, if it did: --init's, the one that a moving teacher was, or the
    labeller, where a round continues it."""
    moving = settings.get("teacher") == "moving"
    labeller = settings["labeller"][0] if settings.get("continue") and settings["labeller"] else None
    return settings.get("init") or labeller or (settings.get("teacher_checkpoint") if moving else None)


def in_short(value: Any) -> str:
    """A setting's value; of a path its last part."""
    return Path(value).name if "/" in str(value) else str(value)


def evaluated_as(method: str, members: Sequence[str], adapt_bn: bool) -> str:
    """A method's name with what was done to its networks after training; members: of what the mean was taken."""
    kinds = sorted(set(members))
    base = f"mean of {len(members)} ({', '.join(kinds)})" if kinds else method
    return base + (" + AdaBN" if adapt_bn else "")


def method_name(settings: dict[str, Any]) -> str:
    """What a run's script and its method's flags are called in the literature."""
    kind = {
        "train_cityscapes": lambda s: "upper bound",
        "train_gta5": lambda s: "source only",
        "train_adversarial": _adversarial,
        "train_fda": _translation,
        "train_pseudo_labels": _pseudo_labels,
        "train_dacs": _dacs,
        "train_sac": _sac,
    }.get(settings["script"], lambda s: s["script"])(settings) + _learnt_from(settings)
    looks = [word for word in ("jitter", "blur") if settings.get(word)]
    plain = PLAIN | {"loss": plain_loss(settings)}
    plain |= {"level": "feature"} if settings.get("discriminator") == FADA else {}
    said = settings | {"init": settings.get("init_method") or settings.get("init")}
    others = [f"{key} {in_short(said[key])}" for key, usual in plain.items() if said.get(key, usual) != usual]
    return " + ".join([kind, *looks, *others])


def _learnt_from(settings: dict[str, Any]) -> str:
    """The source, where it is another than the first of the table, GTA5; the upper bound has none."""
    named = sources_of(settings)
    if settings["script"] == "train_cityscapes" or named in ([], [next(iter(SOURCES))]):
        return ""
    return f" from {' and '.join(SOURCES[key].title for key in named)}"


def plain_loss(settings: dict[str, Any]) -> str:
    """The loss that the run's network is published with."""
    network = SEGMENTERS.get(settings.get("model"))
    return PLAIN["loss"] if network is None else network.settings["paper"].loss


def _adversarial(settings: dict[str, Any]) -> str:
    if settings["discriminator"] == "none":
        words = "MinEnt" if settings["lambda_entropy"] > 0 else "target forward pass, weight 0"
    else:
        plain = f"{INPUTS[settings['input']].title}, {settings['discriminator']}"
        words = "FADA" if settings["discriminator"] == FADA else plain
        words += " + MinEnt" if settings["min_entropy"] else ""
    if settings["min_entropy"] and settings["lambda_entropy"] not in (0, WEIGHT):
        words += f", weight {settings['lambda_entropy']:g}"
    if settings["min_entropy"] and settings.get("entropy_range", 1) < 1:
        words += f" on {settings['entropy_range']:.0%} of the pixels"
    if settings["min_entropy"] and settings["level"] == "multi" and settings.get("lambda_entropy_aux", 0) > 0:
        words += f", auxiliary {settings['lambda_entropy_aux']:g}"
    if settings.get("intra") is not None:
        share = settings.get("easy_share") or 0.67
        after = f" after {settings['intra_after']}" if settings.get("intra_after") else ""
        words = f"IntraDA{after} ({words})" + (f", easy share {share:g}" if share != 0.67 else "")
    if settings.get("class_prior", 0) == 0:
        return words
    weight = settings.get("lambda_prior", WEIGHT)
    return f"{words} + class prior {settings['class_prior']:g}" + (f", weight {weight:g}" if weight != WEIGHT else "")


def _translation(settings: dict[str, Any]) -> str:
    translation = TRANSLATIONS[settings["translation"]]
    return ", ".join([translation.title, *(f"{name} {settings[name]:g}" for name in translation.settings)])


def _pseudo_labels(settings: dict[str, Any]) -> str:
    given = settings.get("labels") is not None
    who = ["given labels"] if given else []
    who += [_labelled(settings)] if not given or settings.get("rounds", 1) > 1 else []
    words = ", then ".join(who)
    for flag, plain in PLAIN_SELF_TRAINING.items():
        words += f", {flag} {settings[flag]}" if settings.get(flag, plain) != plain else ""
    return words + (f", FDA beta {settings['beta']:g}" if settings["beta"] is not None else "")


def _labelled(settings: dict[str, Any]) -> str:
    """By a network."""
    rule = RULES[settings["rule"]]
    words = rule.title + (" by AdaBN" if settings["adapt_bn"] else "")
    words += ", mirrored too" if settings.get("label_flip") else ""
    for flag, plain in (("percentile", 50), ("confidence", 0.9), ("portion", 0.2)):
        if flag in rule.settings.values() and settings.get(flag, plain) != plain:
            words += f", {flag} {settings[flag]:g}"
    return words + (", from the labeller" if settings.get("continue") else "")


def _dacs(settings: dict[str, Any]) -> str:
    words = ["DACS"]
    words += ["rare-class sampling"] if settings["rare_classes"] else []
    words += ["MIC"] if settings["lambda_mask"] > 0 else []
    words += [f"FDA beta {settings['beta']:g}"] if settings["beta"] is not None else []
    words += [f"{settings['teacher']} teacher"] if settings["teacher_checkpoint"] is not None else []
    words += ["given labels"] if settings.get("labels") is not None else []
    published = {"lambda_mix": 1, "decay": DECAY, "average_share": None, "confidence": SURE}
    different = {key for key, plain in published.items() if settings.get(key, plain) not in (plain, None)}
    words += [f"{key} {settings[key]:g}" for key in published if key in different]
    return " + ".join(words)


def _sac(settings: dict[str, Any]) -> str:
    published = {"views": 4, "lambda_target": 5, "confidence": LEAST, "decay": 0.9999}
    others = (f"{key} {settings[key]:g}" for key, plain in published.items() if settings[key] != plain)
    return ", ".join(["SAC", *others])
