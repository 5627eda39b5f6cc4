"""The league: bytes counted exactly, the same for all; figures against those of the files themselves."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsmith.config import ModelConfig
from lmsmith.errors import DataError
from lmsmith.evaluate.league import Entry, Text, baselines, describe, read_text, score_entry
from lmsmith.evaluate.texts import score_texts
from lmsmith.models.ngram import Ngram
from lmsmith.models.rnn import RNN
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

TEXT = "The cat saw a naïve bird.\nNobody lost the egg: 猫 hid it.\n" * 20
INVALID = b"a\xff\xfe caf\xc3\xa9 \xed\xa0\x80 \x80\x00\n"  # six of its bytes are no UTF-8: ff fe, ed a0 80, 80


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def uniform(tokenizer: Tokenizer) -> RNN:
    """What a recurrent network is before it is trained."""
    model = RNN(ModelConfig(kind="rnn", n_layer=1, d_model=4, vocab_size=tokenizer.vocab_size, logit_softcap=0.0))
    model.initialise(torch.Generator())
    return model


def entry_of(text: Text, tokenizer: Tokenizer, model: RNN | Ngram | None = None) -> Entry:
    model = model or uniform(tokenizer)
    return score_entry("it", model, tokenizer, model.config, text, summary={"train_seconds": 7.5})


@pytest.mark.parametrize(
    ("data", "n_bytes", "n_invalid"),
    [
        (b"plain\ntext\n", 11, 0),
        (TEXT.encode(), len(TEXT.encode()), 0),
        (INVALID, len(INVALID), 6),
        (b"\x80\xbf\xff", 3, 3),
        (b"\xef\xbb\xbfa\r\nb\rc", 5, 0),  # neither the mark nor the kind of line end is text
        ("naïve 猫".encode("utf-16"), len("naïve 猫".encode()), 0),
    ],
)
@pytest.mark.parametrize("end_of_text", [False, True])
def test_a_uniform_guess_over_bytes_is_exactly_eight(
    tmp_path: Path, data: bytes, n_bytes: int, n_invalid: int, end_of_text: bool
) -> None:
    text = read_text(write(tmp_path / "text.txt", data))
    assert (len(text.data), text.n_invalid) == (n_bytes, n_invalid)
    assert sum(len(document.encode()) for document in text.documents) + n_invalid == n_bytes
    assert baselines(text)[0] == Entry("uniform", "every byte alike", 8.0)
    entry = entry_of(text, ByteTokenizer(end_of_text))
    valid = math.log2(256 + end_of_text)
    assert entry.bits_per_byte == pytest.approx((valid * (n_bytes - n_invalid) + 8 * n_invalid) / n_bytes, abs=1e-6)
    assert entry.n_unknown == n_invalid
    assert entry.n_tokens == n_bytes - n_invalid


def test_what_a_tokenizer_does_not_know_costs_eight_bits_a_byte(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.learn(["abcd"], False)
    text = read_text(write(tmp_path / "t", b"a\xffb\xe7\x8c\xabc\n"))  # one byte that is none, a cat, a line end
    entry = entry_of(text, tokenizer)
    assert entry.bits_per_byte == pytest.approx((3 * 2 + 5 * 8) / 8, abs=1e-6)
    assert (entry.n_tokens, entry.n_unknown) == (3, 1 + 1 + 1)
    nothing_known = entry_of(read_text(write(tmp_path / "u", b"xyz\n")), tokenizer)
    assert (nothing_known.bits_per_byte, nothing_known.n_tokens) == (8.0, 0)


def test_compressors_get_the_files_bytes(tmp_path: Path) -> None:
    for data in (TEXT.encode(), INVALID):
        entries = {entry.name: entry for entry in baselines(read_text(write(tmp_path / "t.txt", data)))}
        assert list(entries) == ["uniform", "gzip", "xz"]
        assert entries["gzip"].bits_per_byte == 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)
        assert entries["xz"].n_params is entries["xz"].train_seconds is None
        assert entries["xz"].bytes_per_second == pytest.approx(len(data) / entries["xz"].score_seconds)  # type: ignore[operator]


def test_a_models_line_is_what_eval_says(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.learn([TEXT], True)
    ids = tokenizer.encode(TEXT)
    config = ModelConfig(kind="ngram", vocab_size=tokenizer.vocab_size, ngram_order=3)
    model = Ngram.learn(config, ids)
    lines = [json.dumps({"text": part}) for part in ("The cat lost the egg.", "Nobody saw it: ß", "猫")]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for path in (tmp_path / "t.jsonl", write(tmp_path / "t.txt", TEXT[7:300].encode())):
        wanted = score_texts(model, tokenizer, [str(path)])
        entry = entry_of(read_text(path), tokenizer, model)
        assert entry.bits_per_byte == pytest.approx(wanted.bits_per_byte, rel=1e-12)
        assert (entry.n_tokens, entry.n_unknown) == (wanted.n_tokens, wanted.n_unknown)
        assert entry.n_params == model.n_parameters()
        assert entry.train_seconds == 7.5
        assert entry.what == "3-gram, kneser-ney"


def test_maximum_likelihood_says_how_much_it_holds_impossible() -> None:
    tokenizer = ByteTokenizer(False)
    config = ModelConfig(kind="ngram", vocab_size=256, ngram_order=2, smoothing="mle")
    model = Ngram.learn(config, np.frombuffer(b"abcabcabc", np.uint8).astype(np.uint16))
    entry = entry_of(Text("it", b"abcacb", ("abcacb",)), tokenizer, model)
    assert (entry.bits_per_byte, entry.n_impossible) == (math.inf, 2)


def test_models_in_words() -> None:
    assert describe(ModelConfig(n_layer=2, n_head=2, d_model=64)) == "Transformer, 2 layers of 64"
    assert describe(ModelConfig(kind="rnn", cell="gru", n_layer=1, d_model=9)) == "gru, 1 layer of 9"


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_text(write(tmp_path / "t", b""))
    with pytest.raises(DataError, match="No such file"):
        read_text(tmp_path / "none.txt")
