"""The score of text files under a model: read, encode, score."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lmsmith.data.packing import boundary_of
from lmsmith.evaluate.likelihood import Score, score_ids
from lmsmith.models.interface import LanguageModel
from lmsmith.text.documents import Documents
from lmsmith.tokens.tokenizer import Tokenizer


def score_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    *,
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    stride: int | None = None,
    boundaries: str = "stream",
) -> Score:
    """One score over all documents of `sources`, each after an end-of-text token where the tokenizer has one.

    `boundaries` is the `data.documents` that the model was trained with: what these told apart is scored apart.
    Raises DataError for what cannot be read, and where there is nothing to score.
    """
    parts, n_bytes, n_unknown, n_unknown_bytes = [], 0, 0, 0
    for document in Documents(sources, text_field=text_field, encoding=encoding, errors=errors):
        if tokenizer.end_of_text is not None:
            parts.append(np.array([tokenizer.end_of_text], dtype=np.uint32))
        parts.append(tokenizer.encode(document.text).astype(np.uint32))
        n_bytes += document.n_bytes
        n_unknown += tokenizer.count_unknown(document.text)
        n_unknown_bytes += tokenizer.unknown_bytes(document.text)
    return score_ids(
        model,
        np.concatenate(parts),
        n_bytes=n_bytes,
        n_unknown=n_unknown,
        n_unknown_bytes=n_unknown_bytes,
        first_given=tokenizer.end_of_text is not None,
        stride=stride,
        boundary=boundary_of(boundaries, tokenizer),
    )
