"""Units of a text: their costs add up to the text's, and equal those of a direct computation."""

import math

import numpy as np
import pytest
import torch

from lmsmith.evaluate.comparison import Text, differences, score_entry
from lmsmith.evaluate.likelihood import score_ids
from lmsmith.evaluate.texts import encode_documents, score_encoded, to_bytes
from lmsmith.evaluate.units import FEWEST, LEAST_BLOCK, unit_bits, units_of
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn_config import RNNConfig
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

rng = np.random.default_rng(0)
WORDS = ["The", " cat", " saw", " a", " bird", ".", "\n", " naïve", " 猫"]
LONG = "".join(rng.choice(WORDS, 9000))
MANY = tuple("".join(rng.choice(WORDS, size)) for size in rng.integers(3, 60, 40))
BPE = BpeTokenizer([*(bytes([b]) for b in range(256)), b"Th", b" c", None], [(84, 104), (32, 99)],
                   "gpt2", {"<|endoftext|>": 258})  # fmt: skip
TOKENIZERS = [
    ByteTokenizer(False),
    ByteTokenizer(True),
    BPE,
    CharTokenizer.learn(["abcdirstTw. \n"], True),
    WordTokenizer(["The", " cat", "\n", " saw", " a"], True),
]


def model_of(kind: str, vocab_size: int) -> torch.nn.Module:
    config = {
        "gpt": GPTConfig(n_layer=1, n_head=1, d_model=8, context_length=16, vocab_size=vocab_size),
        "rnn": RNNConfig(n_layer=1, d_model=8, vocab_size=vocab_size),
    }[kind]
    torch.manual_seed(0)
    model = config.build()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0, 0.3)
    return model


