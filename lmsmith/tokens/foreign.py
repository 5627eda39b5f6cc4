"""Reads and writes byte-pair vocabularies in the formats of Hugging Face and GPT-2.

| format | files | holds |
|---|---|---|
| Hugging Face tokenizers | `tokenizer.json` | vocabulary, merges, pattern, special tokens |
| GPT-2 | `vocab.json`, `merges.txt` | vocabulary, merges; the pattern is GPT-2's |

Saved files give the same ids in those programs as in lmsmith; `transformers.AutoTokenizer` also
reads the `tokenizer.json`. Loaded files give the same ids as in the library `tokenizers`:
`exact.py` decides whether lmsmith's engine is exact for a file, and otherwise the library runs it
(`library.py`). `ranks.py` has tiktoken's format.

The name `gpt2` downloads GPT-2's files from OpenAI and checks their SHA-256.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith import atomic, foreign_json
from lmsmith.errors import TokenizerError
from lmsmith.hashes import sha256_of
from lmsmith.strict_json import to_json, write_json
from lmsmith.tokens import beside, library
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.exact import ONIGURUMA, pattern_in, reason_not_exact
from lmsmith.tokens.expressions import check_portable
from lmsmith.tokens.printable import from_printable, to_printable
from lmsmith.tokens.specials import AddedToken
from lmsmith.tokens.split import PATTERNS, Pattern
from lmsmith.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_IDS = 1 << 24  # a file with a larger id is damaged

# ---- Hugging Face --------------------------------------------------------------------------------


def from_huggingface(
    content: Mapping[str, Any], where: Path, end_of_text: str | None = None
) -> Tokenizer:
    """Returns the tokenizer of a `tokenizer.json`: run by lmsmith's engine if that is exact,
    otherwise by the library `tokenizers`.

    `content`: the parsed file. `where`: its path, for errors. `end_of_text`: the token between
    documents. Raises TokenizerError, with the reason, if neither can run it.
    """
    try:
        with_end = _with_end(content, end_of_text)
        reason = reason_not_exact(with_end)
        if reason is None:
            return _exact(with_end, where, end_of_text)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # values of unexpected types
        raise TokenizerError(
            f"{where} is damaged: it does not have the structure of a Hugging Face tokenizer.json "
            f"({error!r}). Restore it from a copy."
        ) from error
    return library.load(content, where, reason, end_of_text)


def has_token(content: Mapping[str, Any], text: str) -> bool:
    """Returns whether a `tokenizer.json` has the token `text`, in its vocabulary or as an added
    token.
    """
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [text, score]
        vocabulary = {token[0] for token in vocabulary}
    return text in vocabulary or any(
        token["content"] == text for token in content.get("added_tokens") or ()
    )


def _with_end(content: Mapping[str, Any], end_of_text: str | None) -> Mapping[str, Any]:
    """`content` with `end_of_text` as a special token, if it is only in the vocabulary so far."""
    added, vocabulary = content.get("added_tokens") or [], content["model"]["vocab"]
    if (
        end_of_text is None
        or end_of_text not in vocabulary
        or end_of_text in [token["content"] for token in added]
    ):
        return content
    if not isinstance(vocabulary, dict):
        return content
    token = AddedToken(end_of_text, vocabulary[end_of_text])
    return {**content, "added_tokens": [*added, vars(token) | _NO_FLAGS]}


def _exact(content: Mapping[str, Any], where: Path, end_of_text: str | None) -> BpeTokenizer:
    model, pattern = content["model"], pattern_in(content)
    assert pattern is not None
    added = [
        AddedToken(
            str(token["content"]),
            int(token["id"]),
            special=bool(token.get("special")) or token["content"] == end_of_text,
            normalized=bool(token.get("normalized")),
        )
        for token in content.get("added_tokens") or ()
    ]
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model["merges"]
    ]
    whole_tokens = bool(model.get("ignore_merges"))
    return _from_printable(
        model["vocab"], merges, pattern, added, whole_tokens, str(where), end_of_text
    )


def to_huggingface(tokenizer: BpeTokenizer) -> dict[str, Any]:
    """Returns the content of a `tokenizer.json` that gives the same ids in `tokenizers`.

    Raises TokenizerError for a regular expression that can match differently in `tokenizers`.
    """
    check_portable(tokenizer.pattern, "a tokenizer.json")
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    if tokenizer.pattern == PATTERNS["gpt2"]:
        before: dict[str, Any] = byte_level | {"use_regex": True}
    else:
        expression = ONIGURUMA.get(tokenizer.pattern.name, tokenizer.pattern.regex)
        split = {
            "type": "Split",
            "pattern": {"Regex": expression},
            "behavior": "Isolated",
            "invert": False,
        }
        before = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    return _content(
        {to_printable(token): i for i, token in enumerate(tokenizer.tokens) if token is not None},
        [(to_printable(left), to_printable(right)) for left, right in tokenizer.merged_bytes()],
        [vars(token) | _NO_FLAGS for token in tokenizer.added_tokens()],
        before,
        tokenizer.whole_tokens,
    )


_NO_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}


def _content(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, ...]],
    added: Sequence[Mapping[str, Any]],
    pre_tokenizer: Mapping[str, Any],
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """Returns the content of a `tokenizer.json` for byte-level BPE."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(vocabulary),
            "merges": [list(merge) for merge in merges],
        },
    }


