"""The tokenizer interface, and the byte, character and word tokenizers.

A tokenizer maps text to ids 0 .. vocab_size - 1 and back. Text that a tokenizer cannot represent is
never lost silently: `count_unknown` returns the number of unknown units in a text, `unknown_bytes`
the number of bytes that the ids do not encode. Evaluation charges for these bytes, so a tokenizer
does not score better by representing less of the text. Per kind:

| kind | unknown units | in the ids | cost in evaluation |
|---|---|---|---|
| byte | lone surrogates (not encodable in UTF-8) | U+FFFD | the loss of those ids |
| char | characters not in the training text | skipped (`skips_unknown`) | 8 bits per byte, and their positions |
| word | words outside the vocabulary | `<unk>` | the loss of `<unk>`, 8 bits per byte of the word, and its end |
| bpe | as byte | U+FFFD | the loss of those ids |
| library | words that decoding does not restore | depends on the file | 8 bits per byte, and their positions |

Some vocabularies have ids without a token: gaps between the tokens and the special tokens of
cl100k, or extra rows in a model's embedding table. `ids_without_token` lists them. No text is
encoded to them, they decode to the empty string, and generation never samples them. Evaluation does
not renormalize: probability that a model gives them counts as loss.

`end_of_text` is the id between documents. The byte, character and word tokenizers give it the last
id. `encode` treats its whole input as plain text: "<|endoftext|>" typed by a user never becomes
the special id. Ids are uint16 if the vocabulary fits, otherwise uint32, as in the shards.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.strict_json import to_json

log = logging.getLogger(__name__)

Ids = npt.NDArray[np.uint16 | np.uint32]
IdsLike = Sequence[int] | npt.NDArray[np.integer[Any]]

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|bos|>")
"""Names of the end-of-text token in GPT-2, Llama 3, Mistral, Gemma and nanochat. The first one in
the vocabulary is used.
"""

UNKNOWN = "<unk>"


class Tokenizer(ABC):
    """Encodes text to ids and decodes ids to text.

        tok = lmsmith.Tokenizer.train("book.txt", vocab_size=4096)
        tok.decode(tok.encode("It was"))
        tok.save("tok")
        tok = lmsmith.Tokenizer.load("tok")

    `vocab_size`: number of ids. `end_of_text`: the id between documents, or None if the
    tokenizer has no such token.
    """

    kind: ClassVar[str]
    vocab_size: int
    end_of_text: int | None
    skips_unknown: ClassVar[bool] = False  # encoding skips unknown units
    # decode_bytes(a + b) == decode_bytes(a) + decode_bytes(b) for all lists of ids
    decodes_bytes: bool = True
    # decode(a + b) starts with decode(a), unless the last id of `a` is in `open_ids`
    streams: bool = True
    open_ids: frozenset[int] = frozenset()

    @staticmethod
    def train(
        sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        vocab_size: int,
        *,
        out: str | os.PathLike[str] | None = None,
        special: Sequence[str] = (END_OF_TEXT,),
        eos_token: str | None = None,
        pattern: str = "gpt4",
        ties: Literal["bytes", "ids", "huggingface"] = "bytes",
        threads: int | None = None,
        max_memory: int | None = None,
        text_field: str = "text",
        encoding: str = "auto",
        errors: Literal["strict", "replace"] = "strict",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Tokenizer:
        """Learns byte-pair encoding from text files, folders or globs.

        vocab_size  number of entries, special tokens included
        out         new folder to save to; None: do not save
        special     special tokens
        eos_token   the special token between documents; None: the first of `special` with a
                    common name such as <|endoftext|>
        pattern     pre-tokenization pattern: gpt2, gpt4, o200k, nanochat, llama3, qwen2, or a
                    regular expression
        ties        how to break ties between equally frequent pairs
        threads     None: one per core
        max_memory  limit in bytes; rare pieces are dropped to stay within it; None: no limit
        text_field, encoding, errors: how to read the text, as the settings `data.*`
        progress    called with ("count" or "merge", done, total)

        Raises TokenizerError for an invalid vocabulary size or pattern, and if `out` already
        contains a tokenizer; DataError for text that cannot be read.
        """
        from lmsmith.tokens.learn import train_tokenizer  # imports Numba, which is slow

        paths = [sources] if isinstance(sources, str | os.PathLike) else sources
        tokenizer, notes = train_tokenizer(
            [os.fspath(path) for path in paths],
            vocab_size,
            None if out is None else Path(out),
            pattern=pattern,
            special_tokens=special,
            ties=ties,
            threads=threads,
            max_memory=max_memory,
            text_field=text_field,
            encoding=encoding,
            errors=errors,
            progress=progress,
            end_of_text=eos_token,
        )
        for note in notes:
            log.warning("%s", note)
        return tokenizer

    @staticmethod
    def load(
        source: str | os.PathLike[str],
        *,
        pattern: str | None = None,
        special: Mapping[str, int] | None = None,
        eos_token: str | None = None,
    ) -> Tokenizer:
        """Loads a tokenizer from a folder or file (lmsmith, Hugging Face, GPT-2 or tiktoken
        format), from a run, or by the name gpt2.

        `pattern` and `special` (token -> id) are for tiktoken files, which do not contain them.
        `eos_token`: the token between documents. Raises TokenizerError for a file that is missing,
        damaged or not a tokenizer.
        """
        from lmsmith.tokens.files import FILE_NAME, load_tokenizer

        chosen = None
        if pattern is not None:
            from lmsmith.tokens.expressions import parse_pattern

            chosen = parse_pattern(pattern)
        model = Path(source) / "model"
        return load_tokenizer(
            model if (model / FILE_NAME).is_file() else os.fspath(source),
            pattern=chosen,
            special_tokens=special,
            end_of_text=eos_token,
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `folder`/tokenizer.json and returns its path. Raises TokenizerError,
        StorageError.
        """
        from lmsmith.tokens.files import save_tokenizer

        return save_tokenizer(self, Path(folder))

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Returns the ids of `text`, for any str. They never contain `end_of_text`."""

    @abstractmethod
    def decode_bytes(self, ids: IdsLike) -> bytes:
        """Returns the bytes of `ids`. Ids in `ids_without_token` decode to no bytes.

        Raises TokenizerError for an id outside the vocabulary.
        """

    @property
    def ids_without_token(self) -> npt.NDArray[np.int64]:
        """The ids below `vocab_size` without a token, sorted; empty for most tokenizers."""
        return np.empty(0, dtype=np.int64)

    @abstractmethod
    def count_unknown(self, text: str) -> int:
        """Returns the number of units of `text` (surrogates, characters or words) that this
        tokenizer cannot represent.
        """

    @abstractmethod
    def unknown_bytes(self, text: str) -> int:
        """Returns the number of UTF-8 bytes of `text` that its ids do not encode. Evaluation
        charges 8 bits for each.
        """

    def free_memory(self) -> None:  # noqa: B027 - most tokenizers keep nothing
        """Frees memory that encoding keeps to be faster. The next encoding allocates it again."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """This tokenizer as a dict that can be written as JSON. Inverse of `from_dict`."""

    @classmethod
    @abstractmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self: ...

    def decode(self, ids: IdsLike) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises TokenizerError
        as `decode_bytes` does.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `to_dict()`. Two tokenizers are equal if their fingerprints are equal."""
        return fingerprint_of(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, end_of_text={self.end_of_text})"
        )

    def _in_range(self, ids: IdsLike) -> npt.NDArray[np.int64]:
        try:
            array = np.asarray(ids, dtype=np.int64).reshape(-1)
        except OverflowError:  # does not fit int64: the error below shows the number
            array = np.asarray(ids, dtype=object).reshape(-1)
        bad = (array < 0) | (array >= self.vocab_size)
        if bad.any():
            position = int(bad.argmax())
            raise TokenizerError(
                f"id {array[position]} at position {position} is outside this {self.kind} "
                f"tokenizer's vocabulary of {self.vocab_size}. Was the text encoded with another "
                f"tokenizer?"
            )
        return array


