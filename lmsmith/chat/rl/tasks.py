"""Built-in tasks of reinforcement learning.

    arithmetic   the sum of two numbers of two digits: "What is 12 + 34?" -> "46"
    story        a passage of a generated story; who did something, what was it, where is it now?
    little_stories   the same about two or three sentences, what comes next, told sums
    story_sums   Lily had 4 apples and got 3 more: how many does she have now?
    gsm8k        word problems from a local file (Cobbe et al. 2021)

One in eight questions is held out by a hash (`lmsmith.text.story_questions`): evaluations ask it,
and training never does. Of a file, every tenth problem is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from lmsmith.chat.rl.task import Problem, RLTask
from lmsmith.errors import DataError
from lmsmith.evaluate.tasks.files import files_of, read_rows, to_item
from lmsmith.evaluate.tasks.gsm8k import GSM8K as GSM8K_ITEMS
from lmsmith.text.little_questions import KINDS as LITTLE_KINDS
from lmsmith.text.little_questions import little_question
from lmsmith.text.story_questions import Question, question

HELD_OUT = 10  # one of so many problems of a file


class Questions(RLTask):
    """Questions of some kinds in turn, with the answers that `lmsmith demo` knows."""

    rewards = ("asked",)

    def __init__(
        self,
        name: str,
        what: str,
        kinds: tuple[str, ...],
        max_tokens: int,
        draw: Callable[..., Question] = question,
    ) -> None:
        self.name, self.what, self.max_tokens = name, what, max_tokens
        self.kinds, self.draw = kinds, draw

    def problem(self, seed: int, index: int, *, held_out: bool = False) -> Problem:
        number, kind = divmod(index, len(self.kinds))
        found = self.draw(self.kinds[kind], seed, number, held_out=held_out)
        return Problem(found.messages, found.answer, about=found)


class FileTask(RLTask):
    """Problems of a file, each once per epoch in an order that depends on the seed."""

    def __init__(self, problems: Sequence[Problem] = ()) -> None:
        self._sides = (
            [p for n, p in enumerate(problems) if n % HELD_OUT],
            [p for n, p in enumerate(problems) if n % HELD_OUT == 0],
        )

    def problem(self, seed: int, index: int, *, held_out: bool = False) -> Problem:
        side = self._sides[held_out]
        if held_out:
            return side[index % len(side)]
        epoch, place = divmod(index, len(side))
        return side[int(_order(seed, epoch, len(side))[place])]


class Gsm8k(FileTask):
    """Word problems; the answer ends with "#### NUMBER"."""

    name = "gsm8k"
    what = "word problems, from a local file"
    rewards = ("marked_number",)

    def opened(self, data: Path | None) -> RLTask:
        """Reads the file that `lmsmith eval --tasks gsm8k` reads. Raises DataError."""
        if data is None:
            raise DataError(
                "the task gsm8k reads problems from a file: name it, or its folder, with "
                "--rl.data. `lmsmith data download gsm8k` has one."
            )
        problems = []
        for row in read_rows(files_of(GSM8K_ITEMS, data)):
            item = to_item(GSM8K_ITEMS, row)
            question = item.contexts[0].removeprefix("Question: ").removesuffix("\nAnswer:")
            problems.append(Problem.of(question, item.answer, row.where))
        if len(problems) < 2:
            raise DataError(f"{data} has {len(problems)} problems; expected at least 2, because "
                            "one is held out.")  # fmt: skip
        return type(self)(problems)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


ARITHMETIC = Questions("arithmetic", "sums of two numbers of two digits", ("arithmetic",), 8)
STORY = Questions("story", "questions about generated stories", ("who", "what", "where"), 32)
LITTLE_STORIES = Questions(
    "little_stories", "questions about stories of two or three sentences", LITTLE_KINDS, 24,
    little_question,
)  # fmt: skip
STORY_SUMS = Questions("story_sums", "sums told as stories", ("sum",), 16)
GSM8K = Gsm8k()
