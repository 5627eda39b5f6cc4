"""Byte-pair encoding compared with tiktoken and Hugging Face tokenizers id by id, and special
tokens, streams, threads, memory and errors.
"""

import itertools
import json
import os
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_oracle import REPRESENTATIVES, encoding, gpt2_ranks

from lmsmith.errors import TokenizerError
from lmsmith.tokens import bpe, foreign
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.measure import longest_tokens
from lmsmith.tokens.merge import Merges
from lmsmith.tokens.split import PATTERNS
from lmsmith.tokens.stream_decoder import StreamDecoder
from lmsmith.tokens.tokenizer import Tokenizer

every_pattern = pytest.mark.parametrize("name", PATTERNS)
SPECIAL = "<|endoftext|>"
TEXT = "the cat's hat, that the cat sat at: 12345 times. Das Öl, 中文字 🙂\n\n  и так далее\t\n"


@pytest.fixture(scope="module")
def gpt2(test_data: Path) -> BpeTokenizer:
    tokenizer = load_tokenizer(test_data / "gpt2")
    assert isinstance(tokenizer, BpeTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def small() -> BpeTokenizer:
    """A small vocabulary, so that most pieces have several tokens."""
    return learn_bpe(
        [TEXT * 3], 310, pattern="gpt4", special_tokens=(SPECIAL, "<|end|>", "<|end|>!")
    )


@pytest.fixture(scope="module")
def tiktoken_gpt2(test_data: Path):  # type: ignore[no-untyped-def]
    return encoding(PATTERNS["gpt2"].regex, gpt2_ranks(test_data / "gpt2"), {SPECIAL: 50256})


def real_texts(test_data: Path) -> Iterator[str]:
    for file in [*test_data.glob("multilingual/*.txt"), test_data / "naughty_strings" / "blns.txt"]:
        yield file.read_text(encoding="utf-8")
    yield (test_data / "novels" / "Conrad_Almayer_1895.txt").read_text(encoding="utf-8-sig")
    yield "".join(
        file.read_text(encoding="utf-8")
        for file in sorted(Path(os.__file__).parent.glob("*.py"))[:40]
    )
    yield from (
        "",
        " ",
        "a",
        "\n",
        "a" * 1000,
        "é" * 1000,
        "文" * 1000,
        " " * 1000,
        "1" * 1000,
        "\x00" * 200,
    )


def test_gpt2_has_tiktokens_ids(gpt2: BpeTokenizer, tiktoken_gpt2, test_data: Path) -> None:  # type: ignore[no-untyped-def]
    for text in real_texts(test_data):
        expected = tiktoken_gpt2.encode_ordinary(text)
        ids = gpt2.encode(text)
        assert ids.dtype == np.uint16
        assert ids.tolist() == expected
        assert gpt2.encode(text.encode()).tolist() == expected
        assert gpt2.decode(ids) == text
        assert gpt2.decode_bytes(ids) == text.encode()


@pytest.mark.slow
def test_gpt2_has_tiktokens_ids_on_all_texts(
    gpt2: BpeTokenizer, tiktoken_gpt2, test_data: Path
) -> None:  # type: ignore[no-untyped-def]
    for file in [*test_data.rglob("*.txt"), *Path(os.__file__).parent.glob("**/*.py")]:
        text = file.read_bytes().decode("utf-8", "replace")
        assert gpt2.encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text), file


def test_known_ids(gpt2: BpeTokenizer) -> None:
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_text == 50256
    assert gpt2.decode([15496, 50256]) == "Hello<|endoftext|>"


@every_pattern
def test_learned_vocabularies_have_tiktokens_ids(name: str, test_data: Path) -> None:
    texts = [text[:40_000] for text in real_texts(test_data)]
    tokenizer = learn_bpe(texts[:3], 2000, pattern=name)
    ranks = {token: i for i, token in enumerate(tokenizer.tokens) if token is not None}
    engine = encoding(PATTERNS[name].regex, ranks, tokenizer.special_tokens)
    as_ranks = BpeTokenizer(tokenizer.tokens, None, name, tokenizer.special_tokens)
    draw = random.Random(name)
    mixed = ["".join(draw.choices(REPRESENTATIVES, k=draw.randint(0, 100))) for _ in range(500)]
    for text in texts + mixed:
        expected = engine.encode_ordinary(text)
        assert tokenizer.encode(text).tolist() == expected
        assert as_ranks.encode(text).tolist() == expected


