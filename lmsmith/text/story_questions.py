"""Questions with verifiable answers: about the generated stories, and simple sums.

    asked = question("where", seed=1, index=0)
    asked.messages      # [{"role": "user", "content": "One sunny day, Lily ... now?"}]
    asked.answer        # "It is under the bench."
    correct(asked, "it is under the bench")     # True

| kind | the user | the answer |
|---|---|---|
| who | a passage of a story, who did something | a person |
| what | a passage, what was lost, found, built, done | a thing |
| where | a passage, where something happened, or where a thing is now | a place |
| continue | the beginning of a story, what happens next | a sentence that the grammar allows |
| sum | somebody has 4 apples and gets 3 | 7 |
| arithmetic | a sum of two numbers of two digits | a number |

Everything is a function of (kind, seed, index). The answers come from the choices that the grammar
made (`story_trace`, `story_asked`), not from the text.

**Held out.** A hash decides whether a question is held out: of the full story; of the pair of
numbers (`arithmetic`); of the question's text (`sum`). One in eight is held out. `question` draws
until it finds one on the side that the caller named. So a held-out story is in no training set of
any seed, and no training set adds a held-out pair of numbers. `sum` has few pairs of numbers:
there, only the text is new.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random
from typing import Any

from lmsmith.text.grammar import Record, blocks
from lmsmith.text.grammar_prefix import after
from lmsmith.text.stories import story_grammar
from lmsmith.text.story_asked import ASKED
from lmsmith.text.story_sums import Sum, draw_sum
from lmsmith.text.story_trace import Told, trace

STORY_KINDS = ("who", "what", "where", "continue")
KINDS = (*STORY_KINDS, "sum", "arithmetic")
MOST_BYTES = 400
"""Of a passage: with a vocabulary of 2,048 about 110 tokens. Short passages have more questions per
token, and a small model learns from the answers only.
"""
HELD_OUT = 8  # one of so many stories
NEXT = ("What happens next?", "Continue the story.", "And then?")


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    `short`: the point of the answer, also correct alone ("Lily" of "It was Lily."); `wrong`: an
    answer that is wrong but has the same form; `chance`: probability that a guess is right, by
    somebody who knows the tables of words and the people of the passage but does not read it;
    `accepted`: other right answers, where they are a list.
    """

    kind: str
    messages: tuple[dict[str, str], ...]
    answer: str
    short: str
    wrong: str
    chance: float
    passage: str = ""
    accepted: tuple[str, ...] = ()

    @property
    def solved(self) -> list[dict[str, str]]:
        """The conversation with the right answer."""
        return [*self.messages, {"role": "assistant", "content": self.answer}]


def question(kind: str, seed: int, index: int, *, held_out: bool = False) -> Question:
    """Question number `index` of a kind. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"there are no questions of kind {kind!r}, expected one of {KINDS}")
    random = Random(f"{kind} {seed} {index} {held_out}")
    while True:
        if kind not in STORY_KINDS:
            drawn = draw_sum(kind, random)
            if is_held_out(drawn.key) == held_out:
                return _of_sum(kind, drawn)
            continue
        told = trace(random)
        if is_held_out(told.text) == held_out and (found := _about(told, kind, random)):
            return found


def correct(asked: Question, text: str) -> bool:
    """Whether a text is the answer, or its point; case, spaces at the ends and the full stop do not
    count. For `continue`: whether a story can begin with the passage and this sentence.
    """
    if asked.kind == "continue" and not asked.accepted:
        return _continues(asked.passage, text)
    return plain(text) in map(plain, (asked.answer, asked.short, *asked.accepted))


def plain(text: str) -> str:
    """A text without what `correct` ignores."""
    return " ".join(text.split()).rstrip(".").lower()


def is_held_out(key: str) -> bool:
    """Whether questions about this story are for evaluation, not for training."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()[0] % HELD_OUT == 0


# ---- passages ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passage:
    """Consecutive paragraphs of a story, from `first` through `last`."""

    told: Told
    first: int
    last: int

    @property
    def bounds(self) -> tuple[int, int]:
        edges = _paragraphs(self.told.text)
        return edges[self.first][0], edges[self.last][1]

    @property
    def text(self) -> str:
        start, end = self.bounds
        return self.told.text[start:end]

    def named(self, through: int) -> set[str]:
        """The variables that are named, not only meant by a pronoun, up to the end of a
        paragraph.
        """
        start, end = self.bounds[0], _paragraphs(self.told.text)[through][1]
        return {
            mention.variable
            for mention in self.told.mentions
            if start <= mention.start < end and mention.form.lstrip("^") not in ("he", "him", "his")
        }


def passages(told: Told) -> list[Passage]:
    """All passages of a story that are short enough."""
    edges = _paragraphs(told.text)
    return [
        Passage(told, first, last)
        for first in range(len(edges))
        for last in range(first, len(edges))
        if edges[last][1] - edges[first][0] <= MOST_BYTES
    ]


def about_passage(
    passage: Passage, kinds: Sequence[str], random: Random, most: int | None = None
) -> list[Question]:
    """Questions of some kinds that the passage answers, in random order, without the passage in the
    message: all, or at most `most`.
    """
    told = passage.told
    people = sorted(v for v in passage.named(passage.last) if _is_person(told.values, v))
    lines = [
        line
        for line in asked_lines()[told.plot]
        if line.kind in kinds
        and passage.first <= line.paragraph <= passage.last
        and (not line.ends or line.paragraph == passage.last)
        and (line.kind != "who" or len(people) > 1)
    ]
    random.shuffle(lines)
    found: list[Question] = []
    for line in lines:
        if len(found) == most:
            break
        if line.variables <= passage.named(line.paragraph):
            found.append(_filled(line, told, people, random))
    return found