class ByteTokenizer(Tokenizer):
    """The ids are the UTF-8 bytes; 256 is the end-of-text token, if there is one."""

    kind = "byte"

    def __init__(self, end_of_text: bool) -> None:
        self.vocab_size = 257 if end_of_text else 256
        self.end_of_text = 256 if end_of_text else None

    def encode(self, text: str) -> Ids:
        return np.frombuffer(to_utf8(text), dtype=np.uint8).astype(np.uint16)

    def decode_bytes(self, ids: IdsLike) -> bytes:
        parts = _split_at(self._in_range(ids), self.end_of_text)
        return END_OF_TEXT.encode().join(part.astype(np.uint8).tobytes() for part in parts)

    def count_unknown(self, text: str) -> int:
        return count_lone_surrogates(text)

    def unknown_bytes(self, text: str) -> int:
        return 0  # surrogates are encoded as U+FFFD, and so are part of the loss

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "end_of_text": self.end_of_text is not None}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        return cls(parts["end_of_text"])


class CharTokenizer(Tokenizer):
    """One id per character, in code-point order: nanoGPT's `sorted(set(text))`."""

    kind = "char"
    skips_unknown = True

    def __init__(self, characters: str, end_of_text: bool) -> None:
        assert list(characters) == sorted(set(characters))
        self.characters = characters
        self.vocab_size = len(characters) + end_of_text
        self.end_of_text = len(characters) if end_of_text else None
        self._code_points = np.frombuffer(characters.encode("utf-32-le"), dtype="<u4")
        self._id_of = np.full(0x110000, -1, dtype=np.int32)
        self._id_of[self._code_points] = np.arange(len(characters))

    @classmethod
    def learn(cls, texts: Iterable[str], end_of_text: bool) -> Self:
        """Builds the vocabulary from the characters in `texts`. Raises TokenizerError if the texts
        are empty.
        """
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts:
            for code_points in _code_points(text):
                seen[code_points] = True
        seen[0xD800:0xE000] = False  # lone surrogates are not characters
        if not seen.any():
            raise TokenizerError(
                "cannot learn a character tokenizer: the training text is empty. Check the sources."
            )
        return cls(np.flatnonzero(seen).astype("<u4").tobytes().decode("utf-32-le"), end_of_text)

    def encode(self, text: str) -> Ids:
        ids = np.empty(len(text), dtype=ids_dtype(self.vocab_size))
        end = 0
        for code_points in _code_points(text):
            known = self._id_of[code_points]
            if known.min() < 0:
                known = known[known >= 0]
            ids[end : end + len(known)] = known
            end += len(known)
        return ids[:end]

    def decode_bytes(self, ids: IdsLike) -> bytes:
        return self.decode(ids).encode("utf-8")

    def decode(self, ids: IdsLike) -> str:
        parts = _split_at(self._in_range(ids), self.end_of_text)
        return END_OF_TEXT.join(
            self._code_points[part].tobytes().decode("utf-32-le") for part in parts
        )

    def count_unknown(self, text: str) -> int:
        return sum(int((self._id_of[code_points] < 0).sum()) for code_points in _code_points(text))

    def unknown_bytes(self, text: str) -> int:
        n_bytes = 0
        for code_points in _code_points(text):
            unknown = code_points[self._id_of[code_points] < 0]
            n_bytes += len(unknown) + sum(
                int((unknown >= first).sum()) for first in (0x80, 0x800, 0x10000)
            )
        return n_bytes

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "characters": self.characters,
            "end_of_text": self.end_of_text is not None,
        }

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        return cls(parts["characters"], parts["end_of_text"])


