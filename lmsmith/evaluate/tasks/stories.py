"""Questions about the demo's stories, whose best possible accuracy is known.

story_character   who is meant next: the hero, or the one who helps? Both were named before.
story_object      which thing is the story about? It was named before; three others of its kind
                  were not.

A small model learns these within minutes of training on stories (`lmsmith demo`), so they tell
models apart that guess at other tasks. No file is needed: the items are drawn from the grammar with
a seed of their own, and are always the same.

The ceiling is exact. For each item the grammar gives the probability of every choice, given the
context (`lmsmith.text.grammar_prefix`). A model that always chooses the likeliest is right with
that probability, and no model is expected to do better. The mean over the items is the ceiling.
Which mention becomes a question is drawn before the story, so nothing behind it has an influence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

from lmsmith.evaluate.tasks.task import ChoiceTask, Item, Row
from lmsmith.text.grammar_prefix import after, log_probability, then
from lmsmith.text.stories import story_grammar
from lmsmith.text.story_trace import Mention, trace

N_ITEMS = 500
SEED = 7_040_501  # the demo's stories have other seeds
N_OBJECTS = 4
N_MENTIONS = 6  # the question is about one of the first six mentions that qualify


class StoryTask(ChoiceTask):
    """Draws stories until enough have a question."""

    @lru_cache(maxsize=1)  # noqa: B019 - tasks live as long as the process
    def rows(self, folder: Path | None) -> Sequence[Row]:
        random, found = Random(SEED), list[Row]()
        while len(found) < N_ITEMS:
            which = random.randrange(N_MENTIONS)
            told = trace(random)
            if row := self.question(told.text, told.mentions, which, random):
                found.append(row)
        return found

    def question(
        self, story: str, mentions: Sequence[Mention], which: int, random: Random
    ) -> Row | None:
        """Context, choices and the right one, at mention number `which` of those that qualify;
        None if the story has fewer.
        """
        raise NotImplementedError

    def item(self, row: Row) -> Item:
        context, choices = row["context"], row["choices"]
        chances = posterior(context + " ", tuple(choices))
        return Item.choice(context, choices, row["gold"], ceiling=max(chances))

    def ceiling_of(self, items: Sequence[Item]) -> float | None:
        known = [item.ceiling for item in items if item.ceiling is not None]
        return math.fsum(known) / len(items)


class StoryCharacter(StoryTask):
    name = "story_character"
    what = "who is meant in a story: hero or helper? offline; the best possible accuracy is known"
    chance = 0.5

    def question(
        self, story: str, mentions: Sequence[Mention], which: int, random: Random
    ) -> Row | None:
        named: dict[str, str] = {}
        places = []
        for mention in mentions:
            if mention.variable not in ("hero", "pal"):
                continue
            if len(named) == 2 and not mention.form and _behind_space(story, mention):
                places.append(mention)
            named[mention.variable] = mention.record.forms[""]  # type: ignore[assignment]
        if which >= len(places) or _is_prefix(*named.values()):
            return None
        place = places[which]
        choices = random.sample(sorted(named.values()), 2)
        gold = choices.index(named[place.variable])
        return {"context": story[: place.start - 1], "choices": choices, "gold": gold}


class StoryObject(StoryTask):
    name = "story_object"
    what = "which thing is a story about? offline; the best possible accuracy is known"
    chance = 1 / N_OBJECTS

    def question(
        self, story: str, mentions: Sequence[Mention], which: int, random: Random
    ) -> Row | None:
        things = [mention for mention in mentions if mention.variable == "thing"]
        places = [m for m in things[1:] if not m.form and _behind_space(story, m)]
        if which >= len(places) or things[0].table is None:
            return None
        context, word = story[: places[which].start - 1], str(things[0].record.forms[""])
        names = [str(record.forms[""]) for record in things[0].table.records]
        others = [name for name in names if name not in context and not _is_prefix(name, word)]
        if len(others) < N_OBJECTS - 1:
            return None
        choices = [word, *random.sample(others, N_OBJECTS - 1)]
        random.shuffle(choices)
        return {"context": context, "choices": choices, "gold": choices.index(word)}


@lru_cache(maxsize=4 * N_ITEMS)
def posterior(context: str, choices: tuple[str, ...]) -> list[float]:
    """The probability of each choice, given that a story begins with `context` and continues with
    one of them.
    """
    states = after(story_grammar(), context)
    logs = [log_probability(then(states, choice)) for choice in choices]
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return [weight / sum(weights) for weight in weights]


def _behind_space(story: str, mention: Mention) -> bool:
    return story[: mention.start].endswith(" ")


def _is_prefix(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


CHARACTER, OBJECT = StoryCharacter(), StoryObject()