def _about(told: Told, kind: str, random: Random) -> Question | None:
    """A question about a story, with its passage; None if the drawn passage answers none."""
    if kind == "continue":
        return _continue(told, random)
    passage = random.choice(passages(told))
    found = about_passage(passage, (kind,), random, most=1)
    return with_passage(found[0], passage) if found else None


def with_passage(asked: Question, passage: Passage) -> Question:
    """The question with the passage before it."""
    text = f"{passage.text}\n\n{asked.messages[-1]['content']}"
    return Question(
        asked.kind, (_user(text),), asked.answer, asked.short, asked.wrong, asked.chance,
        passage.text,
    )  # fmt: skip


@lru_cache(maxsize=16)
def _paragraphs(text: str) -> list[tuple[int, int]]:
    edges, start = [], 0
    for paragraph in text.split("\n\n"):
        edges.append((start, start + len(paragraph)))
        start += len(paragraph) + 2
    return edges


# ---- the table of questions ----------------------------------------------------------------------

SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")


@dataclass(frozen=True)
class Line:
    """A line of `ASKED`."""

    kind: str
    paragraph: int
    ends: bool
    question: str
    before: str
    point: str
    behind: str

    variables: frozenset[str]


@cache
def asked_lines() -> dict[str, list[Line]]:
    """The lines of `ASKED` by plot."""
    found = {}
    for plot, lines in blocks(ASKED).items():
        found[plot] = [_line(line) for line in lines]
    return found


def _line(text: str) -> Line:
    head, _, rest = text.partition(": ")
    kind, number = head.split()
    asked, answer = rest.split(" = ")
    before, point, behind = answer.split("*")
    names = frozenset(name.lower() for name, _ in SLOT.findall(rest))
    return Line(kind, int(number.rstrip("!")), "!" in number, asked, before, point, behind, names)


def _filled(line: Line, told: Told, people: Sequence[str], random: Random) -> Question:
    """The question of a line about a story."""
    values = told.values
    short = _fill(line.point, values)
    before, behind = _fill(line.before, values), _fill(line.behind, values)
    wrong = before + _fill(line.point, _changed(line, told, people, random)) + behind
    return Question(
        line.kind,
        (_user(_fill(line.question, values)),),
        before + short + behind,
        short,
        wrong,
        _chance(line, told, people),
    )


def _changed(line: Line, told: Told, people: Sequence[str], random: Random) -> Mapping[str, Record]:
    """The records with one of the answer exchanged: a person for another of the passage, anything
    else for another record of its table.
    """
    variable = SLOT.findall(line.point)[-1][0]
    right = told.values[variable]
    if _is_person(told.values, variable):
        others = [told.values[other] for other in people if told.values[other] is not right]
    else:
        others = [one for one in told.tables[variable].records if one is not right]
    return {**told.values, variable: random.choice(others)}


def _chance(line: Line, told: Told, people: Sequence[str]) -> float:
    """The best guess is right with this probability."""
    chance = 1.0
    for variable in dict.fromkeys(name for name, _ in SLOT.findall(line.point)):
        if _is_person(told.values, variable):
            chance /= len(people)
        else:
            chance *= math.exp(told.tables[variable].log_probabilities[0])
    return chance


def _fill(text: str, values: Mapping[str, Record]) -> str:
    def word(match: re.Match[str]) -> str:
        name, form = match[1], match[2] or ""
        record = values[name.lower()]
        return str(record.forms[form if form.islower() or not form else "^" + form.lower()])

    return SLOT.sub(word, text)


def _is_person(values: Mapping[str, Record], variable: str) -> bool:
    return "he" in values[variable].forms if variable in values else False


# ---- continuations and sums ----------------------------------------------------------------------

SENTENCE_END = re.compile(r"(?<!Mr)(?<!Mrs)[.!?]\"?(?=\s+[\"A-Z]|$)")


def _continue(told: Told, random: Random) -> Question:
    """Asks for the sentence after the beginning of a story."""
    ends = _sentence_ends(told.text)
    usable = [n for n, end in enumerate(ends[:-1]) if end <= MOST_BYTES]
    n = random.choice(usable)
    passage, answer = told.text[: ends[n]], told.text[ends[n] : ends[n + 1]].strip()
    other = trace(random).text
    edges = [0, *_sentence_ends(other)]
    others = [other[start:end].strip() for start, end in itertools.pairwise(edges)]
    random.shuffle(others)
    wrong = next(text for text in others if not _continues(passage, text))
    asked = _user(f"{passage}\n\n{random.choice(NEXT)}")
    return Question("continue", (asked,), answer, answer, wrong, 0.0, passage)


def _sentence_ends(text: str) -> list[int]:
    return [match.end() for match in SENTENCE_END.finditer(text)]


def _continues(passage: str, text: str) -> bool:
    text = text.strip()
    if _sentence_ends(text)[-1:] != [len(text)]:
        return False
    grammar = story_grammar()
    return any(after(grammar, passage + space + text) for space in (" ", "\n\n"))


def _of_sum(kind: str, drawn: Sum) -> Question:
    return Question(kind, (_user(drawn.question),), drawn.answer, drawn.short, drawn.wrong,
                    drawn.chance)  # fmt: skip


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}
