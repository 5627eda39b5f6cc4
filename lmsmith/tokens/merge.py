"""Compiled byte-pair encoding of pieces: merges bytes into ids, with a bounded cache of pieces, and
decodes ids to bytes.

Repeatedly merges the pair of lowest rank in a piece, leftmost first, until no adjacent pair merges
(Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2). Three optimizations, none of which
changes an id:

- Most pieces occur repeatedly: `PieceCache` stores their ids.
- A long piece is cut between two bytes that are adjacent in no token, because no merge can join
  them. Chinese text, with a vocabulary that has little Chinese, is cut into characters that are in
  the cache.
- A linear search finds the next pair in short pieces, a heap in long ones, so that a run of n equal
  letters takes O(n log n).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lmsmith.tokens import ahead
from lmsmith.tokens.compiled import (
    address,
    inner,
    kernel,
    load8,
    load32,
    load64,
    store32,
    store64,
)
from lmsmith.tokens.piece_table import (
    ADDRESS,
    BLOCK,
    END_OF_TEXT,
    KEY0,
    KEY1,
    LENGTH,
    SHORT,
    SLOT,
    START_SLOT,
    VALUE0,
    VALUE1,
    PieceTable,
    find_long,
    find_short,
    read_block,
    record_size,
)
from lmsmith.tokens.split import Pattern, Texts

NONE = (1 << 63) - 1  # the value of a pair that does not merge
# Longest piece, in bytes, that is cached and merged by linear search. Longer pieces rarely repeat,
# and a heap is faster for them.
LONGEST = 95
_MULTIPLY = 0x9E3779B97F4A7C15 - 2**64


@dataclass(frozen=True)
class Merges:
    """The merges as tables for compiled code. A value is rank * 2**32 + id of the result, or `NONE`
    for a pair that does not merge.
    """

    byte_ids: npt.NDArray[np.int32]  # (256,)
    byte_pairs: npt.NDArray[np.int64]  # (65536,) values of two bytes, by 256 * left + right
    pairs: npt.NDArray[
        np.int64
    ]  # hash table of (left id * 2**32 + right id, value); -1 in empty slots
    adjacent: npt.NDArray[np.uint8]  # (65536,) whether two bytes are adjacent in any token

    @classmethod
    def of(
        cls,
        byte_ids: npt.NDArray[np.int32],
        left: npt.NDArray[np.int64],
        right: npt.NDArray[np.int64],
        value: npt.NDArray[np.int64],
        adjacent: npt.NDArray[np.uint8],
    ) -> Merges:
        n_slots = 1 << max(4, (2 * len(left)).bit_length())
        pairs = np.full(2 * n_slots, -1, dtype=np.int64)
        _fill_pairs(left, right, value, pairs)
        every = np.arange(65536)
        byte_pairs = np.empty(65536, dtype=np.int64)
        _look_up(
            byte_ids[every >> 8].astype(np.int64),
            byte_ids[every & 255].astype(np.int64),
            pairs,
            byte_pairs,
        )
        return cls(byte_ids, byte_pairs, pairs, adjacent)


class PieceCache:
    """The ids of pieces that one thread has encoded. When full, it drops all pieces except those of
    `kept`, which maps a piece to its one id.
    """

    def __init__(self, n_pieces: int, kept: Mapping[bytes, int]) -> None:
        self.longest = max([LONGEST, *map(len, kept)])
        block = BLOCK * (self.longest + 16)  # room for one more block
        n_arena = 2 * sum(map(len, kept)) + 32 * n_pieces + block
        self.table = PieceTable(len(kept) + n_pieces + BLOCK, n_arena)
        self.spilt_ids = np.empty(
            8 * n_pieces + block, dtype=np.int32
        )  # ids of pieces with more than three ids
        self.used = np.zeros(3, dtype=np.int64)  # pieces, bytes of the arena, spilt ids
        self.kept = kept
        self._ids = np.empty(0, dtype=np.int32)
        self._keep()

    def _keep(self) -> None:
        if self.kept:
            texts = Texts(list(self.kept))
            ids = np.fromiter(self.kept.values(), dtype=np.int64, count=len(self.kept))
            _put(
                texts.padded,
                texts.starts,
                texts.stops,
                ids,
                self.table.slots,
                self.table.arena,
                self.used,
            )

    def room_for_ids(self, n: int) -> npt.NDArray[np.int32]:
        """Returns an array of at least `n` ids, reused by every call: new memory is slow on first
        access.
        """
        if len(self._ids) < n:
            self._ids = np.empty(n, dtype=np.int32)
        return self._ids

    def empty(self) -> None:
        self.table.slots[:], self.used[:] = 0, 0
        self._keep()


def encode_texts(
    texts: Texts, pattern: Pattern, merges: Merges, cache: PieceCache
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Returns (ids, starts): the ids of all texts, and for each text the index of its first id,
    followed by the number of ids. The ids are in the cache's memory: the next call overwrites them.
    """
    return _encode_all(texts, *texts.split(pattern), merges, cache)


