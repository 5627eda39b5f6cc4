"""Is one setting better than another? Verdicts over seeds, with their noise.

Every arm of a study trains with the same seeds, and a seed fixes initialization and data order. So
arms are compared in pairs: the difference of each seed cancels what its two runs share, and only
what is left is noise.

- **Interval**: Student's t over the paired differences. It assumes that they are about normal; the
  bootstrap interval beside it does not, but is too narrow for few seeds (`significance.py` says
  why), so the verdict follows t.
- **Many comparisons**: Holm's correction (1979): the probability of any false verdict of a study
  stays below 5 %.
- **Seeds needed**: the smallest number with which a paired t test finds a true difference of a
  given size with probability `power`.
- **Looking early**: each look at the results spends a share of the 5 % (Lan and DeMets 1983, with
  O'Brien and Fleming's spending function). The shares are added up, so whatever the correlation of
  the looks, the error rate over all of them stays below 5 %; that costs a little power.

Values are losses, such as bits per byte: lower is better. Arrays are (n,), one entry per seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.errors import ConfigError
from lmsmith.evaluate.significance import LEVEL, holm

Floats = npt.NDArray[np.float64]

LEAST_SEEDS = 2
N_RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """The paired comparison of two arms: the mean of a - b over `n` seeds, the standard deviation
    of the differences, two intervals, and the two-sided p-value of "no difference"."""

    n: int
    difference: float
    deviation: float
    low: float
    high: float
    bootstrap: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Verdict:
    """What a study says about two arms. `p`: corrected for all comparisons of the study."""

    a: str
    b: str
    paired: Paired
    p: float
    level: float = LEVEL

    @property
    def shown(self) -> bool:
        """Whether a difference is shown."""
        return self.p <= 1 - self.level

    @property
    def better(self) -> str | None:
        """The better arm, or None if no difference is shown."""
        return (self.a if self.paired.difference < 0 else self.b) if self.shown else None

    def __str__(self) -> str:
        d = self.paired
        if self.better is None:
            interval = f"{d.difference:+.4f} ({d.low:+.4f} to {d.high:+.4f}, {d.n} seeds)"
            return f"{self.a} against {self.b}: no difference shown, {interval}"
        other = self.b if self.better == self.a else self.a
        low, high = (d.low, d.high) if self.better == self.b else (-d.high, -d.low)
        return (
            f"{self.better} is better than {other} by {abs(d.difference):.4f} "
            f"({low:.4f} to {high:.4f}, {d.n} seeds), p {self.p:.2g}"
        )


def compare(
    a: Sequence[float], b: Sequence[float], *, level: float = LEVEL, seed: int = 0
) -> Paired:
    """Compares two arms by their results for the same seeds, in the same order.

    Raises ConfigError for fewer than two seeds, or if the arms have different numbers of them.
    """
    if len(a) != len(b):
        raise ConfigError(
            f"one arm has {len(a)} seeds, the other {len(b)}: arms need the same seeds."
        )
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n = len(d)
    if n < LEAST_SEEDS:
        raise ConfigError(
            f"a verdict needs at least {LEAST_SEEDS} seeds, and there is {n}: a single run cannot "
            "tell a difference from noise."
        )
    student: Any = _scipy_stats().t
    mean, deviation = float(d.mean()), float(d.std(ddof=1))
    if deviation == 0:
        p = 1.0 if mean == 0 else 0.0
        return Paired(n, mean, 0.0, mean, mean, (mean, mean), p)
    error = deviation / math.sqrt(n)
    half = float(student.ppf((1 + level) / 2, n - 1)) * error
    p = 2 * float(student.sf(abs(mean) / error, n - 1))
    return Paired(n, mean, deviation, mean - half, mean + half, _bootstrap(d, level, seed), p)


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval of the mean of one arm; a single value is its own interval."""
    x = np.asarray(values, np.float64)
    if len(x) < LEAST_SEEDS:
        return float(x.mean()), float(x.mean())
    half = float(_scipy_stats().t.ppf((1 + level) / 2, len(x) - 1)) * x.std(ddof=1)
    half /= math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def verdicts(
    results: Mapping[str, Mapping[int, float]], baseline: str | None = None, *, level: float = LEVEL
) -> list[Verdict]:
    """Compares each arm with the `baseline`, or without one all pairs of arms.

    `results`: arm -> seed -> value. Only the seeds that both arms of a pair have are used: a run
    that failed or diverged has no value (and is a result of its own). Pairs with fewer than two
    common seeds are left out. Raises ConfigError for an unknown baseline.
    """
    if baseline is not None and baseline not in results:
        raise ConfigError(
            f"the baseline {baseline!r} is no arm: expected one of {', '.join(results)}."
        )
    names = list(results)
    pairs = (
        [(name, baseline) for name in names if name != baseline]
        if baseline is not None
        else [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    )
    found = []
    for a, b in pairs:
        seeds = sorted(set(results[a]) & set(results[b]))
        if len(seeds) >= LEAST_SEEDS:
            one, other = ([results[name][seed] for seed in seeds] for name in (a, b))
            found.append((a, b, compare(one, other, level=level)))
    corrected = holm([paired.p for _, _, paired in found])
    return [
        Verdict(a, b, paired, p, level) for (a, b, paired), p in zip(found, corrected, strict=True)
    ]


def seeds_needed(
    deviation: float,
    difference: float,
    *,
    power: float = 0.8,
    n_comparisons: int = 1,
    level: float = LEVEL,
    most: int = 10_000,
) -> int:
    """The number of seeds with which a true `difference` is shown with probability `power`.

    `deviation`: standard deviation of the paired differences. With several comparisons, each is
    tested at 5 % / `n_comparisons`, the first step of Holm's correction. Raises ConfigError for
    numbers out of range, or if more than `most` seeds are needed.
    """
    if not (deviation >= 0 and difference > 0 and 0 < power < 1):
        raise ConfigError(
            f"deviation = {deviation}, difference = {difference}, power = {power}: expected a "
            "deviation of at least 0, a difference above 0 and a power between 0 and 1."
        )
    if deviation == 0:
        return LEAST_SEEDS
    low, high = LEAST_SEEDS - 1, LEAST_SEEDS
    while _power(high, deviation, difference, n_comparisons, level) < power:
        low, high = high, 2 * high
        if high > 2 * most:
            raise ConfigError(
                f"a difference of {difference:g} needs more than {most:,} seeds, because the "
                f"differences of seeds have a standard deviation of {deviation:g}."
            )
    while high - low > 1:
        middle = (low + high) // 2
        if _power(middle, deviation, difference, n_comparisons, level) < power:
            low = middle
        else:
            high = middle
    return high


def spent(share: float, *, level: float = LEVEL) -> float:
    """The error rate that may be spent by the time that a `share` of the planned seeds is done:
    O'Brien and Fleming's function, 0 at first and 1 - level at the end."""
    if share >= 1:
        return 1 - level
    normal = NormalDist()
    return 2 - 2 * normal.cdf(normal.inv_cdf((1 + level) / 2) / math.sqrt(share))


def levels_of_looks(looks: Sequence[int], *, level: float = LEVEL) -> list[float]:
    """The level of the test at each look, so that all looks together err as rarely as one test.

    `looks`: the numbers of seeds at which results are looked at, ascending; the last is the plan.
    A difference is shown at look k if p <= 1 - levels_of_looks(looks)[k]. Raises ConfigError if
    they do not ascend.
    """
    if list(looks) != sorted(set(looks)) or not looks or looks[0] < LEAST_SEEDS:
        raise ConfigError(
            f"looks = {list(looks)}: expected ascending numbers of seeds, {LEAST_SEEDS} or more."
        )
    shares = [spent(n / looks[-1], level=level) for n in looks]
    steps = np.diff([0.0, *shares])
    return [float(1 - step) for step in steps]


# ---- parts ---------------------------------------------------------------------------------------


def _power(n: int, deviation: float, difference: float, n_comparisons: int, level: float) -> float:
    """The power of a two-sided paired t test with n pairs: the noncentral t distribution."""
    stats: Any = _scipy_stats()
    if n < LEAST_SEEDS:
        return 0.0
    alpha = (1 - level) / n_comparisons
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    shift = math.sqrt(n) * difference / deviation
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))


def _bootstrap(d: Floats, level: float, seed: int) -> tuple[float, float]:
    """The percentile interval of the mean over resampled seeds."""
    drawn = np.random.default_rng(seed).integers(len(d), size=(N_RESAMPLES, len(d)))
    low, high = np.quantile(d[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ConfigError(
            "studies need scipy, which is not installed: `pip install 'lmsmith[study]'`."
        ) from error
    return stats
