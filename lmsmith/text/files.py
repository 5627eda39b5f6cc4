"""Opens, decompresses and decodes text files, and counts what was read, for all formats.

Texts are Python strings in one form, whatever the file: byte-order marks are removed, CRLF and lone
CR become LF, and unpaired surrogates are errors. Files may be compressed (.gz or .zst after their
suffix). `reading.py` reads the texts of a file, with `json_lines.py` and `parquet.py` for these
formats.

A byte-order mark overrides the requested encoding, as in browsers (WHATWG Encoding Standard,
"decode"), so an unusual encoding can be set for one file without breaking the others. Without
either, a file is UTF-8; no encoding is guessed.

Files are read in chunks, so at most one more copy of a text is in memory besides the text itself. A
`Part` of a large file can be read on its own (`parts.py` finds the boundaries); a part of a plain
file is yielded in chunks that are never joined.
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
PACKED = (".bz2", ".xz", ".lzma", ".zip", ".7z", ".rar", ".tar", ".tgz", ".lz4")  # not supported
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
TOKEN_FILES = (".bin", ".npy")
FOREIGN_TOKEN_FILES = (
    "If it contains token ids without llm.c's header, like nanoGPT's train.bin and OLMo's .npy, it "
    "cannot be read: the file does not record the type of the ids or their tokenizer. Run `lmsmith "
    "data prepare` on the original text."
)
# UTF-32 comes first: the mark of UTF-32-LE begins with that of UTF-16-LE.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CHUNK = 1 << 18  # bytes read at once
SNIFFED = 8192  # leading bytes in which binary files are detected
STRAY_NULS = 1000  # a text may contain one NUL per this many bytes
REPLACE_HINT = "`--data.errors replace` replaces it with U+FFFD and continues"

Skip = Callable[[DataError], None]
"""Called with the error of a bad line or row, which is then skipped."""


class BinaryFile(DataError):
    """A file whose first bytes are not text."""


class Part(NamedTuple):
    """Start and end of a part of a file: in bytes, or in row groups of .parquet; None is the end of
    the file.
    """

    start: int = 0
    stop: int | None = None


WHOLE = Part()


@dataclass
class Counts:
    """Counts of one pass over files, for reports and for notes to the user."""

    n_files: int = 0
    n_documents: int = 0
    n_characters: int = 0
    n_bytes: int = 0  # of the documents in UTF-8, not of the files
    n_empty: int = 0  # documents of white space only
    n_replaced: int = 0  # invalid bytes or unpaired surrogates replaced with U+FFFD
    n_binary_files: int = 0
    crlf: Counter[str] = field(
        default_factory=Counter
    )  # file -> number of its parts with CRLF line ends
    cr: Counter[str] = field(default_factory=Counter)  # the same for lone CR
    marks: Counter[str] = field(
        default_factory=Counter
    )  # encoding -> files with its byte-order mark
    separators: Counter[str] = field(
        default_factory=Counter
    )  # separator -> how often plain files were split at it
    separated: Counter[str] = field(default_factory=Counter)  # file -> its parts that were split
    n_nul: int = 0  # NUL characters in texts
    left_out: Counter[str] = field(
        default_factory=Counter
    )  # suffix -> files in folders that were excluded

    def add(self, other: "Counts") -> None:
        """Adds the counts of another pass or part."""
        for name, number in vars(other).items():
            setattr(self, name, getattr(self, name) + number)

    def notes(self) -> list[str]:
        """Plain sentences about anything that may surprise the user; empty if there is nothing."""
        notes = []
        if self.n_replaced:
            notes.append(
                f"{plural(self.n_replaced, 'invalid byte sequence')} replaced with U+FFFD."
            )
        if self.marks:
            kinds = ", ".join(sorted(self.marks)).upper()
            notes.append(
                f"{plural(self.marks.total(), 'file')} began with a byte-order mark ({kinds}); it "
                f"was removed."
            )
        if self.crlf:
            notes.append(
                f"{plural(len(self.crlf), 'file')} had CRLF line ends; they were read as LF."
            )
        if self.cr:
            notes.append(
                f"{plural(len(self.cr), 'file')} had lone CR line ends; they were read as LF."
            )
        for separator, number in self.separators.items():
            notes.append(
                f"{plural(len(self.separated), 'plain text file')} split into documents at "
                f"{number:,} {separator!r}; --data.document_separator none reads it as text."
            )
        if self.n_nul:
            notes.append(f"{plural(self.n_nul, 'NUL character')} kept in the text.")
        if self.n_empty:
            notes.append(f"{plural(self.n_empty, 'empty document')} skipped.")
        if self.n_binary_files:
            notes.append(f"{plural(self.n_binary_files, 'binary file')} skipped.")
        if self.left_out:
            notes.append(
                f"{plural(self.left_out.total(), 'file')} in folders skipped by suffix "
                f"({listed(self.left_out)}); a pattern such as '**/*.html' includes any file."
            )
        return notes


def plural(number: int, thing: str) -> str:
    """ "1 file", "2,000 files"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(suffixes: Counter[str]) -> str:
    """ "12 .png, 2 .py": the most common first."""
    parts = [f"{number:,} {suffix}" for suffix, number in suffixes.most_common(5)]
    return ", ".join(parts) + (", ..." if len(suffixes) > 5 else "")


