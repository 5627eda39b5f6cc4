"""Where a large file can be cut, so that several processes read it: parts that, read one by one,
give all its texts.

    divide(path, 1 << 26, "text", "utf-8", cut)      # [Part(0, 67105021), Part(67105021, None)]

A .jsonl file is cut after a line, a .parquet between row groups. A plain file is one document, and
where a text may be cut depends on what is done with it: `cut` says so. Only the neighbourhood of
the cuts is read.

What is compressed, or in an encoding other than UTF-8, is one part.
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
"""A place within these bytes, from the middle of a text, where it may be cut; 0 if there is
none.
"""

NEAR = 1 << 10  # bytes in which a place to cut is looked for first; then twice as many, and so on


def divide(
    path: Path, size: int, text_field: str, encoding: str, cut: Cut | None = None
) -> list[Part]:
    """Parts of at least `size` bytes, and little more where it can be. Raises DataError where the
    file is unreadable.

    `encoding` is a codec's name.
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
        while found := next_cut(path, starts[-1] + size, cut):
            starts.append(found)
    return [Part(start, stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def next_cut(path: Path, place: int, cut: Cut) -> int:
    """The next offset after `place` at which the file can be cut; 0 if there is none before its
    end.
    """
    with open_bytes(path) as file:
        n_bytes, near = file.seek(0, 2), NEAR
        while place < n_bytes:
            file.seek(place)
            found = place + cut(file.read(near))
            if place < found < n_bytes:
                return found
            place += near
            near = min(2 * near, 1 << 20)
    return 0


def is_utf8(path: Path, encoding: str) -> bool:
    """Whether the file would be read as UTF-8: by its byte-order mark, or without one by what
    was asked for.
    """
    with open_bytes(path) as file:
        head = file.read(4)
    return next((marked for mark, marked in MARKS if head.startswith(mark)), encoding) == "utf-8"


def _after_line(data: bytes) -> int:
    return data.find(b"\n") + 1


def _row_groups(path: Path, size: int, text_field: str) -> list[Part]:
    """By the bytes of the text's column, uncompressed. A file that is no Parquet says so when it
    is read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open_bytes(path) as file:
            found = pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowException:
        return [WHOLE]
    parts, start, n_bytes = [], 0, 0
    for group in range(found.num_row_groups):
        columns = [found.row_group(group).column(index) for index in range(found.num_columns)]
        n_bytes += sum(
            each.total_uncompressed_size for each in columns if each.path_in_schema == text_field
        )
        if n_bytes >= size:
            parts.append(Part(start, group + 1))
            start, n_bytes = group + 1, 0
    if start < found.num_row_groups or not parts:
        parts.append(Part(start, None))
    return parts
