"""Reads batches ahead: a thread reads the next ones during training.

    # Rows 0 to 8 of each batch, then 8 to 16.
    with ReadAhead(batches, lambda step: [(0, 8), (8, 16)]) as ahead:
        ahead.rows(step, 0, 8)

`rows` returns the same as `batches.rows` for that step. Reading ahead only guesses the next
request; after a wrong guess (the first step, a step back) it starts over. So nothing here is part
of a run's state. An error while reading is raised when its rows are requested, not before.

Training thus does not wait for a slow disk or for a shard that is not cached: NumPy copies without
holding the GIL.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue
from typing import Self

from lmsmith.data.batches.windows import AnyBatches, Batch

DEPTH = 4
"""Number of parts of batches that are kept ready."""

Key = tuple[int, int, int | None]


class ReadAhead:
    """Reads `batches` ahead. `close` it, or use it in a `with` block, to end its thread."""

    def __init__(
        self, batches: AnyBatches, parts: Callable[[int], Sequence[tuple[int, int]]]
    ) -> None:
        """`parts(step)`: the row ranges of that batch that will be requested, in order."""
        self.batches, self.parts = batches, parts
        self._next: Key | None = None  # the key of the next batch in the queue
        self._thread: threading.Thread | None = None

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`. Raises any error from reading them."""
        key = (step, start, end)
        if (start, end) not in self.parts(step):
            return self.batches.rows(*key)
        if key != self._next:
            self._begin(key)
        self._next = None  # if a signal interrupts the next lines, the next call starts over
        batch = self._queue.get()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self._next = next(self._coming)
        return batch

    def n_targets(self, step: int) -> int:
        return self.batches.n_targets(step)

    @property
    def tokens_per_batch(self) -> int:
        return self.batches.tokens_per_batch

    def close(self) -> None:
        """Ends the thread, after the part it is reading."""
        if self._thread is None:
            return
        self._stop.set()
        try:
            while True:
                # makes room for a pending put, after which the thread sees the event
                self._queue.get_nowait()
        except Empty:
            pass
        self._thread.join()
        self._thread = self._next = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, key: Key) -> None:
        self.close()
        self._queue: Queue[Batch | BaseException] = Queue(DEPTH)
        self._stop = threading.Event()
        self._coming = self._keys(key)
        self._next = next(self._coming)
        # A daemon thread does not keep the process alive if `close` is not called.
        self._thread = threading.Thread(
            target=self._read,
            args=(self._queue, self._stop, self._keys(key)),
            name="read ahead",
            daemon=True,
        )
        self._thread.start()

    def _keys(self, key: Key) -> Iterator[Key]:
        """`key`, and the keys that are expected after it."""
        step, start, end = key
        position = self.parts(step).index((start, end))
        yield from ((step, *part) for part in self.parts(step)[position:])
        yield from (
            (later, *part) for later in itertools.count(step + 1) for part in self.parts(later)
        )

    def _read(
        self, queue: "Queue[Batch | BaseException]", stop: threading.Event, keys: Iterator[Key]
    ) -> None:
        for key in keys:
            if stop.is_set():
                return
            try:
                queue.put(self.batches.rows(*key))
            except BaseException as error:  # raised again by `rows`
                queue.put(error)
                return
