"""Files of ranks, as tiktoken has them: a line for each token, its bytes in base64 and its rank,
which is its id.

They say neither by which pattern text is cut nor which special tokens there are. Both are known for
the files that OpenAI publishes, by name, and for Llama 3's `tokenizer.model`; for others the user
says them.
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

MOST_IDS = 1 << 24  # a larger id is damage, not a vocabulary
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
# Behind the ranks come 256 special tokens: these, with reserved ones at the places without a name
# and behind.
_LLAMA3_NAMED = {
    0: "begin_of_text",
    1: "end_of_text",
    6: "start_header_id",
    7: "end_header_id",
    9: "eot_id",
}
_LLAMA3_SPECIALS = 256


def is_ranks(path: Path) -> bool:
    """Whether a file begins as a file of ranks does. Raises TokenizerError where it cannot be
    read.
    """
    try:
        with path.open("rb") as file:
            return _LINE.match(file.read(4096)) is not None
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error


def load_tiktoken(
    path: Path,
    pattern: Pattern | str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    end_of_text: str | None = None,
) -> BpeTokenizer:
    """A file of ranks. Pattern and special tokens are known for some files, by name, and else to be
    given.

    `end_of_text`: the special token between documents. Raises TokenizerError for a file that is
    damaged, and where no pattern is known, or one that can mean something else in tiktoken.
    """
    ranks = _ranks(path)
    known: tuple[str, dict[str, int]] | None = _KNOWN.get(path.stem)
    if path.name == LLAMA3:
        known = "llama3", _llama3_specials(len(ranks))
    if pattern is None:
        if known is None:
            raise TokenizerError(
                f"{path} does not say by which pattern text is cut. Say it where it is imported: "
                f"`lmsmith tokenizer"
                f" import {path} --pattern NAME --out FOLDER`, with {', '.join(PATTERNS)} or an "
                f"expression. Files"
                f" named {', '.join(_KNOWN)} are known."
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
            raise TokenizerError(f"{path}: rank {rank} is there twice. Take another copy.")
        tokens[rank] = token
    return BpeTokenizer(tokens, None, pattern, special_tokens, end_of_text=end_of_text)


def _ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise TokenizerError(f"there is no file {path}.") from error
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                written, number_written = line.split()
                token, rank = base64.b64decode(written, validate=True), int(number_written)
                if token in ranks or not 0 <= rank < MOST_IDS:
                    raise ValueError("there before, or too large")
                ranks[token] = rank
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(
                    f"{path}, line {number}: {line[:80]!r} is not a token in base64, not there "
                    f"before, and its rank."
                ) from error
    return ranks


def _llama3_specials(first: int) -> dict[str, int]:
    """Llama 3's special tokens, with ids from `first` on. Later versions name some that are
    reserved here.
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
    """Writes a file of ranks. Raises TokenizerError where the order of the ids is not that of
    the merges.
    """
    results = [tokenizer.id_of[left + right] for left, right in tokenizer.merged_bytes()]
    if tokenizer.merges is not None and results != sorted(results):
        raise TokenizerError(
            "a file of ranks takes ids for the order of merges, and in this vocabulary they differ."
        )
    lines = [
        f"{base64.b64encode(token).decode()} {i}\n"
        for i, token in enumerate(tokenizer.tokens)
        if token is not None
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenizerError(f"cannot make the folder {path.parent}: {error.strerror}.") from error
    atomic.write(path, "".join(lines))
