"""Questions about little stories, and conversations of them: what `lmsmith demo --chat` learns.

    asked = little_question("where", seed=1, index=0)
    asked.messages      # [{"role": "user", "content": "One day, Ben ... Where is the hat now?"}]
    asked.answer        # "The hat is in the park."
    asked.short         # "in the park", also correct

Kinds: who, what, where (the point of the answer is words of the passage), continue (any sentence
that can come next), and sum (`story_sums`, answered by the bare number).

Answers are sentences that repeat the question. Behind "Ben found", a small model looks up the thing
as it continues any text. With the bare answer "the hat" it has to find what the question is about
first, which it learns much later (`docs/log.md`).

Most conversations ask one question about each thing of their story. After "Who found the hat?"
"Ben", the question "What did Ben find?" can be answered without the story. A small model that is
tuned on such conversations learns to read earlier answers, and guesses when there are none
(`docs/log.md`). The text for a base model has all questions about a story.

`lmsmith.text.story_questions` has the form of a question, `correct`, and the rule that holds out
one story in eight.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from lmsmith import atomic
from lmsmith.strict_json import to_json
from lmsmith.text.little_stories import Asked, LittleStory, little_story
from lmsmith.text.story_questions import NEXT, Question, is_held_out, question

ABOUT = ("who", "what", "where")
KINDS = (*ABOUT, "continue", "sum")
CHANCE = {"who": 1 / 2, "what": 1 / 2, "where": 1 / 2, "continue": 0.0}
"""Of a guess among the people, the things or the places of the passage."""
N_SUMS = 4  # of a conversation about sums


@dataclass(frozen=True)
class Mixture:
    """What conversations ask, as probabilities."""

    sums: float  # sums, and no story
    continued: float  # also the next sentence of the story
    everything: float  # all questions about the story, not one about each thing


CHATS = Mixture(sums=0.1, continued=0.25, everything=0.1)
TEXTS = Mixture(sums=0.2, continued=0.5, everything=1.0)
"""Of `little_conversation`, and of the text for a base model."""


def little_question(kind: str, seed: int, index: int, *, held_out: bool = False) -> Question:
    """Question number `index` of a kind. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"there are no questions of kind {kind!r}, expected one of {KINDS}")
    if kind == "sum":
        return _sum(seed, index, held_out)
    random = Random(f"little {kind} {seed} {index} {held_out}")
    while True:
        told = _told(random, held_out)
        if kind == "continue":
            return _after(told, _next(told, random))
        if some := [asked for asked in told.asked if asked.kind == kind]:
            return _after(told, _filled(random.choice(some), random))


def little_conversation(
    seed: int, index: int, *, held_out: bool = False, mixture: Mixture = CHATS
) -> list[dict[str, str]]:
    """The messages of conversation number `index`: questions about a story in random order, or some
    sums.
    """
    random = Random(f"little conversation {seed} {index} {held_out}")
    if random.random() < mixture.sums:
        numbers = range(index * N_SUMS, (index + 1) * N_SUMS)
        return [message for n in numbers for message in _sum(seed, n, held_out).solved]
    told = _told(random, held_out)
    # TEXTS draws no number here: the base text stays that of earlier versions.
    everything = mixture.everything == 1 or random.random() < mixture.everything
    asked = told.asked if everything else _one_for_each_thing(told, random)
    every = [_filled(one, random) for one in asked]
    if random.random() < mixture.continued:
        every.append(_next(told, random))
    random.shuffle(every)
    every[0] = _after(told, every[0])
    return [message for one in every for message in one.solved]


def write_little_conversations(path: Path, n: int, seed: int, *, held_out: bool = False) -> None:
    """Writes conversations 0 to n - 1 of a seed, one JSON object a line. Raises StorageError."""
    every = (little_conversation(seed, index, held_out=held_out) for index in range(n))
    atomic.write(path, "".join(to_json({"messages": each}) + "\n" for each in every))


def write_little_texts(path: Path, n: int, seed: int) -> None:
    """Writes conversations with all questions as plain texts, a message per line, for a base model.
    Raises StorageError.
    """
    every = (little_conversation(seed, index, mixture=TEXTS) for index in range(n))
    texts = ("\n".join(message["content"] for message in each) for each in every)
    atomic.write(path, "".join(to_json({"text": text}) + "\n" for text in texts))


def write_little_pairs(path: Path, n: int, seed: int) -> None:
    """Writes n questions of the kinds in turn, each with its answer and a wrong one, for
    `lmsmith align`. Raises StorageError.
    """
    rows = []
    for index in range(n):
        asked = little_question(KINDS[index % len(KINDS)], seed, index)
        rows.append(
            {
                "prompt": list(asked.messages),
                "chosen": [{"role": "assistant", "content": asked.answer}],
                "rejected": [{"role": "assistant", "content": asked.wrong}],
            }
        )
    atomic.write(path, "".join(to_json(row) + "\n" for row in rows))


def _told(random: Random, held_out: bool) -> LittleStory:
    """A story on this side."""
    while True:
        told = little_story(random)
        if is_held_out(told.text) == held_out:
            return told


def _one_for_each_thing(told: LittleStory, random: Random) -> list[Asked]:
    return [
        random.choice([asked for asked in told.asked if asked.thing == thing])
        for thing in told.things
    ]


def _filled(asked: Asked, random: Random) -> Question:
    messages = ({"role": "user", "content": asked.question},)
    wrong = random.choice(asked.others)
    answer, wrong = (_said(asked, words) for words in (asked.answer, wrong))
    return Question(asked.kind, messages, answer, asked.answer, wrong, CHANCE[asked.kind])


def _said(asked: Asked, words: str) -> str:
    """The answer as a sentence: "Ben found the hat." """
    sentence = asked.sentence.replace("_", words)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _sum(seed: int, index: int, held_out: bool) -> Question:
    """A told sum whose answer is the bare number."""
    told = question("sum", seed, index, held_out=held_out)
    (wrong,) = re.findall(r"\d+", told.wrong)
    return dataclasses.replace(told, answer=told.short, wrong=wrong)


def _next(told: LittleStory, random: Random) -> Question:
    """Asks for the next sentence: somebody takes a thing home, if nobody else holds it."""
    answer = told.following[0]
    while (wrong := random.choice(little_story(random).following)) in told.following:
        pass
    messages = ({"role": "user", "content": random.choice(NEXT)},)
    return Question("continue", messages, answer, answer, wrong, CHANCE["continue"],
                    accepted=told.following)  # fmt: skip


def _after(told: LittleStory, asked: Question) -> Question:
    """The question with the story before it."""
    text = f"{told.text}\n\n{asked.messages[-1]['content']}"
    messages = ({"role": "user", "content": text},)
    return Question(asked.kind, messages, asked.answer, asked.short, asked.wrong, asked.chance,
                    told.text, asked.accepted)  # fmt: skip
