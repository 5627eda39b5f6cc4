"""Learning a tokenizer from files gives the same result as from their texts, for all file formats
and sizes.
"""

import gzip
import json
from pathlib import Path

import pytest

from lmsmith.errors import DataError, TokenizerError
from lmsmith.text.documents import Documents
from lmsmith.tokens import learn
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.learn import train_tokenizer

TEXTS = ["the cat sat on the mat\nzwölf Öfen\n" * 30, "a dog and a log and a frog\n" * 40]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A text file with a byte-order mark and CRLF, and a compressed JSON Lines file."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXTS[0].replace("\n", "\r\n").encode())
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[1:])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


def test_files_give_the_same_as_their_texts(folder: Path, tmp_path: Path) -> None:
    tokenizer, notes = train_tokenizer([str(folder)], 300, tmp_path / "out")
    assert tokenizer == learn_bpe(TEXTS, 300)
    assert load_tokenizer(tmp_path / "out") == tokenizer
    assert any("CRLF" in note for note in notes)


def test_large_files_are_read_in_blocks_and_give_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "LARGE", 100)
    monkeypatch.setattr(learn, "BLOCK", 17)
    tokenizer, _ = train_tokenizer([str(folder)], 300, tmp_path / "out")
    assert tokenizer == learn_bpe(TEXTS, 300)
    utf16 = folder / "c.txt"
    utf16.write_text(TEXTS[0], encoding="utf-16")
    again, _ = train_tokenizer([str(utf16)], 300, tmp_path / "again")
    assert again == learn_bpe(TEXTS[:1], 300)
    bad = folder / "bad.txt"
    bad.write_bytes(b"x" * 200 + b"\xff")
    with pytest.raises(DataError, match=r"bad\.txt is not UTF-8: byte 0xFF at offset 200"):
        train_tokenizer([str(bad)], 300, tmp_path / "bad")
    replaced, _ = train_tokenizer([str(bad)], 300, tmp_path / "replaced", errors="replace")
    assert replaced.vocab_size < 300


def test_the_block_size_does_not_change_the_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "LARGE", 100)
    monkeypatch.setattr(learn, "BLOCK", 17)
    large = next(
        text
        for text in learn.texts_of(Documents([str(folder / "a.txt")]), [])
        if not isinstance(text, str)
    )
    assert max(map(len, large)) <= 2 * 17


def test_binary_and_empty_files_in_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binary files are skipped, as in `lmsmith train`; an empty file is not an error."""
    (folder / "binary.txt").write_bytes(b"\0\1\2" * 10)
    (folder / "empty.txt").write_bytes(b"")
    for large in (learn.LARGE, 1000):
        monkeypatch.setattr(learn, "LARGE", large)
        tokenizer, notes = train_tokenizer([str(folder)], 300, tmp_path / f"out{large}")
        assert tokenizer == learn_bpe(TEXTS, 300)
        assert "1 binary file skipped." in notes
    (folder / "b.jsonl.gz").unlink()
    only_large, _ = train_tokenizer([str(folder)], 300, tmp_path / "only large")
    assert only_large == learn_bpe(TEXTS[:1], 300)


def test_errors_before_text_is_read(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(TokenizerError, match="too small"):
        train_tokenizer(["nowhere"], 10, tmp_path / "out")
    with pytest.raises(TokenizerError, match="not a regular expression"):
        train_tokenizer(["nowhere"], 300, tmp_path / "out", pattern="(")
    for out in (folder / "a.txt", folder / "a.txt" / "out"):
        with pytest.raises(TokenizerError, match=r"a\.txt is not a folder. Choose another --out"):
            train_tokenizer(["nowhere"], 300, out)
    with pytest.raises(DataError, match="nowhere"):
        train_tokenizer(["nowhere"], 300, tmp_path / "out")
    train_tokenizer([str(folder / "a.txt")], 300, tmp_path / "out")
    with pytest.raises(TokenizerError, match="already contains a tokenizer"):
        train_tokenizer([str(folder / "a.txt")], 300, tmp_path / "out")
