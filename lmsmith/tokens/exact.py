"""Which `tokenizer.json` our engine does exactly: what it says, or why another engine has to run
it.

Everything that a file can say is on a list here or is a reason. What is known to be equal,
character by character and over all of Unicode, is held against `tokenizers` by the tests. What does
not change the ids of a text by itself is left alone: post-processors (special tokens around a
text), truncation, padding, offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmsmith.tokens.printable import from_printable
from lmsmith.tokens.split import BETWEEN_DIGITS, PATTERNS, Pattern, split

# Expressions in the dialect of Oniguruma, which `tokenizers` uses: there $ is the end of a line,
# and {1,3}+ repeats.
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
    """The pattern that a file's pre-tokenizer is; None if it is not known."""
    before = content.get("pre_tokenizer")
    parts: Sequence[Mapping[str, Any]] = before.get("pretokenizers", [before]) if before else []
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space", True):
        return None
    whole = parts[-1].get("use_regex", True)
    if len(parts) == 1 and whole:
        return PATTERNS["gpt2"]
    if len(parts) != 2:
        return None
    first = parts[0]
    if first.get("type") == "Digits" and first.get("individual_digits") and whole:
        return BETWEEN_DIGITS
    cuts = (
        first.get("type") == "Split"
        and first.get("behavior") == "Isolated"
        and not first.get("invert")
    )
    expression = (first.get("pattern") or {}).get("Regex")
    if cuts and not whole and expression in _KNOWN:
        return PATTERNS[_KNOWN[expression]]
    if cuts and not whole and expression == BETWEEN_DIGITS.regex:  # as we write the one above
        return BETWEEN_DIGITS
    return None


def why_not_ours(content: Mapping[str, Any]) -> str | None:
    """What in a `tokenizer.json` our engine does not do exactly, in words; None if there is
    nothing.
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
            f"a pre_tokenizer that is not known to be one of ours "
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
        return  # whoever reads it says that it is damaged
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
            yield f"an added token {text!r} that takes in white space or stands alone"
        if text == "" or _changed_by_decoding(text):
            yield f"an added token {text!r} that is empty or written as ByteLevel writes bytes"
        if text in vocabulary:
            one_piece = pattern is not None and len(split(text.encode(), pattern)) == 1
            if text in used or len(text) == 1 or (model.get("ignore_merges") and one_piece):
                yield f"an added token {text!r} that its merges use too"
            if vocabulary[text] != token["id"]:
                yield f"an added token {text!r} with another id in the vocabulary"
    ids = [i for text, i in vocabulary.items() if text not in contents]
    if len(set(ids)) < len(ids):
        yield "two tokens with one id"
    bytes_there = set()
    for text in vocabulary.keys() - contents.keys():
        try:
            written = from_printable(text)
        except KeyError:
            yield f"a token {text!r} that is not written as ByteLevel writes bytes"
            return
        if len(written) == 1:
            bytes_there.add(written)
    if len(bytes_there) < 256:
        yield f"tokens for {len(bytes_there)} of the 256 bytes alone"


def _changed_by_decoding(text: str) -> bool:
    """Whether the decoder ByteLevel makes other bytes of an added token than its text has."""
    try:
        return from_printable(text) != text.encode()
    except KeyError:
        return False


def _kinds(part: Mapping[str, Any] | None, several: str) -> str:
    if part is None:
        return "none"
    return ", ".join(str(one.get("type")) for one in part.get(several, [part]))