def encode_pieces(
    pieces: Texts, merges: Merges, cache: PieceCache
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Like `encode_texts`, for texts that are one piece each."""
    return _encode_all(
        pieces, pieces.stops.astype(np.int32), np.arange(len(pieces.stops) + 1), merges, cache
    )


def _encode_all(
    texts: Texts,
    ends: npt.NDArray[np.int32],
    first_pieces: npt.NDArray[np.int64],
    merges: Merges,
    cache: PieceCache,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    adjacent = _NO_CUTS if cache.kept else merges.adjacent
    ids = cache.room_for_ids(len(texts.padded) + 4)
    id_starts = np.zeros(len(texts.starts) + 1, dtype=np.int64)
    cursor = np.zeros(4, dtype=np.int64)  # text, piece, offset in `padded`, number of ids
    while not _encode(
        texts.padded, texts.starts, first_pieces, ends, cursor,
        merges.byte_ids, merges.byte_pairs, merges.pairs, adjacent,
        cache.longest, cache.table.slots, cache.table.limit, cache.table.arena, cache.spilt_ids, cache.used,
        ids, id_starts,
    ):  # fmt: skip
        cache.empty()
    return ids[: id_starts[-1]], id_starts


_NO_CUTS = np.empty(0, dtype=np.uint8)


_inlined = partial(inner, forceinline=True)  # for functions that run for each piece


@kernel
def _encode(
    padded, starts, first_pieces, ends, cursor, byte_ids, byte_pairs, pairs, adjacent,
    longest, slots, limit, arena, spilt_ids, used, ids, id_starts,
):  # fmt: skip
    """Continues from `cursor`. Returns True when all texts are encoded, False if the cache is full."""
    text, first_slot, mask = address(padded), address(slots), len(slots) * 8 // SLOT - 1
    spilt, to = address(spilt_ids), address(ids) + 4 * cursor[3]
    block, part_ids, values = (
        np.empty((5, BLOCK), np.int64),
        np.zeros(longest, np.int32),
        np.empty(longest, np.int64),
    )
    if len(starts):
        cursor[2] += text if cursor[2] else text + starts[0]
    i = cursor[0]
    while i < len(starts):
        room = BLOCK * record_size(longest)
        if (
            used[0] + BLOCK > limit
            or used[1] + room > len(arena)
            or used[2] + room > len(spilt_ids)
        ):
            break
        n_block = read_block(
            text, starts, first_pieces, ends, cursor, longest, adjacent, first_slot, mask, block
        )
        for k in range(n_block):
            at, length, slot = block[ADDRESS, k], block[LENGTH, k], block[START_SLOT, k]
            if length <= SHORT:
                slot = find_short(first_slot, mask, block[KEY0, k], block[KEY1, k], slot)
            elif length <= longest:
                slot = find_long(
                    first_slot,
                    mask,
                    block[KEY0, k],
                    block[KEY1, k],
                    slot,
                    at,
                    length,
                    address(arena),
                    used,
                )
            elif length == END_OF_TEXT:
                i += 1
                id_starts[i] = (to - address(ids)) >> 2
                continue
            else:
                long_ids = np.empty(length, dtype=np.int32)
                n = _merge_by_heap(at, length, byte_ids, byte_pairs, pairs, long_ids)
                for part in range(n):
                    store32(to + 4 * part, long_ids[part])
                to += 4 * n
                continue
            if load64(slot + VALUE1) == 0:  # not in the cache
                n = _merge(at, length, byte_ids, byte_pairs, pairs, part_ids, values)
                _remember(slot, part_ids, n, spilt_ids, used)
            to += 4 * _copy_ids(slot, spilt, to)
    cursor[2] -= text
    cursor[3] = (to - address(ids)) >> 2
    return i == len(starts)


@_inlined
def _remember(slot, ids, n, spilt_ids, used):
    """Stores the ids[:n] of a piece: up to three in its slot, more in `spilt_ids`."""
    store64(slot + VALUE1, n << 32 | np.int64(ids[2]))
    store64(slot + VALUE0, np.int64(ids[1]) << 32 | np.int64(ids[0]))
    if n > 3:
        store64(slot + VALUE0, used[2])
        for k in range(n):
            spilt_ids[used[2] + k] = ids[k]
        used[2] += n
    used[0] += 1


@_inlined
def _copy_ids(slot, spilt, to):
    """Writes the ids of a piece in the cache to the address `to`, and returns their number."""
    value0, value1 = load64(slot + VALUE0), load64(slot + VALUE1)
    store64(to, value0)
    store32(to + 8, value1)
    n = value1 >> 32
    if n > 3:
        for k in range(n):
            store32(to + 4 * k, load32(spilt + 4 * (value0 + k)))
    return n


@kernel
def _put(padded, starts, stops, ids, slots, arena, used):
    """Adds each text to the table as a piece with one id."""
    first_slot, mask = address(slots), len(slots) * 8 // SLOT - 1
    adjacent, no_pieces = np.empty(0, dtype=np.uint8), np.arange(len(starts) + 1)
    block, cursor = np.empty((5, BLOCK), dtype=np.int64), np.zeros(3, dtype=np.int64)
    cursor[2] = address(padded) + starts[0]
    k = 0
    while k < len(starts):
        n_block = read_block(
            address(padded),
            starts,
            no_pieces,
            stops,
            cursor,
            1 << 40,
            adjacent,
            first_slot,
            mask,
            block,
        )
        for j in range(n_block):
            length, slot = block[LENGTH, j], block[START_SLOT, j]
            if length == END_OF_TEXT:
                continue
            if length <= SHORT:
                slot = find_short(first_slot, mask, block[KEY0, j], block[KEY1, j], slot)
            else:
                slot = find_long(
                    first_slot,
                    mask,
                    block[KEY0, j],
                    block[KEY1, j],
                    slot,
                    block[ADDRESS, j],
                    length,
                    address(arena),
                    used,
                )
            store64(slot + VALUE0, ids[k])
            store64(slot + VALUE1, np.int64(1 << 32))
            used[0] += 1
            k += 1


@inner
def _merge(at, length, byte_ids, byte_pairs, pairs, ids, values):
    """Merges a short piece into ids[:n] and returns n. values[k] is the value of the pair (k, k +
    1).
    """
    for k in range(length):
        ids[k] = byte_ids[load8(at + k)]
    for k in range(length - 1):
        values[k] = byte_pairs[load8(at + k) << 8 | load8(at + k + 1)]
    n = length
    while True:
        best, position = NONE, -1
        for k in range(n - 1):
            if values[k] < best:
                best, position = values[k], k
        if position < 0:
            return n
        n -= 1
        ids[position] = best & 0xFFFFFFFF
        for k in range(position + 1, n):
            ids[k] = ids[k + 1]
            values[k] = values[k + 1]
        if position + 1 < n:
            values[position] = pair_value(
                pairs, np.int64(ids[position]), np.int64(ids[position + 1])
            )
        if position > 0:
            values[position - 1] = pair_value(
                pairs, np.int64(ids[position - 1]), np.int64(ids[position])
            )


@inner
def _merge_by_heap(at, length, byte_ids, byte_pairs, pairs, ids):
    """Like `_merge`, for a long piece: O(n log n)."""
    values = np.empty(length, dtype=np.int64)
    after, before = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.int64)
    heap, n_heap = np.empty(3 * length, dtype=np.int64), np.int64(0)  # rank * 2**32 + position
    for k in range(length):
        ids[k] = byte_ids[load8(at + k)]
        after[k], before[k], values[k] = k + 1, k - 1, NONE
        if k < length - 1:
            values[k] = byte_pairs[load8(at + k) << 8 | load8(at + k + 1)]
            if values[k] != NONE:
                n_heap = _push(heap, n_heap, values[k] & ~0xFFFFFFFF | k)
    while n_heap:
        top = heap[0]
        n_heap = _pop(heap, n_heap)
        k = top & 0xFFFFFFFF
        if values[k] == NONE or values[k] >> 32 != top >> 32:
            continue  # outdated: one of the two has merged with another since
        ids[k] = values[k] & 0xFFFFFFFF
        gone = after[k]
        after[k] = after[gone]
        values[gone] = values[k] = NONE
        if after[k] < length:
            before[after[k]] = k
        for left in range(2):  # the new pairs: with the next token (0), with the one before (1)
            first = before[k] if left else k
            if first >= 0 and after[first] < length:
                values[first] = pair_value(pairs, np.int64(ids[first]), np.int64(ids[after[first]]))
                if values[first] != NONE:
                    n_heap = _push(heap, n_heap, values[first] & ~0xFFFFFFFF | first)
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
def pair_value(pairs, left, right):
    """Returns the value of the pair of ids (left, right); `NONE` if it does not merge."""
    key = left << 32 | right
    index = (key * _MULTIPLY) >> 32
    while True:
        slot = (index << 1) & (len(pairs) - 1)
        if pairs[slot] == key:
            return pairs[slot + 1]
        if pairs[slot] < 0:
            return np.int64(NONE)
        index += 1


@kernel
def _fill_pairs(left, right, value, pairs):
    for k in range(len(left)):
        key = left[k] << 32 | right[k]
        index = (key * _MULTIPLY) >> 32
        while pairs[(index << 1) & (len(pairs) - 1)] >= 0:
            index += 1
        slot = (index << 1) & (len(pairs) - 1)
        pairs[slot], pairs[slot + 1] = key, value[k]


@kernel
def _look_up(left, right, pairs, values):
    for k in range(len(left)):
        values[k] = pair_value(pairs, left[k], right[k])


# ---- ids -> bytes --------------------------------------------------------------------------------


def decode_ids(
    ids: npt.NDArray[np.int64], token_bytes: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]
) -> bytes:
    """Returns the concatenated bytes of `ids`, which must be valid. The bytes of id i are
    token_bytes[starts[i]:starts[i + 1]].

    `token_bytes` must have eight extra bytes at its end, because whole words of 8 bytes are copied.
    """
    n_bytes = int((starts[ids + 1] - starts[ids]).sum())
    out = np.empty(n_bytes + 8, dtype=np.uint8)
    _decode(ids, token_bytes, starts, out)
    return out[:n_bytes].tobytes()


@kernel
def _decode(ids, token_bytes, starts, out):
    source, to = address(token_bytes), address(out)
    for i in ids:
        length = starts[i + 1] - starts[i]
        for offset in range(0, length, 8):  # the next token overwrites excess bytes
            store64(to + offset, load64(source + starts[i] + offset))
        to += length


ahead.part("encode", 2.2, _encode, _fill_pairs, _look_up, _decode)
