"""Paired tests: against scipy, brute force, published numbers, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from lmsmith.evaluate import significance
from lmsmith.evaluate.significance import (
    FEWEST,
    MOST_EXACT,
    _expanded,
    _resampled_ratios,
    holm,
    mcnemar,
    paired_accuracy,
    paired_bootstrap,
    tango,
)


def scores(n: int, rng: np.random.Generator, effect: float = 0.0) -> tuple[np.ndarray, ...]:
    """Bits per byte of two models that share the difficulty of each document, and its bytes."""
    n_bytes = np.round(rng.lognormal(7, 0.5, n))
    difficulty = rng.normal(2.0, 0.3, n)
    noise = rng.normal(0, 0.05, (2, n))
    return difficulty + effect + noise[0], difficulty + noise[1], n_bytes


def test_the_bootstrap_equals_scipys_percentile_interval_expanded() -> None:
    """The expansion moves the percentiles; scipy computes the interval at the same percentiles."""
    n = 40
    a, b, w = scores(n, np.random.default_rng(0), 0.02)
    found = paired_bootstrap(a, b, w, n_resamples=40_000)
    assert found.difference == pytest.approx(np.average(a, weights=w) - np.average(b, weights=w))
    reach = math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)
    wanted = stats.bootstrap(
        ((a - b) * w, w),
        lambda d, w, axis: d.sum(axis) / w.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=40_000,
        confidence_level=1 - 2 * stats.norm.cdf(-reach),
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.low == pytest.approx(wanted.low, abs=0.03 * width)
    assert found.high == pytest.approx(wanted.high, abs=0.03 * width)
    assert paired_bootstrap(a, b, w) == paired_bootstrap(a, b, w)
    turned = paired_bootstrap(b, a, w, n_resamples=40_000)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), rel=1e-9)
    assert turned.p == pytest.approx(found.p)


def test_every_item_is_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of n items is 1/n of a resample on average, the first and the last too."""
    n, n_resamples = 7, 4000
    monkeypatch.setattr(significance, "_AT_ONCE", 1500 * n)  # two full parts and a shorter one
    for item in range(n):
        shares = _resampled_ratios(np.eye(n)[item], np.ones(n), n_resamples, seed=item)
        assert len(shares) == n_resamples
        error = math.sqrt(1 / n * (1 - 1 / n) / n / n_resamples)
        assert shares.mean() == pytest.approx(1 / n, abs=5 * error)


@pytest.mark.parametrize("n", [10, 20, 100])
def test_the_expansion_uses_students_t(n: int) -> None:
    for tail, off in ((0.1, 1e-3), (0.025, 1e-3), (0.005, 5e-3)):
        wanted = stats.t.isf(tail, n - 1) * math.sqrt(n / (n - 1))
        assert _expanded(stats.norm.isf(tail), n) == pytest.approx(wanted, abs=off)


@pytest.mark.parametrize("n", [20, 200])
def test_the_p_value_is_the_level_at_which_the_interval_reaches_zero(n: int) -> None:
    a, b, w = scores(n, np.random.default_rng(3), 0.1 / math.sqrt(n))
    found = paired_bootstrap(a, b, w)
    assert 0.01 < found.p < 0.5
    ends = paired_bootstrap(a, b, w, level=1 - found.p)
    near = min(abs(ends.low), abs(ends.high))
    assert near < 0.03 * (found.high - found.low)
    far = paired_bootstrap(a + 1, b, w)  # no resample reaches zero
    assert far.p < 1e-4


@pytest.mark.parametrize("n", [FEWEST, 60])
def test_coverage_and_false_verdicts_of_the_bootstrap(n: int) -> None:
    """1,000 pairs of equally good models: at most 5 % verdicts, but for 2.5 standard errors of the
    simulation; the interval covers the truth in 93 to 97 % of them.
    """
    rng = np.random.default_rng(n)
    covered = false = 0
    for _ in range(1000):
        test = paired_bootstrap(*scores(n, rng), n_resamples=1000)
        covered += test.low <= 0 <= test.high
        false += test.p <= 0.05
    assert 930 <= covered <= 970
    assert false <= 50 + 2.5 * math.sqrt(1000 * 0.05 * 0.95)


