"""The vocabulary of byte-level byte-pair encoding: tokens and merges, checked, and as tables for
compiled code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.tokens.merge import Merges


class Vocabulary:
    """The tokens by id, the merges, and the ids of added tokens, as `BpeTokenizer` has them.

    `id_of`: id of each token's bytes. Raises TokenizerError for a vocabulary that lacks bytes, has
    duplicates, or does not fit the merges.
    """

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        merges: Sequence[tuple[int, int]] | None,
        named_ids: Mapping[str, int],
    ) -> None:
        self.tokens, self.merges, self.named_ids = tokens, merges, named_ids
        self.id_of = {token: i for i, token in enumerate(tokens) if token is not None}
        self._check_tokens()
        self._check_named_ids()
        self._check_merges()

    def _check_tokens(self) -> None:
        n_tokens = sum(token is not None for token in self.tokens)
        if len(self.id_of) != n_tokens:
            twice = next(
                t for i, t in enumerate(self.tokens) if t is not None and self.id_of[t] != i
            )
            raise TokenizerError(
                f"the vocabulary contains the token {twice!r} twice. Remove one of them."
            )
        missing = [byte for byte in range(256) if bytes([byte]) not in self.id_of]
        if missing:
            raise TokenizerError(
                f"the vocabulary is not one of byte-level BPE: it lacks tokens for {len(missing)} "
                f"of the 256 bytes, the first of them 0x{missing[0]:02X}. Add them."
            )

    def _check_named_ids(self) -> None:
        for special, number in self.named_ids.items():
            if not special:
                raise TokenizerError(
                    "a special token is empty and would match everywhere in a text. Remove it."
                )
            if not 0 <= number < len(self.tokens) or self.tokens[number] is not None:
                raise TokenizerError(
                    f"the special token {special!r} has the id {number}, which belongs to another "
                    f"token or is outside 0 to {len(self.tokens) - 1}. Give it another id."
                )
        if len(set(self.named_ids.values())) < len(self.named_ids):
            raise TokenizerError("two special tokens have the same id. Give each its own.")

    def _check_merges(self) -> None:
        for rank, (left, right) in enumerate(self.merges or ()):
            if self._joined(left, right) not in self.id_of:
                raise TokenizerError(
                    f"the vocabulary does not fit its merges: merge {rank + 1}, "
                    f"{self.tokens[left]!r} with {self.tokens[right]!r}, produces a token that is "
                    f"not in the vocabulary. Use the vocabulary and merges of one tokenizer."
                )

    def _joined(self, left: int, right: int) -> bytes:
        first, second = self.tokens[left], self.tokens[right]
        assert first is not None
        assert second is not None
        return first + second

    @functools.cached_property
    def bytes_of_ids(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The bytes of all ids, and the start of each id's, as `decode_ids` needs them."""
        special = {number: text.encode() for text, number in self.named_ids.items()}
        parts = [
            special.get(i, b"") if token is None else token for i, token in enumerate(self.tokens)
        ]
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        flat = np.frombuffer(bytearray(b"".join(parts) + bytes(8)), dtype=np.uint8)
        return flat, np.concatenate([[0], np.cumsum(lengths)])

    @functools.cached_property
    def tables(self) -> Merges:
        """The merges as `encode_texts` needs them."""
        pairs = np.array(self.pairs, dtype=np.int64).reshape(-1, 3)
        # Without a list of merges the priority is the id of the result.
        ranks = pairs[:, 2].copy() if self.merges is None else np.arange(len(pairs))
        flat, starts = self.bytes_of_ids
        inner = np.ones(len(flat), dtype=bool)
        inner[starts] = False  # the byte before a token's first byte is in another token
        adjacent = np.zeros(65536, dtype=np.uint8)
        neighbours = flat[:-1].astype(np.int64) << 8 | flat[1:]
        adjacent[neighbours[inner[1:]]] = 1
        byte_ids = np.array([self.id_of[bytes([byte])] for byte in range(256)], dtype=np.int32)
        left, right, result = pairs.T.copy()
        return Merges.of(byte_ids, left, right, result, ranks, adjacent)

    @functools.cached_property
    def pairs(self) -> list[tuple[int, int, int]]:
        """(left, right, result) ids of all merges, highest priority first."""
        if self.merges is not None:
            return [
                (left, right, self.id_of[self._joined(left, right)]) for left, right in self.merges
            ]
        get = self.id_of.get
        return sorted(
            (
                (left, right, i)
                for token, i in self.id_of.items()
                for cut in range(1, len(token))
                if (left := get(token[:cut])) is not None
                and (right := get(token[cut:])) is not None
            ),
            key=lambda pair: (pair[2], pair[0], pair[1]),
        )
