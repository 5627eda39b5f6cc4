"""Chooses the source of each row, if sources are mixed by weight.

The sources of the rows, numbered over the run, repeat in a short cycle: weights 7, 2 and 1 give a
cycle of ten rows, 0.65 and 0.35 one of twenty. So the source of any row, and the number of rows of
each source before it, are looked up directly, and the shares are exact after each cycle.

Within the cycle the sources are spread evenly: after n rows, a source of weight w has had w n rows,
give or take less than 1. This is the chairman assignment problem. Tijdeman, "The chairman
assignment problem" (Discrete Mathematics 32, 1980), shows how to keep each of K sources within 1 -
1 / (2 K - 2) of its share: among the sources that are far enough behind, choose the one with the
earliest deadline.

Weights whose cycle would be longer than LONGEST (0.333 and 0.6667) are exact in the long run: rows
are taken in blocks of LONGEST. The number of rows that a block takes from a source is the
difference of two rounded numbers: the rows due from that source by the end of the block, and by its
start. A block is filled like a cycle, so a source is always less than two rows off its share.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lmsmith.errors import ConfigError

LONGEST = 10_000
"""Rows of the longest cycle. About this many rows, in complete cycles, are looked up at a time."""


class Mixture:
    """An endless sequence of sources with fixed shares."""

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: one per source, above 0, with any sum. Raises ConfigError for a share below 1
        row in LONGEST.
        """
        exact = [Fraction(repr(weight)) for weight in weights]
        self.shares = tuple(weight / sum(exact) for weight in exact)
        self._parts = math.lcm(*(share.denominator for share in self.shares))
        self._ends = list(itertools.accumulate(int(share * self._parts) for share in self.shares))
        self._length = LONGEST // self._parts * self._parts or LONGEST
        if (least := min(self.shares)) * LONGEST < 1:
            raise ConfigError(
                f"data.mixture number {self.shares.index(least) + 1} has {float(least):.2g} of "
                f"the total weight, expected at least one row in {LONGEST:,}. Raise its weight "
                "or remove it."
            )

    def sources(self, first: int, last: int) -> np.ndarray:
        """Returns the sources, numbered from 0, of rows `first` to `last`: (last - first,)."""
        parts = [np.empty(0, np.int64)]
        while first < last:
            block, offset = divmod(first, self._length)
            parts.append(self._block(block)[offset:][: last - first])
            first += len(parts[-1])
        return np.concatenate(parts)

    def before(self, row: int) -> list[int]:
        """Returns the number of rows of each source before `row`."""
        block, offset = divmod(row, self._length)
        within = np.bincount(self._block(block)[:offset], minlength=len(self.shares)).tolist()
        return [
            earlier + part for earlier, part in zip(self._before_block(block), within, strict=True)
        ]

    def _before_block(self, block: int) -> list[int]:
        """Returns the number of rows of each source before a block, rounded so that they add up;
        exact if blocks are complete cycles.
        """
        ends = [block * self._length * end // self._parts for end in self._ends]
        return [end - begin for begin, end in itertools.pairwise([0, *ends])]

    def _block(self, block: int) -> np.ndarray:
        before, after = self._before_block(block), self._before_block(block + 1)
        return _cycle(tuple(then - now for now, then in zip(before, after, strict=True)))


@functools.lru_cache(maxsize=64)
def _cycle(counts: tuple[int, ...]) -> np.ndarray:
    """Sources in which k appears `counts[k]` times, as the shortest cycle repeated: (sum(counts),)
    int64.
    """
    times = math.gcd(*counts)
    counts = tuple(count // times for count in counts)
    n_rows, slack = sum(counts), 2 * len(counts) - 2
    cycle, had = np.zeros(n_rows, np.int64), [0] * len(counts)
    if not slack:
        return np.tile(cycle, times)
    # With w = count / n_rows: a source may get row n if w n - had >= 1 / slack, and its deadline is
    # the row by which w n - had reaches 1 - 1 / slack.
    for n in range(1, n_rows + 1):
        behind = [
            k for k, count in enumerate(counts) if slack * (count * n - n_rows * had[k]) >= n_rows
        ]
        k = min(
            behind, key=lambda k: -(-n_rows * (slack * (had[k] + 1) - 1) // (slack * counts[k]))
        )
        cycle[n - 1] = k
        had[k] += 1
    return np.tile(cycle, times)
