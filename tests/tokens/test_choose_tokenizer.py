"""The tokenizer for each name; learning from texts in memory and from a stream gives the same
tokenizer.
"""

from pathlib import Path

import pytest

from lmsmith.errors import ConfigError
from lmsmith.tokens import choose
from lmsmith.tokens.choose import (
    MAX_CHARACTERS,
    choose_tokenizer,
    learn_tokenizer,
    named_tokenizer,
)
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer


def test_auto_learns_bpe_from_large_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one fish two fish " * 50, "red fish blue fish " * 50]
    n_characters = sum(map(len, texts))
    for large, kind in ((n_characters, "bpe"), (n_characters + 1, "char")):
        monkeypatch.setattr(choose, "LARGE", large)
        assert choose_tokenizer("auto", texts, several=True).kind == kind


def test_auto_uses_characters_if_few_are_distinct() -> None:
    few = "".join(chr(0x4E00 + i) for i in range(MAX_CHARACTERS))
    assert choose_tokenizer("auto", [few], several=False) == CharTokenizer(few, False)
    assert choose_tokenizer("auto", [few[:-1]], several=True).vocab_size == MAX_CHARACTERS
    assert choose_tokenizer("auto", [few + "a"], several=False) == ByteTokenizer(False)
    assert choose_tokenizer("auto", [few + "a"], several=True) == ByteTokenizer(True)


@pytest.mark.parametrize("several", [False, True])
def test_kinds_by_name(several: bool) -> None:
    texts = ["one two two", "three"]
    assert choose_tokenizer("byte", texts, several=several) == ByteTokenizer(several)
    assert choose_tokenizer("char", texts, several=several) == CharTokenizer.learn(texts, several)
    assert choose_tokenizer("word", texts, several=several) == WordTokenizer.learn(texts, several)


def test_existing_tokenizer(tmp_path: Path) -> None:
    learned = CharTokenizer.learn(["abc"], True)
    save_tokenizer(learned, tmp_path / "mine")
    assert choose_tokenizer(str(tmp_path / "mine"), ["cab"], several=False) == learned
    save_tokenizer(CharTokenizer.learn(["abc"], False), tmp_path / "other")
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        choose_tokenizer(str(tmp_path / "other"), ["a", "b"], several=True)
    with pytest.raises(
        ConfigError,
        match=r"tokenizer = 'bites': not a kind of tokenizer and not an existing folder",
    ):
        choose_tokenizer("bites", ["a"], several=False)


@pytest.mark.parametrize("wanted", ["char", "word", "bpe:300"])
def test_learning_from_a_stream_of_parts_equals_complete_texts(wanted: str) -> None:
    texts = ["the grey cat \u2013 the cat", "sat upon", "the mat \U0001f408"] * 5
    expected = choose_tokenizer(wanted, texts, several=True)
    stream = ((character.encode() for character in text) for text in texts)
    assert learn_tokenizer(wanted, stream) == expected
    assert learn_tokenizer(wanted, (text.encode() for text in texts)) == expected
    assert named_tokenizer(wanted) is None


@pytest.mark.parametrize("wanted", ["bpe", "bpe:many", "bpe:"])
def test_bpe_without_a_size_is_an_error(wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"'{wanted}': expected bpe:SIZE .* as in bpe:4096"):
        named_tokenizer(wanted)
    with pytest.raises(ConfigError, match=f"'{wanted}': expected bpe:SIZE .* as in bpe:4096"):
        choose_tokenizer(wanted, ["a"], several=False)


@pytest.mark.parametrize("wanted", ["auto", "bites"])
def test_unknown_name_lists_the_kinds(wanted: str) -> None:
    """`auto` needs the complete text in memory, so `named_tokenizer` does not offer it."""
    with pytest.raises(ConfigError, match=r"existing folder\. Kinds are byte, char, "):
        named_tokenizer(wanted)
    if wanted != "auto":
        with pytest.raises(ConfigError, match=r"existing folder\. Kinds are auto, byte, char, "):
            choose_tokenizer(wanted, ["a"], several=False)
