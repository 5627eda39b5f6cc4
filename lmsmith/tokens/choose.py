"""Loads or learns the tokenizer named by `--tokenizer`.

    choose_tokenizer("auto", texts, several=True)   # for a run, with all training texts in memory
    named_tokenizer("bpe:16384")                    # None: this tokenizer has to be learned
    learn_tokenizer("bpe:16384", stream_of_texts)   # learns it, reading the texts once

Kinds: byte, char, word, bpe:SIZE, gpt2, or the folder of a tokenizer. `auto` chooses by the
training text, so it needs all of it: byte-pair encoding for a large text, otherwise characters if
few distinct ones occur, otherwise bytes.
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

MAX_CHARACTERS = 300
"""`auto` uses bytes instead of characters for a vocabulary larger than this."""

LARGE, LARGER = 5_000_000, 200_000_000
"""From these lengths in characters, `auto` learns a BPE vocabulary of 2,048 or of 8,192 entries
(`docs/performance.md`).
"""

KINDS = "byte, char, word, bpe:SIZE and gpt2"


def choose_tokenizer(wanted: str, texts: Sequence[str], *, several: bool) -> Tokenizer:
    """Returns the tokenizer of a run: loaded, or learned from the training texts.

    `several`: the text has document boundaries, so an end-of-text token is needed. Raises
    ConfigError for an unknown kind and for a tokenizer without the needed end-of-text token,
    TokenizerError for a tokenizer that cannot be loaded or learned.
    """
    if wanted == "auto":
        return _learn_auto(texts, several)
    tokenizer = named_tokenizer(wanted, end_of_text=several, kinds=f"auto, {KINDS}")
    if tokenizer is None:
        return learn_tokenizer(wanted, texts, end_of_text=several)
    if several:
        check_end_of_text(tokenizer, wanted)
    return tokenizer


def named_tokenizer(
    wanted: str, *, end_of_text: bool = True, kinds: str = KINDS
) -> Tokenizer | None:
    """Returns the tokenizer of this name or folder; None if it has to be learned.

    `end_of_text`: whether a byte tokenizer gets an end-of-text token. `kinds`: the kinds to list in
    the error. Raises ConfigError for a kind or folder that does not exist, TokenizerError for a
    damaged tokenizer.
    """
    if wanted == "byte":
        return ByteTokenizer(end_of_text)
    kind, _, size = wanted.partition(":")
    if wanted in ("char", "word") or (kind == "bpe" and size.isdecimal()):
        return None
    if kind == "bpe":
        raise ConfigError(
            f"tokenizer = {wanted!r}: expected bpe:SIZE with a vocabulary size, as in bpe:4096."
        )
    if wanted != "gpt2" and not Path(wanted).exists():
        raise ConfigError(
            f"tokenizer = {wanted!r}: not a kind of tokenizer and not an existing folder. Kinds "
            f"are {kinds}."
        )
    return load_tokenizer(wanted)


def learn_tokenizer(wanted: str, texts: Iterable["Text"], *, end_of_text: bool = True) -> Tokenizer:
    """Learns a tokenizer of the kind char, word or bpe:SIZE. `texts` is iterated once; a long text
    can be an iterable of parts.

    Raises TokenizerError if the texts are empty or the vocabulary is too small.
    """
    if wanted == "char":
        return CharTokenizer.learn((part for text in texts for part in _parts(text)), end_of_text)
    if wanted == "word":
        return WordTokenizer.learn(("".join(_parts(text)) for text in texts), end_of_text)
    from lmsmith.tokens.bpe_train import learn_bpe  # imports Numba, which takes half a second

    size = int(wanted.removeprefix("bpe:"))
    return learn_bpe(texts, size, special_tokens=[END_OF_TEXT] if end_of_text else [])


def check_end_of_text(tokenizer: Tokenizer, name: str) -> None:
    """Raises ConfigError for a tokenizer without an end-of-text token, which separates
    documents.
    """
    if tokenizer.end_of_text is None:
        raise ConfigError(
            f"the tokenizer {name} has no end-of-text token, which is needed before each "
            f"document. Learn a tokenizer that has one: `lmsmith tokenizer train`, or "
            "--tokenizer bpe:SIZE."
        )


def _learn_auto(texts: Sequence[str], end_of_text: bool) -> Tokenizer:
    """Learns the tokenizer that `auto` selects: by the length of the text and the number of
    distinct characters.
    """
    if (n_characters := sum(map(len, texts))) >= LARGE:
        size = 2048 if n_characters < LARGER else 8192
        return learn_tokenizer(f"bpe:{size}", texts, end_of_text=end_of_text)
    learned = CharTokenizer.learn(texts, end_of_text)
    return learned if learned.vocab_size <= MAX_CHARACTERS else ByteTokenizer(end_of_text)


def _parts(text: "Text") -> Iterator[str]:
    """Yields the parts of a text as str. Parts given as bytes must end between characters."""
    if isinstance(text, str):
        yield text
    elif isinstance(text, bytes):
        yield text.decode()
    else:
        yield from (part.decode() for part in text)
