"""The model card of a run: what stands in its checkpoints, for whoever finds the file without its history.

Model cards: Mitchell et al., FAccT 2019. Every figure is the run's own; what was not measured is not there.
"""

from __future__ import annotations

from typing import Any

from utils.tables import markdown, result_tables

from .methods import started_from

NAME = "model_card.md"

LIMITS = """- The network knows {number} classes: {names}. Anything else gets one of these too: it has no
  "unknown".
- The figures hold for the pictures they were measured on. In another city, season, light or camera expect less; the
  fall from one domain to another is what this project is about.
- Rare and thin things (poles, riders, signs) are recognised far worse than the mean says: see the table per class.
- Softmax is no safety measure: a network is often sure where it is wrong.
- Research code. Not for driving, nor for decisions about people."""


def model_card(config: dict[str, Any], result: dict[str, Any]) -> str:
    """Markdown. config: a run's config.json; result: its result.json."""
    arguments, oracle, source = config["arguments"], result["oracle"], result["source"]
    network = result["network"]
    width, height = result["size"]
    facts = [
        ("network", f"{network['name']}, {network.get('backbone')}, {network['num_classes']} classes"),
        ("input", f"RGB in [0, 1], at {width}x{height}; normalised inside"),
        ("script", f"`{config['script']}`"),
        ("trained", f"{result['step']} steps of {arguments['batch_size']}, seed {result['seed']}"),
        ("backbone began with", _beginning(arguments)),
        *_teacher(config["script"], arguments),
        ("code", f"commit `{config['commit'] or 'unknown'}`"),
        ("with", ", ".join(f"{name} {version}" for name, version in config["versions"].items())),
        ("on", config["device"]),
    ]
    data = [[name, str(held["pictures"]), _use(name, config["script"])] for name, held in config["data"].items()]
    named = [(f"checkpoint_last.pt (step {result['step']})", result)]
    if oracle:
        named.append((f"checkpoint_best.pt (epoch {oracle['epoch']}, an oracle)", oracle))
    if source:
        named.append(("checkpoint_last.pt on held-out source", source))
    parts = [
        f"# Model card: {config['script']}, {network['name']}",
        markdown(("what", ""), facts),
        "```\npython " + config["command"] + "\n```",
        "## Data",
        markdown(("set", "pictures", "use"), data),
        *(["The pictures are this project's built-in street scenes, not photographs."] if arguments["demo"] else []),
        "## Figures",
        "On the target's val set. The headline is the last checkpoint; the best one was chosen by the target's own "
        "labels, which no adaptation has, so it is an oracle and no result.",
        result_tables(named),
        "## Limits",
        LIMITS.format(number=len(result["iou"]), names=", ".join(result["iou"])),
        "## Licence",
        "The code is MIT. For the weights read the terms of what they were trained on (the data above, and ImageNet "
        "where the backbone began with it) before you use or pass them on.",
    ]
    return "\n\n".join(parts) + "\n"


def _beginning(arguments: dict[str, Any]) -> str:
    earlier = started_from(arguments)
    if earlier is not None:
        return f"the network of {earlier}"
    return {"none": "random weights", "imagenet": "ImageNet's weights"}.get(arguments["weights"], arguments["weights"])


def _teacher(script: str, arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """Whose the weights are and who labelled the target, where a mean teacher was trained."""
    if script not in ("train_dacs", "train_sac"):
        return []
    given, frozen = arguments.get("labels"), arguments.get("teacher") == "frozen"
    labeller = given or (arguments["teacher_checkpoint"] if frozen else "the average")
    kept = "the moving average of the student; the student itself is under `training` in checkpoint_last.pt"
    return [("weights", kept), ("target labelled by", str(labeller))]


def _use(name: str, script: str) -> str:
    if name.endswith(" val"):
        return "evaluation"
    return "training, without labels" if name.endswith(" train") and script != "train_cityscapes" else "training"
