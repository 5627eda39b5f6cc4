r"""Probabilistic template grammars: one notation for a generator and a recogniser.

A grammar is a text of rules over tables of words. A rule is a name and, indented below it, its
alternatives (a line with deeper indentation continues the alternative above):

    story
        There was {trait.a=traits} {kind=kinds} named {hero=kind.names}. [<rain> |]{hero.He} had {toy.a=toys}.
        One day, {friend=names} gave {hero=names-friend} {food=foods}. // {hero} was [glad|very happy].
    rain
        It rained[ all day|].

`[a|b|]`               one of these; the last one here is empty
`<rain>`               one of that rule's alternatives; rules must not be recursive
`{toy.a=toys}`         draws a record from a table, binds the variable `toy` to it, and writes its
                       form `a` ("a ball")
`{hero=kind.names}`    the table is a form of the record bound to `kind`
`{hero=names-friend}`  draws any record except the one bound to `friend`
`{food?=foods}`        writes the record if the variable is bound, and draws one otherwise
`{toy}`, `{hero.his}`  writes a bound record, in its plain form ("ball") or another form ("her");
                       `{Toy}`, `{hero.His}`: capitalised
` // `                 a new paragraph

**Probabilities.** Alternatives, and records of a table, are listed from most to least common. The
k-th (from 1) has weight 1/(k + 1): close to Zipf's law, and no numbers in the grammar.

**Exactness.** `Grammar.generate` returns a text and the log-probability of the derivation that
produced it, which is the sum over all its choices. The probability of the *text* is the sum over
all its derivations. `Grammar.log_probability` computes that sum from the text alone, by dynamic
programming from left to right over partial derivations (the part still to be derived, and the
bindings of the variables). The two are equal if and only if the text has exactly one derivation;
`lmsmith.text.stories` explains the proof that all of its texts do.
"""

import math
import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random


class Record:
    """A thing that texts mention, by its forms: `{"": "Lily", "he": "she", "names": Table(...)}`.
    Records compare by identity.
    """

    def __init__(self, forms: "Mapping[str, str | Table]") -> None:
        capitals = {
            "^" + name: form[:1].upper() + form[1:]
            for name, form in forms.items()
            if isinstance(form, str)
        }
        self.forms = {**forms, **capitals}


