"""Exposure against brute force, which makes every batch and counts every target. Each id is its own
position.
"""

import hypothesis
import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.data.batches.exposure import exposure
from lmsmith.data.batches.packing import Packed
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.streams import Streams
from lmsmith.data.batches.windows import AnyBatches, Batch, Batches, Sources
from lmsmith.data.shards import Shards
from lmsmith.targets import IGNORED


def brute_force(batches: AnyBatches, n_steps: int, ends: list[int]) -> list[list[int]]:
    """Positions of several sources are concatenated."""
    seen = np.zeros(ends[-1], np.int64)
    for step in range(n_steps):
        targets = batches.rows(step).targets
        np.add.at(seen, targets[targets != IGNORED], 1)
    return [np.bincount(part).tolist() for part in np.split(seen, ends[:-1])]


@hypothesis.settings(deadline=None, max_examples=120)
@given(some.data())
def test_counts_equal_those_of_all_batches(data: some.DataObject) -> None:
    T, B = data.draw(some.integers(1, 9)), data.draw(some.integers(1, 7))
    lengths = data.draw(some.lists(some.integers(2 * T, 120), min_size=1, max_size=3))
    weights = [data.draw(some.integers(1, 5)) for _ in lengths]
    n_steps = data.draw(some.integers(0, 60))
    ends = np.cumsum(lengths).tolist()
    parts = np.split(np.arange(ends[-1], dtype=np.uint32), ends[:-1])
    batches = Batches(
        Sources([Shards([part]) for part in parts], weights), context_length=T, batch_size=B, seed=5
    )
    found = exposure(batches, n_steps)
    assert [list(source.times) for source in found] == brute_force(batches, n_steps, ends)
    assert [source.n_tokens for source in found] == lengths
    predicted = sum(count * tokens for source in found for count, tokens in enumerate(source.times))
    assert predicted == n_steps * B * T
    assert exposure(Packed(batches, 0), n_steps) == found


@hypothesis.settings(deadline=None, max_examples=60)
@given(some.data())
def test_streams(data: some.DataObject) -> None:
    T, B, n_steps = (
        data.draw(some.integers(1, 9)),
        data.draw(some.integers(1, 7)),
        data.draw(some.integers(0, 60)),
    )
    n = data.draw(some.integers((B + 1) * T, 150))
    batches = Streams(np.arange(n, dtype=np.uint16), context_length=T, batch_size=B, seed=3)
    (found,) = exposure(batches, n_steps)
    assert [list(found.times)] == brute_force(batches, n_steps, [n])
    assert found.n_epochs == n_steps / batches.n_steps


class Places(Rows):
    """Batches of positions instead of ids."""

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        ids, self.ids = self.ids, Shards([np.arange(len(self.ids))])
        batch = super().rows(step, start, end)
        self.ids = ids
        return batch


@hypothesis.settings(deadline=None, max_examples=60)
@given(some.data())
def test_one_document_per_row(data: some.DataObject) -> None:
    T, B, n_steps = (
        data.draw(some.integers(1, 9)),
        data.draw(some.integers(1, 5)),
        data.draw(some.integers(0, 60)),
    )
    ids = data.draw(
        some.lists(some.integers(0, 3), min_size=2, max_size=80)
    )  # 0 stands before a document
    batches = Places(np.array(ids, np.uint16), 0, context_length=T, batch_size=B, seed=3)
    (found,) = exposure(batches, n_steps)
    assert [list(found.times)] == brute_force(batches, n_steps, [len(ids)])
    assert found.n_epochs == n_steps / batches.n_batches


def test_epochs() -> None:
    """100 tokens are nine windows of 10; after nine rows each has been predicted once, but for
    ten outside the cut.
    """
    batches = Batches(np.arange(100, dtype=np.uint16), context_length=10, batch_size=3, seed=1)
    (none,) = exposure(batches, 0)
    assert (none.n_epochs, none.times) == (0, (100,))
    (once,) = exposure(batches, 3)
    assert (once.n_epochs, once.times) == (1, (10, 90))
    (later,) = exposure(batches, 3 * 200)
    assert later.n_epochs == 200
    assert sum(later.times) == 100
    assert later.times[0] == 1  # the first token has nothing before it
