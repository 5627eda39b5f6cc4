"""The scheduler's jobs, and the engines that they run in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lmsmith.generate.decode import unused_tokens
from lmsmith.generate.engine import Engine, Request
from lmsmith.generate.text_model import TextModel
from lmsmith.serve.pieces import Piece, Pieces


@dataclass(eq=False)
class Job:
    """One sequence of a request."""

    writer: TextModel
    request: Request
    pieces: Pieces
    client: str  # its address, and after a space its user
    deliver: Callable[[Piece], None]  # called in the thread of `loop`
    deadline: float  # time.monotonic()
    created: float = field(default_factory=time.monotonic)
    n_tokens: int = 0
    lane: Lane | None = None  # where it runs
    number: int = -1  # of its sequence there
    done: bool = False
    loop: asyncio.AbstractEventLoop | None = None  # None: the scheduler's thread


DELIVERY_SECONDS = 0.01
"""Pieces wait at most this long for others. Waking the event loop, writing to the network and
waking the client take about as long as decoding a token of a small model, on cores that decoding
needs.
"""


class Outbox:
    """Pieces that wait to be delivered together. Only streams of more than a hundred tokens per
    second are delivered less often than token by token.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[Job, Piece]] = []
        self._since = 0.0  # when the first one came
        self._urgent = False  # the first piece of an answer, or the last

    def add(self, job: Job, piece: Piece) -> None:
        if not self._pieces:
            self._since = time.monotonic()
        self._pieces.append((job, piece))
        self._urgent |= bool(piece.finish) or job.n_tokens <= 1

    def is_due(self, seconds: float) -> bool:
        """Whether the pieces would wait too long if they waited `seconds` more."""
        return self._urgent or time.monotonic() - self._since + seconds > DELIVERY_SECONDS

    def flush(self) -> None:
        """Delivers all pieces, in their order."""
        if self._pieces:
            pieces, self._pieces, self._urgent = self._pieces, [], False
            deliver(pieces)


def deliver(pieces: Iterable[tuple[Job, Piece]]) -> None:
    """Delivers pieces, with one call for each event loop: every call may make the scheduler wait
    for the interpreter's lock.
    """
    by_loop: dict[asyncio.AbstractEventLoop | None, list[tuple[Job, Piece]]] = {}
    for job, piece in pieces:
        by_loop.setdefault(job.loop, []).append((job, piece))
    for loop, some in by_loop.items():
        if loop is None:
            _deliver_here(some)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_deliver_here, some)


def _deliver_here(pieces: Iterable[tuple[Job, Piece]]) -> None:
    for job, piece in pieces:
        job.deliver(piece)


class Lane:
    """The engine of one model, and the jobs that run in it."""

    def __init__(self, writer: TextModel, n_slots: int, prefix_bytes: int) -> None:
        self.writer, self.n_slots, self._prefix_bytes = writer, n_slots, prefix_bytes
        self.jobs: dict[int, Job] = {}
        self.new_engine()

    def new_engine(self) -> None:
        model, tokenizer = self.writer.model, self.writer.tokenizer
        self.engine = Engine(
            model,
            self.n_slots,
            forbidden=unused_tokens(model, tokenizer),
            draft=self.writer.draft,
            prefix_bytes=self._prefix_bytes,
        )
