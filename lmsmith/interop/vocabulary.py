"""Converts every tokenizer of lmsmith to a Hugging Face `tokenizer.json` with the same ids, and
back.

| lmsmith | tokenizer.json | unknown text |
|---|---|---|
| bpe | BPE after ByteLevel (`tokens/foreign.py`) | none |
| byte | the same without merges | none |
| library | the file it was loaded from | as in the file |
| sentencepiece | Unigram or BPE (`tokens/sentencepiece.py`) | `<unk>`, or bytes |
| char | BPE of characters without merges | skipped, as in lmsmith |
| word | WordLevel after a Split by our pattern, with character classes written out | `<unk>`, as in lmsmith |
| extended | that of its base, with more added tokens | as in its base |

One difference: transformers encodes `<|endoftext|>` in a text as the special token; lmsmith encodes
it as text unless special tokens are allowed. Character classes are written as Python defines them,
so that they do not depend on another library's version of Unicode.
"""

import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import TokenizerError
from lmsmith.interop.defaults import TOKENS, Defaults
from lmsmith.strict_json import write_json
from lmsmith.tokens import beside
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.extended import ExtendedTokenizer
from lmsmith.tokens.files import FILE_NAME, load_tokenizer
from lmsmith.tokens.foreign import to_huggingface
from lmsmith.tokens.library import LibraryTokenizer
from lmsmith.tokens.spm import SentencePieceTokenizer
from lmsmith.tokens.tokenizer import (
    END_OF_TEXT,
    UNKNOWN,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
)

log = logging.getLogger(__name__)

_NO_MERGES: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "merges": [],
}


def save(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    context_length: int | None,
    begin: int | None = None,
    ends: Sequence[int] = (),
    defaults: Defaults | None = None,
) -> dict[str, int]:
    """Writes tokenizer.json and tokenizer_config.json for transformers; returns the ids of the
    named tokens (`bos_token` and so on).

    `begin`, `ends`: ids of the special tokens that begin and end a text; by default the end-of-text
    token. `defaults`: those of an imported model. If they have no padding token, `eos_token` is
    used. Raises StorageError.
    """
    content = content_of(tokenizer)
    names = {added["id"]: added["content"] for added in content["added_tokens"]}
    first, last = (
        tokenizer.end_of_text if begin is None else begin,
        next(iter(ends), tokenizer.end_of_text),
    )
    tokens = {
        part: names[i] for part, i in (("bos_token", first), ("eos_token", last)) if i in names
    }
    ids = _ids_by_text(content)
    # Left padding, so that a generated continuation directly follows the prompt.
    extra: dict[str, Any] = {"padding_side": "left"}
    if defaults:
        extra = dict(defaults.tokenizer)
    tokens |= _tokens_kept({part: extra.pop(part, None) for part in TOKENS}, ids, ends)
    if "eos_token" in tokens:
        tokens.setdefault("pad_token", tokens["eos_token"])
    if "additional_special_tokens" in extra:
        extra["additional_special_tokens"] = [
            text for text in extra["additional_special_tokens"] if text in ids
        ]
    # model_input_names excludes token_type_ids, which the default includes and Llama rejects.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    if context_length is not None:  # None: the model reads texts of any length
        config["model_max_length"] = context_length
    config |= extra | tokens
    if defaults and defaults.chat_templates:
        config["chat_template"] = _as_written(defaults.chat_templates)
    if (
        begin is not None
        and begin != tokenizer.end_of_text
        and not isinstance(tokenizer, LibraryTokenizer)
    ):
        content["post_processor"] = _put_before(names[begin], begin)
    write_json(folder / FILE_NAME, content, ensure_ascii=False)
    write_json(folder / "tokenizer_config.json", config, ensure_ascii=False)
    return {part: ids[text] for part, text in tokens.items()}