class Table:
    """Records to draw from, most common first."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = tuple(records)
        self.cumulative, self.log_probabilities = _zipf(len(self.records))
        self.index = {record: k for k, record in enumerate(self.records)}
        assert len(self.index) == len(self.records), "a table contains a record twice"

    def draw(self, random: Random, excluded: tuple[Record, ...]) -> Record:
        while (record := self.records[bisect(self.cumulative, random.random())]) in excluded:
            assert len(self.records) > len(excluded), "nothing is left to draw"
        return record

    def log_probability(self, record: Record, excluded: tuple[Record, ...]) -> float:
        """Returns the log-probability of drawing `record`, given that none of `excluded` (which
        need not be in this table) is drawn.
        """
        excluded_mass = sum(
            math.exp(self.log_probabilities[self.index[other]])
            for other in excluded
            if other in self.index
        )
        return self.log_probabilities[self.index[record]] - (
            math.log1p(-excluded_mass) if excluded_mass else 0.0
        )


@dataclass(frozen=True, eq=False, slots=True)
class Choice:
    options: "tuple[Parts, ...]"
    cumulative: list[float]
    log_probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Slot:
    variable: int
    form: str


@dataclass(frozen=True, eq=False, slots=True)
class Draw:
    slot: Slot  # the variable to bind, and the form to write
    source: Table | Slot
    without: tuple[int, ...]  # variables whose records are excluded
    again: bool  # `?=`: no draw if the variable is bound


Node = str | Choice | Slot | Draw
Parts = tuple[Node, ...]  # a sequence of nodes in REVERSE order, ready to be pushed on a stack
Values = tuple[Record | None, ...]  # bindings, indexed by variable


class Grammar:
    def __init__(self, rules: str, tables: Mapping[str, Table], start: str) -> None:
        self._alternatives = blocks(rules)
        self.tables = tables
        self._parsed: dict[str, Parts | None] = {}
        self.variables: dict[str, int] = {}
        self.start = self._rule(start)
        unused = self._alternatives.keys() - self._parsed.keys()
        assert not unused, f"rules {sorted(unused)} cannot be reached from {start}"

    def generate(self, random: Random) -> tuple[str, float]:
        """Returns a text, and the natural logarithm of the probability of its derivation."""
        words: list[str] = []
        values: list[Record | None] = [None] * len(self.variables)
        log_probability = 0.0
        stack = list(self.start)
        while stack:
            node = stack.pop()
            if type(node) is str:
                words.append(node)
            elif type(node) is Choice:
                k = bisect(node.cumulative, random.random())
                log_probability += node.log_probabilities[k]
                stack.extend(node.options[k])
            elif type(node) is Slot:
                words.append(spoken(node, values))
            elif type(node) is Draw:
                if must_draw(node, values):
                    table, excluded = draw_source(node, values)
                    record = table.draw(random, excluded)
                    log_probability += table.log_probability(record, excluded)
                    values[node.slot.variable] = record
                words.append(spoken(node.slot, values))
        return "".join(words), log_probability

    def log_probability(self, text: str) -> float:
        """Returns the natural logarithm of the probability of `text`, summed over all its
        derivations; -inf if there are none.
        """
        # For each position in the text, the partial derivations that have reached it: the part
        # still to be derived, as nested pairs (next part, rest), and the bindings -> their
        # log-probability. Equal states are summed.
        reached: list[dict[tuple[tuple | None, Values], float]] = [{} for _ in range(len(text) + 1)]

        def reach(
            position: int, rest: tuple | None, values: Values, log_probability: float
        ) -> None:
            if rest is not None and type(rest[0]) is str:  # look ahead: most derivations end here
                if not text.startswith(rest[0], position):
                    return
                position, rest = position + len(rest[0]), rest[1]
            here = reached[position]
            before = here.get((rest, values))
            here[rest, values] = (
                log_probability if before is None else _log_add(before, log_probability)
            )

        reach(0, _push(self.start, None), (None,) * len(self.variables), 0.0)
        total = -math.inf
        for position, derivations in enumerate(reached):
            while derivations:
                (left, values), log_probability = derivations.popitem()
                if left is None:
                    if position == len(text):
                        total = _log_add(total, log_probability)
                    continue
                node, rest = left
                if type(node) is Choice:
                    for option, log_p in zip(node.options, node.log_probabilities, strict=True):
                        reach(position, _push(option, rest), values, log_probability + log_p)
                elif type(node) is Draw and must_draw(node, values):
                    table, excluded = draw_source(node, values)
                    for record in table.records:
                        bound = (
                            *values[: node.slot.variable],
                            record,
                            *values[node.slot.variable + 1 :],
                        )
                        if record not in excluded and text.startswith(
                            spoken(node.slot, bound), position
                        ):
                            log_p = table.log_probability(record, excluded)
                            reach(position, (node.slot, rest), bound, log_probability + log_p)
                elif type(node) is Draw:
                    reach(position, (node.slot, rest), values, log_probability)
                elif type(node) is Slot:
                    reach(position, (spoken(node, values), rest), values, log_probability)
                else:
                    reach(position, left, values, log_probability)
        return total

    def alternatives(self, name: str) -> list[str]:
        """The alternatives of a rule, as written."""
        return self._alternatives[name]

    def parts(self, name: str) -> Parts:
        """The parts of a rule. A rule of several alternatives has one part, a `Choice`."""
        return self._rule(name)

    def _rule(self, name: str) -> Parts:
        """Returns the parts of the rule, parsed when it is first used."""
        if name not in self._parsed:
            self._parsed[name] = None
            options = [self._parse(line) for line in self._alternatives[name]]
            self._parsed[name] = options[0] if len(options) == 1 else (_choice(options),)
        parts = self._parsed[name]
        assert parts is not None, f"rule {name} is recursive"
        return parts

    def _parse(self, text: str) -> Parts:
        tokens = re.split(r"([\[\]|]|<\w+>|\{[^{}]*\})", text.replace(" // ", "\n\n"))
        options = self._options(iter([*tokens, "]"]))
        return options[0] if len(options) == 1 else (_choice(options),)

    def _options(self, tokens: Iterator[str]) -> list[Parts]:
        """Returns the alternatives between brackets, up to the closing one."""
        options: list[list[Node]] = [[]]
        while (token := next(tokens)) != "]":
            if token == "|":
                options.append([])
            elif token == "[":
                options[-1].append(_choice(self._options(tokens)))
            elif token.startswith("<"):
                options[-1].extend(reversed(self._rule(token[1:-1])))
            elif token.startswith("{"):
                options[-1].append(self._slot_or_draw(token[1:-1].replace(" ", "")))
            elif token:
                options[-1].append(token)
        return [tuple(reversed(option)) for option in options]

    def _slot_or_draw(self, token: str) -> Slot | Draw:
        left, equals, right = token.partition("=")
        slot = self._slot(left.rstrip("?"))
        if not equals:
            return slot
        source, *without = right.split("-")
        table = self._slot(source) if "." in source else self.tables[source]
        return Draw(
            slot, table, tuple(self._slot(other).variable for other in without), left.endswith("?")
        )

    def _slot(self, name: str) -> Slot:
        variable, _, form = name.partition(".")
        capital = "" if name.islower() else "^"
        return Slot(
            self.variables.setdefault(variable.lower(), len(self.variables)), capital + form.lower()
        )


def spoken(slot: Slot, values: Sequence[Record | None]) -> str:
    """Returns the text of a bound record in the form that `slot` names."""
    text = _form(slot, values)
    assert isinstance(text, str)
    return text


def must_draw(draw: Draw, values: Sequence[Record | None]) -> bool:
    """Returns whether the variable is still unbound. Only `?=` accepts a bound one."""
    bound = values[draw.slot.variable] is not None
    assert draw.again or not bound, f"variable {draw.slot.variable} is bound twice"
    return not bound


def draw_source(draw: Draw, values: Sequence[Record | None]) -> tuple[Table, tuple[Record, ...]]:
    """Returns the table, and the excluded records, each once and in the order of the grammar (so
    that sums are reproducible).
    """
    table: Table | str = (
        draw.source if isinstance(draw.source, Table) else _form(draw.source, values)
    )
    assert isinstance(table, Table)
    return table, tuple(
        dict.fromkeys(record for v in draw.without if (record := values[v]) is not None)
    )


def _form(slot: Slot, values: Sequence[Record | None]) -> str | Table:
    record = values[slot.variable]
    assert record is not None, f"variable {slot.variable} is used before it is bound"
    return record.forms[slot.form]


def blocks(text: str) -> dict[str, list[str]]:
    """Heading -> the entries below it. An entry is indented by four spaces; a line with deeper
    indentation continues it.
    """
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        depth, words = len(line) - len(line.lstrip()), line.strip()
        if not words:
            continue
        if depth == 0:
            assert words not in sections, f"{words} is given twice"
            entries = sections.setdefault(words, [])
        elif depth == 4:
            entries.append(words)
        else:
            entries[-1] += ("" if entries[-1].endswith("|") else " ") + words
    return sections


def _choice(options: list[Parts]) -> Choice:
    return Choice(tuple(options), *_zipf(len(options)))


def _zipf(n: int) -> tuple[list[float], list[float]]:
    """Cumulative probabilities, ending in 1, and log-probabilities, for n weights 1/2, 1/3, 1/4,
    ...
    """
    weights = [1 / (k + 2) for k in range(n)]
    total = math.fsum(weights)
    cumulative = [math.fsum(weights[: k + 1]) / total for k in range(n - 1)]
    return [*cumulative, 1.0], [math.log(weight / total) for weight in weights]


def _push(parts: Parts, rest: tuple | None) -> tuple | None:
    for part in parts:
        rest = (part, rest)
    return rest


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high)) if low > -math.inf else high
