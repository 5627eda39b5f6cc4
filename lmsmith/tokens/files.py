"""Tokenizers on disk.

Our format is one file, `tokenizer.json`, in the folder of whatever uses it:

    {"format": "lmsmith-tokenizer", "version": 1, "sha256": the fingerprint, "tokenizer": what
    `to_dict` gives}

The hash is checked on loading, so a file that was cut or edited is not taken for the tokenizer that
a model was trained with. For byte-pair encoding it holds the pattern's name, the special tokens,
and merges and vocabulary as GPT-2 writes them, to be read by people too. `foreign.py` reads and
writes other formats; `load_tokenizer` tells them apart.
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

_FILES = (FILE_NAME, "vocab.json", "tokenizer.model")  # of a folder the first that is there

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


def load_tokenizer(
    source: Path | str,
    *,
    pattern: Pattern | None = None,
    special_tokens: Mapping[str, int] | None = None,
    end_of_text: str | None = None,
) -> Tokenizer:
    """The tokenizer of a folder or a file.

    Ours, Hugging Face's `tokenizer.json`, GPT-2's `vocab.json` with `merges.txt`, or a file of
    ranks (`cl100k_base.tiktoken`, Llama 3's `tokenizer.model`, ...). "gpt2", where there is no such
    folder, is downloaded.

    `pattern` and `special_tokens` are for a file of ranks, which does not hold them. `end_of_text`
    names the token between documents; without it the `eos_token` of a `tokenizer_config.json`
    beside is taken, else one of `ENDS_OF_TEXT`. Raises TokenizerError for a file that is missing,
    damaged, from a newer lmsmith, not a tokenizer, or one that neither our engine nor the library
    `tokenizers` can run.
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
        named = end_of_text or _named_beside(path)
        return _check_given(
            _foreign().load_gpt2_files(path.parent, named), pattern, special_tokens, str(path)
        )
    if path.suffix == ".model":
        raise TokenizerError(
            f"{path} is SentencePiece's, which lmsmith does not read. Write a tokenizer.json of it:"
            " AutoTokenizer.from_pretrained(folder).save_pretrained(new_folder) in transformers."
        )
    content = _read_json(path)
    if isinstance(content, dict) and "model" in content and content.get("format") != FORMAT:
        found = _foreign().from_huggingface(
            content, path, end_of_text or _named_beside(path, content)
        )
        return _check_given(found, pattern, special_tokens, str(path))
    ours = _check_given(_load_ours(content, path), pattern, special_tokens, str(path))
    return ours if end_of_text is None else _ending(ours, end_of_text)


def _check_given(
    found: Tokenizer, pattern: Pattern | None, special_tokens: object, where: str
) -> Tokenizer:
    """Raises TokenizerError where more is said of a tokenizer than it needs: that would be
    ignored.
    """
    if pattern is not None or special_tokens is not None:
        raise TokenizerError(
            f"{where} says itself how text is cut and which special tokens there are: a pattern "
            f"and special tokens are"
            " for files of ranks (tiktoken's), which do not."
        )
    return found


def _ending(tokenizer: Tokenizer, end_of_text: str) -> Tokenizer:
    """The tokenizer with another token between documents."""
    if tokenizer.kind in _KINDS:
        if tokenizer.end_of_text is None or end_of_text != END_OF_TEXT:
            raise TokenizerError(
                f"{end_of_text!r} cannot end a text: a tokenizer of kind {tokenizer.kind} has"
                f" {'no special token' if tokenizer.end_of_text is None else f'{END_OF_TEXT} for that'}."
            )
        return tokenizer
    changed: Tokenizer = tokenizer.changed(end_of_text=end_of_text)  # type: ignore[attr-defined]
    return changed


def _named_beside(path: Path, content: Any = None) -> str | None:
    """The `eos_token` that the files beside name, if the tokenizer has it."""
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
        "%s names %r as eos_token, which is no token of %s: it is not used",
        path.parent,
        name,
        path.name,
    )
    return None


def _load_ours(content: Any, path: Path) -> Tokenizer:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TokenizerError(
            f"{path} is not a tokenizer of lmsmith's. `lmsmith tokenizer train` makes one."
        )
    version = content.get("version")
    if version != VERSION:
        raise TokenizerError(
            f"{path} has format version {version!r}; this lmsmith reads version {VERSION}. Update "
            f"lmsmith."
        )
    parts = content.get("tokenizer")
    if not isinstance(parts, dict) or fingerprint_of(parts) != content.get("sha256"):
        raise TokenizerError(
            f"{path} is damaged: its content does not match its sha256. Take another copy, or "
            f"learn it again."
        )
    return _kind(parts.get("kind"), path).from_dict(parts)


def _kind(kind: str | None, path: Path) -> type[Tokenizer]:
    if kind == "bpe":
        from lmsmith.tokens.bpe import (
            BpeTokenizer,  # brings in the compiler, half a second that others need not wait
        )

        return BpeTokenizer
    if kind == "library":
        from lmsmith.tokens.library import LibraryTokenizer

        return LibraryTokenizer
    if kind not in _KINDS:
        raise TokenizerError(
            f"{path} is of kind {kind!r}; this lmsmith knows {', '.join(_KINDS)}, bpe and library."
        )
    return _KINDS[kind]


def _foreign() -> Any:
    from lmsmith.tokens import foreign  # as above

    return foreign


def _ranks() -> Any:
    from lmsmith.tokens import ranks  # as above

    return ranks


def _read_json(path: Path) -> Any:
    try:
        return foreign_json.read(path)
    except FileNotFoundError as error:
        raise TokenizerError(
            f"there is no tokenizer at {path}. Name gpt2, or a folder or file that holds one: "
            f"`lmsmith tokenizer "
            "train` makes one; where text is prepared or trained on, bpe:SIZE (as in bpe:4096) "
            "learns one."
        ) from error
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {error}.") from error
