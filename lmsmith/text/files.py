"""What reading files of any kind has in common: opening, decompressing, decoding, counting.

Texts are Python strings that look the same whatever the file was like: byte-order marks are
removed, CRLF and lone CR become LF, and half surrogate pairs are no text. Files may have .gz or
.zst behind their suffix. `reading.py` makes texts of a file, by `json_lines.py` and `parquet.py`
for what is in these forms.

A byte-order mark wins over the encoding asked for, as in browsers (WHATWG Encoding Standard,
"decode"): so an odd encoding can be named for one file without spoiling its neighbours. Without
either it is UTF-8; no encoding is guessed.

Files are read in chunks, so that beside the text that is asked for there is at most one more copy
of it. A `Part` of a large file can be read by itself (`parts.py` says where it may be cut), and a
plain one in chunks that are never joined.
"""

import codecs
import contextlib
import difflib
import encodings.aliases
import gzip
import io
import itertools
import os
import re
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmsmith.errors import ConfigError, DataError
from lmsmith.text import hub
from lmsmith.text.zstd import REFUSED, open_zstd, too_wide

COMPRESSED = (".gz", ".zst")
PACKED = (".bz2", ".xz", ".lzma", ".zip", ".7z", ".rar", ".tar", ".tgz", ".lz4")  # not read here
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
TOKEN_FILES = (".bin", ".npy")
TOKENS_OF_OTHERS = (
    "If it holds token ids without llm.c's header, as nanoGPT's train.bin and OLMo's .npy do, it "
    "is not read: nothing "
    "in it says of which type they are, nor which tokenizer made them. Prepare the text that they "
    "were made of, by "
    "`lmsmith data prepare`."
)
# UTF-32's marks come first: UTF-16-LE's is how UTF-32-LE's begins.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CHUNK = 1 << 18  # bytes read at once
SNIFFED = 8192  # bytes by which a binary file is known
STRAY_NULS = 1000  # bytes for each of which there may be one NUL in what is text otherwise
GO_ON = "`--data.errors replace` goes on with U+FFFD in its place"

Skip = Callable[[DataError], None]
"""Called with what is wrong with a line or a row, which is then left out."""


class BinaryFile(DataError):
    """A file that is no text by the look of its first bytes."""


class Part(NamedTuple):
    """Where reading a file begins and ends: in bytes, in row groups of .parquet; None is the end
    of the file.
    """

    start: int = 0
    stop: int | None = None


WHOLE = Part()


@dataclass
class Counts:
    """What one pass over files met: for a report, and for a user to be told."""

    n_files: int = 0
    n_documents: int = 0
    n_characters: int = 0
    n_bytes: int = 0  # of the documents in UTF-8, not of the files
    n_empty: int = 0  # documents without a character other than white space
    n_replaced: int = 0  # U+FFFD put where bytes (or half a surrogate pair) were no text
    n_binary_files: int = 0
    crlf: Counter[str] = field(default_factory=Counter)  # file -> its parts with CRLF line ends
    cr: Counter[str] = field(default_factory=Counter)  # the same for lone CR
    marks: Counter[str] = field(
        default_factory=Counter
    )  # encoding -> files with its byte-order mark
    separators: Counter[str] = field(
        default_factory=Counter
    )  # separator -> how often plain files were cut at it
    separated: Counter[str] = field(default_factory=Counter)  # file -> its parts that were cut so
    n_nul: int = 0  # NUL characters in texts
    left_out: Counter[str] = field(
        default_factory=Counter
    )  # suffix -> files in folders that were not taken

    def add(self, other: "Counts") -> None:
        for name, number in vars(other).items():
            setattr(self, name, getattr(self, name) + number)

    def notes(self) -> list[str]:
        """Plain sentences on what a user might not expect; none where there is nothing of the
        kind.
        """
        notes = []
        if self.n_replaced:
            notes.append(f"{plural(self.n_replaced, 'undecodable place')} became U+FFFD.")
        if self.marks:
            kinds = ", ".join(sorted(self.marks)).upper()
            notes.append(
                f"{plural(self.marks.total(), 'file')} began with a byte-order mark ({kinds}); it "
                f"is removed."
            )
        if self.crlf:
            notes.append(
                f"{plural(len(self.crlf), 'file')} had CRLF line ends; they are read as LF."
            )
        if self.cr:
            notes.append(
                f"{plural(len(self.cr), 'file')} had lone CR line ends; they are read as LF."
            )
        for separator, number in self.separators.items():
            notes.append(
                f"{plural(len(self.separated), 'plain text file')} cut into documents at "
                f"{number:,} {separator!r}; "
                "--data.document_separator none reads it as text."
            )
        if self.n_nul:
            notes.append(f"{plural(self.n_nul, 'NUL character')} in the text; they are kept.")
        if self.n_empty:
            notes.append(f"{plural(self.n_empty, 'empty document')} skipped.")
        if self.n_binary_files:
            notes.append(f"{plural(self.n_binary_files, 'file')} left out as binary.")
        if self.left_out:
            notes.append(
                f"{plural(self.left_out.total(), 'file')} in folders left out by suffix "
                f"({listed(self.left_out)}); "
                "a pattern such as '**/*.html' takes any."
            )
        return notes


