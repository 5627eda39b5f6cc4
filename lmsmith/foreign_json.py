"""Reads JSON that another program or person wrote, within limits.

Any file of a checkpoint, tokenizer or data set can come from elsewhere. `parse` returns its value
or raises a ValueError that says what is wrong, whatever the content is. Python's own parser raises
a RecursionError for deep nesting, and a value that it can just parse may be too deep for recursive
code that processes it later.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Most levels of nesting. Files of models and tokenizers have about ten."""

LARGEST = 1 << 30
"""Most bytes of a file. The largest tokenizers have about 50 MB."""

_SHOWN = 200


def parse(content: str | bytes) -> Any:
    """Parses JSON text.

    Raises ValueError if it is not JSON or exceeds the limits; the message is a clause that begins
    with "it".
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
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
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def read(path: Path) -> Any:
    """Reads and parses a file. Raises OSError, and ValueError as `parse` does."""
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes, more than the limit of {LARGEST:,}")
    return parse(path.read_bytes())


def shown(value: Any) -> str:
    """Returns a parsed value as JSON for an error message, truncated if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
