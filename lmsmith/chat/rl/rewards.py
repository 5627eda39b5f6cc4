"""Built-in rewards: functions of a problem and an answer.

exact           1 if the answer is the truth, apart from case, outer space and a final full stop
contains        1 if the truth occurs in the answer as a complete word
asked           1 if the answer to a question about a story, or a sum, is right: the sentence or its
                point; for a continuation, any sentence that the grammar allows
last_number     1 if the last number in the answer is the truth
marked_number   1 if the number behind "####" is the truth, as in GSM8K's solutions
digits          the share of the truth's characters that the answer has at their places, from
                the right: a denser signal than `exact`
number_format   1 if the answer is a number and nothing else
marked_format   1 if the answer ends with "#### NUMBER", and that occurs once
"""

from __future__ import annotations

import re

from lmsmith.chat.rl.task import Problem
from lmsmith.evaluate.tasks.gsm8k import MARKED, NUMBER, number
from lmsmith.text.story_questions import correct


def exact(problem: Problem, answer: str) -> float:
    return float(plain(answer) == plain(str(problem.truth)))


def contains(problem: Problem, answer: str) -> float:
    words = re.escape(plain(str(problem.truth)))
    return float(re.search(rf"(?<!\w){words}(?!\w)", plain(answer)) is not None)


def asked(problem: Problem, answer: str) -> float:
    return float(correct(problem.about, answer))


def last_number(problem: Problem, answer: str) -> float:
    found = NUMBER.findall(answer)
    return float(bool(found) and number(found[-1]) == number(str(problem.truth)))


def marked_number(problem: Problem, answer: str) -> float:
    found = MARKED.search(answer)
    return float(found is not None and number(found[1]) == number(str(problem.truth)))


def digits(problem: Problem, answer: str) -> float:
    truth, said = str(problem.truth), answer.strip()
    n = max(len(truth), len(said))
    pairs = zip(reversed(truth), reversed(said), strict=False)
    return sum(a == b for a, b in pairs) / n


def number_format(problem: Problem, answer: str) -> float:
    return float(re.fullmatch(r"-?\d+", answer.strip()) is not None)


def marked_format(problem: Problem, answer: str) -> float:
    found = list(MARKED.finditer(answer))
    return float(len(found) == 1 and not answer[found[0].end() :].strip())


def plain(text: str) -> str:
    """A short answer for comparison: lower case, single spaces, no full stop at its end."""
    return " ".join(text.lower().split()).removesuffix(".").strip()
