"""Units of work: pieces of the sources that one process reads at one go, and the documents in them.

    for document in read_unit(unit, reading, counts): ...

A unit is some small files, or a part of a large one. All documents of all units, in their order, are those that
`text/documents.py` reads, and they are split by its rules; only that here no text has to fit into memory:

- A text of more than `LARGE` characters is a `Stream`, read again each time it is iterated over.
- A plain file of more than `LARGE` bytes is divided into pieces beforehand (`plan.py`), so that several processes work
  on it. Nobody has all of it then, so it goes by its `fingerprint` where others go by a hash of their text.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lmsmith.errors import DataError
from lmsmith.text.documents import hash_bound, split_hash, tail_cut
from lmsmith.text.files import (
    JSON_LINES,
    PARQUET,
    WHOLE,
    BinaryFile,
    Counts,
    Part,
    Skip,
    inner_suffix,
    open_bytes,
    read_chunks,
    read_errors,
    read_texts,
)

LARGE = 1 << 25
SAMPLE = 1 << 16  # bytes at the beginning, the middle and the end of a file, by which it is known
CHARACTERS = 1 << 18  # of a text that are turned into bytes at once
TRAIN, VALIDATION = 0, 1  # as in manifest.SPLITS


class Piece(NamedTuple):
    """A file or a part of it. `n_bytes` is what it takes on the disk."""

    path: str
    part: Part
    n_bytes: int
    named: bool  # by itself, so that being binary is an error
    split: int | None = None  # where a piece of a large plain file belongs
    begins: bool = True  # whether such a piece begins a document, or goes on with the last one


Unit = tuple[Piece, ...]


@dataclass(frozen=True)
class Reading:
    """How files are read and documents are split."""

    text_field: str
    encoding: str  # a codec's name
    errors: Literal["strict", "replace"]
    skip_bad: bool
    fraction: float
    by_document: bool  # whole documents are held out; else the tail of each


@dataclass(frozen=True)
class Job:
    """What all units have in common. `folder` holds the tokenizer, and a folder `units` for what comes of them."""

    folder: str
    reading: Reading
    hashes: bool = False  # whether documents are to be known by a hash


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
        place = 0
        for chunk in self._chunks():
            if self._stop is not None and place >= self._stop:
                return
            if part := chunk[
                max(0, self._start - place) : None if self._stop is None else self._stop - place
            ]:
                yield part
            place += len(chunk)


Text = str | Stream


class Document(NamedTuple):
    """A document, or a piece of one: `begins` is False where it goes on with the last. `whole` is None of a piece."""

    begins: bool
    whole: Text | None
    spans: tuple[tuple[int, Text], ...]  # (TRAIN or VALIDATION, text)


def utf8(text: Text) -> Iterator[bytes]:
    """The text as bytes, in parts."""
    if isinstance(text, str):
        for start in range(0, len(text), CHARACTERS):
            yield text[start : start + CHARACTERS].encode()
    else:
        for chunk in text:
            yield chunk.encode()


def read_unit(
    unit: Unit, reading: Reading, counts: Counts, skip: Skip | None = None
) -> Iterator[Document]:
    """The documents of a unit, those without text left out and counted.

    Raises DataError for what cannot be read, or calls `skip` with it and leaves out as little as can be: a line, a row,
    a row group, or what is left of a file. (What is wrong within a `Stream` shows when that is read.)
    """
    for piece in unit:
        with tolerating(skip):
            try:
                yield from _documents(piece, reading, counts, skip)
            except BinaryFile:
                counts.n_binary_files += 1
                if piece.named:
                    raise


@contextlib.contextmanager
def tolerating(skip: Skip | None) -> Iterator[None]:
    """What cannot be read goes to `skip`; where there is none, what is raised names the option that makes one."""
    try:
        yield
    except DataError as error:
        if skip is None:
            raise DataError(
                f"{error} `--skip-bad` leaves out what is bad, names and counts it."
            ) from error
        skip(error)


def ignore(error: DataError) -> None:
    """For who reads what is read once more later, and counted then."""


def fingerprint(path: Path) -> str:
    """A hash of a file's size and of some of its content: all of a small file, three samples of a large one."""
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
    """Whether two files hold the same, read to the end; for those whose fingerprints are the same."""
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
        texts = _plain_text(piece, reading, counts)
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
        if reading.by_document:
            held_out = split_hash(utf8(text)) < hash_bound(reading.fraction)
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


def _plain_text(piece: Piece, reading: Reading, counts: Counts) -> Iterator[tuple[Text, int]]:
    """The one text of a plain file and its length; a stream where it is long."""
    path, tried = Path(piece.path), Counts()
    chunks: list[str] = []
    n_characters = 0
    for chunk in read_chunks(path, reading.encoding, reading.errors, tried, WHOLE):
        chunks.append(chunk)
        n_characters += len(chunk)
        if n_characters > LARGE:
            break
    else:
        counts.add(tried)
        text = "".join(chunks)
        chunks.clear()
        yield text, n_characters
        return
    chunks.clear()
    yield Stream(piece, reading), sum(map(len, Stream(piece, reading, counts)))