def test_equal_scores_differ_by_nothing() -> None:
    a = np.random.default_rng(0).random(30)
    found = paired_bootstrap(a, a.copy(), np.ones(30))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_real_difference_is_shown() -> None:
    test = paired_bootstrap(*scores(200, np.random.default_rng(0), 0.05))
    assert test.low > 0.03
    assert test.p < 1e-6


def test_many_documents_are_joined() -> None:
    a, b, w = scores(30_000, np.random.default_rng(0), 0.001)
    test = paired_bootstrap(a, b, w, n_resamples=2000)
    assert test.n == 30_000
    ratio = np.average(a - b, weights=w)
    error = np.sqrt((((a - b - ratio) * w) ** 2).sum()) / w.sum()
    assert test.high - test.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_what_the_bootstrap_refuses() -> None:
    ones = np.ones(FEWEST)
    assert paired_bootstrap(ones, ones, ones).p == 1.0
    for a, w in (
        (np.ones(FEWEST - 1), np.ones(FEWEST - 1)),
        (np.full(FEWEST, math.inf), ones),
        (ones, 0 * ones),
        (ones, np.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"units|finite|shapes"):
            paired_bootstrap(a, a, w)


def test_mcnemar_is_the_binomial_test() -> None:
    for b, c in itertools.product(range(12), repeat=2):
        wanted = stats.binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar(b, c) == pytest.approx(wanted, rel=1e-9)
    wanted = stats.binomtest(470, MOST_EXACT).pvalue
    assert mcnemar(470, MOST_EXACT - 470) == pytest.approx(wanted, rel=1e-9)
    beyond = (2 * MOST_EXACT + 2) // 2
    wanted = stats.binomtest(beyond - 60, 2 * beyond).pvalue
    assert mcnemar(beyond - 60, beyond + 60) == pytest.approx(wanted, rel=0.02)


def test_tangos_interval_equals_published_numbers() -> None:
    """Fagerland, Lydersen and Laake 2014, table IV: airway hyper-responsiveness, 21 children."""
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (0, 5, 30), (3, 3, 20), (40, 10, 400)])
def test_tangos_interval_inverts_the_score_test(b: int, c: int, n: int) -> None:
    """At each end, the score statistic with the likelihood maximized by a search is 1.96."""
    for end in tango(b, c, n):

        def minus_log_likelihood(q: float, d: float = end) -> float:
            parts = ((b, q + d), (c, q), (n - b - c, 1 - 2 * q - d))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

        bounds = max(0.0, -end), (1 - end) / 2
        q = optimize.minimize_scalar(
            minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        statistic = (b - c - n * end) / math.sqrt(n * (2 * q + end - end**2))
        assert abs(statistic) == pytest.approx(1.96, abs=2e-3)


def test_coverage_and_false_verdicts_of_accuracies() -> None:
    rng = np.random.default_rng(0)
    covered = false = 0
    for _ in range(1000):
        p = rng.beta(2, 2, 200)  # items differ in difficulty
        test = paired_accuracy(rng.random(200) < p, rng.random(200) < p)
        covered += test.low <= 0 <= test.high
        false += test.p <= 0.05
    assert 930 <= covered <= 970
    assert false <= 50


def test_accuracies_of_paired_items() -> None:
    a = np.array([1, 1, 1, 1, 0, 0, 1, 1], bool)
    b = np.array([1, 0, 0, 1, 0, 1, 1, 0], bool)
    test = paired_accuracy(a, b)
    assert (test.difference, test.n) == (2 / 8, 8)
    assert test.p == mcnemar(3, 1)
    with pytest.raises(ValueError, match="same items"):
        paired_accuracy(a, b[:3])


def test_holm_equals_its_definition() -> None:
    p = [0.01, 0.04, 0.03, 0.5]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]
