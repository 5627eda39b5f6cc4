"""HTTP with time limits: no client can hold a connection for long without a complete request.

uvicorn closes idle connections only after a first response. Here a connection is closed when the
head of a request takes longer than HEAD_SECONDS (slowloris), and when a request with its response
takes longer than `request_seconds` (a client that does not read). At most MOST_CONNECTIONS
connections are open; each holds at most HEAD_BYTES of a head, and the write buffer of one response.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmsmith.serve.guard import HEAD_BYTES as HEAD_BYTES

HEAD_SECONDS = 10.0
MOST_CONNECTIONS = 1024


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with limits. Subclasses set `request_seconds`."""

    request_seconds = 660.0
    head_seconds = HEAD_SECONDS
    _timer: asyncio.TimerHandle | None = None
    _timer_is_for_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._arm(for_head=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        self._disarm()
        super().on_response_complete()
        self._follow()

    def _follow(self) -> None:
        """Sets the timer for what the connection waits for now."""
        if self.transport.is_closing():
            return
        idle = self.conn.their_state is h11.IDLE
        if idle or self.conn.our_state is h11.DONE:  # DONE: answered before the body was complete
            waits = not idle or self.conn.trailing_data[0] != b""  # a part of a head
            if waits and (self._timer is None or not self._timer_is_for_head):
                self._arm(for_head=True)
        elif self._timer is None or self._timer_is_for_head:
            self._arm(for_head=False)

    def _arm(self, *, for_head: bool) -> None:
        self._disarm()
        seconds = self.head_seconds if for_head else self.request_seconds
        self._timer_is_for_head = for_head
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol_for(request_seconds: float) -> type[Protocol]:
    """A protocol class whose requests may take this long."""
    return type("_Protocol", (Protocol,), {"request_seconds": request_seconds})
