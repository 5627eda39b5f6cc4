"""Counts how many training tokens a run has predicted never, once, twice, ...

Training records nothing for this. The windows of a step are a function of (seed, step), so they are
recomputed. A completed epoch is one range of tokens; in the current epoch, each window is a range.
Sorting the ranges' ends gives the counts, at a cost that grows with the number of windows, not of
tokens.

A token counts as seen each time it is a target. (The first token of the text is only ever an input,
so it is never counted.)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmsmith.data.batches.batch_warmup import BatchWarmup
from lmsmith.data.batches.conversations import PackedConversations
from lmsmith.data.batches.packing import Packed
from lmsmith.data.batches.pairs import PairBatches
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.streams import Streams
from lmsmith.data.batches.windows import AnyBatches, Batches, Windows


@dataclass(frozen=True)
class Exposure:
    """Counts for one source: its tokens, the epochs, and in `times[k]` the tokens that were seen k
    times.
    """

    n_tokens: int
    n_epochs: float
    times: tuple[int, ...]


class _Seen(NamedTuple):
    """Ranges of tokens, each read `times` times: their starts (n,) and lengths."""

    begins: np.ndarray
    lengths: np.ndarray | int
    times: int = 1


def exposure(batches: AnyBatches, n_steps: int) -> tuple[Exposure, ...]:
    """Counts for each source how often the first `n_steps` steps have seen its tokens."""
    if isinstance(batches, Packed):
        return exposure(batches.windows, n_steps)
    if isinstance(batches, Rows):
        return (_of_rows(batches, n_steps),)
    if isinstance(batches, PackedConversations):
        return (_of_conversations(batches, n_steps),)
    if isinstance(batches, PairBatches):
        return (_of_pairs(batches, n_steps),)
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
    n_epochs, n_current = divmod(n_rows, source.n_windows)
    completed = _Seen(_offsets(source, n_epochs), source.n_windows * source.T)
    current = _Seen(source.starts(n_rows - n_current, n_rows), source.T)
    return Exposure(
        len(source.ids), n_rows / source.n_windows, _times(len(source.ids), (completed, current))
    )


def _of_streams(batches: Streams, n_steps: int) -> Exposure:
    n_epochs, n_current = divmod(n_steps, batches.n_steps)
    completed = _Seen(
        _offsets(batches.windows, n_epochs), batches.n_steps * batches.batch_size * batches.T
    )
    rows = np.arange(batches.batch_size) * batches.n_steps * batches.T
    current = _Seen(batches.windows.offset(n_epochs) + rows, n_current * batches.T)
    return Exposure(
        len(batches.ids), n_steps / batches.n_steps, _times(len(batches.ids), (completed, current))
    )


def _of_rows(batches: Rows, n_steps: int) -> Exposure:
    n_epochs, n_current = divmod(n_steps, batches.n_batches)
    completed = _Seen(batches.begins, batches.lengths, n_epochs)
    parts = [batches.documents(step) for step in range(n_steps - n_current, n_steps)]
    documents = np.concatenate([np.empty(0, np.int64), *parts])
    current = _Seen(batches.begins[documents], batches.lengths[documents])
    return Exposure(
        len(batches.ids),
        n_steps / batches.n_batches,
        _times(len(batches.ids), (completed, current)),
    )


def _of_conversations(batches: PackedConversations, n_steps: int) -> Exposure:
    times = np.zeros(batches.conversations.n, np.int64)
    for step in range(n_steps):
        np.add.at(times, batches.members(step), 1)
    starts = batches.conversations.starts
    seen = tuple(
        _Seen(starts[:-1][times == n], batches.lengths[times == n], int(n))
        for n in np.unique(times[times > 0])
    )
    n_tokens = len(batches.conversations)
    return Exposure(n_tokens, n_steps / batches.n_batches, _times(n_tokens, seen))


def _of_pairs(batches: PairBatches, n_steps: int) -> Exposure:
    times = np.zeros(batches.n_rows, np.int64)
    for step in range(n_steps):
        np.add.at(times, batches.pairs(step), 1)
    each, starts = times.repeat(2), batches.conversations.starts[:-1]
    seen = tuple(
        _Seen(starts[each == n], batches.lengths[each == n], int(n))
        for n in np.unique(each[each > 0])
    )
    n_tokens = len(batches.conversations)
    return Exposure(n_tokens, n_steps / batches.n_batches, _times(n_tokens, seen))


def _offsets(windows: Windows, n_epochs: int) -> np.ndarray:
    return np.array([windows.offset(epoch) for epoch in range(n_epochs)], np.int64)


def _times(n_tokens: int, seen: Iterable[_Seen]) -> tuple[int, ...]:
    """Counts the tokens that were predicted never, once, ... The targets are the inputs shifted by
    one.
    """
    positions, changes = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    for begins, lengths, times in seen:
        positions += [begins + 1, begins + 1 + lengths]
        changes += [np.full(len(begins), times), np.full(len(begins), -times)]
    position = np.concatenate(positions)
    order = np.argsort(position)
    # The count that holds from each position to the next; equal positions have length 0.
    count = np.cumsum(np.concatenate(changes)[order])
    length = np.diff(position[order], append=n_tokens)
    count, length = count[length > 0], length[length > 0]
    histogram = np.zeros(int(count.max(initial=0)) + 1, np.int64)
    np.add.at(histogram, count, length)
    return tuple(histogram.tolist())
