"""One thread that owns every engine: sequences wait, run together, and leave.

    scheduler = Scheduler(n_slots=16, max_waiting=256)
    scheduler.start()
    scheduler.submit([Job(...), ...])           # from any thread; raises ApiError 429 if it is full
    scheduler.cancel(jobs)

Each round of the thread gives every engine one step. Before it, waiting sequences take free slots:
clients in turn, the requests of one client in order. An engine reads new prompts in parts, beside
the running sequences, so that streams do not stop for long.

A fast model's tokens are delivered some at a time (`jobs.Outbox`).

Compiled decode kernels may be called by one thread at a time only, so no other thread touches an
engine. `call` runs any other use of a model in this thread, between two steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from lmsmith.generate.engine import Request, Token
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel
from lmsmith.serve.errors import ApiError, bad, busy
from lmsmith.serve.jobs import Job, Lane, Outbox
from lmsmith.serve.metrics import Metrics
from lmsmith.serve.pieces import Piece, bytes_of
from lmsmith.serve.queue import Queue

log = logging.getLogger(__name__)

NO_TOKEN = "the model's vocabulary has no token that the schema allows next: ask for plain text."


class Scheduler:
    """Runs jobs. All methods can be called from any thread."""

    def __init__(
        self,
        n_slots: int = 16,
        max_waiting: int = 256,
        metrics: Metrics | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        """`n_slots`: sequences that run at once, per model. `max_waiting`: sequences in the queue.
        `prefix_bytes`: of the prefix cache, per model.
        """
        self.n_slots, self.max_waiting = n_slots, max_waiting
        self._prefix_bytes = prefix_bytes
        self.metrics = metrics or Metrics()
        self._wake = threading.Condition()
        self._queue = Queue(max_waiting)
        self._cancelled: list[Job] = []
        self._calls: deque[tuple[str, Callable[[], Any], Future[Any]]] = deque()
        self._lanes: dict[int, Lane] = {}  # by the id of the TextModel, which the lane keeps alive
        self._outbox = Outbox()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lmsmith-scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Jobs that have not finished get an error."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Adds the sequences of one request, all or none. Raises ApiError 429 if the queue has no
        place for them (`queue.py`).
        """
        with self._wake:
            if self._stopping:
                raise ApiError(503, "the server is stopping.", code="stopping")
            seconds = self.metrics.seconds_to_wait(self._queue.n_jobs)
            if refusal := self._queue.refusal(jobs, seconds):
                self.metrics.add("requests_rejected")
                raise refusal
            self._queue.add(jobs)
            self._wake.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Drops sequences; they deliver nothing more. Finished ones are no error."""
        with self._wake:
            self._cancelled += [job for job in jobs if not job.done]
            self._wake.notify()

    def call(self, function: Callable[[], Any], client: str = "") -> Future[Any]:
        """Runs a function in the scheduler's thread. `client`: who asks for it. Raises ApiError 429
        if many are waiting; a client may have as many of them as there are free places.
        """
        future: Future[Any] = Future()
        with self._wake:
            if self._stopping:
                raise ApiError(503, "the server is stopping.", code="stopping")
            own = sum(other == client for other, _, _ in self._calls)
            if own + 1 > self.max_waiting - len(self._calls):
                raise busy("many requests wait: try again later.")
            self._calls.append((client, function, future))
            self._wake.notify()
        return future

    def warm_up(self, writer: TextModel) -> Future[Any]:
        """Creates a model's engine, and compiles what a request needs or loads it from Numba's
        cache: the tokenizer, the decoder, sampling, and the report of log-probabilities.
        """

        def run() -> None:
            engine = self._lane(writer).engine
            writer.encode("a")
            bytes_of(writer.tokenizer, 0)
            for sampling in (Sampling(n_alternatives=1), Sampling(top_p=0.9)):
                engine.submit(Request([0], 3, sampling, log_probabilities=True))
            while engine.busy:
                engine.step()

        return self.call(run)

    def forget(self, writer: TextModel) -> Future[Any]:
        """Drops the engine of a model that has no jobs, to free its memory."""
        return self.call(lambda: self._lanes.pop(id(writer), None))

    def is_used(self, writer: TextModel) -> bool:
        """Whether a job of this model waits or runs."""
        with self._wake:
            waits = any(job.writer is writer for job in self._queue)
            lane = self._lanes.get(id(writer))
            return waits or bool(lane and lane.jobs)

    @property
    def n_waiting(self) -> int:
        return self._queue.n_jobs

    @property
    def n_running(self) -> int:
        return sum(len(lane.jobs) for lane in list(self._lanes.values()))

    # ---- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._stopping or self._has_work()):
                    self._wake.wait()
                if self._stopping:
                    self._end_all()
                    return
                cancelled, self._cancelled = self._cancelled, []
                call = self._calls.popleft() if self._calls else None
            for job in cancelled:
                self._drop(job)
            self._expire()
            if call:
                self._outbox.flush()  # the call may take long
                _answer(*call[1:])
            self._admit()
            began = time.monotonic()
            for lane in list(self._lanes.values()):
                if lane.engine.busy:
                    self._step(lane)
            self._deliver(time.monotonic() - began)

    def _deliver(self, seconds: float) -> None:
        """Delivers pieces, unless they may wait for those of the next round. `seconds`: of this
        round, which the next one is expected to take.
        """
        lanes = self._lanes.values()
        reads_prompts = any(lane.engine.reads_prompts for lane in lanes)  # that takes longer
        if reads_prompts or not self.n_running or self._outbox.is_due(seconds):
            self._outbox.flush()

    def _has_work(self) -> bool:
        running = any(lane.jobs for lane in self._lanes.values())
        return bool(running or self._queue.n_jobs or self._calls or self._cancelled)

    def _admit(self) -> None:
        """Moves waiting jobs into engines with free slots, clients in turn."""
        while job := self._next():
            self._outbox.flush()  # the next round reads a prompt
            lane = self._lane(job.writer)
            try:
                job.number = lane.engine.submit(job.request)
            except Exception as error:
                self._fail(job, error)
                continue
            job.lane = lane
            lane.jobs[job.number] = job

    def _next(self) -> Job | None:
        """Takes the next job whose model has a free slot."""

        def has_slot(job: Job) -> bool:
            lane = self._lanes.get(id(job.writer))
            return lane is None or len(lane.jobs) < lane.n_slots

        with self._wake:
            return self._queue.take(has_slot)

    def _lane(self, writer: TextModel) -> Lane:
        if id(writer) not in self._lanes:
            self._lanes[id(writer)] = Lane(writer, self.n_slots, self._prefix_bytes)
        return self._lanes[id(writer)]

    def _step(self, lane: Lane) -> None:
        n_found = lane.engine.n_tokens_found
        try:
            tokens = lane.engine.step()
        except Exception as error:  # one bad sequence: which one is unknown, so all of them end
            log.exception("a decode step failed")
            jobs, lane.jobs = list(lane.jobs.values()), {}
            lane.new_engine()
            for job in jobs:
                self._fail(job, error)
            return
        self.metrics.add("tokens_prompt_cached", lane.engine.n_tokens_found - n_found)
        for token in tokens:
            if token.sequence in lane.jobs:  # else a draft's further tokens, after a stop string
                job = lane.jobs[token.sequence]
                self._outbox.add(job, self._take(job, token))
        self.metrics.add("tokens_generated", len(tokens))

    def _take(self, job: Job, token: Token) -> Piece:
        """What a token adds to a job."""
        constraint = job.request.constraint
        if constraint is not None and constraint.failed:
            self._remove(job, cancel=not token.finished)
            return Piece(finish="error", error=bad(NO_TOKEN, "response_format"))
        piece = job.pieces.push(token)
        if constraint is not None and constraint.done and not piece.finish:
            piece = job.pieces.end(piece)
        if not job.n_tokens:
            self.metrics.first_token(time.monotonic() - job.created)
        job.n_tokens += 1
        if piece.finish:
            self._remove(job, cancel=not token.finished)
        return piece

    def _expire(self) -> None:
        """Ends jobs that have run out of time."""
        now = time.monotonic()
        running = [job for lane in self._lanes.values() for job in lane.jobs.values()]
        with self._wake:
            waiting = list(self._queue)
        for job in running + waiting:
            if job.deadline <= now:
                late = ApiError(504, "the request took longer than its time limit.", code="timeout")
                self._drop(job)
                self._fail(job, late)

    def _drop(self, job: Job) -> None:
        """Removes a job, whether it runs or waits."""
        if job.lane is not None:
            self._remove(job, cancel=True)
            return
        job.done = True
        with self._wake:
            self._queue.remove(job)

    def _remove(self, job: Job, *, cancel: bool) -> None:
        job.done = True
        lane = job.lane
        if lane is not None and lane.jobs.pop(job.number, None) is not None and cancel:
            lane.engine.cancel(job.number)

    def _fail(self, job: Job, error: Exception) -> None:
        job.done = True
        self._outbox.add(job, Piece(finish="error", error=error))
        self._outbox.flush()

    def _end_all(self) -> None:
        stopped = ApiError(503, "the server has stopped.", code="stopping")
        for lane in self._lanes.values():
            for job in list(lane.jobs.values()):
                self._fail(job, stopped)
        for job in self._queue:
            self._fail(job, stopped)
        for *_, future in self._calls:
            future.set_exception(stopped)


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
