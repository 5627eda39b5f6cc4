"""A proof, by exhaustive search, that no text of a grammar has two derivations.

Two derivations of one text agree up to a first choice (or draw) at which they diverge, with the
same bindings and the same remainder. So take every choice in every context, and every pair of its
options, and follow both paths at once, letter by letter, through everything that can follow, until
they disagree. If no pair reaches the end of the text in agreement, no text has two derivations. A
variable that was bound before the divergence stays symbolic as long as both paths write it at the
same position; otherwise it takes each of its possible values.

The search over-approximates: it ignores exclusions (`{a=names-b}`) and tries any combination of
earlier bindings. So a clean result is a proof, and a reported ambiguity must be checked.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, islice, permutations
from typing import NamedTuple

from lmsmith.text.grammar import Choice, Draw, Grammar, Parts, Record, Slot, Table

OPEN = Slot(-1, "what follows")  # ends a path whose context is not searched


class Way(NamedTuple):
    """One of the two paths: letters not yet matched, what is left to derive, and its bindings since
    the divergence.
    """

    letters: str
    left: tuple | None
    own: tuple[tuple[int, Record], ...] = ()


# What is known about the bindings before the divergence: variable -> its record, or True (some
# record) or False (none).
Before = dict[int, Record | bool]


def ambiguities(grammar: Grammar) -> Iterator[str]:
    """For every divergence of two paths that can end with the same text, that text; `{}` stands for
    something bound before.
    """
    values = possible_values(grammar)

    @cache
    def open_pairs(node: Choice | Draw) -> list[int]:
        """Which pairs of paths from `node` agree until the context of `node` matters."""
        pairs = enumerate(partings(node, (OPEN, None), values))
        return [k for k, (a, b) in pairs if next(agreements(a, b, values), None) is not None]

    for node, rest in places(grammar):
        if indices := open_pairs(node):
            pairs = list(partings(node, rest, values))
            for k in indices:
                yield from islice(agreements(*pairs[k], values), 1)


def places(grammar: Grammar) -> Iterator[tuple[Choice | Draw, tuple | None]]:
    """Every choice and draw in every context: with what is left to derive after it."""
    for node, rest in derivable(grammar):
        if isinstance(node, Choice | Draw):
            yield node, rest


def derivable(grammar: Grammar) -> list[tuple]:
    """Every remainder that can be left to derive, each before those that follow from it."""
    start = push(grammar.start, None)
    found, path = (
        {start},
        [(start, iter(following(start)))],
    )  # depth first, in the order of completion
    done = []
    while path:
        left, ahead = path[-1]
        if (after := next(ahead, None)) is None:
            done.append(left)
            path.pop()
        elif after not in found:
            found.add(after)
            path.append((after, iter(following(after))))
    return done[::-1]


def following(left: tuple) -> list[tuple]:
    node, rest = left
    ways = [push(option, rest) for option in node.options] if isinstance(node, Choice) else [rest]
    return [way for way in ways if way is not None]


def partings(
    node: Choice | Draw, rest: tuple | None, values: dict[int, set[Record]]
) -> Iterator[tuple[Way, Way]]:
    """The pairs of paths that diverge at `node`."""
    if isinstance(node, Choice):
        yield from combinations([Way("", push(option, rest)) for option in node.options], 2)
    else:
        for one, other in alike(node, values):
            yield drawn(Way("", (node, rest)), one), drawn(Way("", (node, rest)), other)


def agreements(a: Way, b: Way, values: dict[int, set[Record]]) -> Iterator[str]:
    """The texts that the two paths can both produce until both end, or until one is at OPEN."""
    waiting: list[tuple[Way, Way, Before, str]] = [(a, b, {}, "")]
    seen = set()
    while waiting:
        first, second, before, text = waiting.pop()
        if (state := (first, second, frozenset(before.items()))) in seen:
            continue
        seen.add(state)
        for a, known in heads(first, before):
            for b, decided in heads(second, known):
                n = min(len(a.letters), len(b.letters))
                if n:
                    if a.letters[:n] == b.letters[:n]:
                        rest = a._replace(letters=a.letters[n:]), b._replace(letters=b.letters[n:])
                        waiting.append((*rest, decided, text + a.letters[:n]))
                    continue
                x, y = (None if way.letters or way.left is None else way.left[0] for way in (a, b))
                if x == OPEN or y == OPEN or not (x or y or a.letters or b.letters):
                    yield text
                elif (
                    isinstance(x, Draw)
                    and isinstance(y, Draw)
                    and (x.slot, x.source) == (y.slot, y.source)
                ):
                    v = (
                        x.slot.variable
                    )  # both draw: the same record, as if it were bound before, or two records
                    both = a._replace(left=a.left[1]), b._replace(left=b.left[1])
                    waiting.append((*both, {**decided, v: True}, text + "{}"))
                    for one, other in alike(x, values):
                        waiting.append((drawn(a, one), drawn(b, other), decided, text))
                        waiting.append((drawn(a, other), drawn(b, one), decided, text))
                elif isinstance(x, Draw):
                    waiting.extend(
                        (drawn(a, record), b, decided, text)
                        for record in drawable(x, b.letters, values)
                    )
                elif isinstance(y, Draw):
                    waiting.extend(
                        (a, drawn(b, record), decided, text)
                        for record in drawable(y, a.letters, values)
                    )
                elif x and x == y:
                    waiting.append(
                        (
                            a._replace(left=a.left[1]),
                            b._replace(left=b.left[1]),
                            decided,
                            text + "{}",
                        )
                    )
                elif slot := x or y:  # one writes an undecided variable: try each of its values
                    v = slot.variable
                    waiting.extend((a, b, {**decided, v: record}, text) for record in values[v])


def heads(way: Way, before: Before) -> Iterator[tuple[Way, Before]]:
    """Everything that the path can become, advanced to letters, a draw, an undecided slot, OPEN, or
    its end.
    """
    letters, left, own = way
    if letters or left is None:
        yield way, before
        return
    node, rest = left
    if isinstance(node, str):
        yield Way(node, rest, own), before
    elif isinstance(node, Choice):
        for option in node.options:
            yield from heads(Way("", push(option, rest), own), before)
    else:
        slot = node.slot if isinstance(node, Draw) else node
        value = dict(own).get(slot.variable) or before.get(slot.variable)
        if isinstance(value, Record):
            yield Way(value.forms[slot.form], rest, own), before
        elif isinstance(node, Slot) or value is True:
            yield Way("", (slot, rest), own), before
        else:
            if node.again and value is None:  # it may have been bound before
                yield Way("", (slot, rest), own), {**before, slot.variable: True}
            yield way, {**before, slot.variable: False}


def drawn(way: Way, record: Record) -> Way:
    """`way`, which is at a draw, after drawing `record`."""
    draw, rest = way.left
    return Way(record.forms[draw.slot.form], rest, (*way.own, (draw.slot.variable, record)))


def drawable(draw: Draw, letters: str, values: dict[int, set[Record]]) -> set[Record]:
    """The records it can draw whose form agrees with `letters`, up to the shorter length."""
    records = {record for table in sources(draw, values) for record in table.records}
    forms = {record: record.forms[draw.slot.form] for record in records}
    return {
        record
        for record, form in forms.items()
        if form.startswith(letters) or letters.startswith(form)
    }


def alike(draw: Draw, values: dict[int, set[Record]]) -> Iterator[tuple[Record, Record]]:
    """Pairs of records of one table, the form of the second a prefix of the first's."""
    for table in sources(draw, values):
        for one, other in permutations(table.records, 2):
            if one.forms[draw.slot.form].startswith(other.forms[draw.slot.form]):
                yield one, other


