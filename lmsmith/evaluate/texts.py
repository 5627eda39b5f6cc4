"""Scores text files under a model: reads, tokenizes and scores them.

Bytes are counted as everywhere in lmsmith: the bytes of the text in UTF-8, without a byte-order
mark, with LF line ends.

With `errors="replace"`, a file need not be valid UTF-8:

- In a plain file, each invalid byte is kept, and counts as one byte. The file need not be text at
  all; for a uniform rule, line ends are converted to LF even in random bytes. Byte-level tokenizers
  treat invalid bytes like any others; to character and word tokenizers they are unknown.
- In .jsonl, .parquet and compressed files, and in other encodings, invalid bytes are read as
  U+FFFD, as in training, and a warning reports their number.
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
    """Scores all documents of `sources` together.

    `begin`: the id before each document; by default the end-of-text token, if the tokenizer has
    one. `bos=False`: no id before the text, which must then be a single document; its first token
    costs as much as under a uniform guess. `boundaries`: the `data.documents` that the model was
    trained with; unless it is "stream", each document is scored separately.

    Raises DataError for text that cannot be read or has nothing to score, UsageError for
    `bos=False` with a model that needs the token before each document.
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
    """Scores documents together, as `score_texts` does those of files.

    Raises DataError if there is nothing to score, UsageError as `score_texts` does.
    """
    check_begin(boundaries, bos)
    encoded = encode_documents(tokenizer, documents, begin, special_tokens, bos=bos)
    return score_encoded(model, tokenizer, encoded, stride=stride, boundaries=boundaries)


def check_begin(boundaries: str, bos: bool) -> None:
    """Raises UsageError for `bos=False` with a model that needs the token before each document."""
    if not bos and boundaries != "stream":
        raise UsageError(
            f"this model was trained with data.documents = {boundaries!r}: it needs a token before "
            "each document, which --no-bos omits. Evaluate it without --no-bos."
        )


def read_documents(
    sources: Sequence[str | Path],
    *,
    text_field: str,
    encoding: str,
    errors: Literal["strict", "replace"],
    document_separator: str = "auto",
) -> Iterator[str]:
    """Yields the documents of files. Invalid UTF-8 bytes of plain files become lone surrogates
    (PEP 383).

    Raises DataError for files that cannot be read, and with `errors="strict"` for invalid bytes.
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
            "%s undecodable sequences were read as U+FFFD, three bytes each", f"{n_replaced:,}"
        )


def to_bytes(document: str) -> bytes:
    """The bytes of a document that `read_documents` returned."""
    return document.encode("utf-8", "surrogateescape")


def _as_it_is(path: Path, named: bool) -> str | None:
    """The text of a plain file, with invalid UTF-8 bytes as lone surrogates. None for other kinds
    of files, and for binary files unless `named` by the user.
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
class EncodedDocument:
    """Counts of one document of an `Encoded` text."""

    n_ids: int  # including the token before it
    n_bytes: int
    n_unknown: int
    n_unknown_bytes: int


@dataclass(frozen=True)
class Encoded:
    """Concatenated documents as ids, with counts of what the tokenizer does not know."""

    ids: npt.NDArray[np.uint32]
    n_bytes: int
    n_invalid: int  # bytes that are not valid UTF-8
    n_unknown: int  # unknown characters or words
    n_unknown_bytes: int
    starts_with_end_of_text: bool  # a token that is not part of the text precedes each document
    documents: tuple[EncodedDocument, ...] = ()


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[str],
    begin: int | None = None,
    special_tokens: SpecialTokens = "text",
    *,
    bos: bool = True,
) -> Encoded:
    """Tokenizes documents, each after `begin` or the end-of-text token, if the tokenizer has one.

    With `bos=False`, tokenizes a single document with no token before it; raises DataError for
    several.
    """
    first = (tokenizer.end_of_text if begin is None else begin) if bos else None
    parts: list[npt.NDArray[np.uint32]] = []
    counts: list[EncodedDocument] = []
    n_invalid = 0
    for document in documents:
        if not bos and counts:
            raise DataError(
                "--no-bos omits the token between documents, but this text has several documents: "
                "give one plain text file, or leave --no-bos out."
            )
        if first is not None:
            parts.append(np.array([first], dtype=np.uint32))
        data, n_odd = to_bytes(document), n_invalid_bytes(document)
        if n_odd and isinstance(tokenizer, ByteTokenizer):
            ids = np.frombuffer(data, dtype=np.uint8).astype(np.uint32)
        elif n_odd and isinstance(tokenizer, BpeTokenizer):
            ids = encode_text(tokenizer, data, special_tokens).astype(np.uint32)
        else:
            ids = encode_text(tokenizer, document, special_tokens).astype(np.uint32)
        parts.append(ids)
        n_ids = len(ids) + (first is not None)
        counts.append(EncodedDocument(n_ids, len(data), *unknown_in(tokenizer, document)))
        n_invalid += n_odd
    return Encoded(
        np.concatenate([np.empty(0, dtype=np.uint32), *parts]),
        sum(one.n_bytes for one in counts),
        n_invalid,
        sum(one.n_unknown for one in counts),
        sum(one.n_unknown_bytes for one in counts),
        first is not None,
        tuple(counts),
    )


def unknown_in(tokenizer: Tokenizer, document: str) -> tuple[int, int]:
    """The number of units of a document, and of their bytes, that its tokenizer does not know."""
    n_odd = n_invalid_bytes(document)
    if n_odd and isinstance(tokenizer, ByteTokenizer | BpeTokenizer):
        return 0, 0  # these encode the bytes, not the surrogates
    return tokenizer.count_unknown(document), tokenizer.unknown_bytes(document) - 2 * n_odd


def n_invalid_bytes(document: str) -> int:
    """The number of bytes that are not valid UTF-8. Each is a surrogate, which "surrogatepass"
    encodes as three bytes.
    """
    return (len(document.encode("utf-8", "surrogatepass")) - len(to_bytes(document))) // 2


def score_encoded(
    model: LanguageModel,
    tokenizer: Tokenizer,
    encoded: Encoded,
    *,
    boundaries: str,
    stride: int | None = None,
    per_token: npt.NDArray[np.float64] | None = None,
) -> Score:
    """Scores tokenized documents. Raises DataError if there is nothing to score, CheckpointError
    for a score of NaN. `per_token` receives the nats of each id, as in `score_ids`.
    """
    if encoded.n_unknown_bytes and len(encoded.ids) <= encoded.starts_with_end_of_text:
        raise DataError(
            f"nothing to score: the model's {tokenizer.kind} tokenizer knows none of the text's "
            f"{encoded.n_bytes:,} bytes. Give another text, or a model with a byte or bpe "
            "tokenizer."
        )
    score = score_ids(
        model,
        encoded.ids,
        n_bytes=encoded.n_bytes,
        n_invalid=encoded.n_invalid,
        n_unknown=encoded.n_unknown,
        n_unknown_bytes=encoded.n_unknown_bytes,
        left_out=tokenizer.skips_unknown,
        starts_with_end_of_text=encoded.starts_with_end_of_text,
        stride=stride,
        boundary=boundary_of(boundaries, tokenizer),
        per_token=per_token,
    )
    return checked(score)
