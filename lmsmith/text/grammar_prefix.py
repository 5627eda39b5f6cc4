"""The exact probability that a text of a grammar begins in a given way.

    states = after(grammar, "Once upon a time, there was ")
    log_probability(states)                      # of this beginning
    log_probability(then(states, "a kind"))      # of the longer one

The same dynamic programming as `Grammar.log_probability`, stopped at the end of the beginning: a
partial derivation that reaches it is kept with what is left to derive. Whatever is left is derived
with probability one, so the sum over these derivations is the probability of the beginning.
"""

from __future__ import annotations

import math
from typing import Any

from lmsmith.text.grammar import (
    Choice,
    Draw,
    Grammar,
    Slot,
    Values,
    draw_source,
    must_draw,
    spoken,
)

Derivation = tuple[Any, Values]
"""What is left to derive, as nested pairs (next part, rest), and the bindings."""
States = dict[Derivation, float]
"""Log-probabilities of partial derivations."""


def after(grammar: Grammar, text: str) -> States:
    """All partial derivations of texts that begin with `text`."""
    start = _push(grammar.start, None), (None,) * len(grammar.variables)
    return then({start: 0.0}, text)


def then(states: States, text: str) -> States:
    """Those that continue with `text`. A string that is derived beyond its end stays partial."""
    reached: list[States] = [{} for _ in range(len(text) + 1)]

    def reach(position: int, rest: Any, values: Values, log_p: float) -> None:
        while rest is not None and type(rest[0]) is str and position < len(text):
            piece, rest = rest
            n = min(len(piece), len(text) - position)
            if piece[:n] != text[position : position + n]:
                return
            position += n
            if n < len(piece):
                rest = (piece[n:], rest)
        here = reached[position]
        before = here.get((rest, values))
        here[rest, values] = log_p if before is None else _log_add(before, log_p)

    for (rest, values), log_p in states.items():
        reach(0, rest, values, log_p)
    for position in range(len(text)):
        derivations = reached[position]
        while derivations:
            (left, values), log_p = derivations.popitem()
            if left is None:
                continue
            node, rest = left
            if type(node) is Choice:
                for option, more in zip(node.options, node.log_probabilities, strict=True):
                    reach(position, _push(option, rest), values, log_p + more)
            elif type(node) is Draw and must_draw(node, values):
                for bound, more in _draws(node, values):
                    reach(position, (spoken(node.slot, bound), rest), bound, log_p + more)
            else:
                slot = node.slot if type(node) is Draw else node
                assert type(slot) is Slot
                reach(position, (spoken(slot, values), rest), values, log_p)
    return reached[len(text)]


def log_probability(states: States) -> float:
    """The natural logarithm of the sum; -inf without any derivation."""
    if not states:
        return -math.inf
    top = max(states.values())
    return top + math.log(math.fsum(math.exp(value - top) for value in states.values()))


def _draws(node: Draw, values: Values) -> list[tuple[Values, float]]:
    table, excluded = draw_source(node, values)
    at = node.slot.variable
    return [
        ((*values[:at], record, *values[at + 1 :]), table.log_probability(record, excluded))
        for record in table.records
        if record not in excluded
    ]


def _push(parts: Any, rest: Any) -> Any:
    for part in parts:
        rest = (part, rest)
    return rest


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))