def test_arbitrary_ranks_have_tiktokens_ids() -> None:
    """Tokens that no merge produces, tokens that several merges produce, long tokens."""
    draw = random.Random(1)
    for _ in range(30):
        ranks = {bytes([byte]): byte for byte in range(256)}
        for _ in range(draw.randint(0, 60)):
            token = "".join(draw.choices("ab é ", k=draw.choice([2, 2, 3, 4, 20, 120]))).encode()
            ranks.setdefault(token, len(ranks))
        engine = encoding(PATTERNS["gpt2"].regex, ranks)
        tokenizer = BpeTokenizer(list(ranks), None, "gpt2")
        for _ in range(30):
            text = "".join(draw.choices("ab é ", [5, 5, 0.5, 1, 0.5], k=draw.randint(0, 400)))
            text += " ".join(
                token.decode("utf-8", "ignore") for token in draw.choices(list(ranks), k=3)
            )
            assert tokenizer.encode(text).tolist() == engine.encode_ordinary(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=())))
def test_any_text(text: str, small: BpeTokenizer, gpt2: BpeTokenizer) -> None:
    repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken
    for tokenizer in (small, gpt2):
        assert tokenizer.decode(tokenizer.encode(text)) == repaired
        assert tokenizer.encode(text).tolist() == tokenizer.encode(repaired).tolist()
        assert tokenizer.count_unknown(text) == repaired.count("\ufffd") - text.count("\ufffd")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_round_trip(data: bytes, small: BpeTokenizer, gpt2: BpeTokenizer) -> None:
    for tokenizer in (small, gpt2):
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


def plain_merge(piece: bytes, tokenizer: BpeTokenizer) -> list[int]:
    """Byte-pair encoding by definition: merge the pair of lowest rank until no pair merges."""
    ranks = {(left, right): rank for rank, (left, right) in enumerate(tokenizer.merges or ())}
    ids = [tokenizer.id_of[bytes([byte])] for byte in piece]
    while len(ids) > 1:
        pairs = list(itertools.pairwise(ids))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        k = pairs.index(best)
        joined = (tokenizer.tokens[best[0]] or b"") + (tokenizer.tokens[best[1]] or b"")
        ids[k : k + 2] = [tokenizer.id_of[joined]]
    return ids


def test_pieces_of_all_lengths_equal_plain_merging(small: BpeTokenizer) -> None:
    """Includes the lengths where the algorithm changes: 15, 95, 96 bytes."""
    draw = random.Random(2)
    for length in [*range(1, 130), 300]:
        for letters in ("thecas", "ae", "a"):
            piece = "".join(draw.choices(letters, k=length)).encode()
            assert small.encode(piece).tolist() == plain_merge(piece, small)


def test_the_cache_is_bounded_and_emptied(
    gpt2: BpeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpe, "CACHED_PIECES", 300)
    fresh = BpeTokenizer(gpt2.tokens, gpt2.merges, gpt2.pattern, gpt2.special_tokens)
    weird = BpeTokenizer([*(bytes([b]) for b in range(256)), b" unreached"], None, "gpt2")
    text = " ".join(f"{number:x} unreached" for number in range(200_000, 260_000))
    size_before = None
    for _ in range(2):
        assert np.array_equal(fresh.encode(text), gpt2.encode(text))
        assert (weird.encode(text) == 256).sum() == 60_000
        (cache,) = fresh._caches
        assert cache.used[0] <= cache.table.limit
        assert size_before in (None, cache.table.slots.nbytes)
        size_before = cache.table.slots.nbytes


