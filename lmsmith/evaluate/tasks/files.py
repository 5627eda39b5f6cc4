"""Finds the files of a task and reads their rows.

Rows are dicts: the object of a .jsonl line, a row of Parquet, or for CSV without a header
`{"columns": [...], "file": name without suffix}`. Every row comes with its place in the file, for
error messages. Where NAME-labels.lst lies beside NAME.jsonl, as in PIQA and WinoGrande, its lines
become the field `label`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import DataError
from lmsmith.evaluate.tasks.task import Item, Row, Task
from lmsmith.text import corpora, store


@dataclass(frozen=True)
class Placed:
    """A row and its place: "items.jsonl, line 3"."""

    where: str
    row: Row


def files_of(task: Task, folder: Path | None) -> list[Path]:
    """The files of a task in a folder (or that file itself); without one, its named corpus.

    A small corpus that is not on this machine is downloaded. Raises DataError, StorageError.
    """
    if folder is None:
        if not task.corpus:
            raise DataError(
                f"the task {task.name} reads files: name their folder, --task-data DIR."
            )
        return store.obtain(corpora.get(task.corpus))
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}. --task-data names a folder of task files.")
    if found := _first_match(folder, task.files):
        return found
    download = f" `lmsmith data download {task.corpus}` has them." if task.corpus else ""
    raise DataError(
        f"{folder} has no items of {task.name}: expected one of {', '.join(task.files)}.{download}"
    )


def example_files_of(task: Task, folder: Path | None) -> list[Path]:
    """The files of a task's few-shot examples, if the folder has any."""
    if folder is None or not folder.is_dir():
        return []
    return _first_match(folder, task.example_files)


def _first_match(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match the first of the patterns that any file matches."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found
    return []


def read_rows(paths: Sequence[Path]) -> list[Placed]:
    """All rows of the files. Raises DataError for a line that cannot be read, with its number."""
    return [row for path in paths for row in _rows_of(path)]


def to_item(task: Task, placed: Placed) -> Item:
    """The item of a row. Raises DataError, with the row's place, if it has another form."""
    try:
        return task.item(placed.row)
    except KeyError as error:
        reason = f"there is no field {error}"
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        reason = str(error)
    fields = ", ".join(map(str, placed.row)) if isinstance(placed.row, dict) else "no fields"
    raise DataError(
        f"{placed.where} is not an item of {task.name}: {reason}. It has: {fields}. Correct the "
        "line, or remove it."
    )


def _rows_of(path: Path) -> Iterator[Placed]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".csv":
            yield from _csv(path)
        else:
            yield from _json_lines(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}). Convert it.") from error


def _json_lines(path: Path) -> Iterator[Placed]:
    labels = _labels(path)
    n = 0
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = foreign_json.parse(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: {error}. Expected one JSON object.") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} is not an object but {str(row)[:40]!r}.")
            if labels is not None:
                if n >= len(labels):
                    raise DataError(f"{where}: its labels file has only {len(labels)} lines.")
                row = {**row, "label": labels[n]}
            n += 1
            yield Placed(where, row)


def _labels(path: Path) -> list[str] | None:
    beside = path.with_name(f"{path.stem}-labels.lst")
    return beside.read_text(encoding="utf-8").split() if beside.is_file() else None


def _csv(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            for columns in reader:
                row: dict[str, Any] = {"columns": columns, "file": path.stem}
                if columns:
                    yield Placed(f"{path}, line {reader.line_num}", row)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from error
    for number, row in enumerate(rows, start=1):
        yield Placed(f"{path}, row {number}", row)
