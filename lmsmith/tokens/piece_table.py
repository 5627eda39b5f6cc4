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
looked up in blocks of `BLOCK`: first compute all keys and prefetch their slots, then compare. A
block is a flat array with an entry of four numbers per piece:

    key0, key1, the address of the slot where the search starts, the address of the piece

All functions here are called from compiled code. The callers define the meaning of the values.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from lmsmith.tokens.compiled import (
    HIGH_BITS,
    address,
    inner,
    load8,
    load32,
    load64,
    prefetch,
    store64,
)

_inlined = partial(inner, forceinline=True)  # parts of functions that run for each piece

SLOT = 32  # bytes
VALUE0, VALUE1 = 16, 24  # offsets in a slot
SHORT = 15  # bytes
BLOCK = 256  # pieces
ENTRY = 32  # bytes of an entry of a block
KEY0, KEY1, START_SLOT, ADDRESS = 0, 8, 16, 24  # offsets in an entry
# Instead of key1, which is positive for pieces of up to 15 bytes: -length of a longer piece, or
END_OF_TEXT = -(1 << 62)

CHARACTER = 16 << 56  # as key1: one character of three bytes, found without a search

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
def read_block(
    text, starts, first_pieces, ends, cursor, longest, adjacent, chars, slots, mask, block
):
    """Fills `block` with the next pieces of `split.Texts` (and ends of texts), and returns the
    address after its last entry.

    `cursor` is (text, piece, address) and is advanced. A piece longer than `longest` gets no slot.
    If `adjacent` is not empty, pieces of more than 15 bytes are cut between characters whose
    bytes are adjacent in no token, but not those of ASCII, which repeat. A part that is one
    character of three bytes gets the key `CHARACTER` and its place among `chars`.
    """
    i, at, end_at = cursor[0], cursor[2], address(ends) + 4 * cursor[1]
    entry, full = address(block), address(block) + ENTRY * BLOCK
    while entry < full and i < len(starts):
        last = address(ends) + 4 * first_pieces[i + 1]
        while entry < full and end_at < last:
            stop = min(last, end_at + (full - entry >> 3))
            while end_at < stop:
                length = text + load32(end_at) - at
                if length > SHORT:
                    break
                key0, key1 = short_key(at, length)
                slot = start_slot(slots, mask, key0, key1)
                prefetch(slot)
                _put_entry(entry, key0, key1, slot, at)
                entry += ENTRY
                end_at += 4
                at += length
            if end_at < stop:
                end = text + load32(end_at)
                entry, at = _read_long(entry, full, at, end, longest, adjacent, chars, slots, mask)
                end_at += 4 * (at == end)
        if entry < full and end_at == last:
            store64(entry + KEY1, END_OF_TEXT)
            entry += ENTRY
            i += 1
            if i < len(starts):
                at = text + starts[i]
    cursor[0], cursor[1], cursor[2] = i, end_at - address(ends) >> 2, at
    return entry


@inner
def _read_long(entry, full, at, end, longest, adjacent, chars, slots, mask):
    """Adds entries for the parts of a piece of more than 15 bytes until the block is full. Returns
    the address after the last entry and the address of the rest of the piece.
    """
    is_ascii = load64(at) & HIGH_BITS == 0 and load8(end - 1) < 128  # most likely all of it
    if len(adjacent) == 0 or (is_ascii and end - at <= longest):
        key0, slot = long_key(slots, mask, at, end - at, longest)
        prefetch(slot)
        _put_entry(entry, key0, at - end, slot, at)
        return entry + ENTRY, end
    pairs = address(adjacent)
    while entry < full and at < end:
        four = load32(at)
        next_at = at + 3
        if four & 0xC0C0F0 == 0x8080E0 and (
            next_at == end
            or (
                load8(next_at) ^ 0x80 >= 64
                and not load8(pairs + (load8(at + 2) << 8 | load8(next_at)))
            )
        ):
            code = (four & 0x0F) << 12 | (four & 0x3F00) >> 2 | (four & 0x3F0000) >> 16
            slot = chars + (code << 4)
            prefetch(slot)
            _put_entry(entry, np.int64(0), CHARACTER, slot - VALUE0, at)
        else:
            next_at = at + 1
            while next_at < end:
                byte = load8(next_at)
                if byte ^ 0x80 >= 64 and not load8(pairs + (load8(next_at - 1) << 8 | byte)):
                    break
                next_at += 1
            length = next_at - at
            if length <= SHORT:
                key0, key1 = short_key(at, length)
                slot = start_slot(slots, mask, key0, key1)
            else:
                key0, slot = long_key(slots, mask, at, length, longest)
                key1 = -length
            prefetch(slot)
            _put_entry(entry, key0, key1, slot, at)
        entry += ENTRY
        at = next_at
    return entry, at


@_inlined
def _put_entry(entry, key0, key1, slot, at):
    store64(entry + KEY0, key0)
    store64(entry + KEY1, key1)
    store64(entry + START_SLOT, slot)
    store64(entry + ADDRESS, at)


@_inlined
def short_key(at, length):
    """Returns the two keys of a piece of up to 15 bytes."""
    k = np.uint64(length)
    return load64(at) & _LOW[k], load64(at + 8) & _HIGH[k] | length << 56


@inner
def long_key(slots, mask, at, length, longest):
    """Returns key0 of a piece of more than 15 bytes and the address of the slot where the search
    starts; 0 and any slot for a piece longer than `longest`.
    """
    if length > longest:
        return np.int64(0), slots
    key0 = length
    for offset in range(0, length - 7, 8):
        key0 = (key0 ^ load64(at + offset)) * _MULTIPLY
        key0 ^= key0 >> 32
    key0 = (key0 ^ _rest(at, length)) * _MIX
    return key0, start_slot(slots, mask, key0, np.int64(0))


@_inlined
def _rest(at, length):
    """Returns the last length % 8 bytes of a piece."""
    return load64(at + (length & ~7)) & _LOW[length & 7]


@_inlined
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
def exchange(slot, home):
    """Exchanges the contents of a slot and of the one where the search for its piece started, and
    returns the latter.

    Allowed because all slots from one to the other are taken, so that a search for the other piece
    continues to where it is then.
    """
    for offset in range(0, SLOT, 8):
        here, there = load64(slot + offset), load64(home + offset)
        store64(slot + offset, there)
        store64(home + offset, here)
    return home


@inner
def find_long(slots, mask, key0, slot, at, length, arena, used):
    """Like `find_short`, for a longer piece. A new piece is copied into the arena, which must have
    room.
    """
    rest = _rest(at, length)
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
