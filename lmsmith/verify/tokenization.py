"""Byte-pair encoding against its definition: one merge at a time, over all pairs."""

from __future__ import annotations

import itertools
from collections import Counter

from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.foreign import to_huggingface
from lmsmith.tokens.split import pattern_of
from lmsmith.tokens.tokenizer import END_OF_TEXT
from lmsmith.verify.registry import equivalence, package, unequal

TEXT = (
    "The cat sat on the mat; the cats' mats sat there. It's 1234 o'clock, isn't it?  \n\n"
    "Der Löwe läuft, 雪が降る, naïve café, 😀😀.\t def f(x):\n    return x ** 2\r\n"
) * 3
OTHER = "there's a 56789 in the Löwe's café: cats cat ca c  \n<|endoftext|> 雪 ✓ def  mat"


def _pieces(pattern: str, text: str) -> list[bytes]:
    import regex

    return [piece.encode() for piece in regex.findall(pattern_of(pattern).regex, text)]


def _learned(n_merges: int) -> list[tuple[bytes, bytes]]:
    """The most frequent pair at a time; of equally frequent ones the largest pair of bytes."""
    words = Counter(tuple(bytes([b]) for b in piece) for piece in _pieces("gpt4", TEXT))
    merges = list[tuple[bytes, bytes]]()
    while len(merges) < n_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[bytes, ...]] = Counter()
        for word, count in words.items():
            merged[_merge(word, best)] += count
        words = merged
    return merges


def _merge(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    found: list[bytes] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            found.append(word[i] + word[i + 1])
            i += 2
        else:
            found.append(word[i])
            i += 1
    return tuple(found)


def encoded_by_merges(tokenizer: BpeTokenizer, text: str) -> list[int]:
    """Applies the merges one after the other to each piece."""
    ids = {token: n for n, token in enumerate(tokenizer.tokens) if token is not None}
    found = []
    for piece in _pieces("gpt4", text):
        word = tuple(bytes([b]) for b in piece)
        for pair in tokenizer.merged_bytes():
            word = _merge(word, pair)
        found += [ids[token] for token in word]
    return found


@equivalence("learned merges", "learning BPE; pair by pair", bound=0.0)
def learned_merges() -> float:
    tokenizer = learn_bpe([TEXT], 256 + 60 + 1)
    return unequal(list(tokenizer.merged_bytes()), _learned(60))


@equivalence("encoding", "ids of a text; merges one by one", bound=0.0)
def encoding() -> float:
    """A special token typed in the text is encoded as text."""
    tokenizer, worst = learn_bpe([TEXT], 256 + 60 + 1), 0.0
    for text in (TEXT, OTHER, "", "a", "\r\n", OTHER * 50):
        ids = tokenizer.encode(text)
        worst = max(worst, unequal(ids.tolist(), encoded_by_merges(tokenizer, text)))
        worst = max(worst, unequal(tokenizer.decode(ids), text))
        worst = max(worst, unequal(tokenizer.end_of_text in ids, False))
    return worst


@equivalence("tiktoken", "our ids; tiktoken's", bound=0.0)
def with_tiktoken() -> float:
    tiktoken = package("tiktoken")
    tokenizer = learn_bpe([TEXT], 256 + 60 + 1)
    ranks = {token: n for n, token in enumerate(tokenizer.tokens) if token is not None}
    assert tokenizer.end_of_text is not None
    theirs = tiktoken.Encoding(
        "verify",
        pat_str=pattern_of("gpt4").regex,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: tokenizer.end_of_text},
    )
    return max(
        unequal(tokenizer.encode(text).tolist(), theirs.encode_ordinary(text))
        for text in (TEXT, OTHER)
    )


@equivalence("tokenizers", "our ids; Hugging Face tokenizers'", bound=0.0)
def with_tokenizers() -> float:
    tokenizers = package("tokenizers")
    from lmsmith.strict_json import to_json

    tokenizer = learn_bpe([TEXT], 256 + 60 + 1)
    theirs = tokenizers.Tokenizer.from_str(to_json(to_huggingface(tokenizer)))
    return max(
        unequal(tokenizer.encode(text).tolist(), theirs.encode(text).ids)
        for text in (TEXT, OTHER.replace(END_OF_TEXT, ""))
    )