def test_ids_of_four_bytes(gpt2: BpeTokenizer, test_data: Path) -> None:
    """Vocabularies of more than 65,536 tokens have them; the cache then stores fewer ids in place."""
    more = [*gpt2.tokens[:-1], *(b"not in this text %d" % k for k in range(20_000))]
    wide = BpeTokenizer(more, gpt2.merges, gpt2.pattern)
    text = (test_data / "multilingual" / "xquad_zh.txt").read_text()[:20_000] + "\n" + " " * 77
    for string in (text, Path(__file__).read_text(), "ABCDEFGHIJKLMNO" * 40 + "zzz" * 9):
        assert wide.encode(string).dtype == np.uint32
        assert wide.encode(string).tolist() == gpt2.encode(string).tolist()
        assert wide.decode(wide.encode(string)) == string


def test_a_vocabulary_too_large_for_the_table_of_pairs_is_refused() -> None:
    numbers = np.array([256, 1 << 21])
    nothing = np.zeros(65536, np.uint8)
    with pytest.raises(TokenizerError, match=r"up to 2,097,151 tokens and merges"):
        Merges.of(np.arange(256, dtype=np.int32), *[numbers] * 4, nothing)


def test_a_token_too_long_for_the_cache_is_refused() -> None:
    single = [bytes([byte]) for byte in range(256)]
    long = BpeTokenizer([*single, b"x" * 70_000], None, "gpt2")
    with pytest.raises(TokenizerError, match=r"a token has 70,000 bytes"):
        long.encode("x")


def test_the_memory_of_encoding_can_be_freed(small: BpeTokenizer) -> None:
    ids = small.encode(TEXT)
    assert small._caches
    small.free_memory()
    assert not small._caches
    assert small.encode("").tolist() == []
    assert not small._caches, "an empty text needs no memory"
    assert small.encode(TEXT).tolist() == ids.tolist()


def test_a_run_of_one_character_takes_n_log_n(gpt2: BpeTokenizer, tiktoken_gpt2) -> None:  # type: ignore[no-untyped-def]
    for character in ("a", " ", "文", "=", "\n"):
        gpt2.encode(character * 1000)

        def seconds(n: int, character: str = character) -> float:
            start = time.thread_time()
            gpt2.encode(character * n)
            return time.thread_time() - start

        # Ten times the text: a quadratic algorithm would take a hundred times as long.
        assert (
            min(seconds(300_000) for _ in range(3))
            < 30 * min(seconds(30_000) for _ in range(3)) + 0.01
        )
        assert gpt2.encode(character * 3000).tolist() == tiktoken_gpt2.encode_ordinary(
            character * 3000
        )


# ---- special tokens ------------------------------------------------------------------------------


def test_special_tokens_are_text_unless_allowed(gpt2: BpeTokenizer, tiktoken_gpt2) -> None:  # type: ignore[no-untyped-def]
    text = f"one{SPECIAL}two {SPECIAL}{SPECIAL}"
    assert gpt2.encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text)
    for allowed in ({SPECIAL}, "all"):
        assert gpt2.encode(text, allowed_special=allowed).tolist() == tiktoken_gpt2.encode(
            text, allowed_special=allowed
        )
    assert gpt2.decode(gpt2.encode(text, allowed_special="all")) == text


def test_a_disallowed_special_token_raises_with_its_position(gpt2: BpeTokenizer) -> None:
    text = f"zwölf {SPECIAL}"
    for disallowed in ("all", {SPECIAL}):
        with pytest.raises(TokenizerError, match=r"'<\|endoftext\|>' at character 6"):
            gpt2.encode(text, disallowed_special=disallowed)
        with pytest.raises(TokenizerError, match="at character 6"):
            gpt2.encode_batch(["fine", text], disallowed_special=disallowed)
    gpt2.encode(text, allowed_special={SPECIAL}, disallowed_special="all")
    far = "中 " * 700_000
    with pytest.raises(TokenizerError, match="at character 1400006"):
        list(gpt2.encode_iter([far, text], disallowed_special="all"))


