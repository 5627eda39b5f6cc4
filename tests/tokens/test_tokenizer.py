"""Byte, character and word tokenizers, compared with plain Python on all of Unicode and on real
text.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.errors import TokenizerError
from lmsmith.tokens.stream_decoder import StreamDecoder
from lmsmith.tokens.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    unused_ids,
)

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
EVERY_CHARACTER = "".join(map(chr, range(sys.maxunicode + 1)))


def tokenizers_of(text: str, end_of_text: bool = True) -> list[Tokenizer]:
    return [
        ByteTokenizer(end_of_text),
        CharTokenizer.learn([text], end_of_text),
        WordTokenizer.learn([text], end_of_text, vocab_size=500),
    ]


@pytest.fixture(scope="module")
def shakespeare(test_data: Path) -> str:
    return (test_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")


def test_characters_have_nanogpts_ids(shakespeare: str) -> None:
    tokenizer = CharTokenizer.learn(
        [shakespeare[:500_000], shakespeare[500_000:]], end_of_text=False
    )
    table = {character: i for i, character in enumerate(sorted(set(shakespeare)))}
    assert tokenizer.vocab_size == len(table) == 65
    assert tokenizer.encode(shakespeare).tolist() == [table[character] for character in shakespeare]
    assert tokenizer.decode(tokenizer.encode(shakespeare)) == shakespeare
    assert tokenizer.count_unknown(shakespeare) == tokenizer.unknown_bytes(shakespeare) == 0


def test_unused_ids_include_rows_beyond_the_tokenizer() -> None:
    for tokenizer in tokenizers_of("some text"):
        assert (
            tokenizer.ids_without_token.dtype
            == unused_ids(tokenizer, tokenizer.vocab_size).dtype
            == np.int64
        )
        assert not len(unused_ids(tokenizer, tokenizer.vocab_size))
        beyond = [tokenizer.vocab_size, tokenizer.vocab_size + 1]
        assert unused_ids(tokenizer, tokenizer.vocab_size + 2).tolist() == beyond


def test_bytes_are_utf8(shakespeare: str) -> None:
    for text in (shakespeare[:10_000], "naïve 🙂 文", ""):
        ids = ByteTokenizer(end_of_text=False).encode(text)
        assert ids.dtype == np.uint16
        assert ids.tolist() == list(text.encode())


def test_words_are_the_most_frequent_ones_and_decode_to_the_text(shakespeare: str) -> None:
    everything = WordTokenizer.learn([shakespeare], end_of_text=False, vocab_size=10**6)
    assert everything.decode(everything.encode(shakespeare)) == shakespeare
    assert everything.count_unknown(shakespeare) == 0
    few = WordTokenizer.learn([shakespeare], end_of_text=True, vocab_size=1000)
    assert few.vocab_size == 1000
    assert few.words == everything.words[:998]
    ids = few.encode(shakespeare)
    assert few.count_unknown(shakespeare) == (ids == 0).sum() > 0
    known = [word for word in few.words if word.strip().isalpha()]
    counts = [shakespeare.count(word) for word in (known[0], known[-1])]
    assert counts[0] > counts[1]


def test_ties_are_in_code_point_order() -> None:
    tokenizer = WordTokenizer.learn(["b a c b a", "\n\n"], end_of_text=False, vocab_size=5)
    assert tokenizer.words == ("\n", " a", " b", " c")


def test_word_boundaries() -> None:
    tokenizer = WordTokenizer.learn(["Don't stop, 42_x!\n\n  End"], end_of_text=False)
    pieces = [tokenizer.words[i - 1] for i in tokenizer.encode("Don't stop, 42_x!\n\n  End")]
    assert pieces == ["Don't", " stop", ",", " 4", "2", "_", "x", "!", "\n", "\n", " ", " End"]


def test_unknown_characters_are_skipped_and_counted() -> None:
    tokenizer = CharTokenizer.learn(["abc"], end_of_text=False)
    text = "aé文🙂b\ud800"
    assert tokenizer.decode(tokenizer.encode(text)) == "ab"
    assert tokenizer.count_unknown(text) == 4
    assert tokenizer.unknown_bytes(text) == 2 + 3 + 4 + 3


def test_unknown_words_become_unk_and_are_counted() -> None:
    tokenizer = WordTokenizer.learn(["the cat"], end_of_text=False)
    assert tokenizer.encode("the dog cat").tolist()[1] == 0
    assert tokenizer.decode(tokenizer.encode("the dög cat")) == "the <unk> cat"
    assert tokenizer.count_unknown("the dög cat") == 1
    assert tokenizer.unknown_bytes("the dög cat") == len(" dög".encode())


def test_lone_surrogates_become_replacement_characters_and_are_counted() -> None:
    tokenizer = ByteTokenizer(end_of_text=False)
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert tokenizer.count_unknown("a\ud800b\udfff") == 2
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude42")) == "🙂"  # a pair is a character
    assert tokenizer.count_unknown("\ud83d\ude42") == 0
    assert CharTokenizer.learn(["a\ud800"], end_of_text=False).characters == "a"
    assert WordTokenizer.learn(["a \ud800"], end_of_text=False).count_unknown("\ud800") == 1


@pytest.mark.parametrize("kind", [ByteTokenizer, CharTokenizer, WordTokenizer])
def test_every_character(kind: type[Tokenizer]) -> None:
    tokenizer = kind(True) if kind is ByteTokenizer else kind.learn([EVERY_CHARACTER], True)
    ids = tokenizer.encode(EVERY_CHARACTER)
    assert ids.max() < tokenizer.vocab_size
    assert ids.dtype == (np.uint32 if tokenizer.kind == "char" else np.uint16)
    if tokenizer.kind != "word":
        surrogates = range(0xD800, 0xE000)
        assert tokenizer.count_unknown(EVERY_CHARACTER) == len(surrogates) - (
            2 if tokenizer.kind == "byte" else 0
        )
        expected = EVERY_CHARACTER.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        )  # the text contains one surrogate pair
        if tokenizer.kind == "char":
            expected = EVERY_CHARACTER.translate(dict.fromkeys(surrogates))
        assert tokenizer.decode(ids) == expected


def test_naughty_strings(test_data: Path) -> None:
    text = (test_data / "naughty_strings" / "blns.txt").read_text(encoding="utf-8")
    for tokenizer in tokenizers_of("plain"):
        for line in [*text.splitlines(), "", text]:
            assert tokenizer.encode(line).size <= len(line.encode())
    for tokenizer in (
        ByteTokenizer(True),
        CharTokenizer.learn([text], True),
        WordTokenizer.learn([text], True),
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(any_text, any_text)
def test_any_text(training_text: str, text: str) -> None:
    for tokenizer in tokenizers_of("x" + training_text):
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_text not in ids.tolist()
        if tokenizer.count_unknown(text) == 0:
            assert tokenizer.decode(ids) == text.encode("utf-16", "surrogatepass").decode(
                "utf-16", "replace"
            )
            assert tokenizer.unknown_bytes(text) == 0


@given(st.lists(st.integers(0, 256)))
def test_stream_decoder_returns_the_same_text(ids: list[int]) -> None:
    tokenizer = ByteTokenizer(end_of_text=True)
    decoder = StreamDecoder(tokenizer)
    pushed = "".join(decoder.push(i) for i in ids)
    assert pushed + decoder.flush() == tokenizer.decode(ids)


def test_stream_decoder_waits_for_complete_characters() -> None:
    decoder = StreamDecoder(ByteTokenizer(end_of_text=False))
    assert [decoder.push(byte) for byte in "a🙂文".encode()] == [
        "a",
        "",
        "",
        "",
        "🙂",
        "",
        "",
        "文",
    ]
    assert decoder.flush() == ""
    decoder.push(list("🙂".encode()[:2]))
    assert decoder.flush() == "\ufffd"


def test_end_of_text_is_the_last_id_and_never_read_from_text() -> None:
    for tokenizer in tokenizers_of("<|endoftext|>"):
        assert tokenizer.end_of_text == tokenizer.vocab_size - 1
        ids = tokenizer.encode("<|endoftext|>")
        assert tokenizer.end_of_text not in ids.tolist()
        assert tokenizer.decode([tokenizer.end_of_text, *ids]) == "<|endoftext|><|endoftext|>"
    for tokenizer in tokenizers_of("some text", end_of_text=False):
        assert tokenizer.end_of_text is None


def test_fingerprints_differ_and_survive_json() -> None:
    known = [
        *tokenizers_of("one text"),
        *tokenizers_of("other text"),
        *tokenizers_of("one text", end_of_text=False),
    ]
    assert (
        len({tokenizer.fingerprint for tokenizer in known}) == 8
    )  # the byte tokenizer learns nothing
    for tokenizer in known:
        loaded = type(tokenizer).from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        assert loaded == tokenizer
        assert loaded.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_outside_the_vocabulary(bad: int) -> None:
    for tokenizer in tokenizers_of("text"):
        with pytest.raises(
            TokenizerError, match=rf"id {bad} at position 1.*vocabulary of {tokenizer.vocab_size}"
        ):
            tokenizer.decode([0, bad])
        with pytest.raises(TokenizerError):
            tokenizer.decode_bytes(np.array([bad]))


def test_learning_from_empty_text_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="empty"):
        CharTokenizer.learn([""], end_of_text=False)
    with pytest.raises(TokenizerError, match="no words"):
        WordTokenizer.learn([], end_of_text=True)
    with pytest.raises(TokenizerError, match="no room"):
        WordTokenizer.learn(["a"], end_of_text=True, vocab_size=2)
