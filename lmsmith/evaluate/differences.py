"""Differences between models, with verdicts: texts by the bootstrap, task items by McNemar's test.

`significance.py` has the tests. With more than one test, the p-values are corrected by Holm's
method over all tests of a table. A verdict names the better model if the corrected p-value is at
most 5 % and the interval excludes 0. Otherwise it is "no difference shown", which does not mean
that the models are equally good: more text or more items may show a difference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith import foreign_json
from lmsmith.errors import DataError, UsageError
from lmsmith.evaluate.significance import LEVEL, PairedTest, holm, paired_accuracy, paired_bootstrap

NOTHING_SHOWN, UNTESTED = "no difference shown", "not tested"
BITS = "bits per byte"

Item = Mapping[str, Any]
"""The result of one item: "task" (optional), "item" (its id) and "correct"."""


@dataclass(frozen=True)
class Difference:
    """One row: the score of model `a` minus that of model `b`, with a 95 % interval.

    `measure`: "bits per byte", or the name of a task, whose accuracies are compared. `unit`: what
    `n` counts. `p_corrected`: Holm's. The numbers are None if there was no test; `reason` says why.
    """

    a: str
    b: str
    measure: str
    unit: str
    n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    reason: str = ""

    @property
    def better(self) -> str:
        """The better model; empty if no difference is shown."""
        if self.p_corrected is None or self.low is None or self.high is None:
            return ""
        if self.p_corrected > 1 - LEVEL or self.low <= 0 <= self.high:
            return ""
        fewer_is_better = self.measure == BITS
        return self.a if (self.low > 0) != fewer_is_better else self.b

    @property
    def verdict(self) -> str:
        """A verdict in words."""
        if self.p is None:
            return f"{UNTESTED}: {self.reason}"
        return f"{self.better} is better" if self.better else NOTHING_SHOWN

    def as_dict(self) -> dict[str, Any]:
        """The fields, with `better` and `verdict`."""
        return asdict(self) | {"better": self.better, "verdict": self.verdict}


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a model on a task, with Wilson's 95 % interval (1927)."""

    name: str
    task: str
    accuracy: float
    low: float
    high: float
    n_items: int


def text_differences(
    bits: Mapping[str, npt.NDArray[np.float64]], n_bytes: npt.NDArray[np.float64], unit: str
) -> list[Difference]:
    """Tests all pairs of models. `bits`: for each model, the bits of each unit (n,); `n_bytes`
    (n,).
    """
    rows = []
    for (a, bits_a), (b, bits_b) in itertools.combinations(bits.items(), 2):
        row = Difference(a, b, BITS, unit, len(n_bytes))
        infinite = [name for name in (a, b) if not np.isfinite(bits[name]).all()]
        if infinite:
            reason = f"{' and '.join(infinite)} gives some of the text probability zero"
            rows.append(replace(row, reason=reason))
            continue
        rows.append(_tested(row, paired_bootstrap(bits_a / n_bytes, bits_b / n_bytes, n_bytes)))
    return _corrected(rows)


def untested(names: Sequence[str], reason: str) -> list[Difference]:
    """A row without a test for all pairs of models."""
    return [
        Difference(a, b, BITS, "documents", 0, reason=reason)
        for a, b in itertools.combinations(names, 2)
    ]


def item_differences(items: Mapping[str, Sequence[Item]]) -> tuple[list[Difference], list[str]]:
    """Tests all pairs of models on the items that both answered, task by task. Also returns notes
    on items that only one of them answered.

    Raises DataError for items without the necessary fields, and for two results of one item.
    """
    answers = {name: _by_task(name, rows) for name, rows in items.items()}
    rows, notes = [], []
    for a, b in itertools.combinations(answers, 2):
        for task in dict.fromkeys([*answers[a], *answers[b]]):
            of_a, of_b = answers[a].get(task, {}), answers[b].get(task, {})
            common = [item for item in of_a if item in of_b]
            row = Difference(a, b, task, "items", len(common))
            if only_one := len(of_a) + len(of_b) - 2 * len(common):
                notes.append(
                    f"{only_one:,} items of {task} that only one of {a} and {b} answered are not "
                    "compared"
                )
            if not common:
                rows.append(replace(row, reason="no item in common"))
                continue
            pairs = [[of[item] for item in common] for of in (of_a, of_b)]
            rows.append(_tested(row, paired_accuracy(*pairs)))
    return _corrected(rows), notes


def accuracies(items: Mapping[str, Sequence[Item]]) -> list[Accuracy]:
    """The accuracy of each model on each task. Raises DataError as `item_differences` does."""
    return [
        Accuracy(name, task, *_wilson(sum(answers.values()), len(answers)), len(answers))
        for name, rows in items.items()
        for task, answers in _by_task(name, rows).items()
    ]


def read_items(path: Path) -> list[Item]:
    """The results in a JSON Lines file, one item per line. Raises DataError if it cannot be
    read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the items in {path}: {error}.") from error
    items: list[Item] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = foreign_json.parse(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(item, dict):
            raise DataError(
                f'{path}, line {number}: expected {{"task": ..., "item": ..., "correct": true or '
                f"false}}, found {line.strip()[:60]}"
            )
        items.append(item)
    return items


def named_items(
    items: Mapping[str, Any] | Sequence[Any],
) -> dict[str, list[Item]]:
    """Items by model from files or lists: a mapping from names, or files, each named after itself.

    Raises UsageError for fewer than two models, DataError for files that cannot be read.
    """
    if isinstance(items, Mapping):
        named = dict(items)
    else:
        files = [Path(file) for file in items]
        stems = [file.stem for file in files]
        names = [
            stem if stems.count(stem) == 1 else str(file)
            for stem, file in zip(stems, files, strict=True)
        ]
        if len(set(names)) < len(names):
            raise UsageError("items: the same file is named twice. Name one file per model.")
        named = dict(zip(names, files, strict=True))
    if len(named) < 2:
        raise UsageError("items: name the files of at least two models to compare.")
    return {
        name: list(given) if isinstance(given, list | tuple) else read_items(Path(given))
        for name, given in named.items()
    }


def _by_task(name: str, rows: Sequence[Item]) -> dict[str, dict[str, bool]]:
    """Whether each item was answered correctly, by task and id."""
    tasks: dict[str, dict[str, bool]] = {}
    for number, row in enumerate(rows, start=1):
        item, correct = row.get("item"), row.get("correct")
        if item is None or correct not in (True, False):
            raise DataError(
                f'items of {name}, number {number}: expected an id in "item" and true or false '
                f'in "correct", found item {item!r} and correct {correct!r}.'
            )
        answers = tasks.setdefault(str(row.get("task") or "items"), {})
        if str(item) in answers:
            raise DataError(
                f"items of {name}: there are two results of item {item!r}. Give each item once."
            )
        answers[str(item)] = bool(correct)
    if not tasks:
        raise DataError(f"items of {name}: there are none.")
    return tasks


def _tested(row: Difference, test: PairedTest) -> Difference:
    return replace(row, difference=test.difference, low=test.low, high=test.high, p=test.p)


def _corrected(rows: Sequence[Difference]) -> list[Difference]:
    """The rows with Holm's p-values."""
    p_values = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_corrected=next(p_values)) for row in rows]


def _wilson(n_correct: int, n: int) -> tuple[float, float, float]:
    """A proportion, and the ends of its score interval."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    p = n_correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, centre - half, centre + half
