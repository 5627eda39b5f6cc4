"""Verdicts: intervals and p-values against scipy, error rates and power against simulations."""

import numpy as np
import pytest
from scipy import stats

from lmsmith.errors import ConfigError
from lmsmith.study.verdicts import compare, levels_of_looks, seeds_needed, spent, verdicts


def arms(rng: np.random.Generator, n_arms: int, n_seeds: int, effect: float = 0.0) -> dict:
    """Results with a seed effect that the arms share; the last arm is better by `effect`."""
    shared = rng.normal(1.5, 0.05, n_seeds)
    return {
        f"arm {k}": {
            seed: shared[seed] + rng.normal(0, 0.01) - (effect if k == n_arms - 1 else 0)
            for seed in range(n_seeds)
        }
        for k in range(n_arms)
    }


def test_the_paired_t_test_is_scipys() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(1.5, 0.1, (2, 7))
    found = compare(a.tolist(), b.tolist())
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    theirs = stats.bootstrap((a - b,), np.mean, method="percentile", rng=2, n_resamples=10_000)
    low, high = theirs.confidence_interval
    assert found.bootstrap == pytest.approx((low, high), abs=0.05 * (high - low))


def test_false_verdicts_of_studies_of_equal_arms_are_rare() -> None:
    """200 simulated A/A studies of four arms: in at most 5 % (plus three sigma) any verdict is
    shown, although each study makes six comparisons."""
    rng = np.random.default_rng(3)
    n_false = sum(any(v.shown for v in verdicts(arms(rng, 4, 5))) for _ in range(200))
    assert n_false <= 0.05 * 200 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_pairing_at_least_halves_the_variance() -> None:
    rng = np.random.default_rng(4)
    results = arms(rng, 2, 400)
    a, b = (np.array(list(values.values())) for values in results.values())
    assert (a - b).var() < 0.5 * (a.var() + b.var())


def test_a_difference_is_named_with_the_better_arm() -> None:
    (found,) = verdicts(arms(np.random.default_rng(5), 2, 6, effect=0.1))
    assert found.better == "arm 1"
    assert str(found).startswith("arm 1 is better than arm 0 by 0.1")
    (none,) = verdicts(arms(np.random.default_rng(6), 2, 6))
    assert none.better is None
    assert "no difference shown" in str(none)


def test_failed_runs_are_left_out_of_pairs() -> None:
    results = arms(np.random.default_rng(7), 3, 5)
    del results["arm 0"][3], results["arm 1"][1]
    found = {(v.a, v.b): v.paired.n for v in verdicts(results)}
    assert found == {("arm 0", "arm 1"): 3, ("arm 0", "arm 2"): 4, ("arm 1", "arm 2"): 4}
    results["arm 2"] = {0: 1.0}
    assert [(v.a, v.b) for v in verdicts(results)] == [("arm 0", "arm 1")]
    assert [(v.a, v.b) for v in verdicts(results, "arm 1")] == [("arm 0", "arm 1")]


@pytest.mark.parametrize("difference", [0.5, 1.0, 2.0])
def test_the_seeds_needed_give_the_promised_power(difference: float) -> None:
    n = seeds_needed(1.0, difference, power=0.8)
    rng = np.random.default_rng(8)
    d = rng.normal(difference, 1.0, (4000, n))
    shown = stats.ttest_1samp(d, 0.0, axis=1).pvalue <= 0.05
    assert shown.mean() == pytest.approx(0.81, abs=0.03) or (n < 8 and shown.mean() >= 0.79)
    fewer = stats.ttest_1samp(d[:, : n - 1], 0.0, axis=1).pvalue <= 0.05
    assert fewer.mean() < 0.815


def test_more_comparisons_need_more_seeds() -> None:
    assert seeds_needed(1.0, 1.0) < seeds_needed(1.0, 1.0, n_comparisons=10)
    assert seeds_needed(0.0, 1.0) == 2
    with pytest.raises(ConfigError, match="more than 10,000 seeds"):
        seeds_needed(1.0, 1e-4)


def test_looking_early_keeps_the_error_rate() -> None:
    looks, rng = [3, 5, 8, 12], np.random.default_rng(9)
    levels = levels_of_looks(looks)
    assert sum(1 - level for level in levels) == pytest.approx(0.05)
    d = rng.normal(0, 1, (20_000, 12))
    shown = np.zeros(len(d), bool)
    for n, level in zip(looks, levels, strict=True):
        shown |= stats.ttest_1samp(d[:, :n], 0.0, axis=1).pvalue <= 1 - level
    assert 0.03 < shown.mean() < 0.05
    assert spent(0.25) < 1e-3 < spent(0.75) < spent(1.0) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="ascending"):
        levels_of_looks([5, 3])


def test_one_seed_is_no_verdict() -> None:
    with pytest.raises(ConfigError, match="at least 2 seeds, and there is 1"):
        compare([1.0], [2.0])
    with pytest.raises(ConfigError, match="the same seeds"):
        compare([1.0, 2.0], [2.0])
    with pytest.raises(ConfigError, match="'x' is no arm"):
        verdicts({"a": {0: 1.0}}, "x")
