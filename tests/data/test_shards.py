"""Shards against bytes laid out by hand like those of llm.c's dev/data/data_common.py."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lmsmith.data import shards
from lmsmith.data.shards import Shards, check_ids, read_shard, write_shard
from lmsmith.errors import DataError, StorageError


def by_hand(magic: int, version: int, count: int, ids: list[int], letter: str) -> bytes:
    return struct.pack("<256i", magic, version, count, *[0] * 253) + struct.pack(
        f"<{len(ids)}{letter}", *ids
    )


SHORT = [0, 1, 50256, 65535]
LONG = [0, 70000, 128255, 2**32 - 1]


def test_small_vocabularies_use_16_bits(tmp_path: Path) -> None:
    for kind in (np.int64, np.uint16, np.uint32, ">u4"):
        write_shard(tmp_path / "train.bin", np.array(SHORT, dtype=kind), vocab_size=65536)
        assert (tmp_path / "train.bin").read_bytes() == by_hand(20240520, 1, 4, SHORT, "H")


def test_large_vocabularies_use_32_bits(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([0, 5], dtype=np.uint16), vocab_size=65537)
    assert (tmp_path / "a.bin").read_bytes() == by_hand(20240801, 7, 2, [0, 5], "I")
    write_shard(tmp_path / "b.bin", np.array(LONG), vocab_size=2**32)
    assert (tmp_path / "b.bin").read_bytes() == by_hand(20240801, 7, 4, LONG, "I")


def test_reads_both(tmp_path: Path) -> None:
    path = tmp_path / "val.bin"
    path.write_bytes(by_hand(20240520, 1, 4, SHORT, "H"))
    ids = read_shard(path)
    assert (ids.dtype, ids.tolist()) == (np.uint16, SHORT)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1
    del ids  # on Windows, an open memory map prevents writing
    path.write_bytes(by_hand(20240801, 7, 4, LONG, "I"))
    ids = read_shard(path)
    assert (ids.dtype, ids.tolist()) == (np.uint32, LONG)


@settings(max_examples=50, deadline=None)
@given(some.lists(some.integers(0, 299)), some.integers(1, 5))
def test_round_trip_with_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], block: int
) -> None:
    path = tmp_path_factory.mktemp("shards") / "train.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_BLOCK", block)
        write_shard(path, np.array(ids, dtype=np.int64)[::-1], vocab_size=300)
    assert read_shard(path).tolist() == ids[::-1]
    assert path.read_bytes() == by_hand(20240520, 1, len(ids), ids[::-1], "H")


@pytest.mark.parametrize("block", [2, 2**22])
def test_ids_beyond_the_vocabulary_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(shards, "_BLOCK", block)
    path = tmp_path / "train.bin"
    with pytest.raises(
        DataError, match=r"train\.bin has id 65 at position 3, but the vocabulary has 65 ids"
    ):
        write_shard(path, np.array([1, 64, 0, 65, 99]), vocab_size=65)
    with pytest.raises(DataError, match=r"train\.bin has id -1 at position 4"):
        write_shard(path, np.array([1, 64, 0, 2, -1]), vocab_size=65)
    assert not path.exists()
    path.write_bytes(by_hand(20240520, 1, 4, SHORT, "H"))
    with pytest.raises(
        DataError, match=r"train\.bin has id 65535 at position 3, but the vocabulary has 50,257 ids"
    ):
        check_ids(read_shard(path), 50257, path)
    check_ids(read_shard(path), 65536, path)


def test_too_many_tokens_are_refused_with_advice(tmp_path: Path) -> None:
    ids = np.broadcast_to(np.uint16(0), (2**31,))  # takes no memory
    with pytest.raises(
        DataError,
        match=r"2,147,483,648 tokens are too many .* at most 2,147,483,647\. Write several",
    ):
        write_shard(tmp_path / "train.bin", ids, vocab_size=65)


GOOD = by_hand(20240520, 1, 4, SHORT, "H")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not a shard: it has 0 bytes, and a shard's header alone has 1,024"),
        (GOOD[:1023], r"is not a shard: it has 1,023 bytes"),
        (
            by_hand(20240522, 1, 4, SHORT, "H"),
            r"first number is 20240522, expected 20240520 or 20240801",
        ),
        (
            b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 99,
            r"is not a shard: its first number is",
        ),
        (by_hand(20240520, 2, 4, SHORT, "H"), r"has version 2, expected 1"),
        (by_hand(20240801, 1, 4, LONG, "I"), r"has version 1, expected 7"),
        (
            GOOD[:-1],
            r"truncated: its header lists 4 tokens, .* 1,032 bytes, but it has 1,031 bytes \(3 "
            r"tokens\)",
        ),
        (
            GOOD + b"\0",
            r"damaged: its header lists 4 tokens, .* 1,032 bytes, but it has 1,033 bytes",
        ),
        (
            by_hand(20240520, 1, 5, SHORT, "H"),
            r"truncated: its header lists 5 tokens, .* it has 1,032 bytes",
        ),
        (by_hand(20240520, 1, -1, [], "H"), r"damaged: its header lists -1 tokens"),
        (
            by_hand(20240801, 7, 4, SHORT, "H"),
            r"lists 4 tokens, which take 1,040 bytes, but it has 1,032",
        ),
    ],
)
def test_files_that_are_not_shards_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as told:
        read_shard(path)
    assert str(path) in str(told.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.bin cannot be read: No such file"):
        read_shard(tmp_path / "absent.bin")
    with pytest.raises(StorageError, match="there is no folder"):
        write_shard(tmp_path / "absent" / "train.bin", np.array([1]), vocab_size=2)


@settings(max_examples=60, deadline=None)
@given(some.data())
def test_many_shards_behave_as_one_array(data: some.DataObject) -> None:
    """Slices and windows against NumPy's, for parts of any length, empty ones and both id types
    included.
    """
    lengths = data.draw(some.lists(some.integers(0, 12), min_size=1, max_size=6))
    kinds = [data.draw(some.sampled_from([np.uint16, np.uint32])) for _ in lengths]
    whole = np.arange(1000, 1000 + sum(lengths))
    ends = [0, *itertools.accumulate(lengths)]
    parts = [
        whole[a:b].astype(kind)
        for (a, b), kind in zip(itertools.pairwise(ends), kinds, strict=True)
    ]
    found = Shards(parts)
    assert len(found) == len(whole)
    places = some.integers(-2, len(whole) + 2)
    for _ in range(3):
        a, b = data.draw(places), data.draw(places)
        assert np.array_equal(found[a:b], whole[a:b])
        assert np.array_equal(found[a:], whole[a:])
        assert np.array_equal(found.first(abs(a))[:], whole[: abs(a)])
    length = data.draw(some.integers(0, len(whole)))
    starts = np.array(
        data.draw(some.lists(some.integers(0, len(whole) - length), max_size=5)), dtype=np.int64
    )
    windows = found.windows(starts, length)
    assert (windows.dtype, windows.shape) == (np.int64, (len(starts), length))
    assert np.array_equal(windows, whole[starts[:, None] + np.arange(length)])


def test_slices_of_a_shard_are_not_copied(tmp_path: Path) -> None:
    write_shard(tmp_path / "train_000000.bin", np.arange(100), vocab_size=100)
    write_shard(tmp_path / "train_000001.bin", np.arange(100), vocab_size=100)
    found = Shards.open(
        [tmp_path / "train_000000.bin", tmp_path / "train_000001.bin"], vocab_size=100
    )
    assert not found[110:190].flags.owndata
    assert found[90:110].tolist() == [*range(90, 100), *range(10)]


def test_ids_beyond_the_vocabulary_are_refused_when_read(tmp_path: Path) -> None:
    """The error names shard and position; ids that are not returned are not checked."""
    paths = [tmp_path / f"train_{number:06}.bin" for number in range(3)]
    for path, ids in zip(paths, ([1, 2, 3, 4], [5, 6, 70, 8], [9, 10, 11, 99]), strict=True):
        write_shard(path, np.array(ids), vocab_size=100)
    found = Shards.open(paths, vocab_size=70)
    assert found[:6].tolist() == [1, 2, 3, 4, 5, 6]
    assert found.windows(np.array([0, 7]), 4).tolist() == [[1, 2, 3, 4], [8, 9, 10, 11]]
    message = (
        r"train_000001\.bin has id 70 at position 2, but the vocabulary has 70 ids \(0 to 69\)"
    )
    with pytest.raises(DataError, match=message):
        found[3:8]
    with pytest.raises(DataError, match=message):
        found.windows(np.array([0, 4]), 4)
    with pytest.raises(DataError, match=r"train_000002\.bin has id 99 at position 3"):
        found.windows(np.array([0, 8]), 4)
    assert Shards.open(paths, vocab_size=100)[:][-1] == 99
    assert len(Shards.open([])) == 0
