"""A hash table from pieces of text to two numbers: the ids of a piece for encoding, its count for
learning.

A flat array of int64 with four numbers per slot (32 bytes, half a cache line), open addressing and
linear probing:

    key0, key1, value0, value1        key1 = 0: an empty slot

A piece of up to 15 bytes is its own key: its bytes, then its length in the top byte. Finding it
takes two comparisons. Nearly all English pieces are this short. A longer piece has a hash as key0,
and key1 = -1 - offset, where offset is the position of its record in the `arena`. A record is the
length (8 bytes) and then the bytes, padded to a multiple of 8 bytes.

The table is larger than the nearer CPU caches, so memory latency dominates. Pieces are therefore
looked up in blocks of `BLOCK`: first compute all keys and prefetch their slots, then compare.

All functions here are called from compiled code. The callers define the meaning of the values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lmsmith.tokens.compiled import inner, load8, load64, prefetch, store64

SLOT = 32  # bytes
VALUE0, VALUE1 = 16, 24  # offsets in a slot
SHORT = 15  # bytes
BLOCK = 256  # pieces
# Rows of a block of shape (5, BLOCK): address and length of a piece, its keys, and the address of
# the slot where the search for it starts.
ADDRESS, LENGTH, KEY0, KEY1, START_SLOT = range(5)
END_OF_TEXT = 1 << 62  # as a length: not a piece but the end of a text

_LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(16)], dtype=np.uint64).view(np.int64)
_HIGH = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(16)], dtype=np.uint64).view(np.int64)
# Odd multipliers for hashing, from the golden ratio and from xxHash.
_MULTIPLY, _MIX = 0x9E3779B97F4A7C15 - 2**64, 0xC2B2AE3D27D4EB4F - 2**64


class PieceTable:
    """A table with room for `limit` pieces and `n_arena` bytes of records. Memory pages that are
    never written use no memory.
    """

    def __init__(self, limit: int, n_arena: int) -> None:
        self.limit = limit
        n_slots = 1 << (4 * limit // 3).bit_length()  # a load factor of at most 3/4
        self.slots = np.zeros(n_slots * SLOT // 8, dtype=np.int64)
        self.arena = np.empty(n_arena, dtype=np.uint8)
        self.used = np.zeros(2, dtype=np.int64)  # pieces, bytes of the arena

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The slots as an array of shape (number of slots, 4)."""
        return self.slots.reshape(-1, 4)


@inner
def read_block(text, starts, first_pieces, ends, cursor, longest, adjacent, slots, mask, block):
    """Fills `block` with the next pieces of `split.Texts` (and ends of texts), and returns their
    number.

    `cursor` is (text, piece, address) and is advanced. A piece longer than `longest` gets no key.
    If `adjacent` is not empty, pieces of more than 15 bytes are cut between characters whose
    bytes are adjacent in no token.
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
                slot = start_slot(slots, mask, key0, key1)
            else:
                if len(adjacent):
                    length = 1
                    while at + length < end:
                        byte = load8(at + length)
                        if byte ^ 0x80 >= 64 and not adjacent[load8(at + length - 1) << 8 | byte]:
                            break
                        length += 1
                    piece -= at + length < end  # the rest of the piece follows
                key0, key1, slot = long_key(slots, mask, at, length, longest)
            prefetch(slot)
            block[ADDRESS, n], block[LENGTH, n] = at, length
            block[KEY0, n], block[KEY1, n], block[START_SLOT, n] = key0, key1, slot
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


@inner
def long_key(slots, mask, at, length, longest):
    """Returns the keys of a piece of any length and the address of the slot where the search
    starts; keys of 0 for a piece longer than `longest`.
    """
    if length <= SHORT:
        key0, key1 = load64(at) & _LOW[length], load64(at + 8) & _HIGH[length] | length << 56
        return key0, key1, start_slot(slots, mask, key0, key1)
    if length > longest:
        return np.int64(0), np.int64(0), slots
    key0 = length
    for offset in range(0, length - 7, 8):
        key0 = (key0 ^ load64(at + offset)) * _MULTIPLY
        key0 ^= key0 >> 32
    rest = load64(at + (length & ~7)) & _LOW[length & 7]
    key0 = (key0 ^ rest) * _MIX
    return key0, rest, start_slot(slots, mask, key0, np.int64(0))


@inner
def start_slot(slots, mask, key0, key1):
    """Returns the address of the slot where the search for a piece starts. Pass `key1` = 0 for a
    long piece.
    """
    key = key0 * _MULTIPLY ^ key1 * _MIX
    return slots + ((key ^ key >> 29) * _MULTIPLY >> 32 & mask) * SLOT


@inner
def find_short(slots, mask, key0, key1, slot):
    """Returns the address of the slot of a piece of 1 to 15 bytes, searched from `slot`. A new
    piece is added with values of 0.
    """
    while True:
        slot_key1 = load64(slot + 8)
        if slot_key1 == key1 and load64(slot) == key0:
            return slot
        if slot_key1 == 0:
            store64(slot, key0)
            store64(slot + 8, key1)
            return slot
        slot = slots + (slot - slots + SLOT & mask * SLOT)


@inner
def find_long(slots, mask, key0, rest, slot, at, length, arena, used):
    """Like `find_short`, for a longer piece. A new piece is copied into the arena, which must have
    room.
    """
    while True:
        slot_key1 = load64(slot + 8)
        if slot_key1 < 0 and load64(slot) == key0:
            record = arena + (-1 - slot_key1)
            if load64(record) == length:
                same = load64(record + 8 + (length & ~7)) == rest
                for offset in range(0, length - 7, 8):
                    same &= load64(record + 8 + offset) == load64(at + offset)
                if same:
                    return slot
        if slot_key1 == 0:
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


@inner
def record_size(length):
    """Returns the number of bytes of a piece's record in the arena."""
    return 16 + (length & ~7)
