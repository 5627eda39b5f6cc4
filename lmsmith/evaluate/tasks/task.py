"""What a task is: it turns a row of a file into an `Item`, and answers into numbers.

    class Colours(ChoiceTask):
        name, what, files = "colours", "which colour fits?", ("colours.jsonl",)

        def item(self, row):
            return Item.choice(row["question"], row["answers"], row["right"])

Three kinds of tasks differ in what the model does with an item:

ChoiceTask     the ending with the highest log-likelihood is the answer (Brown et al. 2020, GPT-3)
LastWordTask   the ending must be what greedy decoding would write (LAMBADA)
GenerateTask   the model writes a text, greedily, and the task reads the answer in it
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

Row = Mapping[str, Any]
Grade = dict[str, float]


@dataclass(frozen=True)
class Item:
    """One question. Endings follow one context, or one ending follows several contexts."""

    contexts: tuple[str, ...]
    endings: tuple[str, ...]
    gold: int = 0
    group: str = ""
    """A part of the task with results of its own, such as MMLU's subjects."""
    intro: str = ""
    """Stands before the few-shot examples."""
    shown: str | None = None
    """The item as a few-shot example; by default the right context with the right ending."""
    lengths: tuple[int, ...] = ()
    """Bytes of each answer, for `acc_norm`."""
    scored: Literal["ending", "difference"] = "ending"
    """Which tokens count: those of the ending, or those behind the common beginning of all
    choices (before the common end, if the contexts differ).
    """
    answer: str = ""
    """Of a task that generates: what the text must contain."""
    ceiling: float | None = None
    """The probability of the likeliest choice under the process that made the item, if known."""

    def __post_init__(self) -> None:
        n = self.n_choices
        if not self.contexts or not self.endings:
            raise ValueError("an item needs a context and an ending")
        if {len(self.contexts), len(self.endings)} - {1, n}:
            raise ValueError("endings follow one context, or one ending follows all contexts")
        if not 0 <= self.gold < n:
            raise ValueError(f"the right answer is number {self.gold} of {n} choices, from 0")

    @classmethod
    def choice(
        cls, question: str, answers: Sequence[str], gold: int, delimiter: str = " ", **more: Any
    ) -> Item:
        """A question with several answers, each written behind a delimiter."""
        lengths = tuple(len(text_of(answer).encode()) for answer in answers)
        endings = tuple(delimiter + answer for answer in answers)
        return cls((text_of(question),), endings, gold, lengths=lengths, **more)

    @property
    def n_choices(self) -> int:
        return max(len(self.contexts), len(self.endings))

    def pair(self, index: int) -> tuple[str, str]:
        """Context and ending of one choice."""
        return self.contexts[index % len(self.contexts)], self.endings[index % len(self.endings)]

    @property
    def solved(self) -> str:
        """The item with its right answer, as a few-shot example."""
        return "".join(self.pair(self.gold)) if self.shown is None else self.shown


@dataclass(frozen=True)
class Answer:
    """The log-likelihood of one ending in nats, the number of its tokens, and whether greedy
    decoding would write it.
    """

    log_likelihood: float
    n_tokens: int
    greedy: bool


