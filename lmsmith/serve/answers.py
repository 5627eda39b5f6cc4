"""From a checked request to its answer: shared by completions and chat.

`Generation` submits the sequences of a request and yields their pieces as they are generated. If
the client disconnects, or the answer ends early, the sequences that still run are cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lmsmith.generate.engine import Request
from lmsmith.generate.sampling import Constraint
from lmsmith.generate.text_model import TextModel
from lmsmith.serve import errors
from lmsmith.serve.backlog import Backlog
from lmsmith.serve.errors import ApiError
from lmsmith.serve.fields import Fields
from lmsmith.serve.jobs import Job
from lmsmith.serve.pieces import Piece, Pieces, Shown
from lmsmith.serve.sampling import Common, Limits
from lmsmith.serve.scheduler import Scheduler
from lmsmith.strict_json import to_json

_BACKLOG = Backlog()
SHORT_BODY = 4096  # bytes
LONG_PART = 1 << 16
"""Bytes of events after which they are written, whether more are ready or not."""
_READER = ThreadPoolExecutor(1, "lmsmith-reader")


async def read_in_time(function: Callable[..., Any], fields: Fields, *arguments: Any) -> Any:
    """function(fields, ...), which checks a request and encodes its texts. Long texts and grammars
    take a while, so they have a thread of their own; for short ones, the hand-over would take
    longer than the work.
    """
    if fields.n_bytes <= SHORT_BODY and "response_format" not in fields.names:
        return function(fields, *arguments)
    arguments = (fields, *arguments)
    return await asyncio.get_running_loop().run_in_executor(_READER, function, *arguments)


@dataclass
class Choice:
    """An answer: complete, or its pieces so far."""

    text: str = ""
    tokens: list[Shown] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    n_tokens: int = 0
    log_probability: float = 0.0

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.ids += piece.ids
        self.finish = piece.finish
        self.n_tokens += piece.n_tokens
        self.log_probability += piece.log_probability


class Generation:
    """The sequences of one request: `n` for each prompt, numbered prompt by prompt."""

    def __init__(
        self,
        scheduler: Scheduler,
        writer: TextModel,
        prompts: Sequence[Sequence[int]],
        common: Common,
        limits: Limits,
        *,
        n: int,
        stop: Sequence[str],
        client: str,
        report: bool = False,
        score: bool = False,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        """`report`: with each token's log-probability and bytes. `score`: the log-probability
        alone. `constraints`: one for each sequence, or none.
        """
        self._scheduler = scheduler
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.n_bytes_waiting = 0
        self._ended = False
        self.created = int(time.time())
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + limits.seconds
        self._jobs: list[Job] = []
        for ids in prompts:
            for index in range(n):
                request = Request(
                    ids,
                    common.max_tokens,
                    common.sampling,
                    common.seed,
                    index,
                    writer.ends,
                    log_probabilities=report or score,
                    constraint=constraints[len(self._jobs)] if constraints else None,
                )
                self._jobs.append(
                    Job(
                        writer,
                        request,
                        Pieces(writer, stop, report),
                        client,
                        partial(self._put, len(self._jobs)),
                        deadline,
                        loop=loop,
                    )
                )
        self.n_prompt = sum(map(len, prompts))
        self.n_generated = 0
        scheduler.metrics.add("tokens_prompt", self.n_prompt)
        scheduler.submit(self._jobs)

    def _put(self, number: int, piece: Piece) -> None:
        if not self._ended:
            self._pieces.put_nowait((number, piece))
            _BACKLOG.add(self, piece)

    @property
    def has_ready(self) -> bool:
        """Whether another piece can be taken without waiting."""
        return not self._pieces.empty()

    def fail(self, error: ApiError) -> None:
        """Ends the request with an error, in place of the pieces that wait."""
        self.cancel()
        while not self._pieces.empty():
            self._pieces.get_nowait()
        self._ended = True
        self._pieces.put_nowait((0, Piece(finish="error", error=error)))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(number of the sequence, piece), until all have finished. Raises their errors."""
        left = len(self._jobs)
        try:
            while left:
                number, piece = await self._pieces.get()
                _BACKLOG.remove(self, piece)
                if piece.error is not None:
                    raise errors.of(piece.error)
                self.n_generated += piece.n_tokens
                left -= bool(piece.finish)
                yield number, piece
        finally:
            self.close()

    async def choices(self, http: HttpRequest) -> list[Choice]:
        """All answers, complete. Raises ApiError; Disconnected if the client has left."""
        choices = [Choice() for _ in self._jobs]

        async def collect() -> None:
            async for number, piece in self.pieces():
                choices[number].add(piece)

        await until_disconnected(http, collect(), self._scheduler)
        return choices

    def close(self) -> None:
        """Drops the sequences that still run, and the pieces that wait."""
        self._ended = True
        _BACKLOG.remove_all(self)
        self.cancel()

    def cancel(self) -> None:
        """Drops the sequences that still run."""
        if any(not job.done for job in self._jobs):
            self._scheduler.cancel(self._jobs)

    def usage(self, n_prompt: int | None = None) -> dict[str, int]:
        """Counts of tokens. `n_prompt`: if a prompt counts otherwise."""
        n_prompt = self.n_prompt if n_prompt is None else n_prompt
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": self.n_generated,
            "total_tokens": n_prompt + self.n_generated,
        }


class Disconnected(Exception):
    """The client has closed the connection."""


async def until_disconnected(http: HttpRequest, work: Any, scheduler: Scheduler) -> Any:
    """The result of `work`, which is cancelled if the client leaves before."""

    async def watch() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, watching = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({task, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            scheduler.metrics.add("cancelled")
            raise Disconnected
        return task.result()
    finally:
        for each in (task, watching):
            each.cancel()
        await asyncio.gather(task, watching, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events. An error after the first one is an event of its own.

    `chunks`: the event for each piece of `generation`; None for a piece without one.
    """

    def __init__(
        self, chunks: AsyncIterator[dict[str, Any] | None], generation: Generation
    ) -> None:
        super().__init__(
            _lines(chunks, generation),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # the client may have left before the first line
            self._generation.close()


async def _lines(
    chunks: AsyncIterator[dict[str, Any] | None], generation: Generation
) -> AsyncIterator[bytes]:
    """The events; those that are ready at the same time are one part, which is written at once."""
    part = b""
    try:
        async for chunk in chunks:
            if chunk is not None:
                part += _event(chunk)
            if part and (len(part) > LONG_PART or not generation.has_ready):
                yield part
                part = b""
        part += b"data: [DONE]\n\n"
    except ApiError as error:
        part += _event(error.body())
    yield part


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value, ensure_ascii=False).encode("utf-8") + b"\n\n"
