"""The compiled kernels of sampling against NumPy, on rows large enough for all their branches."""

import math

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.generate import filters

SIZES = (1, 2, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 2048, 5000)


def _rows(V: int) -> list[np.ndarray]:
    rng = np.random.default_rng(V)
    normal = rng.standard_normal(V) * 3
    removed = normal.copy()
    removed[rng.random(V) < 0.4] = -np.inf
    removed[V // 2] = 1
    outlier = normal.copy()
    outlier[V // 3] = 1e4
    return [
        normal,
        removed,
        outlier,
        np.zeros(V),
        rng.choice([-2.0, 0.0, 1.0], V),
        rng.standard_normal(V) * 1e-9,
        rng.standard_normal(V) * 400,
        -outlier,
    ]


def _probabilities(row: np.ndarray, t: float, k: int, top_p: float, min_p: float) -> np.ndarray:
    """The definition, with a full sort."""
    order = np.lexsort((np.arange(len(row)), -row))
    p = np.exp((row - row.max()) / t)
    kept = order[: k or None]
    if top_p < 1:
        before = np.cumsum(p[kept]) - p[kept]
        kept = kept[before < top_p * p[kept].sum() * (1 - 1e-13)]
    kept = kept[p[kept] >= min_p]
    found = np.zeros(len(row))
    found[kept] = p[kept] / p[kept].sum()
    return found


@pytest.mark.parametrize("V", SIZES)
def test_probabilities_are_those_of_the_definition(V: int) -> None:
    scratch = filters.Scratch(V)
    p = np.empty(V)
    for row in _rows(V):
        for t, k, top_p, min_p in (
            (1.0, 0, 1.0, 0.0),
            (0.6, 0, 1.0, 0.05),
            (1.0, 1, 1.0, 0.0),
            (1.0, 50, 1.0, 0.0),
            (2.0, V // 2, 1.0, 0.0),
            (1.0, V - 1, 0.77, 0.0),
            (1.0, 0, 0.9, 0.0),
            (100.0, 0, 0.123, 0.0),
            (1.0, 0, 1e-9, 0.0),
            (1.0, 0, 0.999999, 0.0),
            (0.8, 40, 0.95, 0.01),
        ):
            scratch.z[:] = row
            assert filters.choose(scratch.z, scratch.work, t, k, top_p, min_p, 0.5, p) >= 0
            exact = _probabilities(row, t, k, top_p, min_p)
            np.testing.assert_allclose(p, exact, rtol=1e-12, atol=1e-15, err_msg=f"{t, k, top_p}")
            np.testing.assert_array_equal(scratch.z, row)


@pytest.mark.parametrize("V", SIZES)
def test_the_draw_is_the_first_id_whose_cumulative_probability_exceeds_u(V: int) -> None:
    scratch, none = filters.Scratch(V), np.empty(0)
    rng = np.random.default_rng(0)
    for row in _rows(V):
        scratch.z[:] = row
        cumulative = np.cumsum(_probabilities(row, 0.9, 0, 1.0, 0.0))
        edges = [0.0, 1 - 2**-53, *rng.random(50)]
        for u in edges:
            id = filters.choose(scratch.z, scratch.work, 0.9, 0, 1.0, 0.0, u, none)
            assert np.exp((row[id] - row.max()) / 0.9) > 0
            before = cumulative[id - 1] if id else 0.0
            assert before - 1e-12 <= u <= cumulative[id] + 1e-12


@pytest.mark.parametrize("V", SIZES)
def test_the_largest_the_greedy_id_and_the_normalizer(V: int) -> None:
    scratch, none = filters.Scratch(V), np.empty(0)
    for row in _rows(V):
        scratch.z[:] = row
        order = np.lexsort((np.arange(V), -row))
        for k in {1, min(3, V), V // 3 or 1, V}:
            assert filters.largest(scratch.z, scratch.work, k).tolist() == sorted(order[:k])
        assert filters.choose(scratch.z, scratch.work, 0.0, 0, 1.0, 0.0, 0.0, none) == order[0]
        exact = row.max() + math.log(math.fsum(np.exp(row - row.max())))
        assert filters.log_normalizer(scratch.z, scratch.work) == pytest.approx(exact, rel=1e-14)


@settings(deadline=None, max_examples=200)
@given(st.floats(-1e308, 0))
def test_the_exponential(x: float) -> None:
    exact = math.exp(x) if x >= -708 else 0.0
    assert abs(_exp(x) - exact) <= 4e-16 * exact


@numba.njit
def _exp(x):  # type: ignore[no-untyped-def]
    return filters._exp(x)


def test_a_draw_at_the_boundary_of_two_ids() -> None:
    """The sum must exceed u: u = 0 does not give an id without probability."""
    scratch = filters.Scratch(4)
    scratch.z[:] = [-math.inf, 0, 0, -math.inf]
    for u, id in [(0.0, 1), (0.25, 1), (0.5, 2), (1 - 2**-53, 2)]:
        assert filters.choose(scratch.z, scratch.work, 1.0, 0, 1.0, 0.0, u, np.empty(0)) == id


def test_rows_that_have_no_choice() -> None:
    scratch, none = filters.Scratch(3), np.empty(0)
    for row, status in (
        ([0, math.nan, 1], filters.NOT_NUMBERS),
        ([0, math.inf, 1], filters.NOT_NUMBERS),
        ([-math.inf] * 3, filters.NONE_LEFT),
    ):
        scratch.z[:] = row
        for t in (0.0, 1.0):
            assert filters.choose(scratch.z, scratch.work, t, 0, 1.0, 0.0, 0.5, none) == status
