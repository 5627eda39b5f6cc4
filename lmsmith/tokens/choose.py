"""Chooses the tokenizer that `--tokenizer` asks for: loads it, or learns it from the training text.

    choose_tokenizer("auto", texts, several=True)      # a run: all training texts are in memory
    named_tokenizer("bpe:16384")                       # None: it has to be learned ...
    learn_tokenizer("bpe:16384", stream_of_texts)      # ... from texts that are read one after the
                                                       # other

Kinds: byte, char, word, bpe:SIZE, gpt2, or the folder of a tokenizer. `auto` looks at the training
text first, so it needs all of it: characters while there are few distinct ones, bytes otherwise,
merged in pairs where the text is large.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith.errors import ConfigError
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
)

if TYPE_CHECKING:
    from lmsmith.tokens.piece_counts import Text

MOST_CHARACTERS = 300
"""`auto` reads a text with more distinct characters than this byte by byte, not character by
character.
"""

LARGE, LARGER = 5_000_000, 200_000_000
"""Characters of text from which on `auto` learns a BPE vocabulary of 2,048 or of 8,192
(`docs/performance.md`).
"""

KINDS = "byte, char, word, bpe:SIZE and gpt2"


def choose_tokenizer(wanted: str, texts: Sequence[str], *, several: bool) -> Tokenizer:
    """The tokenizer of a run, learned from the training texts where it has to be.

    `several`: there are document boundaries, so an end-of-text token is needed. Raises ConfigError
    for a kind that does not exist and for a tokenizer without a token that is needed,
    TokenizerError for one that cannot be loaded or learned.
    """
    if wanted == "auto":
        return _fitting(texts, several)
    found = named_tokenizer(wanted, end_of_text=several, kinds=f"auto, {KINDS}")
    if found is None:
        return learn_tokenizer(wanted, texts, end_of_text=several)
    if several:
        check_end_of_text(found, wanted)
    return found


def named_tokenizer(
    wanted: str, *, end_of_text: bool = True, kinds: str = KINDS
) -> Tokenizer | None:
    """The tokenizer of this name or folder; None if it has to be learned.

    `end_of_text`: whether a tokenizer of bytes has that token. `kinds`: named in the error.
    Raises ConfigError for a kind or folder that does not exist, TokenizerError for a damaged one.
    """
    if wanted == "byte":
        return ByteTokenizer(end_of_text)
    kind, _, size = wanted.partition(":")
    if wanted in ("char", "word") or (kind == "bpe" and size.isdecimal()):
        return None
    if kind == "bpe":
        raise ConfigError(
            f"tokenizer = {wanted!r}: wanted bpe:SIZE with a vocabulary's size, as in bpe:4096."
        )
    if wanted != "gpt2" and not Path(wanted).exists():
        raise ConfigError(
            f"tokenizer = {wanted!r}: there is no such kind, and no such folder. Kinds are {kinds}."
        )
    return load_tokenizer(wanted)


def learn_tokenizer(wanted: str, texts: Iterable["Text"], *, end_of_text: bool = True) -> Tokenizer:
    """Learns a tokenizer of the kind char, word or bpe:SIZE. `texts` is read once; long texts may
    come in parts.

    Raises TokenizerError where nothing can be learned.
    """
    if wanted == "char":
        return CharTokenizer.learn((part for text in texts for part in _parts(text)), end_of_text)
    if wanted == "word":
        return WordTokenizer.learn(("".join(_parts(text)) for text in texts), end_of_text)
    from lmsmith.tokens.bpe_train import learn_bpe  # imports Numba, which takes half a second

    size = int(wanted.removeprefix("bpe:"))
    return learn_bpe(texts, size, special_tokens=[END_OF_TEXT] if end_of_text else [])


def check_end_of_text(tokenizer: Tokenizer, name: str) -> None:
    """Raises ConfigError for a tokenizer without the token that stands before each of several
    documents.
    """
    if tokenizer.end_of_text is None:
        raise ConfigError(
            f"the tokenizer {name} has no end-of-text token, which has to stand before each "
            f"document. Learn one that "
            "has: `lmsmith tokenizer train`, or --tokenizer bpe:SIZE."
        )


def _fitting(texts: Sequence[str], end_of_text: bool) -> Tokenizer:
    """What `auto` stands for, by the length of the text and the number of its characters."""
    if (n_characters := sum(map(len, texts))) >= LARGE:
        size = 2048 if n_characters < LARGER else 8192
        return learn_tokenizer(f"bpe:{size}", texts, end_of_text=end_of_text)
    learned = CharTokenizer.learn(texts, end_of_text)
    return learned if learned.vocab_size <= MOST_CHARACTERS else ByteTokenizer(end_of_text)


def _parts(text: "Text") -> Iterator[str]:
    """The parts of a text, which are cut between characters."""
    if isinstance(text, str):
        yield text
    elif isinstance(text, bytes):
        yield text.decode()
    else:
        yield from (part.decode() for part in text)
