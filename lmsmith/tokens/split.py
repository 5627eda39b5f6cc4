"""Pre-tokenization: splits a text into pieces, within which byte-pair encoding merges. Has the
patterns of GPT-2, GPT-4, o200k, nanochat, Llama 3 and Qwen 2.

The patterns are regular expressions. A scanner written for them gives the same pieces on every
input, about thirty times as fast. It works on UTF-8 bytes and has two parts:

- `piece_end` tries the alternatives of the expression in order, character by character, for all of
  Unicode.
- `piece_starts` finds all pieces in the next 64 bytes at once if they are ASCII: it makes bit masks
  of letters, digits and white space, and the rules of the pattern are shifts and ands of these. It
  returns only the starts that are certain; `piece_end` handles the rest.

Other expressions run through the `regex` module, which is slower.

Each byte that is not UTF-8 counts as one character that is not a letter, number or space.

Both parts read beyond the end of the text, so `PADDING` zero bytes must follow it.
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
    inner,
    kernel,
    load8,
    load32,
    load64,
    positions_between,
    shifted_down,
    trailing_zeros,
)
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.unicode_classes import LOWER, MARK, NUMBER, OTHER, SPACE, UPPER, unicode_classes

log = logging.getLogger(__name__)

PADDING = 64
NO_SPECIALS = Specials(())

# Families of patterns: the set of rules that the scanner follows.
GPT2 = 0
GPT4 = 1
O200K = 2
REGEX = 3  # any other expression, run by the `regex` module


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
    n_pieces = 0
    for i in range(len(starts)):
        at, end = text + starts[i], text + stops[i]
        window, mask = at, 0
        while at < end:
            if mask == 0:
                window, mask = at, piece_starts(at, end, family, max_digits)
            if mask != 0:
                at = window + trailing_zeros(mask)
                mask &= mask - 1
            else:
                at = piece_end(at, end, table, family, max_digits, space_tail)
            ends[n_pieces] = at - text
            n_pieces += 1
        first_pieces[i + 1] = n_pieces


ahead.part("split", 2.4, _split)


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


ahead.part("cut", 0.8, _last_cut)


# ---- one piece, any text -------------------------------------------------------------------------


@inner
def piece_end(at, end, table, family, max_digits, space_tail):
    """Returns the address where the piece that starts at the address `at` ends."""
    byte = load8(at)
    if byte == APOSTROPHE and family != O200K:
        length = contraction(at, family == GPT4)
        if length:
            return at + length
    char = char_at(at, table)
    kind, after = char & 255, at + (char >> 8)

    if family == GPT2:
        # | ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++
        begin = at + (byte == BLANK)
        kind = char_at(begin, table) & 255
        if begin < end:
            if kind >= UPPER:
                return letters_end(begin, table)
            if kind == NUMBER:
                if max_digits == 1 and begin > at:
                    return begin  # \s+(?=\p{N})
                return numbers_end(begin, table, max_digits)
            if kind != SPACE:
                return others_end(begin, end, table)
    else:
        # [^\r\n\p{L}\p{N}]?+\p{L}++ and similar: a word, with one character before it
        first_of_word = UPPER if family == GPT4 else MARK
        word = at
        if kind < first_of_word and kind != NUMBER and byte != RETURN and byte != NEWLINE:
            word = after
        if word < end and (char_at(word, table) & 255) >= first_of_word:
            if family == GPT4:
                return letters_end(word, table)
            word = cased_word_end(word, table)
            return word + (contraction(word, True) if load8(word) == APOSTROPHE else 0)
        # |\p{N}{1,3}+
        if kind == NUMBER:
            return numbers_end(at, table, max_digits)
        # | ?[^\s\p{L}\p{N}]++[\r\n]*+
        begin = at + (byte == BLANK)
        if begin < end and (char_at(begin, table) & 255) in (OTHER, MARK):
            at = others_end(begin, end, table)
            while (
                load8(at) == NEWLINE
                or load8(at) == RETURN
                or (family == O200K and load8(at) == SLASH)
            ):
                at += 1
            return at

    # White space: |\s++$|\s*[\r\n]|\s+(?!\S)|\s
    last = begin = at
    after_newline = 0
    char = char_at(at, table)
    while char & 255 == SPACE:
        last = at
        at += char >> 8
        if load8(last) == NEWLINE or load8(last) == RETURN:
            after_newline = at
        char = char_at(at, table)
    if at == end and space_tail:
        return end
    if after_newline and family != GPT2:
        return after_newline
    if at == end or last == begin or (family == GPT2 and max_digits == 1 and char & 255 == NUMBER):
        return at
    return last


APOSTROPHE, BLANK, NEWLINE, RETURN, SLASH = ord("'"), ord(" "), ord("\n"), ord("\r"), ord("/")
IDEOGRAPHS = 0xE5, 0xE9  # range of the first of three bytes: U+5000 to U+9FFF
CYRILLIC = 0xD0, 0xD1  # range of the first of two bytes: U+0400 to U+047F
_S, _D, _M, _T, _L, _V, _E, _R = map(ord, "sdmtlver")


@inner
def contraction(at, any_case):
    """Returns the length in bytes of 's 'd 'm 't 'll 've 're at an apostrophe; 0 if there is none.

    `any_case`: ignore case. U+017F (long s) counts as an s then.
    """
    fold = 0x20 if any_case else 0
    first = load8(at + 1) | fold
    if first in (_S, _D, _M, _T):
        return 2
    second = load8(at + 2) | fold
    if (first == _L and second == _L) or (second == _E and first in (_V, _R)):
        return 3
    if any_case and load8(at + 1) == 0xC5 and load8(at + 2) == 0xBF:
        return 3
    return 0


@inner
def letters_end(at, table):
    while True:
        four = load32(at)
        first = four & 0xFF
        # Two frequent ranges that contain only letters, recognized without decoding.
        if IDEOGRAPHS[0] <= first <= IDEOGRAPHS[1] and four & 0xC0C000 == 0x808000:
            at += 3
        elif CYRILLIC[0] <= first <= CYRILLIC[1] and four & 0xC000 == 0x8000:
            at += 2
        else:
            char = char_at(at, table)
            if char & 255 < UPPER:
                return at
            at += char >> 8


@inner
def numbers_end(at, table, max_digits):
    char = char_at(at, table)
    while char & 255 == NUMBER and max_digits > 0:
        at += char >> 8
        max_digits -= 1
        char = char_at(at, table)
    return at


@inner
def others_end(at, end, table):
    char = char_at(at, table)
    while at < end and (char & 255 == OTHER or char & 255 == MARK):  # the padding is "other" too
        at += char >> 8
        char = char_at(at, table)
    return at


@inner
def cased_word_end(at, table):
    """Returns the end of a word in o200k's pattern: upper case, then lower case; caseless letters
    and marks are in both classes.

    The first alternative is [upper]*[lower]+. If no lower-case letter follows, the expression
    backtracks to the last caseless character. Only if there is none, the second alternative
    [upper]+[lower]* matches, with upper case only.
    """
    after_last_caseless = 0
    char = char_at(at, table)
    while char & 255 >= MARK and char & 255 != LOWER:
        at += char >> 8
        if char & 255 != UPPER:
            after_last_caseless = at
        char = char_at(at, table)
    if char & 255 != LOWER:
        return after_last_caseless if after_last_caseless else at
    while char & 255 >= MARK and char & 255 != UPPER:
        at += char >> 8
        char = char_at(at, table)
    return at


@inner
def char_at(at, table):
    """Returns the character at an address: its class plus 256 times its length in bytes. Bytes that
    are not UTF-8 are OTHER, of length 1.
    """
    byte = load8(at)
    if byte < 0x80:
        return load8(table + byte) | 1 << 8
    second = load8(at + 1) ^ 0x80  # the 6 bits of a continuation byte; 64 or more if it is not one
    if byte < 0xE0:
        if byte >= 0xC2 and second < 64:
            return load8(table + ((byte & 0x1F) << 6 | second)) | 2 << 8
    elif byte < 0xF0:
        third = load8(at + 2) ^ 0x80
        code_point = (byte & 0x0F) << 12 | second << 6 | third
        if second < 64 and third < 64 and code_point >= 0x800 and code_point & 0xF800 != 0xD800:
            return load8(table + code_point) | 3 << 8
    else:
        third, fourth = load8(at + 2) ^ 0x80, load8(at + 3) ^ 0x80
        code_point = (byte & 0x07) << 18 | second << 12 | third << 6 | fourth
        if (
            byte < 0xF5
            and second < 64
            and third < 64
            and fourth < 64
            and 0x10000 <= code_point < 0x110000
        ):
            return load8(table + code_point) | 4 << 8
    return OTHER | 1 << 8


# ---- many pieces, ASCII --------------------------------------------------------------------------


@inner
def piece_starts(at, end, family, max_digits):
    """Mask of the positions where pieces start after `at`, within the 64 bytes from `at`. A piece
    must start at `at`. 0 if no start is certain.

    A position is hard if it has a byte that is not ASCII, is the end of the text, or is one of the
    cases below. Starts are certain up to two bytes before the first hard position. The mask
    contains all starts up to its last one.
    """
    if load64(at) & -0x7F7F7F7F7F7F7F80:  # not ASCII soon: the mask would be too short to pay off
        return 0
    letters = positions_between(at, 97, 122) | positions_between(at, 65, 90)
    digits = positions_between(at, 48, 57)
    blanks = positions_between(at, BLANK, BLANK)
    spaces = positions_between(at, 9, 13) | blanks
    others = ~(letters | digits | spaces)
    hard = positions_between(at, 128, 255) | 1 << min(end - at, 63)

    # A piece starts where the class changes, but not after a space, which belongs to the next
    # characters; and at the last white space before something else.
    starts = ~(
        letters & letters << 1 | digits & digits << 1 | others & others << 1 | spaces & spaces << 1
    )
    apostrophes = positions_between(at, APOSTROPHE, APOSTROPHE) & shifted_down(letters, 1)
    if family == GPT2:
        starts &= ~(blanks << 1) | spaces
        if max_digits == 1:
            starts |= digits | spaces & ~shifted_down(spaces | digits, 1)
        else:
            starts |= spaces & ~shifted_down(spaces, 1)
        apostrophes &= starts
    else:
        newlines = positions_between(at, NEWLINE, NEWLINE) | positions_between(at, RETURN, RETURN)
        if newlines:
            # Newlines after other characters belong to these: the carry of an addition fills the
            # runs of newlines that start there.
            first = newlines & others << 1
            taken = ((first + newlines ^ newlines) | first) & newlines
            spaces &= ~taken
            if family == O200K:
                hard |= positions_between(at, SLASH, SLASH) & taken << 1
            # Any other run of white space ends a piece after its last newline. Spaces after a
            # newline are hard if the 64 bytes do not contain their end or another newline follows:
            # the split depends on the end of the run.
            indents = spaces & ~newlines
            first = indents & newlines << 1
            if first:
                indents &= (1 << trailing_zeros(hard)) - 1
                beyond = indents + (first & indents) & ~indents
                if beyond & (newlines | hard):
                    hard |= first
            starts = starts & ~(taken | spaces) | spaces & ~(spaces << 1) | first
            starts |= indents & ~shifted_down(spaces, 1)
            starts &= ~(letters & indents << 1 | others & blanks << 1)
        else:
            starts |= spaces & ~shifted_down(spaces, 1)
            starts &= ~(letters & spaces << 1 | others & blanks << 1)
        # A single other character at the start of a piece belongs to the letters after it.
        single = others & ~(others << 1) & ~(blanks << 1) & ~shifted_down(others, 1)
        starts &= ~(letters & single << 1)
        too_many = digits
        for _ in range(min(max_digits, 4)):
            too_many = digits & too_many << 1
        hard |= too_many
        if family == GPT4:
            apostrophes &= single
        else:
            capitals = positions_between(at, 65, 90)
            starts |= capitals & (letters & ~capitals) << 1
            apostrophes &= letters << 1

    after = 0
    while apostrophes:
        position = trailing_zeros(apostrophes)
        apostrophes &= apostrophes - 1
        if family == O200K and position == after:
            continue  # follows a contraction, so it starts a piece
        length = contraction(at + position, family != GPT2)
        if length:
            within = (1 << length) - 1 << position
            starts &= ~within if family == O200K else ~(within & within << 1)
            if position + length < 64:
                starts |= 1 << position + length
            after = position + length
    return starts & (1 << max(trailing_zeros(hard) - 1, 0)) - 1 & -2


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
