"""Compiled byte-pair encoding of one piece: merges its bytes into ids.

Repeatedly merges the pair of lowest rank in a piece, leftmost first, until no adjacent pair merges
(Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2). A linear search finds the next pair in
short pieces, a heap in long ones, so that a run of n equal letters takes O(n log n).

Branches that the processor cannot predict would take most of the time, so the inner loops have few:
the smallest key is found without branches, and so is a pair in a bucket of four.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.tokens.compiled import address, inner, kernel, load8, load64, shifted_down

NONE = 1 << 40  # the rank of a pair that does not merge
_ID_BITS = _RANK_BITS = 21
POSITION_BITS = 16  # of the bytes of a short piece
NO_ID = (1 << _ID_BITS) - 1  # no pair has it
_BUCKET = 32  # bytes
_MULTIPLY = 0x9E3779B97F4A7C15 - 2**64


@dataclass(frozen=True)
class Merges:
    """The merges as tables for compiled code. Pairs of lower rank merge first."""

    byte_ids: npt.NDArray[np.int32]  # (256,)
    byte_pairs: npt.NDArray[np.int64]  # (65536,) rank of two bytes, by 256 * left + right, or NONE
    # Hash table of (left id * 2**21 + right id) * 2**21 + rank, in buckets of four; -1: empty.
    pairs: npt.NDArray[np.int64]
    results: npt.NDArray[np.int32]  # id that the pair of a rank merges into
    adjacent: npt.NDArray[np.uint8]  # (65536,) whether two bytes are adjacent in any token

    @classmethod
    def of(
        cls,
        byte_ids: npt.NDArray[np.int32],
        left: npt.NDArray[np.int64],
        right: npt.NDArray[np.int64],
        result: npt.NDArray[np.int64],
        rank: npt.NDArray[np.int64],
        adjacent: npt.NDArray[np.uint8],
    ) -> Merges:
        """The pair (left[i], right[i]) has the rank rank[i] and merges into result[i]. Raises
        TokenizerError for ids and ranks of 2**21 - 1 or more.
        """
        largest = max(
            [0, *(int(values.max()) for values in (left, right, result, rank) if len(left))]
        )
        if largest >= NO_ID:
            raise TokenizerError(
                f"byte-pair encoding is for up to {NO_ID:,} tokens and merges; this "
                f"vocabulary has the number {largest:,}."
            )
        pairs = np.full(1 << max(4, (2 * len(left)).bit_length()), -1, dtype=np.int64)
        fill_pairs(left, right, rank, pairs)
        results = np.zeros(largest + 1, dtype=np.int32)
        results[rank] = result
        every = np.arange(65536)
        byte_pairs = np.empty(65536, dtype=np.int64)
        first, second = (byte_ids[part].astype(np.int64) for part in (every >> 8, every & 255))
        look_up(first, second, pairs, byte_pairs)
        return cls(byte_ids, byte_pairs, pairs, results, adjacent)


@inner
def merge(at, length, byte_ids, byte_pairs, pairs, results, ids, keys, before, after):
    """Merges a short piece into ids[:n] and returns n.

    Position k is that of the token that starts with byte k - 1; there is no token at the first and
    the last position. keys[k] is the rank of the pair of the token at k and the next one, and k: the
    smallest key is that of the next merge. The arrays have room for `length` + 9 numbers.
    """
    ids[0] = ids[length + 1] = NO_ID
    for k in range(1, length + 1):
        ids[k], before[k], after[k] = byte_ids[load8(at + k - 1)], k - 1, k + 1
        keys[k] = byte_pairs[load8(at + k - 1) << 8 | load8(at + k)] << POSITION_BITS | k
    keys[0] = NONE << POSITION_BITS
    for k in range(length, length + 8 & ~7):
        keys[k] = NONE << POSITION_BITS
    while True:
        best = NONE << POSITION_BITS
        for first in range(0, length, 8):
            for k in range(first, first + 8):
                best = min(best, keys[k])
        if best >= NONE << POSITION_BITS:
            break
        k = best & (1 << POSITION_BITS) - 1
        token = np.int64(results[best >> POSITION_BITS])
        ids[k] = token
        gone = after[k]
        following, previous = after[gone], before[k]
        after[k], before[following] = following, k
        keys[gone] = NONE << POSITION_BITS
        keys[k] = pair_rank(pairs, token, np.int64(ids[following])) << POSITION_BITS | k
        keys[previous] = (
            pair_rank(pairs, np.int64(ids[previous]), token) << POSITION_BITS | previous
        )
    n, k = 0, 1
    while k <= length:
        ids[n] = ids[k]
        n += 1
        k = after[k]
    return n


@inner
def merge_by_heap(at, length, byte_ids, byte_pairs, pairs, results, ids):
    """Like `merge`, for a long piece: O(n log n)."""
    ranks = np.empty(length, dtype=np.int64)
    after, before = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.int64)
    heap, n_heap = np.empty(3 * length, dtype=np.int64), np.int64(0)  # rank * 2**32 + position
    for k in range(length):
        ids[k] = byte_ids[load8(at + k)]
        after[k], before[k], ranks[k] = k + 1, k - 1, NONE
        if k < length - 1:
            ranks[k] = byte_pairs[load8(at + k) << 8 | load8(at + k + 1)]
            if ranks[k] != NONE:
                n_heap = _push(heap, n_heap, ranks[k] << 32 | k)
    while n_heap:
        top = heap[0]
        n_heap = _pop(heap, n_heap)
        k = top & 0xFFFFFFFF
        if ranks[k] != top >> 32:
            continue  # outdated: one of the two has merged with another since
        ids[k] = results[ranks[k]]
        gone = after[k]
        after[k] = after[gone]
        ranks[gone] = ranks[k] = NONE
        if after[k] < length:
            before[after[k]] = k
        for left in range(2):  # the new pairs: with the next token (0), with the one before (1)
            first = before[k] if left else k
            if first >= 0 and after[first] < length:
                ranks[first] = pair_rank(pairs, ids[first], ids[after[first]])
                if ranks[first] != NONE:
                    n_heap = _push(heap, n_heap, ranks[first] << 32 | first)
    n, k = 0, 0
    while k < length:
        ids[n] = ids[k]
        n += 1
        k = after[k]
    return n


@inner
def _push(heap, n, key):
    k = n
    while k > 0 and heap[(k - 1) >> 1] > key:
        heap[k] = heap[(k - 1) >> 1]
        k = (k - 1) >> 1
    heap[k] = key
    return n + 1


@inner
def _pop(heap, n):
    n -= 1
    key, k = heap[n], 0
    while 2 * k + 1 < n:
        child = 2 * k + 1
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[k] = heap[child]
        k = child
    heap[k] = key
    return n


# ---- the table of pairs --------------------------------------------------------------------------


@inner
def pair_rank(pairs, left, right):
    """Returns the rank of the pair of ids (left, right); `NONE` if it does not merge."""
    pair = np.int64(left) << _ID_BITS | np.int64(right)
    first, mask = address(pairs), 8 * len(pairs) - 1
    bucket = shifted_down(pair * _MULTIPLY, 32) * _BUCKET
    while True:
        at = first + (bucket & mask)
        found = np.int64(NONE)
        for offset in range(0, _BUCKET, 8):
            entry = load64(at + offset)
            found = entry & (1 << _RANK_BITS) - 1 if entry >> _RANK_BITS == pair else found
        # Whether it is NONE and the bucket is full, without a branch for each.
        if found >> 40 & ~(load64(at + _BUCKET - 8) >> 63) == 0:
            return found
        bucket += _BUCKET


@kernel
def fill_pairs(left, right, rank, pairs):
    for k in range(len(left)):
        pair = left[k] << _ID_BITS | right[k]
        index = shifted_down(pair * _MULTIPLY, 32) * (_BUCKET // 8)
        while pairs[index & (len(pairs) - 1)] >= 0:
            index += 1
        pairs[index & (len(pairs) - 1)] = pair << _RANK_BITS | rank[k]


@kernel
def look_up(left, right, pairs, ranks):
    for k in range(len(left)):
        ranks[k] = pair_rank(pairs, left[k], right[k])
