"""Special tokens in a text: found leftmost first, and the longest where several begin at one place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lmsmith.errors import TokenizerError


class Specials:
    """Some special tokens, to be looked for in UTF-8 text. Raises TokenizerError for one that is empty."""

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

        Nor inside one that an overlapping one would win over: which of them wins hangs on all the text before.
        """
        inside = True
        while inside:
            inside = False
            for name in self._encoded:
                start = text.find(name, max(0, cut - len(name) + 1), cut + len(name) - 1)
                if start >= 0:
                    cut, inside = start, True
        return cut
