"""Batch-size warm-up: few rows a step at the beginning of a run, all of them later.

The rows are those of `windows.py` in the same endless order, each batch beginning where the one
before it ended, so nothing is left out and an epoch is still a permutation. How many rows a step
has is a function of the step (`TrainConfig.rows_of`), so a batch is computed, whatever came before.
"""

import itertools
from collections.abc import Callable

from lmsmith.data.batches.windows import Batch, Batches


class BatchWarmup:
    """`windows`, of which update `step` of `n_steps` takes the next `rows_of(step)`."""

    def __init__(self, windows: Batches, rows_of: Callable[[int], int], n_steps: int) -> None:
        self.windows, self.rows_of, self.n_steps = windows, rows_of, n_steps
        self._ends = list(itertools.accumulate(rows_of(step) for step in range(n_steps)))

    def first_row(self, step: int) -> int:
        """How many rows the batches before `step` have together."""
        if step <= self.n_steps:
            return self._ends[step - 1] if step else 0
        return self.first_row(self.n_steps) + (step - self.n_steps) * self.rows_of(self.n_steps)

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`."""
        first = self.first_row(step)
        return self.windows.rows(
            0, first + start, first + (self.rows_of(step) if end is None else end)
        )

    def n_counted(self, step: int) -> int:
        """How many targets of the whole batch `step` are predicted."""
        return self.rows_of(step) * self.windows.T

    @property
    def tokens_per_batch(self) -> int:
        """On average over the run."""
        return round(self.first_row(max(1, self.n_steps)) / max(1, self.n_steps) * self.windows.T)
