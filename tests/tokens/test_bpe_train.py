"""Learned merges compared with a plain reference, rustbpe and Hugging Face tokenizers, merge by
merge.
"""

import itertools
import json
import logging
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lmsmith.errors import TokenizerError
from lmsmith.tokens import bpe_train, pair_counts, piece_counts
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import Ties, learn_bpe, learn_merges
from lmsmith.tokens.piece_counts import MIN_MEMORY, PieceCounter
from lmsmith.tokens.printable import from_printable, gpt2_byte_order
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.split import PATTERNS, Pattern, split


def reference(
    texts: list[bytes], n_merges: int, pattern: Pattern, ties: Ties
) -> list[tuple[int, int]]:
    """Byte-pair encoding by definition: count all pairs, merge the best one, and repeat."""
    pieces = Counter(itertools.chain.from_iterable(split(text, pattern) for text in texts))
    words = [(list(piece), count) for piece, count in pieces.items()]
    tokens = [bytes([byte]) for byte in range(256)]
    merges: list[tuple[int, int]] = []
    order = {byte: k for k, byte in enumerate(gpt2_byte_order())}

    def preference(pair: tuple[int, int]) -> tuple[bytes, bytes] | tuple[int, int]:
        if ties == "bytes":
            return tokens[pair[0]], tokens[pair[1]]
        left, right = (order.get(i, i) for i in pair) if ties == "huggingface" else pair
        return -left, -right

    while len(merges) < n_merges:
        counts: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in itertools.pairwise(ids):
                counts[pair] += count
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], preference(pair)))
        merges.append(best)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for ids, _ in words:
            k = 0
            while k < len(ids) - 1:
                if (ids[k], ids[k + 1]) == best:
                    ids[k : k + 2] = [len(tokens) - 1]
                k += 1
    return merges


def learned(
    texts: list[bytes], n_merges: int, pattern: Pattern, ties: Ties, threads: int = 1
) -> list[tuple[int, int]]:
    counter = PieceCounter(pattern, threads=threads)
    counter.add(texts)
    return learn_merges(counter.counts(), n_merges, ties)


@pytest.mark.parametrize("ties", ["bytes", "ids", "huggingface"])
def test_small_random_texts_merge_by_merge(ties: Ties) -> None:
    """Texts of few letters, so that pairs overlap ("aaaa") and nearly all merges are ties."""
    draw = random.Random(ties)
    for _ in range(80):
        letters = draw.choice(["ab", "abc", "aab ", "abcdefgh '1\n", "aé中🙂 "])
        texts = [
            "".join(draw.choices(letters, k=draw.randint(0, 200))).encode()
            for _ in range(draw.randint(1, 4))
        ]
        pattern = PATTERNS[draw.choice(sorted(PATTERNS))]
        assert learned(texts, 60, pattern, ties) == reference(texts, 60, pattern, ties)


