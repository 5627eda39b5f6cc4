"""Reads the files next to a vocabulary: `tokenizer_config.json`, `special_tokens_map.json`,
`added_tokens.json`.

They contain the end-of-text token, the added tokens and the tokenizer class, which transformers
does not store in the vocabulary files. For `vocab.json` with `merges.txt`, the class determines the
pre-tokenization.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import TokenizerError
from lmsmith.tokens.split import PATTERNS

# Classes whose vocab.json and merges.txt use GPT-2's pattern.
_LIKE_GPT2 = ("GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer")
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def config_of(folder: Path) -> dict[str, Any]:
    """Returns the union of `tokenizer_config.json`, which takes precedence, and
    `special_tokens_map.json`; empty if neither exists. Raises TokenizerError for a damaged file.
    """
    return _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")


def token_in(config: Mapping[str, Any], part: str) -> str | None:
    """Returns the token that a config has as `part` ("eos_token", "bos_token", ...), given as a
    string or as an object with flags; None if there is none.
    """
    named = config.get(part)
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def added_tokens(folder: Path) -> list[dict[str, Any]]:
    """Returns the tokens of `tokenizer_config.json` and `added_tokens.json`, in the form of
    `tokenizer.json`, sorted by id.

    `added_tokens.json` has no flags. As in transformers, its tokens are special if a config names
    them, and otherwise normalized.
    """
    config = config_of(folder)
    path = folder / "tokenizer_config.json"
    tokens: dict[str, dict[str, Any]] = {}
    try:
        for number, token in (config.get("added_tokens_decoder") or {}).items():
            flags = {flag: bool(token.get(flag, False)) for flag in FLAGS}
            tokens[token["content"]] = {"id": int(number), "content": token["content"]} | flags
        path = folder / "added_tokens.json"
        special = {token_in(config, part) for part in config if part.endswith("_token")}
        special |= {_text(token) for token in config.get("additional_special_tokens") or ()}
        for content, number in _read(path).items():
            flags = dict.fromkeys(FLAGS, False) | {
                "special": content in special,
                "normalized": content not in special,
            }
            tokens.setdefault(content, {"id": int(number), "content": content} | flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{path} is damaged: its added tokens do not have the structure that transformers "
            f"writes ({error!r}). Restore it from a copy."
        ) from error
    return sorted(tokens.values(), key=lambda token: token["id"])


def cutting(folder: Path) -> dict[str, Any] | None:
    """Returns the pre-tokenization of the class in `tokenizer_config.json`, as keys of
    `tokenizer.json`. None: as in GPT-2.

    Raises TokenizerError for an unknown class.
    """
    config = config_of(folder)
    name = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    prefix = bool(config.get("add_prefix_space"))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": True,
        "use_regex": True,
    }
    if name in _LIKE_GPT2:
        return {"pre_tokenizer": byte_level} if prefix else None
    if name == "Qwen2Tokenizer":
        regex = {"Regex": PATTERNS["qwen2"].regex}
        split = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
        parts = [split, byte_level | {"use_regex": False}]
        return {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        }
    raise TokenizerError(
        f"the tokenizer in {folder} has the class {name}, whose pre-tokenization lmsmith does not "
        f"know and vocab.json and merges.txt do not contain. Use its tokenizer.json, or write one "
        "with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(new_folder)."
    )


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    try:
        content = foreign_json.read(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path}: {error.strerror}. Check the path and its permissions."
        ) from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {error}. Restore it from a copy.") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} is damaged: expected a JSON object. Restore it from a copy.")
    return content
