"""Byte-pair tokenizers as a GGUF file holds them, both ways.

| key of `tokenizer.` | content |
|---|---|
| ggml.model | "gpt2": byte-level BPE, the only kind read and written |
| ggml.pre | the name of the pre-tokenization, see `_PRE` |
| ggml.tokens | the text of each id; bytes are written as printable characters, as in GPT-2 |
| ggml.token_type | of each id: 1 normal, 3 control, 4 user-defined, 5 unused |
| ggml.merges | "LEFT RIGHT", highest priority first |
| ggml.bos_token_id, eos_token_id, ... | ids of named tokens; ggml.add_bos_token |
| chat_template | Jinja |

llama.cpp has its own code for each pre-tokenization that it knows. A tokenizer whose pattern is not
among them would get other ids there, so it is refused.

Source: llama.cpp, `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith.errors import TokenizerError
from lmsmith.foreign_json import shown
from lmsmith.interop.defaults import Defaults
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.exact import ONIGURUMA, pattern_in, reason_not_exact
from lmsmith.tokens.foreign import MAX_IDS, from_huggingface, to_huggingface
from lmsmith.tokens.library import LibraryTokenizer
from lmsmith.tokens.piece_cache import PieceCache, encode_pieces
from lmsmith.tokens.printable import from_printable
from lmsmith.tokens.specials import AddedToken
from lmsmith.tokens.split import BETWEEN_DIGITS, PATTERNS, Pattern, Texts
from lmsmith.tokens.tokenizer import END_OF_TEXT_NAMES, Tokenizer, ids_dtype

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

# llama.cpp's names of pre-tokenizations -> our pattern, and whether a piece that is a token is not
# merged.
_PRE: dict[str, tuple[Pattern, bool]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de"), (PATTERNS["gpt2"], False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (PATTERNS["llama3"], True)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), (PATTERNS["llama3"], False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (PATTERNS["qwen2"], False)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell"), (BETWEEN_DIGITS, False)
    ),
}
_BEGINS = ("llama-bpe", "llama3", "llama-v3")  # where llama.cpp adds the BOS token unless told
_NEWLINES = b"\n\r"
_WHITE = frozenset(c.encode()[0] for c in map(chr, range(0x3001)) if c.isspace()) - {10, 13}
_WITHOUT = (
    "Give a tokenizer that fits with --tokenizer FOLDER, or import the weights alone with "
    "--tokenizer none."
)


# ---- read ----------------------------------------------------------------------------------------


def read(metadata: Mapping[str, Any], path: Path, end_of_text: str | None = None) -> Tokenizer:
    """The tokenizer of a file. Raises TokenizerError for one that is damaged or not known here.

    The metadata is turned into the content of a `tokenizer.json`: lmsmith's engine runs it where
    that is exact, and otherwise the library `tokenizers` does. `end_of_text`: the token between
    documents; None: the first of `END_OF_TEXT_NAMES`, or the file's EOS token.
    """
    pattern, whole_tokens = _pattern(metadata, path)
    texts = _strings(metadata, "tokens", path)
    kinds = _kinds(metadata, len(texts), path)
    merges = _strings(metadata, "merges", path)
    if len(texts) > MAX_IDS:
        raise TokenizerError(f"{path} has {len(texts):,} tokens; expected at most {MAX_IDS:,}.")
    ids = {text: number for number, text in enumerate(texts)}
    if len(ids) < len(texts):
        twice = next(text for number, text in enumerate(texts) if ids[text] != number)
        raise TokenizerError(f"{path} has the token {shown(twice)} twice. {_WITHOUT}")
    named = _named_ids(metadata, len(texts), path)
    vocabulary, added = {}, []
    for number, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if kind == _NORMAL and number not in named.values():
            vocabulary[text] = number
            _check_normal(text, path)
        elif kind in (_NORMAL, _CONTROL, _UNKNOWN, _USER_DEFINED):
            added.append(AddedToken(text, number, special=kind != _USER_DEFINED))
        elif kind != _UNUSED:
            raise TokenizerError(
                f"{path} has the token {shown(text)} of type {kind}, which byte-level BPE does "
                f"not have. {_WITHOUT}"
            )
    pairs = [_pair(merge, rank, vocabulary, path) for rank, merge in enumerate(merges, start=1)]
    special = {token.content for token in added if token.special}
    if end_of_text is None and not special & set(END_OF_TEXT_NAMES) and "eos_token" in named:
        end_of_text = texts[named["eos_token"]]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    content = {
        "added_tokens": [vars(token) | flags for token in added],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pattern),
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": whole_tokens,
            # The library numbers added tokens by itself, unless the vocabulary has them too.
            "vocab": vocabulary | {token.content: token.id for token in added},
            "merges": pairs,
        },
    }
    try:
        return from_huggingface(content, path, end_of_text)
    except TokenizerError as error:
        raise TokenizerError(f"{path} has an unusable tokenizer: {error} {_WITHOUT}") from error


_BYTE_LEVEL: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def _pre_tokenizer(pattern: Pattern) -> dict[str, Any]:
    """The pre-tokenizer of a `tokenizer.json` that splits text by a pattern."""
    if pattern == PATTERNS["gpt2"]:
        return _BYTE_LEVEL | {"use_regex": True}
    if pattern == BETWEEN_DIGITS:
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [first, _BYTE_LEVEL | {"use_regex": True}]}
    expression = ONIGURUMA.get(pattern.name, pattern.regex)
    first = {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [first, _BYTE_LEVEL]}


def _check_normal(text: str, path: Path) -> None:
    """Raises TokenizerError for a text that is no token of byte-level BPE."""
    try:
        from_printable(text)
    except KeyError as error:
        raise TokenizerError(
            f"{path} has the token {shown(text)}, which is not one of byte-level BPE: the "
            f"character {error} does not represent a byte. {_WITHOUT}"
        ) from error


def _pattern(metadata: Mapping[str, Any], path: Path) -> tuple[Pattern, bool]:
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise TokenizerError(
            f"{path} has tokenizer.ggml.model = {shown(model)}, and lmsmith reads gpt2 "
            f"(byte-level BPE) from GGUF files. {_WITHOUT}"
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE:
        raise TokenizerError(
            f"{path} has tokenizer.ggml.pre = {shown(pre)}, a pre-tokenization that lmsmith does "
            f"not know: expected {', '.join(_PRE)}. {_WITHOUT}"
        )
    return _PRE[pre]


def _strings(metadata: Mapping[str, Any], name: str, path: Path) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if isinstance(found, np.ndarray) and not len(found):
        return []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        what = "no" if found is None else "something other than a list of strings as"
        raise TokenizerError(
            f"{path} has {what} tokenizer.ggml.{name}: the tokenizer is not complete. {_WITHOUT}"
        )
    return found


def _kinds(metadata: Mapping[str, Any], n: int, path: Path) -> list[int]:
    found = metadata.get("tokenizer.ggml.token_type")
    if found is None:
        return [_NORMAL] * n
    if not isinstance(found, np.ndarray) or len(found) != n:
        raise TokenizerError(
            f"{path} has {n:,} tokens and tokenizer.ggml.token_type is no list of as many "
            f"numbers. {_WITHOUT}"
        )
    return [int(kind) for kind in found]


def _pair(merge: str, rank: int, vocabulary: Mapping[str, int], path: Path) -> list[str]:
    parts = merge.split(" ")
    if len(parts) != 2 or not all(part in vocabulary for part in (*parts, "".join(parts))):
        raise TokenizerError(
            f"{path} has the merge {shown(merge)} (number {rank:,}) in tokenizer.ggml.merges: "
            "expected two tokens of the vocabulary whose concatenation is one too. "
            f"{_WITHOUT}"
        )
    return parts


def _named_ids(metadata: Mapping[str, Any], n: int, path: Path) -> dict[str, int]:
    """Ids of named tokens, by the names of transformers."""
    keys = {
        **{"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown"},
        **{"pad_token": "padding", "eot_token": "eot"},
    }
    found = {}
    for name, key in keys.items():
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is None or number == 0xFFFFFFFF:
            continue
        if type(number) is not int or not 0 <= number < n:
            raise TokenizerError(
                f"{path} has tokenizer.ggml.{key}_token_id = {number}: expected the id of one of "
                f"its {n:,} tokens. {_WITHOUT}"
            )
        found[name] = number
    return found


def limits(metadata: Mapping[str, Any], tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """The ids that stand before and after a text, where these are not the end of text."""
    named = _named_ids(metadata, len(_strings(metadata, "tokens", path)), path)
    begins = metadata.get(
        "tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.pre") in _BEGINS
    )
    ends = list(dict.fromkeys(named[name] for name in ("eos_token", "eot_token") if name in named))
    found: dict[str, Any] = {}
    if begins and "bos_token" in named:
        found["begin"] = named["bos_token"]
    return found | ({"ends": ends} if ends and ends != [tokenizer.end_of_text] else {})


def defaults(metadata: Mapping[str, Any], path: Path) -> Defaults:
    """Named tokens and chat templates, as `interop/defaults.py` keeps them in a run."""
    texts = _strings(metadata, "tokens", path)
    named = _named_ids(metadata, len(texts), path)
    ids = {f"{name}_id": number for name, number in named.items() if name[:3] in _KEPT}
    tokens: dict[str, Any] = {
        name: texts[number] for name, number in named.items() if name != "eot_token"
    }
    if isinstance(adds := metadata.get("tokenizer.ggml.add_bos_token"), bool):
        tokens["add_bos_token"] = adds
    mark = "tokenizer.chat_template"
    templates = {
        key.removeprefix(mark).removeprefix(".") or "default": text
        for key, text in metadata.items()
        if (key == mark or key.startswith(f"{mark}.")) and isinstance(text, str)
    }
    return Defaults(generation=ids, tokenizer=tokens, chat_templates=templates)


_KEPT = ("bos", "eos", "pad")


# ---- write ---------------------------------------------------------------------------------------


def metadata_of(
    tokenizer: Tokenizer,
    n_ids: int,
    *,
    begin: int | None,
    ends: Sequence[int],
    kept: Defaults | None,
) -> dict[str, Any]:
    """The metadata of a tokenizer, for a model of `n_ids` rows.

    `begin` and `ends`: ids before and after a text. `kept`: what an imported model said. Raises
    TokenizerError, with the reason and what to train instead, for a tokenizer that llama.cpp
    cannot run.
    """
    content, pre = _content(tokenizer)
    texts = [f"[UNUSED{number}]" for number in range(n_ids)]
    kinds = [_UNUSED] * n_ids
    for text, number in content["model"]["vocab"].items():
        texts[number], kinds[number] = text, _NORMAL
    for token in content["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": _all_different(texts, kinds),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in content["model"]["merges"]
        ],
    }
    names = dict(kept.tokenizer) if kept else {}
    ids = {text: number for number, text in enumerate(texts)}
    named = {
        key: ids[text]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (text := names.get(f"{name}_token")) in ids
    }
    if begin is not None:
        named["bos"] = begin
    if ends and named.get("eos") not in ends:
        named["eos"] = ends[0]
    others = [end for end in ends if end != named.get("eos")]
    if len(others) == 1:
        named["eot"] = others[0]
    for key, number in named.items():
        found[f"tokenizer.ggml.{key}_token_id"] = number
    found["tokenizer.ggml.add_bos_token"] = bool(names.get("add_bos_token", begin is not None))
    for name, template in (kept.chat_templates if kept else {}).items():
        mark = "" if name == "default" else f".{name}"
        found[f"tokenizer.chat_template{mark}"] = template
    return found


def _content(tokenizer: Tokenizer) -> tuple[dict[str, Any], str]:
    """The content of the tokenizer's `tokenizer.json`, and llama.cpp's name of its
    pre-tokenization. Raises TokenizerError.
    """
    if isinstance(tokenizer, BpeTokenizer):
        pre = _pre_for(tokenizer.pattern, tokenizer.whole_tokens, tokenizer)
        return to_huggingface(tokenizer), pre
    if isinstance(tokenizer, LibraryTokenizer):
        content, why = tokenizer.content, reason_not_exact(tokenizer.content)
        if why is None or why.startswith("tokens for only"):  # llama.cpp drops those bytes too
            pattern = pattern_in(content)
            assert pattern is not None
            return content, _pre_for(pattern, bool(content["model"].get("ignore_merges")))
        what = f"not plain byte-level BPE: it has {why}"
    else:
        what = f"of kind {tokenizer.kind}"
    raise TokenizerError(
        f"This model's tokenizer is {what}, and llama.cpp would not give the same ids. Train the "
        "model with byte-pair encoding (--tokenizer bpe), or export it with --to hf."
    )


def _pre_for(pattern: Pattern, whole_tokens: bool, bpe: BpeTokenizer | None = None) -> str:
    """llama.cpp's name of a pre-tokenization. Raises TokenizerError if it has none."""
    if pattern == PATTERNS["gpt4"] and bpe and not _crosses_newline(bpe):
        # GPT-4's pattern differs from Llama 3's in white space at the end of a text: there it is
        # one piece, and Llama 3's ends after the last newline. Where no merge crosses that place,
        # the ids are the same.
        pattern = PATTERNS["llama3"]
    names = {_PRE[name]: name for name in ("gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "smollm")}
    if name := names.get((pattern, whole_tokens)):
        return name
    if bpe and (name := names.get((pattern, not whole_tokens))) and not _unreached(bpe):
        return name
    if any(pattern == one for one, _ in _PRE.values()):
        why = "does not merge a piece that is a token, which llama.cpp does with this pattern"
    else:
        why = f"splits text by the pattern {pattern.name!r}, which llama.cpp does not have"
    known = ", ".join(sorted({one.name for one, _ in _PRE.values() if one.name in PATTERNS}))
    raise TokenizerError(
        f"This model's tokenizer {why}: the same text would get other ids there. Train the model "
        f"with a tokenizer of one of the patterns {known} (`lmsmith tokenizer train --pattern "
        "llama3`), or export it with --to hf."
    )


def _crosses_newline(tokenizer: BpeTokenizer) -> bool:
    """Whether a token has a newline and, directly after it, other white space."""
    return any(
        first in _NEWLINES and second in _WHITE
        for token in tokenizer.id_of
        for first, second in itertools.pairwise(token)
    )


def _unreached(tokenizer: BpeTokenizer) -> bool:
    """Whether merging the bytes of some token does not give this token."""
    tokens = list(tokenizer.id_of)
    cache = PieceCache(1000, {}, ids_dtype(tokenizer.vocab_size))
    ids, starts = encode_pieces(Texts(tokens), tokenizer.vocabulary.tables, cache)
    reached = (np.diff(starts) == 1) & (ids[starts[:-1]] == list(tokenizer.id_of.values()))
    return not reached.all()


def _all_different(texts: list[str], kinds: Sequence[int]) -> list[str]:
    """The texts, with names of unused ids that no other token has."""
    taken = {text for text, kind in zip(texts, kinds, strict=True) if kind != _UNUSED}
    if len(taken) + sum(kind == _UNUSED for kind in kinds) < len(texts):
        raise TokenizerError(
            "Two tokens of this model's tokenizer have the same text, a special one and one of "
            "its merges. llama.cpp cannot tell them apart: export the model with --to hf."
        )
    for number, kind in enumerate(kinds):
        while kind == _UNUSED and texts[number] in taken:
            texts[number] += "_"
    return texts