def save_huggingface(tokenizer: BpeTokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, and the `tokenizer_config.json` that transformers needs to load
    it.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        name = next(
            text
            for text, number in tokenizer.special_tokens.items()
            if number == tokenizer.end_of_text
        )
        config |= {"bos_token": name, "eos_token": name}
    _make_folder(folder)
    write_json(folder / "tokenizer.json", to_huggingface(tokenizer), ensure_ascii=False)
    write_json(folder / "tokenizer_config.json", config)


# ---- GPT-2 ---------------------------------------------------------------------------------------


def load_gpt2_files(folder: Path, end_of_text: str | None = None) -> Tokenizer:
    """Loads `vocab.json` and `merges.txt`, and `added_tokens.json` and `tokenizer_config.json` if
    they exist.

    Tokens of several characters that no merge produces are special tokens.
    """
    vocabulary = _checked(_read_json(folder / "vocab.json"), str(folder / "vocab.json"))
    path = folder / "merges.txt"
    merges = []
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), start=1):
        if line.startswith("#version") or not line:
            continue
        merge = tuple(line.split(" "))
        if len(merge) != 2 or not all(part in vocabulary for part in (*merge, "".join(merge))):
            raise TokenizerError(
                f"{path}, line {number}: {line!r} is not a merge. Expected two tokens separated by "
                f"a space; they and their concatenation must be in vocab.json. Download both files "
                f"again."
            )
        merges.append(merge)
    results = {left + right for left, right in merges}
    added = beside.added_tokens(folder)
    names = {token["content"] for token in added}
    specials = [
        text for text in vocabulary if len(text) > 1 and text not in results and text not in names
    ]
    if unmade := next(
        (text for text in specials if "Ġ" in text), None
    ):  # Ġ is a space in byte-level BPE, so this is not a special token
        raise TokenizerError(
            f"{folder / 'vocab.json'} does not fit {path}: no merge produces the token {unmade!r}. "
            f"One file is truncated or belongs to another tokenizer. Download both again from one "
            "source."
        )
    every = [vars(AddedToken(text, vocabulary[text])) | _NO_FLAGS for text in specials] + added
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = _content(vocabulary, merges, every, gpt2) | (beside.cutting(folder) or {})
    if reason_not_exact(content) is None or (
        content["pre_tokenizer"] is gpt2 and not any(map(_has_flags, added))
    ):
        return _exact(content, path, end_of_text)  # raises the error if the files are damaged
    return from_huggingface(content, folder / "vocab.json", end_of_text)


def _has_flags(token: Mapping[str, Any]) -> bool:
    return any(token[flag] for flag in _NO_FLAGS)


def save_gpt2_files(tokenizer: BpeTokenizer, folder: Path) -> None:
    """Writes `vocab.json` and `merges.txt`, and `added_tokens.json` if there are added tokens that
    are not special.

    Raises TokenizerError for a pattern other than GPT-2's: the format cannot represent it.
    """
    if tokenizer.pattern != PATTERNS["gpt2"]:
        raise TokenizerError(
            f"cannot save as vocab.json and merges.txt: the format has GPT-2's pattern, and this "
            f"tokenizer has the pattern {tokenizer.pattern.name}. Save it in Hugging Face's format."
        )
    _make_folder(folder)
    vocabulary = {
        to_printable(token): i for i, token in enumerate(tokenizer.tokens) if token is not None
    }
    merges = [
        f"{to_printable(left)} {to_printable(right)}\n" for left, right in tokenizer.merged_bytes()
    ]
    special = {token.content: token.id for token in tokenizer.added_tokens() if token.special}
    plain = {token.content: token.id for token in tokenizer.added_tokens() if not token.special}
    content = to_json(vocabulary | special, ensure_ascii=False)
    atomic.write(folder / "vocab.json", content + "\n")
    if plain:
        added = to_json(plain, ensure_ascii=False)
        atomic.write(folder / "added_tokens.json", added + "\n")
    atomic.write(folder / "merges.txt", "#version: 0.2\n" + "".join(merges))


