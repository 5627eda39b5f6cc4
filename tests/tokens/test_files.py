"""Tokenizers on disk: what is loaded is what was saved, and damage is named."""

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
def test_loaded_is_what_was_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = save_tokenizer(tokenizer, tmp_path / "new" / "folder")
    for place in (path, path.parent):
        again = load_tokenizer(place)
        assert again == tokenizer
        assert type(again) is type(tokenizer)
        assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere")
    path = save_tokenizer(CharTokenizer.learn([TEXT], True), tmp_path)
    whole = path.read_text(encoding="utf-8")

    def loading(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        load_tokenizer(tmp_path)

    with pytest.raises(TokenizerError, match="damaged: it is not JSON"):
        loading(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match="does not match its sha256"):
        loading(whole.replace("Z", "Y"))
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        loading("[1]")
    with pytest.raises(
        TokenizerError, match="format version 99; this version of lmsmith reads version 1"
    ):
        loading(json.dumps(json.loads(whole) | {"version": 99}))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match="damaged"):
        load_tokenizer(tmp_path)
