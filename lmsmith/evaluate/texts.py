"""The score of text files under a model: read, encode, score.

Bytes are counted as everywhere in lmsmith: those of the text in UTF-8, without a byte-order mark,
line ends made LF.

Not every file is UTF-8. Where that is no error (`errors="replace"`), the bytes of a plain file that
are none stay what they are, a byte each, in the count and in the text; it need not be text at all,
but line ends become LF in random bytes too, so that there is one rule. To tokenizers of bytes they
are bytes like others; characters and words do not know them. What cannot be decoded within .jsonl,
.parquet and compressed files, or in another encoding, is no byte of a text: it is read as U+FFFD,
as in training, and that is said.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmsmith.data.batches.packing import boundary_of
from lmsmith.errors import DataError, UsageError
from lmsmith.evaluate.likelihood import Score, checked, score_ids
from lmsmith.models.interface import LanguageModel
from lmsmith.text.documents import Documents
from lmsmith.text.files import (
    COMPRESSED,
    JSON_LINES,
    MARKS,
    PARQUET,
    inner_suffix,
    looks_binary,
    open_bytes,
    read_errors,
)
from lmsmith.text.separators import cut_text
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.control import SpecialTokens, encode_text
from lmsmith.tokens.tokenizer import ByteTokenizer, Tokenizer

log = logging.getLogger(__name__)

_UTF8_MARK = b"\xef\xbb\xbf"


def score_texts(
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
) -> Score:
    """One score over all documents of `sources`, each after `begin`, or an end of text where the
    tokenizer has one.

    Without `bos` nothing stands before the text, which is a single document then: its first token
    is charged as a uniform guess would be. Raises UsageError where the model tells documents apart
    by what stands before them.

    `boundaries` is the `data.documents` that the model was trained with: what these told apart is
    scored apart. Raises DataError for what cannot be read, and where there is nothing to score.
    """
    documents = read_documents(
        sources,
        text_field=text_field,
        encoding=encoding,
        errors=errors,
        document_separator=document_separator,
    )
    return score_documents(
        model,
        tokenizer,
        documents,
        special_tokens=special_tokens,
        stride=stride,
        boundaries=boundaries,
        begin=begin,
        bos=bos,
    )


def score_documents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    special_tokens: SpecialTokens = "text",
    stride: int | None = None,
    boundaries: str = "stream",
    begin: int | None = None,
    bos: bool = True,
) -> Score:
    """One score over documents, as `score_texts` has it over those of files.

    Raises DataError where there is nothing to score, UsageError as `score_texts` does.
    """
    if not bos and boundaries != "stream":
        raise UsageError(
            f"this model was trained with data.documents = {boundaries!r}: each document begins "
            f"with a token of its "
            "own, which --no-bos leaves out. Score it without that option."
        )
    encoded = encode_documents(tokenizer, documents, begin, special_tokens, bos=bos)
    return score_encoded(model, tokenizer, encoded, stride=stride, boundaries=boundaries)


def read_documents(
    sources: Sequence[str | Path],
    *,
    text_field: str,
    encoding: str,
    errors: Literal["strict", "replace"],
    document_separator: str = "auto",
) -> Iterator[str]:
    """The documents of files, one after the other; bytes that are no UTF-8 as lone surrogates (PEP
    383).

    Raises DataError for what cannot be read, which bytes are where `errors` is "strict".
    """
    documents = Documents(
        sources,
        text_field=text_field,
        encoding=encoding,
        errors=errors,
        document_separator=document_separator,
    )
    if errors == "strict":
        yield from (document.text for document in documents)
        return
    files, named = set(documents.files), {Path(source) for source in sources}
    n_replaced = 0
    for path in documents.files:
        text = _as_it_is(path, path in named) if documents.encoding == "utf-8" else None
        if text is None:
            others = documents.without(files - {path})
            yield from (document.text for document in others)
            n_replaced += others.counts.n_replaced
        else:
            yield from (
                part for part in cut_text(text, documents.separator) if part and not part.isspace()
            )
    if n_replaced:
        log.warning(
            "%s undecodable places were read as U+FFFD, three bytes each", f"{n_replaced:,}"
        )


def to_bytes(document: str) -> bytes:
    """The bytes that a document of `read_documents` stands for."""
    return document.encode("utf-8", "surrogateescape")


def _as_it_is(path: Path, named: bool) -> str | None:
    """The text of a plain file in UTF-8, or not quite. None: another kind of file, or (in a
    folder) a binary one.
    """
    if inner_suffix(path) in JSON_LINES + PARQUET or path.suffix.lower() in COMPRESSED:
        return None
    with read_errors(path), open_bytes(path) as file:
        data = file.read()
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if encoding != "utf-8" or (looks_binary(data, encoding) and not named):
        return None
    data = data.removeprefix(_UTF8_MARK).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Encoded:
    """Documents as ids, one behind the other, and how much of them the ids do not carry."""

    ids: npt.NDArray[np.uint32]
    n_bytes: int
    n_invalid: int  # bytes that are no UTF-8
    n_unknown: int
    n_unknown_bytes: int
    first_given: bool  # a token that is none of the text stands before each document


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[str],
    begin: int | None = None,
    special_tokens: SpecialTokens = "text",
    *,
    bos: bool = True,
) -> Encoded:
    """Each after `begin`, or an end-of-text token where the tokenizer has one.

    Without `bos` it is one document, as it is. Raises DataError for several.
    """
    first = (tokenizer.end_of_text if begin is None else begin) if bos else None
    parts, n_bytes, n_invalid, n_unknown, n_unknown_bytes = (
        [np.empty(0, dtype=np.uint32)],
        0,
        0,
        0,
        0,
    )
    for document in documents:
        if not bos and len(parts) > 1:
            raise DataError(
                "with --no-bos nothing would stand between documents, and this text has several: "
                "name one plain file, "
                "or leave the option out."
            )
        if first is not None:
            parts.append(np.array([first], dtype=np.uint32))
        data = to_bytes(document)
        n_more = (
            len(document.encode("utf-8", "surrogatepass")) - len(data)
        ) // 2  # surrogates, of three bytes there
        n_bytes, n_invalid = n_bytes + len(data), n_invalid + n_more
        if n_more and isinstance(tokenizer, ByteTokenizer):
            parts.append(np.frombuffer(data, dtype=np.uint8).astype(np.uint32))
        elif n_more and isinstance(tokenizer, BpeTokenizer):
            parts.append(encode_text(tokenizer, data, special_tokens).astype(np.uint32))
        else:
            parts.append(encode_text(tokenizer, document, special_tokens).astype(np.uint32))
            n_unknown += tokenizer.count_unknown(document)
            n_unknown_bytes += tokenizer.unknown_bytes(document) - 2 * n_more
    return Encoded(
        np.concatenate(parts), n_bytes, n_invalid, n_unknown, n_unknown_bytes, first is not None
    )


def score_encoded(
    model: LanguageModel,
    tokenizer: Tokenizer,
    encoded: Encoded,
    *,
    boundaries: str,
    stride: int | None = None,
) -> Score:
    """Raises DataError where there is nothing to score, CheckpointError for a score of NaN."""
    if encoded.n_unknown_bytes and len(encoded.ids) <= encoded.first_given:
        raise DataError(
            f"nothing to score: of the text's {encoded.n_bytes:,} bytes this model's "
            f"{tokenizer.kind} tokenizer knows "
            "none. Name another text, or a model whose tokens are bytes or bpe."
        )
    score = score_ids(
        model,
        encoded.ids,
        n_bytes=encoded.n_bytes,
        n_invalid=encoded.n_invalid,
        n_unknown=encoded.n_unknown,
        n_unknown_bytes=encoded.n_unknown_bytes,
        left_out=tokenizer.leaves_out,
        first_given=encoded.first_given,
        stride=stride,
        boundary=boundary_of(boundaries, tokenizer),
    )
    return checked(score)
