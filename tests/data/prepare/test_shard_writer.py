"""Shards written piece by piece, with simulated kills, against all ids cut at once."""

import copy
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lmsmith.data.prepare import shard_writer
from lmsmith.data.prepare.encode import RECORD
from lmsmith.data.prepare.shard_writer import ShardWriter, State
from lmsmith.data.shards import HEADER_BYTES, read_shard, shard_header
from lmsmith.tokens.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer(True)
MARK = 256


def record_of(text: str) -> np.ndarray:
    record = np.zeros(1, RECORD)
    record["begins"], record["document"] = 1, 1
    record["n_tokens"], record["n_bytes"] = 1 + len(text.encode()), len(text.encode())
    return record


@pytest.fixture(autouse=True, scope="module")
def hasty() -> Iterator[None]:
    """Skips fsync, which takes most of the time; tests do not cut the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@settings(max_examples=60, deadline=None)
@given(
    batches=some.lists(
        some.lists(some.text("aé雪", max_size=9), min_size=1, max_size=6), min_size=1, max_size=8
    ),
    shard_tokens=some.integers(1, 30),
    killed=some.lists(some.booleans(), min_size=8, max_size=8),
    synced=some.lists(some.booleans(), min_size=8, max_size=8),
)
def test_shards_are_consecutive_slices_of_the_ids(
    tmp_path_factory, batches, shard_tokens, killed, synced
):
    folder: Path = tmp_path_factory.mktemp("shards")
    writer, safe, n_safe = ShardWriter(folder, "train", TOKENIZER, shard_tokens), State(), 0
    place = 0
    while place < len(batches):
        texts = batches[place]
        ids = np.array([i for text in texts for i in (MARK, *text.encode())], dtype=np.uint16)
        writer.append(np.concatenate([record_of(text) for text in texts]), ids)
        place += 1
        if synced[place - 1]:
            safe, n_safe = copy.deepcopy(writer.sync()), place
        if killed[place - 1]:
            killed[place - 1] = False
            writer.abandon()
            writer, place = (
                ShardWriter(folder, "train", TOKENIZER, shard_tokens, copy.deepcopy(safe)),
                n_safe,
            )
    records = writer.close()
    texts = [text for batch in batches for text in batch]
    wanted = [i for text in texts for i in (MARK, *text.encode())]
    assert [record.file for record in records] == [f"train_{i:06}.bin" for i in range(len(records))]
    found = [read_shard(folder / record.file) for record in records]
    assert [len(ids) for ids in found[:-1]] == [shard_tokens] * (len(found) - 1)
    assert 1 <= len(found[-1]) <= shard_tokens
    assert np.concatenate(found).tolist() == wanted
    for record, ids in zip(records, found, strict=True):
        assert record.n_tokens == len(ids)
        assert record.n_documents == (ids == MARK).sum()
        assert record.n_bytes == (ids != MARK).sum()
        assert record.sha256 == hashlib.sha256((folder / record.file).read_bytes()).hexdigest()


def test_unsynced_data_is_truncated(tmp_path):
    writer = ShardWriter(tmp_path, "val", TOKENIZER, 100)
    writer.append(record_of("one"), np.array([MARK, *b"one"], np.uint16))
    state = copy.deepcopy(writer.sync())
    writer.append(record_of("two"), np.array([MARK, *b"two"], np.uint16))
    writer.abandon()
    (record,) = ShardWriter(tmp_path, "val", TOKENIZER, 100, state).close()
    assert read_shard(tmp_path / record.file).tolist() == [MARK, *b"one"]
    assert (record.n_tokens, record.n_documents, record.n_bytes) == (4, 1, 3)


def test_no_ids_give_no_shard(tmp_path):
    assert ShardWriter(tmp_path, "val", TOKENIZER, 100).close() == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("vocabulary", [257, 70_000])
def test_the_vocabulary_size_sets_the_id_type(tmp_path, vocabulary, monkeypatch):
    tokenizer = ByteTokenizer(True)
    monkeypatch.setattr(tokenizer, "vocab_size", vocabulary)
    writer = ShardWriter(tmp_path, "train", tokenizer, 100)
    writer.append(record_of("one"), np.array([MARK, *b"one"], np.uint16))
    (record,) = writer.close()
    ids = read_shard(tmp_path / record.file)
    assert ids.dtype == (np.uint16 if vocabulary < 1 << 16 else np.uint32)
    assert ids.tolist() == [MARK, *b"one"]


def test_ids_are_on_the_disk_before_a_shard_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is complete and synced, with its header, before its hash is taken; and `sync` flushes
    before it calls fsync."""
    calls = list[tuple[str, bytes]]()
    hash_of = shard_writer.sha256_of

    def hashed(path: Path) -> str:
        calls.append(("hash", path.read_bytes()))
        return hash_of(path)

    def synced(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        calls.append(("fsync", os.pread(descriptor, size, 0)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(shard_writer, "sha256_of", hashed)
    writer = ShardWriter(tmp_path, "train", TOKENIZER, 4)
    writer.append(record_of("ab"), np.array([MARK, 97, 98], dtype=np.uint16))
    assert calls == []
    writer.sync()
    assert [(call, len(data)) for call, data in calls] == [("fsync", HEADER_BYTES + 6)]
    writer.append(record_of("c"), np.array([MARK, 99], dtype=np.uint16))
    complete = (tmp_path / "train_000000.bin").read_bytes()
    assert calls[1:] == [("fsync", complete), ("hash", complete)]
    assert complete[:HEADER_BYTES] == shard_header(4, TOKENIZER.vocab_size)
