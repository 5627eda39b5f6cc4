"""Bounds the memory of pieces that are generated and not yet sent.

A client that reads its stream slowly, or not at all, does not slow the engine down: its pieces wait
in memory. All of them together may take MOST_BYTES. When they take more, the request with the most
is cancelled, and its stream ends with an error.
"""

from __future__ import annotations

from typing import Protocol

from lmsmith.serve.errors import ApiError
from lmsmith.serve.pieces import Piece

MOST_BYTES = 64 << 20


class Stream(Protocol):
    """A request whose pieces wait."""

    n_bytes_waiting: int

    def fail(self, error: ApiError) -> None:
        """Drops the pieces that wait and ends the request with an error."""


class Backlog:
    """The requests whose pieces wait. Used by the event loop's thread only."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._streams: set[Stream] = set()

    def add(self, stream: Stream, piece: Piece) -> None:
        """Counts a piece that begins to wait."""
        n = size_of(piece)
        self._streams.add(stream)
        stream.n_bytes_waiting += n
        self.n_bytes += n
        if self.n_bytes > MOST_BYTES:
            slowest = max(self._streams, key=lambda each: each.n_bytes_waiting)
            slowest.fail(
                ApiError(503, "the client reads its answer too slowly.", code="slow_client")
            )
            self.remove_all(slowest)

    def remove(self, stream: Stream, piece: Piece) -> None:
        """Counts a piece that has been taken."""
        n = min(size_of(piece), stream.n_bytes_waiting)
        stream.n_bytes_waiting -= n
        self.n_bytes -= n

    def remove_all(self, stream: Stream) -> None:
        """Forgets a request."""
        self.n_bytes -= stream.n_bytes_waiting
        stream.n_bytes_waiting = 0
        self._streams.discard(stream)


def size_of(piece: Piece) -> int:
    """About the bytes of memory that a piece takes."""
    n_tokens = len(piece.tokens)
    n_alternatives = sum(len(token.alternatives) for token in piece.tokens)
    return 500 + 4 * len(piece.text) + 300 * n_tokens + 200 * n_alternatives
