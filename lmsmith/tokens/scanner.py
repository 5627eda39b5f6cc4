"""The compiled scanner of pre-tokenization: finds where pieces end, for the patterns of `split.py`.

It works on UTF-8 bytes and has two parts:

- `piece_end` tries the alternatives of the expression in order, character by character, for all of
  Unicode.
- `piece_starts` finds all pieces in the next 64 bytes at once if they are ASCII: it makes bit masks
  of letters, digits and white space, and the rules of the pattern are shifts and ands of these. It
  returns only the starts that are certain; `piece_end` handles the rest.

Both parts read beyond the end of the text, so `PADDING` zero bytes must follow it.
"""

from __future__ import annotations

from functools import partial

from lmsmith.tokens.compiled import (
    HIGH_BITS,
    inner,
    load8,
    load32,
    load64,
    positions_between,
    shifted_down,
    trailing_zeros,
)
from lmsmith.tokens.unicode_classes import LOWER, MARK, NUMBER, OTHER, SPACE, UPPER

PADDING = 64

# Families of patterns: the set of rules that the scanner follows.
GPT2 = 0
GPT4 = 1
O200K = 2


_inlined = partial(inner, forceinline=True)  # parts of functions that run for each piece


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

    return _white_space_end(at, end, table, family, max_digits, space_tail)


@_inlined
def _white_space_end(at, end, table, family, max_digits, space_tail):
    r"""`piece_end` for white space: |\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
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
            at = ideographs_end(at)
        elif CYRILLIC[0] <= first <= CYRILLIC[1] and four & 0xC000 == 0x8000:
            at += 2
        else:
            char = char_at(at, table)
            if char & 255 < UPPER:
                return at
            at += char >> 8


@inner
def ideographs_end(at):
    """Returns the end of the ideographs from U+4E00 to U+9FFF among the 64 bytes at an address."""
    first = _ideographs(at, positions_between(at, 0x80, 0xBF))
    return at + trailing_zeros(~(first | first << 1 | first << 2))


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


# ---- many pieces at once -------------------------------------------------------------------------


@inner
def piece_starts(at, end, family, max_digits):
    """Mask of the positions where pieces start after `at`, within the 64 bytes from `at`. A piece
    must start at `at`. 0 if no start is certain.

    A position is hard if it is the end of the text, has a byte that is neither ASCII nor in one of
    the ranges of `_more_letters` and `_more_others`, or is one of the cases below. Starts are
    certain up to two bytes before the first hard position. The mask contains all starts up to its
    last one.
    """
    high = load64(at) & HIGH_BITS
    if high and (family == O200K or not _is_known(at + (trailing_zeros(high) >> 3), family)):
        return 0  # the mask would be too short to pay off
    letters = positions_between(at, 97, 122) | positions_between(at, 65, 90)
    digits = positions_between(at, 48, 57)
    blanks = positions_between(at, BLANK, BLANK)
    spaces = positions_between(at, 9, 13) | blanks
    high = positions_between(at, 128, 255)
    others = ~(letters | digits | spaces | high)
    if high and family != O200K:  # there, classes of letters and contractions differ
        found = _more_letters(at)
        letters |= found
        high &= ~found
        if family == GPT2:  # elsewhere a single character belongs to the letters after it
            found = _more_others(at)
            others |= found
            high &= ~found
    hard = high | 1 << min(end - at, 63)

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

    starts = _with_contractions(starts, apostrophes, at, family)
    return starts & (1 << max(trailing_zeros(hard) - 1, 0)) - 1 & -2


@inner
def _is_known(at, family):
    """Returns whether the character at an address that is not ASCII may be one of those of
    `_more_letters` and `_more_others`, by its first two bytes.
    """
    first, second = load8(at), load8(at + 1)
    return (
        0xE4 <= first <= 0xE9
        or CYRILLIC[0] <= first <= CYRILLIC[1]
        or first == 0xC3
        or (
            family == GPT2
            and ((first in (0xE2, 0xE3) and second == 0x80) or (first == 0xEF and second == 0xBC))
        )
    )


@inner
def _more_letters(at):
    """Mask of the bytes of some letters that are not ASCII, within the 64 bytes from `at`: of
    Latin-1 (U+00C0 to U+00FF), Cyrillic (U+0400 to U+047F), and ideographs (U+4E00 to U+9FFF).
    """
    follow = positions_between(at, 0x80, 0xBF)
    second = shifted_down(follow, 1)
    signs = positions_between(at, 0x97, 0x97) | positions_between(
        at, 0xB7, 0xB7
    )  # of times, divided by
    two = second & (
        positions_between(at, *CYRILLIC)
        | positions_between(at, 0xC3, 0xC3) & ~shifted_down(signs, 1)
    )
    three = _ideographs(at, follow)
    return two | two << 1 | three | three << 1 | three << 2


@inner
def _ideographs(at, follow):
    """Mask of the first bytes of the ideographs from U+4E00 to U+9FFF within the 64 bytes from
    `at`. `follow`: mask of the bytes that continue a character.
    """
    first = positions_between(at, *IDEOGRAPHS) | (
        positions_between(at, 0xE4, 0xE4) & shifted_down(positions_between(at, 0xB8, 0xBF), 1)
    )
    return first & shifted_down(follow, 1) & shifted_down(follow, 2)


@inner
def _more_others(at):
    """Mask of the bytes of some punctuation that is not ASCII, within the 64 bytes from `at`:
    U+2010 to U+2027, of Chinese (U+3001, 3002, 3008 to 301F) and full-width (U+FF01 to FF0F, FF1A
    to FF20).
    """
    general = positions_between(at, 0xE2, 0xE2) & shifted_down(
        positions_between(at, 0x80, 0x80) & shifted_down(positions_between(at, 0x90, 0xA7), 1), 1
    )
    third = positions_between(at, 0x81, 0x82) | positions_between(at, 0x88, 0x9F)
    chinese = positions_between(at, 0xE3, 0xE3) & shifted_down(
        positions_between(at, 0x80, 0x80) & shifted_down(third, 1), 1
    )
    third = positions_between(at, 0x81, 0x8F) | positions_between(at, 0x9A, 0xA0)
    full_width = positions_between(at, 0xEF, 0xEF) & shifted_down(
        positions_between(at, 0xBC, 0xBC) & shifted_down(third, 1), 1
    )
    found = general | chinese | full_width
    return found | found << 1 | found << 2


@_inlined
def _with_contractions(starts, apostrophes, at, family):
    """Corrects the mask `starts` where contractions begin at `apostrophes`."""
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
    return starts
