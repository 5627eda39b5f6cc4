"""Prepared folders against documents that plain Python reads and encodes one by one."""

import gzip
import hashlib
import json
import os
import random
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lmsmith.data.manifest import Manifest, read_manifest
from lmsmith.data.prepare import assemble, encode, engines, plan, units
from lmsmith.data.prepare.build import build_shards
from lmsmith.text import files
from lmsmith.text.documents import Documents
from lmsmith.text.held_out import split_documents
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.foreign import to_huggingface
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "and",
    "that",
    "it's",
    "1,024",
    "naïve",
    "cafés",
    "—",
    "雪が降る.",
    "¡Ya!",
    "\n\n",
]


def words(seed: int, n: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def write_sources(folder: Path, n: int = 30) -> Path:
    """Documents in every file format; some are empty, equal, or have unusual line ends."""
    folder.mkdir(parents=True)
    texts = [words(i, 5 + 7 * (i % 9)) + f" number {i}." for i in range(3 * n)]
    for i in range(n):
        (folder / f"a{i:03}.txt").write_bytes(
            texts[i].replace("\n", "\r\n").encode("utf-8-sig" if i % 3 else "utf-16")
        )
    (folder / "b.txt").write_text("  \n")
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(texts[n : 2 * n])]
    lines.insert(3, json.dumps({"text": ""}))
    lines.insert(7, json.dumps({"text": texts[2]}))
    (folder / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "d.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[5:9]).encode()))
    rows = texts[2 * n :]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [*rows, None]}), folder / "e.parquet", row_group_size=7
    )
    (folder / "f.txt.gz").write_bytes(gzip.compress((words(99, 400) + "\r\n").encode()))
    (folder / "g.txt").write_text(words(100, 900), encoding="utf-8")
    (folder / "h.txt").write_bytes(b"bin\0ary")
    return folder


@dataclass
class Wanted:
    """What a folder should hold, from the documents alone."""

    splits: dict[str, list[str]]

    def shards(self, tokenizer: Tokenizer, shard_tokens: int) -> dict[str, bytes]:
        files = {}
        for name, texts in self.splits.items():
            ids = [
                i
                for text in texts
                for i in (tokenizer.end_of_text, *tokenizer.encode(text).tolist())
            ]
            for number, start in enumerate(range(0, len(ids), shard_tokens)):
                part = ids[start : start + shard_tokens]
                head = struct.pack("<256i", 20240520, 1, len(part), *[0] * 253)
                files[f"{name}_{number:06}.bin"] = head + struct.pack(f"<{len(part)}H", *part)
        return files


def by_hash(texts: list[str], fraction: float) -> Wanted:
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for text in texts:
        key = hashlib.blake2b(
            text.encode(), key=b"lmsmith: training or validation", digest_size=8
        ).digest()
        splits["val" if struct.unpack("<Q", key)[0] / 2**64 < fraction else "train"].append(text)
    return Wanted(splits)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".bin")}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    save_tokenizer(
        learn_bpe([words(1, 20_000)], 400, pattern="gpt2", special_tokens=["<|endoftext|>"]), folder
    )
    return folder


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips fsync, which takes most of the time; tests do not cut the power."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes small files count as large ones, so that a unit is a few documents."""
    monkeypatch.setattr(plan, "OPENING", 0)
    monkeypatch.setattr(plan, "UNIT_BYTES", (1000, 1000))
    monkeypatch.setattr(plan, "LARGE", 3000)
    monkeypatch.setattr(units, "LARGE", 3000)
    monkeypatch.setattr(encode, "BATCH", 700)