def inner_suffix(path: Path) -> str:
    """Returns the suffix of the content: ".jsonl" of "a.JSONL.gz"."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()


def known_encoding(name: str) -> str:
    """Python's name of an encoding; UTF-8 for "auto". Raises ConfigError."""
    requested = "utf-8" if name == "auto" else name
    try:
        b"a".decode(requested, "ignore")  # rejects "hex" and similar codecs, which lookup() accepts
        return codecs.lookup(requested).name
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        matches = difflib.get_close_matches(name.lower(), encodings.aliases.aliases, n=1)
        hint = (
            f"Did you mean {matches[0]!r}?"
            if matches
            else "Common encodings are 'utf-8', 'latin-1' and 'cp1252'."
        )
        raise ConfigError(
            f"data.encoding = {name!r} is not a text encoding of Python. {hint}"
        ) from None


def count_separators(counts: Counts, separator: str, n_found: int, path: Path) -> None:
    """Adds the separators found in one part of a file to `counts`."""
    if n_found:
        counts.separators[separator] += n_found
        counts.separated[str(path)] += 1


def read_chunks(
    path: Path, encoding: str, errors: str, counts: Counts, part: Part = WHOLE
) -> Iterator[str]:
    """Yields the text of a plain file in chunks of a few hundred thousand characters; otherwise as
    `read_texts`.
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
    """Adds one part of a file, and the line ends seen in it, to `counts`."""
    counts.n_files += part.start == 0  # count a file once, even if it is read in parts
    seen = line_ends.newlines if isinstance(line_ends.newlines, tuple) else (line_ends.newlines,)
    for line_end, files in (("\r\n", counts.crlf), ("\r", counts.cr)):
        if line_end in seen:
            files[str(path)] += 1


class Lines:
    """Converts line numbers within a part into line numbers of the file. The lines before the part
    are counted only when an error needs them.
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
    """For a dangling link, a sentence about it; otherwise ""."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return (
        f" {path} is a link to a missing file, {os.readlink(path)}. Remove the link, or restore "
        f"its target."
    )


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns errors of the system and of the decompressors into DataError."""
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
        if REFUSED in str(error):  # a later frame of the file needs a large window
            raise too_wide(path) from error
        raise DataError(
            f"{path} cannot be decompressed: {str(error).rstrip('.')}. It is truncated or damaged; "
            "download or compress it again."
        ) from error


def looks_binary(head: bytes, encoding: str) -> bool:
    """Returns whether a file that begins with `head` is not text in `encoding`, judged by the NULs
    in its first 8 KB.

    A stray NUL in a text is an ordinary character. More than one per thousand bytes, or any where
    the bytes are invalid in the encoding, means a binary file, or UTF-16 without a mark.
    """
    if encoding.startswith(("utf-16", "utf-32")) or b"\0" not in (sample := head[:SNIFFED]):
        return False
    n_nuls = sample.count(0)
    if n_nuls > len(sample) / STRAY_NULS + 1 or 10 * n_nuls > len(sample):
        return True
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(sample)
    except UnicodeError:
        return True
    return False