def plural(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(suffixes: Counter[str]) -> str:
    """ "12 .png, 2 .py": the commonest first."""
    parts = [f"{number:,} {suffix}" for suffix, number in suffixes.most_common(5)]
    return ", ".join(parts) + (", ..." if len(suffixes) > 5 else "")


def inner_suffix(path: Path) -> str:
    """The suffix that says what is inside: ".jsonl" of "a.JSONL.gz"."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()


def known_encoding(name: str) -> str:
    """Python's own name of an encoding; UTF-8 for "auto". Raises ConfigError."""
    wanted = "utf-8" if name == "auto" else name
    try:
        b"a".decode(wanted, "ignore")  # refuses "hex" and its like, which lookup() knows
        return codecs.lookup(wanted).name
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        near = difflib.get_close_matches(name.lower(), encodings.aliases.aliases, n=1)
        hint = (
            f"Did you mean {near[0]!r}?"
            if near
            else "Most text is in 'utf-8', 'latin-1' or 'cp1252'."
        )
        raise ConfigError(
            f"data.encoding = {name!r} is no text encoding that Python knows. {hint}"
        ) from None


def count_separators(counts: Counts, separator: str, n_found: int, path: Path) -> None:
    if n_found:
        counts.separators[separator] += n_found
        counts.separated[str(path)] += 1


def read_chunks(
    path: Path, encoding: str, errors: str, counts: Counts, part: Part = WHOLE
) -> Iterator[str]:
    """The text of a plain file as it comes, some hundred thousand characters at a time; as
    `read_texts` otherwise.
    """
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    with read_errors(path), opened(path, part) as stream:
        n_characters = 0
        for text in decoded_chunks(
            stream, Lines(path, part.start), encoding, errors, line_ends, counts
        ):
            yield without_surrogates(text, str(path), errors, counts, n_characters)
            counts.n_nul += text.count("\0")
            n_characters += len(text)
    count_part(counts, line_ends, path, part)


def count_part(
    counts: Counts, line_ends: io.IncrementalNewlineDecoder, path: Path, part: Part
) -> None:
    counts.n_files += part.start == 0  # a file of several parts is one file
    seen = line_ends.newlines if isinstance(line_ends.newlines, tuple) else (line_ends.newlines,)
    for line_end, files in (("\r\n", counts.crlf), ("\r", counts.cr)):
        if line_end in seen:
            files[str(path)] += 1


class Lines:
    """Which line of the file a line of its part is. Those before the part are counted when an
    error has to name one.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.start = path, start

    def of(self, number: int) -> int:
        return number + (self._n_before if self.start else 0)

    @cached_property
    def _n_before(self) -> int:
        line_ends, n_lines = io.IncrementalNewlineDecoder(None, translate=True), 0
        with opened(self.path, Part(0, self.start)) as stream:
            while chunk := stream.read(CHUNK):
                n_lines += line_ends.decode(chunk.decode("latin-1")).count("\n")
        return n_lines + line_ends.decode("", final=True).count("\n")


def dangling(path: Path) -> str:
    """Says of a link that what it leads to is not there; "" of anything else."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return (
        f" {path} is a link to something that is not there, {os.readlink(path)}. Remove the link, "
        f"or put back what it "
        "leads to."
    )


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """What the system and the decompressors raise, as DataError."""
    try:
        yield
    except PermissionError as error:
        raise DataError(
            f"no permission to read {error.filename or path}. Change its permissions."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            link = dangling(Path(error.filename or path))
            raise DataError(
                f"cannot read {error.filename or path}: {error.strerror}.{link}"
            ) from error
        if REFUSED in str(error):  # in a frame behind the first
            raise too_wide(path) from error
        raise DataError(
            f"{path} cannot be decompressed: {str(error).rstrip('.')}. It is cut short or damaged; "
            "download or compress it again."
        ) from error


def looks_binary(head: bytes, encoding: str) -> bool:
    """Whether a file that begins with these bytes holds no text in `encoding`, by the NULs among
    the first 8 KB.

    A stray NUL in a text is a character like others. More than one in a thousand bytes, or any
    where the bytes are not in the encoding anyway, are those of a binary file, or of UTF-16 that
    nobody told of.
    """
    if encoding.startswith(("utf-16", "utf-32")) or b"\0" not in (first := head[:SNIFFED]):
        return False
    n_nuls = first.count(0)
    if n_nuls > len(first) / STRAY_NULS + 1 or 10 * n_nuls > len(first):
        return True
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(first)
    except UnicodeError:
        return True
    return False


def open_bytes(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file's bytes as they are: on the disk, or on the Hub."""
    return hub.open_remote(path) if hub.is_remote(path) else open(path, "rb")


def size_and_time(path: Path) -> tuple[int, int]:
    """How long a file is, and when it was changed, in nanoseconds; those of the Hub, named with
    a commit, never are.
    """
    if hub.is_remote(path):
        return hub.n_bytes_of(path), 0
    known = path.stat()
    return known.st_size, known.st_mtime_ns


@contextlib.contextmanager
def opened(path: Path, part: Part = WHOLE) -> Iterator[Any]:
    """The file's bytes as they are when not compressed; of a part only those, unless it is one
    of row groups.
    """
    with open_bytes(path) as file:
        if path.suffix.lower() == ".gz":
            with gzip.open(file, "rb") as stream:
                yield stream
        elif path.suffix.lower() == ".zst":
            with open_zstd(file, path) as stream:
                yield stream
        elif part == WHOLE or inner_suffix(path) in PARQUET:
            yield file
        else:
            file.seek(part.start)
            yield file if part.stop is None else _UpTo(file, part.stop - part.start)


class _UpTo:
    """So many bytes of a file."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file, self._left = file, n_bytes

    def read(self, n_bytes: int) -> bytes:
        data = self._file.read(min(n_bytes, self._left))
        self._left -= len(data)
        return data


def decoded_chunks(
    stream: Any,
    lines: Lines,
    encoding: str,
    errors: str,
    line_ends: io.IncrementalNewlineDecoder,
    counts: Counts,
) -> Iterator[str]:
    """The bytes as text, without byte-order mark, with LF alone."""
    path, begins = lines.path, lines.start == 0
    head = stream.read(CHUNK)
    if not begins:
        # other files are not divided, and this one may say so by a mark at its beginning
        encoding = "utf-8"
    else:
        encoding = next((marked for mark, marked in MARKS if head.startswith(mark)), encoding)
        if looks_binary(head, encoding):
            raise _binary(path, head)
    chunks = itertools.chain([head], iter(lambda: stream.read(CHUNK), b""))
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    # U+FFFD may be in the file itself: what is there when errors are ignored was not put there by
    # us.
    genuine = codecs.getincrementaldecoder(encoding)("ignore") if errors == "replace" else None
    n_bytes, n_lines = lines.start, 0
    for number, chunk in enumerate(
        itertools.chain(chunks, [b""])
    ):  # the last one for what is still pending
        offset = n_bytes - len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
            if genuine is not None:
                counts.n_replaced += text.count("\ufffd") - genuine.decode(
                    chunk, final=not chunk
                ).count("\ufffd")
        except UnicodeDecodeError as error:
            before = line_ends.decode(
                error.object[: error.start].decode(encoding, "ignore"), final=True
            )
            line = lines.of(n_lines + before.count("\n") + 1)
            raise _undecodable(path, encoding, error, offset, line) from error
        except UnicodeError as error:  # a few odd codecs do not say where
            raise DataError(
                f"{path} is not {encoding.upper()}: {error}. Choose another --data.encoding."
            ) from error
        if begins and number == 0 and text.startswith("\ufeff"):
            counts.marks[encoding] += 1
            text = text[1:]
        n_bytes += len(chunk)
        text = line_ends.decode(text, final=not chunk)
        n_lines += text.count("\n")
        yield text


def _binary(path: Path, head: bytes) -> BinaryFile:
    """The error for a file that begins with the bytes `head`, one of them a NUL."""
    mend = "If it is UTF-16 without a byte-order mark, say `--data.encoding utf-16-le`."
    if path.suffix.lower() in TOKEN_FILES:
        mend = TOKENS_OF_OTHERS
    elif {suffix.lower() for suffix in path.suffixes} & set(PACKED):
        mend = (
            f"Unpack it first: of what is compressed {' and '.join(COMPRESSED)} are "
            f"read as they are."
        )
    return BinaryFile(
        f"{path} looks binary (NUL byte at offset {head.index(0):,}), wanted text. {mend}"
    )


def _undecodable(
    path: Path, encoding: str, error: UnicodeDecodeError, offset: int, line: int
) -> DataError:
    """The error for bytes that are not in `encoding`: those of `error` begin at `offset`."""
    decompressed = " after decompression" if path.suffix.lower() in COMPRESSED else ""
    return DataError(
        f"{path} is not {encoding.upper()}: byte 0x{error.object[error.start]:02X} at "
        f"offset "
        f"{offset + error.start}{decompressed}, line "
        f"{line} "
        f"({error.reason}). "
        f"{GO_ON}; or another encoding is meant, such as `--data.encoding latin-1`."
    )


def without_surrogates(
    text: str, source: str, errors: str, counts: Counts, n_before: int = 0
) -> str:
    """JSON's \\ud83d and a few codecs can put half a surrogate pair into a string, where no
    encoding can follow.
    """
    try:
        if not text.isascii():
            text.encode()  # the quickest way to look
        return text
    except UnicodeEncodeError as error:
        half = error.start
    if errors == "strict":
        raise DataError(
            f"{source} holds half a surrogate pair, U+{ord(text[half]):04X}, at character "
            f"{n_before + half} of its "
            f"text; no encoding can write that. {GO_ON}."
        )
    text, n_replaced = re.subn("[\ud800-\udfff]", "\ufffd", text)
    counts.n_replaced += n_replaced
    return text


def fields_there(fields: Iterable[str], texts: dict[str, int]) -> str:
    """What there is where the text field is not, and which of it could be meant.

    `texts`: the fields that hold text, and how much. The one with the most text is named.
    """
    names = [repr(name) for name in fields]
    there = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"
    if not texts:
        return f"it has {there}."
    most = max(texts, key=lambda name: texts[name])
    return f"it has {there}. Say which is meant: `--data.text_field {shlex.quote(most)}`."