def _tokens_kept(named: dict[str, Any], ids: dict[str, int], ends: Sequence[int]) -> dict[str, str]:
    """The special tokens of an imported model that are still valid.

    A token must be in the vocabulary, or transformers would give it a new id; a warning names
    tokens that are not. `eos_token` must also be among `ends`, if there are any.
    """
    tokens: dict[str, str] = {}
    for part, text in named.items():
        if text in ids and (part != "eos_token" or not ends or ids[text] in ends):
            tokens[part] = text
        elif text is not None and text not in ids:
            log.warning(
                "%s = %r is not in the vocabulary and is not written, because it would get a new "
                "id",
                part,
                text,
            )
    return tokens


def _ids_by_text(content: dict[str, Any]) -> dict[str, int]:
    """The ids of tokens in a tokenizer.json, by text."""
    vocabulary = content["model"].get("vocab")
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return (vocabulary if isinstance(vocabulary, dict) else {}) | added


def _as_written(templates: dict[str, str]) -> str | list[dict[str, str]]:
    """Chat templates in the form of tokenizer_config.json."""
    if list(templates) == ["default"]:
        return templates["default"]
    return [{"name": name, "template": text} for name, text in templates.items()]


def load(folder: Path, eos_token: str | None = None) -> Tokenizer:
    """Loads the tokenizer of a folder, in any format that `tokens` reads or `save` writes. Raises
    TokenizerError.
    """
    return (None if eos_token else _simple(folder / FILE_NAME)) or load_tokenizer(
        folder, end_of_text=eos_token
    )


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of special tokens, which ordinary text never has."""
    named: dict[str, int] | None = getattr(tokenizer, "special_tokens", None)
    if named is not None:
        return set(named.values())
    return set() if tokenizer.end_of_text is None else {tokenizer.end_of_text}


def added_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of added tokens, special or not."""
    if isinstance(tokenizer, LibraryTokenizer):
        return {token["id"] for token in tokenizer.content.get("added_tokens") or ()}
    named: dict[str, int] = getattr(tokenizer, "named_ids", {})
    return special_ids(tokenizer) | set(named.values())


def begin_of(folder: Path, tokenizer: Tokenizer) -> int | None:
    """The id of the special token that transformers puts before every text (Llama 3 has one), or
    None. Warns about tokens after every text.

    Raises TokenizerError if there are several before it, because lmsmith supports one.
    """
    before, after = around(folder, tokenizer)
    if len(before) > 1:
        raise TokenizerError(
            f"{folder} puts {len(before)} special tokens before every text "
            f"({tokenizer.decode(before)}), but lmsmith supports at most one."
        )
    if after:
        log.warning(
            "%s puts %r after every text, which lmsmith does not", folder, tokenizer.decode(after)
        )
    return before[0] if before else None


# Classes that ignore the post-processor in tokenizer.json.
_SET_AROUND = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")


