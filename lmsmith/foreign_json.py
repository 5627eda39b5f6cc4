"""JSON that another program or person wrote, read within limits.

Every file of a checkpoint, tokenizer or data set can come from elsewhere. `parse` gives its content
or raises a ValueError that says why not, whatever the content is. Python's own parser raises a
RecursionError for deep nesting, and a value that it just reads can be too deep for whoever walks
through it later.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Containers within containers. Files of models and tokenizers have about ten."""

LARGEST = 1 << 30
"""Bytes of a file. The largest tokenizers have some 50 MB."""

_SHOWN = 200


def parse(content: str | bytes) -> Any:
    """The value that `content` is.

    Raises ValueError where it is not JSON or beyond the limits; its text is a clause that begins
    with "it".
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"it is not JSON ({error})") from None
    except ValueError:
        raise ValueError(
            f"it holds a number of more than {sys.get_int_max_str_digits():,} digits"
        ) from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for container in level
            if isinstance(container, dict | list)
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, dict | list)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def read(path: Path) -> Any:
    """The content of a file. Raises OSError, and ValueError as `parse` does."""
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes, and at most {LARGEST:,} are read")
    return parse(path.read_bytes())


def shown(value: Any) -> str:
    """A value of `parse` for an error message: as JSON, cut short where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
