"""Pairs for preference training: each once per epoch, next tokens, and no wider than needed."""

import random

import numpy as np
import pytest

from lmsmith.data.batches.pairs import PairBatches
from lmsmith.data.batches.windows import tokens_read
from lmsmith.data.conversations import Conversations
from lmsmith.errors import DataError
from lmsmith.targets import IGNORED

T, N = 21, 11  # T: not a multiple of the widths that rows are padded to


def some(longest: int = T + 1, labels: bool = False) -> Conversations:
    """Pairs in which an id names its conversation and its place; one has the full length."""
    draw, parts = random.Random(5), []
    for number in range(2 * N):
        length = longest if number == 7 else draw.randint(2, longest)
        learned = np.array([draw.random() < 0.5 for _ in range(length)])
        parts.append((1 + 100 * number + np.arange(length), learned))
    found = Conversations.join(parts, np.uint16)
    marks = np.arange(N) % 3 == 0 if labels else None
    return Conversations(found.ids, found.learned, found.starts, marks)


@pytest.mark.parametrize("labels", [False, True])
def test_every_pair_is_seen_once_per_epoch_with_its_targets(labels: bool) -> None:
    data = some(labels=labels)
    batches = PairBatches(data, context_length=T, batch_size=4, seed=1)
    batches.reference = np.arange(2 * N) * 0.5
    assert batches.n_batches == N / 4
    seen: list[int] = []
    for step in range(N):  # four epochs
        batch = batches.rows(step)
        members = (batch.inputs[:, 0] // 100).tolist()
        assert members[1::2] == [member + 1 for member in members[::2]]
        pairs = [member // 2 for member in members[::2]]
        seen += pairs
        assert batch.reference.tolist() == [0.5 * member for member in members]
        assert batch.labels.tolist() == [pair % 3 == 0 or not labels for pair in pairs]
        for member, inputs, targets in zip(members, batch.inputs, batch.targets, strict=True):
            first, last = data.starts[member : member + 2]
            ids, learned = data.ids[first:last], data.learned[first:last]
            n = len(ids) - 1
            assert inputs[:n].tolist() == ids[:-1].tolist()
            assert (
                targets[:n].tolist() == np.where(learned[1:], ids[1:].astype(int), IGNORED).tolist()
            )
            assert not inputs[n:].any()
            assert (targets[n:] == IGNORED).all()
        assert batches.n_targets(step) == (batch.targets != IGNORED).sum()
        read = members[::2] if labels else members  # KTO learns from the first of each pair
        assert tokens_read(batches, step) == sum(
            int(data.starts[member + 1] - data.starts[member]) - 1 for member in read
        )
    epochs = [seen[start : start + N] for start in range(0, 4 * N, N)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    n_targets = sum(batches.n_targets(step) for step in range(N)) / 4
    assert batches.tokens_per_batch == round(n_targets / batches.n_batches)


def test_rows_are_padded_to_a_multiple_of_8_within_the_context() -> None:
    batches = PairBatches(some(), context_length=T, batch_size=1, seed=1)
    widths = [batches.rows(step).inputs.shape[1] for step in range(N)]
    longest = [batches.lengths[[2 * pair, 2 * pair + 1]].max() for pair in batch_order(batches)]
    assert widths == [min(T, -(-int(n) // 8) * 8) for n in longest]
    assert max(widths) == T
    wider = PairBatches(some(), context_length=2 * T, batch_size=1, seed=1)
    assert max(wider.rows(step).inputs.shape[1] for step in range(N)) == 24


def batch_order(batches: PairBatches) -> list[int]:
    return [int(batches.rows(step).inputs[0, 0]) // 200 for step in range(N)]


def test_a_batch_is_the_concatenation_of_its_parts() -> None:
    batches = PairBatches(some(), context_length=T, batch_size=5, seed=3)
    full = batches.rows(2)
    parts = [batches.rows(2, start, end).inputs[:, 0] for start, end in ((0, 2), (2, None))]
    assert np.concatenate(parts).tolist() == full.inputs[:, 0].tolist()
    other = PairBatches(some(), context_length=T, batch_size=5, seed=4).rows(2)
    assert other.inputs[:, 0].tolist() != full.inputs[:, 0].tolist()


def test_a_conversation_that_does_not_fit() -> None:
    assert PairBatches(some(), context_length=T, batch_size=2, seed=1).n_rows == N
    with pytest.raises(DataError, match="a conversation has 22 tokens, more than the context"):
        PairBatches(some(), context_length=T - 1, batch_size=2, seed=1)
