"""The KV cache of one layer: a slot for each sequence.

Each slot reserves `capacity` positions, but memory is taken page by page as a sequence grows:
nothing is copied at a growth, a slot that is not used costs nothing, and `free` gives pages back to
the operating system. Position p is stored at p mod capacity: a layer with a sliding window needs no
more positions than the window has.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.generate.vectors import padded

Array = npt.NDArray[Any]


class SlotCache:
    """Keys and values: (slots, key-value heads, capacity, head width padded with zeros)."""

    def __init__(self, n_slots: int, n_heads: int, capacity: int, width: int, number: Any) -> None:
        self.G, self.capacity, self.width = n_heads, capacity, width
        shape = (n_slots, n_heads, capacity, padded(width))
        self.keys, self._key_pages = _lazy_zeros(shape, number)
        self.values, self._value_pages = _lazy_zeros(shape, number)

    def fill(self, slot: int, keys: Array, values: Array) -> None:
        """Stores a sequence's first T positions. keys, values: (G, T, K)."""
        T = keys.shape[1]
        kept = np.arange(max(0, T - self.capacity), T)
        for store, new in ((self.keys, keys), (self.values, values)):
            store[slot, :, kept % self.capacity, : self.width] = new[:, kept].swapaxes(0, 1)

    def copy(self, source: int, target: int, n: int) -> None:
        """Copies the first n positions of a slot to another one."""
        n = min(n, self.capacity)
        for store in (self.keys, self.values):
            store[target, :, :n] = store[source, :, :n]

    def free(self, slot: int, n: int) -> None:
        """Gives the memory of a slot that holds n positions back."""
        size = self.keys[slot].nbytes
        for pages in (self._key_pages, self._value_pages):
            if pages is None or n * size < 2 * mmap.PAGESIZE * self.capacity:
                continue
            start = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
            if end > start:
                pages.madvise(mmap.MADV_DONTNEED, start, end - start)


def _lazy_zeros(shape: tuple[int, ...], number: Any) -> tuple[Array, mmap.mmap | None]:
    """Zeros whose pages are allocated when they are written; and the mapping, where it can be given
    back in parts.
    """
    n_bytes = math.prod(shape) * np.dtype(number).itemsize
    if not hasattr(mmap, "MADV_DONTNEED") or not n_bytes:
        return np.zeros(shape, number), None
    pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, number).reshape(shape), pages
