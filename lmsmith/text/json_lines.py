"""Reads JSON Lines: the text in one field of each line.

The field may be nested: `meta.text`. Errors name the line number in the file.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lmsmith.errors import DataError
from lmsmith.text.files import Counts, Lines, Skip, available_fields, without_surrogates

FROM_ARRAY = "If the file is one array, `jq -c '.[]' FILE > LINES.jsonl` converts it to lines."


def json_lines(
    decoded: Iterable[str],
    lines: Lines,
    text_field: str,
    errors: str,
    counts: Counts,
    skip: Skip | None,
) -> Iterator[tuple[str, int]]:
    """Yields the text of each line that is not blank, with the line's number in the part, from 1.

    Raises DataError for a line without text, or passes it to `skip` if given.
    """
    all_lines = _lines(decoded)
    for number, line in enumerate(all_lines, start=1):
        if not line or line.isspace():
            continue
        try:
            more = itertools.islice(all_lines, _SAMPLED) if skip is None else ()
            text = without_surrogates(_json_text(line, text_field, more), "", errors, counts)
        except DataError as error:
            located = DataError(f"{lines.path}, line {lines.of(number)}{error}")
            if skip is None:
                raise located from error
            skip(located)
            continue
        yield text, number


def _json_text(line: str, text_field: str, more: Iterable[str] = ()) -> str:
    """Returns the text of one line. Error messages are clauses that follow the name of the line.

    `more`: the following lines, read only if the field is missing, to find the field that contains
    the text.
    """
    try:
        record = _json(line)
    except (ValueError, RecursionError) as error:
        expected = f"{{{json.dumps(text_field)}: ...}}"
        array = f" {FROM_ARRAY}" if line.lstrip().startswith("[") else ""
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(
            f" is not JSON: {reason}. Expected one object per line: {expected}.{array}"
        ) from error
    if not isinstance(record, dict):
        array = f" {FROM_ARRAY}" if isinstance(record, list) else ""
        raise DataError(
            f" contains {_json_kind(record)}, expected an object with the field "
            f"{text_field!r}.{array}"
        )
    values = _field(record, text_field)
    if not values:
        texts = dict(_text_fields(record))
        # Mistakes in later lines are reported when those lines are read.
        with contextlib.suppress(ValueError, RecursionError, DataError, AttributeError):
            for other in filter(str.strip, more):
                for name, length in _text_fields(_json(other)):
                    texts[name] = texts.get(name, 0) + length
        texts.pop(text_field, None)
        raise DataError(f" has no field {text_field!r}; {available_fields(record, texts)}")
    (text,) = values
    if text is not None and not isinstance(text, str):
        raise DataError(
            f": the field {text_field!r} contains {_json_kind(text)}, expected text. Name a "
            f"field of text with --data.text_field."
        )
    return text or ""


_SAMPLED = 100  # lines searched for the field that contains the text


def _json(line: str) -> Any:
    """json.loads with integers of any length: Python rejects more than 4,300 digits."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(line, parse_int=float)  # their values are not used


def _field(record: dict[str, Any], name: str) -> list[Any]:
    """Returns the value of a field, in a list of one; [] if there is none. `meta.text` is a field
    of that name, or the field `text` within `meta`.

    The longest name that exists wins.
    """
    if name in record:
        return [record[name]]
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:n])
        inner = record.get(outer)
        if inner is None and outer in record:
            return [None]  # as in a row of .parquet
        if isinstance(inner, dict) and (values := _field(inner, ".".join(parts[n:]))):
            return values
    return []


def _text_fields(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yields the names of fields that contain text, with its length; nested fields come last."""
    for name, value in record.items():
        if isinstance(value, str):
            yield prefix + name, len(value)
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _text_fields(value, f"{prefix}{name}.")


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Splits at LF only: JSON may contain U+2028 and similar characters unescaped."""
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
