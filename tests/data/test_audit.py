"""`data inspect` on folders with known content, before and after damage."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmsmith.data.audit import inspect
from lmsmith.data.manifest import (
    Manifest,
    ShardRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    read_manifest,
    write_manifest,
)
from lmsmith.data.shards import write_shard
from lmsmith.errors import DataError, TokenizerError
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer(True)
TEXTS = {"train": ["Später,", " a cat sat down. " * 9, "The end."], "val": ["Nobody knew."]}


def ids_of(text: str) -> np.ndarray:
    return np.concatenate([[256], BYTES.encode(text)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared folder with correct counts and hashes."""
    place = tmp_path / "ready"
    place.mkdir()
    splits = {}
    for split, texts in TEXTS.items():
        records = []
        for number, text in enumerate(texts):
            path = place / f"{split}_{number:06}.bin"
            write_shard(path, ids_of(text), 257)
            n_bytes = len(text.encode())
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            records.append(ShardRecord(path.name, n_bytes + 1, 1, n_bytes, digest))
        sums = [
            sum(getattr(r, key) for r in records) for key in ("n_tokens", "n_documents", "n_bytes")
        ]
        splits[split] = SplitRecord(*sums, tuple(records))
    sources = (SourceRecord("a.txt", 5, "x"), SourceRecord("b.txt", 5, "y"))
    write_manifest(
        place, Manifest(TokenizerRecord.of(BYTES), splits, sources, notes=("one was skipped",))
    )
    save_tokenizer(BYTES, place)
    return place


@pytest.mark.parametrize("verify", [False, True])
def test_an_intact_folder(folder: Path, verify: bool) -> None:
    told: list[tuple[str, int, int]] = []
    found = inspect(folder, verify=verify, tell=lambda *now: told.append(now))
    assert found.problems == ()
    assert found.prepared
    assert found.source == "prepared by lmsmith from 2 files"
    assert found.tokenizer == f"byte, 257 ids, {BYTES.fingerprint[:16]}"
    assert found.notes == ("one was skipped",)
    train, validation = found.splits
    n_bytes = sum(len(text.encode()) for text in TEXTS["train"])
    assert (train.name, len(train.shards), train.n_tokens, train.bits) == (
        "train",
        3,
        n_bytes + 3,
        16,
    )
    assert (train.n_documents, train.n_bytes) == (3, n_bytes)
    assert train.begins == BYTES.decode(
        np.concatenate([ids_of(text) for text in TEXTS["train"]])[:64]
    )
    assert train.begins.startswith("<|endoftext|>Später,<|endoftext|> a cat")
    assert (validation.n_tokens, validation.begins) == (13, "<|endoftext|>Nobody knew.")
    assert [task for task, _, _ in told] == [
        f"verifying {p.name}" for s in found.splits for p in s.shards
    ] * verify


def test_every_changed_byte_is_reported(folder: Path) -> None:
    for split, number, place in (("train", 1, 1024 + 40), ("val", 0, 500)):
        path = folder / f"{split}_{number:06}.bin"
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
    found = inspect(folder, verify=True)
    assert [problem.split(" has changed: ")[0] for problem in found.problems] == [
        str(folder / "train_000001.bin"),
        str(folder / "val_000000.bin"),
    ]
    assert inspect(folder).problems == ()


def test_wrong_ids_documents_and_lengths(folder: Path) -> None:
    ids = ids_of(TEXTS["train"][1])
    write_shard(folder / "train_000001.bin", np.where(np.arange(len(ids)) == 7, 300, ids), 65536)
    write_shard(folder / "train_000002.bin", ids_of("The end.")[1:], 257)
    write_shard(folder / "val_000000.bin", np.append(ids_of("Nobody kne"), [256, 5]), 257)
    found = inspect(folder, verify=True)
    said = "\n".join(found.problems)
    assert (
        f"{folder / 'train_000001.bin'} has id 300 at position 7, but the vocabulary has 257 ids"
        in said
    )
    assert f"{folder / 'train_000002.bin'} has 8 tokens, but the manifest lists 9." in said
    assert (
        f"{folder / 'val_000000.bin'} has 2 end-of-text tokens, but the manifest lists 1 documents."
        in said
    )
    assert inspect(folder).problems == (
        f"{folder / 'train_000002.bin'} has 8 tokens, but the manifest lists 9.",
    )


