"""Measures tokenizers on text: bytes per token, unknown units, speed.

`inspect_tokenizer` measures one tokenizer on several texts (such as one per language),
`compare_tokenizers` several tokenizers on one text. `course_tokenizers` learns the tokenizers that
courses usually compare: bytes, characters, words and byte-pair encodings of several sizes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer, to_utf8

BPE_SIZES = (512, 2048, 8192)


@dataclass(frozen=True)
class Measure:
    """Measurements of one tokenizer on one text."""

    name: str  # of the text, or of the tokenizer
    kind: str
    vocab_size: int
    n_bytes: int
    n_tokens: int
    n_used: int  # number of distinct ids that occur
    n_unknown: int
    n_unknown_bytes: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token, without unknown bytes; 0 for a text without tokens."""
        return (self.n_bytes - self.n_unknown_bytes) / self.n_tokens if self.n_tokens else 0.0

    @property
    def share_used(self) -> float:
        return self.n_used / self.vocab_size

    @property
    def megabytes_per_second(self) -> float:
        return self.n_bytes / 1e6 / self.seconds


@dataclass(frozen=True)
class Inspection:
    """One tokenizer: its longest tokens, and measurements on some texts."""

    tokenizer: Tokenizer
    longest: tuple[tuple[int, str], ...]  # (id, text) of the tokens with the most bytes
    on_texts: tuple[Measure, ...]
    share_used: float  # share of the vocabulary that occurs in any of the texts


def measure(tokenizer: Tokenizer, text: str, name: str) -> Measure:
    """Measures `tokenizer` on `text`. Encodes the text twice and times the second pass, so that
    compilation is not measured and caches are warm.
    """
    tokenizer.encode(text)
    start = time.perf_counter()
    ids = tokenizer.encode(text)
    seconds = time.perf_counter() - start
    return Measure(
        name=name,
        kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        n_bytes=len(to_utf8(text)),
        n_tokens=len(ids),
        n_used=len(np.unique(ids)),
        n_unknown=tokenizer.count_unknown(text),
        n_unknown_bytes=tokenizer.unknown_bytes(text),
        seconds=max(seconds, 1e-9),
    )


def inspect_tokenizer(
    tokenizer: Tokenizer, texts: Mapping[str, str], n_longest: int = 20
) -> Inspection:
    """Measures a tokenizer on each of `texts` (name -> text). One text per language shows which
    languages the vocabulary was learned from.
    """
    seen = np.zeros(tokenizer.vocab_size, dtype=bool)
    rows = []
    for name, text in texts.items():
        rows.append(measure(tokenizer, text, name))
        seen[tokenizer.encode(text)] = True
    return Inspection(
        tokenizer, longest_tokens(tokenizer, n_longest), tuple(rows), float(seen.mean())
    )


def longest_tokens(tokenizer: Tokenizer, n: int) -> tuple[tuple[int, str], ...]:
    """Returns the `n` tokens with the most bytes as (id, text), without special tokens."""
    skipped = {*_special_ids(tokenizer), *tokenizer.ids_without_token.tolist()}
    lengths = [
        (len(tokenizer.decode_bytes([i])), i)
        for i in range(tokenizer.vocab_size)
        if i not in skipped
    ]
    longest = sorted(lengths, key=lambda pair: (-pair[0], pair[1]))[:n]
    return tuple((i, tokenizer.decode([i])) for _, i in longest)


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    named: Mapping[str, int] = getattr(tokenizer, "special_tokens", {})
    return {*named.values(), *([] if tokenizer.end_of_text is None else [tokenizer.end_of_text])}


def compare_tokenizers(tokenizers: Mapping[str, Tokenizer], text: str) -> tuple[Measure, ...]:
    """Measures each tokenizer (name -> tokenizer) on the same text, sorted by vocabulary size."""
    rows = [measure(tokenizer, text, name) for name, tokenizer in tokenizers.items()]
    return tuple(sorted(rows, key=lambda row: row.vocab_size))


def course_tokenizers(text: str, sizes: Sequence[int] = BPE_SIZES) -> dict[str, Tokenizer]:
    """Byte, character, word and BPE tokenizers, all learned from `text`, by name. `sizes`: the
    vocabulary sizes of BPE.
    """
    from lmsmith.tokens.bpe_train import learn_bpe  # imports Numba, which is slow

    tokenizers: dict[str, Tokenizer] = {
        "bytes": ByteTokenizer(False),
        "characters": CharTokenizer.learn([text], False),
        "words": WordTokenizer.learn([text], False),
    }
    for size in sizes:
        bpe = learn_bpe([text], size, special_tokens=())
        tokenizers[f"BPE {bpe.vocab_size}"] = bpe  # smaller than `size` if the text is small
    return tokenizers


def shown(tokenizer: Tokenizer, text: str) -> list[str]:
    """Returns the text of each token, for display. Bytes that are not a complete character appear
    as U+FFFD.
    """
    return [tokenizer.decode([i]) for i in tokenizer.encode(text).tolist()]