class WordTokenizer(Tokenizer):
    """One id per word for the most frequent words, most frequent first; id 0 is `<unk>`.

    A word is a run of letters with the space before it, so known words decode to the original
    text. Digits, punctuation and other white space are words of one character. In scripts without
    spaces (Chinese, Thai) whole clauses become words, nearly all of them unknown: use another
    tokenizer for such text.
    """

    kind = "word"

    def __init__(self, words: Sequence[str], end_of_text: bool) -> None:
        assert len(set(words)) == len(words)
        self.words = tuple(words)
        self.vocab_size = 1 + len(self.words) + end_of_text
        self.end_of_text = self.vocab_size - 1 if end_of_text else None
        self._id_of = {word: i for i, word in enumerate(self.words, start=1)}
        # Most unknown words had a space before them.
        self._texts = (" " + UNKNOWN, *self.words, *([END_OF_TEXT] if end_of_text else []))

    @classmethod
    def learn(cls, texts: Iterable[str], end_of_text: bool, vocab_size: int = 10_000) -> Self:
        """Learns a vocabulary of up to `vocab_size` ids: the most frequent words, `<unk>`, and the
        end-of-text token if there is one. Equally frequent words are in code-point order.

        Raises TokenizerError if the vocabulary has no room for a word or the text has no words.
        """
        n_words = vocab_size - 1 - end_of_text
        if n_words < 1:
            raise TokenizerError(
                f"a word vocabulary of size {vocab_size} has no room for words. Use 3 or more."
            )
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_words(text))
        words = sorted(
            (word for word in counts if _is_utf8(word)), key=lambda word: (-counts[word], word)
        )
        if not words:
            raise TokenizerError(
                "cannot learn a word tokenizer: the training text has no words. Check the sources."
            )
        return cls(words[:n_words], end_of_text)

    def encode(self, text: str) -> Ids:
        id_of = self._id_of.get
        return np.fromiter(
            (id_of(word, 0) for word in _words(text)), dtype=ids_dtype(self.vocab_size)
        )

    def decode_bytes(self, ids: IdsLike) -> bytes:
        return self.decode(ids).encode("utf-8")

    def decode(self, ids: IdsLike) -> str:
        return "".join(map(self._texts.__getitem__, self._in_range(ids).tolist()))

    def count_unknown(self, text: str) -> int:
        return sum(word not in self._id_of for word in _words(text))

    def unknown_bytes(self, text: str) -> int:
        return sum(
            len(word.encode("utf-8", "surrogatepass"))
            for word in _words(text)
            if word not in self._id_of
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "words": list(self.words),
            "end_of_text": self.end_of_text is not None,
        }

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        return cls(parts["words"], parts["end_of_text"])


