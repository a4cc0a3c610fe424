"""Would ProDA's prototypes make a network's labels of the target better? A pilot, which trains nothing.

    python benchmarks/prototypes.py RUN --adapt-bn

ProDA (Zhang et al., CVPR 2021) labels by argmax_c w_c p_c, w_c = softmax_c(-|f - eta_c| / T), T = 1. Prototype eta_c is
the mean feature of what the network calls c. Here f is `features(...)[0]`, group-normalised and brought to the norm
of ProDA's features, about 16. The labels of the target's train pictures say what is right; no method may read them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adaptation.pseudo_labels import class_probabilities
from datasets import SegmentationSet
from datasets.appearance import to_float
from datasets.domains import open_target
from models.layers import resize
from training.adabn import adapt_to
from training.checkpoint import build_from_checkpoint, checkpoint_file, load_checkpoint, trained_with
from utils.errors import Parser, run_script
from utils.flags import add_machine_flags, number
from utils.metrics import ConfusionMatrix
from utils.tables import markdown

LEAST = 10  # places of a picture that a class needs to count for its prototype (ProDA)


@torch.no_grad()
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=checkpoint_file, metavar="RUN", help="a run, or its checkpoint")
    parser.add_argument("--adapt-bn", action="store_true", help="first re-estimate batch normalisation on the target")
    parser.add_argument("--oracle", action="store_true", help="prototypes of the labels, not of the predictions")
    parser.add_argument("--temperatures", type=number(1e-3, 1e3), nargs="+", default=[1, 4], metavar="T", help="(1 4)")
    add_machine_flags(parser)
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.run)
    settings, model = trained_with(checkpoint, args.run), build_from_checkpoint(checkpoint, args.run).to(args.device)
    data = open_target(settings, "train", labelled=True)
    if args.adapt_bn:
        pictures = open_target(settings, "train", labelled=False)
        adapt_to(model, pictures, settings["batch_size"], args.workers, args.device)
    eta = prototypes(seen(model.eval(), data, args.device), args.oracle)
    found, largest = defaultdict(lambda: ConfusionMatrix(len(data.classes))), defaultdict(list)
    for features, p, labels in seen(model, data, args.device):
        found["p"].update(p.argmax(1), labels)
        for temperature in args.temperatures:
            name, w = f"w p, T {temperature:g}", weights(features, eta, temperature)
            largest[name].append(w.amax(1).flatten().cpu())
            found[name].update((resize(w, labels.shape[-2:]) * p).argmax(1), labels)
        found["nearest"].update(resize(w, labels.shape[-2:]).argmax(1), labels)
    rows = {"pixels right": [m.accuracy() for m in found.values()], "mIoU": [m.miou() for m in found.values()]}
    top = [torch.cat(largest.get(name, [torch.tensor([torch.nan])])) for name in found]
    rows |= {"largest w, mean": [w.mean() for w in top], "largest w, median": [w.median() for w in top]}
    rows["largest w > 0.99"] = [torch.where(w.isnan(), w, w > 0.99).mean() for w in top]
    for c in found["p"].present().nonzero().flatten().tolist():
        rows[f"precision, {data.classes.names[c]}"] = [m.matrix[c, c] / m.matrix[:, c].sum() for m in found.values()]
    shown = [[title, *("-" if math.isnan(v) else f"{100 * float(v):.1f}" for v in row)] for title, row in rows.items()]
    print(f"{data.name}, {len(data)} pictures\n\n{markdown(('(%)', *found), shown)}")


def seen(model: nn.Module, data: SegmentationSet, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features [1, D, h, w], probabilities [1, C, H, W] and labels [1, H, W], picture by picture."""
    for image, label in map(data.training_pair, range(len(data))):
        features = model.features(to_float(image[None].to(device)))
        f = F.group_norm(features[0], 32) * math.sqrt(256 / features[0].shape[1])
        yield f, class_probabilities(model.decode(features, image.shape[-2:])), label[None].to(device)


def prototypes(pictures: Iterator[tuple[Tensor, Tensor, Tensor]], of_labels: bool) -> Tensor:
    """[C, D]: the mean over pictures of the class's mean feature; far from all for a class without any."""
    total, count = 0, 0
    for features, p, labels in pictures:
        small = F.interpolate(labels[None].float(), features.shape[-2:], mode="nearest-exact").long()
        named = small if of_labels else resize(p, features.shape[-2:]).argmax(1)
        member = F.one_hot(named.flatten(), 256)[:, : p.shape[1]].float()
        places = member.sum(0)[:, None]
        total = total + (places >= LEAST) * (member.T @ features[0].flatten(1).T) / places.clamp(min=1)
        count = count + (places >= LEAST)
    return torch.where(count > 0, total / count, 1e6)


def weights(f: Tensor, eta: Tensor, temperature: float) -> Tensor:
    """w, [1, C, h, w]."""
    return (-torch.cdist(f[0].flatten(1).T, eta) / temperature).softmax(1).T.unflatten(1, f.shape[-2:])[None]


if __name__ == "__main__":
    run_script(main)
