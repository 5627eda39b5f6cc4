"""What a study says before it starts: its runs, and the differences that its seeds can show."""

from __future__ import annotations

from lmsmith.errors import ConfigError
from lmsmith.study.plan import BUDGETS, Study
from lmsmith.study.verdicts import seeds_needed

POWER = 0.8


def lines(study: Study) -> list[str]:
    """One sentence each."""
    words = {
        "tokens": f"{study.amount:,.0f} tokens",
        "flops": f"{study.amount:.3g} training FLOPs",
        "seconds": f"{study.amount:g} seconds",
        "tokens_per_parameter": f"{study.amount:g} tokens per parameter",
    }
    own = any(f"budget.{kind}" in arm.settings for arm in study.arms for kind in BUDGETS)
    budget = "a budget of their own" if own else words[study.budget]
    n_arms, n_seeds = len(study.arms), len(study.seeds)
    found = [
        f"question {study.question or 'which arm is best?'}",
        f"runs     {n_arms} arms x {n_seeds} seeds = {study.n_runs} runs, each with {budget}",
    ]
    if study.n_comparisons:
        found.append(f"power    {power_sentence(study)}")
    return found


def power_sentence(study: Study) -> str:
    """Says how many seeds the smallest difference that matters needs; without one, or without the
    noise, which difference the seeds can show."""
    n, n_pairs = len(study.seeds), study.n_comparisons
    pairs = f"{n_pairs} comparison{'s' * (n_pairs > 1)}"
    if study.deviation and study.difference:
        try:
            needed = seeds_needed(study.deviation, study.difference, n_comparisons=n_pairs)
        except ConfigError as error:
            return f"{error} This study has {n}."
        enough = "enough" if needed <= n else f"{needed - n} too few"
        return (
            f"a difference of {study.difference:g} needs {needed} seeds (paired differences with a "
            f"standard deviation of {study.deviation:g}, {pairs}, power {POWER:.0%}); this study "
            f"has {n}: {enough}"
        )
    smallest = detectable(n, n_pairs)
    noise = "the standard deviation of the paired differences"
    found = f"{n} seeds show a difference of {smallest:.2g} times {noise}"
    if study.deviation:
        found = f"{n} seeds show a difference of {smallest * study.deviation:.2g}"
    found += f" with probability {POWER:.0%} ({pairs})"
    if study.difference and not study.deviation:
        found += (
            f"; a difference of {study.difference:g} is found if {noise} is at most "
            f"{study.difference / smallest:.2g}"
        )
    return found


def detectable(n_seeds: int, n_comparisons: int) -> float:
    """The smallest true difference, in standard deviations of the paired differences, that
    `n_seeds` seeds show with probability POWER."""
    low, high = 0.05, 2000.0
    while high / low > 1.005:
        middle = (low * high) ** 0.5
        try:
            enough = seeds_needed(1.0, middle, n_comparisons=n_comparisons, power=POWER) <= n_seeds
        except ConfigError:  # more seeds than `seeds_needed` counts
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    return high
