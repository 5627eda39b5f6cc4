"""Says whether the difference between two models is real: paired tests with intervals.

Both models have been scored on the same units, so every test looks at the differences of pairs:

- **Scores** (bits per byte of documents): the bootstrap. Documents are drawn with replacement, and
  the weighted mean of the differences is computed for each of 10,000 such resamples. The interval
  is the percentile interval, expanded as in Hesterberg 2015, "What Teachers Should Know About the
  Bootstrap", section 5.2: the plain percentile interval is too narrow for few documents, by the
  factor sqrt((n - 1) / n) and by the difference between a normal and a t quantile.
- **Right or wrong answers** (items of a task): McNemar's test (1947), exact for up to 1,000 items
  that only one model answers correctly. The interval for the difference of the accuracies is
  Tango's score interval (1998, "Equivalence test and confidence interval for the difference in
  proportions for the paired-sample design").

Both assume that the units are independent. If many pairs of models are tested, `holm` (Holm 1979)
corrects the p-values, so that the probability of any false "there is a difference" stays below 5 %.

All functions are pure: they depend on their arguments and `seed` only. Arrays are (n,), one entry
per unit, in the same order for both models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
"""Confidence level of the intervals. A difference is shown if p is at most 1 - LEVEL."""

FEWEST = 20
"""The fewest units that the bootstrap accepts. With 10, 7 % of the tests of two equally good models
find a difference; with 20, 5 %.
"""

MOST = 2_000
"""The most units that the bootstrap draws from; neighbours are joined if there are more."""

N_RESAMPLES = 10_000
MOST_EXACT = 1_000  # discordant pairs up to which McNemar's test is exact
_AT_ONCE = 4_000_000  # drawn units that are held in memory at a time

Floats = npt.NDArray[np.float64]
_normal = NormalDist()


@dataclass(frozen=True)
class PairedTest:
    """The result of a test of a against b: the difference a - b, its 95 % interval, and the
    two-sided p-value of "no difference".
    """

    difference: float
    low: float
    high: float
    p: float
    n: int  # units, before any are joined


def paired_bootstrap(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    level: float = LEVEL,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Tests the difference of two weighted means, sum(w a) / sum(w) - sum(w b) / sum(w).

    `scores_a`, `scores_b` (n,): for example bits per byte of each document; `weights` (n,): its
    bytes. The weights are resampled with the scores, because the length of a document is random,
    too. The p-value is the smallest 1 - level whose interval excludes 0.

    Raises ValueError for fewer than `FEWEST` units, weights that are not positive, and scores that
    are not finite.
    """
    a, b, w = (np.asarray(values, dtype=np.float64) for values in (scores_a, scores_b, weights))
    if not a.shape == b.shape == w.shape or a.ndim != 1:
        raise ValueError(f"scores and weights of shapes {a.shape}, {b.shape} and {w.shape}")
    n = len(a)
    if n < FEWEST:
        raise ValueError(f"{n} units: the bootstrap needs at least {FEWEST}")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (w > 0).all()):
        raise ValueError("scores must be finite, and weights positive")
    d, w = _joined((a - b) * w), _joined(w)
    difference = float(d.sum() / w.sum())
    if not d.any():  # two identical models
        return PairedTest(0.0, 0.0, 0.0, 1.0, n)
    resampled = _resampled_ratios(d, w, n_resamples, seed)
    k = len(d)
    tail = _normal.cdf(-_expanded(_normal.inv_cdf((1 + level) / 2), k))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return PairedTest(
        difference, float(low), float(high), _bootstrap_p(resampled, difference, k), n
    )


def mcnemar(n_only_a: int, n_only_b: int) -> float:
    """The two-sided p-value of McNemar's test that two models are right equally often.

    `n_only_a`: number of items that only model a answers correctly; `n_only_b`: the same of b.
    Exact (binomial) up to `MOST_EXACT` such items, chi-squared with continuity correction beyond.
    """
    n = n_only_a + n_only_b
    if n == 0:
        return 1.0
    if n <= MOST_EXACT:
        tail = sum(math.comb(n, k) for k in range(min(n_only_a, n_only_b) + 1))
        return float(min(1.0, 2 * tail / 2**n))
    statistic = max(0, abs(n_only_a - n_only_b) - 1) ** 2 / n
    return math.erfc(math.sqrt(statistic / 2))


