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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.tokens import ahead
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.compiled import inner, kernel
from lmsmith.tokens.pair_counts import (
    PAIRS,
    POSITIONS,
    Pairs,
    Tokens,
    add_pair,
    add_position,
    fill_slots,
    find_pair,
    pop_most_frequent,
    push,
)
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

    The merges replace the bytes in `counts`, which saves a copy. Raises TokenizerError if they have
    been replaced before.
    """
    if len(counts.symbols) and counts.symbols.max() > 255:
        raise TokenizerError(
            "merges have been learned from these counts before, which replaced their bytes: count "
            "the texts again, with a new PieceCounter."
        )
    n_merges = min(n_merges, len(counts.symbols))  # each merge removes at least one symbol
    order = np.arange(256 + n_merges, dtype=np.int64)
    if ties == "huggingface":
        order[list(gpt2_byte_order())] = np.arange(256)
    merges = np.empty((n_merges, 2), dtype=np.int32)
    # The number of merges learned so far; 1 requests a stop; the pair to merge next, if known.
    state = np.array([0, 0, -1], dtype=np.int64)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _learn_all(counts, order, ties == "bytes", merges, state)
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


def _learn_all(
    text: PieceCounts,
    order: npt.NDArray[np.int64],
    by_bytes: bool,
    merges: npt.NDArray[np.int32],
    state: npt.NDArray[np.int64],
) -> None:
    """Runs the compiled parts, and makes room where they need more."""
    tokens, pairs = Tokens.of_bytes(order, by_bytes), Pairs.none(len(text.symbols))
    changes = _Changes.none(len(order))
    _add_byte_pairs(text, pairs, tokens, np.zeros((2, 65536), dtype=np.int64))
    needed = np.zeros(4, dtype=np.int64)
    while not _learn(text, tokens, pairs, changes, merges, state, needed):
        n_bytes, n_pairs, n_positions, n_events = map(int, needed)
        tokens = tokens.with_room(n_bytes)
        pairs = pairs.with_room(n_pairs, n_positions)
        changes = changes.with_room(n_events)


class _Changes(NamedTuple):
    """What a merge changes, by side of the new token (0: left, 1: right) and neighbour there.

    `counts`: occurrences in the text. `ns`: positions. `touched[side, :n_touched[side]]`: the
    neighbours. `events[:n_events[0]]`: each occurrence as (2 * neighbour + side, position of the
    new pair).
    """

    counts: npt.NDArray[np.int64]
    ns: npt.NDArray[np.int64]
    touched: npt.NDArray[np.int32]
    n_touched: npt.NDArray[np.int64]
    events: npt.NDArray[np.int32]
    n_events: npt.NDArray[np.int64]

    @classmethod
    def none(cls, n_ids: int) -> _Changes:
        counts, ns, touched = (np.zeros((2, n_ids), dtype=np.int64) for _ in range(3))
        no_events = np.empty((1024, 2), dtype=np.int32)
        n_touched, n_events = np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64)
        return cls(counts, ns, touched.astype(np.int32), n_touched, no_events, n_events)

    def with_room(self, n_events: int) -> _Changes:
        if n_events <= len(self.events):
            return self
        return self._replace(events=np.empty((2 * n_events, 2), dtype=np.int32))


# ---- compiled ------------------------------------------------------------------------------------

_GONE = -2  # marks the former first byte of a token that is now inside another


@kernel
def _add_byte_pairs(text, pairs, tokens, of_bytes):
    """Adds the pairs of bytes in the text (`PieceCounts`). `of_bytes`: (2, 65536) zeros."""
    counts, ns = of_bytes[0], of_bytes[1]
    for at in range(len(text.symbols) - 1):
        both = _byte_pair(text, at)
        if both >= 0:
            counts[both] += text.counts[text.piece_of[at]]
            ns[both] += 1
    numbers = ns  # of the pairs, in the place of the number of their positions
    for both in range(65536):
        if ns[both]:
            numbers[both] = add_pair(pairs, both >> 8, both & 255, counts[both], ns[both])
    for at in range(len(text.symbols) - 1):
        both = _byte_pair(text, at)
        if both >= 0:
            add_position(pairs, numbers[both], at)
    for pair in range(pairs.used[PAIRS]):
        push(pairs, tokens, pair)


@inner
def _byte_pair(text, at):
    """Returns 256 * left + right for the bytes at a position; less than 0 at the end of a piece."""
    left, right = np.int64(text.symbols[at]), np.int64(text.symbols[at + 1])
    return left << 8 | right


@kernel
def _learn(text, tokens, pairs, changes, merges, state, needed):
    """Learns merges into `merges`. Returns True when it is full, no pairs are left or `state[1]` is
    1; False if the next merge needs more room: bytes of tokens, pairs, positions and events, then
    in `needed`.

    `text`: `PieceCounts`, changed in place. A token of several bytes has its id at its first and
    its last byte, so that both neighbours of a token can be read without links.
    """
    fill_slots(pairs)
    while state[0] < len(merges) and state[1] == 0:
        top = state[2] if state[2] >= 0 else pop_most_frequent(pairs, tokens)
        if top < 0:
            break
        new = 256 + state[0]
        if not _has_room(tokens, pairs, changes, top, new, needed):
            state[2] = top
            return False
        state[2] = -1
        merges[state[0], 0], merges[state[0], 1] = pairs.lefts[top], pairs.rights[top]
        state[0] += 1
        _add_token(tokens, pairs, top, new)
        _replace(text, tokens, pairs, top, new, changes)
        n_before = pairs.used[PAIRS]
        _add_new_pairs(pairs, new, changes)
        _decrease_replaced(pairs, top, changes)
        for pair in range(n_before, pairs.used[PAIRS]):
            if pairs.counts[pair] > 0:
                push(pairs, tokens, pair)
    return True


ahead.part("learn", 2.3, _add_byte_pairs, _learn)


@inner
def _has_room(tokens, pairs, changes, pair, new, needed):
    """Returns whether `needed`, the room to merge the pair into the token `new`, is available."""
    n = 2 * np.int64(pairs.ns[pair])  # at most: one new pair on each side of each occurrence
    length = tokens.lengths[pairs.lefts[pair]] + tokens.lengths[pairs.rights[pair]]
    needed[0] = tokens.starts[new] + length
    needed[1] = pairs.used[PAIRS] + min(n, 2 * new + 2)
    needed[2] = pairs.used[POSITIONS] + n
    needed[3] = n
    return (
        needed[0] <= len(tokens.bytes)
        and needed[1] <= len(pairs.lefts)
        and needed[2] <= len(pairs.positions)
        and needed[3] <= len(changes.events)
    )


@inner
def _add_token(tokens, pairs, pair, new):
    """Adds the token `new`, which has the bytes of the pair."""
    left, right, end = pairs.lefts[pair], pairs.rights[pair], tokens.starts[new]
    for part in (left, right):
        for k in range(tokens.lengths[part]):
            tokens.bytes[end] = tokens.bytes[tokens.starts[part] + k]
            end += 1
    tokens.lengths[new], tokens.starts[new + 1] = end - tokens.starts[new], end


@inner
def _replace(text, tokens, pairs, pair, new, changes):
    """Replaces the pair by the token `new` in the text, and records the changes."""
    symbols, positions, lengths = text.symbols, pairs.positions, tokens.lengths
    counts, ns, touched, n_touched, events, _ = changes
    left, right = np.int64(pairs.lefts[pair]), np.int64(pairs.rights[pair])
    first, n_events = pairs.firsts[pair], 0
    for k in range(first, first + pairs.ns[pair]):
        position = np.int64(positions[k])
        middle = position + lengths[left]
        if symbols[position] != left or symbols[middle] != right:
            continue
        after = middle + lengths[right]
        count = text.counts[text.piece_of[position]]
        for side in range(2):
            neighbour = np.int64(symbols[after if side else position - 1])
            if neighbour >= 0:
                if ns[side, neighbour] == 0:
                    touched[side, n_touched[side]] = neighbour
                    n_touched[side] += 1
                counts[side, neighbour] += count
                ns[side, neighbour] += 1
                events[n_events, 0] = neighbour << 1 | side
                events[n_events, 1] = position if side else position - lengths[neighbour]
                n_events += 1
        symbols[middle] = _GONE
        symbols[position] = new
        symbols[after - 1] = new
    pairs.counts[pair] = 0
    changes.n_events[0] = n_events


@inner
def _add_new_pairs(pairs, new, changes):
    """Adds the pairs of the token `new` and its neighbours, and their positions."""
    counts, ns, touched, n_touched, events, n_events = changes
    numbers = ns  # of the pairs, in the place of the number of their positions
    for side in range(2):
        for k in range(n_touched[side]):
            neighbour = np.int64(touched[side, k])
            left, right = (new, neighbour) if side else (neighbour, new)
            numbers[side, neighbour] = add_pair(
                pairs, left, right, counts[side, neighbour], ns[side, neighbour]
            )
    for k in range(n_events[0]):
        both, position = np.int64(events[k, 0]), np.int64(events[k, 1])
        add_position(pairs, numbers[both & 1, both >> 1], position)


@inner
def _decrease_replaced(pairs, merged, changes):
    """Decreases the counts of the pairs that were beside the merged one, and clears `changes`."""
    counts, ns, touched, n_touched, _, _ = changes
    left, right = np.int64(pairs.lefts[merged]), np.int64(pairs.rights[merged])
    for side in range(2):
        for k in range(n_touched[side]):
            neighbour = np.int64(touched[side, k])
            before, after = (right, neighbour) if side else (neighbour, left)
            pair = find_pair(pairs, before, after)
            if pair != merged:
                pairs.counts[pair] -= counts[side, neighbour]
            counts[side, neighbour] = ns[side, neighbour] = 0
        n_touched[side] = 0
