"""Tokens of one sequence -> pieces of text, up to a stop string or an end token.

The texts are those of `generate.decode.stream_text`, to the last character: both use its `Writer`.
A token is reported with the piece in which its text appears, so tokens of a stop string are not.
An end token is reported last, with an empty text: lm-evaluation-harness expects a log-probability
for each token that was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmsmith.generate.decode import Writer
from lmsmith.generate.engine import Token
from lmsmith.generate.text_model import TextModel
from lmsmith.tokens.stream_decoder import StreamDecoder
from lmsmith.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Shown:
    """A token as the API shows it."""

    id: int
    raw: bytes
    log_probability: float | None  # None for the first token of a text
    alternatives: tuple[tuple[int, bytes, float], ...]  # (id, bytes, log-probability)
    offset: int  # of its text in the answer, in characters
    is_end: bool = False

    @property
    def text(self) -> str:
        return as_text(self.raw)


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer."""

    text: str = ""
    tokens: tuple[Shown, ...] = ()  # only if log-probabilities were asked for
    ids: tuple[int, ...] = ()  # of the text's tokens, and of an end token
    n_tokens: int = 0  # drawn, with an end token and tokens of a stop string
    finish: str = ""  # "stop", "length"
    log_probability: float = 0.0  # of the drawn tokens
    error: Exception | None = None


def as_text(piece: bytes) -> str:
    """The text of a token; the form of OpenAI's API for bytes that are not UTF-8."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def bytes_of(tokenizer: Tokenizer, id: int) -> bytes:
    """The bytes of one token. A token of text reads as it does inside a text."""
    if tokenizer.decodes_bytes:
        return tokenizer.decode_bytes([id])
    decoder = StreamDecoder(tokenizer)
    known = tokenizer.encode("a").tolist()  # a text before it keeps the token's own space
    before = decoder.push(known)
    return (before + decoder.push(id) + decoder.flush())[len(before) :].encode("utf-8")


class Pieces:
    """Turns the tokens of a sequence into pieces."""

    def __init__(self, writer: TextModel, stop: Sequence[str], log_probabilities: bool) -> None:
        self._tokenizer = writer.tokenizer
        self._writer = Writer(writer.tokenizer, stop, writer.ends)
        self._report = log_probabilities
        self._n_shown = 0  # characters
        self._held: list[tuple[int, Shown]] = []  # tokens whose text ends after what was shown

    def push(self, token: Token) -> Piece:
        start = self._n_shown + self._writer.n_held
        text = self._writer.push(token.id)
        finish = "stop" if self._writer.done else "length" if token.finished else ""
        if finish:
            text += self._writer.flush()
        self._n_shown += len(text)
        is_end = token.id in self._writer.ends
        shown = self._shown(token, self._n_shown if is_end else start, is_end)
        self._held.append((self._n_shown + self._writer.n_held, shown))
        tokens = self._release(stopped=self._writer.stop_found, finished=bool(finish))
        return Piece(
            text,
            tokens if self._report else (),
            tuple(token.id for token in tokens),
            1,
            finish,
            0.0 if math.isnan(token.log_probability) else token.log_probability,
        )

    def end(self, piece: Piece) -> Piece:
        """The last piece instead, with what was held back: a grammar allows nothing more."""
        text = self._writer.flush()
        self._n_shown += len(text)
        tokens = self._release(stopped=False, finished=True)
        return replace(
            piece,
            text=piece.text + text,
            tokens=piece.tokens + (tokens if self._report else ()),
            ids=piece.ids + tuple(token.id for token in tokens),
            finish="stop",
        )

    def _release(self, *, stopped: bool, finished: bool) -> tuple[Shown, ...]:
        """The held tokens whose text has been shown; at the end all but those of a stop string."""
        kept, tokens = [], []
        for end, shown in self._held:
            due = shown.offset < self._n_shown if stopped else finished or end <= self._n_shown
            if due:
                tokens.append(shown)
            else:
                kept.append((end, shown))
        self._held = [] if finished else kept
        return tuple(tokens)

    def _shown(self, token: Token, offset: int, is_end: bool) -> Shown:
        if not self._report:
            return Shown(token.id, b"", None, (), offset, is_end)
        return Shown(
            token.id,
            b"" if is_end else bytes_of(self._tokenizer, token.id),
            token.log_probability,
            tuple((id, bytes_of(self._tokenizer, id), p) for id, p in token.alternatives),
            offset,
            is_end,
        )