def check_manifest(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Checks every count against the shards."""
    assert read_manifest(folder) == manifest
    assert (
        manifest.tokenizer.fingerprint
        == tokenizer.fingerprint
        == load_tokenizer(folder).fingerprint
    )
    for split in manifest.splits.values():
        for shard in split.shards:
            data = (folder / shard.file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard.sha256
            ids = np.frombuffer(data[1024:], "<u2")
            assert shard.n_tokens == len(ids) == struct.unpack("<i", data[8:12])[0]
            text = ids[ids != tokenizer.end_of_text]
            assert shard.n_documents == len(ids) - len(text)
            assert shard.n_bytes == len(tokenizer.decode_bytes(text))
        assert split.n_tokens == sum(shard.n_tokens for shard in split.shards)
        assert split.n_documents == sum(shard.n_documents for shard in split.shards)
        assert split.n_bytes == sum(shard.n_bytes for shard in split.shards)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_shards_are_the_encoded_documents(tmp_path, bpe, small, kind, workers):
    source = write_sources(tmp_path / "texts")
    tokenizer = ByteTokenizer(True) if kind == "byte" else load_tokenizer(bpe)
    texts = [document.text for document in Documents([source])]
    assert len(texts) == 30 + 30 + 1 + 4 + 30 + 2
    manifest = build_shards(
        [str(source)], tmp_path / "out", tokenizer="byte" if kind == "byte" else str(bpe), shard_tokens=1000,
        validation_fraction=0.2, workers=workers,
    )  # fmt: skip
    wanted = by_hash(texts, 0.2)
    # The fingerprint of a plain file of more than LARGE bytes decides its split.
    large = next(text for text in texts if len(text.encode()) > 3000 and text == words(100, 900))
    held_out = large in wanted.splits["val"]
    key = hashlib.blake2b(
        units.fingerprint(source / "g.txt").encode(),
        key=b"lmsmith: training or validation",
        digest_size=8,
    ).digest()
    assert (struct.unpack("<Q", key)[0] / 2**64 < 0.2) == held_out, (
        "choose another text: this one changes sides"
    )
    assert shards(tmp_path / "out") == wanted.shards(tokenizer, 1000)
    check_manifest(tmp_path / "out", manifest, tokenizer)
    assert [Path(record.path).name for record in manifest.sources][-1] == "h.txt"
    assert any("3 empty documents skipped" in note for note in manifest.notes), manifest.notes
    assert any("1 binary file skipped" in note for note in manifest.notes)


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_added_tokens_are_not_split(tmp_path, bpe, small, normalizer):
    """With our engine, and with the library `tokenizers`, which gets complete documents."""
    ours = load_tokenizer(bpe)
    content = to_huggingface(ours) | {"normalizer": normalizer}
    flags = {
        "special": False,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    names = [f"{left} {right}" for left in WORDS[:7] for right in WORDS[:7]]
    content["added_tokens"] += [
        {"id": ours.vocab_size + i, "content": name} | flags for i, name in enumerate(names)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    source = write_sources(tmp_path / "texts")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.kind == ("bpe" if normalizer is None else "library")
    build_shards(
        [str(source)], tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"), shard_tokens=1000,
        validation_fraction=0.2, workers=1,
    )  # fmt: skip
    texts = [document.text for document in Documents([source])]
    found = shards(tmp_path / "out")
    decoded = {
        side: tokenizer.decode(
            np.concatenate(
                [
                    np.frombuffer(found[name][1024:], "<u2")
                    for name in sorted(found)
                    if name.startswith(side)
                ]
            )
        )
        for side in ("train", "val")
    }
    again = Wanted({side: text.split("<|endoftext|>")[1:] for side, text in decoded.items()})
    assert sorted(text for some in again.splits.values() for text in some) == sorted(texts)
    assert found == again.shards(tokenizer, 1000)


def test_processes_give_the_same_folder(tmp_path, bpe, small, monkeypatch):
    """The division is planned beforehand, so that processes, where files are not small, do the
    same.
    """
    source = write_sources(tmp_path / "texts", n=20)
    (source / "f.txt.gz").unlink()  # the process that reads a long text finds that it is long
    monkeypatch.setattr(engines, "MANY_BYTES", 0)
    build_shards([str(source)], tmp_path / "two", tokenizer=str(bpe), shard_tokens=900, workers=2)
    build_shards([str(source)], tmp_path / "one", tokenizer=str(bpe), shard_tokens=900, workers=1)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    for path in source.iterdir():
        os.utime(path, (1, 1))  # the files' modification times do not matter either
    build_shards([str(source)], tmp_path / "late", tokenizer=str(bpe), shard_tokens=900, workers=1)
    assert contents(tmp_path / "late") == contents(tmp_path / "one")
    assert set(contents(tmp_path / "one")) >= {
        "manifest.json",
        "tokenizer.json",
        "train_000002.bin",
        "val_000000.bin",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "one", "texts", "two"]


def test_the_division_into_units_does_not_matter(tmp_path, bpe, monkeypatch):
    source = write_sources(tmp_path / "texts")
    monkeypatch.setattr(plan, "UNITS", 1)
    monkeypatch.setattr(plan, "OPENING", 0)
    found = []
    for size in (300, 5_000, 10**9):
        monkeypatch.setattr(plan, "UNIT_BYTES", (size, size))
        build_shards([str(source)], tmp_path / str(size), tokenizer=str(bpe), shard_tokens=1234)
        found.append(contents(tmp_path / str(size)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["byte", "bpe", "llama", "char", "word"])
@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_few_documents_are_split_as_for_a_run(tmp_path, bpe, kind, fraction):
    if kind == "llama":  # its end-of-text token has another name
        special = ["<|begin_of_text|>", "<|end_of_text|>"]
        save_tokenizer(learn_bpe([words(1, 500)], 300, special_tokens=special), tmp_path / "llama")
    source = tmp_path / "texts"
    source.mkdir()
    texts = [words(i, 200 + i) for i in range(5)]
    for i, text in enumerate([*texts, texts[1]]):
        (source / f"{i}.txt").write_text(text, encoding="utf-8")
    manifest = build_shards(
        [str(source)], tmp_path / "out", tokenizer={"bpe": str(bpe), "llama": str(tmp_path / "llama")}.get(kind, kind),
        validation_fraction=fraction,
    )  # fmt: skip
    split = split_documents(Documents([source]), fraction)
    learnt = {"char": CharTokenizer.learn, "word": WordTokenizer.learn}
    tokenizer = load_tokenizer(tmp_path / "out")
    if kind in learnt:
        assert tokenizer == learnt[kind](split.train, True)
    assert shards(tmp_path / "out") == Wanted(
        {"train": split.train, "val": split.validation}
    ).shards(tokenizer, 10**8)
    notes = " ".join(manifest.notes)
    assert "1 exact duplicate dropped" in notes
    assert f"the last {30 if fraction else 10}% of each of 5 documents is for validation" in notes
    assert "directly continues" in notes
    val = manifest.splits["val"]
    assert val.n_unknown == sum(map(tokenizer.count_unknown, split.validation))
    assert val.n_unknown_bytes == sum(map(tokenizer.unknown_bytes, split.validation))
    assert val.n_bytes == sum(len(text.encode()) for text in split.validation)


def test_shakespeare_is_split_as_nanogpt_does(tmp_path, test_data):
    source = test_data / "tinyshakespeare" / "input.txt"
    text = source.read_text(encoding="utf-8")
    build_shards([str(source)], tmp_path / "out", tokenizer="byte", validation_fraction=0.1)
    n = int(len(text) * 0.9)
    assert shards(tmp_path / "out") == Wanted({"train": [text[:n]], "val": [text[n:]]}).shards(
        ByteTokenizer(True), 10**8
    )


@pytest.mark.parametrize("kind", ["byte", "bpe", "word"])
def test_one_large_file_in_pieces(tmp_path, bpe, small, kind):
    """Its tail is held out as always, but the cut moves to where no pre-token continues."""
    text = words(3, 6000)
    (tmp_path / "large.txt").write_text("\ufeff" + text, encoding="utf-8", newline="\r\n")
    build_shards(
        [str(tmp_path / "large.txt")], tmp_path / "out", tokenizer=str(bpe) if kind == "bpe" else kind,
        validation_fraction=0.25, shard_tokens=5000, workers=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "out")
    found = shards(tmp_path / "out")
    ids = {
        name: np.concatenate(
            [
                np.frombuffer(data[1024:], "<u2")
                for file, data in found.items()
                if file.startswith(name)
            ]
        )
        for name in ("train", "val")
    }
    if kind == "word":  # not divided, because it is cut by characters
        cut = int(len(text) * 0.75)
    else:
        train = tokenizer.decode(ids["train"][1:])
        cut = len(train)
        assert train == text[:cut]
        assert abs(len(train.encode()) / len(text.encode()) - 0.75) < 0.04
    assert found == Wanted({"train": [text[:cut]], "val": [text[cut:]]}).shards(tokenizer, 5000)


def test_a_document_stays_in_its_split_when_files_are_added(tmp_path):
    """Also in a folder a hundred times as large; an equal document is in the same split."""
    source = tmp_path / "texts"
    source.mkdir()

    def sides() -> dict[str, str]:
        out = tmp_path / f"out{len(list(source.iterdir()))}"
        build_shards([str(source)], out, tokenizer="byte")
        tokenizer = ByteTokenizer(True)
        found = {}
        for name, data in shards(out).items():
            ids = np.frombuffer(data[1024:], "<u2")
            for text in tokenizer.decode(ids[1:]).split("<|endoftext|>"):
                assert found.setdefault(text, name[:3]) == name[:3]
        return found

    for i in range(60):
        (source / f"m{i}.txt").write_text(f"the {i}th text {i * i}", encoding="utf-8")
    before = sides()
    assert {"tra", "val"} == set(before.values())
    lines = [json.dumps({"text": f"line {i} of {i * i}"}) for i in range(6000)] + [
        json.dumps({"text": list(before)[3]})
    ]
    (source / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    after = sides()
    assert len(after) == 6060
    assert {text: after[text] for text in before} == before
    share = sum(side == "val" for side in after.values()) / len(after)
    assert 0.04 < share < 0.06


def test_exact_duplicates(tmp_path, small):
    texts = [words(i, 30) for i in range(100)]
    repeated = [*texts, *texts[10:40], texts[5], texts[5]]
    random.Random(1).shuffle(repeated)
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in repeated), encoding="utf-8"
    )
    for i in range(3):
        (tmp_path / f"z{i}.txt").write_text(words(7, 3000), encoding="utf-8")  # large ones
    manifest = build_shards(
        [str(tmp_path)],
        tmp_path / "out",
        tokenizer="byte",
        dedup="exact",
        validation_fraction=0.2,
        workers=3,
    )
    wanted = by_hash([*dict.fromkeys(repeated)], 0.2)
    key = hashlib.blake2b(
        units.fingerprint(tmp_path / "z0.txt").encode(),
        key=b"lmsmith: training or validation",
        digest_size=8,
    ).digest()
    wanted.splits["val" if struct.unpack("<Q", key)[0] / 2**64 < 0.2 else "train"].append(
        words(7, 3000)
    )
    assert shards(tmp_path / "out") == wanted.shards(ByteTokenizer(True), 10**8)
    assert "32 exact duplicates dropped." in manifest.notes
    assert any(note.startswith("2 large files identical to others") for note in manifest.notes)


def test_the_tokenizer_is_learned_from_training_text(tmp_path):
    texts = [words(i, 60) + f" {i}" for i in range(70)]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8"
    )
    manifest = build_shards(
        [str(tmp_path)], tmp_path / "out", tokenizer="bpe:300", validation_fraction=0.3
    )
    wanted = by_hash(texts, 0.3)
    learnt = learn_bpe(wanted.splits["train"], 300, special_tokens=["<|endoftext|>"])
    assert manifest.tokenizer.fingerprint == learnt.fingerprint
    assert shards(tmp_path / "out") == wanted.shards(learnt, 10**8)


def test_ids_of_32_bits(tmp_path):
    characters = "".join(chr(0x20000 + i) for i in range(42_000)) + "".join(
        chr(0x30 + i) for i in range(24_000)
    )
    save_tokenizer(CharTokenizer("".join(sorted(characters)), True), tmp_path / "mine")
    text = characters[41_000:42_000] + "0123456789" * 100
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    build_shards(
        [str(tmp_path / "a.txt")],
        tmp_path / "out",
        tokenizer=str(tmp_path / "mine"),
        validation_fraction=0.5,
    )
    data = (tmp_path / "out" / "train_000000.bin").read_bytes()
    assert struct.unpack("<3i", data[:12]) == (20240801, 7, 1001)
    tokenizer = load_tokenizer(tmp_path / "mine")
    assert np.frombuffer(data[1024:], "<u4").tolist() == [
        66_000,
        *tokenizer.encode(text[:1000]).tolist(),
    ]


def test_large_files_that_differ_between_their_samples_are_both_kept(tmp_path, monkeypatch):
    """Same size, beginning, middle and end; a third file is really identical."""
    monkeypatch.setattr(plan, "LARGE", 1 << 19)
    text = "the same words again and again.\n" * 30_000
    place = len(text) // 4
    other = text[:place] + text[place:].replace("same", "SAME", 1)
    source = tmp_path / "source"
    source.mkdir()
    for name, content in (("a.txt", text), ("b.txt", other), ("c.txt", text)):
        (source / name).write_text(content, encoding="utf-8")
    assert len({units.fingerprint(source / name) for name in ("a.txt", "b.txt", "c.txt")}) == 1
    manifest = build_shards([str(source)], tmp_path / "out", tokenizer="byte")
    assert sum(split.n_bytes for split in manifest.splits.values()) == 2 * len(text)
    assert "1 large file identical to others, byte for byte; dropped." in manifest.notes


def test_a_large_compressed_copy_is_dropped_completely(tmp_path, monkeypatch):
    """Including its later parts and the tail that would be held out."""
    monkeypatch.setattr(units, "LARGE", 3000)
    monkeypatch.setattr(files, "CHUNK", 1000)
    monkeypatch.setattr(encode, "BATCH", 2000)
    monkeypatch.setattr(assemble, "BLOCK", 500)
    source = tmp_path / "source"
    source.mkdir()
    text = words(1, 2000)
    for name in ("a.txt.gz", "b.txt.gz"):
        (source / name).write_bytes(gzip.compress(text.encode()))
    manifest = build_shards(
        [str(source)], tmp_path / "out", tokenizer="byte", validation_fraction=0.2
    )
    cut = int(len(text) * 0.8)
    wanted = Wanted({"train": [text[:cut]], "val": [text[cut:]]})
    assert shards(tmp_path / "out") == wanted.shards(ByteTokenizer(True), 10**8)
    assert "1 exact duplicate dropped." in manifest.notes


def test_the_manifest_names_every_source_with_size_and_fingerprint(tmp_path, monkeypatch):
    """Small, compressed, and large enough to be read in pieces."""
    monkeypatch.setattr(plan, "LARGE", 3000)
    monkeypatch.setattr(plan, "UNIT_BYTES", (1000, 1000))
    source = tmp_path / "source"
    source.mkdir()
    contents = {
        "a.txt": words(1, 20).encode(),
        "b.txt.gz": gzip.compress(words(2, 20).encode()),
        "c.txt": words(3, 3000).encode(),
    }
    for name, content in contents.items():
        (source / name).write_bytes(content)
    manifest = build_shards([str(source)], tmp_path / "out", tokenizer="byte")
    wanted = [
        (
            str(source / name),
            len(content),
            hashlib.blake2b(b"%d\n%b" % (len(content), content), digest_size=16).hexdigest(),
        )
        for name, content in contents.items()
    ]
    assert [(found.path, found.n_bytes, found.fingerprint) for found in manifest.sources] == wanted
    note = "1 large file compared only by size and samples: the same text in another form"
    assert any(said.startswith(note) for said in manifest.notes)
    alone = build_shards([str(source / "c.txt")], tmp_path / "alone", tokenizer="byte")
    assert not any("large file" in said for said in alone.notes)
