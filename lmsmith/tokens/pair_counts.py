"""The pairs of adjacent tokens while merges are learned: counts, positions, and a heap that gives
the most frequent pair. Compiled; `bpe_train.py` uses it.

A pair has a count and a list of the positions where it occurred when it first appeared. Positions
that have changed since then are skipped. All positions of a pair are found during one merge (or at
the start), from left to right, so they need no sorting.

Counts in the heap are upper bounds, because the count of a pair only decreases. A pair whose bound
is too high is put back with its count when it comes out.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmsmith.tokens.compiled import inner

CAPACITY = 1 << 16  # of a new table: as many pairs as there are pairs of bytes

# Indices of `Pairs.used`.
PAIRS, POSITIONS, HEAP = 0, 1, 2

_MULTIPLY = 0x9E3779B97F4A7C15 - 2**64


class Tokens(NamedTuple):
    """The tokens by id. The bytes of id i are bytes[starts[i]:starts[i] + lengths[i]].

    For ties: of equally frequent pairs, the lexicographically greatest bytes are first if
    `by_bytes`, otherwise the smallest `order` of the ids.
    """

    bytes: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    by_bytes: bool

    @classmethod
    def of_bytes(cls, order: npt.NDArray[np.int64], by_bytes: bool) -> Tokens:
        """The tokens 0 to 255, with room for as many ids as `order` has."""
        all_bytes = np.zeros(CAPACITY, dtype=np.uint8)
        all_bytes[:256] = np.arange(256)
        starts = np.minimum(np.arange(len(order) + 1), 256)
        return cls(all_bytes, starts, np.ones(len(order), dtype=np.int64), order, by_bytes)

    def with_room(self, n_bytes: int) -> Tokens:
        """These tokens, with room for `n_bytes` bytes of all tokens together."""
        return self._replace(bytes=_longer(self.bytes, n_bytes))


class Pairs(NamedTuple):
    """The pairs, numbered as they appeared. Pair p occurred at positions[firsts[p]:][:ns[p]].

    `slots`: hash table of numbers, -1 in empty slots. `heap`, `bounds`: numbers of pairs, and upper
    bounds of their counts. `used`: number of pairs, positions and entries of the heap.
    """

    lefts: npt.NDArray[np.int32]
    rights: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    ns: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    heap: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]

    @classmethod
    def none(cls, n_positions: int) -> Pairs:
        """No pairs, with room for CAPACITY of them and `n_positions` positions."""
        narrow, wide = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
        empty = cls(
            narrow, narrow, wide, wide, narrow, narrow, narrow, narrow, wide, np.zeros(3, np.int64)
        )
        return empty.with_room(CAPACITY, n_positions)

    def with_room(self, n_pairs: int, n_positions: int) -> Pairs:
        """These pairs, with room for `n_pairs` pairs and `n_positions` positions in all. New
        slots are empty: call `fill_slots`.
        """
        pairs = self._replace(positions=_longer(self.positions, n_positions))
        if n_pairs <= len(self.lefts):
            return pairs
        capacity = 1 << (n_pairs - 1).bit_length()
        grown = ("lefts", "rights", "counts", "firsts", "ns", "heap", "bounds")
        longer = {name: _longer(getattr(self, name), capacity) for name in grown}
        return pairs._replace(slots=np.full(4 * capacity, -1, dtype=np.int32), **longer)


def _longer(array: Any, length: int) -> Any:
    """Returns the array if it has `length` elements, otherwise a copy with twice as many or more.
    The added elements are uninitialized.
    """
    if length <= len(array):
        return array
    copy = np.empty(max(length, 2 * len(array)), dtype=array.dtype)
    copy[: len(array)] = array
    return copy


# ---- compiled ------------------------------------------------------------------------------------

_inlined = partial(inner, forceinline=True)  # these functions are called for each new pair


@inner
def fill_slots(pairs):
    pairs.slots[:] = -1
    for pair in range(pairs.used[PAIRS]):
        pairs.slots[_empty_slot(pairs, pairs.lefts[pair], pairs.rights[pair])] = pair


@_inlined
def add_pair(pairs, left, right, count, n_positions):
    """Adds a pair, reserves room for its positions, and returns its number. It is not in the heap
    yet.
    """
    pair = pairs.used[PAIRS]
    pairs.lefts[pair], pairs.rights[pair], pairs.counts[pair] = left, right, count
    pairs.firsts[pair], pairs.ns[pair] = pairs.used[POSITIONS], 0
    pairs.slots[_empty_slot(pairs, left, right)] = pair
    pairs.used[POSITIONS] += n_positions
    pairs.used[PAIRS] += 1
    return pair


@_inlined
def add_position(pairs, pair, position):
    pairs.positions[pairs.firsts[pair] + pairs.ns[pair]] = position
    pairs.ns[pair] += 1


@_inlined
def find_pair(pairs, left, right):
    """Returns the number of a pair that is in the table."""
    slot = _first_slot(pairs, left, right)
    while True:
        pair = pairs.slots[slot]
        if pairs.lefts[pair] == left and pairs.rights[pair] == right:
            return np.int64(pair)
        slot = (slot + 1) & (len(pairs.slots) - 1)


@_inlined
def _empty_slot(pairs, left, right):
    slot = _first_slot(pairs, left, right)
    while pairs.slots[slot] >= 0:
        slot = (slot + 1) & (len(pairs.slots) - 1)
    return slot


@_inlined
def _first_slot(pairs, left, right):
    return (np.int64(left) << 32 | np.int64(right)) * _MULTIPLY >> 32 & (len(pairs.slots) - 1)


# ---- the heap ------------------------------------------------------------------------------------


@_inlined
def push(pairs, tokens, pair):
    """Adds a pair to the heap, with its count as the bound."""
    lefts, rights, heap, bounds = pairs.lefts, pairs.rights, pairs.heap, pairs.bounds
    bound, k = pairs.counts[pair], pairs.used[HEAP]
    while k > 0:
        parent = (k - 1) >> 1
        if bounds[parent] > bound or (
            bounds[parent] == bound
            and not _before(lefts, rights, tokens, pair, np.int64(heap[parent]))
        ):
            break
        heap[k], bounds[k] = heap[parent], bounds[parent]
        k = parent
    heap[k], bounds[k] = pair, bound
    pairs.used[HEAP] += 1


@inner
def pop_most_frequent(pairs, tokens):
    """Removes the most frequent pair from the heap and returns its number; -1 if no pair is
    left.
    """
    while pairs.used[HEAP]:
        pair, bound = np.int64(pairs.heap[0]), pairs.bounds[0]
        _remove_top(pairs, tokens)
        if bound == pairs.counts[pair]:
            return pair
        if pairs.counts[pair] > 0:
            push(pairs, tokens, pair)
    return np.int64(-1)


@_inlined
def _remove_top(pairs, tokens):
    lefts, rights, heap, bounds = pairs.lefts, pairs.rights, pairs.heap, pairs.bounds
    pairs.used[HEAP] -= 1
    n = pairs.used[HEAP]
    pair, bound = np.int64(heap[n]), bounds[n]
    k = 0
    while 2 * k + 1 < n:
        child = 2 * k + 1
        if child + 1 < n and (
            bounds[child + 1] > bounds[child]
            or (
                bounds[child + 1] == bounds[child]
                and _before(lefts, rights, tokens, np.int64(heap[child + 1]), np.int64(heap[child]))
            )
        ):
            child += 1
        if bounds[child] < bound or (
            bounds[child] == bound
            and not _before(lefts, rights, tokens, np.int64(heap[child]), pair)
        ):
            break
        heap[k], bounds[k] = heap[child], bounds[child]
        k = child
    heap[k], bounds[k] = pair, bound


@_inlined
def _before(lefts, rights, tokens, a, b):
    """Returns whether pair `a` is merged before the equally frequent pair `b`."""
    one, other = (lefts[a], lefts[b]) if lefts[a] != lefts[b] else (rights[a], rights[b])
    if not tokens.by_bytes:
        return tokens.order[one] < tokens.order[other]
    token_bytes, start, other_start = tokens.bytes, tokens.starts[one], tokens.starts[other]
    for k in range(min(tokens.lengths[one], tokens.lengths[other])):
        difference = np.int64(token_bytes[start + k]) - np.int64(token_bytes[other_start + k])
        if difference:
            return difference > 0
    return tokens.lengths[one] > tokens.lengths[other]