def open_bytes(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    """Opens the raw bytes of a file on the disk or on the Hub."""
    return hub.open_remote(path) if hub.is_remote(path) else open(path, "rb")


def size_and_time(path: Path) -> tuple[int, int]:
    """Returns the length of a file in bytes, and its modification time in nanoseconds; 0 for a file
    on the Hub, where a path with a commit never changes.
    """
    if hub.is_remote(path):
        return hub.n_bytes_of(path), 0
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def opened(path: Path, part: Part = WHOLE) -> Iterator[Any]:
    """Opens the decompressed bytes of a file. For a part, only its bytes, unless the part is in row
    groups.
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
    """The next `n_bytes` bytes of a file."""

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
    """Decodes the bytes of `stream`: without byte-order mark, with LF line ends."""
    path, is_first_part = lines.path, lines.start == 0
    head = stream.read(CHUNK)
    if not is_first_part:
        # Only UTF-8 files are divided; a mark at the start of this one may have said so.
        encoding = "utf-8"
    else:
        encoding = next((marked for mark, marked in MARKS if head.startswith(mark)), encoding)
        if looks_binary(head, encoding):
            raise _binary(path, head)
    chunks = itertools.chain([head], iter(lambda: stream.read(CHUNK), b""))
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    # The file itself may contain U+FFFD: those that remain when errors are ignored are not
    # replacements.
    genuine = codecs.getincrementaldecoder(encoding)("ignore") if errors == "replace" else None
    n_bytes, n_lines = lines.start, 0
    for number, chunk in enumerate(
        itertools.chain(chunks, [b""])
    ):  # the empty chunk flushes the decoder
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
        except UnicodeError as error:  # a few codecs do not report the position
            raise DataError(
                f"{path} is not {encoding.upper()}: {error}. Choose another --data.encoding."
            ) from error
        if is_first_part and number == 0 and text.startswith("\ufeff"):
            counts.marks[encoding] += 1
            text = text[1:]
        n_bytes += len(chunk)
        text = line_ends.decode(text, final=not chunk)
        n_lines += text.count("\n")
        yield text


def _binary(path: Path, head: bytes) -> BinaryFile:
    """Returns the error for a binary file. `head`: its first bytes, which contain a NUL."""
    hint = "If it is UTF-16 without a byte-order mark, set `--data.encoding utf-16-le`."
    if path.suffix.lower() in TOKEN_FILES:
        hint = FOREIGN_TOKEN_FILES
    elif {suffix.lower() for suffix in path.suffixes} & set(PACKED):
        hint = (
            f"Unpack it first: {' and '.join(COMPRESSED)} are the only compressed formats that can "
            f"be read."
        )
    return BinaryFile(
        f"{path} looks binary (NUL byte at offset {head.index(0):,}), expected text. {hint}"
    )


def _undecodable(
    path: Path, encoding: str, error: UnicodeDecodeError, offset: int, line: int
) -> DataError:
    """Returns the error for invalid bytes in `encoding`. `offset`: where the bytes of `error` begin
    in the file.
    """
    decompressed = " after decompression" if path.suffix.lower() in COMPRESSED else ""
    return DataError(
        f"{path} is not {encoding.upper()}: byte 0x{error.object[error.start]:02X} at offset "
        f"{offset + error.start}{decompressed}, line {line} ({error.reason}). {REPLACE_HINT}; or "
        f"set "
        f"another encoding, such as `--data.encoding latin-1`."
    )


def without_surrogates(
    text: str, source: str, errors: str, counts: Counts, n_before: int = 0
) -> str:
    """Rejects or replaces unpaired surrogates. JSON's \\ud83d and a few codecs can produce them,
    and no encoding can represent them.
    """
    try:
        if not text.isascii():
            text.encode()  # the fastest check
        return text
    except UnicodeEncodeError as error:
        half = error.start
    if errors == "strict":
        raise DataError(
            f"{source} contains half a surrogate pair, U+{ord(text[half]):04X}, at character "
            f"{n_before + half} of its text; no encoding can represent it. {REPLACE_HINT}."
        )
    text, n_replaced = re.subn("[\ud800-\udfff]", "\ufffd", text)
    counts.n_replaced += n_replaced
    return text


def available_fields(fields: Iterable[str], texts: dict[str, int]) -> str:
    """Returns a clause for an error about a missing text field: lists the existing fields and
    suggests one.

    `texts`: the fields that contain text, and how much; the one with the most text is suggested.
    """
    names = [repr(name) for name in fields]
    listing = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"
    if not texts:
        return f"it has {listing}."
    most = max(texts, key=lambda name: texts[name])
    return f"it has {listing}. Set `--data.text_field {shlex.quote(most)}`."
