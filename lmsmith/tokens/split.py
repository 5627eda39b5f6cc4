"""Pre-tokenization: splits a text into pieces, within which byte-pair encoding merges. Has the
patterns of GPT-2, GPT-4, o200k, nanochat, Llama 3 and Qwen 2.

The patterns are regular expressions. A scanner written for them (`scanner.py`) gives the same
pieces on every input, about thirty times as fast. Other expressions run through the `regex` module,
which is slower.

Each byte that is not UTF-8 counts as one character that is not a letter, number or space.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.tokens import ahead
from lmsmith.tokens.compiled import (
    address,
    count,
    highest,
    kernel,
    load8,
    store32,
    trailing_zeros,
)
from lmsmith.tokens.scanner import (
    APOSTROPHE,
    GPT2,
    GPT4,
    O200K,
    PADDING,
    char_at,
    piece_end,
    piece_starts,
)
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.unicode_classes import MARK, NUMBER, UPPER, unicode_classes

log = logging.getLogger(__name__)

NO_SPECIALS = Specials(())

# The family of patterns that the scanner does not know; they are run by the `regex` module.
REGEX = 3


@dataclass(frozen=True)
class Pattern:
    """A pre-tokenization pattern: the regular expression, and the scanner's settings for it."""

    name: str
    regex: str
    family: int
    max_digits: int = 1 << 30  # \p{N}{1,n}
    space_tail: bool = True  # white space at the end of a text is one piece: \s++$

    def __repr__(self) -> str:
        return f"Pattern({self.name!r})"


_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| "
    r"?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NANOCHAT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| "
    r"?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)

PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern("gpt2", _GPT2, GPT2),
        Pattern("gpt4", _GPT4, GPT4, max_digits=3),
        Pattern("o200k", _O200K, O200K, max_digits=3, space_tail=False),
        Pattern("nanochat", _NANOCHAT, GPT4, max_digits=2, space_tail=False),
        # GPT-4's expression as first published; Llama 3 and Qwen 2 use it.
        Pattern("llama3", _LLAMA3, GPT4, max_digits=3, space_tail=False),
        Pattern(
            "qwen2",
            _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
            GPT4,
            max_digits=1,
            space_tail=False,
        ),
    )
}
# GPT-2's pattern after splitting off single digits (Digits before ByteLevel, as in SmolLM): every
# piece before a digit ends there, including white space. Its name is the expression, because saved
# tokenizers contain it.
_BETWEEN_DIGITS = (
    r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)
BETWEEN_DIGITS = Pattern(_BETWEEN_DIGITS, _BETWEEN_DIGITS, GPT2, max_digits=1)
# Other spellings of the same patterns.
_SPELLINGS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    _GPT4.replace("?+", "?")
    .replace("++", "+")
    .replace("}+", "}")
    .replace("*+", "*")
    .replace("+$", r"+\z"): "gpt4",
    _NANOCHAT.replace(r"{1,2}", "{1,3}"): "llama3",  # rustbpe's own
    _NANOCHAT.replace("?+", "?").replace("++", "+"): "nanochat",
}


def pattern_of(text: str) -> Pattern:
    """Returns the pattern with this name or regular expression. Raises TokenizerError for an
    expression that does not compile.
    """
    if text in PATTERNS:
        return PATTERNS[text]
    for pattern in (*PATTERNS.values(), BETWEEN_DIGITS):
        if text == pattern.regex or _SPELLINGS.get(text) == pattern.name:
            return pattern
    _compiled(text)
    return Pattern(text, text, REGEX)


def split(text: bytes, pattern: Pattern) -> list[bytes]:
    """Returns the pieces of a complete text; their concatenation is the text."""
    cuts = [0, *piece_ends(text, pattern).tolist()]
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


def piece_ends(text: bytes, pattern: Pattern) -> npt.NDArray[np.int32]:
    """Returns the end of each piece of a complete text, in bytes."""
    return Texts([text]).split(pattern)[0]


