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


def deliver(pieces: Iterable[tuple[Job, Piece]]) -> None:
    """Delivers the pieces of one step, with one call for each event loop: every call may make the
    scheduler wait for the interpreter's lock.
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