def paired_accuracy(
    correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, *, level: float = LEVEL
) -> PairedTest:
    """Tests the difference of the accuracies of two models on the same items.

    `correct_a`, `correct_b` (n,): whether the answer to each item is right. The p-value is
    McNemar's, the interval Tango's. Raises ValueError without items, or for different lengths.
    """
    a, b = (np.asarray(values, dtype=np.bool_) for values in (correct_a, correct_b))
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"answers of shapes {a.shape} and {b.shape}: expected the same items")
    n_only_a, n_only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    low, high = tango(n_only_a, n_only_b, n, level=level)
    return PairedTest((n_only_a - n_only_b) / n, low, high, mcnemar(n_only_a, n_only_b), n)


def tango(n_only_a: int, n_only_b: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Tango's score interval for the difference of two paired proportions.

    Its ends are the differences D for which the score statistic (b - c - n D) / s(D) equals the
    normal quantile, with b = n_only_a, c = n_only_b, and s(D) the standard deviation under the
    maximum-likelihood estimate of the proportions given D.
    """
    z = _normal.inv_cdf((1 + level) / 2)

    def score(difference: float) -> float:
        over = n_only_a - n_only_b - n * difference
        variance = _constrained_variance(n_only_a, n_only_b, n, difference)
        if variance > 0:
            return over / math.sqrt(variance)
        return math.copysign(math.inf, over) if over else 0.0

    centre = (n_only_a - n_only_b) / n
    low = _where(lambda x: score(x) <= z, -1.0, centre)
    high = _where(lambda x: score(x) <= -z, centre, 1.0)
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values multiplied so that each can be compared with 5 % although many
    were computed.
    """
    adjusted, at_least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        at_least = max(at_least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = at_least
    return adjusted


def _joined(values: Floats) -> Floats:
    """Sums of neighbours, so that at most `MOST` values are left."""
    if len(values) <= MOST:
        return values
    starts = np.linspace(0, len(values), MOST, endpoint=False).astype(np.int64)
    return np.add.reduceat(values, starts)


def _resampled_ratios(d: Floats, w: Floats, n_resamples: int, seed: int) -> Floats:
    """sum(d) / sum(w) of each resample."""
    rng, n = np.random.default_rng(seed), len(d)
    rows = max(1, _AT_ONCE // n)
    parts = []
    for start in range(0, n_resamples, rows):
        draws = rng.integers(0, n, (min(rows, n_resamples - start), n), dtype=np.int32)
        parts.append(d[draws].sum(axis=1) / w[draws].sum(axis=1))
    return np.concatenate(parts)


def _bootstrap_p(resampled: Floats, difference: float, n: int) -> float:
    """The p-value that belongs to the expanded percentile interval. If all resamples lie on one
    side of zero, the tail is that of a normal distribution.
    """
    n_resamples = len(resampled)
    above = float((resampled > 0).sum() + 0.5 * (resampled == 0).sum())
    tail = min(above, n_resamples - above) / n_resamples
    least = 1 / (n_resamples + 1)
    reached = _normal.inv_cdf(1 - min(max(tail, least), 0.5))
    if tail < least:
        reached = max(reached, abs(difference) / max(float(resampled.std()), 1e-300))
    return 2 * _normal.cdf(-_where(lambda z: _expanded(z, n) >= reached, 0.0, 30.0))


def _expanded(z: float, n: int) -> float:
    """sqrt(n / (n - 1)) times the t quantile, n - 1 degrees of freedom, that has the tail of the
    normal quantile z.

    The expansion of the t quantile (Abramowitz and Stegun 1964, 26.7.5) is off by less than 0.001
    for a tail of 2.5 % and 9 degrees of freedom.
    """
    v = n - 1
    t = (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
    return math.sqrt(n / v) * t


def _constrained_variance(b: int, c: int, n: int, difference: float) -> float:
    """Variance of b - c under the maximum-likelihood estimate given the difference (Tango 1998)."""
    quadratic = 2 * n
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear**2 - 4 * quadratic * constant))
    p_only_b = (root - linear) / (2 * quadratic)
    return n * (2 * p_only_b + difference * (1 - difference))


def _where(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least x in [low, high] for which `holds` is true, by bisection; `high` if it never is."""
    if holds(low):
        return low
    for _ in range(60):
        middle = (low + high) / 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
