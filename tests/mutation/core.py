"""The numeric core in parts, its mutants, and a sample of them that does not depend on line numbers.

Each mutant has a random number: the hash of the seed, its file, its line's text and its change. A
sample consists of the mutants with the smallest numbers of each part, so that a change elsewhere in
the file leaves the sample as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from equivalents import EQUIVALENTS
from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS: dict[str, tuple[str, ...]] = {
    "loss": ("lmsmith/loss.py",),
    "optim": ("lmsmith/optim/*.py",),
    "models": ("lmsmith/models/*.py",),
    "batches": ("lmsmith/data/batches/*.py",),
    "checkpoint": ("lmsmith/checkpoint.py", "lmsmith/weights_file.py"),
    "step": ("lmsmith/train/step.py", "lmsmith/train/state.py", "lmsmith/train/guard.py"),
    "generate": ("lmsmith/generate/*.py",),
    "evaluate": ("lmsmith/evaluate/*.py", "lmsmith/evaluate/tasks/*.py"),
    "bpe": (
        "lmsmith/tokens/bpe.py",
        "lmsmith/tokens/bpe_train.py",
        "lmsmith/tokens/pair_counts.py",
        "lmsmith/tokens/vocabulary.py",
        "lmsmith/tokens/merge.py",
        "lmsmith/tokens/piece_cache.py",
        "lmsmith/tokens/decode.py",
    ),
}
NOT_NUMERIC = ("__init__.py", "bench.py", "show.py", "subject.py")


@dataclass(frozen=True)
class Change:
    """A mutant of a file. `text`: the line before the change, without indentation; `nth`: how many
    lines of the file before it have the same text."""

    file: str
    mutant: Mutant
    text: str
    nth: int

    @property
    def equivalent(self) -> str:
        """Why the change makes no difference; "" if it is not known to make none."""
        return EQUIVALENTS.get((self.file, self.text, self.mutant.old, self.mutant.new), "")

    def number(self, seed: int) -> str:
        """The random number by which samples are taken."""
        indent = self.mutant.start - (len(self.text.encode()) - len(self.text.lstrip().encode()))
        key = (seed, self.file, self.text, self.nth, indent, self.mutant.old, self.mutant.new)
        return hashlib.sha256(repr(key).encode()).hexdigest()

    def __str__(self) -> str:
        change = f"{self.mutant.old} -> {self.mutant.new}"
        return f"{self.file}:{self.mutant.line}:{self.mutant.start}  {change}   | {self.text[:90]}"


def files_of(part: str) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for pattern in PARTS[part]
        for path in sorted(ROOT.glob(pattern))
        if path.name not in NOT_NUMERIC
    ]


def changes(file: str, line: int = 0) -> Iterator[Change]:
    """The mutants of a file, or of one line."""
    source = (ROOT / file).read_text("utf-8")
    lines = [text.strip() for text in source.splitlines()]
    for one in mutants(source):
        if line in (0, one.line):
            text = lines[one.line - 1]
            yield Change(file, one, text, lines[: one.line - 1].count(text))


def sample(n: int, seed: int, parts: Sequence[str] = tuple(PARTS)) -> list[Change]:
    """`n` mutants, the same number from each part, in the order of their random numbers."""
    by_part = [
        sorted(
            (one for file in files_of(part) for one in changes(file)),
            key=lambda one: one.number(seed),
        )
        for part in parts
    ]
    share, rest = divmod(n, len(parts))
    return [
        one for i, found in enumerate(by_part) for one in found[: share + (1 if i < rest else 0)]
    ]
