"""Byte-level byte-pair encoding (BPE), with the same ids as tiktoken and Hugging Face tokenizers.

    tokenizer = load_tokenizer("gpt2")                            # files.py
    tokenizer.encode("Hello")                                     # array([15496], dtype=uint16)
    # "<|endoftext|>" in the page becomes the special token.
    tokenizer.encode(page, allowed_special={"<|endoftext|>"})
    tokenizer.encode_batch(pages, threads=8)
    for ids in tokenizer.encode_iter(open_file): ...              # a stream, in constant memory

Pre-tokenization splits a text into pieces (`split.py`), and the bytes of each piece are merged
(`merge.py`). Both are compiled and release the GIL, so threads run in parallel. Special tokens
split the text first; of overlapping ones the leftmost matches, then the longest. By default
`encode` treats all of its input as plain text, as every tokenizer of lmsmith does;
`disallowed_special="all"` raises an error for special tokens, as tiktoken does by default.

Lone surrogates become U+FFFD. Bytes that are not UTF-8 are encoded byte by byte and decode to the
same bytes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.machine.limits import n_cores
from lmsmith.tokens import ahead
from lmsmith.tokens.decode import copy_tokens, decode_ids
from lmsmith.tokens.merge import fill_pairs, look_up
from lmsmith.tokens.piece_cache import (
    PieceCache,
    encode_blocks,
    encode_pieces,
    encode_texts,
)
from lmsmith.tokens.printable import from_printable, to_printable
from lmsmith.tokens.specials import AddedToken, AddedTokens, Specials
from lmsmith.tokens.split import PADDING, Pattern, Texts, parts_of, parts_of_stream, pattern_of
from lmsmith.tokens.tokenizer import (
    Ids,
    IdsLike,
    Tokenizer,
    count_lone_surrogates,
    end_of_text_id,
    ids_dtype,
    to_utf8,
)
from lmsmith.tokens.vocabulary import Vocabulary

Names = Collection[str] | Literal["all"]

UNIT = 1 << 19  # bytes of text that a thread encodes at once: text and ids fit the CPU caches
CACHED_PIECES = 150_000  # per thread: a table of 8 MB, plus 5 MB for long pieces and their ids


class BpeTokenizer(Tokenizer):
    """Byte-level byte-pair encoding.

    `tokens`: the bytes of each id, including all 256 single bytes; None for special and unused ids.
    `merges`: pairs of ids, highest priority first; a pair merges into the token with the bytes of
    both. None, as in tiktoken: two tokens merge if their concatenation is a token, lowest id
    first, and a piece that is a token is not merged (`whole_tokens`). `pattern`: the
    pre-tokenization pattern. `special_tokens`: text -> id; merging never produces them.
    `whole_tokens`: a piece that is a token becomes that token without merging; None: only if
    `merges` is None. `added`: tokens that are matched in every text, and special tokens that are
    matched in a second pass; see `AddedToken`. `end_of_text`: the special token between documents;
    None: the first of `END_OF_TEXT_NAMES` that is a special token.

    Raises TokenizerError for a vocabulary that lacks bytes, has duplicates, or does not fit the
    merges.
    """

    kind = "bpe"

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        merges: Sequence[tuple[int, int]] | None,
        pattern: Pattern | str,
        special_tokens: Mapping[str, int] | None = None,
        whole_tokens: bool | None = None,
        added: Sequence[AddedToken] = (),
        end_of_text: str | None = None,
    ) -> None:
        self.tokens = tuple(tokens)
        self.merges = None if merges is None else tuple(merges)
        self.pattern = pattern_of(pattern) if isinstance(pattern, str) else pattern
        self.special_tokens = dict(special_tokens or {})
        self.added = tuple(added)
        self.named_ids = self.special_tokens | {token.content: token.id for token in self.added}
        self.whole_tokens = merges is None if whole_tokens is None else whole_tokens
        self.vocabulary = Vocabulary(self.tokens, self.merges, self.named_ids)
        self.id_of = self.vocabulary.id_of
        self.vocab_size = len(self.tokens)
        self._dtype = ids_dtype(self.vocab_size)
        self._end_name = end_of_text
        self.end_of_text = end_of_text_id(self.special_tokens, end_of_text)
        self._added = AddedTokens(self.added_tokens()) if self.added else None
        self._caches: list[PieceCache] = []  # caches that no thread is using now
        self._specials_of_names: dict[frozenset[str], Specials] = {}

    def added_tokens(self) -> list[AddedToken]:
        """Returns all tokens that merging never produces, special or not, sorted by id."""
        others = {token.content: token for token in self.added}
        every = [
            others.get(text) or AddedToken(text, number) for text, number in self.named_ids.items()
        ]
        return sorted(every, key=lambda token: token.id)

    @property
    def uncuttable_specials(self) -> Specials:
        """All added tokens if `added` is not empty, otherwise none. A long text must not be cut
        inside one of them.
        """
        return self._specials(self._added.names if self._added else frozenset())

    def merged_bytes(self) -> list[tuple[bytes, bytes]]:
        """Returns the pairs of tokens that merge, as bytes, highest priority first."""
        return [
            (self.tokens[left] or b"", self.tokens[right] or b"")
            for left, right, _ in self.vocabulary.pairs
        ]

    # ---- encoding --------------------------------------------------------------------------------

    def encode(
        self,
        text: str | bytes,
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
        threads: int = 1,
    ) -> Ids:
        """Returns the ids of `text`.

        Special tokens in `allowed_special` get their ids, those in `disallowed_special` ("all": all
        that are not allowed) raise TokenizerError with the position, and others are plain text.
        More than one thread is faster from a few megabytes on.
        """
        return self._encode(
            _as_bytes(text), self._choose_specials(allowed_special, disallowed_special), threads, 0
        )

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
        threads: int | None = None,
    ) -> list[Ids]:
        """`encode` for each text, on `threads` threads (None: one per core)."""
        choice = self._choose_specials(allowed_special, disallowed_special)
        batch: list[list[Ids]] = []

        def parts() -> Iterator[tuple[int, bytes | memoryview | int]]:
            for index, text in enumerate(texts):
                batch.append([])
                for part in self._parts(_as_bytes(text), choice, 0):
                    yield index, part

        for index, ids in self._encode_parts(parts(), threads or n_cores()):
            batch[index].append(ids)
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in batch]

    def encode_iter(
        self,
        stream: Iterable[str | bytes],
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
    ) -> Iterator[Ids]:
        """`encode` for a text that arrives in parts, cut anywhere. The ids, concatenated, are the
        same as for the complete text.

        Memory does not grow with the length of the text, except for a single very long piece, or if
        the pattern is another regular expression: it is unknown where the text can be cut then.
        """
        choice = self._choose_specials(allowed_special, disallowed_special)
        n_characters = 0
        # Not special tokens that are plain text here: a cut next to one could split a piece.
        looked_for = self._specials(
            choice[0].names | choice[1].names | self.uncuttable_specials.names
        )
        for part in parts_of_stream(_bytes_of(stream), 4 * UNIT, self.pattern, looked_for):
            yield self._encode(part, choice, 1, n_characters)
            n_characters += len(part.decode("utf-8", "replace"))

    def _choose_specials(
        self, allowed_special: Names, disallowed_special: Names
    ) -> tuple[Specials, Specials]:
        """Returns the special tokens to search for: those that are allowed, and those that
        raise.
        """
        every = frozenset(self.special_tokens)
        allowed = every if allowed_special == "all" else every & frozenset(allowed_special)
        disallowed = every if disallowed_special == "all" else every & frozenset(disallowed_special)
        return self._specials(allowed), self._specials(disallowed - allowed)

    def _specials(self, names: frozenset[str]) -> Specials:
        if names not in self._specials_of_names:
            self._specials_of_names[names] = Specials(names)
        return self._specials_of_names[names]

    def _encode(
        self, data: bytes, choice: tuple[Specials, Specials], threads: int, first_character: int
    ) -> Ids:
        if not data:
            return np.empty(0, dtype=self._dtype)
        if len(data) <= UNIT and not self._added and not any(specials.names for specials in choice):
            return self._encode_unit([data])[0]
        # A token has at least one byte. The unused rest is freed below.
        ids, n = np.empty(len(data), dtype=self._dtype), 0
        for _, part_ids in self._encode_parts(
            ((0, part) for part in self._parts(data, choice, first_character)), threads
        ):
            ids[n : n + len(part_ids)] = part_ids
            n += len(part_ids)
        ids.resize(n, refcheck=False)
        return ids

    def _parts(
        self, data: bytes, choice: tuple[Specials, Specials], first_character: int
    ) -> Iterator[bytes | memoryview | int]:
        """Parts of the text that can be encoded separately, and the ids of special tokens between
        them. `first_character`: position of the start of `data` in the stream, for errors.
        """
        allowed, disallowed = choice
        for match in disallowed.find(data):
            first_character += len(data[: match.start()].decode("utf-8", "replace"))
            raise TokenizerError(
                f"the text contains the special token {match.group().decode()!r} at character "
                f"{first_character}, where it is not allowed. Add it to allowed_special, or remove "
                "it from disallowed_special to encode it as text."
            )
        start = 0
        for begin, stop, number in self._find(data, allowed):
            yield from parts_of(data[start:begin], UNIT, self.pattern)
            yield number
            start = stop
        yield from parts_of(data[start:] if start else data, UNIT, self.pattern)

    def _find(self, data: bytes, allowed: Specials) -> Iterator[tuple[int, int, int]]:
        """(start, stop, id) of added tokens and allowed special tokens in the text."""
        if self._added:
            yield from self._added.find(data, allowed.names)
            return
        for match in allowed.find(data):
            yield match.start(), match.end(), self.special_tokens[match.group().decode()]

    def _encode_parts(
        self, parts: Iterator[tuple[int, bytes | memoryview | int]], threads: int
    ) -> Iterator[tuple[int, Ids]]:
        """Encodes (index of text, part) pairs to (index of text, ids), in the same order. Threads
        work on groups of parts of about `UNIT` bytes.
        """

        def units() -> Iterator[list[tuple[int, bytes | memoryview | int]]]:
            unit: list[tuple[int, bytes | memoryview | int]] = []
            size = 0
            for index, part in parts:
                n_bytes = 0 if isinstance(part, int) else len(part) + PADDING
                if unit and size + n_bytes > UNIT + PADDING:
                    yield unit
                    unit, size = [], 0
                unit.append((index, part))
                size += n_bytes
            yield unit

        def work(unit: list[tuple[int, bytes | memoryview | int]]) -> list[tuple[int, Ids]]:
            encoded = iter(
                self._encode_unit([part for _, part in unit if not isinstance(part, int)])
            )
            return [
                (
                    index,
                    np.array([part], dtype=self._dtype) if isinstance(part, int) else next(encoded),
                )
                for index, part in unit
            ]

        if threads <= 1:
            yield from itertools.chain.from_iterable(map(work, units()))
            return
        with ThreadPoolExecutor(threads) as executor:
            yield from itertools.chain.from_iterable(executor.map(work, units()))

    def _encode_unit(self, texts: list[bytes | memoryview]) -> list[Ids]:
        try:
            cache = self._caches.pop()
        except IndexError:  # other threads are using all caches
            ahead.begin("split", "encode")
            cache = PieceCache(CACHED_PIECES, self._unreached, self._dtype)
        ids, starts = encode_texts(Texts(texts), self.pattern, self.vocabulary.tables, cache)
        own: Ids = ids.copy()
        self._caches.append(cache)  # only now, because `ids` is in its memory
        if len(texts) == 1:
            return [own]
        return [own[start:stop] for start, stop in itertools.pairwise(starts.tolist())]

    def free_memory(self) -> None:
        self._caches.clear()

    # ---- decoding --------------------------------------------------------------------------------

    def decode_bytes(self, ids: IdsLike) -> bytes:
        token_bytes, starts = self.vocabulary.bytes_of_ids
        return decode_ids(self._in_range(ids), token_bytes, starts)

    @functools.cached_property
    def ids_without_token(self) -> npt.NDArray[np.int64]:
        _, starts = self.vocabulary.bytes_of_ids
        return np.flatnonzero(np.diff(starts) == 0)

    def count_unknown(self, text: str) -> int:
        return count_lone_surrogates(text)

    def unknown_bytes(self, text: str) -> int:
        return 0  # surrogates are encoded as U+FFFD, and so are part of the loss

    @functools.cached_property
    def _unreached(self) -> dict[bytes, int]:
        """Tokens that merging their bytes does not produce, if `whole_tokens`: they occur only as
        complete pieces. Learned vocabularies have none.
        """
        if not self.whole_tokens:
            return {}
        tokens = list(self.id_of)
        tables, cache = self.vocabulary.tables, PieceCache(CACHED_PIECES, {}, self._dtype)
        ids, starts = encode_pieces(Texts(tokens), tables, cache)
        reached = (np.diff(starts) == 1) & (ids[starts[:-1]] == list(self.id_of.values()))
        return {tokens[k]: self.id_of[tokens[k]] for k in np.flatnonzero(~reached)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the constructor's arguments, without the caches, which are 20 times as large."""
        parts = (
            self.tokens,
            self.merges,
            self.pattern,
            self.special_tokens,
            self.whole_tokens,
            self.added,
        )
        return type(self), (*parts, self._end_name)

    def changed(
        self,
        *,
        n_ids: int | None = None,
        pattern: Pattern | None = None,
        special_tokens: Mapping[str, int] | None = None,
        end_of_text: str | None = None,
    ) -> Self:
        """Returns a copy of this tokenizer with some parts replaced. `n_ids`: pad the vocabulary to
        this size with unused ids.
        """
        tokens = [*self.tokens, *([None] * max(0, (n_ids or 0) - len(self.tokens)))]
        return type(self)(
            tokens,
            self.merges,
            pattern or self.pattern,
            self.special_tokens if special_tokens is None else special_tokens,
            self.whole_tokens,
            self.added,
            end_of_text or self._end_name,
        )

    # ---- to and from JSON ------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        written = [None if token is None else to_printable(token) for token in self.tokens]
        more: dict[str, Any] = (
            {"added_tokens": [vars(token) for token in self.added]} if self.added else {}
        )
        if self.end_of_text != end_of_text_id(self.special_tokens):
            more["end_of_text"] = self._end_name
        return more | {
            "kind": self.kind,
            "pattern": self.pattern.name,
            "special_tokens": self.special_tokens,
            "whole_tokens": self.whole_tokens,
            "merges": None
            if self.merges is None
            else [f"{written[left]} {written[right]}" for left, right in self.merges],
            "vocabulary": written,
        }

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        written = parts["vocabulary"]
        merges = parts["merges"]
        if merges is not None:
            id_of = {text: i for i, text in enumerate(written)}
            pairs = (merge.split(" ") for merge in merges)
            merges = [(id_of[left], id_of[right]) for left, right in pairs]
        tokens = [None if text is None else from_printable(text) for text in written]
        added = [AddedToken(**token) for token in parts.get("added_tokens", ())]
        more = parts["special_tokens"], parts["whole_tokens"], added, parts.get("end_of_text")
        return cls(tokens, merges, parts["pattern"], *more)


def _as_bytes(text: str | bytes) -> bytes:
    return to_utf8(text) if isinstance(text, str) else bytes(text)


def _bytes_of(stream: Iterable[str | bytes]) -> Iterator[bytes]:
    """Yields the stream as bytes. A high surrogate at the end of a part waits for the next part,
    which may have its pair.
    """
    left = ""
    for text in stream:
        if isinstance(text, str):
            text = left + text
            left = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
            yield to_utf8(text[: len(text) - len(left)])
        else:
            yield to_utf8(left) + text
            left = ""
    yield to_utf8(left)


ahead.part("encode", 2.2, encode_blocks, fill_pairs, look_up, copy_tokens)
