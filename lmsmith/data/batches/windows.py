"""Batches as a function of (seed, step): computed, not stored.

The tokens are cut into windows of `context_length`, each with the token that follows it. An epoch
is a permutation of all windows, given by a keyed bijection (a Feistel network with cycle walking),
which needs no memory at any size. Each epoch starts at another offset, so that the cuts move. Batch
`step` is windows step * batch_size ... of that endless order. So resuming needs only the step, and
splitting a batch over processes or micro-batches is slicing its rows.

Windows do not overlap within an epoch. An epoch skips fewer than two context lengths of tokens at
the ends of the text; they differ as the offset moves.

Several sources are mixed by weight, row by row (`mixture.py`); each has its own endless order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lmsmith.data.batches.mixture import Mixture
from lmsmith.data.shards import Shards
from lmsmith.errors import DataError

N_ROUNDS = 6
FEW = 256
"""Up to this many windows are shuffled by sorting: Feistel networks of few bits do not give all
permutations equally often.
"""

BLOCK = 4096
"""Positions of the order that are computed at a time: one by one they would cost more than reading
their tokens.
"""


@dataclass(frozen=True)
class Batch:
    """Rows of a batch: the model's inputs and the targets it predicts."""

    inputs: np.ndarray  # (rows, T) int64
    targets: np.ndarray  # (rows, T) int64; IGNORED where nothing is predicted
    # (rows, T) int32: the document of each token within its row; None for a stream
    documents: np.ndarray | None = None
    # whether each row continues the same row of the batch before
    continues: bool = False

    def arrays(self) -> list[np.ndarray]:
        """The arguments of the loss: inputs, targets, and documents if there are any."""
        return [self.inputs, self.targets] + ([] if self.documents is None else [self.documents])


class AnyBatches(Protocol):
    """The interface of all batch classes."""

    @property
    def tokens_per_batch(self) -> int: ...

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Any:
        """A `Batch`, or another objective's batch with `inputs` and `arrays`."""

    def n_targets(self, step: int) -> int: ...


@runtime_checkable
class InEpochs(Protocol):
    """Batches of items that have a number: documents, rows of conversations, pairs."""

    @property
    def n_batches(self) -> float:
        """Batches per epoch."""


@runtime_checkable
class Masked(Protocol):
    """Batches whose tokens are not all targets: those of conversations."""

    def n_tokens(self, step: int) -> int:
        """The number of tokens that the model reads in the full batch `step`, without padding."""


def tokens_read(batches: AnyBatches, step: int) -> int:
    """Returns the number of tokens that the model reads in batch `step`, learned or not, without
    padding.
    """
    return batches.n_tokens(step) if isinstance(batches, Masked) else batches.n_targets(step)


class Sources:
    """The training tokens of several sources, with their mixture weights. Its length is the number
    of tokens.
    """

    def __init__(self, ids: Sequence[Shards], weights: Sequence[float]) -> None:
        self.ids, self.mixture = tuple(ids), Mixture(weights)

    def __len__(self) -> int:
        return sum(map(len, self.ids))


