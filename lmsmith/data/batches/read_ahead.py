"""Batches read ahead: a thread reads the next ones while one is trained on.

    # Rows 0 to 8 of each batch, then 8 to 16.
    with ReadAhead(batches, lambda step: [(0, 8), (8, 16)]) as ahead:
        ahead.rows(step, 0, 8)

What `rows` returns is what `batches.rows` returns for the same step: reading ahead is a guess at
what will be asked for next, and a wrong one (the first step, a step back) is thrown away and begun
anew. So nothing here is part of a run's state. What goes wrong while reading is raised where the
rows are asked for, not before.

A shard on a slow disk, or one that is not in memory yet, is so no reason to wait; NumPy copies
without Python's lock.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue
from typing import Self

from lmsmith.data.batches.windows import AnyBatches, Batch

DEPTH = 4
"""Parts of batches that are kept ready."""

Key = tuple[int, int, int | None]


class ReadAhead:
    """`batches`, sooner. `close` it, or use it in a `with`, to end its thread."""

    def __init__(
        self, batches: AnyBatches, parts: Callable[[int], Sequence[tuple[int, int]]]
    ) -> None:
        """`parts`: of a step, which rows of its batch are asked for, from where to where, in
        this order.
        """
        self.batches, self.parts = batches, parts
        self._next: Key | None = None  # what comes out of the queue next
        self._thread: threading.Thread | None = None

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        """Rows `start` to `end` of batch `step`. Raises what reading them raised."""
        key = (step, start, end)
        if (start, end) not in self.parts(step):
            return self.batches.rows(*key)
        if key != self._next:
            self._begin(key)
        self._next = None  # a signal may end this between two lines: whoever asks again begins anew
        found = self._queue.get()
        if isinstance(found, BaseException):
            self.close()
            raise found
        self._next = next(self._coming)
        return found

    def n_counted(self, step: int) -> int:
        return self.batches.n_counted(step)

    @property
    def tokens_per_batch(self) -> int:
        return self.batches.tokens_per_batch

    def close(self) -> None:
        """Ends the thread, once it has read what it is at."""
        if self._thread is None:
            return
        self._stop.set()
        try:
            while True:
                # room for what it is waiting to put there, after which it sees the event
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
        # A daemon: a process that ends without `close` does not wait for it.
        self._thread = threading.Thread(
            target=self._read,
            args=(self._queue, self._stop, self._keys(key)),
            name="read ahead",
            daemon=True,
        )
        self._thread.start()

    def _keys(self, key: Key) -> Iterator[Key]:
        """`key` and all that will be asked for after it, if nothing unforeseen is."""
        step, start, end = key
        place = self.parts(step).index((start, end))
        yield from ((step, *part) for part in self.parts(step)[place:])
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
            except BaseException as error:  # raised by whoever asks for these rows
                queue.put(error)
                return
