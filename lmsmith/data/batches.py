"""Batches as a function of (seed, step): computed, never remembered.

The tokens are cut into windows of `context_length`, each with the token that follows it. An epoch is a permutation of
all windows, given by a keyed bijection (a Feistel network with cycle walking: nothing is stored, whatever the size),
and every epoch starts at another offset so that the cuts move. Batch `step` is windows step*batch_size ... of that
endless order. Resuming needs a number; splitting a batch over processes or micro-batches is slicing its rows.

Windows do not overlap within an epoch, and fewer than two contexts of tokens at the ends of the text are left out of
each: other ones, as the offset moves.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from lmsmith.errors import DataError

N_ROUNDS = 6
FEW = 256
"""Up to so many windows are shuffled by sorting: Feistel networks of a few bits do not reach every order evenly."""


IGNORED = -1
"""A target that costs no loss: the same number as `lmsmith.loss.IGNORED`."""


@dataclass(frozen=True)
class Batch:
    """Rows of a batch: what the model reads, and what it is to predict."""

    inputs: np.ndarray  # (rows, T) int64
    targets: np.ndarray  # (rows, T) int64; IGNORED where nothing is predicted
    documents: np.ndarray | None = None  # (rows, T) int32: which document of its row a token is of; None: plain stream


class Batches:
    """Windows over one array of token ids."""

    def __init__(self, ids: np.ndarray, *, context_length: int, batch_size: int, seed: int) -> None:
        """`ids`: (n,) of an unsigned type, in memory or memory-mapped. DataError if it holds no whole window."""
        self.ids, self.T, self.batch_size, self.seed = ids, context_length, batch_size, seed
        # The largest offset, T - 1, must leave room for all windows and the last one's target.
        self.n_windows = max(0, len(ids) - context_length) // context_length
        if self.n_windows < 1:
            shorter = f" or set --model.context_length {max(1, len(ids) // 8)}" if len(ids) > 1 else ""
            raise DataError(
                f"the training text has {len(ids):,} tokens, too few for a context of {context_length:,}: at least "
                f"{2 * context_length:,} are needed. Add text{shorter}."
            )

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`: windows, and as targets the same one token further."""
        first = step * self.batch_size
        order = np.arange(first + start, first + (self.batch_size if end is None else end))
        at = np.concatenate(
            [
                self._starts(epoch, order[order // self.n_windows == epoch] % self.n_windows)
                for epoch in np.unique(order // self.n_windows)
            ]
        )
        windows = self.ids[at[:, None] + np.arange(self.T + 1)].astype(np.int64)
        return Batch(windows[:, :-1], windows[:, 1:])

    def n_counted(self, step: int) -> int:
        """How many targets of the whole batch `step` are predicted: what its loss is divided by."""
        return self.tokens_per_batch

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.T

    def _starts(self, epoch: int, place: np.ndarray) -> np.ndarray:
        """Where the windows at these places of the epoch's order begin."""
        offset = int(_keys(self.seed, int(epoch), "offset")[0]) % self.T
        return permute(place, self.n_windows, _keys(self.seed, int(epoch), "order")) * self.T + offset


def permute(place: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Where a keyed bijection of 0..n-1 takes each of `place`: int64, of its shape (m,).

    Balanced Feistel on the next even number of bits, walked until it falls below n (Black and Rogaway 2002, "Ciphers
    with Arbitrary Finite Domains"); up to FEW, the order of keyed hashes.
    """
    if n <= FEW:
        return np.argsort(_mix(_mix(np.arange(n, dtype=np.uint64) ^ keys[0]) ^ keys[1]))[place]
    half = max(1, -(-(n - 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    found = place.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        left, right = found[outside] >> np.uint64(half), found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        found[outside] = (left << np.uint64(half)) | right
        outside = found >= n
    return found.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser (Stafford's mix 13, as in SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(seed: int, epoch: int, purpose: str) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8 * N_ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8")
