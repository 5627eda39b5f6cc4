"""Runs a `tokenizer.json` with the library `tokenizers`, if lmsmith's engine is not exact for it.

    tokenizer = load_tokenizer("folder")    # files.py; foreign.py chooses the engine
    tokenizer.encode("Hello")               # the ids of Tokenizer.encode(text,
                                            # add_special_tokens=False)

The content of `tokenizer.json` is kept unchanged: it is saved with a run, and written again when a
model is exported. Truncation and padding in the file are turned off. Normalizers and pre-tokenizers
can lose parts of a text (case, white space, unknown characters); `unknown_bytes` counts the bytes
of words that decoding does not restore.

The library tokenizes a text in one pass and needs about 150 bytes of memory per character.
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
from lmsmith.tokens.tokenizer import Ids, IdsLike, Tokenizer, end_of_text_id, ids_dtype, to_utf8

log = logging.getLogger(__name__)

MAX_IDS = 1 << 24  # a file with a larger id is damaged
INSTALL = "pip install 'lmsmith[hf]'"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_WORDS = re.compile(r"\s+|\S+")

Names = Collection[str] | Literal["all"]


class LibraryTokenizer(Tokenizer):
    """A `tokenizer.json`, run by the library `tokenizers`.

    `content`: the parsed file. `end_of_text`: the token between documents, which becomes a special
    token; None: the first of `END_OF_TEXT_NAMES` that is a special token.

    Raises TokenizerError if the library is missing or rejects the content, if the merges have
    dropout (ids would be random), or if the library gives tokens other ids than the file.
    """

    kind = "library"
    skips_unknown: ClassVar[bool] = True

    def __init__(self, content: Mapping[str, Any], end_of_text: str | None = None) -> None:
        self.content = dict(content)
        self._end_name = end_of_text
        model = self.content.get("model") or {}
        if model.get("dropout"):
            raise TokenizerError(
                f"its merges have dropout {model['dropout']}, so the ids of a text would differ "
                f"from call to call. Set model.dropout to null in the tokenizer.json."
            )
        self._engine = _engine(self._run(), end_of_text)
        self._check_ids()
        vocabulary: dict[str, int] = self._engine.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if not 0 < self.vocab_size <= MAX_IDS:
            raise TokenizerError(
                f"its largest id is {self.vocab_size - 1}; expected 0 to {MAX_IDS - 1:,}."
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
        self.streams = self.decodes_bytes or _can_stream(self.content.get("decoder"))
        if "ByteFallback" in str(
            decoder
        ):  # it decodes a complete run of bytes, or turns each byte into U+FFFD
            self.open_ids = frozenset(i for text, i in vocabulary.items() if _BYTE.fullmatch(text))
        self._dtype = ids_dtype(self.vocab_size)

    @property
    def ids_without_token(self) -> npt.NDArray[np.int64]:
        return self._holes

    def _run(self) -> dict[str, Any]:
        """The part of the content that the library runs."""
        return self.content

    def _check_ids(self) -> None:
        """Raises TokenizerError if an added token has another id in the library than in the file,
        whose ids the model was trained with.
        """
        for token in self.content.get("added_tokens") or ():
            number = self._engine.token_to_id(token["content"])
            if token["content"] and number != token["id"]:
                raise TokenizerError(
                    f"its added token {token['content']!r} has the id {token['id']} in the file, "
                    f"but {number} in the library tokenizers, which numbers added tokens from the "
                    "end of the vocabulary on. Add tokens for the missing ids to the vocabulary."
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
        """Returns the ids of `text`; bytes that are not UTF-8, and lone surrogates, are read as
        U+FFFD.

        Special tokens in `allowed_special` get their ids, those in `disallowed_special` ("all": all
        that are not allowed) raise TokenizerError, and others are plain text. A text with both
        allowed and plain-text special tokens raises TokenizerError, because the library recognizes
        all special tokens or none. `threads` is ignored.
        """
        string = as_string(text)
        engine = self._engine_for(string, allowed_special, disallowed_special)
        with _library_errors(f"encode a text of {len(string):,} characters with this tokenizer"):
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
        """`encode` for each text, on `threads` threads (None: one per core)."""
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
        """`encode` for a text that arrives in parts. Reads all parts first, because it is unknown
        where the text can be cut.
        """
        data = b"".join(
            part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            for part in stream
        )
        text = data.decode("utf-8", "replace")
        yield self.encode(
            text, allowed_special=allowed_special, disallowed_special=disallowed_special
        )

    def _engine_for(self, text: str, allowed_special: Names, disallowed_special: Names) -> Any:
        """Returns the library's tokenizer with special tokens on or off, as needed for this
        text.
        """
        every = frozenset(self.special_tokens)
        allowed = every if allowed_special == "all" else every & frozenset(allowed_special)
        disallowed = (
            every if disallowed_special == "all" else every & frozenset(disallowed_special)
        ) - allowed
        if disallowed or (allowed and allowed != every):
            present = frozenset(
                match.group().decode() for match in Specials(every).find(to_utf8(text))
            )
            if wrong := sorted(present & disallowed):
                raise TokenizerError(
                    f"the text contains the special token {wrong[0]!r} at character "
                    f"{text.index(wrong[0])}, where it is not allowed. Add it to allowed_special, "
                    "or remove it from disallowed_special to encode it as text."
                )
            if present & allowed and present - allowed:
                raise TokenizerError(
                    f"the text contains the special tokens {sorted(present & allowed)[0]!r}, which "
                    f"is allowed, and {sorted(present - allowed)[0]!r}, which is not. The library "
                    f"tokenizers recognizes all special tokens or none: allow all of them, or none."
                )
            allowed = present & allowed
        return self._engine_with_specials if allowed else self._engine

    @functools.cached_property
    def _engine_with_specials(self) -> Any:
        engine = _engine(self._run(), self._end_name)
        engine.encode_special_tokens = False
        return engine

    # ---- decoding --------------------------------------------------------------------------------

    def decode_bytes(self, ids: IdsLike) -> bytes:
        """Like `Tokenizer.decode_bytes`. If the decoder is not ByteLevel, these are the bytes of
        `decode`: the text of an id can depend on its neighbours, so the bytes of parts do not join
        to the bytes of all ids. Ids without a token decode to nothing.
        """
        if self.decodes_bytes:
            return b"".join(map(self._bytes_of_ids.__getitem__, self._in_range(ids).tolist()))
        return self.decode(ids).encode("utf-8")

    def decode(self, ids: IdsLike) -> str:
        if self.decodes_bytes:
            return super().decode(ids)
        array = self._in_range(ids)
        with _library_errors(f"decode {len(array):,} ids with this tokenizer"):
            text: str = self._engine.decode(array.tolist(), skip_special_tokens=False)
        return text

    @functools.cached_property
    def _bytes_of_ids(self) -> tuple[bytes, ...]:
        """The bytes of each id, as the ByteLevel decoder returns them: a token that is not in
        ByteLevel's encoding of bytes decodes to its own text.
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
        ):  # if an id has two tokens, the added one decides
            try:
                parts[i] = from_printable(token.content)
            except KeyError:
                parts[i] = token.content.encode()
        return tuple(parts)

    # ---- lost text -------------------------------------------------------------------------------

    def count_unknown(self, text: str) -> int:
        """Returns the number of words and runs of white space that decoding does not restore."""
        return self._lost(text)[0]

    def unknown_bytes(self, text: str) -> int:
        """Returns the number of bytes in words and runs of white space that decoding does not
        restore.
        """
        return self._lost(text)[1]

    def _lost(self, text: str) -> tuple[int, int]:
        if self._last_lost is None or self._last_lost[0] != text:
            self._last_lost = text, self._count_lost(text)
        return self._last_lost[1]

    _last_lost: tuple[str, tuple[int, int]] | None = (
        None  # cached, because callers ask for both numbers, one after the other
    )

    def _count_lost(self, text: str) -> tuple[int, int]:
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
        """Returns a copy of this tokenizer with another token between documents."""
        return type(self)(self.content, end_of_text or self._end_name)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "end_of_text": self._end_name, "content": self.content}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        return cls(parts["content"], parts["end_of_text"])


