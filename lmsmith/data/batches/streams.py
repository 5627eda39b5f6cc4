"""Batches in which each row reads on: row r of a batch goes on where row r of the batch before
ended.

That is the order truncated backpropagation through time wants: a recurrent network's state is
carried from one batch to the next, though not its gradient. The text is cut into as many pieces as
a batch has rows, of the same length; row r of the epoch's s-th batch is the s-th window of piece r.
When the pieces are read a new epoch begins, with empty states and another offset, so that the cuts
move.

Like `windows.py` this is a function of (seed, step): nothing is remembered. What is at the text's
ends and fills no window of every row is left out of an epoch, another part of it in each.
"""

import numpy as np

from lmsmith.data.batches.windows import Batch, Windows
from lmsmith.data.shards import Shards
from lmsmith.errors import DataError


class Streams:
    """Windows of the tokens of one source, in the order of the text."""

    def __init__(
        self, ids: np.ndarray | Shards, *, context_length: int, batch_size: int, seed: int
    ) -> None:
        """`ids`: (n,) of an unsigned type. Raises DataError if there is not a window for each
        row.
        """
        self.ids = ids if isinstance(ids, Shards) else Shards([ids])
        self.T, self.batch_size = context_length, batch_size
        # The largest offset, T - 1, must leave room for all windows and the last one's target.
        self.n_steps = (len(self.ids) - context_length) // (batch_size * context_length)
        if self.n_steps < 1:
            raise DataError(
                f"the training text has {len(self.ids):,} tokens, too few for {batch_size:,} "
                f"sequences of "
                f"{context_length:,} that are read on side by side: at least "
                f"{(batch_size + 1) * context_length:,} are "
                "needed. Add text, or set a smaller --train.batch_size or --model.context_length."
            )
        self.windows = Windows(self.ids, context_length, seed)

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`, and whether they go on where those of the batch
        before ended.
        """
        epoch, place = divmod(step, self.n_steps)
        row = np.arange(start, self.batch_size if end is None else end)
        starts = self.windows.offset(epoch) + (row * self.n_steps + place) * self.T
        windows = self.ids.windows(starts, self.T + 1)
        return Batch(windows[:, :-1], windows[:, 1:], goes_on=place > 0)

    def n_counted(self, step: int) -> int:
        return self.tokens_per_batch

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.T
