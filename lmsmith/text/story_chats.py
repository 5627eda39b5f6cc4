"""Files of conversations about the generated stories, for `tune` and `align`.

    write_conversations(Path("chats.jsonl"), n=4000, seed=1)
    write_pairs(Path("pairs.jsonl"), n=1000, seed=1)

A conversation is about one passage, with up to four questions of the kinds of `story_questions`, or
about sums. It is a function of (seed, index). Conversations and pairs for training are never about
a held-out story.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from lmsmith import atomic
from lmsmith.strict_json import to_json
from lmsmith.text.story_questions import (
    KINDS,
    Question,
    about_passage,
    is_held_out,
    passages,
    question,
    with_passage,
)
from lmsmith.text.story_trace import trace

MOST_TURNS = 4
SHARES: Mapping[str, float] = {"story": 0.75, "continue": 0.1, "sum": 0.15}
"""Of the conversations: about a passage (who, what, where), the next sentence, told sums."""
ABOUT = ("who", "what", "where")


def conversation(
    seed: int, index: int, shares: Mapping[str, float] = SHARES, *, held_out: bool = False
) -> list[dict[str, str]]:
    """The messages of conversation number `index`.

    `shares`: relative numbers of conversations by kind, of "story" and of
    `lmsmith.text.story_questions.KINDS`.
    """
    random = Random(f"conversation {seed} {index} {held_out}")
    (kind,) = random.choices(list(shares), list(shares.values()))
    if kind == "story":
        return _about_a_story(random, held_out)
    n = 1 if kind not in ("sum", "arithmetic") else random.randint(1, MOST_TURNS)
    numbers = range(index * MOST_TURNS, index * MOST_TURNS + n)
    every = [question(kind, seed, number, held_out=held_out) for number in numbers]
    return [message for one in every for message in one.solved]


def pair(kind: str, seed: int, index: int) -> dict[str, Any]:
    """A question with its right and a wrong answer: `prompt`, `chosen`, `rejected`."""
    asked = question(kind, seed, index)
    return {
        "prompt": list(asked.messages),
        "chosen": [{"role": "assistant", "content": asked.answer}],
        "rejected": [{"role": "assistant", "content": asked.wrong}],
    }


def write_conversations(
    path: Path,
    n: int,
    seed: int,
    shares: Mapping[str, float] = SHARES,
    *,
    held_out: bool = False,
) -> None:
    """Writes conversations 0 to n - 1 of a seed, one JSON object a line: `{"messages": [...]}`.

    Raises StorageError.
    """
    every = (conversation(seed, index, shares, held_out=held_out) for index in range(n))
    rows = (to_json({"messages": messages}) for messages in every)
    atomic.write(path, "".join(row + "\n" for row in rows))


def write_pairs(path: Path, n: int, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
    """Writes n pairs of answers, of the kinds in turn, one JSON object a line. Raises
    StorageError.
    """
    rows = (to_json(pair(kinds[index % len(kinds)], seed, index)) for index in range(n))
    atomic.write(path, "".join(row + "\n" for row in rows))


def _about_a_story(random: Random, held_out: bool) -> list[dict[str, str]]:
    """One to four questions about a passage of a story on this side."""
    while True:
        told = trace(random)
        if is_held_out(told.text) != held_out:
            continue
        passage = random.choice(passages(told))
        every = about_passage(passage, ABOUT, random, most=MOST_TURNS)
        if not every:
            continue
        first: Question = with_passage(every[0], passage)
        return [message for one in [first, *every[1:]] for message in one.solved]