def test_wrong_byte_counts(folder: Path) -> None:
    """Bits per byte are divided by this count. If ids do not represent all of the text, it cannot
    be recounted.
    """
    manifest = read_manifest(folder)
    train = manifest.splits["train"]
    shards = (replace(train.shards[0], n_bytes=9), *train.shards[1:])
    wrong = replace(train, shards=shards, n_bytes=train.n_bytes + 1)
    write_manifest(folder, replace(manifest, splits={**manifest.splits, "train": wrong}))
    (problem,) = inspect(folder, verify=True).problems
    assert (
        problem == f"{folder / 'train_000000.bin'} has 8 bytes of text, but the manifest lists 9."
    )
    unknown = replace(wrong, n_unknown=1, n_unknown_bytes=1)
    write_manifest(folder, replace(manifest, splits={**manifest.splits, "train": unknown}))
    assert inspect(folder, verify=True).problems == ()


def test_one_shard(folder: Path, tmp_path: Path) -> None:
    """With the manifest of its folder; alone, showing ids instead of text."""
    found = inspect(folder / "val_000000.bin", verify=True)
    (split,) = found.splits
    assert (split.name, split.n_tokens, split.n_documents, split.n_bytes) == ("val", 13, 1, 12)
    assert split.begins == "<|endoftext|>Nobody knew."
    alone = tmp_path / "some.bin"
    write_shard(alone, np.arange(100_000, 100_030), 200_000)
    found = inspect(alone, verify=True)
    (split,) = found.splits
    assert (split.n_tokens, split.bits, split.n_documents) == (30, 32, None)
    assert split.begins == " ".join(map(str, range(100_000, 100_016))) + " ..."
    assert (found.tokenizer, found.prepared, found.problems) == ("unknown", False, ())
    named = inspect(alone, BYTES, verify=True)
    assert "has id 100000 at position 0" in named.problems[0]
    assert named.splits[0].begins == split.begins


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    write_shard(tmp_path / "x_train_000001.bin", ids_of("Hello"), 50257)
    write_shard(tmp_path / "x_val_000000.bin", ids_of("Bye"), 50257)
    found = inspect(tmp_path, BYTES, verify=True)
    assert [split.begins for split in found.splits] == ["<|endoftext|>Hello", "<|endoftext|>Bye"]
    assert "assumed" in found.tokenizer
    assert found.problems == ()
    assert [split.begins for split in inspect(tmp_path).splits] == [
        "256 72 101 108 108 111",
        "256 66 121 101",
    ]


def test_folders_and_files_that_cannot_be_inspected(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent does not exist\. Name a folder of shards"):
        inspect(tmp_path / "absent")
    with pytest.raises(
        DataError, match=r"holds no token shards\. .*`lmsmith data prepare` makes shards from text"
    ):
        inspect(tmp_path)
    with pytest.raises(
        TokenizerError,
        match=r"made with another tokenizer \(byte, 257 ids\) than the one named \(char",
    ):
        inspect(folder, CharTokenizer.learn(["abc"], True))
    (folder / "train_000000.bin").write_bytes((folder / "train_000000.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train_000000\.bin is truncated"):
        inspect(folder)
    partial = tmp_path / "tokens.partial"
    (partial / "work").mkdir(parents=True)
    write_shard(partial / "train_000000.bin", ids_of("Hello"), 257)
    with pytest.raises(DataError, match=r"is being prepared, .* produces .*tokens"):
        inspect(partial)
