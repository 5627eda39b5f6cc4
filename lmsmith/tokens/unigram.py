"""The segmentation of a unigram language model, with the bits of SentencePiece.

The best segmentation maximizes the sum of the scores of its pieces (Kudo 2018, eq. 7), found by
dynamic programming from left to right. SentencePiece adds in float32, and the library `tokenizers`
in float64: runs of a character, which have many segmentations of equal score, differ. So this
program adds in float32. Source: SentencePiece 0.2, `unigram_model.cc`, `EncodeOptimized`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lmsmith.tokens.compiled import kernel

_PENALTY = 10.0  # of an unknown character, below the lowest score
_CODE_POINTS = 21  # bits


class Unigram:
    """Segments normalized text.

    `pieces`: text -> id and score. `symbols`: text -> id of user-defined symbols, which are always
    chosen. `bytes_of`: the id of each byte, with byte fallback.
    """

    def __init__(
        self,
        pieces: Mapping[str, tuple[int, float]],
        symbols: Mapping[str, int],
        unknown: int,
        bytes_of: Mapping[int, int],
    ) -> None:
        self.unknown, self.bytes_of = unknown, bytes_of
        scores = [np.float32(score) for _, score in pieces.values()] or [np.float32(0)]
        self.unknown_score = np.float32(min(scores) - np.float32(_PENALTY))
        most = max(scores)
        known = {text: (i, np.float32(score)) for text, (i, score) in pieces.items()}
        for text, i in symbols.items():
            known[text] = i, np.float32(float(np.float32(len(text.encode())) * most) - 0.1)
        edges: dict[int, int] = {}
        found: list[tuple[int, np.float32]] = [(-1, np.float32(0))]
        for text, entry in known.items():
            node = 0
            for letter in text:
                key = node << _CODE_POINTS | ord(letter)
                if key not in edges:
                    edges[key] = len(found)
                    found.append((-1, np.float32(0)))
                node = edges[key]
            found[node] = entry
        self.ids = np.array([i for i, _ in found], np.int64)
        self.scores = np.array([score for _, score in found], np.float32)
        size = 1 << (2 * len(edges) + 1).bit_length()
        self.table = np.full((size, 2), -1, np.int64)
        _fill(
            self.table,
            np.fromiter(edges.keys(), np.int64, len(edges)),
            np.fromiter(edges.values(), np.int64, len(edges)),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A run of unknown characters is one id, or those of its bytes."""
        letters = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        starts = np.full(len(letters) + 1, -1, np.int64)
        ids = np.zeros(len(letters) + 1, np.int64)
        best = np.zeros(len(letters) + 1, np.float32)
        _segment(
            letters,
            self.table,
            self.ids,
            self.scores,
            self.unknown,
            self.unknown_score,
            starts,
            ids,
            best,
        )
        spans = []
        end = len(letters)
        while end > 0:
            spans.append((int(starts[end]), end, int(ids[end])))
            end = int(starts[end])
        found: list[int] = []
        after_unknown = False
        for start, end, number in reversed(spans):
            if number != self.unknown:
                found.append(number)
            elif self.bytes_of:
                found += [self.bytes_of[byte] for byte in text[start:end].encode()]
            elif not after_unknown:
                found.append(number)
            after_unknown = number == self.unknown
        return found


@kernel
def _fill(table, keys, values):
    """Puts keys and values into a hash table of (size, 2), size a power of two, free keys -1."""
    mask = len(table) - 1
    for i in range(len(keys)):
        at = (keys[i] * 0x9E3779B1 >> 7) & mask
        while table[at, 0] >= 0:
            at = (at + 1) & mask
        table[at, 0], table[at, 1] = keys[i], values[i]


@kernel
def _segment(letters, table, node_ids, node_scores, unknown, unknown_score, starts, ids, best):
    """Writes, for each end, the start, id and total score of the last piece of the best way."""
    mask = len(table) - 1
    n = len(letters)
    for start in range(n):
        before = best[start]
        single = False
        node = 0
        for end in range(start + 1, n + 1):
            key = (node << 21) | letters[end - 1]
            at = (key * 0x9E3779B1 >> 7) & mask
            while table[at, 0] >= 0 and table[at, 0] != key:
                at = (at + 1) & mask
            if table[at, 0] < 0:
                break
            node = table[at, 1]
            if node_ids[node] >= 0:
                score = node_scores[node] + before
                if starts[end] < 0 or score > best[end]:
                    starts[end], ids[end], best[end] = start, node_ids[node], score
                single = single or end == start + 1
        if not single:
            score = unknown_score + before
            if starts[start + 1] < 0 or score > best[start + 1]:
                starts[start + 1], ids[start + 1], best[start + 1] = start, unknown, score
