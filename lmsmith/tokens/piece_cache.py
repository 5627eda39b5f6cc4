"""Compiled byte-pair encoding of texts, with a bounded cache of the ids of pieces.

Two optimizations, neither of which changes an id:

- Most pieces occur repeatedly: `PieceCache` stores their ids.
- A long piece is cut between two bytes that are adjacent in no token, because no merge can join
  them. Chinese text, with a vocabulary that has little Chinese, is cut into characters, whose ids
  are found by code point.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.tokens.compiled import address, inner, kernel, load64, store16, store32, store64
from lmsmith.tokens.merge import POSITION_BITS, Merges, merge, merge_by_heap
from lmsmith.tokens.piece_table import (
    ADDRESS,
    BLOCK,
    CHARACTER,
    END_OF_TEXT,
    ENTRY,
    KEY0,
    KEY1,
    SLOT,
    START_SLOT,
    VALUE0,
    VALUE1,
    PieceTable,
    exchange,
    find_long,
    find_short,
    read_block,
    record_size,
)
from lmsmith.tokens.split import Pattern, Texts

# Longest piece, in bytes, that is cached and merged by linear search. Longer pieces rarely repeat,
# and a heap is faster for them.
LONGEST = 95
# The addresses of one in eight entries of a block have none of these bits: there, a piece that is
# not in the slot where its search starts moves there. So frequent pieces are found at once.
SOMETIMES = 7 * ENTRY


class PieceCache:
    """The ids of pieces that one thread has encoded. When full, it drops all pieces except those of
    `kept`, which maps a piece to its one id. `dtype`: of the ids, uint16 or uint32. Raises
    TokenizerError for a token of 2**16 bytes or more.
    """

    def __init__(
        self, n_pieces: int, kept: Mapping[bytes, int], dtype: type[np.uint16 | np.uint32]
    ) -> None:
        self.longest = max([LONGEST, *map(len, kept)])
        if self.longest >= 1 << POSITION_BITS:
            raise TokenizerError(
                f"a token has {self.longest:,} bytes; byte-pair encoding is for tokens of up to "
                f"{(1 << POSITION_BITS) - 1:,}."
            )
        block = BLOCK * (self.longest + 16)  # room for one more block
        n_arena = 2 * sum(map(len, kept)) + 32 * n_pieces + block
        self.table = PieceTable(len(kept) + n_pieces + BLOCK, n_arena)
        # The values of all characters of three bytes, by code point: untouched pages use no memory.
        self.chars = np.zeros(2 << 16, dtype=np.int64)
        self.spilt_ids = np.empty(
            8 * n_pieces + block + _ROOM, dtype=dtype
        )  # ids of pieces with too many ids for a slot
        self.used = np.zeros(3, dtype=np.int64)  # pieces, bytes of the arena, spilt ids
        self.kept = kept
        self._ids = np.empty(0, dtype=dtype)
        self._keep()

    def _keep(self) -> None:
        if self.kept:
            texts = Texts(list(self.kept))
            ids = np.fromiter(self.kept.values(), dtype=np.int64, count=len(self.kept))
            _put(
                texts.padded,
                texts.starts,
                texts.stops.astype(np.int32),
                ids,
                self.table.slots,
                self.table.arena,
                self.used,
            )

    def room_for_ids(self, n: int) -> npt.NDArray[np.uint16 | np.uint32]:
        """Returns an array of at least `n` ids, reused by every call: new memory is slow on first
        access.
        """
        if len(self._ids) < n:
            self._ids = np.empty(n, dtype=self._ids.dtype)
        return self._ids

    def empty(self) -> None:
        self.table.slots[:], self.used[:] = 0, 0
        self._keep()


def encode_texts(
    texts: Texts, pattern: Pattern, merges: Merges, cache: PieceCache
) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.int64]]:
    """Returns (ids, starts): the ids of all texts, and for each text the index of its first id,
    followed by the number of ids. The ids are in the cache's memory: the next call overwrites them.
    """
    return _encode_all(texts, *texts.split(pattern), merges, cache)


def encode_pieces(
    pieces: Texts, merges: Merges, cache: PieceCache
) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.int64]]:
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
) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.int64]]:
    adjacent = _NO_CUTS if cache.kept else merges.adjacent
    ids = cache.room_for_ids(len(texts.padded) + _ROOM)
    id_starts = np.zeros(len(texts.starts) + 1, dtype=np.int64)
    cursor = np.zeros(4, dtype=np.int64)  # text, piece, offset in `padded`, number of ids
    as_bytes = ids.view(np.uint8), cache.spilt_ids.view(np.uint8), ids.itemsize
    while not encode_blocks(
        texts.padded, texts.starts, first_pieces, ends, cursor,
        merges.byte_ids, merges.byte_pairs, merges.pairs, merges.results, adjacent, cache.chars,
        cache.longest, cache.table.slots, cache.table.limit, cache.table.arena, cache.used,
        *as_bytes, id_starts,
    ):  # fmt: skip
        cache.empty()
    return ids[: id_starts[-1]], id_starts


_NO_CUTS = np.empty(0, dtype=np.uint8)
_ROOM = 32  # ids: up to 32 bytes are written after the last one


_inlined = partial(inner, forceinline=True)  # for functions that run for each piece


@kernel
def encode_blocks(
    padded, starts, first_pieces, ends, cursor, byte_ids, byte_pairs, pairs, results, adjacent,
    chars, longest, slots, limit, arena, used, ids, spilt_ids, width, id_starts,
):  # fmt: skip
    """Continues from `cursor`. Returns True when all texts are encoded, False if the cache is full.

    `ids` and `spilt_ids` are arrays of bytes, and an id has `width` bytes.
    """
    text, first_slot, mask = address(padded), address(slots), len(slots) * 8 // SLOT - 1
    spilt, to = address(spilt_ids), address(ids) + width * cursor[3]
    block, room = np.empty(BLOCK * ENTRY // 8, np.int64), longest + 16
    part_ids, keys = np.zeros(room, np.int32), np.empty(room, np.int64)
    before, after = np.empty(room, np.int64), np.empty(room, np.int64)
    if len(starts):
        cursor[2] += text if cursor[2] else text + starts[0]
    i = cursor[0]
    most = BLOCK * record_size(longest)  # that a block adds
    while i < len(starts):
        if (
            used[0] + BLOCK > limit
            or used[1] + most > len(arena)
            or width * (used[2] + most + _ROOM) > len(spilt_ids)
        ):
            break
        stop = read_block(
            text, starts, first_pieces, ends, cursor, longest, adjacent, address(chars),
            first_slot, mask, block,
        )  # fmt: skip
        entry = address(block)
        while entry < stop:
            entry, to = _copy_known(entry, stop, to, first_slot, mask, spilt, width)
            if entry == stop:
                break
            key1, at = load64(entry + KEY1), load64(entry + ADDRESS)
            if key1 == END_OF_TEXT:
                i += 1
                id_starts[i] = (to - address(ids)) // width
            elif -key1 > longest:
                long_ids = np.empty(-key1, dtype=np.int32)
                n = merge_by_heap(at, -key1, byte_ids, byte_pairs, pairs, results, long_ids)
                to = _write_ids(long_ids, n, to, width)
            else:
                slot = _slot_of(entry, first_slot, mask, arena, used)
                if load64(slot + VALUE1) == 0:  # not in the cache
                    length = -key1 if key1 < 0 else 3 if key1 == CHARACTER else key1 >> 56
                    n = merge(
                        at,
                        length,
                        byte_ids,
                        byte_pairs,
                        pairs,
                        results,
                        part_ids,
                        keys,
                        before,
                        after,
                    )
                    _remember(slot, part_ids, n, spilt, used, width)
                to = _copy_ids(slot, to, spilt, width)
            entry += ENTRY
    cursor[2] -= text
    cursor[3] = (to - address(ids)) // width
    return i == len(starts)


@inner
def _copy_known(entry, stop, to, first_slot, mask, spilt, width):
    """Writes the ids of pieces to the address `to`, until the end of a text or a piece that is
    longer than 15 bytes or not in the cache. Returns its entry, and the address after the ids.

    The loop is all that runs for nearly every piece.
    """
    while entry < stop:
        key1, slot = load64(entry + KEY1), load64(entry + START_SLOT)
        if key1 < 0:
            break
        if key1 < CHARACTER:
            home = slot
            slot = find_short(first_slot, mask, load64(entry + KEY0), key1, slot)
            if slot != home and entry & SOMETIMES == 0:
                slot = exchange(slot, home)
        if load64(slot + VALUE1) == 0:
            break
        to = _copy_ids(slot, to, spilt, width)
        entry += ENTRY
    return entry, to


@_inlined
def _copy_ids(slot, to, spilt, width):
    """Writes the ids of a piece in the cache to the address `to`, and returns the address after
    them.
    """
    value0, value1 = load64(slot + VALUE0), load64(slot + VALUE1)
    n = value1 >> 48
    if n <= IN_SLOT:
        store64(to, value0)
        store64(to + 8, value1)
        return to + n * width
    n_bytes, source = (value0 >> 32) * width, spilt + (value0 & 0xFFFFFFFF) * width
    for offset in range(0, n_bytes, 32):
        for word in range(offset, offset + 32, 8):
            store64(to + word, load64(source + word))
    return to + n_bytes


@inner
def _slot_of(entry, first_slot, mask, arena, used):
    """Returns the slot of any piece up to the longest in the cache; adds it if it is new."""
    key0, key1, slot = load64(entry + KEY0), load64(entry + KEY1), load64(entry + START_SLOT)
    if key1 == CHARACTER:
        return slot
    if key1 > 0:
        return find_short(first_slot, mask, key0, key1, slot)
    at = load64(entry + ADDRESS)
    return find_long(first_slot, mask, key0, slot, at, -key1, address(arena), used)


# A value has 16 bytes: up to seven ids of two bytes or three of four, and in the last two bytes
# their number. More ids are in `spilt_ids`: then the number is `SPILT`, and the first eight bytes
# are their real number and the index of the first one.
IN_SLOT = 7
SPILT = 8
NUMBER = VALUE1 + 6  # offset in a slot


@inner
def _remember(slot, ids, n, spilt, used, width):
    """Stores the ids[:n] of a piece in the cache."""
    used[0] += 1
    if n < 16 // width:
        _write_ids(ids, n, slot + VALUE0, width)
        store16(slot + NUMBER, n)
    else:
        _write_ids(ids, n, spilt + used[2] * width, width)
        store64(slot + VALUE0, n << 32 | used[2])
        store64(slot + VALUE1, np.int64(SPILT) << 48)
        used[2] += n


@inner
def _write_ids(ids, n, to, width):
    """Writes ids[:n] to the address `to`, and returns the address after them. Writes four bytes for
    each: what is too much of one is overwritten by the next, and of the last one by the caller.
    """
    for k in range(n):
        store32(to, ids[k])
        to += width
    return to


@kernel
def _put(padded, starts, stops, ids, slots, arena, used):
    """Adds each text to the table as a piece with one id."""
    first_slot, mask = address(slots), len(slots) * 8 // SLOT - 1
    adjacent, no_pieces = np.empty(0, dtype=np.uint8), np.arange(len(starts) + 1)
    block, cursor = np.empty(BLOCK * ENTRY // 8, dtype=np.int64), np.zeros(3, dtype=np.int64)
    text = address(padded)
    cursor[2] = text + starts[0]
    k = 0
    while k < len(starts):
        stop = read_block(
            text, starts, no_pieces, stops, cursor, 1 << 40, adjacent, 0, first_slot, mask, block
        )
        for entry in range(address(block), stop, ENTRY):
            key0, key1 = load64(entry + KEY0), load64(entry + KEY1)
            slot = load64(entry + START_SLOT)
            if key1 == END_OF_TEXT:
                continue
            if key1 > 0:
                slot = find_short(first_slot, mask, key0, key1, slot)
            else:
                at = load64(entry + ADDRESS)
                slot = find_long(first_slot, mask, key0, slot, at, -key1, address(arena), used)
            store64(slot + VALUE0, ids[k])
            store64(slot + VALUE1, np.int64(1 << 48))
            used[0] += 1
            k += 1
