"""Batch-size warm-up: fewer rows per step at the start of a run.

The rows are the same as in `windows.py`, in the same order. Each batch begins where the one before
it ended, so no row is skipped and an epoch is still a permutation. The number of rows of a step is
a function of the step (`TrainConfig.rows_of`), so any batch can be computed directly.
"""

import itertools
from collections.abc import Callable

from lmsmith.data.batches.windows import Batch, Batches


class BatchWarmup:
    """Batches in which step `step` takes the next `rows_of(step)` rows of `windows`. After
    `n_steps` steps the batch size is constant.
    """

    def __init__(self, windows: Batches, rows_of: Callable[[int], int], n_steps: int) -> None:
        self.windows, self.rows_of, self.n_steps = windows, rows_of, n_steps
        self._ends = list(itertools.accumulate(rows_of(step) for step in range(n_steps)))

    def first_row(self, step: int) -> int:
        """Returns the number of rows in all batches before `step`."""
        if step <= self.n_steps:
            return self._ends[step - 1] if step else 0
        return self.first_row(self.n_steps) + (step - self.n_steps) * self.rows_of(self.n_steps)

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`."""
        first = self.first_row(step)
        return self.windows.rows(
            0, first + start, first + (self.rows_of(step) if end is None else end)
        )

    def n_targets(self, step: int) -> int:
        """Returns the number of predicted targets in the full batch `step`."""
        return self.rows_of(step) * self.windows.T

    @property
    def tokens_per_batch(self) -> int:
        """Average number of tokens per batch over the run."""
        return round(self.first_row(max(1, self.n_steps)) / max(1, self.n_steps) * self.windows.T)
