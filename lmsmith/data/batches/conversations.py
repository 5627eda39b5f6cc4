"""Conversations packed into rows: several in a row, and no attention between them.

A row takes as many complete conversations as fit into the context: the longest first, each into the
row with the least room that still holds it (best fit decreasing). Which conversations share a row
is fixed; an epoch is a permutation of all rows, so batch `step` is a function of (seed, step). A
row's conversations have different numbers in `Batch.documents`, so no token sees another
conversation, and positions start at 0 in each.

Targets that are not learned are IGNORED, and so is padding, which is a document of its own.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lmsmith.data.batches.windows import Batch, _keys, permute
from lmsmith.data.conversations import Conversations
from lmsmith.errors import DataError
from lmsmith.targets import IGNORED

WIDTHS = 8
"""Rows are padded to a multiple of this, which gives few different shapes."""

COUNTED = 1000
"""Batches over which `padding` is counted."""


class PackedConversations:
    """Batches of rows of conversations."""

    def __init__(
        self,
        conversations: Conversations,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        pack: bool = True,
    ) -> None:
        """`pack`: whether the model can separate conversations in a row; if not, each has one.

        Raises DataError if a conversation is longer than a row and its last target.
        """
        self.conversations, self.T, self.seed = conversations, context_length, seed
        self.batch_size, self.pack = batch_size, pack
        self.lengths = np.diff(conversations.starts) - 1  # inputs; the last id is only a target
        if int(self.lengths.max()) > context_length:
            raise DataError(
                f"a conversation has {int(self.lengths.max()) + 1:,} tokens, more than the context "
                f"length of {context_length:,} allows. Prepare the run again."
            )
        lengths = self.lengths.tolist()
        self.packed = (
            best_fit(lengths, context_length) if pack else [[n] for n in range(len(lengths))]
        )
        self.n_rows = len(self.packed)
        sums = np.concatenate([[0], np.cumsum(conversations.learned, dtype=np.int64)])
        starts = conversations.starts
        learned = sums[starts[1:]] - sums[starts[:-1] + 1]  # a first id is never a target
        self._learned = np.array([int(learned[row].sum()) for row in self.packed])
        self._widths = np.array([int(self.lengths[row].sum()) for row in self.packed])

    @property
    def n_batches(self) -> float:
        """Batches per epoch."""
        return self.n_rows / self.batch_size

    @property
    def padding(self) -> float:
        """The share of the positions computed that is padding, over the first epoch (or its first
        `COUNTED` batches). Batches are only as wide as their widest row.
        """
        used = computed = 0
        for step in range(min(COUNTED, math.ceil(self.n_batches))):
            widths = self._widths[self.row_numbers(step)]
            used += int(widths.sum())
            computed += len(widths) * self._width(widths)
        return 1 - used / computed

    def row_numbers(self, step: int) -> npt.NDArray[np.int64]:
        """The rows of batch `step`: (batch_size,)."""
        numbers = []
        position, left = step * self.batch_size, self.batch_size
        while left:
            epoch, start = divmod(position, self.n_rows)
            n = min(left, self.n_rows - start)
            keys = _keys(self.seed, epoch, "conversations")
            numbers.append(permute(np.arange(start, start + n), self.n_rows, keys))
            position, left = position + n, left - n
        return np.concatenate(numbers)

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`, as wide as the full batch needs."""
        numbers = self.row_numbers(step)
        width = self._width(self._widths[numbers])
        some = numbers[start : self.batch_size if end is None else end]
        inputs = np.zeros((len(some), width), np.int64)
        targets = np.full((len(some), width), IGNORED, np.int64)
        documents = np.zeros((len(some), width), np.int32)
        for row, number in enumerate(some.tolist()):
            done = 0
            for count, member in enumerate(self.packed[number]):
                first, n = int(self.conversations.starts[member]), int(self.lengths[member])
                ids = np.asarray(self.conversations.ids[first : first + n + 1], np.int64)
                learned = self.conversations.learned[first + 1 : first + n + 1]
                inputs[row, done : done + n] = ids[:-1]
                targets[row, done : done + n] = np.where(learned, ids[1:], IGNORED)
                documents[row, done : done + n] = count
                done += n
            documents[row, done:] = len(self.packed[number])
        return Batch(inputs, targets, documents if self.pack else None)

    def _width(self, widths: npt.NDArray[np.int64]) -> int:
        """The width of a batch with rows of these widths."""
        return min(self.T, -(-int(widths.max()) // WIDTHS) * WIDTHS)

    def n_targets(self, step: int) -> int:
        """The number of learned targets in the full batch `step`: the divisor of its loss."""
        return int(self._learned[self.row_numbers(step)].sum())

    def n_tokens(self, step: int) -> int:
        """The number of tokens in batch `step`, learned or not, without padding."""
        return int(self._widths[self.row_numbers(step)].sum())

    @property
    def tokens_per_batch(self) -> int:
        """Average number of learned targets."""
        return max(1, round(int(self._learned.sum()) / self.n_batches))

    def members(self, step: int) -> list[int]:
        """The conversations in batch `step`."""
        return [member for row in self.row_numbers(step).tolist() for member in self.packed[row]]


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Packs items into bins of size `room`, best fit decreasing: the numbers of each bin's items.

    `free` has a bit for each amount of room that some bin has, so that the least room which holds
    an item is its lowest bit from there on.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    free = 0
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        size = lengths[item]
        fitting = free >> size
        if fitting:
            least = size + (fitting & -fitting).bit_length() - 1
            chosen = by_room[least].pop()
            if not by_room[least]:
                free &= ~(1 << least)
        else:
            least, chosen = room, len(bins)
            bins.append([])
        bins[chosen].append(item)
        by_room.setdefault(least - size, []).append(chosen)
        free |= 1 << (least - size)
    return bins