def load(
    content: Mapping[str, Any], where: Path, why: str, end_of_text: str | None = None
) -> LibraryTokenizer:
    """Returns the tokenizer of the file `where`, for which lmsmith's engine is not exact because it
    has `why`. Logs one warning per file and process.
    """
    try:
        tokenizer = LibraryTokenizer(content, end_of_text)
    except TokenizerError as error:
        raise TokenizerError(
            f"cannot use {where}: {error} (lmsmith's own engine cannot run it: it has {why}.)"
        ) from error
    _warn_once(
        f"{where} has {why}: using the library tokenizers, which is slower than lmsmith's engine"
    )
    return tokenizer


@functools.cache
def _warn_once(line: str) -> None:
    log.warning("%s", line)


def _engine(content: Mapping[str, Any], end_of_text: str | None) -> Any:
    """Returns the library's tokenizer of `content`, set to encode special tokens as text."""
    # The library's own threads do not help with short texts, and make forking unsafe.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Engine
    except ImportError as error:
        raise TokenizerError(f"it needs the library tokenizers: run {INSTALL}.") from error
    with _library_errors("load this tokenizer"):
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
def _library_errors(doing: str) -> Iterator[None]:
    """Converts errors of the library to TokenizerError: it has no error class of its own, and its
    panics do not derive from Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"the library tokenizers cannot {doing}: {error}.") from error


def as_string(text: str | bytes) -> str:
    """Text as the library reads it: what is not UTF-8 is U+FFFD."""
    return (text if isinstance(text, bytes) else to_utf8(text)).decode("utf-8", "replace")


# Decoders that can stream: the text of the first ids is a prefix of the text of all ids.
_STREAMING = {"WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "ByteLevel"}


def _can_stream(decoder: Mapping[str, Any] | None) -> bool:
    if decoder is None:  # joins tokens with spaces
        return True
    kind = decoder.get("type")
    if kind == "Sequence":
        return all(map(_can_stream, decoder["decoders"]))
    if kind == "Strip":
        return not decoder.get("stop")
    if kind == "Replace":
        return len(decoder["pattern"].get("String", "")) == 1
    return kind in _STREAMING
