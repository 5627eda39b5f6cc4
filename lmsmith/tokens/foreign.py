"""Byte-pair vocabularies in other people's formats, read and written: Hugging Face, GPT-2, tiktoken.

| format | files | holds |
|---|---|---|
| Hugging Face tokenizers | `tokenizer.json` | vocabulary, merges, pattern, special tokens |
| GPT-2 | `vocab.json`, `merges.txt` | vocabulary, merges; the pattern is GPT-2's |
| tiktoken | `NAME.tiktoken`, a line a token: base64, rank | vocabulary; pattern and special tokens are to be said |

What is written gives the same ids there as here; `tokenizer.json` is read by `transformers.AutoTokenizer` too. What is
read is refused where it does something that is not byte-level BPE (a normaliser, a prefix space, ...).

`gpt2` by name is downloaded from OpenAI and checked.
"""

from __future__ import annotations

import base64
import binascii
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
from lmsmith.strict_json import to_json, write_json
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.printable import from_printable, to_printable
from lmsmith.tokens.split import GPT2, PATTERNS, Pattern, pattern_of
from lmsmith.tokens.tokenizer import END_OF_TEXT

log = logging.getLogger(__name__)

MOST_IDS = 1 << 24  # a larger id is damage, not a vocabulary

# The expressions in the dialect of Hugging Face's engine: no possessive quantifiers, and $ would be the end of a line.
_HUGGINGFACE = {
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|"
        r"\s+(?!\S)|\s"
    ),
    "nanochat": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
}


# GPT-2's, between single digits that are cut off first (Digits before ByteLevel, as SmolLM has it): what stands before
# a digit ends there, white space too.
_BETWEEN_DIGITS = (
    r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def from_huggingface(content: Mapping[str, Any], where: Path) -> BpeTokenizer:
    """What a `tokenizer.json` says. Raises TokenizerError for what is not byte-level BPE as it is done here."""
    try:
        return _from_huggingface(content, where)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # its parts are not of the kinds they should be
        raise TokenizerError(
            f"{where} is damaged: it is not built as Hugging Face builds it ({error!r}). Take another copy."
        ) from error


def _from_huggingface(content: Mapping[str, Any], where: Path) -> BpeTokenizer:
    model = content.get("model") or {}
    pattern = _pattern_of(content.get("pre_tokenizer"), where)
    for part, found in (
        ("a model", None if model.get("type", "BPE") == "BPE" else model.get("type")),
        ("a normalizer", content.get("normalizer") and content["normalizer"].get("type")),
        ("byte_fallback", model.get("byte_fallback") or None),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix") or None),
        ("end_of_word_suffix", model.get("end_of_word_suffix") or None),
        ("dropout", model.get("dropout") or None),
    ):
        if found is not None:
            raise TokenizerError(
                f"{where} has {part} ({found}) that lmsmith's byte-level BPE does not have: its ids would differ. Use"
                " another tokenizer, or learn one (`lmsmith tokenizer train`)."
            )
    specials = {}
    for added in content.get("added_tokens") or ():
        specials[str(added["content"])] = int(added["id"])
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            log.warning(
                "%s: white space around the special token %r is not taken into it here",
                where,
                added["content"],
            )
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model["merges"]
    ]
    return _from_printable(
        model["vocab"], merges, pattern, specials, bool(model.get("ignore_merges")), str(where)
    )


