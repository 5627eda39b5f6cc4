"""Batches against their promises: epochs are permutations, and a batch is a function of (seed,
step).
"""

import hashlib
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.data.batches import windows as module
from lmsmith.data.batches.windows import Batches, Windows, _keys, permute
from lmsmith.data.shards import Shards, read_shard, write_shard
from lmsmith.errors import DataError

AROUND_POWERS = sorted({n for k in range(1, 11) for n in (2**k - 1, 2**k, 2**k + 1)} | {1000})


def counting(n: int, kind: type = np.uint16) -> np.ndarray:
    """Ids that are their own positions."""
    return np.arange(n, dtype=kind)


def batches(n: int, T: int, B: int, seed: int = 1) -> Batches:
    return Batches(counting(n), context_length=T, batch_size=B, seed=seed)


def epoch_starts(found: Batches, epoch: int) -> list[int]:
    """The starts of the windows of one epoch, in order, found through `rows` alone."""
    first = epoch * found.sources[0].n_windows
    starts = []
    for place in range(first, first + found.sources[0].n_windows):
        step, row = divmod(place, found.batch_size)
        starts.append(int(found.rows(step, row, row + 1).inputs[0, 0]))
    return starts


# The permutation


@pytest.mark.parametrize("n", AROUND_POWERS)
def test_permutations_of_every_small_n(n: int) -> None:
    for epoch in range(3):
        found = permute(np.arange(n), n, _keys(1, epoch, "order"))
        assert found.dtype == np.int64
        assert sorted(found.tolist()) == list(range(n))


@hypothesis.settings(deadline=None, max_examples=50)
@given(some.integers(1, 10**12), some.integers(0, 2**32), some.integers(0, 1000))
def test_large_permutations_are_injective(n: int, seed: int, epoch: int) -> None:
    """Too large to list: distinct sampled positions have distinct images below n."""
    places = np.unique(np.linspace(0, n - 1, 100).astype(np.int64))
    found = permute(places, n, _keys(seed, epoch, "order"))
    assert 0 <= found.min() <= found.max() < n
    assert len(set(found.tolist())) == len(places)
    apart = np.concatenate(
        [permute(places[i : i + 1], n, _keys(seed, epoch, "order")) for i in range(len(places))]
    )
    assert np.array_equal(apart, found)


def chi_square(counts: Counter, cells: int, draws: int) -> float:
    """In standard deviations above its mean: approximately normal for many cells."""
    expected = draws / cells
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    statistic += (cells - len(counts)) * expected
    return (statistic - (cells - 1)) / math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_small_permutations_are_uniform(n: int) -> None:
    """Over keys, each of the n! orders is equally likely (which fails for a Feistel network of few
    bits).
    """
    draws = max(1000, 50 * math.factorial(n))
    found = Counter(
        tuple(permute(np.arange(n), n, _keys(7, key, "order")).tolist()) for key in range(draws)
    )
    assert len(found) == math.factorial(n)
    assert abs(chi_square(found, math.factorial(n), draws)) < 5


