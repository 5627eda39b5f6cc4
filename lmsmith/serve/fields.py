"""Reads the fields of a JSON body with their types and ranges.

    fields = Fields(body)
    n = fields.integer("n", 1, 1, 128)
    fields.done()                       # raises if there is a field that nobody has read

A field that is null counts as absent, as in OpenAI's API. A wrong type, a number out of range and
an unknown field raise ApiError, which names the field, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from lmsmith import foreign_json
from lmsmith.serve.errors import ApiError, bad


def parse_body(content: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8: byte {error.start} is invalid.") from None
    try:
        value = foreign_json.parse(text)
    except ValueError as error:
        raise bad(f"the body cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise bad(f"the body is {kind_of(value)}: expected a JSON object.")
    return value


def kind_of(value: Any) -> str:
    """The JSON type of a value, for messages."""
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "an object", list: "an array", str: "a string", int: "an integer"}
    return "null" if value is None else names.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value for an error message: short, and in ASCII, so that any text can be sent back."""
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."


class Fields:
    """The fields of an object. `inside`: a prefix of their names in messages, such as "tools."."""

    def __init__(self, values: dict[str, Any], inside: str = "") -> None:
        self._values, self._inside = values, inside
        self._seen: set[str] = set()
        self.n_bytes = 0  # of the body, if it is known

    @property
    def names(self) -> Iterable[str]:
        return self._values.keys()

    def any(self, name: str) -> Any:
        """A field of any type; None if it is absent."""
        self._seen.add(name)
        return self._values.get(name)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, value, "an integer")
        if not low <= value <= high:
            raise self._wrong(name, value, f"an integer from {low:,} to {high:,}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, value, "a number")
        if not low <= value <= high or not math.isfinite(value):
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return encodable(value, self._inside + name)

    def texts(self, name: str, most: int) -> list[str]:
        """A string, or an array of at most `most` strings that are not empty."""
        value = self.any(name)
        if value is None:
            return []
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise self._wrong(name, value, "a string or an array of strings")
        if len(values) > most:
            raise bad(f"{name} has {len(values):,} strings: expected at most {most}.", name)
        if not all(values) or max(map(len, values), default=0) > LONGEST_STOP:
            raise bad(f"{name}: expected strings of 1 to {LONGEST_STOP:,} characters.", name)
        return [encodable(each, name) for each in values]

    def object(self, name: str) -> Fields | None:
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Fields(value, f"{self._inside}{name}.")

    def without(self, name: str) -> Fields:
        """The same fields without one of them."""
        rest = Fields({n: v for n, v in self._values.items() if n != name}, self._inside)
        rest._seen = {*self._seen, name}
        return rest

    def refuse(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Raises unless the field is absent or one of the values that change nothing."""
        value = self.any(name)
        if value is None or any(value == each and type(value) is type(each) for each in allowed):
            return
        raise bad(f"{self._inside}{name} is not supported: {why}", self._inside + name)

    def ignore(self, *names: str) -> None:
        """Accepts fields that change nothing in an answer, of any type."""
        self._seen.update(names)

    def done(self) -> None:
        """Raises for a field that was not read."""
        for name in self._values:
            if name not in self._seen:
                near = difflib.get_close_matches(name[:100], self._seen, 1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise bad(
                    f"unrecognized field {self._inside}{shown(name)}.{hint}",
                    name[:100].encode("ascii", "replace").decode(),
                    "unknown_field",
                )

    def _wrong(self, name: str, value: Any, expected: str) -> ApiError:
        name = self._inside + name
        return bad(f"{name} = {shown(value)} is {kind_of(value)}: expected {expected}.", name)


LONGEST_STOP = 1000
"""Characters of a stop string."""


def encodable(text: str, name: str) -> str:
    """Returns the text. Raises ApiError for lone surrogates, which no UTF-8 text has."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad(f"{name} has a lone surrogate at character {error.start}.", name) from None
    return text
