"""The audit of a run's data: how many of the training tokens were predicted never, once, twice, ...
by its updates.

Nothing was recorded while training, and nothing has to be: which windows a step reads is a function
of (seed, step), so they are computed once more. A whole epoch is one stretch of tokens, whatever
its order; of the epoch that is under way each window is a stretch. Where stretches begin and end,
sorted, gives the counts: the work goes with the number of windows, not of tokens.

A token counts as seen each time it is a target. (As an input it is seen one step earlier in its
row, so the first token of all is read and never predicted.)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmsmith.data.batches.batch_warmup import BatchWarmup
from lmsmith.data.batches.packing import Packed
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.streams import Streams
from lmsmith.data.batches.windows import AnyBatches, Batches, Windows


@dataclass(frozen=True)
class Exposure:
    """Of one source: its tokens, the epochs it went through, and `times[k]` tokens that were
    seen k times.
    """

    n_tokens: int
    n_epochs: float
    times: tuple[int, ...]


class _Seen(NamedTuple):
    """Stretches of tokens that were read, each `times` times: where they begin (n,), and how
    long they are.
    """

    begins: np.ndarray
    lengths: np.ndarray | int
    times: int = 1


def exposure(batches: AnyBatches, n_steps: int) -> tuple[Exposure, ...]:
    """What the first `n_steps` updates saw of each source."""
    if isinstance(batches, Packed):
        return exposure(batches.windows, n_steps)
    if isinstance(batches, Rows):
        return (_of_rows(batches, n_steps),)
    if isinstance(batches, Streams):
        return (_of_streams(batches, n_steps),)
    if isinstance(batches, BatchWarmup):
        windows, n_read = batches.windows, batches.first_row(n_steps)
    else:
        assert isinstance(batches, Batches)
        windows, n_read = batches, n_steps * batches.batch_size
    n_rows = windows.mixture.before(n_read)
    return tuple(_of_windows(source, n) for source, n in zip(windows.sources, n_rows, strict=True))


def _of_windows(source: Windows, n_rows: int) -> Exposure:
    n_epochs, under_way = divmod(n_rows, source.n_windows)
    whole = _Seen(_offsets(source, n_epochs), source.n_windows * source.T)
    begun = _Seen(source.starts(n_rows - under_way, n_rows), source.T)
    return Exposure(
        len(source.ids), n_rows / source.n_windows, _times(len(source.ids), (whole, begun))
    )


def _of_streams(batches: Streams, n_steps: int) -> Exposure:
    n_epochs, under_way = divmod(n_steps, batches.n_steps)
    whole = _Seen(
        _offsets(batches.windows, n_epochs), batches.n_steps * batches.batch_size * batches.T
    )
    rows = np.arange(batches.batch_size) * batches.n_steps * batches.T
    begun = _Seen(batches.windows.offset(n_epochs) + rows, under_way * batches.T)
    return Exposure(
        len(batches.ids), n_steps / batches.n_steps, _times(len(batches.ids), (whole, begun))
    )


def _of_rows(batches: Rows, n_steps: int) -> Exposure:
    n_epochs, under_way = divmod(n_steps, batches.n_batches)
    whole = _Seen(batches.begins, batches.lengths, n_epochs)
    parts = [batches.documents(step) for step in range(n_steps - under_way, n_steps)]
    documents = np.concatenate([np.empty(0, np.int64), *parts])
    begun = _Seen(batches.begins[documents], batches.lengths[documents])
    return Exposure(
        len(batches.ids), n_steps / batches.n_batches, _times(len(batches.ids), (whole, begun))
    )


def _offsets(windows: Windows, n_epochs: int) -> np.ndarray:
    return np.array([windows.offset(epoch) for epoch in range(n_epochs)], np.int64)


def _times(n_tokens: int, seen: Iterable[_Seen]) -> tuple[int, ...]:
    """How many tokens were predicted never, once, ...: of what was read, one token further."""
    places, changes = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    for begins, lengths, times in seen:
        places += [begins + 1, begins + 1 + lengths]
        changes += [np.full(len(begins), times), np.full(len(begins), -times)]
    at = np.concatenate(places)
    order = np.argsort(at)
    count = np.cumsum(
        np.concatenate(changes)[order]
    )  # from each place to the next; between equal ones is nothing
    length = np.diff(at[order], append=n_tokens)
    count, length = count[length > 0], length[length > 0]
    found = np.zeros(int(count.max(initial=0)) + 1, np.int64)
    np.add.at(found, count, length)
    return tuple(found.tolist())
