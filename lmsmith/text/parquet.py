"""Reads Parquet: the text in one column of each row.

The column may be within a struct: `meta.text`. Errors name the row number in the file.

Memory holds a part of a row group at a time, whatever its size: a buffer of the file, a page and a
batch of rows. A page that is dictionary-encoded or compressed is decoded completely.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmsmith.errors import DataError
from lmsmith.text.files import COMPRESSED, REPLACE_HINT, Counts, Part, Skip, available_fields

BUFFER = 1 << 22
"""Bytes of a column that are read from the file at once. By default, pyarrow reads a row group's
part of the column completely.
"""
BATCH_ROWS, BATCH_BYTES = 1024, 1 << 22
"""The most rows of a batch, and about the most bytes."""


def parquet_rows(
    stream: Any,
    path: Path,
    text_field: str,
    errors: str,
    counts: Counts,
    part: Part,
    skip: Skip | None,
) -> Iterator[tuple[str, int]]:
    """Yields the column's rows, one batch of a row group at a time. Parquet strings are UTF-8,
    regardless of `encoding`.
    """
    import pyarrow  # imported here: it is slow, and most text is not Parquet
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        if path.suffix.lower() in COMPRESSED:
            # Parquet is read from its end, so the file is decompressed completely.
            decompressed = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, decompressed)
            stream = decompressed
        try:
            table = stack.enter_context(
                pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False)
            )
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
        f"{path} cannot be read as Parquet: {str(error).rstrip('.')}. It is truncated, damaged "
        f"or not Parquet."
    )


def _check_text_column(path: Path, metadata: Any, columns: dict[str, str], text_field: str) -> None:
    """Raises DataError unless `text_field` is a column of strings or bytes.

    `metadata`: of the file. `columns`: column name -> type.
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
        raise DataError(f"{path} has no column {text_field!r}; {available_fields(columns, sizes)}")
    if text_field not in texts and columns[text_field] not in ("binary", "large_binary"):
        raise DataError(
            f"{path}: the column {text_field!r} contains {columns[text_field]}, expected strings. "
            f"Name a column of strings with --data.text_field."
        )


def _group_values(table: Any, group: int, text_field: str) -> Iterator[Any]:
    """Yields the column's rows in one row group as binary scalars of pyarrow, read in batches.

    They are binary, not strings, so that invalid UTF-8 is reported with its row, and scalars, so
    that no copy of a row is kept longer than needed.
    """
    import pyarrow

    n_rows = _batch_rows(table.metadata.row_group(group), text_field)
    for batch in table.iter_batches(batch_size=n_rows, row_groups=[group], columns=[text_field]):
        column = _column(batch, text_field)
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        yield from column.cast(pyarrow.large_binary())


def _batch_rows(group: Any, text_field: str) -> int:
    """Returns the number of rows of a batch, by the mean size of the rows. `group`: metadata of a
    row group.
    """
    chunks = map(group.column, range(group.num_columns))
    size: int = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == text_field)
    n_rows: int = group.num_rows
    return max(1, min(BATCH_ROWS, BATCH_BYTES * n_rows // max(1, size)))


def _columns(fields: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and type of each column; those within structs, such as `meta.text`, come after the
    top-level ones.
    """
    import pyarrow

    yield from ((prefix + column.name, str(column.type)) for column in fields)
    for column in fields:
        if pyarrow.types.is_struct(column.type):
            inner = [column.type.field(index) for index in range(column.type.num_fields)]
            yield from _columns(inner, f"{prefix}{column.name}.")


def _column(batch: Any, name: str) -> Any:
    """Returns the values of a column, which may be within a struct."""
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
                f"({error.reason}). {REPLACE_HINT}."
            ) from error
    text = data.decode(errors="replace")
    counts.n_replaced += text.count("\ufffd") - data.decode(errors="ignore").count("\ufffd")
    return text
