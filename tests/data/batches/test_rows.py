"""One document per row: every document once per epoch, truncated and padded, with little
padding.
"""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.data.batches import rows as module
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.windows import Batch, Sources
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, DataError
from lmsmith.targets import IGNORED

B = 0  # the boundary


def text(documents: list[list[int]], *, lead: bool = True, trail: bool = False) -> np.ndarray:
    """The documents concatenated, with a boundary before each (with `lead`, the first too) and
    optionally after the last.
    """
    ids = list(itertools.chain.from_iterable([B, *document] for document in documents))
    return np.array(ids[0 if lead else 1 :] + [B] * trail, np.uint32)


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Documents of the given lengths; no token occurs twice."""
    numbers = itertools.count(1)
    return [list(itertools.islice(numbers, n)) for n in lengths]


def plain_rows(documents: list[list[int]], T: int) -> list[tuple[list[int], list[int]]]:
    """The expected row of each document: inputs and targets, before padding."""
    found = []
    for number, document in enumerate(documents):
        whole = [B, *document, *([B] if number + 1 < len(documents) else [])]
        if len(whole) > 1:
            found.append((whole[:-1][:T], whole[1:][:T]))
    return found


def unpadded(batch: Batch, pad_id: int = 0) -> list[tuple[list[int], list[int]]]:
    """The rows of a batch without padding; checks that padding is at the end, has its id and
    predicts nothing.
    """
    found = []
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        n = int((targets != IGNORED).sum())
        assert (targets[n:] == IGNORED).all()
        assert (inputs[n:] == pad_id).all()
        if n:
            found.append((inputs[:n].tolist(), targets[:n].tolist()))
    return found


def rows(ids: np.ndarray, T: int = 8, batch_size: int = 3, seed: int = 1, **options: int) -> Rows:
    return Rows(ids, B, context_length=T, batch_size=batch_size, seed=seed, **options)


@hypothesis.settings(deadline=None, max_examples=60)
@given(some.data())
def test_an_epoch_is_every_document_once_truncated_and_padded(data: some.DataObject) -> None:
    documents = documents_of(data.draw(some.lists(some.integers(0, 30), min_size=1, max_size=40)))
    hypothesis.assume(len(documents) > 1 or documents[0])
    T, size = data.draw(some.integers(1, 20)), data.draw(some.integers(1, 9))
    found = rows(text(documents), T, size, seed=data.draw(some.integers(0, 99)), pad_id=7)
    wanted = sorted(plain_rows(documents, T))
    for epoch in range(3):
        seen, counted = [], 0
        for step in range(epoch * found.n_batches, (epoch + 1) * found.n_batches):
            batch = found.rows(step)
            assert batch.inputs.dtype == batch.targets.dtype == np.int64
            assert batch.inputs.shape == batch.targets.shape
            assert len(batch.inputs) == size
            assert batch.inputs.shape[1] <= T
            assert found.n_targets(step) == (batch.targets != IGNORED).sum() > 0
            seen += unpadded(batch, 7)
            counted += found.n_targets(step)
        assert sorted(seen) == wanted
        assert found.tokens_per_batch == max(1, round(counted / found.n_batches))
    n_targets = sum(len(row) for row, _ in plain_rows(documents, 10**9))
    assert found.share_cut == pytest.approx(1 - counted / n_targets)


def test_a_text_that_begins_or_ends_without_a_document() -> None:
    """Lines: there is no boundary before the first, and nothing after the last boundary."""
    found = rows(text([[1, 2], [3], [4, 5, 6]], lead=False, trail=True), batch_size=1)
    seen = sorted(
        itertools.chain.from_iterable(unpadded(found.rows(step)) for step in range(found.n_batches))
    )
    assert seen == [([0, 3], [3, 0]), ([0, 4, 5, 6], [4, 5, 6, 0]), ([1, 2], [2, 0])]


@pytest.mark.parametrize("ids", [[], [0], [5]])
def test_nothing_to_predict(ids: list[int]) -> None:
    with pytest.raises(DataError, match=f"has {len(ids)} tokens, so there is nothing to predict"):
        rows(np.array(ids, np.uint16))


@hypothesis.settings(deadline=None, max_examples=30)
@given(some.data())
def test_parts_of_a_batch_are_slices_of_it(data: some.DataObject) -> None:
    """Any split into ranks and micro-batches gives the same global batch, with one width and the
    same target counts.
    """
    size, step = data.draw(some.integers(1, 8)), data.draw(some.integers(0, 500))
    ids = text(documents_of([5, 1, 13, 0, 2, 7, 7, 3, 30, 4, 4]))
    whole = rows(ids, 11, size).rows(step)
    cuts = sorted(data.draw(some.lists(some.integers(0, size), max_size=3)))
    parts = [rows(ids, 11, size).rows(step, a, b) for a, b in itertools.pairwise([0, *cuts, size])]
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
    assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    ids = text(documents_of([n % 13 for n in range(900)]))
    straight, other = rows(ids, seed=4), rows(ids, seed=5)
    wanted = [straight.rows(step).inputs for step in range(700)]
    for step in (650, 3, 299, 300, 0):  # in any order, from a new object
        assert np.array_equal(rows(ids, seed=4).rows(step).inputs, wanted[step])
    assert any(not np.array_equal(other.rows(step).inputs, wanted[step]) for step in range(5))
    one, two = (
        [row for step in range(found.n_batches) for row in unpadded(found.rows(step))]
        for found in (straight, other)
    )
    assert one != two  # the seed chooses the order of the documents, not only the padding
    assert sorted(one) == sorted(two)
    first = [unpadded(straight.rows(step)) for step in range(straight.n_batches)]
    second = [
        unpadded(straight.rows(step + straight.n_batches)) for step in range(straight.n_batches)
    ]
    assert first != second  # each epoch has its own order


def test_lengths_are_mixed_over_time() -> None:
    """The order of batches does not follow length: neighbours correlate no more than by chance."""
    found = rows(
        text(documents_of(np.random.default_rng(0).integers(1, 200, 3000).tolist())), 256, 8
    )
    counted = np.array([found.n_targets(step) for step in range(found.n_batches)], float)
    assert abs(np.corrcoef(counted[:-1], counted[1:])[0, 1]) < 4 / np.sqrt(len(counted))
    assert found.rows(0).inputs.shape[1] < 256


def test_there_is_little_padding() -> None:
    """With realistic lengths (log-normal), sorted pools have 5% padding; random batches would have
    half.
    """
    lengths = np.random.default_rng(0).lognormal(5, 1, 5000).astype(int).tolist()
    ids = text(documents_of(lengths))

    def share(found: Rows) -> float:
        size = sum(found.rows(step).targets.size for step in range(found.n_batches))
        return 1 - sum(map(found.n_targets, range(found.n_batches))) / size

    sorted_in_pools = share(rows(ids, 1024, 32))
    assert sorted_in_pools < 0.06
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "POOL", 1)
        assert share(rows(ids, 1024, 32)) > 0.5


def test_documents_over_many_shards_and_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text(documents_of([n % 7 for n in range(60)]))
    wanted = [rows(ids).rows(step).inputs for step in range(40)]
    monkeypatch.setattr(module, "_SCAN", 11)
    shards = Shards(np.array_split(ids, 9))
    for source in (ids, shards, Sources([shards], [1])):
        found = rows(source)  # type: ignore[arg-type]
        assert all(np.array_equal(found.rows(step).inputs, wanted[step]) for step in range(40))


def test_sources_are_not_mixed() -> None:
    ids = Shards([text([[1, 2]])])
    with pytest.raises(ConfigError, match="reads one source, but data"):
        rows(Sources([ids, ids], [1, 2]))  # type: ignore[arg-type]
