"""JSON as the standard has it (RFC 8259): it has no NaN and no infinity, so these become null.

Python's writer puts `NaN` and `Infinity` into a file unasked, and then most other readers refuse
it. Everything that lmsmith writes as JSON goes through `to_json`; readers take null for "not a
number".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lmsmith import atomic


def to_json(value: Any, **layout: Any) -> str:
    """`value` as JSON, numbers that are not finite as null. `layout`: what `json.dumps` takes."""
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:  # rare, so only now is everything looked at
        return json.dumps(finite(value), allow_nan=False, **layout)


def write_json(path: Path, value: Any, *, ensure_ascii: bool = True) -> None:
    """Writes `value` to `path`, indented, whole, in place of what was there. Raises
    StorageError.
    """
    atomic.write(path, to_json(value, indent=1, ensure_ascii=ensure_ascii) + "\n")


def finite(value: Any) -> Any:
    """A copy of what JSON can hold, with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
