"""Comparison: exact byte counts, the same for all; results checked against the files themselves."""

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.errors import DataError
from lmsmith.evaluate.comparison import Entry, Text, baselines, read_text, score_entry
from lmsmith.evaluate.texts import encode_documents, read_documents, score_texts, to_bytes
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

TEXT = "The cat saw a naïve bird.\nNobody lost the egg: 猫 hid it.\n" * 20
# six of its bytes are no UTF-8: ff fe, ed a0 80, 80
INVALID = b"a\xff\xfe caf\xc3\xa9 \xed\xa0\x80 \x80\x00\n"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def uniform(tokenizer: Tokenizer) -> RNN:
    """A uniform distribution, like a recurrent network before training."""
    model = RNN(RNNConfig(n_layer=1, d_model=4, vocab_size=tokenizer.vocab_size, logit_softcap=0.0))
    model.initialise(torch.Generator())
    return model


def entry_of(text: Text, tokenizer: Tokenizer, model: RNN | Ngram | None = None) -> Entry:
    model = model or uniform(tokenizer)
    return score_entry("it", model, tokenizer, model.config, text, summary={"train_seconds": 7.5})


NOISE = np.random.default_rng(0).integers(0, 256, 5_000).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("data", "n_bytes", "n_invalid"),
    [
        (b"plain\ntext\n", 11, 0),
        (TEXT.encode(), len(TEXT.encode()), 0),
        (INVALID, len(INVALID), 6),
        (b"\x80\xbf\xff", 3, 3),
        (b"\xef\xbb\xbfa\r\nb\rc", 5, 0),  # neither the mark nor the kind of line end is text
        (b"\xef\xbb\xbf\xffa\r\nb\rc", 6, 1),  # whatever else there is
        (NOISE + b"\r\n", len(NOISE.replace(b"\r\n", b"\n")) + 1, None),
        ("naïve 猫".encode("utf-16"), len("naïve 猫".encode()), 0),
    ],
)
@pytest.mark.parametrize("end_of_text", [False, True])
def test_a_uniform_guess_over_bytes_is_exactly_eight_bits(
    tmp_path: Path, data: bytes, n_bytes: int, n_invalid: int | None, end_of_text: bool
) -> None:
    text = read_text(write(tmp_path / "text.txt", data))
    assert len(text.data) == n_bytes
    assert text.n_invalid == (
        n_invalid if n_invalid is not None else pytest.approx(n_bytes / 2, rel=0.2)
    )
    assert baselines(text)[0] == Entry("uniform", "every byte equally likely", 8.0)
    entry = entry_of(text, ByteTokenizer(end_of_text))
    assert entry.bits_per_byte == pytest.approx(math.log2(256 + end_of_text), abs=1e-6)
    assert (entry.n_unknown, entry.n_tokens) == (0, n_bytes)
    assert f"{entry_of(text, ByteTokenizer(False)).bits_per_byte:.3f}" == "8.000"


def test_unknown_characters_cost_their_bytes_and_their_positions(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.learn(["abcd"], False)
    text = read_text(
        write(tmp_path / "t", b"a\xffb\xe7\x8c\xabc\n")
    )  # one byte that is none, a cat, a line end
    entry = entry_of(text, tokenizer)
    n_places = len(list(itertools.combinations(range(6), 3)))  # which three of six are not known
    assert entry.bits_per_byte == pytest.approx((3 * 2 + 5 * 8 + math.log2(n_places)) / 8, abs=1e-6)
    assert entry.unknown_bits == pytest.approx(5 * 8 + math.log2(n_places), abs=1e-9)
    assert (entry.n_tokens, entry.n_unknown) == (3, 1 + 1 + 1)
    with pytest.raises(
        DataError, match="the model's char tokenizer knows none of the text's 4 bytes"
    ):
        score_texts(uniform(tokenizer), tokenizer, [str(write(tmp_path / "u", b"xyz\n"))])
    nothing_known = entry_of(read_text(write(tmp_path / "u", b"xyz\n")), tokenizer)
    assert (nothing_known.bits_per_byte, nothing_known.n_tokens) == (8.0, 0)


def test_unknown_words_cost_their_bytes_and_their_lengths(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(["The", " cat", "."], False)  # and <unk>
    entry = entry_of(read_text(write(tmp_path / "t", b"The red\xff cat sat\n.")), tokenizer)
    lengths = [" red", b"\xff", " sat", "\n"]
    n_bytes = sum(map(len, lengths))
    n_ways = sum(
        sum(ways) == n_bytes for ways in itertools.product(range(1, n_bytes), repeat=len(lengths))
    )
    assert (entry.n_tokens, entry.n_unknown) == (7, len(lengths))
    assert entry.unknown_bits == pytest.approx(8 * n_bytes + math.log2(n_ways), abs=1e-9)
    assert entry.bits_per_byte == pytest.approx(
        (7 * 2 + entry.unknown_bits) / len("The red? cat sat\n."), abs=1e-6
    )


@pytest.mark.parametrize("end_of_text", [False, True])
def test_a_smaller_vocabulary_gains_nothing(end_of_text: bool) -> None:
    """Knowing one character less never saves bits, under the best guess for either vocabulary."""
    rng = np.random.default_rng(0)
    for share in (0.5, 0.1, 0.01):
        text = "".join(
            rng.choice(list("ab\x01"), 2000, p=[(1 - share) / 2, (1 - share) / 2, share])
        )
        known = sum(
            math.log2(1 / p) * text.count(c)
            for c, p in (("a", (1 - share) / 2), ("b", (1 - share) / 2))
        )
        knowing = known + text.count("\x01") * math.log2(1 / share)
        found = entry_of(Text("", text.encode(), (text,)), CharTokenizer.learn(["ab"], end_of_text))
        assert found.bits_per_byte * 2000 > knowing


BPE = BpeTokenizer([*(bytes([b]) for b in range(256)), b"Th", b"\xff\xfe", None], [(84, 104), (255, 254)], "gpt2",
                   {"<|endoftext|>": 258})  # fmt: skip


@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer(False),
        ByteTokenizer(True),
        BPE,
        CharTokenizer.learn(["abc "], True),
        WordTokenizer(["a"], True),
    ],
    ids=lambda tokenizer: f"{tokenizer.kind} {tokenizer.vocab_size}",
)
@pytest.mark.parametrize("data", [INVALID, NOISE, TEXT.encode(), b"\xef\xbb\xbfa\xff\r\n"])
def test_eval_counts_invalid_bytes_as_compare_does(
    tmp_path: Path, tokenizer: Tokenizer, data: bytes
) -> None:
    path = write(tmp_path / "t.txt", data)
    text, model = read_text(path), uniform(tokenizer)
    wanted = score_texts(model, tokenizer, [str(path)], errors="replace")
    entry = entry_of(text, tokenizer, model)
    assert entry.bits_per_byte == wanted.bits_per_byte
    assert (wanted.n_bytes, wanted.n_invalid) == (len(text.data), text.n_invalid)
    assert (wanted.n_unknown == 0) == (tokenizer.kind in ("byte", "bpe"))
    if tokenizer.kind in ("byte", "bpe"):
        encoded = encode_documents(tokenizer, text.documents)
        assert (
            tokenizer.decode_bytes(encoded.ids[int(tokenizer.end_of_text is not None) :])
            == text.data
        )


