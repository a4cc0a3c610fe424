"""The same val pictures through every experiment's network: what each predicts, and where it errs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets import SegmentationSet
from datasets.appearance import to_float
from datasets.domains import of_target, open_target
from datasets.files import read_image
from datasets.geometry import resize_image, resize_label
from datasets.labels import Classes
from datasets.pictures import WRONG, errors, legend, stacked, under_title
from models.ensemble import MeanSoftmax
from training.adabn import adapt_to
from training.checkpoint import build_from_checkpoint, load_checkpoint, trained_with
from training.evaluation import predict
from utils.errors import UserError

from .results import Experiment

WIDTH = 384
"""Of one picture, at most."""

COLUMNS, TITLE = 4, 32
"""Of a page: how many pictures beside each other, and how high their titles are, in pixels."""

ADABN_PICTURES = 500
"""On a CPU, batch normalisation is not re-estimated on more than these for a page of pictures."""


@dataclass
class Scene:
    """One picture of the val set: uint8 [H, W, 3], its label uint8 [H, W], and each experiment's prediction, alike."""

    name: str
    classes: Classes
    picture: np.ndarray
    label: np.ndarray
    predictions: dict[str, np.ndarray] = field(default_factory=dict)

    def tiles(self) -> list[tuple[str, np.ndarray]]:
        """(title, uint8 [h, W, 3]): the picture, its label, and each prediction over its errors."""
        told = [("picture", self.picture), ("ground truth", self.classes.colourise(self.label))]
        for title, prediction in self.predictions.items():
            wrong = errors(self.picture, prediction, self.label)
            told.append((title, stacked(self.classes.colourise(prediction), wrong)))
        return told

    def shown(self) -> list[int]:
        """The classes that are in the label or in a prediction."""
        return sorted({*np.unique(self.label).tolist()}.union(*map(np.unique, self.predictions.values())) - {255})

    def strip(self) -> np.ndarray:
        """All tiles under their titles, `COLUMNS` a row, and the classes' colours -> uint8 [h, w, 3]."""
        first, truth, *others = self.tiles()
        columns = [(f"{first[0]}, {truth[0]}", stacked(first[1], truth[1])), *others]
        tiles = [under_title(title, tile, TITLE) for title, tile in columns]
        tiles = [np.pad(tile, ((0, 6), (0, 6), (0, 0)), constant_values=255) for tile in tiles]
        rows = [np.concatenate(tiles[at : at + COLUMNS], axis=1) for at in range(0, len(tiles), COLUMNS)]
        joined = functools.reduce(stacked, rows)
        return stacked(joined, legend(self.shown(), self.classes, joined.shape[1]))


def scenes(
    experiments: Sequence[Experiment], count: int, device: torch.device, note: Callable[[str], None]
) -> list[Scene]:
    """`count` pictures, spread evenly over each val set that the experiments were evaluated on, through the first run
    of each experiment. What cannot be shown is named by `note`."""
    found: list[Scene] = []
    sets: dict[tuple[str | int | None, ...], list[Experiment]] = {}
    for e in experiments:
        given = e.runs[0].config["arguments"]  # a mean's settings are those alone that its networks share
        sets.setdefault((*(given.get(key) for key in of_target()), given.get("limit")), []).append(e)
    for group in sets.values():
        try:
            data = open_target(group[0].runs[0].config["arguments"], "val")
            chosen = np.unique(np.linspace(0, len(data) - 1, count).round().astype(int)).tolist()
            own = [_scene(data, index) for index in chosen]
        except UserError as error:
            note(f"no pictures: {error}")
            continue
        for e in group:
            try:
                model = network(e, device)
            except UserError as error:
                note(f"no pictures of {e.label}: {error}")
                continue
            for scene, index in zip(own, chosen, strict=True):
                scene.predictions[e.label] = _prediction(model, data, index, e, device, scene.label.shape)
        found += own
    return found


def network(e: Experiment, device: torch.device) -> nn.Module:
    """The network of an experiment's first run, as it was evaluated. Raises `UserError`."""
    run = e.runs[0]
    models = []
    for path in run.checkpoints:
        checkpoint = load_checkpoint(path)
        model = build_from_checkpoint(checkpoint, path).to(device)
        if run.adapt_bn:
            data = open_target(run.config["arguments"], "train", labelled=False, listed=True)
            if device.type == "cpu" and len(data) > ADABN_PICTURES:
                raise UserError(f"AdaBN on {len(data)} pictures takes long on a CPU; --device cuda shows it")
            adapt_to(model, data, trained_with(checkpoint, path)["batch_size"], 0, device)
        models.append(model.eval())
    return models[0] if len(models) == 1 else MeanSoftmax(models).eval()


def _scene(data: SegmentationSet, index: int) -> Scene:
    image = read_image(data.samples[index].image)
    height, width = image.shape[-2:]
    size = (min(width, WIDTH), max(1, height * min(width, WIDTH) // width))
    picture = resize_image(image, size).permute(1, 2, 0).numpy()
    label = resize_label(data.label(index), size).numpy()
    return Scene(Path(data.samples[index].name).name, data.classes, picture, label)


@torch.no_grad()
def _prediction(
    model: nn.Module, data: SegmentationSet, index: int, e: Experiment, device: torch.device, size: tuple[int, int]
) -> np.ndarray:
    image = resize_image(read_image(data.samples[index].image), tuple(e.runs[0].config["arguments"]["size"]))
    return predict(model(to_float(image[None].to(device))), size).cpu().numpy()


KEY = f"Wrong pixels are yellow (RGB {', '.join(map(str, WRONG))}); what has no label is never wrong."
