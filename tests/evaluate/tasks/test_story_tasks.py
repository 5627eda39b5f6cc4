"""The story tasks: items are fixed, and the stated ceiling is what an ideal reader gets."""

import math
import statistics

from lmsmith.evaluate.tasks.files import Placed, to_item
from lmsmith.evaluate.tasks.stories import CHARACTER, OBJECT, posterior
from lmsmith.evaluate.tasks.task import best
from lmsmith.text.grammar import Grammar, Record, Table
from lmsmith.text.grammar_prefix import after, log_probability, then
from lmsmith.text.stories import generate_stories

COINS = """
start
    {a=coins} [x {b=coins-a}|{a}|]
"""


def test_the_probability_of_a_beginning_is_the_sum_over_all_texts() -> None:
    """A grammar small enough to list all of its texts."""
    coins = Table([Record({"": "ab"}), Record({"": "a"}), Record({"": "b"})])
    grammar = Grammar(COINS, {"coins": coins}, start="start")
    texts = {f"{a} {end}" for a in ("ab", "a", "b") for end in ("x ab", "x a", "x b", a, "")}
    known = {text: math.exp(grammar.log_probability(text)) for text in texts}
    assert math.isclose(sum(known.values()), 1)
    for text in texts:
        for n in range(len(text) + 1):
            wanted = sum(p for other, p in known.items() if other.startswith(text[:n]))
            for cut in range(n + 1):
                states = then(after(grammar, text[:cut]), text[cut:n])
                assert math.isclose(math.exp(log_probability(states)), wanted, abs_tol=1e-12)


def test_of_whole_stories_little_is_left_open() -> None:
    for story, _ in zip(generate_stories(3), range(3), strict=False):
        found = log_probability(after(grammar_of_stories(), story.text))
        assert story.log_probability <= found + 1e-9 <= story.log_probability + 3


def grammar_of_stories() -> Grammar:
    from lmsmith.text.stories import story_grammar

    return story_grammar()


def test_items_are_the_same_every_time_and_an_ideal_reader_reaches_the_ceiling() -> None:
    for task in (CHARACTER, OBJECT):
        rows = task.rows(None)
        assert list(rows[:20]) == list(type(task)().rows(None)[:20])
        rows = rows[:40]
        items = [to_item(task, Placed("", row)) for row in rows]
        right = [
            best(posterior(row["context"] + " ", tuple(row["choices"]))) == row["gold"]
            for row in rows
        ]
        ceiling = task.ceiling_of(items)
        assert ceiling is not None
        assert abs(statistics.mean(right) - ceiling) < 0.1
        assert 0.95 < ceiling <= 1
        assert all(item.n_choices == round(1 / task.chance) for item in items)
        assert {item.gold for item in items} == set(range(items[0].n_choices))