@pytest.mark.parametrize("n", [17, 256, 257, 1025])
def test_positions_are_uniform(n: int) -> None:
    """Over keys, the first two windows of an epoch are any two, in any order: compared by eighths
    of the text.
    """
    draws = 3000
    pairs = [permute(np.arange(2), n, _keys(3, key, "order")) for key in range(draws)]
    assert all(a != b for a, b in pairs)
    found = Counter((int(a) * 8 // n, int(b) * 8 // n) for a, b in pairs)
    expected = {
        (i, j): draws * (sizes[i] * (sizes[j] - (i == j))) / (n * (n - 1))
        for sizes in [Counter(place * 8 // n for place in range(n))]
        for i, j in itertools.product(range(8), repeat=2)
    }
    statistic = sum((found[cell] - wanted) ** 2 / wanted for cell, wanted in expected.items())
    assert abs(statistic - 63) < 5 * math.sqrt(2 * 63)


def test_consecutive_windows_are_not_adjacent_in_the_text() -> None:
    n = 10_000
    found = permute(np.arange(n), n, _keys(1, 0, "order"))
    assert (
        np.abs(np.diff(found)) == 1
    ).sum() < 12  # 2 of 10,000 are expected, 12 is seven standard deviations
    fixed = (found == np.arange(n)).sum()
    assert fixed < 10  # one is expected
    correlation = np.corrcoef(found, np.arange(n))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(n)


# The windows


@pytest.mark.parametrize(
    ("n", "T", "B"), [(100, 7, 4), (101, 10, 9), (64, 8, 1), (31, 5, 40), (9, 1, 3)]
)
def test_an_epoch_has_every_window_once(n: int, T: int, B: int) -> None:
    """Also if a batch is larger than an epoch, or an epoch ends within a batch."""
    found = batches(n, T, B)
    for epoch in range(4):
        starts = sorted(epoch_starts(found, epoch))
        offset = starts[0] % T
        assert starts == [offset + T * i for i in range(found.sources[0].n_windows)]
        assert starts[-1] + T < n


@pytest.mark.parametrize("T", [1, 2, 5, 16])
def test_as_many_windows_as_fit_at_every_offset(T: int) -> None:
    for n in range(2 * T, 6 * T + 3):
        at_every_offset = min((n - 1 - offset) // T for offset in range(T))
        assert batches(n, T, 1).sources[0].n_windows == at_every_offset


@pytest.mark.parametrize("T", [1, 2, 5, 16])
def test_the_shortest_text_that_works(T: int) -> None:
    found = batches(2 * T, T, 3)
    assert found.sources[0].n_windows == 1
    for step in range(20):
        batch = found.rows(step)
        x, y = batch.inputs, batch.targets
        assert x.shape == y.shape == (3, T)
    for n in (0, 1, 2 * T - 1):
        with pytest.raises(DataError, match=f"at least {2 * T} are needed"):
            batches(n, T, 3)


@pytest.mark.parametrize(("n", "T"), [(500, 256), (30, 16), (17, 9), (3, 2)])
def test_the_advised_context_length_works(n: int, T: int) -> None:
    with pytest.raises(
        DataError, match=f"has {n} tokens, too few for a context length of {T}"
    ) as caught:
        batches(n, T, 1)
    advised = int(str(caught.value).rpartition(" ")[2].rstrip("."))
    batches(n, advised, 1)


def test_a_text_too_short_for_any_context_length() -> None:
    with pytest.raises(DataError, match=r"Add text\.$"):
        batches(1, 4, 1)


def test_offsets_change_and_cover_all_values() -> None:
    found = batches(100, 7, 4)
    offsets = [min(epoch_starts(found, epoch)) for epoch in range(100)]
    assert set(offsets) == set(range(7))


def test_each_epoch_has_its_own_order() -> None:
    found = batches(400, 4, 4)
    orders = {tuple((np.array(epoch_starts(found, epoch)) // 4).tolist()) for epoch in range(6)}
    assert len(orders) == 6


def test_targets_are_the_next_tokens() -> None:
    found = batches(1000, 9, 5)
    for step in (0, 1, 17, 1000):
        batch = found.rows(step)
        x, y = batch.inputs, batch.targets
        assert x.dtype == y.dtype == np.int64
        assert np.array_equal(y, x + 1)  # ids are positions
        assert np.array_equal(x, x[:, :1] + np.arange(9))


@hypothesis.settings(deadline=None, max_examples=60)
@given(some.data())
def test_rows_are_slices_of_the_batch(data: some.DataObject) -> None:
    """Micro-batches and ranks, cut anywhere, together are the batch."""
    n, T, B = (
        data.draw(some.integers(2, 300)),
        data.draw(some.integers(1, 20)),
        data.draw(some.integers(1, 50)),
    )
    hypothesis.assume(n >= 2 * T)
    found, step = batches(n, T, B), data.draw(some.integers(0, 10**9))
    cuts = sorted(data.draw(some.lists(some.integers(0, B), max_size=3)))
    batch = found.rows(step)
    x, y = batch.inputs, batch.targets
    assert x.shape == (B, T)
    parts = [found.rows(step, a, b) for a, b in itertools.pairwise([0, *cuts, B]) if a < b]
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), x)
    assert np.array_equal(np.concatenate([part.targets for part in parts]), y)
    assert np.array_equal(found.rows(step, 0).inputs, x)
    assert found.n_targets(step) == B * T


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    few, many = batches(200, 6, 3), batches(200, 6, 12)
    assert np.array_equal(
        np.concatenate([few.rows(step).inputs for step in range(8, 12)]), many.rows(2).inputs
    )


def test_seeds_differ_and_repeat() -> None:
    orders = {tuple(epoch_starts(batches(300, 6, 3, seed), 0)) for seed in range(20)}
    assert len(orders) == 20
    assert np.array_equal(
        batches(300, 6, 3, 5).rows(9).inputs, batches(300, 6, 3, 5).rows(9).inputs
    )


def digest(found: Batches) -> str:
    parts = (found.rows(step).inputs.astype("<i8").tobytes() for step in (0, 7, 99, 12345))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


@pytest.mark.parametrize(("n", "wanted"), [(5000, "b1a73d1545117850"), (500, "83f31fa2550d15c3")])
def test_the_order_never_changes_between_versions(n: int, wanted: str) -> None:
    """A run that a later version or another machine resumes must keep its order."""
    assert digest(batches(n, 9, 8, seed=3)) == wanted


def test_another_process_gets_the_same_batches() -> None:
    code = (
        "import numpy as np\n"
        "from lmsmith.data.batches.windows import Batches\n"
        "found = Batches(np.arange(5000, dtype=np.uint16), context_length=9, batch_size=8, "
        "seed=3)\n"
        "print(found.rows(12345).inputs.tolist())"
    )
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert json.loads(found.stdout) == batches(5000, 9, 8, seed=3).rows(12345).inputs.tolist()


@hypothesis.settings(deadline=None, max_examples=60)
@given(some.data())
def test_shards_behave_as_one_array(data: some.DataObject) -> None:
    """However the tokens are cut into shards, including windows that cross a cut."""
    n, T, B = (
        data.draw(some.integers(40, 300)),
        data.draw(some.integers(1, 20)),
        data.draw(some.integers(1, 9)),
    )
    cuts = sorted(data.draw(some.lists(some.integers(0, n), max_size=8)))
    parts = [counting(n)[a:b] for a, b in itertools.pairwise([0, *cuts, n])]
    sharded, whole = (
        Batches(Shards(parts), context_length=T, batch_size=B, seed=1),
        batches(n, T, B),
    )
    for step in data.draw(some.lists(some.integers(0, 1000), min_size=1, max_size=3)):
        assert np.array_equal(sharded.rows(step).inputs, whole.rows(step).inputs)
        assert np.array_equal(sharded.rows(step).targets, whole.rows(step).targets)


@pytest.mark.parametrize(("n", "T"), [(2100, 7), (500, 1), (257 * 3, 3)])
def test_the_block_size_does_not_change_the_order(
    monkeypatch: pytest.MonkeyPatch, n: int, T: int
) -> None:
    """Positions computed a few at a time, one by one, or all at once."""
    orders = []
    for block in (1, 7, 4096):
        monkeypatch.setattr(module, "BLOCK", block)
        found = Windows(Shards([counting(n)]), T, seed=2)
        last = 2 * found.n_windows + 5
        cuts = [0, 1, 5, 150, 150, found.n_windows, found.n_windows + 1, last]
        orders.append(np.concatenate([found.starts(a, b) for a, b in itertools.pairwise(cuts)]))
        assert np.array_equal(found.starts(0, last), orders[-1])
    assert np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], orders[2])


@pytest.mark.parametrize("vocab_size", [1000, 100_000])
def test_memory_maps(tmp_path: Path, vocab_size: int) -> None:
    """Shards of 16 and 32 bits give the same as the array in memory."""
    write_shard(tmp_path / "train.bin", counting(900), vocab_size)
    ids = read_shard(tmp_path / "train.bin")
    assert ids.dtype == (np.uint16 if vocab_size == 1000 else np.uint32)
    mapped = Batches(ids, context_length=9, batch_size=4, seed=1)
    for step in (0, 30):
        assert np.array_equal(mapped.rows(step).inputs, batches(900, 9, 4).rows(step).inputs)


def test_large_ids_are_not_truncated() -> None:
    ids = np.full(40, 2**32 - 1, dtype=np.uint32)
    batch = Batches(ids, context_length=4, batch_size=2, seed=1).rows(0)
    x, y = batch.inputs, batch.targets
    assert (x == 2**32 - 1).all()
    assert (y == 2**32 - 1).all()


def test_tokens_per_batch() -> None:
    assert batches(100, 7, 4).tokens_per_batch == 28
