"""Small `tokenizer.json` files with many combinations of components, written by the library
`tokenizers` itself. lmsmith's engine runs those in `OURS`, the library those in `OTHERS`.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors, trainers  # noqa: E402
from tokenizers import normalizers as N  # noqa: E402
from tokenizers import pre_tokenizers as P  # noqa: E402

from lmsmith.tokens.exact import ONIGURUMA  # noqa: E402
from lmsmith.tokens.split import BETWEEN_DIGITS, PATTERNS  # noqa: E402

LEARNED_FROM = [
    "Don't the cats' hats fit?  中文字 中文, 12345 naïve\n\n\tdef f(x): return x\r\n  и так далее… ",
    "the quick brown fox jumps over the lazy dog and returns the   value of x in 2024, isn't it?",
    "हिन्दी العربية ünïcödé e\u0301 ﬁne Ⅷ ² ½ 😀 <think> if x: return",
] * 4
END = "<|endoftext|>"
GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HAN = (
    r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}{1,3}| "
    r"?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def byte_level(prefix: bool = False, use_regex: bool = True) -> Any:
    return P.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def after(*parts: Any) -> Any:
    return P.Sequence([*parts, byte_level(use_regex=False)])


def split(expression: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return P.Split(Regex(expression), behavior, invert)


def make(
    model: str = "bpe",
    pre: Any = None,
    *,
    normalizer: Any = None,
    decoder: Any = None,
    post: Any = None,
    added: tuple[Any, ...] = (),
    end: bool = True,
    change: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The content of a `tokenizer.json` with these components and a vocabulary learned from a few
    lines.
    """
    unknown = {} if model == "bpe" else {"unk_token": "[UNK]"}
    kinds = {
        "bpe": (models.BPE(**options), trainers.BpeTrainer),
        "wordpiece": (models.WordPiece(unk_token="[UNK]", **options), trainers.WordPieceTrainer),
        "wordlevel": (models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer),
        "unigram": (models.Unigram(), trainers.UnigramTrainer),
    }
    untrained, trainer = kinds[model]
    engine = Tokenizer(untrained)
    if normalizer is not None:
        engine.normalizer = normalizer
    if pre is not None:
        engine.pre_tokenizer = pre
    engine.decoder = (
        decoder if decoder is not None else (decoders.ByteLevel() if model == "bpe" else None)
    )
    settings: dict[str, Any] = {"vocab_size": 380, "show_progress": False}
    if model == "bpe":
        settings["initial_alphabet"] = P.ByteLevel.alphabet()
    elif model == "unigram":
        settings |= unknown | {"special_tokens": ["[UNK]"]}
    else:
        settings |= {"special_tokens": ["[UNK]"]}
    engine.train_from_iterator(LEARNED_FROM, trainer(**settings))
    if end:
        engine.add_special_tokens([END])
    for token in added:
        (engine.add_special_tokens if token.special else engine.add_tokens)([token])
    if post is not None:
        engine.post_processor = post(engine)
    content: dict[str, Any] = json.loads(engine.to_str())
    if change is not None:
        change(content)
    return content


def template(single: str, *names: str) -> Callable[[Any], Any]:
    return lambda engine: processors.TemplateProcessing(
        single=single, special_tokens=[(name, engine.token_to_id(name)) for name in names]
    )


