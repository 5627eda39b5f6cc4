"""Tokenizers of every kind, written for transformers and read by it, give the same ids and
text.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some
from random_models import transformers

from lmsmith.errors import TokenizerError
from lmsmith.interop.vocabulary import load, save
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
)

LEARNT_FROM = [
    "Don't the cats' hats fit?\n  They do, 123 times — naïve  中文 😀\r\n\tx_1 the the cats",
    "a",
]
TEXTS = [
    *[
        "",
        " ",
        "\n",
        "the cats",
        "the  cats \n\n",
        "Don't l\u2019été",
        "😀🇩🇪👩\u200d👩",
        "e\u0301 \u200b\ufeff",
        "\x00\x1c\x85\u2028",
    ],
    *[
        "²³½ ٣ Ⅷ ª",
        "中文字 中文",
        "x_1 __init__ 12",
        "\r\n\t\v\f",
        "<unk> <|endoftext|",
        "ﬁ ﷽ \U0001d54f \U0010ffff",
    ],
]


def tokenizer_of(kind: str, end: bool) -> Tokenizer:
    if kind == "byte":
        return ByteTokenizer(end)
    if kind == "char":
        return CharTokenizer.learn(LEARNT_FROM, end)
    if kind == "word":
        return WordTokenizer.learn(LEARNT_FROM, end, 20)
    return learn_bpe(LEARNT_FROM, 300, special_tokens=[END_OF_TEXT] if end else [])


@pytest.fixture(scope="module", params=["byte", "char", "word", "bpe"])
def both(request: Any, tmp_path_factory: Any) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    ours = tokenizer_of(request.param, True)
    save(ours, folder, context_length=77)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_ids_and_text(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = both
    ids = ours.encode(text).tolist()
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids)


def test_the_end_of_text(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.model_max_length) == (
        ours.end_of_text,
        ours.end_of_text,
        77,
    )
    assert len(theirs) == ours.vocab_size
    ids = [*ours.encode("the").tolist(), ours.end_of_text, *ours.encode("cats").tolist()]
    assert theirs(f"the{END_OF_TEXT}cats")["input_ids"] == ids


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=some.text(
        some.characters(exclude_categories=["Cs"]) | some.sampled_from(" '\u2019_1aé\n"),
        max_size=60,
    )
)
def test_the_same_ids_for_any_text(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = both
    assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode(text).tolist()


def test_every_character_is_split_as_in_lmsmith(tmp_path: Path) -> None:
    """The word tokenizer's classes over all of Unicode, each character alone and next to others."""
    ours = tokenizer_of("word", False)
    save(ours, tmp_path, context_length=7)
    cut = transformers.AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.pre_tokenizer
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    known = WordTokenizer(["x"], False)
    for start in range(0, len(every), 7001):
        for text in (every[start : start + 200], " ".join(every[start : start + 100])):
            pieces = [piece for piece, _ in cut.pre_tokenize_str(text)]
            assert len(pieces) == len(known.encode(text))
            assert "".join(pieces) == text


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("kind", ["byte", "char", "word", "bpe"])
def test_a_round_trip_gives_the_same_ids(kind: str, end: bool, tmp_path: Path) -> None:
    ours = tokenizer_of(kind, end)
    (tmp_path / "ours").mkdir()
    save(ours, tmp_path / "ours", context_length=7)
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(
        tmp_path / "theirs"
    )
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        again = load(folder)
        assert (again.vocab_size, again.end_of_text) == (ours.vocab_size, ours.end_of_text)
        assert all(again.encode(text).tolist() == ours.encode(text).tolist() for text in TEXTS)
        assert (
            kind == "byte" or again == ours
        )  # bytes come back as byte-pair encoding without merges


def test_another_character_tokenizer_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    save(tokenizer_of("char", False), tmp_path, context_length=7)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"decoder": None},
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | change), encoding="utf-8")
        assert load(tmp_path).kind == "library"


def test_a_damaged_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match="SentencePiece"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "damaged: it is nested more than 100 levels deep"),
        ('{"model": ' * 300 + "1" + "}" * 300, "damaged: it is nested more than 100 levels deep"),
        ('{"id": 1' + "0" * 5000 + "}", "damaged: it holds a number of more than 4,300 digits"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_json_beyond_the_limits_is_one_error(
    name: str, text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(TokenizerError, match=rf"{name} is {told}"):
        load(tmp_path)


def test_an_id_that_is_not_a_number(tmp_path: Path) -> None:
    save(ByteTokenizer(True), tmp_path, context_length=8)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"id": 256', '"id": 1e999'))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load(tmp_path)