def to_huggingface(tokenizer: BpeTokenizer) -> dict[str, Any]:
    """The content of a `tokenizer.json` that gives the same ids."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    if tokenizer.pattern.family == GPT2:
        before: dict[str, Any] = byte_level | {"use_regex": True}
    else:
        expression = _HUGGINGFACE.get(tokenizer.pattern.name, tokenizer.pattern.regex)
        split = {
            "type": "Split",
            "pattern": {"Regex": expression},
            "behavior": "Isolated",
            "invert": False,
        }
        before = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    specials = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text} | flags for text, number in specials],
        "normalizer": None,
        "pre_tokenizer": before,
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.whole_tokens,
            "vocab": {
                to_printable(token): i
                for i, token in enumerate(tokenizer.tokens)
                if token is not None
            },
            "merges": [
                [to_printable(left), to_printable(right)]
                for left, right in tokenizer.merged_bytes()
            ],
        },
    }


def save_huggingface(tokenizer: BpeTokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, and the `tokenizer_config.json` by which transformers knows what to do with it."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    _make_folder(folder)
    write_json(folder / "tokenizer.json", to_huggingface(tokenizer), ensure_ascii=False)
    write_json(folder / "tokenizer_config.json", config)


def _pattern_of(before: Mapping[str, Any] | None, where: Path) -> Pattern:
    parts = before.get("pretokenizers", [before]) if before else []
    byte_level = parts[-1] if parts else {}
    if byte_level.get("type") == "ByteLevel" and not byte_level.get("add_prefix_space", True):
        if len(parts) == 1 and byte_level.get("use_regex", True):
            return PATTERNS["gpt2"]
        split = parts[0]
        digits = split.get("type") == "Digits" and split.get("individual_digits")
        if len(parts) == 2 and digits and byte_level.get("use_regex", True):
            return pattern_of(_BETWEEN_DIGITS)
        expression = (split.get("pattern") or {}).get("Regex")
        if (
            len(parts) == 2
            and split.get("type") == "Split"
            and expression
            and split.get("behavior") == "Isolated"
            and not split.get("invert")
            and not byte_level.get("use_regex", True)
        ):
            return next(
                (PATTERNS[name] for name, text in _HUGGINGFACE.items() if text == expression), None
            ) or pattern_of(expression)
    kinds = [part.get("type") for part in parts]
    raise TokenizerError(
        f"{where} cuts text in a way that lmsmith does not know ({', '.join(map(str, kinds)) or 'not at all'}): wanted"
        " ByteLevel without add_prefix_space, alone, after one Split by a regular expression or after single Digits."
    )


# ---- GPT-2 -----------------------------------------------------------------------------------------------------------


def load_gpt2_files(folder: Path, pattern: Pattern | None = None) -> BpeTokenizer:
    """`vocab.json` and `merges.txt`. What is in the vocabulary and no merge makes is a special token."""
    vocabulary = _checked(_read_json(folder / "vocab.json"), str(folder / "vocab.json"))
    path = folder / "merges.txt"
    merges = []
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), start=1):
        if line.startswith("#version") or not line:
            continue
        merge = tuple(line.split(" "))
        if len(merge) != 2 or not all(part in vocabulary for part in (*merge, "".join(merge))):
            raise TokenizerError(
                f"{path}, line {number}: {line!r} is not a merge of two tokens into a third, all in vocab.json."
            )
        merges.append(merge)
    made = {left + right for left, right in merges}
    specials = {text: i for text, i in vocabulary.items() if len(text) > 1 and text not in made}
    if unmade := next(
        (text for text in specials if "Ġ" in text), None
    ):  # written for a space: not a special token
        raise TokenizerError(
            f"{folder / 'vocab.json'} does not fit {path}: no merge makes {unmade!r}. Is one of them cut short, or of"
            " another tokenizer? Take both anew from one place."
        )
    return _from_printable(
        vocabulary, merges, pattern or PATTERNS["gpt2"], specials, False, str(path)
    )


def save_gpt2_files(tokenizer: BpeTokenizer, folder: Path) -> None:
    """Writes `vocab.json` and `merges.txt`. Raises TokenizerError for another pattern: the files cannot say it."""
    if tokenizer.pattern.family != GPT2:
        raise TokenizerError(
            f"vocab.json and merges.txt mean GPT-2's pattern, and this tokenizer cuts by {tokenizer.pattern.name}:"
            " save it in the format of Hugging Face."
        )
    _make_folder(folder)
    vocabulary = {
        to_printable(token): i for i, token in enumerate(tokenizer.tokens) if token is not None
    }
    merges = [
        f"{to_printable(left)} {to_printable(right)}\n" for left, right in tokenizer.merged_bytes()
    ]
    content = to_json(vocabulary | tokenizer.special_tokens, ensure_ascii=False)
    atomic.write(folder / "vocab.json", content + "\n")
    atomic.write(folder / "merges.txt", "#version: 0.2\n" + "".join(merges))


# GPT-2's own files at OpenAI, under our names, with SHA-256.
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


def load_gpt2() -> BpeTokenizer:
    """GPT-2's tokenizer, downloaded once. Raises TokenizerError where that fails, with what to do without a network."""
    folder = _cache_folder() / "gpt2"
    for name, (address, sha256) in _GPT2_FILES.items():
        path = folder / name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            continue
        log.info("downloading %s to %s", address, path)
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                data = answer.read()
        except OSError as error:
            raise TokenizerError(
                f"cannot download {address} ({error}). Without a network: get GPT-2's vocab.json and merges.txt some"
                f" other way and give the folder that holds them instead of gpt2, or put them into {folder}."
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TokenizerError(
                f"what {address} gives is not GPT-2's {name}: its SHA-256 is another. Try again."
            )
        _make_folder(folder)
        atomic.write(path, data)
    return load_gpt2_files(folder)


def _cache_folder() -> Path:
    """Where downloads are kept: LMSMITH_CACHE, or where the system keeps such things."""
    if chosen := os.environ.get("LMSMITH_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lmsmith"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "lmsmith" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmsmith"


# ---- tiktoken --------------------------------------------------------------------------------------------------------

# What the files that OpenAI publishes do not say.
_TIKTOKEN = {
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


def load_tiktoken(
    path: Path,
    pattern: Pattern | str | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> BpeTokenizer:
    """A file of ranks. Pattern and special tokens are known for the files of OpenAI, by name, and else to be given."""
    known = _TIKTOKEN.get(path.stem)
    if pattern is None:
        if known is None:
            raise TokenizerError(
                f"{path} does not say by which pattern text is cut. Give it the name under which OpenAI publishes it"
                f" ({', '.join(_TIKTOKEN)}), or in Python load_tiktoken(path, pattern=...): {', '.join(PATTERNS)}, or"
                " an expression."
            )
        pattern = known[0]
    if special_tokens is None:
        special_tokens = known[1] if known else {}
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line:
            try:
                written, number_written = line.split()
                token, rank = base64.b64decode(written, validate=True), int(number_written)
                if token in ranks or not 0 <= rank < MOST_IDS:
                    raise ValueError("there before, or too large")
                ranks[token] = rank
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(
                    f"{path}, line {number}: {line!r} is not a token in base64, not there before, and its rank."
                ) from error
    tokens: list[bytes | None] = [None] * (
        max([*ranks.values(), *special_tokens.values()], default=-1) + 1
    )
    for token, rank in ranks.items():
        if tokens[rank] is not None:
            raise TokenizerError(f"{path}: rank {rank} is there twice. Take another copy.")
        tokens[rank] = token
    return BpeTokenizer(tokens, None, pattern, special_tokens)


def save_tiktoken(tokenizer: BpeTokenizer, path: Path) -> None:
    """Writes a file of ranks. Raises TokenizerError where the order of the ids is not that of the merges."""
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
    _make_folder(path.parent)
    atomic.write(path, "".join(lines))


# ---- parts -----------------------------------------------------------------------------------------------------------


def _from_printable(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, ...]],
    pattern: Pattern,
    specials: Mapping[str, int],
    whole_tokens: bool,
    where: str,
) -> BpeTokenizer:
    _checked(vocabulary, where)
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
                f"{where}: {text!r} is not a token of byte-level BPE, {error} stands for no byte."
            ) from error
        if tokens[i] is not None:
            raise TokenizerError(f"{where}: id {i} of {text!r} is taken.")
        tokens[i] = token
    pairs = []
    for rank, merge in enumerate(merges, start=1):
        if len(merge) != 2 or not all(part in vocabulary for part in (*merge, "".join(merge))):
            raise TokenizerError(
                f"{where}: the vocabulary does not fit its merges, merge {rank} is {' '.join(merge)!r} and not all of"
                " it is in the vocabulary."
            )
        pairs.append((vocabulary[merge[0]], vocabulary[merge[1]]))
    return BpeTokenizer(tokens, pairs, pattern, specials, whole_tokens)


def _checked(vocabulary: Any, where: str) -> Mapping[str, int]:
    """`vocabulary`, if it maps texts to ids."""
    if not isinstance(vocabulary, dict):
        raise TokenizerError(
            f"{where} is damaged: it does not map tokens to ids. Take another copy."
        )
    for text, i in vocabulary.items():
        if not isinstance(i, int) or not 0 <= i < MOST_IDS:
            raise TokenizerError(
                f"{where}: {text!r} has {i!r} for an id, wanted a number from 0 to {MOST_IDS - 1:,}."
            )
    return vocabulary


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TokenizerError(f"there is no file {path}.") from error
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error


def _read_json(path: Path) -> Any:
    try:
        return foreign_json.parse(_read(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {error}.") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenizerError(f"cannot make the folder {folder}: {error.strerror}.") from error
