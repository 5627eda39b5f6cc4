"""Special tokens in a text: found leftmost first, and the longest where several begin at one
place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lmsmith.errors import TokenizerError


class Specials:
    """Some special tokens, to be looked for in UTF-8 text. Raises TokenizerError for one that is
    empty.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        if "" in self.names:
            raise TokenizerError("a special token is empty: it would be everywhere in a text.")
        encoded = sorted(
            (name.encode() for name in self.names), key=lambda name: (-len(name), name)
        )
        self.longest = len(encoded[0]) if encoded else 0  # bytes
        self._encoded = encoded
        self._pattern = re.compile(b"|".join(map(re.escape, encoded)))

    def find(self, text: bytes | bytearray, start: int = 0) -> Iterator[re.Match[bytes]]:
        """All of them from `start` on."""
        # Searching for one string is much faster than for an expression, and mostly there is none.
        if any(text.find(name, start) >= 0 for name in self._encoded):
            yield from self._pattern.finditer(text, start)

    def between(self, text: bytes) -> list[bytes]:
        """The text between them."""
        return self._pattern.split(text) if any(name in text for name in self._encoded) else [text]

    def cut_before(self, text: bytes | bytearray, cut: int) -> int:
        """The last place up to `cut` that is inside no special token.

        Nor inside one that an overlapping one would win over: which of them wins hangs on all the
        text before.
        """
        inside = True
        while inside:
            inside = False
            for name in self._encoded:
                start = text.find(name, max(0, cut - len(name) + 1), cut + len(name) - 1)
                if start >= 0:
                    cut, inside = start, True
        return cut


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text before any other step, with the flags of `tokenizers`.

    `special`: matched only where special tokens are allowed; others are matched in every text.
    `normalized`: matched after all tokens that are not, in the text between those.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False


class AddedTokens:
    """Finds added tokens in UTF-8 text as `tokenizers` does where there is no normalizer."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.names = frozenset[str]()
        self._passes: list[tuple[Specials, dict[bytes, AddedToken]]] = []
        known = sorted(tokens, key=lambda token: token.normalized)
        for _, some in itertools.groupby(known, key=lambda token: token.normalized):
            by_content = {token.content.encode(): token for token in some}
            found = Specials(token.content for token in by_content.values())
            self.names |= found.names
            self._passes.append((found, by_content))

    def find(self, text: bytes, allowed: frozenset[str]) -> list[tuple[int, int, int]]:
        """(start, stop, id), in order. A special token that is not in `allowed` is text.

        It still hides other tokens that overlap with it, as in `tokenizers`.
        """
        matches: list[tuple[int, int, int]] = []
        for specials, by_content in self._passes:
            gaps = zip([0, *(stop for _, stop, _ in matches)], [*(start for start, _, _ in matches), len(text)],
                       strict=True)  # fmt: skip
            more = []
            for begin, end in list(gaps):
                part = text[begin:end] if (begin, end) != (0, len(text)) else text
                for match in specials.find(part):
                    token = by_content[match.group()]
                    if not token.special or token.content in allowed:
                        more.append((begin + match.start(), begin + match.end(), token.id))
            matches = sorted(matches + more)
        return matches
