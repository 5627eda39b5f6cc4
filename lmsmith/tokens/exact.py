"""Decides whether lmsmith's engine is exact for a `tokenizer.json`, or why another engine has to
run it.

Only listed features are accepted; everything else is a reason to use the library `tokenizers`. The
tests compare the accepted ones with `tokenizers` character by character over all of Unicode.
Features that do not change the ids of the text itself are ignored: post-processors (special tokens
around a text), truncation, padding, offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmsmith.tokens.printable import from_printable
from lmsmith.tokens.split import BETWEEN_DIGITS, PATTERNS, Pattern, split

# Our patterns in the syntax of Oniguruma, the engine of `tokenizers`: there $ is the end of a line,
# and the + in {1,3}+ is another repetition, not possessive.
ONIGURUMA = {
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|"
        r"\s+(?!\S)|\s"
    ),
    "nanochat": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
}
_KNOWN = {expression: name for name, expression in ONIGURUMA.items()} | {
    PATTERNS[name].regex: name for name in ("o200k", "llama3", "qwen2")
}
_KNOWN |= dict.fromkeys(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ),
    "gpt2",
)


def pattern_in(content: Mapping[str, Any]) -> Pattern | None:
    """Returns the pattern that is equal to the file's pre-tokenizer; None if there is none."""
    before = content.get("pre_tokenizer")
    parts: Sequence[Mapping[str, Any]] = before.get("pretokenizers", [before]) if before else []
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space", True):
        return None
    use_regex = parts[-1].get("use_regex", True)
    if len(parts) == 1 and use_regex:
        return PATTERNS["gpt2"]
    if len(parts) != 2:
        return None
    first = parts[0]
    if first.get("type") == "Digits" and first.get("individual_digits") and use_regex:
        return BETWEEN_DIGITS
    is_split = (
        first.get("type") == "Split"
        and first.get("behavior") == "Isolated"
        and not first.get("invert")
    )
    expression = (first.get("pattern") or {}).get("Regex")
    if is_split and not use_regex and expression in _KNOWN:
        return PATTERNS[_KNOWN[expression]]
    if is_split and not use_regex and expression == BETWEEN_DIGITS.regex:  # saved by lmsmith
        return BETWEEN_DIGITS
    return None


def reason_not_exact(content: Mapping[str, Any]) -> str | None:
    """Returns the first feature of a `tokenizer.json` that lmsmith's engine does not run exactly,
    in words that fit after "it has"; None if it runs all of them.
    """
    return next(_reasons(content), None)


def _reasons(content: Mapping[str, Any]) -> Iterator[str]:
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        yield f"a model of type {model['type']}"
        return
    for flag in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(flag):
            yield f"{flag} in its model"
    if content.get("normalizer") is not None:
        yield f"a normalizer ({_kinds(content['normalizer'], 'normalizers')})"
    before, pattern = content.get("pre_tokenizer"), pattern_in(content)
    if pattern is None:
        yield (
            f"a pre_tokenizer that is not known to equal one of lmsmith's patterns "
            f"({_kinds(before, 'pretokenizers')})"
        )
    if (content.get("decoder") or {}).get("type") != "ByteLevel":
        yield f"a decoder ({_kinds(content.get('decoder'), 'decoders')}) that is not ByteLevel"
    yield from _reasons_in_vocabulary(model, content.get("added_tokens") or (), pattern)


def _reasons_in_vocabulary(
    model: Mapping[str, Any], added: Sequence[Mapping[str, Any]], pattern: Pattern | None
) -> Iterator[str]:
    vocabulary = model["vocab"]
    if not isinstance(vocabulary, dict):
        return  # loading it raises the error
    merges = model["merges"]
    pairs = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges
    ]
    if len(set(pairs)) < len(pairs):
        yield "the same merge twice"
    contents = {token["content"]: token for token in added}
    if len(contents) < len(added):
        yield "the same added token twice"
    used = {part for pair in pairs for part in (*pair, "".join(pair))}
    for text, token in contents.items():
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            yield f"an added token {text!r} with lstrip, rstrip or single_word"
        if text == "" or _changed_by_decoding(text):
            yield f"an added token {text!r} that is empty or changed by the ByteLevel decoder"
        if text in vocabulary:
            one_piece = pattern is not None and len(split(text.encode(), pattern)) == 1
            if text in used or len(text) == 1 or (model.get("ignore_merges") and one_piece):
                yield f"an added token {text!r} that is also a token of its merges"
            if vocabulary[text] != token["id"]:
                yield f"an added token {text!r} with a different id in the vocabulary"
    ids = [i for text, i in vocabulary.items() if text not in contents]
    if len(set(ids)) < len(ids):
        yield "two tokens with the same id"
    single_bytes = set()
    for text in vocabulary.keys() - contents.keys():
        try:
            written = from_printable(text)
        except KeyError:
            yield f"a token {text!r} that is not in ByteLevel's encoding of bytes"
            return
        if len(written) == 1:
            single_bytes.add(written)
    if len(single_bytes) < 256:
        yield f"tokens for only {len(single_bytes)} of the 256 bytes"


def _changed_by_decoding(text: str) -> bool:
    """Returns whether the ByteLevel decoder turns an added token into other bytes than its text."""
    try:
        return from_printable(text) != text.encode()
    except KeyError:
        return False


def _kinds(part: Mapping[str, Any] | None, several: str) -> str:
    if part is None:
        return "none"
    return ", ".join(str(one.get("type")) for one in part.get(several, [part]))
