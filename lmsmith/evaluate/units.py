"""The units of a text on which models are compared (`significance.py`), and what each unit costs.

A unit is a document. A text with fewer than 20 documents is cut into blocks instead: about 100, of
at least 1,000 bytes each, that end at a line break or space. A text that is too short for 20 blocks
cannot be tested. Blocks of one document are not quite independent: a result from blocks holds for
more text of the same kind, by the same authors, not for text in general.

Models with different tokenizers are compared on the same units, so a unit is a range of bytes. The
end-of-text token after a document belongs to the document. Of a token that lies in two blocks, each
block pays the share that its bytes have. The costs of all units add up to the cost of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmsmith.evaluate.likelihood import Score
from lmsmith.evaluate.significance import FEWEST
from lmsmith.evaluate.texts import Encoded, to_bytes, unknown_in
from lmsmith.tokens.tokenizer import UNKNOWN, Tokenizer

N_BLOCKS = 100
LEAST_BLOCK = 1_000  # bytes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """The units of a text. `kind`: "documents" or "blocks"; `blocks`: those of each document, as
    text; a document that is a unit is one block.
    """

    kind: str
    blocks: tuple[tuple[str, ...], ...]

    @property
    def n_bytes(self) -> Floats:
        """The bytes of each unit."""
        return np.array([len(to_bytes(block)) for cut in self.blocks for block in cut], np.float64)

    def __len__(self) -> int:
        return sum(map(len, self.blocks))


def units_of(documents: Sequence[str]) -> Units | None:
    """The units of a text; None if it is too short for a test."""
    if len(documents) >= FEWEST:
        return Units("documents", tuple((document,) for document in documents))
    size = max(LEAST_BLOCK, sum(map(len, documents)) // N_BLOCKS)
    units = Units("blocks", tuple(tuple(_cut(document, size)) for document in documents))
    return units if len(units) >= FEWEST else None


def unit_bits(
    units: Units, tokenizer: Tokenizer, encoded: Encoded, nats: Floats, score: Score
) -> Floats:
    """The bits that a model needs for each unit, in order.

    `nats` (len(encoded.ids),): the cost of each id of the text, `score` that of the whole. Unknown
    text costs as in `Score`, where the bits for its position are shared equally by its units. If
    the model gives any of the text probability zero, all costs are infinite.
    """
    if score.n_impossible:
        return np.full(len(units), np.inf)
    bits = []
    first = 0
    given = int(encoded.starts_with_end_of_text)
    per_unknown = 0.0
    if score.n_unknown:
        per_unknown = (score.unknown_bits - 8 * score.n_unknown_bytes) / score.n_unknown
    for blocks, counts in zip(units.blocks, encoded.documents, strict=True):
        begin, end = first + given, first + counts.n_ids
        unknown = [unknown_in(tokenizer, block) for block in blocks]
        n_known = [
            len(to_bytes(block)) - n_bytes
            for block, (_, n_bytes) in zip(blocks, unknown, strict=True)
        ]
        costs = _divided(nats[begin:end], _lengths(tokenizer, encoded.ids[begin:end]), n_known)
        costs[-1] += nats[end : end + given].sum()  # the end-of-text token after the document
        for cost, (n_unknown, n_bytes) in zip(costs.tolist(), unknown, strict=True):
            bits.append(cost / np.log(2) + 8 * n_bytes + per_unknown * n_unknown)
        first = end
    return np.array(bits)


def _cut(document: str, size: int) -> Iterator[str]:
    """Blocks of about `size` characters. They end before white space, if there is any nearby."""
    n = max(1, round(len(document) / size))
    cuts = [0]
    for index in range(1, n):
        at = index * len(document) // n
        near = re.search(r"\n|\s", document[at : at + size // 4])
        cuts.append(at + near.start() if near else at)
    for start, end in zip(cuts, [*cuts[1:], len(document)], strict=True):
        if start < end:
            yield document[start:end]


def _lengths(tokenizer: Tokenizer, ids: npt.NDArray[np.uint32]) -> Floats:
    """The number of bytes of known text that each id stands for."""
    kinds, which = np.unique(ids, return_inverse=True)
    texts: Iterable[bytes] = (tokenizer.decode_bytes([one]) for one in kinds.tolist())
    sizes = [0 if text == UNKNOWN.encode() else len(text) for text in texts]
    return np.array(sizes, np.float64)[which] if len(ids) else np.empty(0)


def _divided(nats: Floats, lengths: Floats, n_known: Sequence[int]) -> Floats:
    """The costs of a document's blocks, which have `n_known` bytes of known text each.

    The lengths of the tokens add up to the known bytes, except with tokenizers whose ids cannot be
    decoded one at a time; then the places of the cuts are approximate.
    """
    if len(n_known) == 1:
        return np.array([nats.sum()])
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    paid = np.concatenate([[0.0], np.cumsum(nats)])
    cuts = np.cumsum(n_known[:-1]) * (ends[-1] / max(1, sum(n_known)))
    at_cuts = np.interp(cuts, ends, paid)
    return np.diff(np.concatenate([[0.0], at_cuts, [paid[-1]]]))
