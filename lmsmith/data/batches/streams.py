"""Batches whose rows continue: row r of a batch starts where row r of the batch before it ended.

This is the order for truncated backpropagation through time (truncated BPTT), where a recurrent
network keeps its state, but not its gradient, from batch to batch. The text is cut into as many
pieces of equal length as a batch has rows; row r of the epoch's s-th batch is the s-th window of
piece r. A new epoch begins with empty states and another offset, so that the cuts move.

Like `windows.py`, this is a function of (seed, step). An epoch skips the ends of the text that do
not fill a window in every row; they differ from epoch to epoch.
"""

import numpy as np

from lmsmith.data.batches.windows import Batch, Windows
from lmsmith.data.shards import Shards
from lmsmith.errors import DataError


class Streams:
    """Windows of the tokens of one source, in text order."""

    def __init__(
        self, ids: np.ndarray | Shards, *, context_length: int, batch_size: int, seed: int
    ) -> None:
        """`ids`: (n,) of an unsigned type. Raises DataError if there are fewer windows
        than rows.
        """
        self.ids = ids if isinstance(ids, Shards) else Shards([ids])
        self.T, self.batch_size = context_length, batch_size
        # The largest offset, T - 1, must leave room for all windows and the last one's target.
        self.n_steps = (len(self.ids) - context_length) // (batch_size * context_length)
        if self.n_steps < 1:
            raise DataError(
                f"the training text has {len(self.ids):,} tokens, too few for {batch_size:,} "
                f"parallel sequences of {context_length:,}: at least "
                f"{(batch_size + 1) * context_length:,} are needed. Add text, or set a smaller "
                "--train.batch_size or --model.context_length."
            )
        self.windows = Windows(self.ids, context_length, seed)

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`, with `continues`: whether they continue those of
        the batch before.
        """
        epoch, index = divmod(step, self.n_steps)
        row = np.arange(start, self.batch_size if end is None else end)
        starts = self.windows.offset(epoch) + (row * self.n_steps + index) * self.T
        windows = self.ids.windows(starts, self.T + 1)
        return Batch(windows[:, :-1], windows[:, 1:], continues=index > 0)

    def n_targets(self, step: int) -> int:
        return self.tokens_per_batch

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.T
