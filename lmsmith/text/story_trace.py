"""A story with what the grammar decided: its plot, its people and things, and where each is named.

    told = trace(Random(1))
    told.text, told.plot                # "Once upon a time, ...", "lost"
    told.values["hero"].forms[""]       # "Lily"

`trace` makes the same choices as `Grammar.generate`, so the same `Random` gives the same story.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import cache
from random import Random

from lmsmith.text.grammar import (
    Choice,
    Draw,
    Grammar,
    Record,
    Slot,
    Table,
    draw_source,
    must_draw,
    spoken,
)
from lmsmith.text.stories import story_grammar


@dataclass(frozen=True)
class Mention:
    """A word in a story that names a record bound to a variable."""

    start: int
    variable: str
    form: str
    record: Record
    table: Table | None  # where the record was drawn from, at its first mention


@dataclass(frozen=True)
class Told:
    """A story, its mentions in order, the name of its plot, and the records by variable."""

    text: str
    mentions: tuple[Mention, ...]
    plot: str
    values: dict[str, Record]
    tables: dict[str, Table]  # where each record was drawn from


def trace(random: Random) -> Told:
    """Draws a story."""
    grammar = story_grammar()
    names = {index: name for name, index in grammar.variables.items()}
    values: list[Record | None] = [None] * len(names)
    text, mentions, stack, plot = "", list[Mention](), list(grammar.start), ""
    plots, plot_names = _plots(grammar)
    tables: dict[str, Table] = {}
    while stack:
        node = stack.pop()
        table = None
        if isinstance(node, str):
            text += node
            continue
        if isinstance(node, Choice):
            k = bisect(node.cumulative, random.random())
            if node is plots:
                plot = plot_names[k]
            stack.extend(node.options[k])
            continue
        if isinstance(node, Draw):
            if must_draw(node, values):
                table, excluded = draw_source(node, values)
                values[node.slot.variable] = table.draw(random, excluded)
                tables[names[node.slot.variable]] = table
            node = node.slot
        assert isinstance(node, Slot)
        record = values[node.variable]
        assert record is not None
        mentions.append(Mention(len(text), names[node.variable], node.form, record, table))
        text += spoken(node, values)
    bound = {names[k]: record for k, record in enumerate(values) if record is not None}
    return Told(text, tuple(mentions), plot, bound, tables)


@cache
def _plots(grammar: Grammar) -> tuple[Choice, list[str]]:
    """The choice between the plots, and their names."""
    (choice,) = grammar.parts("plot")
    assert isinstance(choice, Choice)
    return choice, [line.strip("<>") for line in grammar.alternatives("plot")]
