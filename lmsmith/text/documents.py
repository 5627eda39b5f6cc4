"""Reads text from files as a stream of documents.

    documents = Documents(["books/", "more/**/*.txt", "web.jsonl.zst"])
    for document in documents: ...
    for note in documents.counts.notes(): ...

A plain text file (any suffix) is one document, or several if a separator such as <|endoftext|>
stands between them (`separators.py`). A line of .jsonl, .ndjson or .json is a document, and so is a
row of .parquet. Each of these may be compressed (.gz, .zst). `sources.py` finds the files and
`reading.py` reads one. Nothing is dropped silently: `Documents.counts` counts the replaced bytes,
and the skipped and excluded files and documents.

`held_out.py` splits the documents into training and validation text. `data/prepare/units.py` reads
text that does not fit into memory.

Limits: does not guess legacy encodings, normalise Unicode, clean or filter text, or find
near-duplicates.
"""

import contextlib
import copy
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from lmsmith.errors import DataError
from lmsmith.text import separators
from lmsmith.text.files import WHOLE, BinaryFile, Counts, Skip, known_encoding, plural
from lmsmith.text.held_out import split_hash
from lmsmith.text.reading import read_texts
from lmsmith.text.skipping import Skipped, skipping_errors
from lmsmith.text.sources import find_files

PART = 1 << 18  # characters encoded at once


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its source: "file", "file:line" of .jsonl or "file:row" of .parquet, counted
    from 1.

    "file#n" is document n, counted from 1, of a plain file that is split at a separator.
    """

    text: str = field(repr=False)
    source: str

    @property
    def n_bytes(self) -> int:
        """Length of the text in UTF-8, the byte count of bits per byte."""
        return len(self.text) if self.text.isascii() else sum(map(len, _utf8(self.text)))

    @property
    def hash(self) -> int:
        return split_hash(_utf8(self.text))


class Documents:
    """The documents of files, folders and glob patterns. Each iteration reads the files again.

    A plain file is split into documents at `document_separator`: auto (`<|endoftext|>`), none, or
    any text (`separators.py` has the rule). `skip_bad`: if True, a bad line, row or file is skipped
    and listed in `notes`; if False, errors mention the option `--skip-bad`; if None, they do not.

    Sources are read in the given order; the files of a folder or pattern are sorted; a file that
    occurs twice is read once. The constructor finds the files; iteration reads them. `counts`
    describes the latest iteration and is complete when that has ended.

    Raises DataError for sources that cannot be found or read, for text that is not in its encoding
    (errors="strict"), for a binary file that was named explicitly, and at the end if there was no
    text at all; ConfigError for an unknown encoding.
    """

    def __init__(
        self,
        sources: Iterable[str | os.PathLike[str]],
        *,
        text_field: str = "text",
        encoding: str = "auto",
        errors: Literal["strict", "replace"] = "strict",
        document_separator: str = "auto",
        skip_bad: bool | None = None,
    ) -> None:
        assert not isinstance(sources, str), "expected a list of sources"
        assert errors in ("strict", "replace")
        self.text_field = text_field
        self.encoding = known_encoding(encoding)
        self.errors = errors
        self.separator = separators.resolve(document_separator)
        self._separator_named = document_separator not in ("auto", "none")
        self._skip_bad = skip_bad
        self._skipped = Skipped()
        self.sources = [os.fspath(source) for source in sources]
        self._files, self._left_out = find_files(self.sources)
        self._may_be_empty = False
        self.counts = Counts(left_out=self._left_out.copy())

    @property
    def files(self) -> list[Path]:
        """The files in reading order. Includes binary files in folders: they are recognised when
        opened.
        """
        return [file.path for file in self._files]

    def without(self, files: Collection[Path]) -> Self:
        """Returns the documents of the other files, for a caller that reads `files` itself. A lack
        of text is then not an error.
        """
        others = copy.copy(self)
        others._files = [file for file in self._files if file.path not in files]
        others._may_be_empty = self._may_be_empty or bool(files)
        return others

    def __iter__(self) -> Iterator[Document]:
        counts = self.counts = Counts(left_out=self._left_out.copy())
        self._skipped = Skipped()
        for path, named in self._files:
            with (
                contextlib.nullcontext() if self._skip_bad is None else skipping_errors(self._skip)
            ):
                try:
                    yield from self._of_file(path, counts)
                except BinaryFile:
                    counts.n_binary_files += 1
                    if named:
                        raise
        if counts.n_documents == 0 and not self._may_be_empty:
            reasons = []
            if counts.n_empty:
                reasons.append(f"{plural(counts.n_empty, 'document')}, empty or only white space")
            if counts.n_binary_files:
                reasons.append(f"{plural(counts.n_binary_files, 'file')}, apparently binary")
            reasons += self._skipped.notes()
            raise DataError(
                f"there is no text in {', '.join(dict.fromkeys(self.sources))}: "
                f"{' and '.join(reasons).rstrip('.') or 'the files contain no documents'}. Name a "
                f"file that contains text."
            )

    def notes(self) -> list[str]:
        """Sentences about anything in the latest iteration that may surprise the user."""
        absent = self._separator_named and not self.counts.separators
        return [
            *(
                [
                    f"no plain text file contains the separator {self.separator!r}; each is one "
                    f"document."
                ]
                if absent
                else []
            ),
            *self.counts.notes(),
            *self._skipped.notes(),
        ]

    @property
    def _skip(self) -> Skip | None:
        return self._skipped if self._skip_bad else None

    def _of_file(self, path: Path, counts: Counts) -> Iterator[Document]:
        texts = read_texts(
            path,
            self.text_field,
            self.encoding,
            self.errors,
            counts,
            WHOLE,
            self._skip,
            self.separator,
        )
        for text, source in texts:
            if not text or text.isspace():
                counts.n_empty += 1
                continue
            document = Document(text, source)
            counts.n_documents += 1
            counts.n_characters += len(text)
            counts.n_bytes += document.n_bytes
            yield document
            del text, document  # frees the text before the next one is read


def _utf8(text: str) -> Iterator[bytes]:
    """Returns the text in UTF-8, in parts, so that a large text is not held a second time as
    bytes.
    """
    return (text[start : start + PART].encode() for start in range(0, len(text), PART))
