"""The likelihood of each document of a text, one dict per document.

The text is scored once, in the windows of `likelihood.py`, and the cost of each token belongs to
its document; the end-of-text token after a document belongs to that document. So nats, tokens and
bytes of the documents add up to those of the text, and so do bits per byte times bytes.

A model that was trained with `data.documents` stream reads across document boundaries, so the first
tokens of a document may have the end of the previous one as context. With packed or rows, each
document is scored alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmsmith.evaluate.likelihood import Score
from lmsmith.evaluate.texts import (
    Encoded,
    check_begin,
    encode_documents,
    n_invalid_bytes,
    read_documents,
    score_encoded,
    to_bytes,
)
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.control import SpecialTokens
from lmsmith.tokens.tokenizer import Tokenizer

SHOWN = 60  # characters of a document that its line repeats

Line = dict[str, Any]


def score_each_document(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    *,
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    document_separator: str = "auto",
    special_tokens: SpecialTokens = "text",
    stride: int | None = None,
    boundaries: str = "stream",
    begin: int | None = None,
    bos: bool = True,
) -> tuple[Score, list[Line]]:
    """The score of the text, and one dict per document: index, text (its beginning), nats,
    bits_per_byte and counts.

    Options and errors are those of `score_texts`.
    """
    check_begin(boundaries, bos)
    read = read_documents(
        sources,
        text_field=text_field,
        encoding=encoding,
        errors=errors,
        document_separator=document_separator,
    )
    about: list[tuple[str, int]] = []  # how each document begins; its bytes that are not UTF-8

    def noted() -> Iterator[str]:
        for document in read:
            start = to_bytes(document[:SHOWN]).decode(errors="replace")
            about.append((start, n_invalid_bytes(document)))
            yield document

    encoded = encode_documents(tokenizer, noted(), begin, special_tokens, bos=bos)
    nats = np.zeros(len(encoded.ids))
    score = score_encoded(
        model, tokenizer, encoded, stride=stride, boundaries=boundaries, per_token=nats
    )
    scores = list(_divided(score, encoded, nats, [n_invalid for _, n_invalid in about]))
    lines = [
        {"index": index, "text": start, "nats": one.nats, **one.as_dict()}
        for index, ((start, _), one) in enumerate(zip(about, scores, strict=True))
    ]
    for line, one in zip(lines, scores, strict=True):
        line["bits_per_byte"] = _bits(one, score) / one.n_bytes
    return score, lines


def _divided(
    score: Score, encoded: Encoded, nats: npt.NDArray[np.float64], n_invalid: Sequence[int]
) -> Iterator[Score]:
    """The score of each document."""
    given = int(encoded.starts_with_end_of_text)
    end = given
    for one, n_odd in zip(encoded.documents, n_invalid, strict=True):
        begin, end = end, min(end + one.n_ids, len(nats))
        costs = nats[begin:end]
        yield Score(
            math.fsum(costs),
            len(costs),
            one.n_bytes,
            one.n_unknown,
            one.n_unknown_bytes,
            int(np.isposinf(costs).sum()),
            n_odd,
            score.left_out,
        )


def _bits(one: Score, whole: Score) -> float:
    """The bits of a document. The bits for the positions of unknown units are shared equally by
    all units of the text.
    """
    positions = 0.0
    if one.n_unknown:
        positions = (whole.unknown_bits - 8 * whole.n_unknown_bytes) / whole.n_unknown
    return one.nats / math.log(2) + 8 * one.n_unknown_bytes + positions * one.n_unknown
