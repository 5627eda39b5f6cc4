"""Which tokenizer a name stands for; learning from texts in memory and from a stream gives the
same one.
"""

from pathlib import Path

import pytest

from lmsmith.errors import ConfigError
from lmsmith.tokens import choose
from lmsmith.tokens.choose import (
    MOST_CHARACTERS,
    choose_tokenizer,
    learn_tokenizer,
    named_tokenizer,
)
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer


def test_auto_merges_bytes_of_large_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one fish two fish " * 50, "red fish blue fish " * 50]
    n_characters = sum(map(len, texts))
    for large, kind in ((n_characters, "bpe"), (n_characters + 1, "char")):
        monkeypatch.setattr(choose, "LARGE", large)
        assert choose_tokenizer("auto", texts, several=True).kind == kind


def test_auto_takes_characters_while_they_are_few() -> None:
    few = "".join(chr(0x4E00 + i) for i in range(MOST_CHARACTERS))
    assert choose_tokenizer("auto", [few], several=False) == CharTokenizer(few, False)
    assert choose_tokenizer("auto", [few[:-1]], several=True).vocab_size == MOST_CHARACTERS
    assert choose_tokenizer("auto", [few + "a"], several=False) == ByteTokenizer(False)
    assert choose_tokenizer("auto", [few + "a"], several=True) == ByteTokenizer(True)


@pytest.mark.parametrize("several", [False, True])
def test_kinds_by_name(several: bool) -> None:
    texts = ["one two two", "three"]
    assert choose_tokenizer("byte", texts, several=several) == ByteTokenizer(several)
    assert choose_tokenizer("char", texts, several=several) == CharTokenizer.learn(texts, several)
    assert choose_tokenizer("word", texts, several=several) == WordTokenizer.learn(texts, several)


def test_a_tokenizer_that_is_there(tmp_path: Path) -> None:
    learnt = CharTokenizer.learn(["abc"], True)
    save_tokenizer(learnt, tmp_path / "mine")
    assert choose_tokenizer(str(tmp_path / "mine"), ["cab"], several=False) == learnt
    save_tokenizer(CharTokenizer.learn(["abc"], False), tmp_path / "other")
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        choose_tokenizer(str(tmp_path / "other"), ["a", "b"], several=True)
    with pytest.raises(
        ConfigError,
        match=r"tokenizer = 'bites': not a kind of tokenizer and not an existing folder",
    ):
        choose_tokenizer("bites", ["a"], several=False)


@pytest.mark.parametrize("wanted", ["char", "word", "bpe:300"])
def test_a_stream_of_parts_is_learned_as_the_whole_texts_are(wanted: str) -> None:
    texts = ["the grey cat \u2013 the cat", "sat upon", "the mat \U0001f408"] * 5
    whole = choose_tokenizer(wanted, texts, several=True)
    stream = ((character.encode() for character in text) for text in texts)
    assert learn_tokenizer(wanted, stream) == whole
    assert learn_tokenizer(wanted, (text.encode() for text in texts)) == whole
    assert named_tokenizer(wanted) is None


@pytest.mark.parametrize("wanted", ["bpe", "bpe:many", "bpe:"])
def test_a_size_is_asked_for(wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"'{wanted}': expected bpe:SIZE .* as in bpe:4096"):
        named_tokenizer(wanted)
    with pytest.raises(ConfigError, match=f"'{wanted}': expected bpe:SIZE .* as in bpe:4096"):
        choose_tokenizer(wanted, ["a"], several=False)


@pytest.mark.parametrize("wanted", ["auto", "bites"])
def test_a_name_that_is_none_says_what_there_is(wanted: str) -> None:
    """`auto` needs the whole text, so a prepared folder does not offer it."""
    with pytest.raises(ConfigError, match=r"existing folder\. Kinds are byte, char, "):
        named_tokenizer(wanted)
    if wanted != "auto":
        with pytest.raises(ConfigError, match=r"existing folder\. Kinds are auto, byte, char, "):
            choose_tokenizer(wanted, ["a"], several=False)
