"""Which source each row of the batches is from, where sources are mixed by weight.

Rows are numbered through the whole run. The sources of the rows repeat with a short cycle: weights 7, 2 and 1 make one
of ten rows, 0.65 and 0.35 one of twenty. So the source of any row, and how many rows each source had before it, are
looked up, whatever the row's number, and after every cycle the shares are exact.

Within the cycle the sources are spread as evenly as can be: after n rows, no source k of weight w_k has had more or
less than w_k n rows by 1 or more. That is the chairman assignment problem; Tijdeman, "The chairman assignment problem"
(Discrete Mathematics 32, 1980), shows that at each place the source with the earliest deadline, of those that have
fallen behind far enough, keeps every source within 1 - 1 / (2 K - 2) of its share.

Weights whose cycle would be longer than LONGEST are rounded to that many parts.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lmsmith.errors import ConfigError

LONGEST = 10_000
"""Rows of the longest cycle: shares are exact to a ten-thousandth."""


class Mixture:
    """An endless sequence of sources in fixed shares."""

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: one a source, above 0, of any sum. Raises ConfigError for one that would get no row at all."""
        counts = _cycle_counts([Fraction(repr(weight)) for weight in weights])
        self.shares = tuple(Fraction(count, sum(counts)) for count in counts)
        self._cycle = _cycle(counts)
        given = self._cycle[:, None] == np.arange(len(counts))
        self._before = np.concatenate([np.zeros((1, len(counts)), np.int64), np.cumsum(given, axis=0)])  # (rows + 1, K)

    def sources(self, first: int, last: int) -> np.ndarray:
        """Which source, from 0, the rows from `first` to `last` are from: (last - first,)."""
        return self._cycle[np.arange(first, last) % len(self._cycle)]

    def before(self, row: int) -> list[int]:
        """How many rows each source has among those before `row`."""
        cycles, rest = divmod(row, len(self._cycle))
        return [
            cycles * whole + part
            for whole, part in zip(self._before[-1].tolist(), self._before[rest].tolist(), strict=True)
        ]


def _cycle_counts(weights: Sequence[Fraction]) -> list[int]:
    """How many rows each source has in a cycle."""
    total = sum(weights)
    shares = [weight / total for weight in weights]
    length = math.lcm(*(share.denominator for share in shares))
    if length <= LONGEST:
        return [int(share * length) for share in shares]
    counts = [int(share * LONGEST) for share in shares]
    behind = sorted(range(len(shares)), key=lambda k: counts[k] - shares[k] * LONGEST)
    for k in behind[: LONGEST - sum(counts)]:
        counts[k] += 1
    if 0 in counts:
        least = shares[counts.index(0)]
        raise ConfigError(
            f"data.source number {counts.index(0) + 1} has {float(least):.2g} of the weights: less than a row in "
            f"{LONGEST:,}. Give it more weight or leave it out."
        )
    return counts


def _cycle(counts: Sequence[int]) -> np.ndarray:
    """One cycle of sources, of which k comes `counts[k]` times: (sum(counts),) int64."""
    n_rows, slack = sum(counts), 2 * len(counts) - 2
    cycle, had = np.zeros(n_rows, np.int64), [0] * len(counts)
    if not slack:
        return cycle
    # With w = count / n_rows: due is the row by which w n - had reaches 1 - 1 / slack; far enough behind is 1 / slack.
    for n in range(1, n_rows + 1):
        behind = [k for k, count in enumerate(counts) if slack * (count * n - n_rows * had[k]) >= n_rows]
        k = min(behind, key=lambda k: -(-n_rows * (slack * (had[k] + 1) - 1) // (slack * counts[k])))
        cycle[n - 1] = k
        had[k] += 1
    return cycle
