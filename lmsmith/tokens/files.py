"""Saves and loads tokenizers.

lmsmith's format is one file, `tokenizer.json`, next to the model or data that uses it:

    {"format": "lmsmith-tokenizer", "version": 1, "sha256": the fingerprint,
     "tokenizer": the output of `to_dict`}

Loading checks the hash, so a truncated or edited file is an error. For byte-pair encoding the file
contains the pattern's name, the special tokens, and the merges and vocabulary in GPT-2's printable
form. `foreign.py` and `ranks.py` read and write other formats; `load_tokenizer` detects the format.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith import foreign_json
from lmsmith.errors import TokenizerError
from lmsmith.strict_json import write_json
from lmsmith.tokens.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    fingerprint_of,
)

if TYPE_CHECKING:
    from lmsmith.tokens.split import Pattern

FILE_NAME = "tokenizer.json"
FORMAT = "lmsmith-tokenizer"
VERSION = 1

log = logging.getLogger(__name__)

_FILES = (FILE_NAME, "vocab.json", "tokenizer.model")  # the first one in a folder is loaded

_KINDS: dict[str, type[Tokenizer]] = {
    "byte": ByteTokenizer,
    "char": CharTokenizer,
    "word": WordTokenizer,
}


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> Path:
    """Writes `folder/tokenizer.json`, creating the folder if needed, and returns its path.

    Raises TokenizerError if the folder cannot be created, StorageError if writing fails.
    """
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
        raise TokenizerError(f"cannot create the folder {folder}: {error.strerror}.") from error
    write_json(path, content, ensure_ascii=False)
    return path


def load_tokenizer(
    source: Path | str,
    *,
    pattern: Pattern | None = None,
    special_tokens: Mapping[str, int] | None = None,
    end_of_text: str | None = None,
) -> Tokenizer:
    """Loads a tokenizer from a folder or file.

    Formats: lmsmith's or Hugging Face's `tokenizer.json`, GPT-2's `vocab.json` with `merges.txt`,
    a tiktoken file (`cl100k_base.tiktoken`, Llama 3's `tokenizer.model`, ...), or SentencePiece's
    `tokenizer.model`. "gpt2" is downloaded if no path has that name.

    `pattern` and `special_tokens` are for tiktoken files, which do not contain them. `end_of_text`
    names the token between documents; the default is the `eos_token` in a `tokenizer_config.json`
    in the same folder, otherwise the first of `END_OF_TEXT_NAMES` in the vocabulary. Raises
    TokenizerError for a file that is missing, damaged, from a newer lmsmith, not a tokenizer, or
    that neither lmsmith's engine nor the library `tokenizers` can run.
    """
    path = Path(source)
    if path.is_dir():
        folder = path
        path = next(
            (folder / name for name in _FILES if (folder / name).is_file()), folder / FILE_NAME
        )
    elif not path.exists() and str(source) == "gpt2":
        return _check_given(_foreign().load_gpt2(end_of_text), pattern, special_tokens, "gpt2")
    if path.suffix == ".tiktoken" or (
        path.is_file() and path.suffix != ".json" and _ranks().is_ranks(path)
    ):
        return _ranks().load_tiktoken(path, pattern, special_tokens, end_of_text)
    if path.name == "vocab.json":
        named = end_of_text or _configured_end(path)
        return _check_given(
            _foreign().load_gpt2_files(path.parent, named), pattern, special_tokens, str(path)
        )
    if path.suffix == ".model" and path.is_file():
        tokenizer = _spm().load(path, end_of_text)
        if end_of_text is None and (named := _configured_end(path, tokenizer.content)):
            tokenizer = tokenizer.changed(end_of_text=named)
        return _check_given(tokenizer, pattern, special_tokens, str(path))
    content = _read_json(path)
    if isinstance(content, dict) and "model" in content and content.get("format") != FORMAT:
        tokenizer = _foreign().from_huggingface(
            content, path, end_of_text or _configured_end(path, content)
        )
        return _check_given(tokenizer, pattern, special_tokens, str(path))
    ours = _check_given(_load_ours(content, path), pattern, special_tokens, str(path))
    return ours if end_of_text is None else _with_end_of_text(ours, end_of_text)


def _check_given(
    tokenizer: Tokenizer, pattern: Pattern | None, special_tokens: object, where: str
) -> Tokenizer:
    """Returns `tokenizer`. Raises TokenizerError if a pattern or special tokens were given: its
    file already contains both.
    """
    if pattern is not None or special_tokens is not None:
        raise TokenizerError(
            f"{where} already contains its pattern and special tokens. A pattern and special "
            "tokens can be given only for tiktoken files, which do not contain them: leave both "
            "out."
        )
    return tokenizer


def _with_end_of_text(tokenizer: Tokenizer, end_of_text: str) -> Tokenizer:
    """`tokenizer` with `end_of_text` as the token between documents."""
    if tokenizer.kind in _KINDS:
        if tokenizer.end_of_text is None or end_of_text != END_OF_TEXT:
            raise TokenizerError(
                f"{end_of_text!r} cannot be the end-of-text token: this {tokenizer.kind} tokenizer "
                f"has {'none' if tokenizer.end_of_text is None else f'{END_OF_TEXT} for that'}."
            )
        return tokenizer
    changed: Tokenizer = tokenizer.changed(end_of_text=end_of_text)  # type: ignore[attr-defined]
    return changed


def _configured_end(path: Path, content: Any = None) -> str | None:
    """Returns the `eos_token` of the `tokenizer_config.json` next to `path`, if the tokenizer has
    that token.
    """
    from lmsmith.tokens import beside

    name = beside.token_in(beside.config_of(path.parent), "eos_token")
    if name is None:
        return None
    if content is None:
        content = {
            "model": {"vocab": _read_json(path)},
            "added_tokens": beside.added_tokens(path.parent),
        }
    if _foreign().has_token(content, name):
        return name
    log.warning(
        "%s: ignoring the eos_token %r of the tokenizer config, because %s has no such token",
        path.parent,
        name,
        path.name,
    )
    return None


def _load_ours(content: Any, path: Path) -> Tokenizer:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TokenizerError(
            f"{path} is not a tokenizer in a format that lmsmith knows. `lmsmith tokenizer train` "
            f"creates one."
        )
    version = content.get("version")
    if version != VERSION:
        raise TokenizerError(
            f"{path} has format version {version!r}; this version of lmsmith reads version "
            f"{VERSION}. Upgrade lmsmith."
        )
    parts = content.get("tokenizer")
    if not isinstance(parts, dict) or fingerprint_of(parts) != content.get("sha256"):
        raise TokenizerError(
            f"{path} is damaged: its content does not match its sha256. Restore it from a copy, "
            f"or train the tokenizer again."
        )
    return _kind(parts.get("kind"), path).from_dict(parts)


def _kind(kind: str | None, path: Path) -> type[Tokenizer]:
    if kind == "bpe":
        from lmsmith.tokens.bpe import BpeTokenizer  # imports Numba, which takes half a second

        return BpeTokenizer
    if kind == "library":
        from lmsmith.tokens.library import LibraryTokenizer

        return LibraryTokenizer
    if kind == "sentencepiece":
        tokenizer_class: type[Tokenizer] = _spm().SentencePieceTokenizer
        return tokenizer_class
    if kind == "extended":
        from lmsmith.tokens.extended import ExtendedTokenizer

        return ExtendedTokenizer
    if kind not in _KINDS:
        raise TokenizerError(
            f"{path} has a tokenizer of kind {kind!r}; this version of lmsmith knows "
            f"{', '.join(_KINDS)}, bpe, library, sentencepiece and extended. Upgrade lmsmith."
        )
    return _KINDS[kind]


def _foreign() -> Any:
    from lmsmith.tokens import foreign  # as above

    return foreign


def _spm() -> Any:
    from lmsmith.tokens import spm  # as above

    return spm


def _ranks() -> Any:
    from lmsmith.tokens import ranks  # as above

    return ranks


def _read_json(path: Path) -> Any:
    try:
        return foreign_json.read(path)
    except FileNotFoundError as error:
        raise TokenizerError(
            f"there is no tokenizer at {path}. Give gpt2, or a folder or file with a tokenizer "
            "(`lmsmith tokenizer train` creates one); `lmsmith train` and `lmsmith data prepare` "
            "can also learn one: --tokenizer bpe:SIZE, as in bpe:4096."
        ) from error
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path}: {error.strerror}. Check the path and its permissions."
        ) from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {error}. Restore it from a copy.") from error
