"""Lines of JSON -> the text in a field of each.

The field may be nested: `meta.text`. What is wrong with a line is reported with its number in the
file.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lmsmith.errors import DataError
from lmsmith.text.files import Counts, Lines, Skip, fields_there, without_surrogates

FROM_ARRAY = "If the file is one array, `jq -c '.[]' FILE > LINES.jsonl` makes lines of it."


def json_lines(
    decoded: Iterable[str],
    lines: Lines,
    text_field: str,
    errors: str,
    counts: Counts,
    skip: Skip | None,
) -> Iterator[tuple[str, int]]:
    """The text of each line that is not blank, with the line's number in the part, from 1.

    Raises DataError for a line without a text, or gives it to `skip` if there is one.
    """
    all_lines = _lines(decoded)
    for number, line in enumerate(all_lines, start=1):
        if not line or line.isspace():
            continue
        try:
            more = itertools.islice(all_lines, _SAMPLED) if skip is None else ()
            text = without_surrogates(_json_text(line, text_field, more), "", errors, counts)
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
        raise DataError(f" has no field {text_field!r}; {fields_there(record, texts)}")
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
