"""Built-in tasks of reinforcement learning.

    arithmetic   the sum of two numbers of two digits: "What is 12 + 34?" -> "46"
    gsm8k        word problems from a local file (Cobbe et al. 2021)

Every tenth sum, chosen by a hash of its numbers, is held out: it is asked in evaluations and never
trained on. Of a file, every tenth problem is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from lmsmith.chat.rl.task import Problem, RLTask, random_for
from lmsmith.errors import DataError
from lmsmith.evaluate.tasks.files import files_of, read_rows, to_item
from lmsmith.evaluate.tasks.gsm8k import GSM8K as GSM8K_ITEMS

HELD_OUT = 10  # one of so many problems


class Arithmetic(RLTask):
    """Sums of two numbers from 10 to 99."""

    name = "arithmetic"
    what = "sums of two numbers of two digits"
    max_tokens = 8

    def problem(self, seed: int, index: int, *, held_out: bool = False) -> Problem:
        draw = random_for(self.name, seed, index, held_out)
        while True:
            a, b = draw.randint(10, 99), draw.randint(10, 99)
            if is_held_out(f"{a} + {b}") == held_out:
                return Problem.of(f"What is {a} + {b}?", str(a + b))


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


def is_held_out(text: str) -> bool:
    """Whether a problem that is identified by `text` belongs to the held-out tenth."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT == 0


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


ARITHMETIC, GSM8K = Arithmetic(), Gsm8k()