def test_tables_that_grow_give_the_same_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tables that are full after the pairs of bytes, which are at most 15 * 15 here."""
    grown: list[int] = []
    with_room = pair_counts.Pairs.with_room

    def counted(pairs: pair_counts.Pairs, n_pairs: int, n_positions: int) -> pair_counts.Pairs:
        larger = with_room(pairs, n_pairs, n_positions)
        grown.append(len(larger.lefts))
        return larger

    monkeypatch.setattr(pair_counts, "CAPACITY", 256)
    monkeypatch.setattr(pair_counts.Pairs, "with_room", counted)
    draw = random.Random(0)
    words = ("".join(draw.choices("abcdefghijklmno", k=12)) for _ in range(400))
    text = " ".join(words).encode()
    pattern = PATTERNS["gpt4"]
    assert learned([text], 120, pattern, "ids") == reference([text], 120, pattern, "ids")
    assert grown[0] == 256
    assert grown[-1] >= 1024


def test_real_text_merge_by_merge(test_data: Path) -> None:
    texts = [(test_data / "tinystories" / "tinystories_197k.txt").read_bytes()[:60_000]]
    texts.append((test_data / "multilingual" / "xquad_hi.txt").read_bytes()[:20_000])
    assert learned(texts, 250, PATTERNS["gpt4"], "bytes") == reference(
        texts, 250, PATTERNS["gpt4"], "bytes"
    )


def test_rustbpe_learns_the_same(test_data: Path) -> None:
    rustbpe = pytest.importorskip("rustbpe")
    text = (test_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter([text]), 2000, pattern=PATTERNS["llama3"].regex)
    ours = learn_bpe([text], 2000, pattern="llama3", special_tokens=(), ties="ids")
    assert [bytes(token) for token, _ in theirs.get_mergeable_ranks()] == list(ours.tokens)


def test_hugging_face_learns_the_same(test_data: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text = (test_data / "multilingual" / "xquad_de.txt").read_text(encoding="utf-8")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    every_byte = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000, show_progress=False, initial_alphabet=every_byte
    )
    theirs.train_from_iterator([text], trainer)
    ours = learn_bpe([text], 3000, pattern="gpt2", special_tokens=(), ties="huggingface")
    merges = json.loads(theirs.to_str())["model"]["merges"]
    assert [
        (from_printable(left), from_printable(right)) for left, right in merges
    ] == ours.merged_bytes()


def test_ids_are_bytes_then_merges_then_special_tokens() -> None:
    tokenizer = learn_bpe(["ab ab ab abab"], 260, special_tokens=("<|endoftext|>", "<|pad|>"))
    assert list(tokenizer.tokens[:256]) == [bytes([byte]) for byte in range(256)]
    assert tokenizer.tokens[256:258] == (b"ab", b" ab")
    assert tokenizer.special_tokens == {"<|endoftext|>": 258, "<|pad|>": 259}
    assert tokenizer.vocab_size == 260


def test_ties() -> None:
    text = "aa bb"  # the pairs " b", "bb" and "aa", once each
    assert learn_bpe([text], 257, special_tokens=()).tokens[256] == b"bb"
    assert learn_bpe([text], 257, special_tokens=(), ties="ids").tokens[256] == b" b"


def test_special_tokens_split_the_text_and_are_not_merged() -> None:
    text = "ab<|endoftext|>ab<|endoftext|>" * 50
    tokenizer = learn_bpe([text], 400)
    assert tokenizer.merged_bytes() == [(b"a", b"b")]
    joined = learn_bpe(["abab" * 50], 400, pattern="gpt2")
    assert (b"ab", b"ab") in joined.merged_bytes()


def test_nothing_left_to_merge_ends_early_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = learn_bpe(["abc", "x"], 1000)
    assert tokenizer.merged_bytes() == [(b"b", b"c"), (b"a", b"bc")]
    assert tokenizer.vocab_size == 259
    assert "nothing is left to merge after 2 merges" in caplog.text
    assert learn_bpe([""], 1000).vocab_size == 257


def test_a_huge_vocab_size_allocates_no_memory() -> None:
    assert learn_bpe(["abc", "x"], 10**12).vocab_size == 259


def test_threads_and_parts_do_not_change_the_result(
    test_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (test_data / "tinyshakespeare" / "input.txt").read_bytes() + b"<|endoftext|>"
    data += (test_data / "multilingual" / "xquad_zh.txt").read_bytes() + b"1" * 3000 + b"a" * 3000
    expected = learn_bpe([data], 1500)
    monkeypatch.setattr(piece_counts, "PART", 20_000)
    draw = random.Random(0)
    cuts = [0, *sorted(draw.randint(0, len(data)) for _ in range(300)), len(data)]
    for threads in (1, 2, 7):
        stream = (data[start:end] for start, end in itertools.pairwise(cuts))
        for text in (data, data.decode(), stream):
            assert learn_bpe([text], 1500, threads=threads) == expected


def counts_of(counter: PieceCounter) -> Counter[bytes]:
    counts = counter.counts()
    total: Counter[bytes] = Counter()
    edges = np.flatnonzero(counts.symbols < 0)
    for start, end in itertools.pairwise(edges.tolist()):
        total[bytes(counts.symbols[start + 1 : end].tolist())] += int(
            counts.counts[counts.piece_of[start + 1]]
        )
        assert len(set(counts.piece_of[start + 1 : end].tolist())) == 1
    return total


def test_counts_equal_plain_python(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (test_data / "multilingual" / "xquad_ru.txt").read_bytes() + b" " * 300 + b"x" * 300
    expected = Counter(piece for piece in split(data, PATTERNS["gpt4"]) if len(piece) > 1)
    for part in (piece_counts.PART, 10_000):
        monkeypatch.setattr(piece_counts, "PART", part)
        counter = PieceCounter(PATTERNS["gpt4"], Specials(["<|x|>"]), threads=3)
        counter.add([data, data])
        doubled = Counter({piece: 2 * count for piece, count in expected.items()})
        assert counts_of(counter) == doubled
        assert counter.n_bytes == 2 * len(data)


def test_memory_limit_drops_rare_pieces_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(piece_counts, "PART", 200_000)
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefghij", k=9)) for _ in range(400_000)]
    text = " ".join(itertools.chain.from_iterable((word, "frequent", "word") for word in words))
    tables = []
    for threads in (1, 3):
        counter = PieceCounter(PATTERNS["gpt4"], threads=threads, max_memory=MIN_MEMORY)
        counter.add([text])
        assert counter.n_dropped > 200_000
        assert counter.n_dropped_occurrences >= counter.n_dropped
        assert counter._total.slots.nbytes <= MIN_MEMORY
        tables.append(counts_of(counter))
    assert tables[0] == tables[1]
    assert tables[0][b" frequent"] == 400_000
    with caplog.at_level(logging.WARNING):
        tokenizer = learn_bpe([text], 300, max_memory=MIN_MEMORY)
    assert b" frequent" in tokenizer.tokens
    assert "rare pieces" in caplog.text
    assert "8 MB" in caplog.text
    with pytest.raises(TokenizerError, match="too small"):
        learn_bpe([text], 300, max_memory=1000)


def test_counts_are_64_bit() -> None:
    symbols = np.array([-1, 97, 98, -1, 98, 99, -1], dtype=np.int32)
    piece_of = np.array([0, 0, 0, 0, 1, 1, 1], dtype=np.int32)
    counts = piece_counts.PieceCounts(symbols, piece_of, np.array([1 << 40, (1 << 40) + 1]))
    assert learn_merges(counts, 2) == [(98, 99), (97, 98)]


def test_progress_is_reported() -> None:
    seen: list[tuple[str, int, int]] = []
    learn_bpe(["some text " * 100], 265, progress=lambda *what: seen.append(what))
    assert ("count", 1000, 0) in seen
    assert seen[-1] == ("merge", 8, 8)


@pytest.mark.parametrize(
    ("size", "specials", "message"),
    [
        (256, ("<|endoftext|>",), "256 is too small: the 256 bytes and 1 special tokens need 257"),
        (100, (), "100 is too small"),
        (500, ("",), "special token is empty"),
        (500, ("<s>", "</s>", "<s>"), "'<s>' is given twice"),
    ],
)
def test_invalid_vocabularies(size: int, specials: tuple[str, ...], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        learn_bpe(["text"], size, special_tokens=specials)


def test_the_smallest_vocabulary_has_no_merges() -> None:
    tokenizer = learn_bpe(["text"], 257)
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer.merges == ()
    assert tokenizer.decode(tokenizer.encode("text ñ")) == "text ñ"


def test_an_interrupt_stops_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*what: object) -> None:
        raise KeyboardInterrupt

    draw = random.Random(0)
    text = " ".join("".join(draw.choices("abcdefghij", k=12)) for _ in range(100_000))
    with pytest.raises(KeyboardInterrupt):
        learn_bpe(
            [text], 200_000, progress=lambda what, *_: interrupt() if what == "merge" else None
        )
    assert bpe_train.learn_bpe(["ab"], 258).vocab_size == 258


def test_counts_that_were_used_are_refused() -> None:
    counter = PieceCounter(PATTERNS["gpt2"])
    counter.add(["the theme of the thesis " * 3])
    counts = counter.counts()
    assert len(learn_merges(counts, 3)) == 3
    with pytest.raises(TokenizerError, match=r"before.*count the texts again"):
        learn_merges(counts, 3)
