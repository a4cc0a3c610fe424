"""How many pixels of the target does each rule label, and how many of these labels are right? Trains nothing.

    python benchmarks/pseudo_labels.py RUN --adapt-bn --label-flip

The labels of the target's train pictures say what is right; no method may read them. Of a class, `kept` is the share of
its true pixels that got any label, and `right` how many of the pixels labelled as the class are of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adaptation.pseudo_labels import RULES
from datasets.domains import open_target
from datasets.labels import IGNORE
from models.ensemble import MeanSoftmax, Mirrored
from training.adabn import adapt_to
from training.checkpoint import build_from_checkpoint, checkpoint_file, load_checkpoint, trained_with
from training.labelling import pseudo_labelled
from utils.errors import Parser, run_script
from utils.flags import add_machine_flags, number
from utils.tables import markdown


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=checkpoint_file, nargs="+", metavar="RUN", help="of several the mean softmax labels"
    )
    parser.add_argument("--rules", choices=RULES, nargs="+", default=list(RULES), help="(all)")
    parser.add_argument("--portion", type=number(0, 1), default=0.2, metavar="P", help="of CBST and IAST (0.2)")
    parser.add_argument("--percentile", type=number(0, 100), default=50.0, metavar="P", help="BDL's (50)")
    parser.add_argument("--confidence", type=number(0, 1), default=0.9, metavar="X", help="BDL's (0.9)")
    parser.add_argument("--label-flip", action="store_true", help="label by the mean with each picture's mirror image")
    parser.add_argument("--adapt-bn", action="store_true", help="first re-estimate batch normalisation on the target")
    add_machine_flags(parser)
    args = parser.parse_args()
    checkpoints = [load_checkpoint(path) for path in args.run]
    settings = trained_with(checkpoints[0], args.run[0])
    data, pictures = (open_target(settings, "train", labelled) for labelled in (True, False))
    machine = (args.workers, args.device)
    networks = []
    for checkpoint, path in zip(checkpoints, args.run, strict=True):
        networks.append(build_from_checkpoint(checkpoint, path).to(args.device))
        if args.adapt_bn:
            adapt_to(networks[-1], pictures, settings["batch_size"], *machine)
    views = MeanSoftmax([view for n in networks for view in ((n, Mirrored(n)) if args.label_flip else (n,))])
    truth = torch.cat([data.training_pair(index)[1].flatten() for index in range(len(data))]).long()
    found = {}
    for rule in args.rules:
        flags = {name: vars(args)[flag] for name, flag in RULES[rule].settings.items()}
        with tempfile.TemporaryDirectory() as folder:
            labelled = pseudo_labelled(views, pictures, Path(folder), {}, rule, flags, *machine)
            given = torch.cat([labelled.training_pair(index)[1].flatten() for index in range(len(data))]).long()
        found[rule] = counts(truth, given, len(data.classes))
    rows = [("all", *(figures(c.sum(), c[:, :-1].sum(), c.diagonal().sum()) for c in found.values()))]
    for c, name in enumerate(data.classes.names):
        if any(matrix[c].sum() for matrix in found.values()):
            of_class = [figures(m[c].sum(), m[c, :-1].sum(), m[c, c], m[:, c].sum()) for m in found.values()]
            rows.append((name, *of_class))
    print(f"\n{data.name}, {len(data)} pictures: kept / right (%)\n\n{markdown(('class', *found), rows)}")


def counts(truth: torch.Tensor, given: torch.Tensor, classes: int) -> torch.Tensor:
    """int64 [C, C + 1]: true class by given class, the last one for no label; pixels without a true class left out."""
    given = given.where(given != IGNORE, torch.tensor(classes))
    cells = (truth * (classes + 1) + given)[truth != IGNORE]
    return torch.bincount(cells, minlength=classes * (classes + 1)).view(classes, classes + 1)


def figures(pixels: torch.Tensor, kept: torch.Tensor, right: torch.Tensor, named: torch.Tensor | None = None) -> str:
    """Shares of `pixels` that were kept, and of `named` (what was kept) that are right."""
    named = kept if named is None else named
    return " / ".join(f"{100 * float(a) / float(b):.1f}" if b else "-" for a, b in ((kept, pixels), (right, named)))


if __name__ == "__main__":
    run_script(main)
