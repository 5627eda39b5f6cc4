"""Tokenizers on disk.

Our format is one file, `tokenizer.json`, in the folder of whatever uses it:

    {"format": "lmsmith-tokenizer", "version": 1, "sha256": the fingerprint, "tokenizer": what `to_dict` gives}

The hash is checked on loading, so a file that was cut or edited is not taken for the tokenizer that a model was
trained with. For byte-pair encoding it holds the pattern's name, the special tokens, and merges and vocabulary as GPT-2
writes them, to be read by people too. `foreign.py` reads and writes other formats; `load_tokenizer` tells them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import TokenizerError
from lmsmith.strict_json import write_json
from lmsmith.tokens.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    fingerprint_of,
)

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
    write_json(path, content, ensure_ascii=False)
    return path


def load_tokenizer(source: Path | str) -> Tokenizer:
    """The tokenizer of a folder or a file.

    Ours, Hugging Face's `tokenizer.json`, GPT-2's `vocab.json` with `merges.txt`, or an OpenAI file of ranks
    (`cl100k_base.tiktoken`, ...). "gpt2", where there is no such folder, is downloaded.

    Raises TokenizerError for a file that is missing, damaged, from a newer lmsmith, or not a tokenizer.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / FILE_NAME).is_file() and (path / "vocab.json").is_file():
            return _foreign().load_gpt2_files(path)
        path /= FILE_NAME
    elif not path.exists() and str(source) == "gpt2":
        return _foreign().load_gpt2()
    if path.suffix == ".tiktoken":
        return _foreign().load_tiktoken(path)
    content = _read_json(path)
    if isinstance(content, dict) and "model" in content and "pre_tokenizer" in content:
        return _foreign().from_huggingface(content, path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TokenizerError(
            f"{path} is not a tokenizer of lmsmith's. `lmsmith tokenizer train` makes one."
        )
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
    return _kind(parts.get("kind"), path).from_dict(parts)


def _kind(kind: str | None, path: Path) -> type[Tokenizer]:
    if kind == "bpe":
        from lmsmith.tokens.bpe import (
            BpeTokenizer,  # brings in the compiler, half a second that others need not wait
        )

        return BpeTokenizer
    if kind not in _KINDS:
        raise TokenizerError(
            f"{path} is of kind {kind!r}; this lmsmith knows {', '.join(_KINDS)} and bpe."
        )
    return _KINDS[kind]


def _foreign() -> Any:
    from lmsmith.tokens import foreign  # as above

    return foreign


def _read_json(path: Path) -> Any:
    try:
        return foreign_json.read(path)
    except FileNotFoundError as error:
        raise TokenizerError(
            f"there is no tokenizer at {path}. Name gpt2, or a folder or file that holds one: `lmsmith tokenizer "
            "train` makes one; where text is prepared or trained on, bpe:SIZE (as in bpe:4096) learns one."
        ) from error
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {error}.") from error
