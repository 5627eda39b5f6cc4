"""Byte-level byte-pair encoding: text <-> ids, exact to the token with tiktoken and Hugging Face
tokenizers.

    tokenizer = load_tokenizer("gpt2")                            # files.py
    tokenizer.encode("Hello")                                     # array([15496], dtype=uint16)
    # Here this text in the page is the special token.
    tokenizer.encode(page, allowed_special={"<|endoftext|>"})
    tokenizer.encode_batch(pages, threads=8)
    for ids in tokenizer.encode_iter(open_file): ...              # a stream, in constant memory

A text is cut into pieces by a pattern (`split.py`) and the bytes of each piece are merged
(`merge.py`); both run compiled and without the interpreter lock, so threads help. Special tokens
cut the text first; where they overlap, the leftmost and then the longest counts. `encode(text)`
alone takes all of the text as text, as every tokenizer of lmsmith does; `disallowed_special="all"`
raises instead, as tiktoken does by default.

Lone surrogates become U+FFFD. Bytes that are not UTF-8 are encoded as they are, byte for byte, and
decode to the same.
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
from lmsmith.tokens.merge import Merges, PieceCache, decode_ids, encode_pieces, encode_texts
from lmsmith.tokens.printable import from_printable, to_printable
from lmsmith.tokens.specials import AddedToken, AddedTokens, Specials
from lmsmith.tokens.split import PADDING, Pattern, Texts, parts_of, parts_of_stream, pattern_of
from lmsmith.tokens.tokenizer import (
    Ids,
    SomeIds,
    Tokenizer,
    count_lone_surrogates,
    end_of_text_id,
    ids_dtype,
    to_utf8,
)

Names = Collection[str] | Literal["all"]

UNIT = (
    1 << 18
)  # bytes of text that a thread works through at one go: they and their ids fit its cache
CACHED_PIECES = (
    150_000  # a thread's table of pieces then takes 8 MB, and 5 more in long pieces and long ids
)


class BpeTokenizer(Tokenizer):
    """Bytes merged pair by pair.

    `tokens`: the bytes of each id; None where the id is special or unused. All 256 single bytes are
    among them. `merges`: pairs of ids in the order in which they are tried; what comes of it is the
    token with the bytes of both. None: any two tokens merge whose bytes together are a token, the
    lowest id first, and a piece that is a token is not merged at all (`whole_tokens`); that is how
    tiktoken reads a file of ranks. `special_tokens`: text -> id; these are never the outcome of
    merging. `added`: tokens that are matched in every text, and special tokens that are matched
    after others; see `AddedToken`. `end_of_text`: the special token between documents. None: the
    first of `ENDS_OF_TEXT` that there is.
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
        self._check()
        self.vocab_size = len(self.tokens)
        self._dtype = ids_dtype(self.vocab_size)
        self._end_name = end_of_text
        self.end_of_text = end_of_text_id(self.special_tokens, end_of_text)
        self._added = AddedTokens(self.added_tokens()) if self.added else None
        self._caches: list[PieceCache] = []  # one for each thread that is at work or was
        self._chosen: dict[frozenset[str], Specials] = {}

    def _check(self) -> None:
        self.id_of = {token: i for i, token in enumerate(self.tokens) if token is not None}
        n_tokens = sum(token is not None for token in self.tokens)
        if len(self.id_of) != n_tokens:
            twice = next(
                t for i, t in enumerate(self.tokens) if t is not None and self.id_of[t] != i
            )
            raise TokenizerError(f"the vocabulary has {twice!r} twice.")
        missing = [byte for byte in range(256) if bytes([byte]) not in self.id_of]
        if missing:
            raise TokenizerError(
                f"the vocabulary lacks {len(missing)} of the 256 bytes, the first of them "
                f"0x{missing[0]:02X}: it is not"
                " one of byte-level BPE."
            )
        for special, number in self.named_ids.items():
            if not special:
                raise TokenizerError("a special token is empty: it would be everywhere in a text.")
            if not 0 <= number < len(self.tokens) or self.tokens[number] is not None:
                raise TokenizerError(
                    f"special token {special!r} has id {number}, which is taken or out of range."
                )
        if len(set(self.named_ids.values())) < len(self.named_ids):
            raise TokenizerError("two special tokens have the same id.")
        for rank, (left, right) in enumerate(self.merges or ()):
            if self._joined(left, right) not in self.id_of:
                raise TokenizerError(
                    f"the vocabulary does not fit its merges: merge {rank + 1}, "
                    f"{self.tokens[left]!r} with"
                    f" {self.tokens[right]!r}, makes a token that it lacks."
                )

    def _joined(self, left: int, right: int) -> bytes:
        first, second = self.tokens[left], self.tokens[right]
        assert first is not None
        assert second is not None
        return first + second

    def added_tokens(self) -> list[AddedToken]:
        """All tokens that merging never gives, special or not, in the order of their ids."""
        others = {token.content: token for token in self.added}
        every = [
            others.get(text) or AddedToken(text, number) for text, number in self.named_ids.items()
        ]
        return sorted(every, key=lambda token: token.id)

    @property
    def matched_first(self) -> Specials:
        """All added tokens, if any is matched in every text: a text in parts must not be cut
        through one.
        """
        return self._specials(self._added.names if self._added else frozenset())

    def merged_bytes(self) -> list[tuple[bytes, bytes]]:
        """What merges with what, as bytes, in the order in which it is tried."""
        return [
            (self.tokens[left] or b"", self.tokens[right] or b"") for left, right, _ in self._pairs
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
        """The ids of `text`.

        Special tokens in `allowed_special` get their ids; one in `disallowed_special` ("all": all
        that are not allowed) raises TokenizerError with the place; others are text. More than one
        thread pays from some megabytes on.
        """
        return self._encode(
            _as_bytes(text), self._choose(allowed_special, disallowed_special), threads, 0
        )

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
        threads: int | None = None,
    ) -> list[Ids]:
        """`encode` of each text, on as many threads as there are processors, or as said."""
        choice = self._choose(allowed_special, disallowed_special)
        batch: list[list[Ids]] = []

        def parts() -> Iterator[tuple[int, bytes | memoryview | int]]:
            for index, text in enumerate(texts):
                batch.append([])
                for part in self._parts(_as_bytes(text), choice, 0):
                    yield index, part

        for index, ids in self._encode_parts(parts(), threads or n_cores()):
            batch[index].append(ids)
        return [some[0] if len(some) == 1 else np.concatenate(some) for some in batch]

    def encode_iter(
        self,
        stream: Iterable[str | bytes],
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
    ) -> Iterator[Ids]:
        """`encode` of a text that comes in parts, cut anywhere: the ids, joined, are those of the
        whole.

        Memory does not grow with the text; only one piece without end (or a pattern that is a
        regular expression, of which nobody knows where a text may be cut) makes it wait.
        """
        choice = self._choose(allowed_special, disallowed_special)
        n_characters = 0
        # Only what is looked for: before a special token that is text, a cut could go through a
        # piece.
        looked_for = self._specials(choice[0].names | choice[1].names | self.matched_first.names)
        for part in parts_of_stream(_bytes_of(stream), 4 * UNIT, self.pattern, looked_for):
            yield self._encode(part, choice, 1, n_characters)
            n_characters += len(part.decode("utf-8", "replace"))

    def _choose(
        self, allowed_special: Names, disallowed_special: Names
    ) -> tuple[Specials, Specials]:
        """What is looked for: special tokens that are allowed, and those that raise."""
        every = frozenset(self.special_tokens)
        allowed = every if allowed_special == "all" else every & frozenset(allowed_special)
        disallowed = every if disallowed_special == "all" else every & frozenset(disallowed_special)
        return self._specials(allowed), self._specials(disallowed - allowed)

    def _specials(self, names: frozenset[str]) -> Specials:
        if names not in self._chosen:
            self._chosen[names] = Specials(names)
        return self._chosen[names]

    def _encode(
        self, data: bytes, choice: tuple[Specials, Specials], threads: int, place: int
    ) -> Ids:
        if len(data) <= UNIT and not self._added and not any(specials.names for specials in choice):
            return self._encode_unit([data])[0]
        ids, n = (
            np.empty(len(data), dtype=self._dtype),
            0,
        )  # a token has a byte or more; the rest is given back
        for _, some in self._encode_parts(
            ((0, part) for part in self._parts(data, choice, place)), threads
        ):
            ids[n : n + len(some)] = some
            n += len(some)
        ids.resize(n, refcheck=False)
        return ids

    def _parts(
        self, data: bytes, choice: tuple[Specials, Specials], place: int
    ) -> Iterator[bytes | memoryview | int]:
        """Text to be encoded by itself, and special ids between. `place`: of the text's first
        character, for errors.
        """
        allowed, disallowed = choice
        for match in disallowed.find(data):
            place += len(data[: match.start()].decode("utf-8", "replace"))
            raise TokenizerError(
                f"the text has the special token {match.group().decode()!r} at character {place}, "
                f"where only text was"
                " expected. Allow it (allowed_special), or take it as text (leave it out of "
                "disallowed_special)."
            )
        start = 0
        for begin, stop, number in self._find(data, allowed):
            yield from parts_of(data[start:begin], UNIT, self.pattern)
            yield number
            start = stop
        yield from parts_of(data[start:] if start else data, UNIT, self.pattern)

    def _find(self, data: bytes, allowed: Specials) -> Iterator[tuple[int, int, int]]:
        """(start, stop, id) of the added tokens, and of the special tokens that are allowed."""
        if self._added:
            yield from self._added.find(data, allowed.names)
            return
        for match in allowed.find(data):
            yield match.start(), match.end(), self.special_tokens[match.group().decode()]

    def _encode_parts(
        self, parts: Iterator[tuple[int, bytes | memoryview | int]], threads: int
    ) -> Iterator[tuple[int, Ids]]:
        """(which text, ids) in the order of the parts, which are worked through in units of
        about `UNIT` bytes.
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
        except IndexError:  # all are with other threads
            cache = PieceCache(CACHED_PIECES, self._unreached)
        ids, starts = encode_texts(Texts(texts), self.pattern, self._merges, cache)
        narrow: Ids = ids.astype(self._dtype)
        self._caches.append(cache)  # not before: `ids` is its memory
        if len(texts) == 1:
            return [narrow]
        return [narrow[start:stop] for start, stop in itertools.pairwise(starts.tolist())]

    # ---- decoding --------------------------------------------------------------------------------

    def decode_bytes(self, ids: SomeIds) -> bytes:
        token_bytes, starts = self._bytes_of_ids
        return decode_ids(self._in_range(ids), token_bytes, starts)

    @functools.cached_property
    def ids_without_token(self) -> npt.NDArray[np.int64]:
        _, starts = self._bytes_of_ids
        return np.flatnonzero(np.diff(starts) == 0)

    def count_unknown(self, text: str) -> int:
        return count_lone_surrogates(text)

    def unknown_bytes(self, text: str) -> int:
        return 0  # U+FFFD stands in the ids and is paid for there

    # ---- what compiled code looks things up in ---------------------------------------------------

    @functools.cached_property
    def _bytes_of_ids(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        special = {number: text.encode() for text, number in self.named_ids.items()}
        parts = [
            special.get(i, b"") if token is None else token for i, token in enumerate(self.tokens)
        ]
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        flat = np.frombuffer(bytearray(b"".join(parts) + bytes(8)), dtype=np.uint8)
        return flat, np.concatenate([[0], np.cumsum(lengths)])

    @functools.cached_property
    def _merges(self) -> Merges:
        pairs = np.array(self._pairs, dtype=np.int64).reshape(-1, 3)
        # Where any two tokens may make a third, the order is that of the ids, and of two ways to
        # make it the left one.
        ranks = pairs[:, 2] if self.merges is None else np.arange(len(pairs))
        flat, starts = self._bytes_of_ids
        inner = np.ones(len(flat), dtype=bool)
        inner[starts] = False  # a token's first byte does not follow on the one before it
        side_by_side = np.zeros(65536, dtype=np.uint8)
        neighbours = flat[:-1].astype(np.int64) << 8 | flat[1:]
        side_by_side[neighbours[inner[1:]]] = 1
        byte_ids = np.array([self.id_of[bytes([byte])] for byte in range(256)], dtype=np.int32)
        values = ranks << 32 | pairs[:, 2]
        return Merges.of(byte_ids, pairs[:, 0].copy(), pairs[:, 1].copy(), values, side_by_side)

    @functools.cached_property
    def _pairs(self) -> list[tuple[int, int, int]]:
        """(left, right, result), in the order in which they are tried."""
        if self.merges is not None:
            return [
                (left, right, self.id_of[self._joined(left, right)]) for left, right in self.merges
            ]
        get = self.id_of.get
        return sorted(
            (
                (left, right, i)
                for token, i in self.id_of.items()
                for cut in range(1, len(token))
                if (left := get(token[:cut])) is not None
                and (right := get(token[cut:])) is not None
            ),
            key=lambda pair: (pair[2], pair[0], pair[1]),
        )

    @functools.cached_property
    def _unreached(self) -> dict[bytes, int]:
        """Tokens that count as whole pieces but are not what their bytes merge into. Learnt
        vocabularies have none.
        """
        if not self.whole_tokens:
            return {}
        tokens = list(self.id_of)
        ids, starts = encode_pieces(Texts(tokens), self._merges, PieceCache(CACHED_PIECES, {}))
        reached = (np.diff(starts) == 1) & (ids[starts[:-1]] == list(self.id_of.values()))
        return {tokens[k]: self.id_of[tokens[k]] for k in np.flatnonzero(~reached)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it is made of, without the caches, which are twenty times as large."""
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
        """This tokenizer with other parts. `n_ids`: its vocabulary is made larger by ids that
        stand for nothing.
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
    """The stream as bytes; a surrogate at the end of a part waits for the one that may belong to
    it.
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
