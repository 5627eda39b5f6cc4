"""What every tokenizer offers, and the three simple ones: bytes, characters, words.

A tokenizer maps text to ids 0 .. vocab_size - 1 and back. What a tokenizer cannot represent is
never lost silently: `count_unknown` says how many units of a text that is, `unknown_bytes` how many
bytes of it the ids do not carry, and evaluation charges those as a code would, so that no tokenizer
scores better by knowing less. The policies:

| kind | unknown units | in the ids | charged by evaluation |
|---|---|---|---|
| byte | lone surrogates, the only part of a str that UTF-8 cannot write | U+FFFD | the ids' own loss |
| char | characters that the training text does not have | left out (`leaves_out`) | 8 bits a byte, and their places |
| word | words outside the vocabulary | `<unk>` | the loss of `<unk>`, 8 bits a byte of the word, and its end |
| bpe | as byte | U+FFFD | the ids' own loss |
| library | words that decoding does not give back | as the file has it | 8 bits a byte, and their places |

Some vocabularies have ids that no token has: holes between the tokens and the special tokens of
cl100k, rows that a model's table has beyond them. They are `ids_without_token`. No text is encoded
to them, they decode to nothing, and generation never samples them. Evaluation does not
renormalize: a model pays for the probability it gives them.

`end_of_text` is the id between documents, where there are several; it is the last one. `encode`
reads all of its text
as text: "<|endoftext|>" typed by a user never becomes the special id. Ids are uint16 where the vocabulary fits, else
uint32, as in the shards.
"""

from __future__ import annotations

import codecs
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
SomeIds = Sequence[int] | npt.NDArray[np.integer[Any]]

END_OF_TEXT = "<|endoftext|>"
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|bos|>")
"""What the token between documents is called: by GPT-2, Llama 3, Mistral, Gemma, nanochat. The
first one counts.
"""

UNKNOWN = "<unk>"


class Tokenizer(ABC):
    """Text to ids and back.

        tok = lmsmith.Tokenizer.train("book.txt", vocab_size=4096)
        tok.decode(tok.encode("It was"))
        tok.save("tok")
        tok = lmsmith.Tokenizer.load("tok")

    `vocab_size`: number of ids. `end_of_text`: the id between documents; None: there is none.
    """

    kind: ClassVar[str]
    vocab_size: int
    end_of_text: int | None
    leaves_out: ClassVar[bool] = False  # nothing stands for unknown units in the ids
    decodes_bytes: bool = (
        True  # the bytes of parts of a list of ids, joined, are those of the whole
    )
    streams: bool = True  # the text of some ids begins with the text of the first of them,
    open_ids: frozenset[int] = frozenset()  # except where the last of the first is one of these

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
        out         a new folder for it; None: `save` writes it later
        special     special tokens
        eos_token   the special token that stands between documents; None: by its name
        pattern     how text is cut into pieces: gpt2, gpt4, o200k, nanochat, llama3, qwen2, or a
                    regular expression
        ties        which of equally frequent pairs is merged first
        threads     None: one per core
        max_memory  bytes; above it rare pieces are dropped; None: no bound
        text_field, encoding, errors: how text is read, as the settings `data.*`
        progress    called with ("count" or "merge", done, total)

        Raises TokenizerError for a vocabulary or a pattern that is not possible, and if `out` holds
        a tokenizer; DataError for text that cannot be read.
        """
        from lmsmith.tokens.learn import train_tokenizer  # brings in the compiler

        some = [sources] if isinstance(sources, str | os.PathLike) else sources
        tokenizer, notes = train_tokenizer(
            [os.fspath(source) for source in some],
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
        """Loads a tokenizer: its folder or file (ours, Hugging Face's, GPT-2's, tiktoken's), a run,
        or gpt2.

        `pattern` and `special` (token -> id) are for tiktoken's files of ranks, which do not have
        them. `eos_token`: which token stands between documents. Raises TokenizerError for a file
        that is missing, damaged or not a tokenizer.
        """
        from lmsmith.tokens.files import FILE_NAME, load_tokenizer

        chosen = None
        if pattern is not None:
            from lmsmith.tokens.expressions import chosen_pattern

            chosen = chosen_pattern(pattern)
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
        """The ids of `text`, which may be any str at all; never contains `end_of_text`."""

    @abstractmethod
    def decode_bytes(self, ids: SomeIds) -> bytes:
        """The bytes that `ids` stand for; `ids_without_token` stand for none.

        Raises TokenizerError for an id outside the vocabulary.
        """

    @property
    def ids_without_token(self) -> npt.NDArray[np.int64]:
        """The ids below `vocab_size` that no token has, sorted; for most tokenizers there are
        none.
        """
        return np.empty(0, dtype=np.int64)

    @abstractmethod
    def count_unknown(self, text: str) -> int:
        """How many units of `text` (surrogates, characters, words) this tokenizer cannot
        represent.
        """

    @abstractmethod
    def unknown_bytes(self, text: str) -> int:
        """How many UTF-8 bytes of `text` its ids do not carry; evaluation charges 8 bits for
        each.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that makes this tokenizer, as JSON can hold it; `from_dict` is its inverse."""

    @classmethod
    @abstractmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self: ...

    def decode(self, ids: SomeIds) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises TokenizerError as
        `decode_bytes` does.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what this tokenizer is: equal for tokenizers that give the same ids."""
        return fingerprint_of(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, end_of_text={self.end_of_text})"
        )

    def _in_range(self, ids: SomeIds) -> npt.NDArray[np.int64]:
        try:
            array = np.asarray(ids, dtype=np.int64).reshape(-1)
        except OverflowError:  # larger than any id: named below as it is
            array = np.asarray(ids, dtype=object).reshape(-1)
        bad = (array < 0) | (array >= self.vocab_size)
        if bad.any():
            place = int(bad.argmax())
            raise TokenizerError(
                f"id {array[place]} at position {place} is outside this {self.kind} tokenizer's "
                f"vocabulary of"
                f" {self.vocab_size}. Was the text encoded with another tokenizer?"
            )
        return array


