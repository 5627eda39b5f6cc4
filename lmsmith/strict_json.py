"""Writes JSON that follows the standard (RFC 8259): NaN and infinity become null.

Python's writer emits `NaN` and `Infinity` by default, which most other readers reject. Everything
that lmsmith writes as JSON goes through `to_json`; readers take null as "not a number".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lmsmith import atomic


def to_json(value: Any, **layout: Any) -> str:
    """`value` as JSON; numbers that are not finite become null. `layout`: options of
    `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:  # rare, so values are checked only now
        return json.dumps(finite(value), allow_nan=False, **layout)


def write_json(path: Path, value: Any, *, ensure_ascii: bool = True) -> None:
    """Writes `value` to `path` as indented JSON, atomically, replacing the old file. Raises
    StorageError.
    """
    atomic.write(path, to_json(value, indent=1, ensure_ascii=ensure_ascii) + "\n")


def finite(value: Any) -> Any:
    """Returns a copy of a JSON-like value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