class Batches:
    """Windows over the tokens of one source, or of several mixed sources."""

    def __init__(
        self, ids: np.ndarray | Shards | Sources, *, context_length: int, batch_size: int, seed: int
    ) -> None:
        """`ids`: (n,) of an unsigned type, in memory or memory-mapped, in one or many shards.

        Raises DataError if a source is too short for one window.
        """
        if not isinstance(ids, Sources):
            ids = Sources([ids if isinstance(ids, Shards) else Shards([ids])], [1])
        self.T, self.batch_size, self.mixture = context_length, batch_size, ids.mixture
        names = [f"data.mixture number {number}" for number in range(1, len(ids.ids) + 1)]
        self.sources = tuple(
            Windows(
                part, context_length, seed, number, name if len(names) > 1 else "the training text"
            )
            for number, (part, name) in enumerate(zip(ids.ids, names, strict=True))
        )

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`: windows as inputs, and the same windows shifted by
        one token as targets.
        """
        first = step * self.batch_size + start
        last = step * self.batch_size + (self.batch_size if end is None else end)
        before, after = self.mixture.before(first), self.mixture.before(last)
        parts = [
            source.read(*positions)
            for source, *positions in zip(self.sources, before, after, strict=True)
        ]
        if len(parts) == 1:
            windows = parts[0]
        else:
            source_of_row = self.mixture.sources(first, last)
            windows = np.empty((last - first, self.T + 1), np.int64)
            for number, part in enumerate(parts):
                windows[source_of_row == number] = part
        return Batch(windows[:, :-1], windows[:, 1:])

    def n_targets(self, step: int) -> int:
        """Returns the number of predicted targets in the full batch `step`: the divisor of its
        loss.
        """
        return self.tokens_per_batch

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.T


class Windows:
    """The windows of one source in an endless order: epoch after epoch, each a permutation."""

    def __init__(
        self,
        ids: Shards,
        context_length: int,
        seed: int,
        number: int = 0,
        name: str = "the training text",
    ) -> None:
        """`number`: the index of the source in a mixture, for an order of its own; `name`: for
        errors.

        Raises DataError if the source is too short for one window.
        """
        self.ids, self.T, self.seed, self.number = ids, context_length, seed, number
        # The largest offset, T - 1, must leave room for all windows and the last one's target.
        self.n_windows = max(0, len(ids) - context_length) // context_length
        if self.n_windows < 1:
            shorter = (
                f" or set --model.context_length {max(1, len(ids) // 8)}" if len(ids) > 1 else ""
            )
            raise DataError(
                f"{name} has {len(ids):,} tokens, too few for a context length of "
                f"{context_length:,}: at least {2 * context_length:,} are needed. Add "
                f"text{shorter}."
            )
        self._block: tuple[tuple[int, int], np.ndarray] = (-1, -1), np.empty(0, np.int64)

    def read(self, first: int, last: int) -> np.ndarray:
        """Returns the windows at positions `first` to `last` of the order, each with the token
        after it: (n, T + 1) int64.
        """
        return self.ids.windows(self.starts(first, last), self.T + 1)

    def starts(self, first: int, last: int) -> np.ndarray:
        """Returns the start of each window at these positions: (last - first,) int64."""
        parts = []
        while first < last:
            epoch, position = divmod(first, self.n_windows)
            block = self._starts(epoch, position // BLOCK)[position % BLOCK :][: last - first]
            parts.append(block)
            first += len(block)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def offset(self, epoch: int) -> int:
        """Returns the start of the first window of an epoch."""
        return int(self._keys(epoch, "offset")[0]) % self.T

    def _starts(self, epoch: int, block: int) -> np.ndarray:
        """Returns the starts of the windows of one block of an epoch's order; the latest block is
        cached.
        """
        if self._block[0] != (epoch, block):
            positions = np.arange(block * BLOCK, min((block + 1) * BLOCK, self.n_windows))
            starts = permute(
                positions, self.n_windows, self._keys(epoch, "order")
            ) * self.T + self.offset(epoch)
            self._block = (epoch, block), starts
        return self._block[1]

    def _keys(self, epoch: int, purpose: str) -> np.ndarray:
        return _keys(self.seed, epoch, f"{purpose}/{self.number}" if self.number else purpose)


def permute(place: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Returns the images of `place` under a keyed bijection of 0..n-1: int64, of its shape (m,).

    A balanced Feistel network on the next even number of bits, iterated until the result is below n
    (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Up to FEW, the order of keyed
    hashes.
    """
    if n <= FEW:
        return np.argsort(_mix(_mix(np.arange(n, dtype=np.uint64) ^ keys[0]) ^ keys[1]))[place]
    half = max(1, -(-(n - 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    image = place.astype(np.uint64)
    outside = np.ones(len(image), dtype=bool)
    while outside.any():
        left, right = image[outside] >> np.uint64(half), image[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        image[outside] = (left << np.uint64(half)) | right
        outside = image >= n
    return image.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Mixes the bits of 64-bit numbers (Stafford's mix 13, as in SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(seed: int, epoch: int, purpose: str) -> np.ndarray:
    digest = hashlib.blake2b(
        f"{seed}/{epoch}/{purpose}".encode(), digest_size=8 * N_ROUNDS
    ).digest()
    return np.frombuffer(digest, dtype="<u8")