class ByteTokenizer(Tokenizer):
    """The UTF-8 bytes are the ids; 256 is the end of a text, where there is one."""

    kind = "byte"

    def __init__(self, end_of_text: bool) -> None:
        self.vocab_size = 257 if end_of_text else 256
        self.end_of_text = 256 if end_of_text else None

    def encode(self, text: str) -> Ids:
        return np.frombuffer(to_utf8(text), dtype=np.uint8).astype(np.uint16)

    def decode_bytes(self, ids: SomeIds) -> bytes:
        parts = _split_at(self._in_range(ids), self.end_of_text)
        return END_OF_TEXT.encode().join(part.astype(np.uint8).tobytes() for part in parts)

    def count_unknown(self, text: str) -> int:
        return count_lone_surrogates(text)

    def unknown_bytes(self, text: str) -> int:
        return 0  # U+FFFD stands in the ids and is paid for there

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "end_of_text": self.end_of_text is not None}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        return cls(parts["end_of_text"])


class CharTokenizer(Tokenizer):
    """One id a character, in the order of code points: nanoGPT's `sorted(set(text))`."""

    kind = "char"
    leaves_out = True

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
        """The tokenizer of the characters in `texts`. Raises TokenizerError where there are
        none.
        """
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts:
            for code_points in _code_points(text):
                seen[code_points] = True
        seen[0xD800:0xE000] = False  # lone surrogates are no characters
        if not seen.any():
            raise TokenizerError(
                "a character tokenizer needs text to learn from, and the training text is empty."
            )
        return cls(np.flatnonzero(seen).astype("<u4").tobytes().decode("utf-32-le"), end_of_text)

    def encode(self, text: str) -> Ids:
        ids = np.empty(len(text), dtype=ids_dtype(self.vocab_size))
        end = 0
        for code_points in _code_points(text):
            found = self._id_of[code_points]
            if found.min() < 0:
                found = found[found >= 0]
            ids[end : end + len(found)] = found
            end += len(found)
        return ids[:end]

    def decode_bytes(self, ids: SomeIds) -> bytes:
        return self.decode(ids).encode("utf-8")

    def decode(self, ids: SomeIds) -> str:
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
    """One id for each of the most frequent words: 0 is `<unk>`, then from the most frequent on.

    A word is a run of letters with the one space before it, so that known words decode to the text
    they came from; digits, punctuation and other white space stand alone. Writing without spaces
    (Chinese, Thai) becomes clauses, nearly all of them unknown: such text wants another tokenizer.
    """

    kind = "word"

    def __init__(self, words: Sequence[str], end_of_text: bool) -> None:
        assert len(set(words)) == len(words)
        self.words = tuple(words)
        self.vocab_size = 1 + len(self.words) + end_of_text
        self.end_of_text = self.vocab_size - 1 if end_of_text else None
        self._id_of = {word: i for i, word in enumerate(self.words, start=1)}
        # A word that is not known mostly had a space before it.
        self._texts = (" " + UNKNOWN, *self.words, *([END_OF_TEXT] if end_of_text else []))

    @classmethod
    def learn(cls, texts: Iterable[str], end_of_text: bool, vocab_size: int = 10_000) -> Self:
        """The `vocab_size` most frequent words, `<unk>` and the end of text among them; ties in
        code-point order.

        Raises TokenizerError for a vocabulary without room for a word, or a text without one.
        """
        n_words = vocab_size - 1 - end_of_text
        if n_words < 1:
            raise TokenizerError(
                f"a word vocabulary of {vocab_size} leaves no room for words: take 3 or more."
            )
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_words(text))
        words = sorted(
            (word for word in counts if _is_utf8(word)), key=lambda word: (-counts[word], word)
        )
        if not words:
            raise TokenizerError(
                "a word tokenizer needs text to learn from, and the training text is empty."
            )
        return cls(words[:n_words], end_of_text)

    def encode(self, text: str) -> Ids:
        id_of = self._id_of.get
        return np.fromiter(
            (id_of(word, 0) for word in _words(text)), dtype=ids_dtype(self.vocab_size)
        )

    def decode_bytes(self, ids: SomeIds) -> bytes:
        return self.decode(ids).encode("utf-8")

    def decode(self, ids: SomeIds) -> str:
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


