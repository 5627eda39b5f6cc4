"""The audit of a run's data: how many of the training tokens were predicted never, once, twice, ... by its updates.

Nothing was recorded while training, and nothing has to be: which windows a step reads is a function of (seed, step), so
they are computed once more. A whole epoch is one stretch of tokens, whatever its order; of the epoch that is under way
each window is a stretch. Where stretches begin and end, sorted, gives the counts: the work goes with the number of
windows, not of tokens.

A token counts as seen each time it is a target. (As an input it is seen one step earlier in its window, so the first
token of all is read and never predicted.)
"""

from dataclasses import dataclass

import numpy as np

from lmsmith.data.batches import Batches, Windows


@dataclass(frozen=True)
class Exposure:
    """Of one source: its tokens, the epochs it went through, and `times[k]` tokens that were seen k times."""

    n_tokens: int
    n_epochs: float
    times: tuple[int, ...]


def exposure(batches: Batches, n_steps: int) -> tuple[Exposure, ...]:
    """What the first `n_steps` updates saw of each source."""
    n_rows = batches.mixture.before(n_steps * batches.batch_size)
    return tuple(_of_source(source, n) for source, n in zip(batches.sources, n_rows, strict=True))


def _of_source(source: Windows, n_rows: int) -> Exposure:
    n_tokens, T = len(source.ids), source.T
    n_epochs, under_way = divmod(n_rows, source.n_windows)
    epochs = np.array([source.offset(epoch) for epoch in range(n_epochs)], np.int64)
    windows = source.starts(n_rows - under_way, n_rows)
    # Targets are one token further than inputs.
    begins = np.concatenate([epochs, windows]) + 1
    ends = np.concatenate([epochs + source.n_windows * T, windows + T]) + 1
    places = np.concatenate([[0], begins, ends])
    changes = np.concatenate([[0], np.ones_like(begins), -np.ones_like(ends)])
    order = np.argsort(places)
    seen = np.cumsum(changes[order])  # from each place to the next; between equal places there is nothing
    lengths = np.diff(places[order], append=n_tokens)
    times = np.zeros(n_epochs + 2, np.int64)
    np.add.at(times, np.where(lengths > 0, seen, 0), lengths)
    return Exposure(n_tokens, n_rows / source.n_windows, tuple(np.trim_zeros(times, "b").tolist()))
