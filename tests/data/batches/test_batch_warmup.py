"""Growing batches against their windows: nothing skipped, nothing repeated, however a batch is
split.
"""

import numpy as np
import pytest

from lmsmith.config import TrainConfig
from lmsmith.data.batches.batch_warmup import BatchWarmup
from lmsmith.data.batches.exposure import exposure
from lmsmith.data.batches.windows import Batches

T, N = 5, 30
TRAIN = TrainConfig(steps=N, batch_size=12, initial_batch_size=2, batch_warmup_fraction=0.7)


def both() -> tuple[BatchWarmup, Batches]:
    """Growing batches, and the same order in batches of one row."""
    ids = np.arange(400, dtype=np.uint16)
    single = Batches(ids, context_length=T, batch_size=1, seed=3)
    return BatchWarmup(
        Batches(ids, context_length=T, batch_size=12, seed=3), TRAIN.rows_of, N
    ), single


def test_rows_are_the_windows_in_order_each_once() -> None:
    growing, single = both()
    row = 0
    for step in range(N + 3):
        assert growing.first_row(step) == row
        batch = growing.rows(step)
        assert batch.inputs.shape == (TRAIN.rows_of(step), T)
        assert growing.n_targets(step) == batch.targets.size
        for found in batch.inputs:
            assert np.array_equal(found, single.rows(row).inputs[0])
            row += 1
    assert growing.tokens_per_batch == round(growing.first_row(N) * T / N)


@pytest.mark.parametrize("step", [0, 7, 20, N + 1])
def test_a_batch_is_the_concatenation_of_its_parts(step: int) -> None:
    growing, _ = both()
    n = TRAIN.rows_of(step)
    parts = [growing.rows(step, row, row + 2).targets for row in range(0, n, 2)]
    assert np.array_equal(np.concatenate(parts), growing.rows(step).targets)


@pytest.mark.parametrize("n_steps", [0, 1, 15, N])
def test_seen_tokens_are_counted(n_steps: int) -> None:
    growing, single = both()
    assert exposure(growing, n_steps) == exposure(single, growing.first_row(n_steps))
