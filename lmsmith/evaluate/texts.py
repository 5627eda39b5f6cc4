"""The score of text files under a model: read, encode, score."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

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
    documents = Documents(sources, text_field=text_field, encoding=encoding, errors=errors)
    encoded = encode_documents(tokenizer, (document.text for document in documents))
    return score_ids(
        model,
        encoded.ids,
        n_bytes=documents.counts.n_bytes,
        n_unknown=encoded.n_unknown,
        n_unknown_bytes=encoded.n_unknown_bytes,
        first_given=tokenizer.end_of_text is not None,
        stride=stride,
        boundary=boundary_of(boundaries, tokenizer),
    )


@dataclass(frozen=True)
class Encoded:
    """Documents as ids, one behind the other, and how much of them the ids do not carry."""

    ids: npt.NDArray[np.uint32]
    n_unknown: int
    n_unknown_bytes: int


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str]) -> Encoded:
    """Each after an end-of-text token where the tokenizer has one."""
    parts, n_unknown, n_unknown_bytes = [np.empty(0, dtype=np.uint32)], 0, 0
    for document in documents:
        if tokenizer.end_of_text is not None:
            parts.append(np.array([tokenizer.end_of_text], dtype=np.uint32))
        parts.append(tokenizer.encode(document).astype(np.uint32))
        n_unknown += tokenizer.count_unknown(document)
        n_unknown_bytes += tokenizer.unknown_bytes(document)
    return Encoded(np.concatenate(parts), n_unknown, n_unknown_bytes)
