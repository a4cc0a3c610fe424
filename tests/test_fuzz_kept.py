"""Thousands of altered things that runs keep for later: caches, pseudo-labels' summaries, checkpoints with checksums
that fit. What comes back is what was written, or is made anew, or is refused in one line; nothing asks for 2 GB.

FUZZ=10 pytest tests/test_fuzz_kept.py takes ten times as many, others in every run with another FUZZ_SEED.
"""

import contextlib
import copy
import io
import json
import random
import time

import pytest
import torch
from test_fuzz import HOSTILE, SECONDS, SEED, TIMES, mutated, places_in, replaced
from test_self_training import Colours, by_bdl
from test_vetting import network, sealed, two_gigabytes, used, whole  # noqa: F401

from datasets import cityscapes
from datasets.labels import CITYSCAPES
from datasets.prepared import prepared
from training.archive import Archive
from training.building import poly, sgd
from training.checkpoint import build_from_checkpoint
from training.journal import Journal
from training.progress import Progress
from utils.errors import UserError


def hostile_texts(whole, number, rng):  # noqa: F811
    """A JSON with bytes that were altered, and one with values that nobody expects."""
    paths = list(places_in(json.loads(whole)))
    for _ in range(number // 2):
        yield mutated(whole.encode(), rng)
        yield replaced(whole, rng.choice(paths), rng.choice(HOSTILE)).encode("utf-8", "replace")


@pytest.mark.slow
def test_altered_caches_give_the_pictures_or_are_made_anew(city, tmp_path):
    data = cityscapes(city, "train", (40, 24))
    expected = [data.training_pair(index) for index in range(len(data))]
    rng, place = random.Random(SEED), tmp_path / "place"

    def agrees():
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            ready = prepared(data, [place], 0)
            pairs = [ready.training_pair(index) for index in range(len(data))]
        assert time.monotonic() - began < SECONDS
        return all(torch.equal(*both) for pair in zip(pairs, expected, strict=True) for both in zip(*pair, strict=True))

    assert agrees()
    kept = {path: path.read_bytes() for path in place.glob("*/*")}
    for path, content in kept.items():
        texts = path.suffix == ".json"
        made = hostile_texts(content.decode(), 200 * TIMES, rng) if texts else range(100 * TIMES)
        for change in made:
            path.write_bytes(change if texts else mutated(content, rng))
            assert agrees(), change
            assert {found.parent for found in place.glob("*/*")} == {found.parent for found in kept}
            for other, right in kept.items():
                other.write_bytes(right)


@pytest.mark.slow
def test_altered_summaries_vouch_for_nothing_else(city, tmp_path):
    data, rng = cityscapes(city, "train", (48, 32), labelled=False), random.Random(SEED)

    def make():
        with contextlib.redirect_stdout(io.StringIO()) as said:
            labelled = by_bdl(Colours(), data, tmp_path, {"n": 1})
        return [sample.label.read_bytes() for sample in labelled.samples], "used again" in said.getvalue()

    labels, _ = make()
    (summary,) = tmp_path.glob("*/summary.json")
    vouching = summary.read_text()
    files = sorted(summary.parent.rglob("*.png"))
    again = 0
    for text in hostile_texts(vouching, 200 * TIMES, rng):
        summary.write_bytes(text)
        if rng.random() < 0.3:
            file = rng.choice(files)
            file.write_bytes(mutated(file.read_bytes(), rng))
        found, reused = make()
        again += reused
        assert found == labels
    assert again > 10


def altered(content, rng):
    """A checkpoint's content with one value, wherever it may be, that nobody expects."""

    def places(value, path=()):
        if path:
            yield path
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in list(inner)[:12]:
            yield from places(item, (*path, key))

    tensors = [torch.zeros(0), torch.zeros(1).expand(10**7), torch.tensor(float("nan")), torch.eye(3).to_sparse(),
               torch.zeros(2, dtype=torch.complex64), torch.tensor([1, 2])]  # fmt: skip
    path = rng.choice(list(places(content)))
    content = copy.deepcopy(content)
    at = content
    for key in path[:-1]:
        at = at[key]
    if rng.random() < 0.15:
        del at[path[-1]]
    else:
        at[path[-1]] = rng.choice([*HOSTILE, *tensors])
    return content, path


@pytest.mark.slow
def test_altered_checkpoints_whose_checksum_fits_are_used_or_refused(tmp_path, whole, monkeypatch):  # noqa: F811
    rng, path = random.Random(SEED), tmp_path / "crafted.pt"
    model = build_from_checkpoint(whole, path)
    optimizer = sgd(model, 0.1, 0.1)
    schedule = poly(optimizer, 10)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    schedule.step()
    entry = {"epoch": 1, "step": 3, "rate": 0.1, "train": {"loss": 1.0}, "target": {"miou": 0.5}}
    content = whole | {
        "class_names": list(CITYSCAPES.names), "class_colours": [list(colour) for colour in CITYSCAPES.colours],
        "training": {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, "history": [entry],
        "epoch_losses": {"loss": [1.0, 2.0]}, "metrics": entry, "best": entry, "latest": [3, {"loss": 1.0}],
    }  # fmt: skip
    content["config"] = content["config"] | {"commit": None}
    outcomes = {"used": 0, "resumed": 0, "refused": 0}
    for number in range(300 * TIMES):
        crafted, where = altered(content, rng)
        try:
            sealed(path, crafted)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
            sealed(path, crafted, "endless")  # nobody can write its checksum
        path.replace(tmp_path / "checkpoint_last.pt")
        began, name, message = time.monotonic(), "used" if number % 2 else "resumed", ""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if name == "used":
                    used(tmp_path / "checkpoint_last.pt")
                else:
                    progress = Progress(10, 5)
                    journal = Journal(tmp_path, progress, str, torch.device("cpu"))
                    archive = Archive(tmp_path, {}, CITYSCAPES, progress, (journal,))
                    archive.hold(copy.deepcopy(model), {"optimizer": sgd(model, 0.1, 0.1)})
                    archive.restore(lambda content, path: False)
                    journal.write_history()
        except UserError as error:
            name, message = "refused", str(error)
        except Exception as error:
            raise AssertionError(f"{where}: {error!r}") from error
        assert "\n" not in message
        assert "not enough memory" not in message, where
        outcomes[name] += 1
        assert time.monotonic() - began < SECONDS, where
    assert min(outcomes.values()) > 15, outcomes
