"""One file of text -> its texts, as Python strings that look the same whatever the file was like.

Plain text (any suffix) is one text, a line of .jsonl, .ndjson or .json is one, a row of .parquet is
one; each also with .gz or .zst behind it. Byte-order marks are removed, CRLF and lone CR become LF,
half surrogate pairs are no text.

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
import json
import os
import re
import shlex
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lmsmith.errors import ConfigError, DataError
from lmsmith.text import hub
from lmsmith.text.separators import Cutter
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

FROM_ARRAY = "If the file is one array, `jq -c '.[]' FILE > LINES.jsonl` makes lines of it."

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


def read_texts(
    path: Path,
    text_field: str,
    encoding: str,
    errors: str,
    counts: Counts,
    part: Part = WHOLE,
    skip: Skip | None = None,
    separator: str = "",
) -> Iterator[tuple[str, str]]:
    """The texts of one file, each with its source: "file", or "file:line" (row), from 1. Empty ones
    are among them.

    A plain file is cut at `separator`, if that is not empty; its texts are then "file#1", "file#2",
    ... `encoding` is a codec's name, `errors` "strict" or "replace". Adds to `counts` what is known
    of the file (all but what concerns documents). Raises BinaryFile, and DataError for all else
    that can be wrong with a file; where `skip` is given, a line or row that is bad by itself goes
    there. Of a .jsonl that is read in parts, sources count from the part's first line; what is
    raised names the line of the file.
    """
    suffix = inner_suffix(path)
    if suffix not in PARQUET + JSON_LINES:
        yield from _plain_texts(path, encoding, errors, counts, part, separator)
        return
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    with read_errors(path), _opened(path, part) as stream:
        lines = _Lines(path, part.start if suffix in JSON_LINES else 0)
        if suffix in PARQUET:
            texts = _parquet_rows(stream, path, text_field, errors, counts, part, skip)
        else:
            between_lines = io.IncrementalNewlineDecoder(None, translate=True)
            decoded = _decoded(stream, lines, encoding, errors, between_lines, counts)
            texts = _json_lines(decoded, lines, text_field, errors, counts, skip)
        for text, number in texts:
            if "\r" in text:
                text = line_ends.decode(text, final=True)
            yield text, f"{path}:{number}"
            del text  # else it would be kept until the next one has been read
    _count_part(counts, line_ends, path, part)


def _plain_texts(
    path: Path, encoding: str, errors: str, counts: Counts, part: Part, separator: str
) -> Iterator[tuple[str, str]]:
    cutter, number = Cutter(separator), 0
    for chunk in read_chunks(path, encoding, errors, counts, part):
        for text in cutter.push(chunk):
            number += 1
            yield text, f"{path}#{number}"
    for text in cutter.finish():
        yield text, f"{path}#{number + 1}" if cutter.n_found else str(path)
    count_separators(counts, separator, cutter.n_found, path)


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
    with read_errors(path), _opened(path, part) as stream:
        n_characters = 0
        for text in _decoded(stream, _Lines(path, part.start), encoding, errors, line_ends, counts):
            yield _without_surrogates(text, str(path), errors, counts, n_characters)
            counts.n_nul += text.count("\0")
            n_characters += len(text)
    _count_part(counts, line_ends, path, part)


def _count_part(
    counts: Counts, line_ends: io.IncrementalNewlineDecoder, path: Path, part: Part
) -> None:
    counts.n_files += part.start == 0  # a file of several parts is one file
    seen = line_ends.newlines if isinstance(line_ends.newlines, tuple) else (line_ends.newlines,)
    for line_end, files in (("\r\n", counts.crlf), ("\r", counts.cr)):
        if line_end in seen:
            files[str(path)] += 1


class _Lines:
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
        with _opened(self.path, Part(0, self.start)) as stream:
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
def _opened(path: Path, part: Part = WHOLE) -> Iterator[Any]:
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


def _decoded(
    stream: Any,
    lines: _Lines,
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


def _without_surrogates(
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


def _json_lines(
    decoded: Iterable[str],
    lines: _Lines,
    text_field: str,
    errors: str,
    counts: Counts,
    skip: Skip | None,
) -> Iterator[tuple[str, int]]:
    all_lines = _lines(decoded)
    for number, line in enumerate(all_lines, start=1):
        if not line or line.isspace():
            continue
        try:
            more = itertools.islice(all_lines, _SAMPLED) if skip is None else ()
            text = _without_surrogates(_json_text(line, text_field, more), "", errors, counts)
        except DataError as error:
            placed = DataError(f"{lines.path}, line {lines.of(number)}{error}")
            if skip is None:
                raise placed from error
            skip(placed)
            continue
        yield text, number


def _json_text(line: str, text_field: str, more: Iterable[str] = ()) -> str:
    """The text of one line. What is raised goes on from the name of the line.

    `more`: the lines behind it, read only where the field is missing, to see which other one holds
    the text.
    """
    try:
        record = _json(line)
    except (ValueError, RecursionError) as error:
        wanted = f"{{{json.dumps(text_field)}: ...}}"
        array = f" {FROM_ARRAY}" if line.lstrip().startswith("[") else ""
        why = "it is nested too deep to be read" if isinstance(error, RecursionError) else error
        raise DataError(
            f" is not JSON: {why}. Wanted one object a line: {wanted}.{array}"
        ) from error
    if not isinstance(record, dict):
        array = f" {FROM_ARRAY}" if isinstance(record, list) else ""
        raise DataError(
            f" holds {_json_kind(record)}, wanted an object with the field {text_field!r}.{array}"
        )
    found = _field(record, text_field)
    if not found:
        texts = dict(_text_fields(record))
        # Mistakes in the lines behind are not what this error is about.
        with contextlib.suppress(ValueError, RecursionError, DataError, AttributeError):
            for other in filter(str.strip, more):
                for name, length in _text_fields(_json(other)):
                    texts[name] = texts.get(name, 0) + length
        texts.pop(text_field, None)
        raise DataError(f" has no field {text_field!r}; {_has(record, texts)}")
    (text,) = found
    if text is not None and not isinstance(text, str):
        raise DataError(f": the field {text_field!r} holds {_json_kind(text)}, wanted text.")
    return text or ""


_SAMPLED = 100  # lines that say which field holds the text


def _json(line: str) -> Any:
    """As json.loads, with integers of any length: Python refuses more than 4,300 digits."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(line, parse_int=float)  # their values are not used


