"""Training pictures that could not be read and were replaced (`--on-bad-sample skip`), of all processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import SegmentationSet
from utils.distributed import from_each, rank, ranks
from utils.errors import UserError
from utils.files import write_atomically


class BadSamples:
    """problems: "set: picture" -> why it could not be read. Listed in `bad_samples.txt` in the run's directory."""

    def __init__(self, directory: Path, max_share: float) -> None:
        self.path, self.max_share = directory / "bad_samples.txt", max_share
        self.problems: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"bad_samples": self.problems}

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        self.problems = checkpoint["bad_samples"]

    def note(self, data: SegmentationSet, problems: dict[str, str]) -> None:
        """Lists pictures of a set, by name; raises `UserError` when they are more than the share of it, or of a part of
        it: a small source beside a large one may not fall away unseen."""
        found = {f"{data.name}: {name}": problem for name, problem in problems.items()}
        if found.keys() <= self.problems.keys():
            return
        self._list(found)
        for part, span in zip(data.parts, data.spans, strict=True):
            bad = sum(f"{data.name}: {data.samples[number].name}" in self.problems for number in span)
            if bad > self.max_share * len(part):
                raise UserError(
                    f"{bad} of {len(part)} pictures of {part.name} cannot be read, more than --max-bad-share "
                    f"{self.max_share:g}; they are listed in {self.path}"
                )

    def gather(self) -> None:
        """On all ranks at once: each knows what the others met."""
        for found in from_each(self.problems) if ranks() > 1 else ():
            if not found.keys() <= self.problems.keys():
                self._list(found)

    def _list(self, found: dict[str, str]) -> None:
        for name in sorted(found.keys() - self.problems.keys()):
            print(f"note: skipped {name} ({found[name]})")
        self.problems |= found
        lines = "".join(f"{name}\t{problem}\n" for name, problem in sorted(self.problems.items()))
        if rank() == 0:
            write_atomically(self.path, lambda file: file.write(lines.encode(errors="surrogateescape")))
