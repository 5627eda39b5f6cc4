"""What a tokenizer does with a text: how many bytes a token covers, what it cannot represent, how
fast it is.

`inspect_tokenizer` looks at one tokenizer on several texts (one a language, say),
`compare_tokenizers` at several on one, and `course_tokenizers` makes the ladder that courses climb:
bytes, characters, words, byte-pair encodings.
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
    """One tokenizer on one text."""

    name: str  # of the text, or of the tokenizer
    kind: str
    vocab_size: int
    n_bytes: int
    n_tokens: int
    n_used: int  # different ids that occur
    n_unknown: int
    n_unknown_bytes: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """Of what the tokens carry; 0 for a text without tokens."""
        return (self.n_bytes - self.n_unknown_bytes) / self.n_tokens if self.n_tokens else 0.0

    @property
    def share_used(self) -> float:
        return self.n_used / self.vocab_size

    @property
    def megabytes_per_second(self) -> float:
        return self.n_bytes / 1e6 / self.seconds


@dataclass(frozen=True)
class Inspection:
    """One tokenizer: what is in it, and what it does with some texts."""

    tokenizer: Tokenizer
    longest: tuple[tuple[int, str], ...]  # the longest tokens by bytes, with their ids
    on_texts: tuple[Measure, ...]
    share_used: float  # of the vocabulary, by all the texts together


def measure(tokenizer: Tokenizer, text: str, name: str) -> Measure:
    """Encodes the text twice, the second time by the clock: what is compiled or remembered at
    first is not speed.
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
    """`texts` by name: one for each language shows which of them the vocabulary was learnt for."""
    seen = np.zeros(tokenizer.vocab_size, dtype=bool)
    rows = []
    for name, text in texts.items():
        rows.append(measure(tokenizer, text, name))
        seen[tokenizer.encode(text)] = True
    return Inspection(
        tokenizer, longest_tokens(tokenizer, n_longest), tuple(rows), float(seen.mean())
    )


def longest_tokens(tokenizer: Tokenizer, n: int) -> tuple[tuple[int, str], ...]:
    """The ids that stand for the most bytes, and their text; special tokens stand for none."""
    left_out = {*_special_ids(tokenizer), *tokenizer.ids_without_token.tolist()}
    found = [
        (len(tokenizer.decode_bytes([i])), i)
        for i in range(tokenizer.vocab_size)
        if i not in left_out
    ]
    longest = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:n]
    return tuple((i, tokenizer.decode([i])) for _, i in longest)


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    named: Mapping[str, int] = getattr(tokenizer, "special_tokens", {})
    return {*named.values(), *([] if tokenizer.end_of_text is None else [tokenizer.end_of_text])}


def compare_tokenizers(tokenizers: Mapping[str, Tokenizer], text: str) -> tuple[Measure, ...]:
    """Each tokenizer, by name, on the same text; from the smallest vocabulary to the largest."""
    rows = [measure(tokenizer, text, name) for name, tokenizer in tokenizers.items()]
    return tuple(sorted(rows, key=lambda row: row.vocab_size))


def course_tokenizers(text: str, sizes: Sequence[int] = BPE_SIZES) -> dict[str, Tokenizer]:
    """Bytes, characters, words and byte-pair encodings, all learnt from `text`."""
    from lmsmith.tokens.bpe_train import learn_bpe  # brings in the compiler

    made: dict[str, Tokenizer] = {
        "bytes": ByteTokenizer(False),
        "characters": CharTokenizer.learn([text], False),
        "words": WordTokenizer.learn([text], False),
    }
    for size in sizes:
        learnt = learn_bpe([text], size, special_tokens=())
        made[f"BPE {learnt.vocab_size}"] = learnt  # a small text may not have enough to merge
    return made


def shown(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text as its tokens, to be looked at: bytes that are no character by themselves appear
    as U+FFFD.
    """
    return [tokenizer.decode([i]) for i in tokenizer.encode(text).tolist()]
