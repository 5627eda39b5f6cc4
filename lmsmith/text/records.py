"""Reads records with any fields: the objects of JSON files and the rows of Parquet.

A .parquet file has one record per row. Any other file has one JSON object per line, or is one JSON
array of objects. Each may be compressed (.gz, .zst) or remote (`hub.py`). Errors name the file and
the line or row.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import DataError
from lmsmith.text import hub
from lmsmith.text.files import (
    COMPRESSED,
    PARQUET,
    WHOLE,
    Counts,
    Lines,
    Skip,
    decoded_chunks,
    inner_suffix,
    opened,
    read_errors,
)
from lmsmith.text.parquet import BUFFER
from lmsmith.text.sources import find_files

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./%-]+)?")
_ON_THE_HUB = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.json")


def find_record_files(sources: Sequence[str]) -> list[Path]:
    """The files of the sources: files, folders, patterns, hf:// paths, or OWNER/NAME on the Hub.

    Of a data set on the Hub, the files whose path contains "train" are read, or all data files if
    there are none. Raises DataError for a source that does not exist or has no data.
    """
    files: list[Path] = []
    for source in sources:
        if not Path(source).exists() and _HUB_NAME.fullmatch(source) and not Path(source).suffix:
            files += _on_the_hub(source)
        else:
            files += [found.path for found in find_files([source])[0]]
    return list(dict.fromkeys(files))


def read_records(path: Path, skip: Skip | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields each record of a file with its source, "file:line" or "file:row", counted from 1.

    Raises DataError for a record that is not an object, or passes it to `skip` if given.
    """
    if inner_suffix(path) in PARQUET:
        yield from _rows(path)
        return
    for value, number in _values(path, skip):
        source = f"{path}:{number}"
        if isinstance(value, dict):
            yield value, source
            continue
        error = DataError(f"{source} contains {_kind(value)}, expected an object.")
        if skip is None:
            raise error
        skip(error)


def _on_the_hub(source: str) -> list[Path]:
    name, _, revision = source.partition("@")
    commit, files = hub.list_files(name, _ON_THE_HUB, revision or "main")
    kept = [file.name for file in files if "train" in file.name] or [file.name for file in files]
    if not kept:
        raise DataError(
            f"there is no file or folder {source}, and the data set {name} on the Hub has no "
            f"{', '.join(_ON_THE_HUB)}. Name one of its files: hf://datasets/{name}/FILE."
        )
    return [Path(f"{hub.SCHEME}datasets/{name}@{commit}/{file}") for file in kept]


def _values(path: Path, skip: Skip | None) -> Iterator[tuple[Any, int]]:
    """The JSON values of a file with their line; the elements of an array count as lines."""
    counts, between_lines = Counts(), io.IncrementalNewlineDecoder(None, translate=True)
    with read_errors(path), opened(path, WHOLE) as stream:
        lines = Lines(path, 0)
        decoded = decoded_chunks(stream, lines, "utf-8", "strict", between_lines, counts)
        numbered = enumerate(_lines(decoded), start=1)
        first = next(((n, line) for n, line in numbered if line.strip()), None)
        if first is None:
            return
        if first[1].lstrip().startswith("["):
            text = "\n".join([first[1], *(line for _, line in numbered)])
            yield from _elements(text, path)
            return
        for number, line in itertools.chain([first], numbered):
            if not line.strip():
                continue
            try:
                value = foreign_json.parse(line.encode("utf-8", "surrogatepass"))
            except ValueError as problem:
                error = DataError(
                    f"{path}:{number} is not JSON: {problem}. Expected one object per line."
                )
                if skip is None:
                    raise error from problem
                skip(error)
                continue
            yield value, number


def _elements(text: str, path: Path) -> Iterator[tuple[Any, int]]:
    try:
        values = foreign_json.parse(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON: {error}. Expected one object per line, or an array of objects."
        ) from error
    yield from ((value, number) for number, value in enumerate(values, start=1))


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    import pyarrow  # imported here: it is slow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        stack.enter_context(read_errors(path))
        stream = stack.enter_context(opened(path, WHOLE))
        if path.suffix.lower() in COMPRESSED:  # Parquet is read from its end
            stream = io.BytesIO(stream.read())
        number = 0
        try:
            table = stack.enter_context(
                pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False)
            )
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}:{number}"
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{path} cannot be read as Parquet after row {number}: {error}. It is truncated, "
                "damaged or not Parquet."
            ) from error


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Splits at LF only: JSON may contain U+2028 and similar characters unescaped."""
    rest = ""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split("\n")
        yield from complete
    yield rest


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
