"""Tokenizers on disk.

Our format is one file, `tokenizer.json`, in the folder of whatever uses it:

    {"format": "lmsmith-tokenizer", "version": 1, "sha256": the fingerprint, "tokenizer": what `to_dict` gives}

The hash is checked on loading, so a file that was cut or edited is not taken for the tokenizer that a model was
trained with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmsmith import atomic
from lmsmith.errors import TokenizerError
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer, fingerprint_of

FILE_NAME = "tokenizer.json"
FORMAT = "lmsmith-tokenizer"
VERSION = 1

_KINDS: dict[str, type[Tokenizer]] = {
    "byte": ByteTokenizer,
    "char": CharTokenizer,
    "word": WordTokenizer,
}


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> Path:
    """Writes `folder/tokenizer.json`, making the folder where needed; returns the file's path."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": tokenizer.fingerprint,
        "tokenizer": tokenizer.to_dict(),
    }
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenizerError(f"cannot make the folder {folder}: {error.strerror}.") from error
    atomic.write(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return path


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder` (or in the file, where `folder` is one).

    Raises TokenizerError for a file that is missing, damaged, from a newer lmsmith, or not a tokenizer.
    """
    path = folder if folder.is_file() else folder / FILE_NAME
    content = _read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TokenizerError(f"{path} is not a tokenizer of lmsmith's. `lmsmith tokenizer train` makes one.")
    version = content.get("version")
    if version != VERSION:
        raise TokenizerError(
            f"{path} has format version {version!r}; this lmsmith reads version {VERSION}. Update lmsmith."
        )
    parts = content.get("tokenizer")
    if not isinstance(parts, dict) or fingerprint_of(parts) != content.get("sha256"):
        raise TokenizerError(
            f"{path} is damaged: its content does not match its sha256. Take another copy, or learn it again."
        )
    if parts.get("kind") not in _KINDS:
        raise TokenizerError(f"{path} is of kind {parts.get('kind')!r}; this lmsmith knows {', '.join(_KINDS)}.")
    return _KINDS[parts["kind"]].from_dict(parts)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TokenizerError(f"there is no tokenizer at {path}.") from error
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: it is not JSON ({error}).") from error
