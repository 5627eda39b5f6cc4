"""Runs a SentencePiece model with the library `tokenizers`, with the ids of SentencePiece.

The library's normalizer differs from SentencePiece's in rare clusters of combining characters and
after user-defined symbols. Its unigram model reads "<s>" or "<0x0A>" in a text as that piece, and
resolves ties otherwise. So texts are normalized here, and segmented by `unigram.py`; the library
makes merges and decodes.

    tokenizer = load(Path("tokenizer.model"))

Source: SentencePiece 0.2, `normalizer.cc`.
"""

from __future__ import annotations

import base64
import functools
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith.errors import TokenizerError
from lmsmith.tokens.library import LibraryTokenizer, Names, as_string
from lmsmith.tokens.sentencepiece import SPACE, content_of
from lmsmith.tokens.tokenizer import Ids
from lmsmith.tokens.unigram import Unigram

_PLAIN = re.compile(rb"[ -~]+(?=[ -~]|\Z)")  # ASCII that ASCII follows


class SentencePieceTokenizer(LibraryTokenizer):
    """A SentencePiece model; `content` is that of `sentencepiece.content_of`."""

    kind = "sentencepiece"

    def __init__(self, content: Mapping[str, Any], end_of_text: str | None = None) -> None:
        super().__init__(content, end_of_text)
        symbols = [token["content"] for token in content["added_tokens"] if not token["special"]]
        self.normalizer = Normalizer(content["normalizer"]["normalizers"], symbols)

    def _run(self) -> dict[str, Any]:
        return self.content | {"normalizer": None}

    def encode(
        self,
        text: str | bytes,
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
        threads: int = 1,
    ) -> Ids:
        """As `LibraryTokenizer.encode`."""
        normalized = self.normalizer(as_string(text))
        if self._unigram is None:
            return super().encode(
                normalized, allowed_special=allowed_special, disallowed_special=disallowed_special
            )
        engine = self._engine_for(normalized, allowed_special, disallowed_special)
        if engine is self._engine:
            return np.array(self._unigram.encode(normalized), dtype=self._dtype)
        found: list[int] = []
        for part in re.split(f"({_any_of(self.special_tokens)})", normalized):
            number = self.special_tokens.get(part)
            found += self._unigram.encode(part) if number is None else [number]
        return np.array(found, dtype=self._dtype)

    @functools.cached_property
    def _unigram(self) -> Unigram | None:
        """Our own segmentation; None for merges, where that of the library is exact."""
        model = self.content["model"]
        if model["type"] != "Unigram":
            return None
        ids = {text: i for i, (text, _) in enumerate(model["vocab"])}
        bytes_of = {}
        if model["byte_fallback"]:
            bytes_of = {byte: ids[f"<0x{byte:02X}>"] for byte in range(256)}
        symbols = {text: ids[text] for text in self.normalizer.symbols}
        controls = {token["id"] for token in self.content["added_tokens"] if token["special"]}
        no_text = controls | set(bytes_of.values()) | set(symbols.values()) | {model["unk_id"]}
        pieces = {
            text: (i, score) for i, (text, score) in enumerate(model["vocab"]) if i not in no_text
        }
        return Unigram(pieces, symbols, model["unk_id"], bytes_of)

    @property
    def exact_elsewhere(self) -> bool:
        """Whether `content` gives the same ids in transformers. It normalizes the parts of a text
        between user-defined symbols one by one.
        """
        return not self.normalizer.symbols or not (
            self.normalizer.add_dummy_prefix or self.normalizer.remove_extra_whitespaces
        )


class Normalizer:
    """SentencePiece's normalization, from the steps that `sentencepiece.content_of` writes."""

    def __init__(self, steps: list[dict[str, Any]], symbols: list[str]) -> None:
        kinds = [step["type"] for step in steps]
        self.add_dummy_prefix = "Prepend" in kinds
        self.remove_extra_whitespaces = kinds.count("Replace") > 1
        self.symbols = frozenset(symbols)
        self._split = re.compile(f"({_any_of(symbols)})")
        table = steps[0].get("precompiled_charsmap") if kinds[0] == "Precompiled" else None
        self._charsmap = Charsmap(base64.b64decode(table)) if table else None

    def split(self, text: str) -> list[str]:
        """The user-defined symbols in a text, and what is between them."""
        return [part for part in self._split.split(text) if part] if self.symbols else [text]

    def __call__(self, text: str) -> str:
        if not text:
            return ""
        if self._charsmap is not None:
            text = "".join(
                part if part in self.symbols else self._charsmap(part) for part in self.split(text)
            )
        if self.remove_extra_whitespaces:
            text = re.sub(" {2,}", " ", text).lstrip(" ")
        text = (SPACE if self.add_dummy_prefix else "") + text.replace(" ", SPACE)
        return text.rstrip(SPACE) if self.remove_extra_whitespaces else text


class Charsmap:
    """A table of replacements: at each position the longest key is replaced by its value.

    The table is a double-array trie (Aoe 1989, in the layout of darts-clone) of UTF-8 keys, and
    values that end with a zero byte.
    """

    def __init__(self, table: bytes) -> None:
        (size,) = struct.unpack("<I", table[:4])
        self._units = np.frombuffer(table[4 : 4 + size], "<u4").tolist()
        self._values = table[4 + size :]
        ascii = range(32, 127)
        # Whether every key that begins with printable ASCII has a byte after it.
        self._keeps_ascii = not any(
            self._deepest(bytes([one, other])) >= 2 or self._longest(bytes([one]), 0)
            for one in ascii
            for other in ascii
        )

    def __call__(self, text: str) -> str:
        data, parts, at = text.encode(), [], 0
        while at < len(data):
            run = _PLAIN.match(data, at) if self._keeps_ascii else None
            if run:
                parts.append(run.group())
                at = run.end()
                continue
            found = self._longest(data, at)
            if found:
                at, value = found
            else:
                first = data[at]
                end = at + (1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4)
                value, at = data[at:end], end
            parts.append(value)
        return b"".join(parts).decode("utf-8")

    def _longest(self, data: bytes, at: int) -> tuple[int, bytes] | None:
        """The end of the longest key that begins at `at`, and its value."""
        units, found = self._units, None
        node = _offset(units[0])
        for end in range(at, len(data)):
            node ^= data[end]
            unit = units[node] if node < len(units) else 0
            if unit & 0x800000FF != data[end]:
                break
            node ^= _offset(unit)
            if unit >> 8 & 1:
                begin = units[node] & 0x7FFFFFFF
                found = end + 1, self._values[begin : self._values.index(b"\0", begin)]
        return found

    def _deepest(self, data: bytes) -> int:
        """How many bytes of `data` begin a key."""
        node = _offset(self._units[0])
        for n, byte in enumerate(data):
            node ^= byte
            unit = self._units[node] if node < len(self._units) else 0
            if unit & 0x800000FF != byte:
                return n
            node ^= _offset(unit)
        return len(data)


def _any_of(names: Collection[str]) -> str:
    """A pattern that matches the longest of the names."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def load(path: Path, end_of_text: str | None = None) -> SentencePieceTokenizer:
    """The tokenizer of a `tokenizer.model`. `end_of_text`: the token between documents.

    Raises TokenizerError for a file that is damaged, or that cannot be run exactly.
    """
    content = content_of(path)
    try:
        return SentencePieceTokenizer(content, end_of_text)
    except TokenizerError as error:
        raise TokenizerError(f"cannot use {path}: {error}") from error