def _field(record: dict[str, Any], name: str) -> list[Any]:
    """The value of a field, alone in a list: `meta.text` is a field of that name, or `text` within
    `meta`. [] if none.

    The longest name that is a field counts first.
    """
    if name in record:
        return [record[name]]
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:n])
        inner = record.get(outer)
        if inner is None and outer in record:
            return [None]  # as a row of .parquet has it
        if isinstance(inner, dict) and (found := _field(inner, ".".join(parts[n:]))):
            return found
    return []


def _text_fields(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """The names of fields that hold text, with its length; nested ones come last."""
    for name, value in record.items():
        if isinstance(value, str):
            yield prefix + name, len(value)
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _text_fields(value, f"{prefix}{name}.")


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines that end in LF and nothing else: JSON may hold U+2028 and its like as they are."""
    parts = []
    for chunk in chunks:
        first, *others = chunk.split("\n")
        parts.append(first)
        for line in others:
            yield "".join(parts)
            parts = [line]
    yield "".join(parts)


def _json_kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "an array",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")


def _parquet_rows(
    stream: Any,
    path: Path,
    text_field: str,
    errors: str,
    counts: Counts,
    part: Part,
    skip: Skip | None,
) -> Iterator[tuple[str, int]]:
    """The column's rows, a batch of one row group at a time. Parquet's strings are UTF-8,
    whatever `encoding` says.
    """
    import pyarrow  # here: it takes a while, and most text is not in .parquet
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        if path.suffix.lower() in COMPRESSED:
            # A Parquet file is read from its end, so all of it must be there.
            whole = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, whole)
            stream = whole
        try:
            table = stack.enter_context(pyarrow.parquet.ParquetFile(stream))
            columns = dict(_columns(table.schema_arrow))
            rows_of = [
                table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)
            ]
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable_parquet(path, error) from error
        _check_text_column(path, table.metadata, columns, text_field)
        for group in range(len(rows_of))[part.start : part.stop]:
            row = sum(rows_of[:group])
            try:
                for value in _group_values(table, group, text_field):
                    row += 1
                    try:
                        text = _row_text(value.as_py() or b"", f"{path}:{row}", errors, counts)
                    except DataError as error:
                        if skip is None:
                            raise
                        skip(error)
                        continue
                    yield text, row
            except (pyarrow.ArrowException, OSError) as error:
                if skip is None:
                    raise _unreadable_parquet(path, error) from error
                skip(_unreadable_parquet(path, error))


def _unreadable_parquet(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as Parquet: {str(error).rstrip('.')}. It is cut short, "
        f"damaged or no Parquet."
    )


def _check_text_column(path: Path, metadata: Any, columns: dict[str, str], text_field: str) -> None:
    """Raises DataError unless `text_field` is a column of strings or bytes.

    `metadata` is the file's; `columns` has the type of each column by name.
    """
    texts = [
        name
        for name, kind in columns.items()
        if re.match("(dictionary<values=)?(large_)?string", kind)
    ]
    if text_field not in columns:
        sizes = dict.fromkeys(texts, 0)
        for index in range(metadata.num_columns if metadata.num_row_groups else 0):
            chunk = metadata.row_group(0).column(index)
            if chunk.path_in_schema in sizes:
                sizes[chunk.path_in_schema] = chunk.total_uncompressed_size
        raise DataError(f"{path} has no column {text_field!r}; {_has(columns, sizes)}")
    if text_field not in texts and columns[text_field] not in ("binary", "large_binary"):
        raise DataError(
            f"{path}: the column {text_field!r} holds {columns[text_field]}, wanted strings."
        )


def _group_values(table: Any, group: int, text_field: str) -> Iterator[Any]:
    """The column's rows in one row group as binary scalars of pyarrow, read in batches.

    Binary and not strings, so that bad UTF-8 is reported with its row. Scalars, so that nothing
    holds a copy of a row longer than needed.
    """
    import pyarrow

    for batch in table.iter_batches(batch_size=1024, row_groups=[group], columns=[text_field]):
        column = _column(batch, text_field)
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        yield from column.cast(pyarrow.large_binary())


def _columns(fields: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and type of each column, those within structs as `meta.text`, behind those at the
    top.
    """
    import pyarrow

    yield from ((prefix + column.name, str(column.type)) for column in fields)
    for column in fields:
        if pyarrow.types.is_struct(column.type):
            inner = [column.type.field(index) for index in range(column.type.num_fields)]
            yield from _columns(inner, f"{prefix}{column.name}.")


def _column(batch: Any, name: str) -> Any:
    """The values of a column, which may be within a struct."""
    import pyarrow.compute

    if name in batch.schema.names:
        return batch.column(name)
    parts = name.split(".")
    n = next(n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in batch.schema.names)
    return pyarrow.compute.struct_field(batch.column(".".join(parts[:n])), parts[n:])


def _row_text(data: bytes, source: str, errors: str, counts: Counts) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(
                f"{source} is not UTF-8: byte 0x{data[error.start]:02X} at offset {error.start} "
                f"of the row's text "
                f"({error.reason}). {GO_ON}."
            ) from error
    text = data.decode(errors="replace")
    counts.n_replaced += text.count("\ufffd") - data.decode(errors="ignore").count("\ufffd")
    return text


def _has(fields: Iterable[str], texts: dict[str, int]) -> str:
    """What there is where the text field is not, and which of it could be meant.

    `texts`: the fields that hold text, and how much. The one with the most text is named.
    """
    names = [repr(name) for name in fields]
    there = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"
    if not texts:
        return f"it has {there}."
    most = max(texts, key=lambda name: texts[name])
    return f"it has {there}. Say which is meant: `--data.text_field {shlex.quote(most)}`."