# GPT-2's files: our file name -> (OpenAI's address, SHA-256).
_GPT2_FILES = {
    "vocab.json": (
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    "merges.txt": (
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
}


def load_gpt2(end_of_text: str | None = None) -> Tokenizer:
    """GPT-2's tokenizer, downloaded once and then cached. Raises TokenizerError if the download
    fails.
    """
    folder = _cache_folder() / "gpt2"
    for name, (address, sha256) in _GPT2_FILES.items():
        path = folder / name
        if path.is_file() and sha256_of(path) == sha256:
            continue
        log.info("downloading %s to %s", address, path)
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                data = answer.read()
        except OSError as error:
            raise TokenizerError(
                f"cannot download {address} ({error}). Without a network: copy GPT-2's vocab.json "
                f"and merges.txt to this machine and give their folder instead of gpt2, or put "
                f"them into {folder}."
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TokenizerError(
                f"the file downloaded from {address} is not GPT-2's {name}: its SHA-256 differs "
                f"from {sha256}. Try again."
            )
        _make_folder(folder)
        atomic.write(path, data)
    return load_gpt2_files(folder, end_of_text)


def _cache_folder() -> Path:
    """Returns the folder for downloads: LMSMITH_CACHE if set, otherwise the system's cache
    folder.
    """
    if chosen := os.environ.get("LMSMITH_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lmsmith"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "lmsmith" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmsmith"


# ---- parts ---------------------------------------------------------------------------------------


def _from_printable(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, ...]],
    pattern: Pattern,
    added: Sequence[AddedToken],
    whole_tokens: bool,
    where: str,
    end_of_text: str | None,
) -> BpeTokenizer:
    _checked(vocabulary, where)
    specials = {token.content: token.id for token in added}
    _checked(specials, where)
    tokens: list[bytes | None] = [None] * (
        max([*vocabulary.values(), *specials.values()], default=-1) + 1
    )
    for text, i in vocabulary.items():
        if text in specials:
            continue
        try:
            token = from_printable(text)
        except KeyError as error:
            raise TokenizerError(
                f"{where}: {text!r} is not a token of byte-level BPE: the character {error} does "
                f"not represent a byte. Restore the file from a copy."
            ) from error
        if tokens[i] is not None:
            raise TokenizerError(
                f"{where}: id {i} of {text!r} already belongs to another token. Restore the file "
                f"from a copy."
            )
        tokens[i] = token
    pairs = []
    for rank, merge in enumerate(merges, start=1):
        if len(merge) != 2 or not all(part in vocabulary for part in (*merge, "".join(merge))):
            raise TokenizerError(
                f"{where}: the vocabulary does not fit its merges. Merge {rank} is "
                f"{' '.join(merge)!r}; its two tokens and their concatenation must be in the "
                "vocabulary. Restore the file from a copy."
            )
        pairs.append((vocabulary[merge[0]], vocabulary[merge[1]]))
    special = {token.content: token.id for token in added if token.special}
    others = [token for token in added if not token.special or token.normalized]
    return BpeTokenizer(tokens, pairs, pattern, special, whole_tokens, others, end_of_text)


def _checked(vocabulary: Any, where: str) -> Mapping[str, int]:
    """Returns `vocabulary`. Raises TokenizerError if it does not map strings to valid ids."""
    if not isinstance(vocabulary, dict):
        raise TokenizerError(
            f"{where} is damaged: it does not map tokens to ids. Restore it from a copy."
        )
    for text, i in vocabulary.items():
        if not isinstance(i, int) or not 0 <= i < MAX_IDS:
            raise TokenizerError(
                f"{where}: the token {text!r} has the id {i!r}; expected a number from 0 to "
                f"{MAX_IDS - 1:,}. Restore the file from a copy."
            )
    return vocabulary


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TokenizerError(
            f"there is no file {path}. GPT-2's format needs vocab.json and merges.txt."
        ) from error
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path}: {error.strerror}. Check the path and its permissions."
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return foreign_json.parse(_read(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {error}. Restore it from a copy.") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenizerError(f"cannot create the folder {folder}: {error.strerror}.") from error
