"""Divides a large file into parts that several processes can read; together the parts give all
texts of the file.

    divide(path, 1 << 26, "text", "utf-8", cut)      # [Part(0, 67105021), Part(67105021, None)]

A .jsonl file is divided after a line, a .parquet file between row groups. A plain file is one
document, and the function `cut` determines where it may be divided. Only the bytes around the
boundaries are read.

Compressed files, and files in an encoding other than UTF-8, are one part.
"""

from collections.abc import Callable
from pathlib import Path

from lmsmith.text.files import (
    COMPRESSED,
    JSON_LINES,
    MARKS,
    PARQUET,
    WHOLE,
    Part,
    inner_suffix,
    open_bytes,
    read_errors,
    size_and_time,
)

Cut = Callable[[bytes], int]
"""Takes bytes from the middle of a text; returns an offset where it may be divided, 0 if none."""

NEAR = 1 << 10  # bytes searched for a boundary first; doubled after each failure


def divide(
    path: Path, size: int, text_field: str, encoding: str, cut: Cut | None = None
) -> list[Part]:
    """Parts of at least `size` bytes, and little more where possible. Raises DataError if the file
    cannot be read.

    `encoding` is the name of a codec.
    """
    suffix = inner_suffix(path)
    with read_errors(path):
        if path.suffix.lower() in COMPRESSED:
            return [WHOLE]
        if suffix in PARQUET:
            return _row_groups(path, size, text_field)
        if suffix in JSON_LINES:
            cut = _after_line
        n_bytes, _ = size_and_time(path)
        if cut is None or n_bytes <= size or not is_utf8(path, encoding):
            return [WHOLE]
        starts = [0]
        while start_of_next := next_boundary(path, starts[-1] + size, cut):
            starts.append(start_of_next)
    return [Part(start, stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def next_boundary(path: Path, offset: int, cut: Cut) -> int:
    """Returns the next boundary after `offset` where the file can be divided; 0 if there is none
    before its end.
    """
    with open_bytes(path) as file:
        n_bytes, near = file.seek(0, 2), NEAR
        while offset < n_bytes:
            file.seek(offset)
            boundary = offset + cut(file.read(near))
            if offset < boundary < n_bytes:
                return boundary
            offset += near
            near = min(2 * near, 1 << 20)
    return 0


def is_utf8(path: Path, encoding: str) -> bool:
    """Returns whether the file is read as UTF-8: by its byte-order mark, or without one by the
    requested encoding.
    """
    with open_bytes(path) as file:
        head = file.read(4)
    return next((marked for mark, marked in MARKS if head.startswith(mark)), encoding) == "utf-8"


def _after_line(data: bytes) -> int:
    return data.find(b"\n") + 1


def _row_groups(path: Path, size: int, text_field: str) -> list[Part]:
    """Parts by the uncompressed bytes of the text column. A file that is not Parquet is one part;
    reading it raises the error.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open_bytes(path) as file:
            metadata = pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowException:
        return [WHOLE]
    parts, start, n_bytes = [], 0, 0
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        n_bytes += sum(
            each.total_uncompressed_size for each in columns if each.path_in_schema == text_field
        )
        if n_bytes >= size:
            parts.append(Part(start, group + 1))
            start, n_bytes = group + 1, 0
    if start < metadata.num_row_groups or not parts:
        parts.append(Part(start, None))
    return parts
