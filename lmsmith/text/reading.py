"""Reads the texts of one file of any supported kind, each with its source.

Plain text (any suffix) is one text, or several between separators. A line of .jsonl, .ndjson or
.json is one text, and so is a row of .parquet.
"""

import io
from collections.abc import Iterator
from pathlib import Path

from lmsmith.text.files import (
    JSON_LINES,
    PARQUET,
    WHOLE,
    Counts,
    Lines,
    Part,
    Skip,
    count_part,
    count_separators,
    decoded_chunks,
    inner_suffix,
    opened,
    read_chunks,
    read_errors,
)
from lmsmith.text.json_lines import json_lines
from lmsmith.text.parquet import parquet_rows
from lmsmith.text.separators import Cutter


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
    """Yields the texts of one file, each with its source: "file", or "file:line" (row), from 1.
    Includes empty texts.

    A plain file is split at `separator` if that is not empty; its texts are then "file#1",
    "file#2", ... `encoding`: name of a codec. `errors`: "strict" or "replace". Adds to `counts`
    everything known about the file, except the counts of documents. Raises BinaryFile, and
    DataError for any other problem with the file; if `skip` is given, it receives the errors of bad
    lines and rows. For a part of a .jsonl file, sources count from the part's first line, but
    errors name the line of the file.
    """
    suffix = inner_suffix(path)
    if suffix not in PARQUET + JSON_LINES:
        yield from _plain_texts(path, encoding, errors, counts, part, separator)
        return
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    with read_errors(path), opened(path, part) as stream:
        lines = Lines(path, part.start if suffix in JSON_LINES else 0)
        if suffix in PARQUET:
            texts = parquet_rows(stream, path, text_field, errors, counts, part, skip)
        else:
            between_lines = io.IncrementalNewlineDecoder(None, translate=True)
            decoded = decoded_chunks(stream, lines, encoding, errors, between_lines, counts)
            texts = json_lines(decoded, lines, text_field, errors, counts, skip)
        for text, number in texts:
            if "\r" in text:
                text = line_ends.decode(text, final=True)
            yield text, f"{path}:{number}"
            del text  # frees the text before the next one is read
    count_part(counts, line_ends, path, part)


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
