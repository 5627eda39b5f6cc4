"""The likelihood of each document of a text, one JSON object per line.

Each document is scored alone, behind the token that begins texts, so the numbers of one document
do not depend on the others. `Score` of a whole text may read several documents in one window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from lmsmith.evaluate.texts import read_documents, score_documents, to_bytes
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.control import SpecialTokens
from lmsmith.tokens.tokenizer import Tokenizer

SHOWN = 60  # characters of a document that its line repeats


def document_scores(
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
) -> Iterator[dict[str, Any]]:
    """One dict per document: index, text (its beginning), nats, bits_per_byte and counts.

    Options as in `score_texts`. Raises DataError for text that cannot be read.
    """
    documents = read_documents(
        sources,
        text_field=text_field,
        encoding=encoding,
        errors=errors,
        document_separator=document_separator,
    )
    for index, document in enumerate(documents):
        score = score_documents(
            model,
            tokenizer,
            [document],
            special_tokens=special_tokens,
            stride=stride,
            boundaries=boundaries,
            begin=begin,
            bos=bos,
        )
        start = to_bytes(document[:SHOWN]).decode(errors="replace")
        yield {"index": index, "text": start, "nats": score.nats, **score.as_dict()}
