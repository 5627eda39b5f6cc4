"""Adds special tokens to a tokenizer, for chat templates.

    tokenizer = with_special_tokens(tokenizer, ["<|user|>", "<|end|>"])

The ids of all text stay the same. New tokens take ids without a token first, then ids after the
last one. Byte-pair encoding has special tokens of its own, and bytes become byte-pair encoding
without merges; characters and words get them from `ExtendedTokenizer`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    Ids,
    IdsLike,
    Tokenizer,
    WordTokenizer,
    ids_dtype,
)

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class ExtendedTokenizer(Tokenizer):
    """A character or word tokenizer with special tokens after its last id.

    `base`: the tokenizer; `names`: the special tokens, in the order of their ids. Raises
    TokenizerError for a name that is empty, given twice, or the end-of-text token.
    """

    kind = "extended"

    def __init__(self, base: CharTokenizer | WordTokenizer, names: Sequence[str]) -> None:
        self.base, self.names = base, tuple(names)
        if len(set(names)) < len(names) or END_OF_TEXT in names or not all(names):
            raise TokenizerError(
                f"special tokens {', '.join(map(repr, names))}: expected different texts that are "
                f"not empty and not {END_OF_TEXT}."
            )
        first = base.vocab_size
        end = {} if base.end_of_text is None else {END_OF_TEXT: base.end_of_text}
        self.special_tokens = end | {name: first + n for n, name in enumerate(self.names)}
        self.vocab_size = first + len(self.names)
        self.end_of_text = base.end_of_text
        self._dtype = ids_dtype(self.vocab_size)

    @property
    def skips_unknown(self) -> bool:  # type: ignore[override]
        return self.base.skips_unknown

    def encode(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = ()) -> Ids:
        """The ids of `text`; special tokens in `allowed_special` get theirs, others are text."""
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        names = frozenset(self.special_tokens) & frozenset(allowed)
        parts: list[npt.NDArray[Any]] = [np.empty(0, self._dtype)]
        data, done = text.encode("utf-8", "surrogatepass"), 0
        for match in Specials(names).find(data) if names else ():
            parts.append(self._plain(data[done : match.start()]))
            parts.append(np.array([self.special_tokens[match.group().decode()]], self._dtype))
            done = match.end()
        parts.append(self._plain(data[done:]))
        return np.concatenate(parts)

    def _plain(self, data: bytes) -> npt.NDArray[Any]:
        return self.base.encode(data.decode("utf-8", "surrogatepass")).astype(self._dtype)

    def decode_bytes(self, ids: IdsLike) -> bytes:
        return b"".join(self._decoded(ids))

    def _decoded(self, ids: IdsLike) -> Iterator[bytes]:
        array, done = self._in_range(ids), 0
        for position in np.flatnonzero(array >= self.base.vocab_size).tolist():
            yield self.base.decode_bytes(array[done:position])
            yield self.names[int(array[position]) - self.base.vocab_size].encode()
            done = position + 1
        yield self.base.decode_bytes(array[done:])

    def count_unknown(self, text: str) -> int:
        return self.base.count_unknown(text)

    def unknown_bytes(self, text: str) -> int:
        return self.base.unknown_bytes(text)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "base": self.base.to_dict(), "names": list(self.names)}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        kinds: Mapping[str, Any] = {"char": CharTokenizer, "word": WordTokenizer}
        return cls(kinds[parts["base"]["kind"]].from_dict(parts["base"]), parts["names"])


def with_special_tokens(
    tokenizer: Tokenizer, names: Sequence[str], n_ids: int | None = None
) -> Tokenizer:
    """`tokenizer` with the special tokens `names`, where it does not have them.

    `n_ids`: rows of the model's embedding table; ids from `tokenizer.vocab_size` to there are free.
    Raises TokenizerError if the vocabulary has one of them as an ordinary token, or if the library
    cannot add them.
    """
    from lmsmith.tokens.bpe import BpeTokenizer  # imports Numba
    from lmsmith.tokens.library import LibraryTokenizer

    missing = [name for name in names if name not in getattr(tokenizer, "special_tokens", {})]
    if not missing:
        return tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        end = {} if tokenizer.end_of_text is None else {END_OF_TEXT: tokenizer.end_of_text}
        tokens = [bytes([byte]) for byte in range(256)]
        tokenizer = BpeTokenizer([*tokens, *([None] * len(end))], [], "gpt2", end)
    if isinstance(tokenizer, BpeTokenizer):
        taken = {*tokenizer.named_ids.values()}
        padded = tokenizer.changed(n_ids=n_ids)
        free = [n for n, token in enumerate(padded.tokens) if token is None and n not in taken]
        free += range(padded.vocab_size, padded.vocab_size + len(missing))
        ids = dict(zip(missing, free, strict=False))
        size = max(padded.vocab_size, *(number + 1 for number in ids.values()))
        return padded.changed(n_ids=size).changed(special_tokens=tokenizer.special_tokens | ids)
    if isinstance(tokenizer, CharTokenizer | WordTokenizer):
        return ExtendedTokenizer(tokenizer, missing)
    if isinstance(tokenizer, ExtendedTokenizer):
        return ExtendedTokenizer(tokenizer.base, [*tokenizer.names, *missing])
    assert isinstance(tokenizer, LibraryTokenizer), tokenizer.kind
    first = tokenizer.vocab_size
    added = [
        {"id": first + n, "content": name, "special": True, **_FLAGS}
        for n, name in enumerate(missing)
    ]
    content = dict(tokenizer.content)
    content["added_tokens"] = [*(content.get("added_tokens") or ()), *added]
    return type(tokenizer)(content, tokenizer.to_dict()["end_of_text"])