def around(folder: Path, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of the special tokens that transformers puts before and after every text.

    They are those of the post-processor in tokenizer.json, unless tokenizer_config.json has
    `add_bos_token` or `add_eos_token`, or a class that always uses these. Raises TokenizerError for
    damaged files.
    """
    specials: dict[str, int] = getattr(tokenizer, "special_tokens", {})
    folder = folder.parent if folder.is_file() else folder
    config = beside.config_of(folder)
    before, after = _in_post_processor(folder / FILE_NAME, specials)
    sets = str(config.get("tokenizer_class")).removesuffix("Fast") in _SET_AROUND
    bos, eos = (
        specials.get(beside.token_in(config, part) or "") for part in ("bos_token", "eos_token")
    )
    if "add_bos_token" in config or sets:
        before = [bos] if config.get("add_bos_token", True) and bos is not None else []
    if "add_eos_token" in config or sets:
        after = [eos] if config.get("add_eos_token", False) and eos is not None else []
    return before, after


def _in_post_processor(path: Path, specials: dict[str, int]) -> tuple[list[int], list[int]]:
    """The ids that the post-processor of a tokenizer.json puts before and after a text."""
    before: list[int] = []
    after: list[int] = []
    try:
        processor = foreign_json.read(path)["post_processor"]
        for part in processor.get("processors", [processor]):
            if part["type"] == "TemplateProcessing":
                side = before
                for piece in part["single"]:
                    if "Sequence" in piece:
                        side = after
                    else:
                        side += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
            elif part["type"] in ("BertProcessing", "RobertaProcessing"):
                before.append(part["cls"][1])
                after.append(part["sep"][1])
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return [], []  # no such file, or no post-processor that adds tokens
    known = set(specials.values())
    return [i for i in before if i in known], [i for i in after if i in known]


def _put_before(name: str, number: int) -> dict[str, Any]:
    """A post-processor that puts a special token before every text."""

    def part(letter: str, number: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": name, "type_id": number}},
            {"Sequence": {"id": letter, "type_id": number}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }


def content_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a `tokenizer.json` that gives the same ids as this tokenizer."""
    if isinstance(tokenizer, BpeTokenizer):
        return to_huggingface(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.exact_elsewhere:
        raise TokenizerError(
            "this SentencePiece model has user-defined symbols, after which a tokenizer.json would "
            "add or remove spaces that SentencePiece does not: it cannot be exported."
        )
    if isinstance(tokenizer, LibraryTokenizer):
        return tokenizer.content
    end = tokenizer.end_of_text
    special_tokens = {} if end is None else {END_OF_TEXT: end}
    if isinstance(tokenizer, ExtendedTokenizer):
        special_tokens, tokenizer = tokenizer.special_tokens, tokenizer.base
    if isinstance(tokenizer, ByteTokenizer):
        tokens = [bytes([byte]) for byte in range(256)]
        return to_huggingface(
            BpeTokenizer([*tokens, *([] if end is None else [None])], [], "gpt2", special_tokens)
        )
    assert isinstance(tokenizer, CharTokenizer | WordTokenizer)
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text} | flags for text, number in special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
    }
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {character: i for i, character in enumerate(tokenizer.characters)}
        return content | {"model": _NO_MERGES | {"vocab": vocabulary}}
    unknown = " " + UNKNOWN  # cannot be a word, and is what our decoding gives
    vocabulary = {unknown: 0} | {word: i for i, word in enumerate(tokenizer.words, start=1)}
    split = {
        "type": "Split",
        "pattern": {"Regex": _word_pattern()},
        "behavior": "Isolated",
        "invert": False,
    }
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown}
    return content | {"pre_tokenizer": split, "model": model}


@functools.cache
def _word_pattern() -> str:
    """The word tokenizer's pattern, with character classes as ranges of code points."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))

    def ranges(one: str) -> str:
        runs = (match.group() for match in re.finditer(f"(?:{one})+", every))
        return "".join(f"\\x{{{ord(run[0]):x}}}-\\x{{{ord(run[-1]):x}}}" for run in runs)

    letter, digit, space = ranges(r"[^\W\d_]"), ranges(r"[\d_]"), ranges(r"\s")
    return (
        rf" ?[{letter}]+(?:['\x{{2019}}][{letter}]+)*| ?[{digit}]| "
        rf"?[^{letter}{digit}{space}]|[{space}]"
    )


def _simple(path: Path) -> Tokenizer | None:
    """The character or word tokenizer that `save` wrote to this file; None for other files."""
    try:
        content = foreign_json.read(path)
        vocabulary: dict[str, int] = content["model"]["vocab"]
        texts = sorted(vocabulary, key=vocabulary.__getitem__)
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        has_end = END_OF_TEXT in added
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # `load_tokenizer` reads the file next and reports what is wrong
    tokenizer: CharTokenizer | WordTokenizer | ExtendedTokenizer
    if texts == sorted(texts) and all(len(text) == 1 for text in texts):
        tokenizer = CharTokenizer("".join(texts), has_end)
    elif texts[:1] == [" " + UNKNOWN]:
        tokenizer = WordTokenizer(texts[1:], has_end)
    else:
        return None
    more = sorted(set(added) - {END_OF_TEXT}, key=added.__getitem__)
    if more:
        tokenizer = ExtendedTokenizer(tokenizer, more)
    written = content_of(tokenizer)
    if added != {token["content"]: token["id"] for token in written["added_tokens"]}:
        return None
    parts = ("normalizer", "pre_tokenizer", "decoder")
    same = all(content.get(part) == written[part] for part in parts)
    same = same and vocabulary == written["model"]["vocab"]
    return tokenizer if same and not content["model"].get("merges") else None
