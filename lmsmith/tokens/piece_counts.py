"""Counts the pieces of texts, from which byte-pair encoding is learned.

A text is cut into parts of a few megabytes where no piece continues (`split.parts_of`). Threads
count the parts, each into its own table, and the tables are added in the order of the text. The
counts do not depend on the number of threads, even if a memory limit drops the rarest pieces.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.machine.limits import n_cores
from lmsmith.tokens import ahead
from lmsmith.tokens.compiled import address, kernel, load8, load64, store64
from lmsmith.tokens.piece_table import (
    ADDRESS,
    BLOCK,
    END_OF_TEXT,
    ENTRY,
    KEY0,
    KEY1,
    SLOT,
    START_SLOT,
    VALUE0,
    PieceTable,
    find_long,
    find_short,
    read_block,
    start_slot,
)
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.split import NO_SPECIALS, Pattern, Texts, parts_of, parts_of_stream
from lmsmith.tokens.tokenizer import to_utf8

Text = str | bytes | Iterable[bytes]  # Iterable[bytes]: the parts of a long text, cut anywhere

PART = 1 << 23  # bytes of text that one task counts
SEPARATOR = -1
MIN_MEMORY = 1 << 23  # bytes
# Memory of learning per symbol: the symbol, its piece, and up to five positions of pairs.
_SYMBOL_BYTES = 28
_ANY_LENGTH = 1 << 40
_UNCUT = np.empty(0, dtype=np.uint8)


class PieceCounts(NamedTuple):  # which Numba can read
    """Distinct pieces of two or more bytes, and their counts.

    `symbols`: the bytes of all pieces, with a SEPARATOR before, between and after them. `piece_of`:
    the index of the piece of each symbol. `counts`: the count of each piece.
    """

    symbols: npt.NDArray[np.int32]
    piece_of: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]


class PieceCounter:
    """Counts the pieces of texts. Special tokens split the texts and are not counted.

    `max_memory`: limit in bytes for the counts and for learning from them. Above it, the rarest
    half of the pieces is dropped, repeatedly if necessary; `n_dropped` is the number of dropped
    pieces and `n_dropped_occurrences` the number of their occurrences in the text. `progress` is
    called with the number of bytes counted so far.

    Raises TokenizerError for a `max_memory` below `MIN_MEMORY`.
    """

    def __init__(
        self,
        pattern: Pattern,
        specials: Specials = NO_SPECIALS,
        *,
        threads: int | None = None,
        max_memory: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if max_memory is not None and max_memory < MIN_MEMORY:
            raise TokenizerError(
                f"max_memory = {max_memory:,} bytes is too small for learning; expected at least "
                f"{MIN_MEMORY:,}, as in --max-memory 100MB."
            )
        self.n_bytes = 0
        self.n_dropped = 0
        self.n_dropped_occurrences = 0
        self._pattern, self._specials = pattern, specials
        self._threads = threads or n_cores()
        self._max_memory = max_memory
        self._progress = progress
        self._total = PieceTable(1 << 15, 1 << 16)

    def add(self, texts: Iterable[Text]) -> None:
        waiting: deque[Future[tuple[int, PieceTable]]] = deque()
        with ThreadPoolExecutor(self._threads) as executor:
            for group in self._groups(texts):
                waiting.append(executor.submit(self._count_group, group))
                if len(waiting) > self._threads:  # limits the number of groups in memory
                    self._fold(*waiting.popleft().result())
            while waiting:
                self._fold(*waiting.popleft().result())

    def counts(self) -> PieceCounts:
        """Returns the counts and empties the counter."""
        rows, arena = self._total.rows, self._total.arena
        self._total = PieceTable(1 << 15, 1 << 16)
        rows = rows[rows[:, 1] != 0]
        lengths = _lengths(rows, arena)
        rows, lengths = rows[lengths > 1], lengths[lengths > 1]
        starts = 1 + np.cumsum(lengths + 1) - (lengths + 1)
        symbols = np.full(int((lengths + 1).sum()) + 1, SEPARATOR, dtype=np.int32)
        piece_of = np.zeros(len(symbols), dtype=np.int32)
        _lay_out(rows.copy(), arena, lengths, starts, symbols, piece_of)
        return PieceCounts(symbols, piece_of, rows[:, 2].copy())

    def _groups(self, texts: Iterable[Text]) -> Iterator[list[bytes | memoryview]]:
        """Groups of parts of the texts. Each group has at most `PART` bytes, or one part."""
        group: list[bytes | memoryview] = []
        size = 0
        for text in texts:
            for part in self._parts(text):
                if group and size + len(part) > PART:
                    yield group
                    group, size = [], 0
                group.append(part)
                size += len(part)
        if group:
            yield group

    def _parts(self, text: Text) -> Iterator[bytes] | Iterator[memoryview]:
        if isinstance(text, str | bytes):
            data = to_utf8(text) if isinstance(text, str) else text
            return parts_of(data, PART, self._pattern, self._specials)
        return parts_of_stream(text, PART // 2, self._pattern, self._specials)

    def _count_group(self, group: list[bytes | memoryview]) -> tuple[int, PieceTable]:
        """Runs on a thread. Returns the number of bytes and the table of their pieces."""
        between = (
            [self._specials.between(bytes(part)) for part in group]
            if self._specials.names
            else [group]
        )
        texts = Texts(list(itertools.chain.from_iterable(between)))
        ends, first_pieces = texts.split(self._pattern)
        # A record in the arena has at most twice as many bytes as its piece.
        table = PieceTable(1 << 16, 2 * len(texts.padded))
        cursor = np.zeros(4, dtype=np.int64)
        while not _count(
            texts.padded,
            texts.starts,
            first_pieces,
            ends,
            cursor,
            table.slots,
            table.limit,
            table.arena,
            table.used,
        ):
            table = _grown(table, 4 * table.limit, len(table.arena))
        return sum(map(len, group)), table

    def _fold(self, n_bytes: int, table: PieceTable) -> None:
        limit, n_arena = (self._total.used + table.used).tolist()
        if limit > self._total.limit or n_arena > len(self._total.arena):
            self._total = _grown(
                self._total,
                max(2 * limit, self._total.limit),
                max(2 * n_arena, len(self._total.arena)),
            )
        _add(table.slots, table.arena, 1, self._total.slots, self._total.arena, self._total.used)
        self.n_bytes += n_bytes
        while self._max_memory is not None and self._memory() > self._max_memory:
            self._drop()
        if self._progress:
            self._progress(self.n_bytes)

    def _memory(self) -> int:
        """Bytes of the table, or of learning from it if that is more."""
        rows = self._total.rows
        lengths = _lengths(rows[rows[:, 1] != 0], self._total.arena)
        table = self._total.slots.nbytes + int(self._total.used[1])
        return max(table, _SYMBOL_BYTES * int((lengths + 1).sum()))

    def _drop(self) -> None:
        rows = self._total.rows
        counts = rows[rows[:, 1] != 0, 2]
        at_least = int(np.median(counts)) + 1
        dropped = counts[counts < at_least]
        self.n_dropped += len(dropped)
        self.n_dropped_occurrences += int(dropped.sum())
        self._total = _grown(
            self._total, 2 * (len(counts) - len(dropped)), int(self._total.used[1]), at_least
        )


def _grown(table: PieceTable, limit: int, n_arena: int, at_least: int = 1) -> PieceTable:
    """Returns a copy of `table` with another size, without pieces whose count is below
    `at_least`.
    """
    grown = PieceTable(limit, n_arena)
    _add(table.slots, table.arena, at_least, grown.slots, grown.arena, grown.used)
    return grown


def _lengths(rows: npt.NDArray[np.int64], arena: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Returns the length in bytes of the piece in each row (a slot of a PieceTable)."""
    lengths = rows[:, 1] >> 56
    is_long = rows[:, 1] < 0
    lengths[is_long] = arena[: len(arena) & ~7].view(np.int64)[(-1 - rows[is_long, 1]) >> 3]
    return lengths


