"""tiktoken as the reference for pieces and ids."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmsmith.tokens.printable import from_printable
from lmsmith.tokens.split import PATTERNS

BYTES = {bytes([byte]): byte for byte in range(256)}

# One or more characters of each class that the patterns distinguish, including letters of
# contractions.
REPRESENTATIVES = (
    "a", "S", "t", "l", "\u017f", "é", "É", "ǅ", "ʰ", "中", "1", "٣", " ", "\t", "\n", "\r", "\u00a0", "\u3000",
    "'", "!", "/", "“", "\u0301", "🙂", "\x00",
)  # fmt: skip
# One character per class; "!" is in none of the others.
FEW = ("s", "L", "é", "中", "1", " ", "\t", "\n", "\u3000", "'", "!", "/", "\u0301")


def encoding(pattern: str, ranks: dict[bytes, int], special_tokens: dict[str, int] | None = None):
    tiktoken = pytest.importorskip("tiktoken")
    return tiktoken.Encoding(
        pattern, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens or {}
    )


def pieces(text: bytes, ours: Sequence[bytes], pattern_name: str) -> list[bytes]:
    """Returns `ours` if tiktoken splits the text into the same pieces, and something else if not.

    tiktoken does not return pieces. But if all of `ours` are tokens, and so are all concatenations
    of two neighbours, its tokens equal `ours` if and only if its pieces do: a larger piece would
    become a larger token.
    """
    ranks = dict(BYTES)
    for piece in ours:
        ranks.setdefault(piece, len(ranks))
    for left, right in itertools.pairwise(ours):
        ranks.setdefault(left + right, len(ranks))
    engine = encoding(PATTERNS[pattern_name].regex, ranks)
    return engine.decode_tokens_bytes(engine.encode_ordinary(text.decode()))


def gpt2_ranks(folder: Path) -> dict[bytes, int]:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return {from_printable(text): i for text, i in vocabulary.items() if text != "<|endoftext|>"}
