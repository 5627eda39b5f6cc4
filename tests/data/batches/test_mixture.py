"""Mixtures against exact fractions: shares, their spread, and an own order for each source."""

import itertools
import math
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.data.batches.mixture import LONGEST, Mixture
from lmsmith.data.batches.windows import Batches, Sources
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, DataError


@hypothesis.settings(deadline=None, max_examples=60)
@given(some.lists(some.integers(1, 40), min_size=1, max_size=8))
def test_shares_are_within_one_row_after_any_number_of_rows(weights: list[int]) -> None:
    mixture = Mixture(weights)
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    assert list(mixture.shares) == shares
    n = 2 * sum(weights) + 7
    had = [0] * len(weights)
    for row, source in enumerate(mixture.sources(0, n).tolist()):
        assert mixture.before(row) == had
        had[source] += 1
        off = max(abs(h - share * (row + 1)) for h, share in zip(had, shares, strict=True))
        # Tijdeman's bound, which is optimal.
        assert off <= 1 - Fraction(1, 2 * len(weights) - 2) if len(weights) > 1 else off == 0


@hypothesis.settings(deadline=None, max_examples=60)
@given(
    some.lists(some.floats(0.001, 1000), min_size=1, max_size=5),
    some.integers(0, 10**12),
    some.lists(some.integers(0, 300), min_size=1, max_size=4),
)
def test_any_row_can_be_looked_up(weights: list[float], first: int, lengths: list[int]) -> None:
    """Far out as at the beginning, in one part or several; and `before` agrees with `sources`."""
    hypothesis.assume(min(weights) / sum(weights) > 1e-4)
    mixture = Mixture(weights)
    cuts = [first + n for n in itertools.accumulate(lengths, initial=0)]
    whole = mixture.sources(cuts[0], cuts[-1])
    assert np.array_equal(
        np.concatenate([mixture.sources(a, b) for a, b in itertools.pairwise(cuts)]), whole
    )
    counted = np.bincount(whole, minlength=len(weights))
    assert (np.array(mixture.before(cuts[0])) + counted).tolist() == mixture.before(cuts[-1])
    assert sum(mixture.before(first)) == first
    exact = [Fraction(repr(weight)) for weight in weights]
    repeats = math.lcm(*((weight / sum(exact)).denominator for weight in exact)) <= LONGEST
    for weight, share, had in zip(exact, mixture.shares, mixture.before(first), strict=True):
        assert share == weight / sum(exact)
        assert abs(had - share * first) < (1 if repeats else 2)


def test_decimal_weights_are_exact() -> None:
    assert Mixture([0.7, 0.2, 0.1]).shares == (Fraction(7, 10), Fraction(1, 5), Fraction(1, 10))
    assert Mixture([0.1, 0.1, 0.1]).shares == (Fraction(1, 3),) * 3
    assert Mixture([5]).sources(10**9, 10**9 + 3).tolist() == [0, 0, 0]


def test_shares_without_a_short_cycle_are_exact_as_well() -> None:
    """Over many blocks, no row is lost and no source falls behind."""
    weights = [0.333333, 0.5, 0.166667]
    mixture, n = Mixture(weights), 10**10
    assert mixture.before(n) == [3333330000, 5 * 10**9, 1666670000]
    counted = np.cumsum(mixture.sources(0, 3 * LONGEST)[:, None] == np.arange(3), axis=0)
    due = np.arange(1, 3 * LONGEST + 1)[:, None] * np.array(weights)
    assert np.abs(counted - due).max() < 2
    assert len(mixture.sources(5, 5)) == 0


def test_a_tiny_weight_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.mixture number 2 has 1e-07 of the total weight, expected at least one row in 10,000",
    ):
        Mixture([1, 1e-7])


def test_a_source_that_is_too_short_is_named() -> None:
    sources = Sources([Shards([tagged(k, n)]) for k, n in enumerate((90, 15, 90))], [1, 1, 1])
    with pytest.raises(
        DataError, match=r"data\.mixture number 2 has 15 tokens, too few for a context length of 8"
    ):
        Batches(sources, context_length=8, batch_size=4, seed=1)


def tagged(tag: int, n: int) -> np.ndarray:
    """Ids that encode their source and position."""
    return (tag * 100_000 + np.arange(n)).astype(np.uint32)


def test_each_source_has_its_own_order() -> None:
    """A source's rows are those it would have alone, as often as its weight says."""
    T, B, lengths = 6, 10, (900, 900, 311)
    mixed = Batches(
        Sources([Shards([tagged(k, n)]) for k, n in enumerate(lengths)], [5, 3, 2]),
        context_length=T,
        batch_size=B,
        seed=4,
    )
    batches = [mixed.rows(step) for step in range(200)]
    inputs = np.concatenate([batch.inputs for batch in batches])
    assert np.array_equal(np.concatenate([batch.targets for batch in batches]), inputs + 1)
    of = inputs[:, 0] // 100_000
    assert np.array_equal(of, inputs[:, -1] // 100_000)
    assert np.bincount(of).tolist() == [1000, 600, 400]
    assert all(
        np.bincount(batch.inputs[:, 0] // 100_000).tolist() == [5, 3, 2] for batch in batches
    )
    alone = Batches(tagged(0, 900), context_length=T, batch_size=B, seed=4)
    assert np.array_equal(
        inputs[of == 0], np.concatenate([alone.rows(step).inputs for step in range(100)])
    )
    orders = []
    for k, n in enumerate(lengths):
        starts, n_windows = inputs[of == k, 0] % 100_000, (n - T) // T
        for epoch in range(len(starts) // n_windows):
            seen = starts[epoch * n_windows : (epoch + 1) * n_windows]
            assert np.array_equal(np.sort(seen), seen.min() + T * np.arange(n_windows))
        orders.append((starts[:50] // T).tolist())
    assert orders[0] != orders[1]  # for sources of equal length


@hypothesis.settings(deadline=None, max_examples=40)
@given(some.data())
def test_ranks_and_micro_batches_see_the_same_mixed_batch(data: some.DataObject) -> None:
    n_sources = data.draw(some.integers(1, 4))
    weights = [data.draw(some.integers(1, 9)) for _ in range(n_sources)]
    sources = Sources(
        [Shards([tagged(k, data.draw(some.integers(20, 200)))]) for k in range(n_sources)], weights
    )
    ranks, rows = data.draw(some.sampled_from([1, 2, 4, 8])), data.draw(some.integers(1, 3))
    micro_batches, step = data.draw(some.integers(1, 3)), data.draw(some.integers(0, 10**6))
    B = ranks * micro_batches * rows
    found = Batches(sources, context_length=5, batch_size=B, seed=1)
    whole = found.rows(step)
    parts = [found.rows(step, start, start + rows) for start in range(0, B, rows)]
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
    assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)


def test_length_is_the_number_of_tokens() -> None:
    assert (
        len(Sources([Shards([tagged(0, 30)]), Shards([tagged(1, 12), tagged(1, 5)])], [1, 1])) == 47
    )