def test_the_longest_of_overlapping_special_tokens_matches(small: BpeTokenizer) -> None:
    end, end_bang = small.special_tokens["<|end|>"], small.special_tokens["<|end|>!"]
    ids = small.encode("<|end|>!<|end|>?<|end|>!", allowed_special="all").tolist()
    assert [i for i in ids if i in (end, end_bang)] == [end_bang, end, end_bang]
    only_short = small.encode("<|end|>!", allowed_special={"<|end|>"}).tolist()
    assert only_short == [end, *small.encode("!").tolist()]


# ---- many texts, long texts, streams -------------------------------------------------------------


@pytest.fixture(scope="module")
def long_text(test_data: Path) -> str:
    return SPECIAL.join(itertools.islice(real_texts(test_data), 9)) + "  \n" + SPECIAL


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_the_ids(
    threads: int, gpt2: BpeTokenizer, tiktoken_gpt2, long_text: str
) -> None:  # type: ignore[no-untyped-def]
    assert len(long_text) > 4 * bpe.UNIT
    expected = tiktoken_gpt2.encode_to_numpy(long_text, allowed_special="all")
    assert np.array_equal(gpt2.encode(long_text, allowed_special="all", threads=threads), expected)
    draw = random.Random(threads)
    cuts = [0, *sorted(draw.randint(0, len(long_text)) for _ in range(500)), len(long_text)]
    texts = [long_text[start:end] for start, end in itertools.pairwise(cuts)]
    texts[3:3] = ["", SPECIAL, ""]
    batch = gpt2.encode_batch(texts, allowed_special="all", threads=threads)
    assert len(batch) == len(texts)
    for ids, text in zip(batch, texts, strict=True):
        assert ids.tolist() == tiktoken_gpt2.encode(text, allowed_special="all")
    assert gpt2.encode_batch([]) == []


def test_a_stream_gives_the_ids_of_the_complete_text(
    gpt2: BpeTokenizer, long_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpe, "UNIT", 5000)
    expected = gpt2.encode(long_text, allowed_special="all")
    draw = random.Random(3)
    for text in (long_text, long_text.encode()):
        for most in (3000, 500_000):
            cuts = [0]
            while cuts[-1] < len(text):
                cuts.append(cuts[-1] + draw.randint(1, most))
            stream = (text[start:end] for start, end in itertools.pairwise(cuts))
            parts = list(gpt2.encode_iter(stream, allowed_special="all"))
            assert len(parts) > 20
            assert np.array_equal(np.concatenate(parts), expected)
    assert (
        np.concatenate(list(gpt2.encode_iter(iter("a\ud83d\ude42b\ud83d")))).tolist()
        == gpt2.encode("a🙂b\ufffd").tolist()
    )
    assert np.concatenate(list(gpt2.encode_iter([]))).tolist() == []