@pytest.mark.parametrize("documents", [(LONG,), (LONG, MANY[0]), MANY], ids=["one", "two", "many"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: f"{t.kind} {t.vocab_size}")
@pytest.mark.parametrize("kind", ["gpt", "rnn"])
def test_costs_add_up(documents: tuple[str, ...], tokenizer: Tokenizer, kind: str) -> None:
    units = units_of(documents)
    assert units is not None
    assert len(units) >= FEWEST
    assert units.kind == ("documents" if len(documents) > 2 else "blocks")
    assert tuple("".join(blocks) for blocks in units.blocks) == documents
    encoded = encode_documents(tokenizer, documents)
    nats = np.zeros(len(encoded.ids))
    for boundaries in ("stream",) if tokenizer.end_of_text is None else ("stream", "packed"):
        model = model_of(kind, tokenizer.vocab_size)
        score = score_encoded(model, tokenizer, encoded, boundaries=boundaries, per_token=nats)
        assert nats.sum() == pytest.approx(score.nats, rel=1e-6)
        bits = unit_bits(units, tokenizer, encoded, nats, score)
        assert bits.shape == (len(units),)
        assert bits.sum() == pytest.approx(score.bits_per_byte * score.n_bytes, rel=1e-6)
        assert units.n_bytes.sum() == score.n_bytes


def test_a_documents_cost_is_its_score_alone() -> None:
    """The n-gram model sees two tokens back, so only a document's first tokens see the one before;
    with a separator of two end-of-text tokens it would be none. Here the model is of order 1.
    """
    tokenizer = ByteTokenizer(True)
    encoded = encode_documents(tokenizer, MANY)
    model = Ngram.learn(NgramConfig(vocab_size=257, order=1), encoded.ids)
    nats = np.zeros(len(encoded.ids))
    score = score_encoded(model, tokenizer, encoded, boundaries="stream", per_token=nats)
    units = units_of(MANY)
    assert units is not None
    found = unit_bits(units, tokenizer, encoded, nats, score)
    with_end = [[*to_bytes(document), 256] for document in MANY]
    with_end[-1].pop()  # nothing follows the last document
    p = np.exp(model.log_probabilities(torch.arange(257)[None], 1).numpy()[0])
    p = np.concatenate([[1 - p.sum()], p])
    wanted = [-np.log2(p[ids]).sum() for ids in with_end]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_block_costs_the_tokens_whose_bytes_lie_in_it() -> None:
    tokenizer = CharTokenizer.learn(["abcdirstTw. \n"], True)  # knows neither ï nor 猫
    encoded = encode_documents(tokenizer, (LONG,))
    units = units_of((LONG,))
    assert units is not None
    nats = np.arange(len(encoded.ids), dtype=np.float64)
    score = score_encoded(
        model_of("rnn", tokenizer.vocab_size), tokenizer, encoded, boundaries="stream"
    )
    found = unit_bits(units, tokenizer, encoded, nats, score)
    at = 1
    per_unknown = (score.unknown_bits - 8 * score.n_unknown_bytes) / score.n_unknown
    for block, bits in zip(units.blocks[0], found, strict=True):
        n = len(tokenizer.encode(block))
        unknown = [c for c in block if c not in tokenizer.characters]
        n_unknown_bytes = len("".join(unknown).encode())
        wanted = nats[at : at + n].sum() / math.log(2) + 8 * n_unknown_bytes
        assert bits == pytest.approx(wanted + per_unknown * len(unknown))
        at += n
    assert at == len(nats)


def test_short_texts_cannot_be_tested() -> None:
    short = "a" * (LEAST_BLOCK * (FEWEST - 2))
    assert units_of((short,)) is None
    assert units_of(()) is None
    text = Text("it", short.encode(), (short,))
    tokenizer = ByteTokenizer(True)
    entries = [
        score_entry(name, model, tokenizer, model.config, text)
        for name in ("a", "b")
        for model in [model_of("rnn", 257)]
    ]
    (row,) = differences(entries, text)
    assert row.verdict.startswith("not tested: a test needs 20 documents or 20,000 bytes of text")


def test_two_models_are_compared_on_a_text() -> None:
    text = Text("it", LONG.encode(), (LONG,))
    tokenizer = ByteTokenizer(True)
    model = model_of("rnn", 257)
    counts = Ngram.learn(
        NgramConfig(vocab_size=257, order=2), encode_documents(tokenizer, (LONG,)).ids
    )
    never = NgramConfig(vocab_size=257, order=2, smoothing="mle")
    impossible = Ngram.learn(never, np.array([1, 2, 3], np.uint16))
    entries = [
        score_entry(name, one, tokenizer, one.config, text)
        for name, one in (("a", model), ("also a", model), ("counts", counts), ("no", impossible))
    ]
    rows = {(row.a, row.b): row for row in differences(entries, text)}
    assert len(rows) == 6
    assert rows["a", "also a"].verdict == "no difference shown"
    assert rows["a", "counts"].better == rows["also a", "counts"].better == "counts"
    wanted = entries[0].bits_per_byte - entries[2].bits_per_byte
    assert rows["a", "counts"].difference == pytest.approx(wanted, rel=1e-6)
    assert rows["a", "no"].verdict == "not tested: no gives some of the text probability zero"


def test_a_token_in_two_blocks_is_paid_by_both() -> None:
    """Each token's cost is spread evenly over its bytes, and summed byte by byte."""
    tokenizer = BPE
    document = "".join(np.random.default_rng(2).choice(WORDS[:7], 7000))  # a byte per character
    encoded = encode_documents(tokenizer, (document,))
    units = units_of((document,))
    assert units is not None
    nats = np.random.default_rng(3).random(len(encoded.ids))
    model = model_of("rnn", tokenizer.vocab_size)
    score = score_encoded(model, tokenizer, encoded, boundaries="stream")
    per_byte = []
    for one, cost in list(zip(encoded.ids.tolist(), nats, strict=True))[1:]:
        size = len(tokenizer.decode_bytes([one]))
        per_byte += [cost / size] * size
    assert len(per_byte) == len(document)
    wanted, at = [], 0
    for block in units.blocks[0]:
        wanted.append(sum(per_byte[at : at + len(block)]) / math.log(2))
        at += len(block)
    assert unit_bits(units, tokenizer, encoded, nats, score) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("stride", [1, 5, 16])
@pytest.mark.parametrize("boundary", [None, 3])
def test_the_cost_of_each_token_is_that_of_its_window(stride: int, boundary: int | None) -> None:
    model = model_of("gpt", 7)
    ids = np.random.default_rng(1).integers(0, 7, 100).astype(np.uint16)
    nats = np.full(100, np.nan)
    score = score_ids(model, ids, n_bytes=1, stride=stride, boundary=boundary, per_token=nats)
    assert nats.sum() == pytest.approx(score.nats, rel=1e-6)
    assert nats[0] == math.log(7)
    if stride == 1 and boundary is None:
        for k in (1, 5, 40, 99):
            window = torch.from_numpy(ids[max(0, k - 16) : k + 1].astype(np.int64))[None]
            with torch.no_grad():
                log_p = model.log_probabilities(window, window.shape[1] - 1)
            assert nats[k] == pytest.approx(-float(log_p), rel=1e-4)
