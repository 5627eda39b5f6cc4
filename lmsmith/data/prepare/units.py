"""Units of work: pieces of the sources that one process reads at a time, and their documents.

    for document in read_unit(unit, reading, counts): ...

A unit is some small files, or a part of a large one. The documents of all units, in order, are
those that `text/documents.py` reads, split by the rule of `text/held_out.py`. But here no text has
to fit into memory:

- A text of more than `LARGE` characters is a `Stream`, read again on each iteration.
- A plain file of more than `LARGE` bytes is divided into pieces beforehand (`plan.py`), for several
  processes. No process has all of it, so its `fingerprint` takes the place of the hash of its text.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lmsmith.text.files import (
    COMPRESSED,
    JSON_LINES,
    PARQUET,
    WHOLE,
    BinaryFile,
    Counts,
    Part,
    Skip,
    count_separators,
    inner_suffix,
    open_bytes,
    read_chunks,
    read_errors,
    size_and_time,
)
from lmsmith.text.held_out import is_held_out, tail_cut
from lmsmith.text.parts import is_utf8
from lmsmith.text.reading import read_texts
from lmsmith.text.separators import Cutter
from lmsmith.text.skipping import skipping_errors

LARGE = 1 << 25
SAMPLE = 1 << 16  # bytes read from the beginning, middle and end of a file for its fingerprint
CHARACTERS = 1 << 18  # characters of a text encoded as UTF-8 at a time
TRAIN, VALIDATION = 0, 1  # as in manifest.SPLITS


class SourceFile(NamedTuple):
    """A source file, as it was when the plan was made."""

    path: str
    n_bytes: int
    changed: int  # modification time in nanoseconds


class Piece(NamedTuple):
    """A file or a part of it. `n_bytes` is its size on disk."""

    path: str
    part: Part
    n_bytes: int
    named: bool  # named by the user, so that a binary file is an error
    split: int | None = None  # split of a piece of a large plain file
    begins: bool = True  # whether a piece of a large plain file begins a document
    side: int | None = None  # split of all its documents, if the user names validation text


Unit = tuple[Piece, ...]


@dataclass(frozen=True)
class Reading:
    """Settings for reading files and splitting documents into training and validation."""

    text_field: str
    encoding: str  # a codec's name
    errors: Literal["strict", "replace"]
    skip_bad: bool
    fraction: float
    by_document: bool  # whether documents are held out as a whole; else the tail of each
    separator: str = ""  # between the documents of a plain file; "" for none
    # whether the names of special tokens in the text are text or control tokens
    special_tokens: Literal["text", "control"] = "text"


@dataclass(frozen=True)
class Job:
    """Data that all units share. `folder` holds the tokenizer, and a folder `units` for the
    results.
    """

    folder: str
    reading: Reading
    hashes: bool = False  # whether to compute the hash of each document


class Stream:
    """Characters `start` to `stop` of a plain file's text, in chunks."""

    def __init__(
        self,
        piece: Piece,
        reading: Reading,
        counts: Counts | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self._chunks: Callable[[], Iterator[str]] = lambda: read_chunks(
            Path(piece.path), reading.encoding, reading.errors, counts or Counts(), piece.part
        )
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[str]:
        position = 0
        for chunk in self._chunks():
            if self._stop is not None and position >= self._stop:
                return
            if part := chunk[
                max(0, self._start - position) : None
                if self._stop is None
                else self._stop - position
            ]:
                yield part
            position += len(chunk)


Text = str | Stream


class Document(NamedTuple):
    """A document, or a piece of one: `begins` is False if it continues the previous document.
    `whole` is None for a piece.
    """

    begins: bool
    whole: Text | None
    spans: tuple[tuple[int, Text], ...]  # (TRAIN or VALIDATION, text)


def utf8(text: Text) -> Iterator[bytes]:
    """Yields the text as UTF-8, in parts."""
    if isinstance(text, str):
        for start in range(0, len(text), CHARACTERS):
            yield text[start : start + CHARACTERS].encode()
    else:
        for chunk in text:
            yield chunk.encode()


def read_unit(
    unit: Unit, reading: Reading, counts: Counts, skip: Skip | None = None
) -> Iterator[Document]:
    """Yields the documents of a unit. Skips and counts documents without text.

    Raises DataError for text that cannot be read. With `skip`, passes the error to `skip` instead,
    and skips as little as possible: a line, a row, a row group, or the rest of a file. (Errors
    within a `Stream` are raised when it is read.)
    """
    for piece in unit:
        with skipping_errors(skip):
            try:
                yield from _documents(piece, reading, counts, skip)
            except BinaryFile:
                counts.n_binary_files += 1
                if piece.named:
                    raise


def measured(path: Path, skip: Skip | None) -> SourceFile:
    """Raises DataError for a missing file, or calls `skip` with it."""
    with skipping_errors(skip), read_errors(path):
        return SourceFile(str(path), *size_and_time(path))
    return SourceFile(str(path), 0, 0)


def fingerprint(path: Path) -> str:
    """Returns a hash of a file's size and content: all of a small file, three samples of a large
    one.
    """
    with read_errors(path), open_bytes(path) as file:
        n_bytes = file.seek(0, 2)
        state = hashlib.blake2b(str(n_bytes).encode() + b"\n", digest_size=16)
        starts = (
            [0, n_bytes // 2 - SAMPLE // 2, n_bytes - SAMPLE]
            if n_bytes > 3 * SAMPLE
            else range(0, n_bytes, SAMPLE)
        )
        for start in starts:
            file.seek(start)
            state.update(file.read(SAMPLE))
    return state.hexdigest()


def same_bytes(one: Path, other: Path) -> bool:
    """Compares two files to the end; for files with equal fingerprints."""
    with read_errors(one), open_bytes(one) as a, read_errors(other), open_bytes(other) as b:
        while (block := a.read(1 << 20)) == b.read(1 << 20):
            if not block:
                return True
        return False


def unit_file(folder: str | Path, number: int, suffix: str) -> Path:
    return Path(folder, "units", f"{number:07}{suffix}")


def is_plain(path: Path) -> bool:
    return inner_suffix(path) not in JSON_LINES + PARQUET


def _documents(
    piece: Piece, reading: Reading, counts: Counts, skip: Skip | None
) -> Iterator[Document]:
    path = Path(piece.path)
    if piece.split is not None:
        counts.n_documents += piece.begins
        stream = Stream(piece, reading, counts)
        yield Document(piece.begins, None, ((piece.split, stream),))
        return
    texts: Iterator[tuple[Text, int]]
    if is_plain(path):
        texts = plain_texts(piece, reading, counts)
    else:
        found = read_texts(
            path, reading.text_field, reading.encoding, reading.errors, counts, piece.part, skip
        )
        texts = ((text, len(text)) for text, _ in found)
    for text, n_characters in texts:
        if isinstance(text, str) and (not text or text.isspace()):
            counts.n_empty += 1
            continue
        counts.n_documents += 1
        if piece.side is not None:
            yield Document(True, text, ((piece.side, text),))
        elif reading.by_document:
            held_out = is_held_out(utf8(text), reading.fraction)
            yield Document(True, text, ((VALIDATION if held_out else TRAIN, text),))
        else:
            cut = tail_cut(n_characters, reading.fraction)
            if isinstance(text, str):
                halves: tuple[Text, Text] = text[:cut], text[cut:]
            else:
                halves = Stream(piece, reading, stop=cut), Stream(piece, reading, start=cut)
            ends = (TRAIN, halves[0], cut), (VALIDATION, halves[1], n_characters - cut)
            yield Document(
                True, text, tuple((split, half) for split, half, length in ends if length)
            )


def plain_texts(piece: Piece, reading: Reading, counts: Counts) -> Iterator[tuple[Text, int]]:
    """Yields the texts of a plain file, or a part of it, with their lengths: one text, or those
    between separators.

    A long text without separators is a `Stream`. If there are separators, each text is in memory.
    """
    path, tried = Path(piece.path), Counts()
    cutter, is_cut = Cutter(reading.separator), False
    for chunk in read_chunks(path, reading.encoding, reading.errors, tried, piece.part):
        for text in cutter.push(chunk):
            yield text, len(text)
        if cutter.n_pending > LARGE and not (cutter.n_found or is_cut):
            length = _length_uncut(piece, reading, whole := Counts())
            if length is not None:
                del cutter, chunk
                counts.add(whole)
                yield Stream(piece, reading), length
                return
            is_cut = True
    for text in cutter.finish():
        yield text, len(text)
    count_separators(tried, reading.separator, cutter.n_found, path)
    counts.add(tried)


def holds_separator(path: Path, reading: Reading) -> bool:
    """Returns whether a plain file contains a separator. Reads up to the first one."""
    if not reading.separator:
        return False
    plain = path.suffix.lower() not in COMPRESSED and is_utf8(path, reading.encoding)
    if not plain or "\n" in reading.separator:
        return _length_uncut(Piece(str(path), WHOLE, 0, True), reading, Counts()) is None
    wanted, end = reading.separator.encode(), b""
    with open_bytes(path) as file:
        while block := file.read(1 << 20):
            if wanted in end + block:
                return True
            end = block[-len(wanted) :]
    return False


def _length_uncut(piece: Piece, reading: Reading, counts: Counts) -> int | None:
    """Returns the number of characters in a plain file or a part of it; None as soon as there is a
    separator.
    """
    cutter, n_characters = Cutter(reading.separator), 0
    for chunk in read_chunks(
        Path(piece.path), reading.encoding, reading.errors, counts, piece.part
    ):
        for _ in cutter.push(chunk):
            pass
        if cutter.n_found:
            return None
        cutter.forget()
        n_characters += len(chunk)
    for _ in cutter.finish():
        pass
    return None if cutter.n_found else n_characters