def test_a_stream_is_not_cut_inside_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is also not cut before a special token that is text (" <|" is one piece), and special
    tokens can overlap themselves and one another.
    """
    monkeypatch.setattr(bpe, "UNIT", 40)
    specials = (SPECIAL, "a!a", "b!c", "ab", "c.c.c")
    tokenizer = learn_bpe([f"x {SPECIAL} a!a!a b!c c.c. "], 290, special_tokens=specials)
    draw = random.Random(11)
    for _ in range(150):
        choices = ["a!" * draw.randint(1, 40), "c." * 30, "ab!c", f" {SPECIAL}", "word ", "b", "\n"]
        text = "".join(draw.choices(choices, k=60))
        for allowed in ((), "all", draw.sample(specials, 2)):
            expected = tokenizer.encode(text, allowed_special=allowed).tolist()
            cut = draw.randint(0, len(text))
            parts = tokenizer.encode_iter([text[:cut], text[cut:]], allowed_special=allowed)
            assert np.concatenate(list(parts)).tolist() == expected


def test_a_stream_of_numbers_gives_parts_before_its_end(
    gpt2: BpeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpe, "UNIT", 100)
    text = "12,3456.7;'89\n" * 500
    parts = list(gpt2.encode_iter([text]))
    assert len(parts) > 5
    assert np.concatenate(parts).tolist() == gpt2.encode(text).tolist()


def test_pickling_skips_the_caches(small: BpeTokenizer) -> None:
    ids = small.encode(TEXT)
    pickled = pickle.dumps(small)
    assert len(pickled) < 100_000
    assert pickle.loads(pickled) == small
    assert np.array_equal(pickle.loads(pickled).encode(TEXT), ids)


def test_a_stream_needs_constant_memory(
    gpt2: BpeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpe, "UNIT", 5000)
    sizes = [len(ids) for ids in gpt2.encode_iter(TEXT for _ in range(5000))]
    assert len(sizes) > 10
    assert max(sizes) < 60_000


# ---- decoding ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 309)))
def test_stream_decoder_returns_the_same_text(ids: list[int], small: BpeTokenizer) -> None:
    decoder = StreamDecoder(small)
    parts = [decoder.push(i) for i in ids]
    assert "".join(parts) + decoder.flush() == small.decode(ids)
    assert small.decode(ids) == small.decode_bytes(ids).decode("utf-8", "replace")


def test_ids_outside_the_vocabulary(gpt2: BpeTokenizer) -> None:
    for bad in (-1, 50257, 10**30):
        with pytest.raises(TokenizerError, match=rf"id {bad} at position 1.*50257"):
            gpt2.decode([0, bad])
    gap = BpeTokenizer([*(bytes([b]) for b in range(256)), None, None], (), "gpt2", {"<s>": 257})
    assert gap.decode([257, 97]) == "<s>a"


def test_ids_without_a_token_decode_to_nothing_as_in_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokens = [*(bytes([b]) for b in range(256)), None, b"th", None]
    gap = BpeTokenizer(tokens, [(116, 104)], "gpt2")
    assert gap.ids_without_token.tolist() == [256, 258]
    assert BpeTokenizer(tokens, [(116, 104)], "gpt2", {"<s>": 258}).ids_without_token.tolist() == [
        256
    ]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(foreign.to_huggingface(gap)))
    for ids in ([256], [258, 256], [116, 256, 104, 258, 257, 258], []):
        assert gap.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert gap.decode([256, 258]) == ""
    decoder = StreamDecoder(gap)
    assert [decoder.push(i) for i in (256, 97, 258)] == ["", "a", ""]
    assert [number for number, _ in longest_tokens(gap, 999)] == [257, *range(256)]


# ---- bad vocabularies ----------------------------------------------------------------------------


def test_invalid_vocabularies() -> None:
    every_byte = [bytes([byte]) for byte in range(256)]
    with pytest.raises(
        TokenizerError, match="lacks tokens for 1 of the 256 bytes, the first of them 0x61"
    ):
        BpeTokenizer([b for b in every_byte if b != b"a"], (), "gpt2")
    with pytest.raises(TokenizerError, match="b'ab' twice"):
        BpeTokenizer([*every_byte, b"ab", b"ab"], (), "gpt2")
    with pytest.raises(TokenizerError, match="does not fit its merges: merge 1, b'a' with b'b'"):
        BpeTokenizer(every_byte, [(97, 98)], "gpt2")
    with pytest.raises(TokenizerError, match="special token is empty"):
        BpeTokenizer([*every_byte, None], (), "gpt2", {"": 256})
    with pytest.raises(TokenizerError, match="'<s>' has the id 97, which belongs to another"):
        BpeTokenizer(every_byte, (), "gpt2", {"<s>": 97})
    with pytest.raises(TokenizerError, match="same id"):
        BpeTokenizer([*every_byte, None], (), "gpt2", {"<s>": 256, "</s>": 256})


def test_equality_and_dict_round_trip(small: BpeTokenizer) -> None:
    assert isinstance(small, Tokenizer)
    loaded = BpeTokenizer.from_dict(small.to_dict())
    assert loaded == small
    assert loaded.fingerprint == small.fingerprint
    assert BpeTokenizer(small.tokens, small.merges, "gpt2", small.special_tokens) != small
    assert small.end_of_text == small.special_tokens[SPECIAL] == 307
    assert small.unknown_bytes("\ud800") == 0
