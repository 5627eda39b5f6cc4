"""Starts and stops the server.

SIGTERM and SIGINT end it in order: no new requests are accepted, running ones finish, for at most
`drain_seconds`, and the process exits with 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lmsmith.errors import UsageError
from lmsmith.serve.app import Serving, make_app
from lmsmith.serve.metrics import Metrics
from lmsmith.serve.models import Models
from lmsmith.serve.options import Options
from lmsmith.serve.protocol import HEAD_BYTES, protocol_for
from lmsmith.serve.scheduler import Scheduler

log = logging.getLogger("lmsmith.serve")


def run(options: Options, ready: Callable[[str], None]) -> int:
    """`options.serve`, with the libraries imported."""
    metrics = Metrics()
    scheduler = Scheduler(options.n_slots, options.max_waiting, metrics, options.prefix_bytes)
    models = Models(
        options.runs,
        scheduler,
        weights=options.weights,
        draft=options.draft,
        max_bytes=options.max_bytes,
    )
    with contextlib.closing(_listen(options.host, options.port)) as listener:
        _log_to_stderr()
        scheduler.start()
        try:
            models.load_first()
            serving = Serving(
                models,
                scheduler,
                metrics,
                options.limits,
                options.api_key,
                (options.host, *options.allowed_hosts),
                options.log_prompts,
            )
            _run(make_app(serving), serving, listener, options, ready)
        finally:
            scheduler.stop()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UsageError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}. Is another server running "
            "there? Choose another --port or --host."
        ) from error
    return listener


def _run(
    app: ASGIApp,
    serving: Serving,
    listener: socket.socket,
    options: Options,
    ready: Callable[[str], None],
    made: list[uvicorn.Server] | None = None,
) -> None:
    """Runs until a signal. `made`: receives the server, for tests that stop it."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = _Server(_config(app, options), serving, options.drain_seconds, lambda: ready(address))
    if made is not None:
        made.append(server)
    server.run(sockets=[listener])


def _config(app: ASGIApp, options: Options) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_for(options.limits.seconds + 60),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=HEAD_BYTES,
        backlog=1024,
    )


class _Server(uvicorn.Server):
    """uvicorn, which does not end itself with the signal after an orderly end."""

    def __init__(
        self, config: uvicorn.Config, serving: Serving, drain: float, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.should_exit: bool = False
        self._serving, self._drain, self._ready = serving, drain, ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._serving.stopping = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async def limit() -> None:
            await asyncio.sleep(self._drain)
            log.warning("requests still run after %g s: cancelled", self._drain)
            self.force_exit = True

        limited = asyncio.create_task(limit())
        for connection in list(self.server_state.connections):
            if getattr(connection, "cycle", None) is None:  # has sent no complete request yet
                connection.transport.abort()
        await super().shutdown(sockets)
        limited.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:  # one that does not react must not keep the server alive
            await asyncio.wait(tasks, timeout=2)


def _log_to_stderr() -> None:
    """A line per request on standard error, with the time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
