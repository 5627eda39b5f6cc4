"""Tokenizers that the library `tokenizers` runs: every `tokenizer.json` that our engine does not do
exactly.

    tokenizer = load_tokenizer("folder")    # files.py; foreign.py decides whose engine it is
    tokenizer.encode("Hello")               # the ids of Tokenizer.encode(text,
                                            # add_special_tokens=False)

The content of `tokenizer.json` is kept as it is: it is saved with a run, and written again when a
model is exported. Truncation and padding, which a file can ask for, are off. Normalizers and
pre-tokenizers can lose parts of a text (case, white space, unknown characters). `unknown_bytes`
counts the words that decoding does not give back.

The library needs some 150 bytes of memory for each character of a text, since it has the whole text
before it at once.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from lmsmith.errors import TokenizerError
from lmsmith.machine.limits import n_cores
from lmsmith.strict_json import to_json
from lmsmith.tokens.printable import from_printable
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.tokenizer import Ids, SomeIds, Tokenizer, end_of_text_id, ids_dtype, to_utf8

log = logging.getLogger(__name__)

MOST_IDS = 1 << 24  # a larger id is damage, not a vocabulary
INSTALL = "pip install 'lmsmith[hf]'"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_WORDS = re.compile(r"\s+|\S+")

Names = Collection[str] | Literal["all"]


class LibraryTokenizer(Tokenizer):
    """A `tokenizer.json`, run by the library `tokenizers`.

    `content`: what the file holds. `end_of_text`: the token between documents, by name; None: the
    first of `ENDS_OF_TEXT` that there is. A token that is named so is a special one from then on.

    Raises TokenizerError where the library is missing or refuses the content, and for what would
    make ids that are not a function of the text (dropout) or not those of the file.
    """

    kind = "library"
    leaves_out: ClassVar[bool] = True

    def __init__(self, content: Mapping[str, Any], end_of_text: str | None = None) -> None:
        self.content = dict(content)
        self._end_name = end_of_text
        model = self.content.get("model") or {}
        if model.get("dropout"):
            raise TokenizerError(
                f"its merges have dropout {model['dropout']}: the ids of a text would differ from "
                f"call to call. Set"
                " model.dropout in the tokenizer.json to null."
            )
        self._engine = _engine(self.content, end_of_text)
        self._check_ids()
        vocabulary: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if not 0 < self.vocab_size <= MOST_IDS:
            raise TokenizerError(
                f"its ids go up to {self.vocab_size - 1}, wanted from 0 to at most "
                f"{MOST_IDS - 1:,}."
            )
        self._holes: npt.NDArray[np.int64] = np.setdiff1d(
            np.arange(self.vocab_size), np.fromiter(vocabulary.values(), np.int64, len(vocabulary))
        )
        added = self._engine.get_added_tokens_decoder()
        self.special_tokens = {
            token.content: i for i, token in sorted(added.items()) if token.special
        }
        self.end_of_text = end_of_text_id(self.special_tokens, end_of_text)
        decoder = self.content.get("decoder") or {}
        self.decodes_bytes = decoder.get("type") == "ByteLevel"
        self.streams = self.decodes_bytes or _grows(self.content.get("decoder"))
        if "ByteFallback" in str(
            decoder
        ):  # a run of bytes is decoded as a whole, or each byte is U+FFFD
            self.open_ids = frozenset(i for text, i in vocabulary.items() if _BYTE.fullmatch(text))
        self._dtype = ids_dtype(self.vocab_size)

    @property
    def ids_without_token(self) -> npt.NDArray[np.int64]:
        return self._holes

    def _check_ids(self) -> None:
        """The library numbers added tokens itself; what the model was trained with are the ids
        of the file.
        """
        for token in self.content.get("added_tokens") or ():
            found = self._engine.token_to_id(token["content"])
            if token["content"] and found != token["id"]:
                raise TokenizerError(
                    f"its added token {token['content']!r} has id {token['id']} in the file, but "
                    f"{found} in the library"
                    " tokenizers, which numbers added tokens from the end of the vocabulary on. "
                    "Add what is missing"
                    " between to the vocabulary."
                )

    # ---- encoding --------------------------------------------------------------------------------

    def encode(
        self,
        text: str | bytes,
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
        threads: int = 1,
    ) -> Ids:
        """The ids of `text`; bytes that are not UTF-8, and lone surrogates, are read as U+FFFD.

        Special tokens in `allowed_special` get their ids; one in `disallowed_special` ("all": all
        that are not allowed) raises TokenizerError; others are text. A text that has special tokens
        of both sorts raises TokenizerError: the library takes all of them or none.
        """
        string = _string(text)
        engine = self._engine_for(string, allowed_special, disallowed_special)
        with _explained(f"encode a text of {len(string):,} characters"):
            (encoding,) = engine.encode_batch_fast([string], add_special_tokens=False)
        return np.array(encoding.ids, dtype=self._dtype)

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
        threads: int | None = None,
    ) -> list[Ids]:
        """`encode` of each text, on as many threads as there are processors, or as said."""
        encode = functools.partial(
            self.encode, allowed_special=allowed_special, disallowed_special=disallowed_special
        )
        if (n := threads or n_cores()) <= 1:
            return list(map(encode, texts))
        with ThreadPoolExecutor(n) as executor:
            return list(executor.map(encode, texts))

    def encode_iter(
        self,
        stream: Iterable[str | bytes],
        *,
        allowed_special: Names = (),
        disallowed_special: Names = (),
    ) -> Iterator[Ids]:
        """`encode` of a text that comes in parts. It waits for the whole: where it could be cut
        is not known.
        """
        whole = b"".join(
            part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            for part in stream
        )
        text = whole.decode("utf-8", "replace")
        yield self.encode(
            text, allowed_special=allowed_special, disallowed_special=disallowed_special
        )

    def _engine_for(self, text: str, allowed_special: Names, disallowed_special: Names) -> Any:
        """The library's tokenizer that takes special tokens in this text as they are asked for."""
        every = frozenset(self.special_tokens)
        allowed = every if allowed_special == "all" else every & frozenset(allowed_special)
        disallowed = (
            every if disallowed_special == "all" else every & frozenset(disallowed_special)
        ) - allowed
        if disallowed or (allowed and allowed != every):
            there = frozenset(
                match.group().decode() for match in Specials(every).find(to_utf8(text))
            )
            if wrong := sorted(there & disallowed):
                raise TokenizerError(
                    f"the text has the special token {wrong[0]!r} at character "
                    f"{text.index(wrong[0])}, where only text"
                    " was expected. Allow it (allowed_special), or take it as text (leave it out of"
                    " disallowed_special)."
                )
            if there & allowed and there - allowed:
                raise TokenizerError(
                    f"the text has the special tokens {sorted(there & allowed)[0]!r}, which is "
                    f"allowed, and"
                    f" {sorted(there - allowed)[0]!r}, which is not: the library tokenizers takes "
                    f"all of them or none."
                )
            allowed = there & allowed
        return self._engine_with_specials if allowed else self._engine

    @functools.cached_property
    def _engine_with_specials(self) -> Any:
        engine = _engine(self.content, self._end_name)
        engine.encode_special_tokens = False
        return engine

    # ---- decoding --------------------------------------------------------------------------------

    def decode_bytes(self, ids: SomeIds) -> bytes:
        """As `Tokenizer.decode_bytes`. Where the decoder is not ByteLevel, the bytes of `decode`,
        which can depend on what stands before and behind: those of parts do not join to those of
        the whole then. Ids without a token stand for nothing.
        """
        if self.decodes_bytes:
            return b"".join(map(self._bytes_of_ids.__getitem__, self._in_range(ids).tolist()))
        return self.decode(ids).encode("utf-8")

    def decode(self, ids: SomeIds) -> str:
        if self.decodes_bytes:
            return super().decode(ids)
        array = self._in_range(ids)
        with _explained(f"decode {len(array):,} ids"):
            text: str = self._engine.decode(array.tolist(), skip_special_tokens=False)
        return text

    @functools.cached_property
    def _bytes_of_ids(self) -> tuple[bytes, ...]:
        """Of each id, what the decoder ByteLevel makes of it: a token that is not written for
        bytes is its own text.
        """
        parts = [b""] * self.vocab_size
        for text, i in self._engine.get_vocab(with_added_tokens=True).items():
            try:
                parts[i] = from_printable(text)
            except KeyError:
                parts[i] = text.encode()
        for (
            i,
            token,
        ) in (
            self._engine.get_added_tokens_decoder().items()
        ):  # these win where an id has two tokens
            try:
                parts[i] = from_printable(token.content)
            except KeyError:
                parts[i] = token.content.encode()
        return tuple(parts)

    # ---- what is lost ----------------------------------------------------------------------------

    def count_unknown(self, text: str) -> int:
        """How many words and stretches of white space decoding does not give back."""
        return self._lost(text)[0]

    def unknown_bytes(self, text: str) -> int:
        """How many bytes these have."""
        return self._lost(text)[1]

    def _lost(self, text: str) -> tuple[int, int]:
        if self._last_lost is None or self._last_lost[0] != text:
            self._last_lost = text, self._compare(text)
        return self._last_lost[1]

    _last_lost: tuple[str, tuple[int, int]] | None = (
        None  # both numbers are asked for, one after the other
    )

    def _compare(self, text: str) -> tuple[int, int]:
        again = self.decode(self.encode(text))
        if again == text:
            return 0, 0
        lost = collections.Counter(_WORDS.findall(text))
        lost.subtract(_WORDS.findall(again))
        missing = {word: n for word, n in lost.items() if n > 0}
        n_bytes = sum(n * len(word.encode("utf-8", "surrogatepass")) for word, n in missing.items())
        return sum(missing.values()), n_bytes

    # ---- to and from JSON ------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.content, self._end_name)

    def changed(self, *, end_of_text: str | None) -> Self:
        """This tokenizer with another token between documents."""
        return type(self)(self.content, end_of_text or self._end_name)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "end_of_text": self._end_name, "content": self.content}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        return cls(parts["content"], parts["end_of_text"])


