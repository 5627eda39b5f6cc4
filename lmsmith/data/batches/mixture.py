"""Which source each row of the batches is from, where sources are mixed by weight.

Rows are numbered through the whole run, and the sources of the rows repeat with a short cycle:
weights 7, 2 and 1 make one of ten rows, 0.65 and 0.35 one of twenty. So the source of any row, and
how many rows each source had before it, are looked up, whatever the row's number, and after every
cycle the shares are exact.

Within the cycle the sources are spread as evenly as can be: after n rows, no source k of weight w_k
has had more or less than w_k n rows by 1 or more. That is the chairman assignment problem;
Tijdeman, "The chairman assignment problem" (Discrete Mathematics 32, 1980), shows that at each
place the source with the earliest deadline, of those that have fallen behind far enough, keeps
every source within 1 - 1 / (2 K - 2) of its share.

Weights whose cycle would be longer than LONGEST (0.333 and 0.6667) are as exact in the long run:
rows are then taken by blocks of LONGEST, and a block has of each source what is due by its end less
what was due by its beginning, both rounded. A block is filled as a cycle is, so no source is ever
two rows off its share.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lmsmith.errors import ConfigError

LONGEST = 10_000
"""Rows of the longest cycle; about as many, and whole cycles, are looked up at once."""


class Mixture:
    """An endless sequence of sources in fixed shares."""

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: one a source, above 0, of any sum. Raises ConfigError for less than a row
        in LONGEST.
        """
        exact = [Fraction(repr(weight)) for weight in weights]
        self.shares = tuple(weight / sum(exact) for weight in exact)
        self._parts = math.lcm(*(share.denominator for share in self.shares))
        self._ends = list(itertools.accumulate(int(share * self._parts) for share in self.shares))
        self._length = LONGEST // self._parts * self._parts or LONGEST
        if (least := min(self.shares)) * LONGEST < 1:
            raise ConfigError(
                f"data.mixture number {self.shares.index(least) + 1} has {float(least):.2g} of "
                f"the weights: less than "
                f"a row in {LONGEST:,}. Give it more weight or leave it out."
            )

    def sources(self, first: int, last: int) -> np.ndarray:
        """Which source, from 0, the rows from `first` to `last` are from: (last - first,)."""
        parts = [np.empty(0, np.int64)]
        while first < last:
            block, place = divmod(first, self._length)
            parts.append(self._block(block)[place:][: last - first])
            first += len(parts[-1])
        return np.concatenate(parts)

    def before(self, row: int) -> list[int]:
        """How many rows each source has among those before `row`."""
        block, place = divmod(row, self._length)
        within = np.bincount(self._block(block)[:place], minlength=len(self.shares)).tolist()
        return [whole + part for whole, part in zip(self._before_block(block), within, strict=True)]

    def _before_block(self, block: int) -> list[int]:
        """The shares of all rows before a block, rounded so that they are as many; exact where
        blocks are cycles.
        """
        ends = [block * self._length * end // self._parts for end in self._ends]
        return [end - begin for begin, end in itertools.pairwise([0, *ends])]

    def _block(self, block: int) -> np.ndarray:
        before, after = self._before_block(block), self._before_block(block + 1)
        return _cycle(tuple(then - now for now, then in zip(before, after, strict=True)))


@functools.lru_cache(maxsize=64)
def _cycle(counts: tuple[int, ...]) -> np.ndarray:
    """Sources of which k comes `counts[k]` times, as often as they repeat: (sum(counts),) int64."""
    times = math.gcd(*counts)
    counts = tuple(count // times for count in counts)
    n_rows, slack = sum(counts), 2 * len(counts) - 2
    cycle, had = np.zeros(n_rows, np.int64), [0] * len(counts)
    if not slack:
        return np.tile(cycle, times)
    # With w = count / n_rows: due is the row by which w n - had reaches 1 - 1 / slack; far enough
    # behind is 1 / slack.
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