class StreamDecoder:
    """Decodes ids as they come and never gives out half a character: what is incomplete waits for
    the next id.

    All that `push` gave out and at last `flush`, joined, is `tokenizer.decode` of all the ids. With
    a tokenizer that does not stream (`Tokenizer.streams`) everything comes at the end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []  # the last that gave text, and all after them
        self._n_read = 0  # of these, how many have their text given out
        self._n_given = 0  # characters of the text of `_ids` that were given out

    def push(self, ids: SomeIds | int) -> str:
        """The text that is complete with these ids; often empty."""
        some = [ids] if isinstance(ids, int | np.integer) else ids
        if self._tokenizer.decodes_bytes:
            return self._decoder.decode(self._tokenizer.decode_bytes(some))
        if not len(some):
            return ""
        self._tokenizer.decode(some)  # raises for an id outside the vocabulary
        self._ids += map(int, some)
        if not self._tokenizer.streams or self._ids[-1] in self._tokenizer.open_ids:
            return ""
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):  # perhaps half a character
            return ""
        new = text[self._n_given :]
        # How the text of an id begins can depend on whether ids with text stand before it: some of
        # these are kept.
        last = self._tokenizer.decode(self._ids[self._n_read :])
        if last.strip():
            self._ids = self._ids[self._n_read :]
            text = last
        self._n_read, self._n_given = len(self._ids), len(text)
        return new

    def flush(self) -> str:
        """What is left at the end: empty, or U+FFFD for a character that was cut."""
        if self._tokenizer.decodes_bytes:
            return self._decoder.decode(b"", final=True)
        rest = self._tokenizer.decode(self._ids)[self._n_given :]
        self._ids, self._n_read, self._n_given = [], 0, 0
        return rest


def unused_ids(tokenizer: Tokenizer, vocab_size: int) -> npt.NDArray[np.int64]:
    """The ids below a model's `vocab_size` that no token of its tokenizer has, sorted; usually
    none.

    They are the holes in the tokenizer's vocabulary and the rows of the model's table beyond it.
    """
    holes = tokenizer.ids_without_token
    beyond = np.arange(tokenizer.vocab_size, vocab_size, dtype=np.int64)
    return np.concatenate([holes[holes < vocab_size], beyond])


def fingerprint_of(parts: dict[str, Any]) -> str:
    """SHA-256 of what `Tokenizer.to_dict` gives, in the one way to write it as JSON."""
    canonical = to_json(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def to_utf8(text: str) -> bytes:
    """`text` as UTF-8. Paired surrogates are joined, lone ones become U+FFFD, as tiktoken does
    it.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return (
            text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")
        )


def count_lone_surrogates(text: str) -> int:
    """How many characters of `text` `to_utf8` replaces."""
    if _is_utf8(text):
        return 0
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return sum("\ud800" <= character <= "\udfff" for character in joined)


def end_of_text_id(special_tokens: Mapping[str, int], name: str | None = None) -> int | None:
    """The id of the special token between documents: `name`, else the first of `ENDS_OF_TEXT` that
    there is.

    Raises TokenizerError for a `name` that is no special token.
    """
    if name is None:
        return next((special_tokens[end] for end in ENDS_OF_TEXT if end in special_tokens), None)
    if name not in special_tokens:
        raise TokenizerError(
            f"{name!r} cannot end a text: it is no special token of this tokenizer. Its special "
            f"tokens:"
            f" {', '.join(itertools.islice(special_tokens, 20)) or 'none'}."
        )
    return special_tokens[name]


def ids_dtype(vocab_size: int) -> type[np.uint16 | np.uint32]:
    """The smaller of the two types that shards know and that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _code_points(text: str) -> Iterator[npt.NDArray[np.uint32]]:
    """The code points of `text`, a bounded number at a time: 20 MB of text never become 80."""
    for start in range(0, len(text), 1 << 20):
        yield np.frombuffer(
            text[start : start + (1 << 20)].encode("utf-32-le", "surrogatepass"), dtype="<u4"
        )


# Letters with apostrophes inside, one digit, one other mark, one character of white space: every
# character is in one.
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
    """The runs of ids between the `special` ones."""
    if special is None or not len(places := np.flatnonzero(ids == special)):
        return [ids]
    edges = [-1, *places.tolist(), len(ids)]
    return [ids[before + 1 : after] for before, after in itertools.pairwise(edges)]
