"""What the files beside a vocabulary say: `tokenizer_config.json`, `special_tokens_map.json`,
`added_tokens.json`.

transformers keeps there what `tokenizer.json`, or `vocab.json` with `merges.txt`, does not hold:
which token ends a text, which tokens were added, and the class, which for the older files alone
says how text is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import TokenizerError
from lmsmith.tokens.split import PATTERNS

# Classes whose vocab.json and merges.txt are cut by GPT-2's pattern.
_LIKE_GPT2 = ("GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer")
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def config_of(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` over `special_tokens_map.json`; empty where there are none. Raises
    TokenizerError.
    """
    return _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")


def token_in(config: Mapping[str, Any], part: str) -> str | None:
    """The token that a config names as `eos_token`, `bos_token`, ...: a text, or a text with
    flags.
    """
    named = config.get(part)
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def added_tokens(folder: Path) -> list[dict[str, Any]]:
    """The tokens of `tokenizer_config.json` and `added_tokens.json`, as `tokenizer.json` writes
    them.

    `added_tokens.json` holds no flags. As in transformers, a token is special where a config names
    it, and otherwise normalized.
    """
    config = config_of(folder)
    path = folder / "tokenizer_config.json"
    found: dict[str, dict[str, Any]] = {}
    try:
        for number, token in (config.get("added_tokens_decoder") or {}).items():
            flags = {flag: bool(token.get(flag, False)) for flag in FLAGS}
            found[token["content"]] = {"id": int(number), "content": token["content"]} | flags
        path = folder / "added_tokens.json"
        special = {token_in(config, part) for part in config if part.endswith("_token")}
        special |= {_text(token) for token in config.get("additional_special_tokens") or ()}
        for content, number in _read(path).items():
            flags = dict.fromkeys(FLAGS, False) | {
                "special": content in special,
                "normalized": content not in special,
            }
            found.setdefault(content, {"id": int(number), "content": content} | flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{path} is damaged: its added tokens are not written as transformers writes them "
            f"({error!r})."
        ) from error
    return sorted(found.values(), key=lambda token: token["id"])


def cutting(folder: Path) -> dict[str, Any] | None:
    """How text is cut, as `tokenizer.json` says it, for the class in `tokenizer_config.json`. None:
    as in GPT-2.

    Raises TokenizerError for a class of which this is not known.
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
        f"{folder} is of class {name}, and how that cuts text is not in vocab.json and "
        f"merges.txt. Get its"
        " tokenizer.json, or write one with transformers: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(other)."
    )


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    try:
        content = foreign_json.read(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} is damaged: it is not a JSON object.")
    return content
