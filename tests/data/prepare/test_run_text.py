"""From text files to a run's tokens and back, with independent counts."""

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lmsmith.config import DataConfig
from lmsmith.data.corpus import Corpus, load
from lmsmith.data.prepare.run_text import prepare_text
from lmsmith.errors import CheckpointError, DataError
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import CharTokenizer

TEXT = "The cat sat on the mat \u2013 and stayed.\n" * 30 + "Ψ ends it: ¡ya!\n"


def prepared(tmp_path: Path, *texts: str, tokenizer: str = "auto", **settings: object) -> Corpus:
    """The corpus of these texts, one file each."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index:03}.txt").write_text(text, encoding="utf-8", newline="")
    data = DataConfig(sources=(str(folder),), **settings)  # type: ignore[arg-type]
    return prepare_text(data, tokenizer, tmp_path / "tokens")


def test_the_tokenizer_of_a_run_keeps_no_memory_of_encoding(tmp_path: Path) -> None:
    tokenizer = prepared(tmp_path, TEXT, tokenizer="bpe:300").tokenizer
    assert isinstance(tokenizer, BpeTokenizer)
    assert not tokenizer._caches


def test_one_text_round_trips(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, TEXT, validation_fraction=0.2)
    decode = corpus.tokenizer.decode
    cut = int(len(TEXT) * 0.8)
    assert decode(corpus.train) == TEXT[:cut]
    known = set(TEXT[:cut])
    assert decode(corpus.validation) == "".join(c for c in TEXT[cut:] if c in known)
    assert corpus.tokenizer.kind == "char"
    assert (corpus.tokenizer.end_of_text, corpus.starts_with_end_of_text) == (None, False)
    assert (tmp_path / "tokens" / "validation.txt").read_bytes() == TEXT[cut:].encode()


@pytest.mark.parametrize("tokenizer", ["auto", "byte", "char", "word"])
@pytest.mark.parametrize("n_texts", [1, 3])
def test_loading_returns_what_was_prepared(tmp_path: Path, tokenizer: str, n_texts: int) -> None:
    made = prepared(tmp_path, *(TEXT + str(i) for i in range(n_texts)), tokenizer=tokenizer)
    found = load(tmp_path / "tokens")
    assert isinstance(found.train, np.memmap)
    assert np.array_equal(found.train, made.train)
    assert np.array_equal(found.validation, made.validation)
    assert found.train.dtype == made.train.dtype == np.uint16
    assert found.tokenizer == made.tokenizer
    assert found.counts == made.counts
    assert found.starts_with_end_of_text == made.starts_with_end_of_text == (n_texts > 1)


def test_several_texts_have_an_end_of_text_before_each(tmp_path: Path) -> None:
    texts = [f"story number {i}: {'ab ' * (5 + i)}.\n" for i in range(4)]
    corpus = prepared(tmp_path, *texts, tokenizer="byte", validation_fraction=0.25)
    assert corpus.starts_with_end_of_text
    for ids, parts in (
        (corpus.train, [text[: int(len(text) * 0.75)] for text in texts]),
        (corpus.validation, [text[int(len(text) * 0.75) :] for text in texts]),
    ):
        marks = np.flatnonzero(ids == corpus.tokenizer.end_of_text).tolist()
        assert len(marks) == 4
        assert marks[0] == 0
        ends = [*marks[1:], len(ids)]
        assert [
            corpus.tokenizer.decode(ids[a + 1 : b]) for a, b in zip(marks, ends, strict=True)
        ] == parts
    text = "".join(text[int(len(text) * 0.75) :] for text in texts)
    assert (tmp_path / "tokens" / "validation.txt").read_text(encoding="utf-8") == text
    assert corpus.counts.n_val_bytes == len(text.encode())
    assert corpus.counts.n_val_tokens == len(text) + 4


def test_counts(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, TEXT, tokenizer="char")
    held_out = TEXT[int(len(TEXT) * 0.9) :]
    unknown = [c for c in held_out if c not in TEXT[: int(len(TEXT) * 0.9)]]
    counts = corpus.counts
    assert "Ψ" in unknown
    assert counts.n_train_tokens == len(corpus.train) == int(len(TEXT) * 0.9)
    assert counts.n_val_tokens == len(corpus.validation) == len(held_out) - len(unknown)
    assert counts.n_val_bytes == len(held_out.encode())
    assert counts.n_val_unknown == len(unknown)
    assert counts.n_val_unknown_bytes == len("".join(unknown).encode())
    written = json.loads((tmp_path / "tokens" / "corpus.json").read_text(encoding="utf-8"))
    assert written["n_val_bytes"] == counts.n_val_bytes
    assert tuple(written["notes"]) == counts.notes
    assert any("held out" in note for note in counts.notes)


def test_the_byte_tokenizer_round_trips_any_text(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, TEXT, tokenizer="byte")
    counts = corpus.counts
    assert counts.n_train_tokens + counts.n_val_tokens == len(TEXT.encode())
    assert (counts.n_val_unknown, counts.n_val_unknown_bytes) == (0, 0)


def test_a_single_text_gets_an_end_of_text_token(tmp_path: Path) -> None:
    learnt = CharTokenizer.learn(["abc"], True)
    save_tokenizer(learnt, tmp_path / "mine")
    corpus = prepared(tmp_path, "abcabcabcabcabcabcab", tokenizer=str(tmp_path / "mine"))
    assert corpus.train[0] == learnt.end_of_text
    assert corpus.starts_with_end_of_text


def test_ids_beyond_16_bits(tmp_path: Path) -> None:
    """A vocabulary that needs 32 bits has them in memory and on disk."""
    characters = "".join(chr(0x20000 + i) for i in range(42_000)) + "".join(
        chr(0x30 + i) for i in range(24_000)
    )
    save_tokenizer(CharTokenizer("".join(sorted(characters)), False), tmp_path / "mine")
    corpus = prepared(
        tmp_path, characters[41_900:42_000] + "0123456789", tokenizer=str(tmp_path / "mine")
    )
    assert corpus.train.dtype == load(tmp_path / "tokens").train.dtype == np.uint32
    assert corpus.train.max() >= 1 << 16


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.json", None),
        ("corpus.json", b"{}"),
        ("corpus.json", b"[1]"),
        ("corpus.json", b"\xff{"),
    ],
)
def test_a_missing_folder_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    prepared(tmp_path, TEXT)
    path = tmp_path / "tokens" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not hold a run's tokens"):
        load(tmp_path / "tokens")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    prepared(tmp_path, TEXT)
    path = tmp_path / "tokens" / "val.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"val\.bin"):
        load(tmp_path / "tokens")


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_memory_of_a_text_of_20_mb(tmp_path: Path, tokenizer: str) -> None:
    """Wide characters take two bytes each in Python, for 20 million of them; fewer than ten bytes
    each are used at any time. Measured by allocations, because a child process inherits its
    parent's peak.
    """
    words = random.Random(0).choices(
        ["grey", "cat\u2019s", "sat", "upon", "the", "mat.\n"], k=50_000
    )
    line = " ".join(words)
    (tmp_path / "large.txt").write_text(line * (20_000_000 // len(line) + 1), encoding="utf-8")
    tracemalloc.start()
    try:
        corpus = prepare_text(
            DataConfig(sources=(str(tmp_path / "large.txt"),)), tokenizer, tmp_path / "tokens"
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert corpus.counts.n_train_tokens >= 18_000_000
    assert peak < 200e6, peak