class Texts:
    """Complete texts in one padded array, so that one call of compiled code processes many.

    `padded`: all texts, each followed by `PADDING` zero bytes. `starts`, `stops`: the start and end
    of each text in `padded`.
    """

    def __init__(self, texts: Sequence[bytes | memoryview]) -> None:
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.padded = np.frombuffer(bytearray(PADDING).join([*texts, b""]), dtype=np.uint8)
        self.stops = np.cumsum(lengths + PADDING) - PADDING
        self.starts = self.stops - lengths

    def split(self, pattern: Pattern) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Returns (ends, first_pieces): the end of each piece as an index of `padded`, and for each
        text the index of its first piece, followed by the number of pieces.
        """
        first_pieces = np.zeros(len(self.starts) + 1, dtype=np.int64)
        if pattern.family == REGEX:
            ends = [
                _regex_ends(self.padded[start:stop].tobytes(), pattern.regex) + start
                for start, stop in self
            ]
            np.cumsum([len(text_ends) for text_ends in ends], out=first_pieces[1:])
            return np.concatenate([*ends, np.empty(0, dtype=np.int32)]), first_pieces
        room = np.empty(len(self.padded), dtype=np.int32)  # unwritten pages use no memory
        rules = (pattern.family, pattern.max_digits, pattern.space_tail)
        _split(self.padded, self.starts, self.stops, unicode_classes(), *rules, room, first_pieces)
        return room[: first_pieces[-1]], first_pieces

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts.tolist(), self.stops.tolist(), strict=True)


@kernel
def _split(padded, starts, stops, classes, family, max_digits, space_tail, ends, first_pieces):
    text, table = address(padded), address(classes)
    to = address(ends)
    for i in range(len(starts)):
        at, end = text + starts[i], text + stops[i]
        while at < end:
            mask = piece_starts(at, end, family, max_digits)
            if mask == 0:
                at = piece_end(at, end, table, family, max_digits, space_tail)
                store32(to, at - text)
                to += 4
                continue
            # Eight at a time, and the next ones overwrite what is too much: the processor predicts
            # the number of rounds better than the number of pieces.
            n, rest, at_text = count(mask), mask, at - text
            for first in range(0, n, 8):
                for k in range(first, first + 8):
                    store32(to + 4 * k, at_text + trailing_zeros(rest))
                    rest &= rest - 1
            to += 4 * n
            at += highest(mask)
        first_pieces[i + 1] = (to - address(ends)) >> 2


ahead.part("split", 1.4, _split)


def parts_of(
    text: bytes, size: int, pattern: Pattern, specials: Specials = NO_SPECIALS
) -> Iterator[memoryview]:
    """Cuts `text` into parts of at most `size` bytes. Splitting each part separately gives the same
    pieces as splitting `text`.

    Cuts only where no piece (`_last_cut`) and no special token continues. If there is no such
    position, a part is longer. Patterns of the `REGEX` family give one part, because it is unknown
    where they can be cut.
    """
    view, start = memoryview(text), 0
    while len(text) - start > size and pattern.family != REGEX:
        cut, stop = start, start + size
        while cut == start and stop < len(text):
            cut = _cut(text, max(start, stop - size - 4), stop, specials) or start
            stop += size
        if cut == start:
            break
        yield view[start:cut]
        start = cut
    yield view[start:]


def parts_of_stream(
    stream: Iterable[bytes], size: int, pattern: Pattern, specials: Specials = NO_SPECIALS
) -> Iterator[bytes]:
    """Like `parts_of`, for a text that arrives in parts cut anywhere. Keeps at most `2 * size`
    bytes and one arriving part in memory.
    """
    waiting, searched = bytearray(), 0
    for data in stream:
        waiting += data
        while len(waiting) - searched >= 2 * size and pattern.family != REGEX:
            # The end may be the beginning of a special token.
            stop = min(searched + 2 * size, len(waiting)) - specials.longest
            cut = _cut(waiting, searched, stop, specials)
            searched = 0 if cut else max(stop - 4, 0)
            if cut:
                yield bytes(waiting[:cut])
                del waiting[:cut]
    yield bytes(waiting)


def last_cut(text: bytes) -> int:
    """Returns the last position in part of a text where no piece of any built-in pattern continues
    (`_last_cut`); 0 if there is none.
    """
    return _cut(text, 0, len(text), NO_SPECIALS)


def _cut(text: bytes | bytearray, start: int, stop: int, specials: Specials) -> int:
    """Returns the last position in start + 1 .. stop - 4 where `text` can be cut; 0 if there is
    none.
    """
    cut = int(
        _last_cut(np.frombuffer(text, dtype=np.uint8).ctypes.data, start, stop, unicode_classes())
    )
    return specials.cut_before(text, cut) if cut else 0


@kernel
def _last_cut(text, start, stop, classes):
    """Returns the last position in start + 1 .. stop - 4 where all built-in patterns end a piece; 0
    if there is none.

    That is after a letter or number and before a character that is not a letter, mark or
    apostrophe, and not two numbers. No piece continues there, and the pieces after the position do
    not depend on the text before it.
    """
    table = address(classes)
    for cut in range(stop - 4, start, -1):
        byte = load8(text + cut)
        after = char_at(text + cut, table) & 255
        if byte == APOSTROPHE or byte ^ 0x80 < 64 or after >= MARK:
            continue
        before = cut - 1
        while before > start and before > cut - 4 and load8(text + before) ^ 0x80 < 64:
            before -= 1
        char = char_at(text + before, table)
        if (char & 255 >= UPPER or char & 255 == NUMBER != after) and before + (char >> 8) == cut:
            return cut
    return 0


ahead.part("cut", 0.1, _last_cut)


# ---- any expression ------------------------------------------------------------------------------


@functools.cache
def _compiled(expression: str) -> Any:
    try:
        import regex
    except ImportError as error:
        raise TokenizerError(
            f"the pattern {expression!r} is not one of {', '.join(PATTERNS)}, so it needs the "
            f"module regex: run pip install regex."
        ) from error
    try:
        compiled = regex.compile(expression)
    except regex.error as error:
        raise TokenizerError(
            f"the pattern {expression!r} is not a regular expression: {error}."
        ) from error
    log.warning(
        "the pattern %r is not one of %s: it runs through the regex module, which is slower",
        expression,
        ", ".join(PATTERNS),
    )
    return compiled


def _regex_ends(text: bytes, expression: str) -> npt.NDArray[np.int32]:
    """Yields the ends of the pieces in bytes. Text between matches is a piece too, so no text is
    lost.
    """

    def ends() -> Iterator[int]:
        string = text.decode("utf-8", "surrogateescape")
        done = n_bytes = 0
        for match in _compiled(expression).finditer(string):
            for cut in match.span():
                if cut > done:
                    n_bytes += len(string[done:cut].encode("utf-8", "surrogateescape"))
                    done = cut
                    yield n_bytes
        if n_bytes < len(text):
            yield len(text)

    return np.fromiter(ends(), dtype=np.int32)
