"""Finds special and added tokens in a text: leftmost first, and the longest of those that start at
the same position.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lmsmith.errors import TokenizerError


class Specials:
    """Finds the special tokens `names` in UTF-8 text. Raises TokenizerError for an empty name."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        if "" in self.names:
            raise TokenizerError(
                "a special token is empty and would match everywhere in a text. Remove it."
            )
        encoded = sorted(
            (name.encode() for name in self.names), key=lambda name: (-len(name), name)
        )
        self.longest = len(encoded[0]) if encoded else 0  # bytes
        self._encoded = encoded
        self._pattern = re.compile(b"|".join(map(re.escape, encoded)))

    def find(self, text: bytes | bytearray, start: int = 0) -> Iterator[re.Match[bytes]]:
        """Yields the matches in `text` from `start` on."""
        # Searching for strings is much faster than for an expression, and most texts have none.
        if any(text.find(name, start) >= 0 for name in self._encoded):
            yield from self._pattern.finditer(text, start)

    def between(self, text: bytes) -> list[bytes]:
        """Returns the parts of `text` between special tokens."""
        return self._pattern.split(text) if any(name in text for name in self._encoded) else [text]

    def cut_before(self, text: bytes | bytearray, cut: int) -> int:
        """Returns the last position up to `cut` that is not inside any occurrence of a special
        token.

        This includes occurrences that overlap an earlier match, because which of them match
        depends on all of the text before.
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
    """A token that is matched in the text before pre-tokenization, with the flags of `tokenizers`.

    `special`: matched only if special tokens are allowed; other added tokens always are.
    `normalized`: matched in a second pass, in the text between the matches of the first.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False


class AddedTokens:
    """Finds added tokens in UTF-8 text as `tokenizers` does without a normalizer."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.names = frozenset[str]()
        self._passes: list[tuple[Specials, dict[bytes, AddedToken]]] = []
        known = sorted(tokens, key=lambda token: token.normalized)
        for _, group in itertools.groupby(known, key=lambda token: token.normalized):
            by_content = {token.content.encode(): token for token in group}
            specials = Specials(token.content for token in by_content.values())
            self.names |= specials.names
            self._passes.append((specials, by_content))

    def find(self, text: bytes, allowed: frozenset[str]) -> list[tuple[int, int, int]]:
        """Returns the matches as (start, stop, id), in order. Special tokens not in `allowed` are
        text.

        They still hide other tokens that overlap them, as in `tokenizers`.
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
