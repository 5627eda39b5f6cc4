"""Batches of pairs of conversations, for preference training.

A batch of n pairs has 2n rows, chosen and rejected in turn, padded on the right. An epoch is a
permutation of all pairs, so batch `step` is a function of (seed, step). Targets that are not
learned are IGNORED.

`reference` has the log-probability of each conversation's learned tokens under the reference model,
summed. The run sets it before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmsmith.data.batches.conversations import WIDTHS
from lmsmith.data.batches.windows import _keys, permute
from lmsmith.data.conversations import Conversations
from lmsmith.errors import DataError
from lmsmith.targets import IGNORED


@dataclass(frozen=True)
class PairBatch:
    """Rows of pairs: (2n, T) ids and targets, (2n,) reference log-probabilities, (n,) labels."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    reference: npt.NDArray[np.float64]
    labels: npt.NDArray[np.bool_]
    continues: bool = False

    def arrays(self) -> list[npt.NDArray[np.generic]]:
        """The arguments of the loss."""
        return [self.inputs, self.targets, self.reference.astype(np.float32), self.labels]


class PairBatches:
    """Batches of `batch_size` pairs."""

    def __init__(
        self, conversations: Conversations, *, context_length: int, batch_size: int, seed: int
    ) -> None:
        """Raises DataError if a conversation is longer than the context and its last target."""
        self.conversations, self.T = conversations, context_length
        self.batch_size, self.seed = batch_size, seed
        self.n_rows = conversations.n // 2  # pairs
        self.lengths = np.diff(conversations.starts) - 1  # inputs; the last id is only a target
        if int(self.lengths.max()) > context_length:
            raise DataError(
                f"a conversation has {int(self.lengths.max()) + 1:,} tokens, more than the context "
                f"length of {context_length:,} allows. Prepare the run again."
            )
        sums = np.concatenate([[0], np.cumsum(conversations.learned, dtype=np.int64)])
        starts = conversations.starts
        self.n_learned = sums[starts[1:]] - sums[starts[:-1] + 1]  # a first id is no target
        self.reference = np.zeros(conversations.n)

    @property
    def n_batches(self) -> float:
        """Batches per epoch."""
        return self.n_rows / self.batch_size

    def pairs(self, step: int) -> npt.NDArray[np.int64]:
        """The pairs of batch `step`: (batch_size,)."""
        numbers = []
        position, left = step * self.batch_size, self.batch_size
        while left:
            epoch, start = divmod(position, self.n_rows)
            n = min(left, self.n_rows - start)
            keys = _keys(self.seed, epoch, "pairs")
            numbers.append(permute(np.arange(start, start + n), self.n_rows, keys))
            position, left = position + n, left - n
        return np.concatenate(numbers)

    def rows(self, step: int, start: int = 0, end: int | None = None) -> PairBatch:
        """Pairs `start` to `end` of batch `step`."""
        return self.batch(self.pairs(step)[start : self.batch_size if end is None else end])

    def batch(self, pairs: npt.NDArray[np.int64]) -> PairBatch:
        """The pairs with these numbers, as wide as they need."""
        members = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()
        inputs, targets = self.padded(members)
        labels = self.conversations.labels
        good = np.ones(len(pairs), np.bool_) if labels is None else labels[pairs]
        return PairBatch(inputs, targets, self.reference[members], good)

    def padded(
        self, members: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Inputs and targets of these conversations: (rows, T)."""
        width = min(self.T, -(-int(self.lengths[members].max()) // WIDTHS) * WIDTHS)
        inputs = np.zeros((len(members), width), np.int64)
        targets = np.full((len(members), width), IGNORED, np.int64)
        for row, member in enumerate(members.tolist()):
            first, n = int(self.conversations.starts[member]), int(self.lengths[member])
            ids = np.asarray(self.conversations.ids[first : first + n + 1], np.int64)
            learned = self.conversations.learned[first + 1 : first + n + 1]
            inputs[row, :n] = ids[:-1]
            targets[row, :n] = np.where(learned, ids[1:], IGNORED)
        return inputs, targets

    def n_targets(self, step: int) -> int:
        """The number of learned targets in batch `step`."""
        pairs = self.pairs(step)
        return int((self.n_learned[2 * pairs] + self.n_learned[2 * pairs + 1]).sum())

    def n_tokens(self, step: int) -> int:
        """The number of tokens in batch `step`, learned or not, without padding. In KTO only the
        first of each pair has a gradient.
        """
        pairs = self.pairs(step)
        second = 0 if self.conversations.labels is not None else self.lengths[2 * pairs + 1].sum()
        return int(self.lengths[2 * pairs].sum() + second)

    @property
    def tokens_per_batch(self) -> int:
        """Average number of learned targets."""
        return max(1, round(int(self.n_learned.sum()) / self.n_batches))