def unused_ids(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """Returns the ids below a model's `vocab_size` that have no token in its tokenizer, sorted;
    usually none.

    These are the gaps in the tokenizer's vocabulary and the model's extra embedding rows.
    """
    holes = tokenizer.ids_without_token
    beyond = np.arange(tokenizer.vocab_size, vocab_size, dtype=np.int64)
    return np.concatenate([holes[holes < vocab_size], beyond])


def fingerprint_of(parts: dict[str, Any]) -> str:
    """SHA-256 of the output of `Tokenizer.to_dict`, written as canonical JSON."""
    canonical = to_json(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def to_utf8(text: str) -> bytes:
    """`text` as UTF-8. Paired surrogates are joined and lone ones become U+FFFD, as in tiktoken."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return (
            text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")
        )


def count_lone_surrogates(text: str) -> int:
    """Returns the number of characters of `text` that `to_utf8` replaces by U+FFFD."""
    if _is_utf8(text):
        return 0
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return sum("\ud800" <= character <= "\udfff" for character in joined)


def end_of_text_id(special_tokens: Mapping[str, int], name: str | None = None) -> int | None:
    """Returns the id of the special token between documents: `name` if given, otherwise the first
    of `END_OF_TEXT_NAMES` that is a special token. None if there is none.

    Raises TokenizerError if `name` is not a special token.
    """
    if name is None:
        return next(
            (special_tokens[end] for end in END_OF_TEXT_NAMES if end in special_tokens), None
        )
    if name not in special_tokens:
        raise TokenizerError(
            f"{name!r} cannot be the end-of-text token: it is not a special token of this "
            f"tokenizer. Its special tokens: "
            f"{', '.join(itertools.islice(special_tokens, 20)) or 'none'}."
        )
    return special_tokens[name]


def ids_dtype(vocab_size: int) -> type[np.uint16 | np.uint32]:
    """Returns the smaller of the two types of ids in shards (uint16, uint32) that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _code_points(text: str) -> Iterator[npt.NDArray[np.uint32]]:
    """Yields the code points of `text`, 2**20 at a time: UTF-32 takes up to four times the memory."""
    for start in range(0, len(text), 1 << 20):
        yield np.frombuffer(
            text[start : start + (1 << 20)].encode("utf-32-le", "surrogatepass"), dtype="<u4"
        )


# Letters with apostrophes inside, or one digit, or one other mark, or one white-space character.
# Every character is in one match.
_WORD = re.compile(r" ?[^\W\d_]+(?:['\u2019][^\W\d_]+)*| ?[\d_]| ?[^\w\s]|\s")


def _words(text: str) -> Iterator[str]:
    return map(re.Match.group, _WORD.finditer(text))


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _split_at(ids: npt.NDArray[np.int64], special: int | None) -> list[npt.NDArray[np.int64]]:
    """Returns the runs of ids between occurrences of `special`."""
    if special is None or not len(positions := np.flatnonzero(ids == special)):
        return [ids]
    edges = [-1, *positions.tolist(), len(ids)]
    return [ids[before + 1 : after] for before, after in itertools.pairwise(edges)]
