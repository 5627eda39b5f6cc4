"""Sums: told with the people and things of the stories, or bare numbers of two digits."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lmsmith.text.grammar import Record, Table
from lmsmith.text.stories import story_grammar

MOST = 9  # a number of a told sum


@dataclass(frozen=True)
class Sum:
    """A sum as question and answer. `key`: what decides whether it is held out."""

    question: str
    answer: str
    short: str
    wrong: str
    chance: float
    key: str


def draw_sum(kind: str, random: Random) -> Sum:
    """Draws a sum of kind `sum` or `arithmetic`."""
    return _told(random) if kind == "sum" else _bare(random)


def _told(random: Random) -> Sum:
    """4 apples and 3 more, or 7 apples less 3: numbers from 1 to 9, results from 0 to 18."""
    children = random.choice(story_grammar().tables["children"].records)
    names, friends = children.forms["names"], children.forms["friends"]
    assert isinstance(names, Table)
    assert isinstance(friends, Table)
    hero = random.choice(names.records)
    friend = random.choice([one for one in friends.records if _word(one) != _word(hero)])
    thing = _word(random.choice(story_grammar().tables["fruits"].records[:12]))
    n, m = random.randint(1, MOST), random.randint(1, MOST)
    he, him = hero.forms["he"], hero.forms["him"]
    if random.random() < 0.5:
        result = n + m
        story = f"{_word(hero)} had {_count(n, thing)}. {_word(friend)} gave {him} {m} more."
    else:
        n, m = max(n, m), min(n, m)
        result = n - m
        gave = f"{str(he).capitalize()} gave {_word(friend)} {m} of them."
        story = f"{_word(hero)} had {_count(n, thing)}. {gave}"
    asked = f"{story} How many does {_word(hero)} have now?"
    wrong = result + random.choice([d for d in (-2, -1, 1, 2) if result + d >= 0])
    answer = f"{_word(hero)} has {{}}."
    chance = 16 / 162  # the most frequent result is 1: 16 of the 81 differences, none of the sums
    return Sum(asked, answer.format(result), str(result), answer.format(wrong), chance, asked)


def _bare(random: Random) -> Sum:
    """17 + 25: both numbers have two digits."""
    n, m = random.randint(10, 99), random.randint(10, 99)
    wrong = n + m + random.choice([-10, -2, -1, 1, 2, 10])
    key = "{} + {}".format(*sorted((n, m)))
    chance = 90 / 8100  # the most frequent result is 109: 90 of all pairs
    return Sum(f"What is {n} + {m}?", str(n + m), str(n + m), str(wrong), chance, key)


def _count(n: int, thing: str) -> str:
    plural = thing[:-1] + "ies" if thing.endswith("y") else thing + "s"
    if thing.endswith(("o", "ch")):
        plural = thing + "es"
    return f"{n} {thing if n == 1 else plural}"


def _word(record: Record) -> str:
    return str(record.forms[""])
