"""Packed conversations: every one once per epoch, little padding, and splits that do not matter."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.data.batches.conversations import PackedConversations, best_fit
from lmsmith.data.batches.windows import tokens_read
from lmsmith.data.conversations import Conversations
from lmsmith.errors import DataError
from lmsmith.targets import IGNORED


def some(n: int = 50, longest: int = 20, seed: int = 0) -> Conversations:
    draw = random.Random(seed)
    parts, next_id = [], 1
    for _ in range(n):
        length = draw.randint(2, longest)
        learned = np.array([draw.random() < 0.5 for _ in range(length)])
        learned[-1] = True
        parts.append((np.arange(next_id, next_id + length), learned))
        next_id += length
    return Conversations.join(parts, np.uint16)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
@settings(deadline=None)
def test_best_fit_packs_every_item_once_and_as_a_search_would(lengths: list[int]) -> None:
    bins = best_fit(lengths, 30)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in members) <= 30 for members in bins)
    rooms: list[int] = []  # the plain form: the fullest bin that holds the item
    for length in sorted(lengths, reverse=True):
        fits = [n for n, room in enumerate(rooms) if room >= length]
        if fits:
            rooms[min(fits, key=lambda n: rooms[n])] -= length
        else:
            rooms.append(30 - length)
    assert sorted(30 - sum(lengths[i] for i in members) for members in bins) == sorted(rooms)


def test_batches_are_as_wide_as_their_widest_row() -> None:
    """Rounded up to a multiple of 8, but never wider than the context."""
    data = some(longest=22)
    batches = PackedConversations(data, context_length=21, batch_size=1, seed=1)
    used, computed = 0, 0
    widths = set()
    for step in range(batches.n_rows):
        n = sum(int(batches.lengths[member]) for member in batches.members(step))
        widths.add(width := batches.rows(step).inputs.shape[1])
        assert width == min(21, -(-n // 8) * 8)
        used, computed = used + n, computed + width
    assert max(widths) == 21
    assert batches.padding == pytest.approx(1 - used / computed)


def test_every_conversation_is_seen_once_per_epoch_with_its_targets() -> None:
    data = some()
    batches = PackedConversations(data, context_length=24, batch_size=3, seed=1)
    seen: Counter[int] = Counter()
    for step in range(2 * batches.n_rows):  # six epochs
        batch = batches.rows(step)
        assert batch.documents is not None
        seen.update(batch.targets[batch.targets != IGNORED].tolist())
        assert (batch.targets != IGNORED).sum() == batches.n_targets(step)
        assert (batch.inputs > 0).sum() == tokens_read(batches, step)  # padding has the id 0
        # A target is the id after its input, in the same document.
        at = batch.targets != IGNORED
        assert (batch.targets[at] == batch.inputs[at] + 1).all()
        follows = np.diff(batch.inputs, axis=1) == 1
        assert (np.diff(batch.documents, axis=1)[follows & (batch.inputs[:, :-1] > 0)] == 0).all()
    inside = np.setdiff1d(np.flatnonzero(data.learned), data.starts)
    assert seen == dict.fromkeys((data.ids[inside]).tolist(), 6)


def test_rows_of_a_batch_do_not_depend_on_the_split_or_on_earlier_calls() -> None:
    batches = PackedConversations(some(), context_length=24, batch_size=4, seed=1)
    full = batches.rows(7)
    for start in range(4):
        part = PackedConversations(some(), context_length=24, batch_size=4, seed=1).rows(
            7, start, start + 1
        )
        assert (part.inputs == full.inputs[start : start + 1]).all()
        assert (part.targets == full.targets[start : start + 1]).all()
    orders = [batches.row_numbers(step).tolist() for step in range(6)]
    assert len({tuple(order) for order in orders}) == 6


def test_padding_is_below_five_percent() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(4.6, 0.9, 2000).astype(int), 8, 512)  # as chats: a long tail
    ids = [(np.ones(n, np.uint16), np.ones(n, np.bool_)) for n in lengths]
    batches = PackedConversations(
        Conversations.join(ids, np.uint16), context_length=512, batch_size=8, seed=0
    )
    assert batches.padding < 0.05
    alone = PackedConversations(
        Conversations.join(ids, np.uint16), context_length=512, batch_size=8, seed=0, pack=False
    )
    assert alone.n_rows == 2000
    assert alone.rows(0).documents is None


def test_a_part_of_the_conversations_is_complete_ones() -> None:
    data = some()
    part = data[10:60]
    assert len(part) <= 50
    assert part.n >= 1
    assert int(part.starts[-1]) == len(part)
    assert len(data[3:4]) == int(np.diff(data.starts).max())


def test_a_conversation_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(DataError, match="more than the context"):
        PackedConversations(some(), context_length=8, batch_size=2, seed=0)