@kernel
def _count(padded, starts, first_pieces, ends, cursor, slots, limit, arena, used):
    """Counts pieces from `cursor` on. Returns True when all are counted, False if the table is
    full.
    """
    text, first_slot, mask = address(padded), address(slots), len(slots) * 8 // SLOT - 1
    block = np.empty(BLOCK * ENTRY // 8, dtype=np.int64)
    if len(starts):
        cursor[2] += text if cursor[2] else text + starts[0]
    while cursor[0] < len(starts) and used[0] + BLOCK <= limit:
        stop = read_block(
            text,
            starts,
            first_pieces,
            ends,
            cursor,
            _ANY_LENGTH,
            _UNCUT,
            0,
            first_slot,
            mask,
            block,
        )
        for entry in range(address(block), stop, ENTRY):
            key0, key1 = load64(entry + KEY0), load64(entry + KEY1)
            slot = load64(entry + START_SLOT)
            if key1 > 0:
                slot = find_short(first_slot, mask, key0, key1, slot)
            elif key1 == END_OF_TEXT:
                continue
            else:
                at = load64(entry + ADDRESS)
                slot = find_long(first_slot, mask, key0, slot, at, -key1, address(arena), used)
            count = load64(slot + VALUE0)
            used[0] += count == 0
            store64(slot + VALUE0, count + 1)
    cursor[2] -= text
    return cursor[0] == len(starts)


@kernel
def _add(source, source_arena, at_least, slots, arena, used):
    """Adds the counts of one table that are `at_least` or more to another table, which must have
    room.
    """
    first_slot, mask = address(slots), len(slots) * 8 // SLOT - 1
    for k in range(0, len(source), 4):
        key0, key1, count = source[k], source[k + 1], source[k + 2]
        if key1 == 0 or count < at_least:
            continue
        if key1 > 0:
            slot = find_short(
                first_slot, mask, key0, key1, start_slot(first_slot, mask, key0, key1)
            )
        else:
            record = address(source_arena) + (-1 - key1)
            length = load64(record)
            slot = start_slot(first_slot, mask, key0, 0)
            slot = find_long(first_slot, mask, key0, slot, record + 8, length, address(arena), used)
        before = load64(slot + VALUE0)
        used[0] += before == 0
        store64(slot + VALUE0, before + count)


@kernel
def _lay_out(rows, arena, lengths, starts, symbols, piece_of):
    for k in range(len(rows)):
        short = rows[k, 1] >= 0
        record = address(arena) + (8 if short else 8 - 1 - rows[k, 1])
        for offset in range(lengths[k]):
            if short:
                byte = rows[k, offset >> 3] >> 8 * (offset & 7) & 255
            else:
                byte = load8(record + offset)
            symbols[starts[k] + offset] = byte
            piece_of[starts[k] + offset] = k


ahead.part("count", 1.1, _count, _add, _lay_out)
