"""Saving and loading tokenizers, and errors for damaged files."""

import json
from pathlib import Path

import pytest

from lmsmith.errors import TokenizerError
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

TEXT = "Zwölf Boxkämpfer jagen Viktor\u2028quer über 🙂 den großen Sylter Deich."


@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer(True),
        ByteTokenizer(False),
        CharTokenizer.learn([TEXT], True),
        WordTokenizer.learn([TEXT], False),
    ],
    ids=repr,
)
def test_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = save_tokenizer(tokenizer, tmp_path / "new" / "folder")
    for source in (path, path.parent):
        loaded = load_tokenizer(source)
        assert loaded == tokenizer
        assert type(loaded) is type(tokenizer)
        assert loaded.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere")
    path = save_tokenizer(CharTokenizer.learn([TEXT], True), tmp_path)
    content = path.read_text(encoding="utf-8")

    def load(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        load_tokenizer(tmp_path)

    with pytest.raises(TokenizerError, match="damaged: it is not JSON"):
        load(content[: len(content) // 2])
    with pytest.raises(TokenizerError, match="does not match its sha256"):
        load(content.replace("Z", "Y"))
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        load("[1]")
    with pytest.raises(
        TokenizerError, match="format version 99; this version of lmsmith reads version 1"
    ):
        load(json.dumps(json.loads(content) | {"version": 99}))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match="damaged"):
        load_tokenizer(tmp_path)