def _model(**parts: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(parts)


def _byte_fallback(content: dict[str, Any]) -> None:
    """As in Llama 2: tokens of characters, and of single bytes for unknown characters."""
    vocabulary = content["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", 1000 + byte)
    renumbered = {text: i for i, text in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    content["model"] |= {
        "vocab": renumbered,
        "byte_fallback": True,
        "unk_token": None,
        "fuse_unk": True,
    }
    for token in content["added_tokens"]:
        token["id"] = renumbered.setdefault(token["content"], len(renumbered))


LLAMA = {
    "normalizer": N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
    "decoder": decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    ),
}
METASPACE = {"pre": P.Metaspace(), "decoder": decoders.Metaspace()}


def token(text: str, special: bool = False, **flags: bool) -> Any:
    return AddedToken(text, special=special, **{"normalized": False} | flags)


OURS: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt2": lambda: make(pre=byte_level()),
    "gpt2 without an end": lambda: make(pre=byte_level(), end=False),
    **{
        f"split {name}": lambda name=name: make(
            pre=after(
                split(ONIGURUMA.get(name, PATTERNS[name].regex if name != "gpt2" else GPT2_REGEX))
            )
        )
        for name in PATTERNS
    },
    "gpt2, other spelling": lambda: make(
        pre=after(
            split(GPT2_REGEX.replace(r"\p{L}+", r"[\p{L}]+").replace(r" ?\p{N}+", r" ?[\p{N}]+"))
        )
    ),
    "digits first": lambda: make(pre=P.Sequence([P.Digits(individual_digits=True), byte_level()])),
    "digits first, saved by lmsmith": lambda: make(pre=after(split(BETWEEN_DIGITS.regex))),
    "ignore_merges": lambda: make(pre=byte_level(), change=_model(ignore_merges=True)),
    "empty prefix and suffix": lambda: make(
        pre=byte_level(), change=_model(continuing_subword_prefix="", end_of_word_suffix="")
    ),
    "an unknown token that never occurs": lambda: make(
        pre=byte_level(), change=_model(unk_token=END)
    ),
    "blanks": lambda: make(pre=byte_level(), added=tuple(token(" " * n) for n in range(9, 1, -1))),
    "blanks, normalized": lambda: make(
        pre=byte_level(), added=tuple(token(" " * n, normalized=True) for n in range(2, 9))
    ),
    "think and tool_call": lambda: make(
        pre=after(split(PATTERNS["qwen2"].regex)),
        added=(token("<think>"), token("</think>"), token("<tool_call>")),
    ),
    "one before another": lambda: make(
        pre=byte_level(),
        added=(token("x:", normalized=True), token("if x"), token(": r", normalized=True)),
    ),
    "a special token that hides another": lambda: make(
        pre=byte_level(), added=(token("<a>b", special=True), token("b c"), token("<a>"))
    ),
    "a special token that is normalized": lambda: make(
        pre=byte_level(), added=(token("return", special=True, normalized=True), token("turn"))
    ),
    "a word": lambda: make(pre=byte_level(), added=(token("quickest"), token("日本"))),
    "bos in front": lambda: make(pre=byte_level(), post=template(f"{END} $A", END)),
    "two around": lambda: make(
        pre=byte_level(),
        added=(token("<s>", special=True),),
        post=template(f"<s> $A {END}", "<s>", END),
    ),
}
OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        f"normalizer {name}": lambda part=part: make(pre=byte_level(), normalizer=part)
        for name, part in {
            "NFC": N.NFC(),
            "NFKC": N.NFKC(),
            "NFD": N.NFD(),
            "Lowercase": N.Lowercase(),
            "Prepend": N.Prepend("x"),
            "Replace": N.Replace(Regex(r"\s+"), " "),
            "Strip": N.Strip(),
            "StripAccents": N.Sequence([N.NFD(), N.StripAccents()]),
            "Sequence": N.Sequence([N.NFKC(), N.Lowercase(), N.Replace("e", "3")]),
        }.items()
    },
    "qwen2": lambda: make(
        pre=after(split(PATTERNS["qwen2"].regex)), normalizer=N.NFC(), added=(token("<think>"), token("e\u0301"))
    ),
    "normalized tokens after NFC": lambda: make(
        pre=byte_level(), normalizer=N.NFC(), added=(token("e\u0301", normalized=True),)
    ),
    **{
        f"split {behavior}{' inverted' * invert}": lambda behavior=behavior, invert=invert: make(
            pre=after(split(r"\s+", behavior, invert))
        )
        for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous")
        for invert in (False, True)
    },
    "split by a string": lambda: make(pre=after(P.Split(" ", "merged_with_next"))),
    "han": lambda: make(pre=after(split(HAN))),
    "nested classes": lambda: make(pre=after(split(r"[a-z[A-Z]]+|\s+|[^\sa-zA-Z]+"))),
    "possessive bounds": lambda: make(pre=after(split(r"\p{N}{1,3}+|\p{L}+|\s+|."))),
    "lines": lambda: make(pre=after(split(r"^\s+|\s+$|\w+"))),
    "a dot over lines": lambda: make(pre=after(split(r"(?m:.)"))),
    "hexadecimal": lambda: make(pre=after(split(r"\h+|\H"))),
    "code points": lambda: make(pre=after(split(r"[\x{4e00}-\x{9fa5}]+"))),
    "tiktoken's gpt4": lambda: make(pre=after(split(PATTERNS["gpt4"].regex))),
    "tiktoken's gpt2": lambda: make(pre=after(split(PATTERNS["gpt2"].regex))),
    "bloom": lambda: make(pre=after(split(" ?[^(\\s|[.,!?…。\uff0c、।\u06d4،])]+"))),
    "several splits": lambda: make(
        pre=after(split(r"\p{N}{1,3}"), split(r"[一-龥\x{3040}-\x{30ff}]+"), split(r"[!-/:-~]+|[\r\n]+| ?\p{L}+"))
    ),
    "digits together": lambda: make(pre=P.Sequence([P.Digits(individual_digits=False), byte_level()])),
    "punctuation": lambda: make(pre=P.Sequence([P.Punctuation("isolated"), byte_level()])),
    "whitespace": lambda: make(pre=P.Sequence([P.Whitespace(), byte_level()])),
    "prefix space": lambda: make(pre=byte_level(prefix=True)),
    "no regex": lambda: make(pre=byte_level(use_regex=False)),
    "llama 2": lambda: make(**LLAMA, change=_byte_fallback),
    "llama 2 with a space before": lambda: make(
        **LLAMA, added=(token("<s>", special=True),), post=template("<s> $A", "<s>"), change=_byte_fallback
    ),
    "metaspace": lambda: make(**METASPACE),
    "metaspace first": lambda: make(pre=P.Metaspace(prepend_scheme="first"), decoder=decoders.Metaspace()),
    "unigram": lambda: make("unigram", **METASPACE),
    "unigram by itself": lambda: make("unigram", decoder=decoders.Fuse()),
    "wordpiece": lambda: make(
        "wordpiece", P.BertPreTokenizer(), normalizer=N.BertNormalizer(), decoder=decoders.WordPiece()
    ),
    "wordpiece, cased": lambda: make(
        "wordpiece", P.Whitespace(), decoder=decoders.WordPiece(cleanup=False), max_input_chars_per_word=9
    ),
    "wordlevel": lambda: make("wordlevel", P.Whitespace()),
    "wordlevel, digits": lambda: make("wordlevel", P.Sequence([P.WhitespaceSplit(), P.Digits(True)])),
    "suffix": lambda: make(
        pre=P.WhitespaceSplit(), decoder=decoders.BPEDecoder("</w>"), end_of_word_suffix="</w>"
    ),
    "ctc": lambda: make("wordlevel", split("", "isolated"), decoder=decoders.CTC()),
    "no decoder": lambda: make(pre=byte_level(), change=lambda content: content.update(decoder=None)),
    "a decoder that looks ahead": lambda: make(pre=byte_level(), decoder=decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("e t", "-")])),
    "lstrip": lambda: make(pre=byte_level(), added=(token("<mask>", special=True, lstrip=True),)),
    "rstrip": lambda: make(pre=byte_level(), added=(token("<think>", rstrip=True), token("<a>", rstrip=True))),
    "single_word": lambda: make(pre=byte_level(), added=(token("the", single_word=True),)),
    "all flags": lambda: make(
        pre=byte_level(),
        normalizer=N.Lowercase(),
        added=(token("THE", lstrip=True, rstrip=True, single_word=True, normalized=True), token("Fox", rstrip=True)),
    ),
    "an added token in the merges": lambda: make(pre=byte_level(), added=(token("he"), token("a"))),
    "an added token that looks like bytes": lambda: make(pre=byte_level(), added=(token("Ġfoo"), token("é"))),
    "truncation and padding": lambda: make(
        pre=byte_level(prefix=True),
        change=lambda content: content.update(
            truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "!"},
        ),
    ),
}  # fmt: skip


def all_constructions() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    yield from OURS.items()
    yield from OTHERS.items()