class Task(ABC):
    """A benchmark. Subclass one of the three kinds below, not this class."""

    name: ClassVar[str]
    what: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns in the folder of task data; the first that matches is read."""
    example_files: ClassVar[tuple[str, ...]] = ()
    """Patterns for few-shot examples beside the items; without such files, examples are drawn from
    the other items.
    """
    corpus: ClassVar[str] = ""
    """The named corpus that holds the items where the user names no folder."""
    chance: ClassVar[float | None] = None
    """Accuracy of a random guess; None: 1 / choices of each item."""
    separator: ClassVar[str] = "\n\n"
    """Between few-shot examples."""

    def rows(self, folder: Path | None) -> Sequence[Row] | None:
        """The rows of a task that needs no files; None: they come from `files`."""
        return None

    def ceiling_of(self, items: Sequence[Item]) -> float | None:
        """Accuracy that the best possible model is expected to have on these items, if known."""
        return None

    @abstractmethod
    def item(self, row: Row) -> Item:
        """The item of a row. KeyError, TypeError or ValueError: the row is not of this form."""

    def summary(self, grades: Sequence[Grade]) -> dict[str, float]:
        """Means with standard errors of what the items were graded."""
        found: dict[str, float] = {}
        for name in grades[0]:
            values = [grade[name] for grade in grades]
            found[name] = mean = math.fsum(values) / len(values)
            found[f"{name}_stderr"] = standard_error(values, mean)
        return found


class ChoiceTask(Task):
    """The most likely ending is the answer.

    acc: by log-likelihood. acc_norm: by log-likelihood per byte of the answer, which removes the
    advantage of short answers.
    """

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        """1 where the right choice scores best, else 0. Of equal scores the first counts."""
        scores = [answer.log_likelihood for answer in answers]
        grade = {"acc": float(best(scores) == item.gold)}
        if item.lengths:
            per_byte = [score / max(1, n) for score, n in zip(scores, item.lengths, strict=True)]
            grade["acc_norm"] = float(best(per_byte) == item.gold)
        return grade


class LastWordTask(Task):
    """Greedy decoding must write the ending. acc, and the perplexity of the ending."""

    chance = 0.0

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        return {"acc": float(answers[0].greedy), "nats": -answers[0].log_likelihood}

    def summary(self, grades: Sequence[Grade]) -> dict[str, float]:
        """`perplexity` is exp of the mean nats per ending; its standard error by the delta
        method.
        """
        found = super().summary(grades)
        nats, error = found.pop("nats"), found.pop("nats_stderr")
        found["perplexity"] = math.exp(nats) if nats < 700 else math.inf
        found["perplexity_stderr"] = found["perplexity"] * error
        return found


class GenerateTask(Task):
    """The model writes up to `max_tokens` tokens, greedily, up to the first of `stop`."""

    chance = 0.0
    max_tokens: ClassVar[int] = 256
    stop: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def grade_text(self, item: Item, text: str) -> Grade:
        """Grades what the model wrote for an item."""


@dataclass(frozen=True)
class Graded:
    """One item with the model's answers."""

    index: int
    item: Item
    grade: Grade
    answers: tuple[Answer, ...] = ()
    text: str = ""
    n_cut: int = 0
    """Tokens that did not fit into the model's context and were cut from the left."""
    where: str = ""
    task: str = ""
    """The task's name; in a suite, that of the part."""

    @property
    def correct(self) -> bool | None:
        """The first of the grades, acc or exact_match; None if it is neither 0 nor 1."""
        first = next(iter(self.grade.values()))
        return bool(first) if first in (0, 1) else None

    def as_dict(self) -> dict[str, Any]:
        """What the per-item file holds."""
        found: dict[str, Any] = {"item": self.index, "correct": self.correct}
        found |= {"index": self.index, "where": self.where, **self.grade}
        if self.answers:
            found |= {
                "gold": self.item.gold,
                "log_likelihoods": [answer.log_likelihood for answer in self.answers],
                "n_tokens": [answer.n_tokens for answer in self.answers],
                "greedy": [answer.greedy for answer in self.answers],
            }
        else:
            found |= {"answer": self.item.answer, "text": self.text}
        if self.item.group:
            found["group"] = self.item.group
        return found | {"n_cut": self.n_cut}


@dataclass(frozen=True)
class TaskResult:
    """A task's numbers on one model, and every item behind them."""

    task: str
    shots: int
    metrics: dict[str, float]
    """acc, acc_norm and so on, each with its standard error as NAME_stderr."""
    chance: float | None
    items: tuple[Graded, ...] = field(repr=False, default=())
    ceiling: float | None = None
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = field(repr=False, default=())
    """Items as lm-evaluation-harness logs them, if it ran the task."""

    @property
    def n_items(self) -> int:
        return len(self.items) or len(self.samples)

    @property
    def n_cut(self) -> int:
        """Items that did not fit into the model's context."""
        return sum(item.n_cut > 0 for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """What is printed and written: everything but the items."""
        found: dict[str, Any] = {"task": self.task, "shots": self.shots, "n_items": self.n_items}
        found |= {"n_cut": self.n_cut, **self.metrics}
        if self.chance is not None:
            found["chance"] = self.chance
        if self.ceiling is not None:
            found["ceiling"] = self.ceiling
        return found | ({"groups": self.groups} if self.groups else {})


def best(scores: Sequence[float]) -> int:
    """The index of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda index: scores[index])


def standard_error(values: Sequence[float], mean: float) -> float:
    """Of the mean: the sample standard deviation over sqrt(n). NaN cannot occur; one value: 0."""
    n = len(values)
    if n < 2:
        return 0.0
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def text_of(value: Any) -> str:
    """The value, which must be a text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r:.60}")
    return value