def test_in_other_files_undecodable_bytes_are_replaced_and_reported(
    tmp_path: Path, caplog: Any
) -> None:
    path = write(tmp_path / "t.jsonl", b'{"text": "a\xffb"}\n')
    text = read_text(path)
    assert (text.data, text.n_invalid) == ("a\ufffdb".encode(), 0)
    assert "1 undecodable sequences were read as U+FFFD" in caplog.text
    wanted = score_texts(uniform(BPE), BPE, [str(path)], errors="replace")
    assert entry_of(text, BPE).bits_per_byte == wanted.bits_per_byte
    with pytest.raises(DataError):
        score_texts(uniform(BPE), BPE, [str(path)])


def test_each_of_many_files_is_read_by_its_kind(tmp_path: Path) -> None:
    for name, data in (
        ("a.txt", b"a\xff"),
        ("b.jsonl", b'{"text": "b"}'),
        ("c.txt", b"\0\1"),
        ("d.txt", b"d\r\n"),
    ):
        write(tmp_path / name, data)
    found = read_documents([str(tmp_path)], text_field="text", encoding="auto", errors="replace")
    assert list(map(to_bytes, found)) == [
        b"a\xff",
        b"b",
        b"d\n",
    ]  # c is binary, and nobody named it


def test_compressors_get_the_bytes_of_the_file(tmp_path: Path) -> None:
    for data in (TEXT.encode(), INVALID):
        entries = {
            entry.name: entry for entry in baselines(read_text(write(tmp_path / "t.txt", data)))
        }
        assert list(entries) == ["uniform", "gzip", "xz"]
        assert entries["gzip"].bits_per_byte == 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)
        assert entries["xz"].n_params is entries["xz"].train_seconds is None
        assert entries["xz"].bytes_per_second == pytest.approx(
            len(data) / entries["xz"].score_seconds
        )  # type: ignore[operator]


def test_a_models_entry_equals_eval(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.learn([TEXT], True)
    ids = tokenizer.encode(TEXT)
    config = NgramConfig(vocab_size=tokenizer.vocab_size, order=3)
    model = Ngram.learn(config, ids)
    lines = [
        json.dumps({"text": part}) for part in ("The cat lost the egg.", "Nobody saw it: ß", "猫")
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for path in (tmp_path / "t.jsonl", write(tmp_path / "t.txt", TEXT[7:300].encode())):
        wanted = score_texts(model, tokenizer, [str(path)])
        entry = entry_of(read_text(path), tokenizer, model)
        assert entry.bits_per_byte == pytest.approx(wanted.bits_per_byte, rel=1e-12)
        assert (entry.n_tokens, entry.n_unknown) == (wanted.n_tokens, wanted.n_unknown)
        assert entry.n_params == model.n_parameters()
        assert entry.train_seconds == 7.5
        assert entry.what == "3-gram, kneser-ney"


def test_maximum_likelihood_counts_tokens_of_probability_zero() -> None:
    tokenizer = ByteTokenizer(False)
    config = NgramConfig(vocab_size=256, order=2, smoothing="mle")
    model = Ngram.learn(config, np.frombuffer(b"abcabcabc", np.uint8).astype(np.uint16))
    entry = entry_of(Text("it", b"abcacb", ("abcacb",)), tokenizer, model)
    assert (entry.bits_per_byte, entry.n_impossible) == (math.inf, 2)


def test_models_in_words() -> None:
    assert GPTConfig(n_layer=2, n_head=2, d_model=64).in_brief() == "Transformer, 2 layers of 64"
    assert RNNConfig(cell="gru", n_layer=1, d_model=9).in_brief() == "gru, 1 layer of 9"


def test_a_relative_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t.txt", b"text")
    monkeypatch.chdir(tmp_path)
    assert read_text(Path(".")).name == tmp_path.name


def test_files_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_text(write(tmp_path / "t", b""))
    with pytest.raises(DataError, match="there is no file"):
        read_text(tmp_path / "none.txt")
