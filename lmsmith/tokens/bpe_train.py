"""Learns the merges of byte-pair encoding from text.

    tokenizer = learn_bpe(["some text", "more text"], vocab_size=10_000)

1. Count (`piece_counts.py`): split the text into pieces and count equal pieces. From here on,
   memory and time grow with the number of distinct pieces, not with the length of the text.
2. Merge: replace the most frequent pair of adjacent tokens by a new token, everywhere, and repeat
   (Gage 1994; Sennrich et al. 2016, arXiv:1508.07909). A merge changes only the counts of pairs
   next to it, so pairs are not recounted.

Ties between equally frequent pairs (`ties`): "bytes" merges the lexicographically greatest pair of
byte strings; "ids" the smallest pair of ids, as in rustbpe; "huggingface" the same with bytes
numbered as in GPT-2, as in Hugging Face tokenizers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from lmsmith.errors import TokenizerError
from lmsmith.tokens import ahead
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.compiled import inner, kernel
from lmsmith.tokens.piece_counts import PieceCounter, PieceCounts, Text
from lmsmith.tokens.printable import gpt2_byte_order
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.split import Pattern, pattern_of
from lmsmith.tokens.tokenizer import END_OF_TEXT

log = logging.getLogger(__name__)

Ties = Literal["bytes", "ids", "huggingface"]
Progress = Callable[
    [str, int, int], None
]  # phase ("count": bytes, "merge": merges), done, total (0: unknown)


def learn_bpe(
    texts: Iterable[Text],
    vocab_size: int,
    *,
    pattern: Pattern | str = "gpt4",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    ties: Ties = "bytes",
    threads: int | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> BpeTokenizer:
    """Learns a BPE tokenizer from `texts`. Ids 0 to 255 are the bytes, then come the merges in
    order, then the special tokens.

    A text is a str, bytes, or an iterable of bytes, cut anywhere. Special tokens split the texts;
    nothing is merged across them. If nothing is left to merge, the vocabulary is smaller than
    `vocab_size`, with a warning. `threads`: None: one per core. `max_memory`: limit in bytes; the
    rarest pieces are dropped to stay within it, with a warning. The result does not depend on
    `threads`.

    Raises TokenizerError for a vocabulary without room for the bytes and special tokens, for empty
    or duplicate special tokens, and for a `max_memory` that is too small.
    """
    compile_ahead()
    pattern = pattern_of(pattern) if isinstance(pattern, str) else pattern
    n_merges = check_vocabulary(vocab_size, special_tokens)
    counting = None if progress is None else (lambda n_bytes: progress("count", n_bytes, 0))
    counter = PieceCounter(
        pattern, Specials(special_tokens), threads=threads, max_memory=max_memory, progress=counting
    )
    counter.add(texts)
    if counter.n_dropped:
        log.warning(
            "%d rare pieces (%d occurrences in the text) were dropped to stay within %d MB: rare "
            "merges may be missing. Raise --max-memory to keep them",
            counter.n_dropped, counter.n_dropped_occurrences, round((max_memory or 0) / 1e6),
        )  # fmt: skip
    merges = learn_merges(counter.counts(), n_merges, ties, progress)
    if len(merges) < n_merges:
        log.warning(
            "nothing is left to merge after %d merges: the vocabulary has %d entries instead of %d",
            len(merges), 256 + len(merges) + len(special_tokens), vocab_size,
        )  # fmt: skip
    tokens: list[bytes | None] = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        first, second = tokens[left], tokens[right]
        assert first is not None
        assert second is not None
        tokens.append(first + second)
    specials = {special: len(tokens) + k for k, special in enumerate(special_tokens)}
    return BpeTokenizer([*tokens, *[None] * len(specials)], merges, pattern, specials)


def compile_ahead() -> None:
    """Starts to compile what learning and encoding need, in other processes, if it is not on
    disk.
    """
    ahead.begin("split", "count", "learn", later=("cut", "encode"))


def check_vocabulary(vocab_size: int, special_tokens: Sequence[str]) -> int:
    """Returns the number of merges that fit into `vocab_size`. Raises TokenizerError as `learn_bpe`
    does for the vocabulary size and special tokens.
    """
    if "" in special_tokens:
        raise TokenizerError(
            "a special token is empty and would match everywhere in a text. Remove it."
        )
    twice = sorted({special for special in special_tokens if special_tokens.count(special) > 1})
    if twice:
        raise TokenizerError(
            f"the special token {twice[0]!r} is given twice. Remove the duplicate."
        )
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is too small: the 256 bytes and {len(special_tokens)} "
            f"special tokens need {least}, and each merge needs one more. Use a larger one."
        )
    return vocab_size - least


def learn_merges(
    counts: PieceCounts, n_merges: int, ties: Ties = "bytes", progress: Progress | None = None
) -> list[tuple[int, int]]:
    """Learns up to `n_merges` merges: pairs of ids in the order of merging. Pair k (from 0) becomes
    the id 256 + k.
    """
    n_merges = min(n_merges, len(counts.symbols))  # each merge removes at least one symbol
    order = np.arange(256 + n_merges, dtype=np.int64)
    if ties == "huggingface":
        order[list(gpt2_byte_order())] = np.arange(256)
    merges = np.empty((n_merges, 2), dtype=np.int32)
    state = np.zeros(2, dtype=np.int64)  # number of merges learned so far; 1 requests a stop
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _learn(
                counts.symbols,
                counts.piece_of,
                counts.counts,
                order,
                ties == "bytes",
                merges,
                state,
            )
        except BaseException as error:
            failed.append(error)

    # A separate thread, so that this one can report progress and handle Ctrl-C.
    thread = threading.Thread(target=work)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
            if progress:
                progress("merge", int(state[0]), n_merges)
    finally:
        state[1] = 1
        thread.join()
    if failed:
        raise failed[0]
    if progress:
        progress("merge", int(state[0]), n_merges)
    return [(int(left), int(right)) for left, right in merges[: state[0]]]


# ---- compiled ------------------------------------------------------------------------------------

_MULTIPLY = 0x9E3779B97F4A7C15 - 2**64
_GONE = -2  # marks the former first byte of a token that is now inside another


@kernel
def _learn(symbols, piece_of, piece_counts, order, by_bytes, merges, state):
    """Learns merges into `merges` until it is full, no pairs are left, or `state[1]` is 1.

    `symbols`: all pieces, one symbol per byte, with separators before, between and after. A token
    of several bytes has its id at its first and its last byte, so that both neighbours of a token
    can be read without links.

    A pair has a count and a list of the positions where it occurred when it first appeared.
    Positions that have changed since then are skipped. All positions of a pair are found during
    one merge (or at the start), from left to right, so they need no sorting. Counts in the heap
    are upper bounds, because the count of a pair only decreases.
    """
    n_merges = len(merges)
    n_ids = 256 + n_merges
    token_lengths = np.ones(n_ids, dtype=np.int64)
    token_starts = np.zeros(n_ids + 1, dtype=np.int64)
    token_bytes = np.zeros(1 << 16, dtype=np.uint8)
    for byte in range(256):
        token_starts[byte], token_bytes[byte] = byte, byte
    n_token_bytes = 256

    # Pairs, by number: left and right id, count, positions[first:first + n].
    capacity = 1 << 16
    lefts, rights = np.empty(capacity, dtype=np.int32), np.empty(capacity, dtype=np.int32)
    counts, firsts, ns = (
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int32),
    )
    heap, bounds = np.empty(capacity, dtype=np.int32), np.empty(capacity, dtype=np.int64)
    n_pairs, n_heap = 0, np.int64(0)  # a constant would make Numba compile _push twice
    index = np.full(4 * capacity, -1, dtype=np.int32)
    positions, n_positions = np.empty(len(symbols), dtype=np.int32), 0

    # Count the pairs of bytes.
    byte_counts, byte_ns = np.zeros(65536, dtype=np.int64), np.zeros(65536, dtype=np.int64)
    for at in range(len(symbols) - 1):
        if symbols[at] >= 0 and symbols[at + 1] >= 0:
            byte_counts[symbols[at] << 8 | symbols[at + 1]] += piece_counts[piece_of[at]]
            byte_ns[symbols[at] << 8 | symbols[at + 1]] += 1
    for pair in range(65536):
        if byte_ns[pair]:
            lefts[n_pairs], rights[n_pairs], counts[n_pairs] = (
                pair >> 8,
                pair & 255,
                byte_counts[pair],
            )
            firsts[n_pairs], ns[n_pairs] = n_positions, 0
            n_positions += byte_ns[pair]
            byte_ns[pair] = n_pairs
            index[_empty_slot(index, pair >> 8, pair & 255)] = n_pairs
            n_pairs += 1
    for at in range(len(symbols) - 1):
        if symbols[at] >= 0 and symbols[at + 1] >= 0:
            pair = byte_ns[symbols[at] << 8 | symbols[at + 1]]
            positions[firsts[pair] + ns[pair]] = at
            ns[pair] += 1
    ties = (lefts, rights, order, by_bytes, token_bytes, token_starts, token_lengths)
    for pair in range(n_pairs):
        n_heap = _push(heap, bounds, n_heap, pair, counts[pair], ties)

    # Changes by a merge, per neighbour on the left (0) and right (1): change of the count, number
    # of positions.
    changes, n_changes = np.zeros((2, n_ids), dtype=np.int64), np.zeros((2, n_ids), dtype=np.int64)
    touched, n_touched = np.empty((2, n_ids), dtype=np.int32), np.zeros(2, dtype=np.int64)
    events = np.empty((1024, 2), dtype=np.int32)  # neighbour << 1 | side, position

    merged = 0
    while merged < n_merges and n_heap and state[1] == 0:
        top = np.int64(heap[0])
        bound, bounds_top = bounds[0], counts[top]
        n_heap = _pop(heap, bounds, n_heap, ties)
        if bound != bounds_top:
            if bounds_top > 0:
                n_heap = _push(heap, bounds, n_heap, top, bounds_top, ties)
            continue
        left, right = np.int64(lefts[top]), np.int64(rights[top])
        new = 256 + merged
        length, right_length = token_lengths[left], token_lengths[right]
        merges[merged, 0], merges[merged, 1] = left, right
        merged += 1
        state[0] = merged
        token_lengths[new] = length + right_length
        token_starts[new] = n_token_bytes
        if n_token_bytes + length + right_length > len(token_bytes):
            token_bytes = _longer(token_bytes, 2 * len(token_bytes) + length + right_length)
        for k in range(length):
            token_bytes[n_token_bytes + k] = token_bytes[token_starts[left] + k]
        for k in range(right_length):
            token_bytes[n_token_bytes + length + k] = token_bytes[token_starts[right] + k]
        n_token_bytes += length + right_length
        counts[top] = 0

        # Replace the pair in the symbols.
        if len(events) < 2 * ns[top]:
            events = np.empty((4 * ns[top], 2), dtype=np.int32)
        n_events = 0
        for k in range(firsts[top], firsts[top] + ns[top]):
            position = np.int64(positions[k])
            middle = position + length
            if symbols[position] != left or symbols[middle] != right:
                continue
            after = middle + right_length
            count = piece_counts[piece_of[position]]
            for side in range(2):
                neighbour = np.int64(symbols[after if side else position - 1])
                if neighbour >= 0:
                    if n_changes[side, neighbour] == 0:
                        touched[side, n_touched[side]] = neighbour
                        n_touched[side] += 1
                    changes[side, neighbour] += count
                    n_changes[side, neighbour] += 1
                    events[n_events, 0] = neighbour << 1 | side
                    events[n_events, 1] = position if side else position - token_lengths[neighbour]
                    n_events += 1
            symbols[middle] = _GONE
            symbols[position] = new
            symbols[after - 1] = new

        # Add the new pairs with their positions.
        if n_positions + n_events > len(positions):
            positions = _longer(positions, 2 * len(positions) + n_events)
        first_new = n_pairs
        for side in range(2):
            for k in range(n_touched[side]):
                neighbour = np.int64(touched[side, k])
                if n_pairs == capacity:
                    capacity *= 2
                    lefts, rights, ns = (
                        _longer(lefts, capacity),
                        _longer(rights, capacity),
                        _longer(ns, capacity),
                    )
                    counts, firsts = _longer(counts, capacity), _longer(firsts, capacity)
                    heap, bounds = _longer(heap, capacity), _longer(bounds, capacity)
                    index = np.full(4 * capacity, -1, dtype=np.int32)
                    for pair in range(n_pairs):
                        index[_empty_slot(index, lefts[pair], rights[pair])] = pair
                lefts[n_pairs], rights[n_pairs] = (new, neighbour) if side else (neighbour, new)
                counts[n_pairs] = changes[side, neighbour]
                firsts[n_pairs], ns[n_pairs] = n_positions, 0
                n_positions += n_changes[side, neighbour]
                n_changes[side, neighbour] = n_pairs
                index[_empty_slot(index, lefts[n_pairs], rights[n_pairs])] = n_pairs
                n_pairs += 1
        for k in range(n_events):
            pair = n_changes[events[k, 0] & 1, events[k, 0] >> 1]
            positions[firsts[pair] + ns[pair]] = events[k, 1]
            ns[pair] += 1

        # Decrease the counts of the pairs that they replace.
        for side in range(2):
            for k in range(n_touched[side]):
                neighbour = np.int64(touched[side, k])
                pair = (
                    _find_pair(index, lefts, rights, right, neighbour)
                    if side
                    else _find_pair(index, lefts, rights, neighbour, left)
                )
                if pair != top:
                    counts[pair] -= changes[side, neighbour]
                changes[side, neighbour] = 0
                n_changes[side, neighbour] = 0
            n_touched[side] = 0
        ties = (
            lefts,
            rights,
            order,
            by_bytes,
            token_bytes,
            token_starts,
            token_lengths,
        )  # the arrays may have been reallocated
        for pair in range(first_new, n_pairs):
            if counts[pair] > 0:
                n_heap = _push(heap, bounds, n_heap, pair, counts[pair], ties)


ahead.part("learn", 3.5, _learn)


@inner
def _longer(array, length):
    """Returns a copy of `array` with `length` elements; the added ones are uninitialized."""
    longer = np.empty(length, array.dtype)
    for k in range(len(array)):
        longer[k] = array[k]
    return longer


@inner
def _empty_slot(index, left, right):
    slot = (np.int64(left) << 32 | np.int64(right)) * _MULTIPLY >> 32 & (len(index) - 1)
    while index[slot] >= 0:
        slot = (slot + 1) & (len(index) - 1)
    return slot


@inner
def _find_pair(index, lefts, rights, left, right):
    slot = (np.int64(left) << 32 | np.int64(right)) * _MULTIPLY >> 32 & (len(index) - 1)
    while True:
        pair = index[slot]
        if lefts[pair] == left and rights[pair] == right:
            return np.int64(pair)
        slot = (slot + 1) & (len(index) - 1)


@inner
def _before(a, b, ties):
    """Returns whether pair `a` is merged before the equally frequent pair `b`."""
    lefts, rights, order, by_bytes, token_bytes, token_starts, token_lengths = ties
    if not by_bytes:
        if lefts[a] != lefts[b]:
            return order[lefts[a]] < order[lefts[b]]
        return order[rights[a]] < order[rights[b]]
    one, other = (lefts[a], lefts[b]) if lefts[a] != lefts[b] else (rights[a], rights[b])
    for k in range(min(token_lengths[one], token_lengths[other])):
        difference = np.int64(token_bytes[token_starts[one] + k]) - np.int64(
            token_bytes[token_starts[other] + k]
        )
        if difference:
            return difference > 0
    return token_lengths[one] > token_lengths[other]


@inner
def _push(heap, bounds, n, pair, bound, ties):
    k = n
    while k > 0:
        parent = (k - 1) >> 1
        if bounds[parent] > bound or (
            bounds[parent] == bound and not _before(pair, np.int64(heap[parent]), ties)
        ):
            break
        heap[k], bounds[k] = heap[parent], bounds[parent]
        k = parent
    heap[k], bounds[k] = pair, bound
    return n + 1


@inner
def _pop(heap, bounds, n, ties):
    n -= 1
    pair, bound = np.int64(heap[n]), bounds[n]
    k = 0
    while 2 * k + 1 < n:
        child = 2 * k + 1
        if child + 1 < n and (
            bounds[child + 1] > bounds[child]
            or (
                bounds[child + 1] == bounds[child]
                and _before(np.int64(heap[child + 1]), np.int64(heap[child]), ties)
            )
        ):
            child += 1
        if bounds[child] < bound or (
            bounds[child] == bound and not _before(np.int64(heap[child]), pair, ties)
        ):
            break
        heap[k], bounds[k] = heap[child], bounds[child]
        k = child
    heap[k], bounds[k] = pair, bound
    return n