def possible_values(grammar: Grammar) -> dict[int, set[Record]]:
    """All records that each variable can be bound to, anywhere."""
    draws = {node for node, _ in places(grammar) if isinstance(node, Draw)}
    values: dict[int, set[Record]] = {v: set() for v in grammar.variables.values()}
    for _ in draws:  # repeated, because a table can be a form of a record of a table, and so on
        for draw in draws:
            values[draw.slot.variable] |= {
                record for table in sources(draw, values) for record in table.records
            }
    return values


def sources(draw: Draw, values: dict[int, set[Record]]) -> set[Table]:
    if isinstance(draw.source, Table):
        return {draw.source}
    return {record.forms[draw.source.form] for record in values[draw.source.variable]}


def push(parts: Parts, rest: tuple | None) -> tuple | None:
    for part in parts:
        rest = (part, rest)
    return rest


def misused(grammar: Grammar) -> set[str]:
    """Variables that some derivation uses before they are bound, or binds (with `=`) twice."""
    order = derivable(grammar)
    surely: dict[tuple, frozenset[int]] = {
        order[0]: frozenset()
    }  # variables bound on every path to it; `perhaps`: on any path
    perhaps: dict[tuple, frozenset[int]] = {order[0]: frozenset()}
    wrong: set[int] = set()
    for left in order:
        node, _ = left
        sure, may = surely[left], perhaps[left]
        if isinstance(node, Slot):
            wrong |= {node.variable} - sure
        elif isinstance(node, Draw):
            v = {node.slot.variable}
            wrong |= v & may if not node.again else set()
            wrong |= {node.source.variable} - sure if isinstance(node.source, Slot) else set()
            sure, may = sure | v, may | v
        for after in following(left):
            surely[after] = surely.get(after, sure) & sure
            perhaps[after] = perhaps.get(after, may) | may
    return {name for name, v in grammar.variables.items() if v in wrong}
