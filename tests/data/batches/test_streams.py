"""The order for truncated BPTT: every row continues, every token is a target at most once."""

import numpy as np
import pytest

from lmsmith.data.batches.streams import Streams
from lmsmith.data.shards import Shards
from lmsmith.errors import DataError


@pytest.mark.parametrize(("n", "T", "B"), [(100, 3, 4), (64, 1, 1), (1000, 7, 10), (40, 8, 4)])
def test_rows_continue_until_the_epoch_ends(n: int, T: int, B: int) -> None:
    streams = Streams(np.arange(n, dtype=np.uint16), context_length=T, batch_size=B, seed=5)
    offsets = set()
    for epoch in range(4):
        targets = []
        for place in range(streams.n_steps):
            step = epoch * streams.n_steps + place
            batch = streams.rows(step)
            assert batch.inputs.shape == batch.targets.shape == (B, T)
            assert np.array_equal(batch.targets, batch.inputs + 1)
            assert batch.continues == (place > 0)
            if batch.continues:
                assert np.array_equal(batch.inputs[:, 0], streams.rows(step - 1).targets[:, -1])
            targets.append(batch.targets)
        each = np.concatenate(targets, axis=None)
        assert len(set(each.tolist())) == len(each) == streams.n_steps * B * T
        assert len(each) > n - 1 - T * (
            B + 1
        )  # fewer tokens than a window per row, plus one, are skipped
        offsets.add(int(each.min()))
    assert len(offsets) > 1 or T == 1


def test_parts_of_a_batch_and_shards_are_the_same_rows() -> None:
    ids = np.random.default_rng(0).integers(0, 50, 500).astype(np.uint16)
    whole = Streams(ids, context_length=5, batch_size=6, seed=1)
    shards = Streams(Shards([ids[:123], ids[123:]]), context_length=5, batch_size=6, seed=1)
    for step in (0, 3, 40, 1000):
        batch = whole.rows(step)
        parts = [whole.rows(step, 0, 2), shards.rows(step, 2, 6)]
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), batch.inputs)
        assert all(part.continues == batch.continues for part in parts)


def test_too_little_text_is_refused_with_advice() -> None:
    with pytest.raises(DataError, match="at least 50 are needed"):
        Streams(np.zeros(49, np.uint16), context_length=10, batch_size=4, seed=1)
    assert Streams(np.zeros(50, np.uint16), context_length=10, batch_size=4, seed=1).n_steps == 1
