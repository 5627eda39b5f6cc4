"""Learns a BPE tokenizer from text files and saves it: `lmsmith tokenizer train`.

Files are read as in `lmsmith train` (`text/documents.py`), except that large plain-text files are
read in blocks, so memory does not grow with their size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from lmsmith.errors import TokenizerError
from lmsmith.text.documents import Documents
from lmsmith.text.files import COMPRESSED, JSON_LINES, MARKS, PARQUET, SNIFFED, looks_binary
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import Progress, Ties, check_vocabulary, learn_bpe
from lmsmith.tokens.expressions import parse_pattern
from lmsmith.tokens.files import FILE_NAME, save_tokenizer
from lmsmith.tokens.piece_counts import Text
from lmsmith.tokens.tokenizer import END_OF_TEXT, end_of_text_id

LARGE = 1 << 25  # bytes: files from this size on are read in blocks
BLOCK = 1 << 22  # characters per block


def train_tokenizer(
    sources: Sequence[str],
    vocab_size: int,
    out: Path | None,
    *,
    pattern: str = "gpt4",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    ties: Ties = "bytes",
    threads: int | None = None,
    max_memory: int | None = None,
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    progress: Progress | None = None,
    end_of_text: str | None = None,
) -> tuple[BpeTokenizer, list[str]]:
    """Learns a tokenizer from files, folders and globs, and saves it in the folder `out`. None for
    `out`: do not save it. Returns the tokenizer and notes about the text to show to the user.

    `pattern`: a name or a regular expression (see `parse_pattern`). `end_of_text`: which of
    `special_tokens` is the token between documents; None: the first of `END_OF_TEXT_NAMES` among
    them.

    Raises TokenizerError for an unknown pattern, an invalid vocabulary size, and an `out` that
    already contains a tokenizer or cannot be written, all before any text is read; DataError and
    ConfigError as `Documents` does.
    """
    check_vocabulary(vocab_size, special_tokens)
    chosen = parse_pattern(pattern)
    end_of_text_id(
        {name: i for i, name in enumerate(special_tokens)}, end_of_text
    )  # raises if end_of_text is not among them
    if out is not None:
        check_output_folder(out)
    # learn_bpe cuts the text at special tokens itself, and keeps the line breaks around them.
    documents = Documents(
        sources, text_field=text_field, encoding=encoding, errors=errors, document_separator="none"
    )
    notes: list[str] = []
    tokenizer = learn_bpe(
        texts_of(documents, notes),
        vocab_size,
        pattern=chosen,
        special_tokens=special_tokens,
        ties=ties,
        threads=threads,
        max_memory=max_memory,
        progress=progress,
    )
    if end_of_text is not None:
        tokenizer = tokenizer.changed(end_of_text=end_of_text)
    if out is not None:
        save_tokenizer(tokenizer, out)
    return tokenizer, notes


def check_output_folder(out: Path) -> None:
    """Raises TokenizerError if `out` already contains a tokenizer or cannot be written."""
    if (out / FILE_NAME).exists():
        raise TokenizerError(
            f"{out} already contains a tokenizer, which is not overwritten. Remove it or choose "
            f"another --out."
        )
    nearest = next(folder for folder in (out, *out.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "is not writable" if nearest.is_dir() else "is not a folder"
        raise TokenizerError(
            f"cannot save the tokenizer in {out}: {nearest} {why}. Choose another --out."
        )


def texts_of(documents: Documents, notes: list[str]) -> Iterator[Text]:
    """Yields the documents' texts; large plain-text files are iterables of blocks. At the end of
    the iteration, the reader's notes are appended to `notes`.
    """
    large = [path for path in documents.files if _is_large_and_plain(path, documents.encoding)]
    for path in large:
        yield _blocks(path, documents)
    rest = documents.without(large)
    for document in rest:
        yield document.text
    notes += rest.counts.notes()


def _is_large_and_plain(path: Path, encoding: str) -> bool:
    if (
        path.suffix.lower() in (*COMPRESSED, *JSON_LINES, *PARQUET)
        or path.stat().st_size < LARGE
        or encoding != "utf-8"
    ):
        return False
    with open(path, "rb") as file:
        head = file.read(SNIFFED)
    marked = next((marked for mark, marked in MARKS if head.startswith(mark)), "utf-8")
    return marked == "utf-8" and not looks_binary(head, marked)


def _blocks(path: Path, documents: Documents) -> Iterator[bytes]:
    """Yields the file as UTF-8 without byte-order mark and with LF line ends, as `Documents` reads
    it.
    """
    try:
        with open(path, encoding="utf-8-sig", errors=documents.errors, newline=None) as file:
            while block := file.read(BLOCK):
                yield block.encode("utf-8")
    except UnicodeDecodeError:
        for _ in Documents([str(path)], encoding=documents.encoding, errors=documents.errors):
            pass  # raises a DataError that names the position and what to do
        raise