def load(
    content: Mapping[str, Any], where: Path, why: str, end_of_text: str | None = None
) -> LibraryTokenizer:
    """The tokenizer of the file `where`, which our engine does not do because of `why`. Says so,
    once a process.
    """
    try:
        tokenizer = LibraryTokenizer(content, end_of_text)
    except TokenizerError as error:
        raise TokenizerError(
            f"cannot use {where}: {error} (lmsmith's own engine does not run it: it has {why}.)"
        ) from error
    _say_once(f"{where} has {why}: the library tokenizers runs it, slower than lmsmith's engine")
    return tokenizer


@functools.cache
def _say_once(line: str) -> None:
    log.warning("%s", line)


def _engine(content: Mapping[str, Any], end_of_text: str | None) -> Any:
    """The library's tokenizer of `content`, which takes special tokens as text."""
    # Texts are short or many processes work: its own threads would only get into the way of forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Engine
    except ImportError as error:
        raise TokenizerError(f"it needs the library tokenizers: {INSTALL}.") from error
    with _explained("load it or work"):
        engine = Engine.from_str(to_json(content))
    engine.no_truncation()
    engine.no_padding()
    if end_of_text is not None:
        known = engine.get_added_tokens_decoder().get(engine.token_to_id(end_of_text))
        if known is None and engine.token_to_id(end_of_text) is not None:
            engine.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
        elif known is not None and not known.special:
            known.special = True
            engine.add_special_tokens([known])
    engine.encode_special_tokens = True
    return engine


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    """The library's errors, of which it has no class of its own, and its panics, which are no
    Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"the library tokenizers cannot {doing} with this tokenizer: {error}."
        ) from error


def _string(text: str | bytes) -> str:
    return (text if isinstance(text, bytes) else to_utf8(text)).decode("utf-8", "replace")


# Decoders whose text of some ids begins with their text of the first of these: a stream of ids
# becomes one of text.
_GROWING = {"WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "ByteLevel"}


def _grows(decoder: Mapping[str, Any] | None) -> bool:
    if decoder is None:  # tokens with blanks between
        return True
    kind = decoder.get("type")
    if kind == "Sequence":
        return all(map(_grows, decoder["decoders"]))
    if kind == "Strip":
        return not decoder.get("stop")
    if kind == "Replace":
        return len(decoder["pattern"].get("String", "")) == 1
    return kind in _GROWING
