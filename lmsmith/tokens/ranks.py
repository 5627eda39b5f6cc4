"""Reads and writes tiktoken's files: one line per token with its bytes in base64 and its rank,
which is its id.

The files do not contain the pre-tokenization pattern and the special tokens. lmsmith knows both for
OpenAI's published files (by file name) and for Llama 3's `tokenizer.model`. For other files the
user gives them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path

from lmsmith import atomic
from lmsmith.errors import TokenizerError
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.expressions import check_portable
from lmsmith.tokens.split import PATTERNS, Pattern, pattern_of
from lmsmith.tokens.tokenizer import END_OF_TEXT

MAX_IDS = 1 << 24  # a file with a larger id is damaged
LLAMA3 = "tokenizer.model"

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*?\r?\n")
_KNOWN = {
    "r50k_base": ("gpt2", {END_OF_TEXT: 50256}),
    "p50k_base": ("gpt2", {END_OF_TEXT: 50256}),
    "cl100k_base": (
        "gpt4",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": ("o200k", {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}
# 256 special tokens follow the ranks: these at their offsets, and reserved tokens at all others.
_LLAMA3_NAMED = {
    0: "begin_of_text",
    1: "end_of_text",
    6: "start_header_id",
    7: "end_header_id",
    9: "eot_id",
}
_LLAMA3_SPECIALS = 256


def is_ranks(path: Path) -> bool:
    """Returns whether the first line of a file has the form of a tiktoken file. Raises
    TokenizerError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _LINE.match(file.read(4096)) is not None
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path}: {error.strerror}. Check the path and its permissions."
        ) from error


def load_tiktoken(
    path: Path,
    pattern: Pattern | str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    end_of_text: str | None = None,
) -> BpeTokenizer:
    """Loads a tiktoken file. `pattern` and `special_tokens` (text -> id) default to those known for
    the file's name.

    `end_of_text`: the special token between documents. Raises TokenizerError for a damaged file, if
    the pattern is neither given nor known, or if the pattern can match differently in tiktoken.
    """
    ranks = _ranks(path)
    known: tuple[str, dict[str, int]] | None = _KNOWN.get(path.stem)
    if path.name == LLAMA3:
        known = "llama3", _llama3_specials(len(ranks))
    if pattern is None:
        if known is None:
            raise TokenizerError(
                f"{path} does not contain its pre-tokenization pattern. Give it on import: "
                f"`lmsmith tokenizer import {path} --pattern NAME --out FOLDER`, where NAME is "
                f"{', '.join(PATTERNS)} or a regular expression. lmsmith knows the patterns of "
                f"files named {', '.join(_KNOWN)}."
            )
        pattern = known[0]
    if special_tokens is None:
        special_tokens = known[1] if known else {}
    pattern = pattern_of(pattern) if isinstance(pattern, str) else pattern
    check_portable(pattern, str(path))
    tokens: list[bytes | None] = [None] * (
        max([*ranks.values(), *special_tokens.values()], default=-1) + 1
    )
    for token, rank in ranks.items():
        if tokens[rank] is not None:
            raise TokenizerError(
                f"{path} is damaged: two tokens have the rank {rank}. Restore it from a copy."
            )
        tokens[rank] = token
    return BpeTokenizer(tokens, None, pattern, special_tokens, end_of_text=end_of_text)


def _ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise TokenizerError(f"there is no file {path}. Check the path.") from error
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path}: {error.strerror}. Check the path and its permissions."
        ) from error
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                written, number_written = line.split()
                token, rank = base64.b64decode(written, validate=True), int(number_written)
                if token in ranks or not 0 <= rank < MAX_IDS:
                    raise ValueError("duplicate token, or rank out of range")
                ranks[token] = rank
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(
                    f"{path}, line {number}: expected a new token in base64 and its rank, found "
                    f"{line[:80]!r}. Restore the file from a copy."
                ) from error
    return ranks


def _llama3_specials(first: int) -> dict[str, int]:
    """Llama 3's special tokens -> ids from `first` on. Later versions of Llama 3 use some of the
    tokens that are reserved here.
    """
    names, n_reserved = [], 0
    for k in range(_LLAMA3_SPECIALS):
        if k in _LLAMA3_NAMED:
            names.append(f"<|{_LLAMA3_NAMED[k]}|>")
        else:
            names.append(f"<|reserved_special_token_{n_reserved}|>")
            n_reserved += 1
    return {name: first + k for k, name in enumerate(names)}


def save_tiktoken(tokenizer: BpeTokenizer, path: Path) -> None:
    """Writes a tiktoken file. Raises TokenizerError if the ids are not in the order of the merges,
    or if the file cannot be written.
    """
    results = [tokenizer.id_of[left + right] for left, right in tokenizer.merged_bytes()]
    if tokenizer.merges is not None and results != sorted(results):
        raise TokenizerError(
            "cannot save as a tiktoken file: the format needs ids in the order of the merges, and "
            "in this vocabulary they are in another order. Save it in Hugging Face's format."
        )
    lines = [
        f"{base64.b64encode(token).decode()} {i}\n"
        for i, token in enumerate(tokenizer.tokens)
        if token is not None
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenizerError(
            f"cannot create the folder {path.parent}: {error.strerror}."
        ) from error
    atomic.write(path, "".join(lines))
