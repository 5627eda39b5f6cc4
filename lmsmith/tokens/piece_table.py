"""A hash table from pieces of text to two numbers: the ids of a piece when encoding, its count when
learning.

One flat array of int64, four a slot (32 bytes: half a cache line), open addressing, linear probing:

    key0, key1, value0, value1        key1 = 0: an empty slot

A piece of up to 15 bytes is its own key: its bytes, then its length in the top byte, so that
finding it is two comparisons. That is nearly all of English. A longer piece has a hash as key0, and
key1 = -1 - (where it is in the `arena`, which holds 8 bytes of length and then the bytes, each
record a multiple of 8 bytes long).

The table is larger than the processor's nearer caches, and waiting for it is what costs. So pieces
are looked up in blocks of some hundred: first all keys are made and their slots asked for, then
they are compared.

All functions here are called from compiled code; what the values mean is for those who call.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from lmsmith.tokens.compiled import load8, load64, prefetch, store64

SLOT = 32  # bytes
VALUE0, VALUE1 = 16, 24  # where in a slot
SHORT = 15  # bytes
BLOCK = 256  # pieces
# Columns of a block: (5, BLOCK) numbers.
PLACE, LENGTH, KEY0, KEY1, FOUND = range(5)
END_OF_TEXT = 1 << 62  # as a length: no piece, here a text ends

_LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(16)], dtype=np.uint64).view(np.int64)
_HIGH = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(16)], dtype=np.uint64).view(np.int64)
# Odd numbers with bits all over, from the golden ratio and from xxHash.
_MULTIPLY, _MIX = 0x9E3779B97F4A7C15 - 2**64, 0xC2B2AE3D27D4EB4F - 2**64


class PieceTable:
    """The table, with room for `limit` pieces; pages that are not written to cost no memory."""

    def __init__(self, limit: int, n_arena: int) -> None:
        self.limit = limit
        n_slots = 1 << (4 * limit // 3).bit_length()  # filled by three fourths at most
        self.slots = np.zeros(n_slots * SLOT // 8, dtype=np.int64)
        self.arena = np.empty(n_arena, dtype=np.uint8)
        self.used = np.zeros(2, dtype=np.int64)  # pieces, bytes of the arena

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(slots, 4)"""
        return self.slots.reshape(-1, 4)


@njit
def read_block(text, starts, first_pieces, ends, cursor, longest, side_by_side, slots, mask, block):
    """The next pieces of `split.Texts` (and ends of texts), their keys, and where the search for
    them begins; how many.

    `cursor` is (text, piece, address). A piece longer than `longest` gets no key. Where
    `side_by_side` is not empty, a piece of more than 15 bytes is cut between characters whose
    bytes, by it, never stand side by side.
    """
    i, piece, at = cursor[0], cursor[1], cursor[2]
    n = 0
    while n < BLOCK and i < len(starts):
        last = first_pieces[i + 1]
        while n < BLOCK and piece < last:
            end = text + ends[piece]
            piece += 1
            length = end - at
            if length <= SHORT:
                key0 = load64(at) & _LOW[length]
                key1 = load64(at + 8) & _HIGH[length] | length << 56
                slot = first_place(slots, mask, key0, key1)
            else:
                if len(side_by_side):
                    length = 1
                    while at + length < end:
                        byte = load8(at + length)
                        if (
                            byte ^ 0x80 >= 64
                            and not side_by_side[load8(at + length - 1) << 8 | byte]
                        ):
                            break
                        length += 1
                    piece -= at + length < end  # there is more of it
                key0, key1, slot = long_key(slots, mask, at, length, longest)
            prefetch(slot)
            block[PLACE, n], block[LENGTH, n] = at, length
            block[KEY0, n], block[KEY1, n], block[FOUND, n] = key0, key1, slot
            n += 1
            at += length
        if n < BLOCK:
            block[LENGTH, n] = END_OF_TEXT
            n += 1
            i += 1
            if i < len(starts):
                at = text + starts[i]
    cursor[0], cursor[1], cursor[2] = i, piece, at
    return n


@njit
def long_key(slots, mask, at, length, longest):
    """The keys of a piece of any length, and where the search for it begins; nothing for one
    that is too long.
    """
    if length <= SHORT:
        key0, key1 = load64(at) & _LOW[length], load64(at + 8) & _HIGH[length] | length << 56
        return key0, key1, first_place(slots, mask, key0, key1)
    if length > longest:
        return np.int64(0), np.int64(0), slots
    key0 = length
    for offset in range(0, length - 7, 8):
        key0 = (key0 ^ load64(at + offset)) * _MULTIPLY
        key0 ^= key0 >> 32
    rest = load64(at + (length & ~7)) & _LOW[length & 7]
    key0 = (key0 ^ rest) * _MIX
    return key0, rest, first_place(slots, mask, key0, np.int64(0))


@njit
def first_place(slots, mask, key0, key1):
    """The slot from which on a piece is searched. For a long one, `key1` is 0 here."""
    key = key0 * _MULTIPLY ^ key1 * _MIX
    return slots + ((key ^ key >> 29) * _MULTIPLY >> 32 & mask) * SLOT


@njit
def find_short(slots, mask, key0, key1, slot):
    """Where the piece of 1 to 15 bytes is, searched from `slot`; it is made, with values of 0,
    where there is none.
    """
    while True:
        found = load64(slot + 8)
        if found == key1 and load64(slot) == key0:
            return slot
        if found == 0:
            store64(slot, key0)
            store64(slot + 8, key1)
            return slot
        slot = slots + (slot - slots + SLOT & mask * SLOT)


@njit
def find_long(slots, mask, key0, rest, slot, at, length, arena, used):
    """The same for a longer piece; a new one is copied into the arena, where there is room."""
    while True:
        found = load64(slot + 8)
        if found < 0 and load64(slot) == key0:
            record = arena + (-1 - found)
            if load64(record) == length:
                same = load64(record + 8 + (length & ~7)) == rest
                for offset in range(0, length - 7, 8):
                    same &= load64(record + 8 + offset) == load64(at + offset)
                if same:
                    return slot
        if found == 0:
            store64(slot, key0)
            store64(slot + 8, -1 - used[1])
            record = arena + used[1]
            used[1] += record_size(length)
            store64(record, length)
            for offset in range(0, length - 7, 8):
                store64(record + 8 + offset, load64(at + offset))
            store64(record + 8 + (length & ~7), rest)
            return slot
        slot = slots + (slot - slots + SLOT & mask * SLOT)


@njit
def record_size(length):
    """Bytes that a piece takes in the arena."""
    return 16 + (length & ~7)
