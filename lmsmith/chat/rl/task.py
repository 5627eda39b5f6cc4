"""What a task of reinforcement learning is: it makes problems; rewards judge the answers.

    class Shout(RLTask):
        name, what, rewards = "shout", "repeat a word in capitals", ("exact",)

        def problem(self, seed, index, *, held_out=False):
            word = random_for(self.name, seed, index, held_out).choice(WORDS)
            return Problem.of(f"Shout: {word}", word.upper())

    def short(problem, answer):
        return float(len(answer) <= len(problem.truth))

A reward is a function of a problem and the text of an answer. It returns a number, and the same
number each time. `lmsmith.extend.register_rl_task` and `register_reward` add names.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Self

from lmsmith.chat.conversations import Message
from lmsmith.config import REWARDS
from lmsmith.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class Problem:
    """A prompt and what is known about its answer.

    `messages`: a conversation that ends with the user's turn. `truth`: the right answer, in the
    form that the task's rewards read. `where`: the file and line it comes from, if any. `about`:
    anything else that a reward needs.
    """

    messages: tuple[Message, ...]
    truth: Any
    where: str = ""
    about: Any = None

    @classmethod
    def of(cls, question: str, truth: Any, where: str = "") -> Self:
        """A problem with one message."""
        return cls(({"role": "user", "content": question},), truth, where)

    @property
    def question(self) -> str:
        """The last message."""
        return str(self.messages[-1]["content"])


Reward = Callable[[Problem, str], float]
"""(problem, answer) -> a number. The answer is the assistant's text without its end token."""


class RLTask(ABC):
    """Makes problems. Subclass it, and pass an instance to `register_rl_task`.

    name      the name for `--task`
    what      one line for lists of tasks
    rewards   the rewards that judge its answers, as in the setting `rl.rewards`
    max_tokens  most tokens per answer, unless `rl.max_tokens` is set
    """

    name: str
    what: str = ""
    rewards: tuple[str, ...] = ("exact",)
    max_tokens: int = 256

    def opened(self, data: Path | None) -> RLTask:
        """The task with the problems of a file. Raises DataError, ConfigError."""
        if data is not None:
            raise ConfigError(
                f"rl.data = {str(data)!r}, but the task {self.name} reads no file. Leave it out."
            )
        return self

    @abstractmethod
    def problem(self, seed: int, index: int, *, held_out: bool = False) -> Problem:
        """Problem number `index`, from 0: a function of the arguments alone.

        `held_out`: one of the problems that are never trained on.
        """


@dataclass(frozen=True)
class Judge:
    """A weighted sum of rewards."""

    parts: tuple[tuple[str, float, Reward], ...]  # name, weight, function

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """`names`: "NAME" or "NAME=WEIGHT". Raises ConfigError."""
        parts = []
        for item in names:
            name, equals, number = item.partition("=")
            weight = _weight(number, item) if equals else 1.0
            parts.append((name, weight, REWARDS.get(name)))
        return cls(tuple(parts))

    def __call__(self, problem: Problem, answer: str) -> float:
        """The reward of an answer. Raises TrainingError, with prompt and answer, if a function
        raises or does not return a finite number.
        """
        total = 0.0
        for name, weight, function in self.parts:
            case = f"the answer {_short(answer)} to the prompt {_short(problem.question)}"
            where = f" ({problem.where})" if problem.where else ""
            try:
                value = float(function(problem, answer))
            except Exception as error:  # the user's function may raise anything
                raise TrainingError(
                    f"the reward {name!r} raised {type(error).__name__}: {error}, for {case}"
                    f"{where}. Correct the function, then `lmsmith resume` the run."
                ) from error
            if not math.isfinite(value):
                raise TrainingError(
                    f"the reward {name!r} returned {value} for {case}{where}; expected a finite "
                    "number. Correct the function, then `lmsmith resume` the run."
                )
            total += weight * value
        return total


def random_for(name: str, seed: int, index: int, held_out: bool = False) -> Random:
    """The random numbers of one problem: a function of the arguments alone."""
    side = "held out" if held_out else "training"
    digest = hashlib.sha256(f"{name} {side} {seed} {index}".encode()).digest()
    return Random(int.from_bytes(digest[:8], "big"))


def _weight(text: str, item: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ConfigError(f"rl.rewards = {item!r}: expected NAME or NAME=WEIGHT, a finite number.")
    return weight


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}")
