"""Scores against a plain float64 loop over the tokens of a text."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, DataError
from lmsmith.evaluate.likelihood import Score, score_ids
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import NeuralModel
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig

V, T = 13, 8


class FromLogits(NeuralModel):
    """A model whose `hidden` is its logits."""

    head_weight = property(lambda self: torch.eye(self.vocab_size))  # type: ignore[assignment]

    def new_state(self, batch_size: int) -> None: ...

    def initialise(self, generator: torch.Generator) -> None: ...

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class Counting(FromLogits):
    """Logits depend on the full window so far, so that a wrong window is detected."""

    def __init__(self, vocab_size: int = V, context_length: int = T) -> None:
        super().__init__()
        self.config = SimpleNamespace(context_length=context_length, vocab_size=vocab_size)
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(vocab_size, vocab_size, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.calls: list[tuple[int, int]] = []

    def hidden(self, ids: Tensor, state: None = None, documents: None = None) -> Tensor:
        assert ids.dtype == torch.int64
        assert ids.shape[1] <= self.config.context_length
        self.calls.append(tuple(ids.shape))
        return self.dropout(self.weight[ids].cumsum(dim=1))


class Uniform(FromLogits):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(context_length=64, vocab_size=vocab_size)

    def hidden(self, ids: Tensor, state: None = None, documents: None = None) -> Tensor:
        return torch.zeros(*ids.shape, self.config.vocab_size)


def _plain(model: Counting, ids: np.ndarray, stride: int) -> list[float]:
    """Nats of ids[1:], each with the context that the module's docstring specifies."""
    weight, nats = model.weight.detach().double().numpy(), []
    for target in range(1, len(ids)):
        window = (
            0 if target <= T else -(-(target - T) // stride)
        )  # the first one that reaches this target
        logits = weight[ids[window * stride : target]].sum(axis=0)
        assert target - window * stride > (0 if target <= T else T - stride)
        top = logits.max()
        nats.append(top + math.log(np.exp(logits - top).sum()) - logits[ids[target]])
    return nats


@pytest.mark.parametrize("length", [1, 2, T, T + 1, T + 2, 3 * T, 3 * T + 1, 3 * T + 2, 100])
@pytest.mark.parametrize("stride", [None, T, 5, 1])
@pytest.mark.parametrize("rows", [None, 1, 3])
def test_equals_a_plain_loop_over_tokens(length: int, stride: int | None, rows: int | None) -> None:
    model = Counting()
    ids = np.random.default_rng(length).integers(0, V, length).astype(np.uint16)
    nats = _plain(model, ids, stride or T)
    charged = score_ids(model, ids, n_bytes=50, stride=stride, rows_per_batch=rows)
    assert charged.nats == pytest.approx(math.log(V) + math.fsum(nats), rel=1e-6)
    assert charged.n_tokens == length
    if length > 1:
        given = score_ids(
            model, ids, n_bytes=50, stride=stride, rows_per_batch=rows, starts_with_end_of_text=True
        )
        assert given.nats == pytest.approx(math.fsum(nats), rel=1e-6)
        assert given.n_tokens == length - 1
    assert model.training


@pytest.mark.parametrize("boundary", [None, 0])
@pytest.mark.parametrize("stride", [None, 5])
def test_shards_are_scored_as_one_array(stride: int | None, boundary: int | None) -> None:
    model, ids = Counting().eval(), np.random.default_rng(0).integers(0, V, 100).astype(np.uint16)
    shards = Shards([ids[:3], ids[3:50], ids[50:51], ids[51:]], vocab_size=V)
    options = {"n_bytes": 50, "stride": stride, "boundary": boundary}
    assert score_ids(model, shards, **options) == score_ids(model, ids, **options)


@pytest.mark.parametrize("stride", [None, 5, 1])
@pytest.mark.parametrize("rows", [None, 1, 2])
@pytest.mark.parametrize("begins", [True, False])
def test_separate_documents_are_scored_as_if_alone(
    stride: int | None, rows: int | None, begins: bool
) -> None:
    """Each document's tokens by the plain loop over that document; the boundary after it is its
    last target.
    """
    model, rng = Counting(), np.random.default_rng(4)
    pieces = [[0, *rng.integers(1, V, n)] for n in (0, 3, T - 1, T, T + 1, 40, 1, 2 * T)]
    if not begins:
        del pieces[1][0], pieces[0]  # the text begins within a document
    ids = np.array([id for piece in pieces for id in piece], np.uint16)
    wanted, place = 0.0, 0
    for piece in pieces:
        wanted += math.fsum(_plain(model, ids[place : place + len(piece) + 1], stride or T))
        place += len(piece)
    found = score_ids(
        model,
        ids,
        n_bytes=9,
        starts_with_end_of_text=True,
        stride=stride,
        rows_per_batch=rows,
        boundary=0,
    )
    assert found.nats == pytest.approx(wanted, rel=1e-6)
    assert found.n_tokens == len(ids) - 1
    assert all(n * width <= (rows or 512) * T for n, width in model.calls)
    charged = score_ids(model, ids, n_bytes=9, stride=stride, rows_per_batch=rows, boundary=0)
    assert charged.nats == pytest.approx(wanted + math.log(V), rel=1e-6)
    no_boundary = score_ids(model, ids, n_bytes=9, stride=stride, boundary=V)
    assert no_boundary.nats == pytest.approx(
        score_ids(model, ids, n_bytes=9, stride=stride).nats, rel=1e-6
    )


def test_windows_without_overlap_read_each_token_once() -> None:
    model = Counting()
    score_ids(model, np.zeros(10 * T + 4, np.uint16), n_bytes=1, rows_per_batch=4)
    assert model.calls == [(4, T), (4, T), (2, T), (1, 3)]


@pytest.mark.parametrize("length", [1, 2, 64, 65, 1000])
@pytest.mark.parametrize("end_of_text", [False, True])
def test_a_uniform_model_over_bytes_scores_eight(length: int, end_of_text: bool) -> None:
    text = np.random.default_rng(0).integers(0, 256, length + end_of_text).astype(np.uint16)
    score = score_ids(Uniform(256), text, n_bytes=length, starts_with_end_of_text=end_of_text)
    assert score.bits_per_byte == pytest.approx(8, abs=1e-6)
    assert score.perplexity == pytest.approx(256, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_reads_memory_maps(tmp_path: Path, dtype: type[np.unsignedinteger]) -> None:
    ids = np.random.default_rng(0).integers(0, V, 999).astype(dtype)
    ids.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", dtype=dtype, mode="r")
    model = Counting()
    assert score_ids(model, mapped, n_bytes=7) == score_ids(model, ids, n_bytes=7)
    assert score_ids(model, mapped, n_bytes=7, stride=3) == score_ids(
        model, ids, n_bytes=7, stride=3
    )


def test_batches_keep_the_logits_small() -> None:
    small, large = Counting(), Counting(vocab_size=6000, context_length=700)
    score_ids(small, np.zeros(100_000, np.uint16), n_bytes=1)
    score_ids(large, np.zeros(20_000, np.uint16), n_bytes=1)
    assert max(rows * length for rows, length in small.calls) == 4 * 1024
    assert max(rows * length * 6000 * 4 for rows, length in large.calls) <= 64 * 2**20
    assert max(rows for rows, _ in large.calls) == 3


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_the_transformer(positions: str) -> None:
    config = GPTConfig(
        n_layer=2,
        n_head=2,
        d_model=16,
        context_length=T,
        vocab_size=V,
        vocab_multiple=8,
        positions=positions,
    )
    model = GPT(config)
    model.initialise(torch.Generator().manual_seed(0))
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    ids = np.random.default_rng(0).integers(0, V, 50).astype(np.uint16)
    nats = 0.0
    for target in range(1, 50):
        window = (target - 1) // T * T
        with torch.no_grad():
            logits = model(torch.from_numpy(ids[window:target].astype(np.int64))[None])[
                0, -1
            ].double()
        nats -= logits.log_softmax(-1)[ids[target]].item()
    assert score_ids(model, ids, n_bytes=50, starts_with_end_of_text=True).nats == pytest.approx(
        nats, rel=1e-5
    )
    model(
        torch.zeros(1, T, dtype=torch.int64)
    ).sum().backward()  # scoring left nothing behind that training minds


@pytest.mark.parametrize("length", [2, 9, 100, 101, 255, 3000])
@pytest.mark.parametrize("given", [False, True])
def test_n_grams_cost_the_same_in_parallel_parts(
    monkeypatch: pytest.MonkeyPatch, length: int, given: bool
) -> None:
    ids = np.random.default_rng(0).integers(0, V, 3000).astype(np.uint16)
    model = Ngram.learn(NgramConfig(vocab_size=V, order=4), ids[:2000])
    text = ids[::-1][:length].copy()
    whole = -float(model.log_probabilities(torch.from_numpy(text.astype(np.int64))[None]).sum())
    monkeypatch.setattr("lmsmith.evaluate.likelihood._WARM_UP", 3)
    for least_part, n_tokens in ((10**9, 4096), (7, 4096), (20, 64), (1, 32)):
        monkeypatch.setattr("lmsmith.evaluate.likelihood._LEAST_PART", least_part)
        monkeypatch.setattr("lmsmith.evaluate.likelihood._TOKENS_AT_ONCE_CPU", n_tokens)
        score = score_ids(model, text, n_bytes=1, starts_with_end_of_text=given)
        assert score.nats == pytest.approx(whole + (0 if given else math.log(V)), rel=1e-12)
        assert (score.n_tokens, score.n_impossible) == (length - given, 0)


def test_recurrent_networks_in_parallel_parts_have_a_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = RNN(
        RNNConfig(cell="gru", n_layer=1, d_model=8, context_length=4, vocab_size=V)
    ).double()
    for weight in model.parameters():
        weight.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(weight.numel()))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, V, 101))
    monkeypatch.setattr("lmsmith.evaluate.likelihood._LEAST_PART", 30)
    monkeypatch.setattr("lmsmith.evaluate.likelihood._WARM_UP", 10)
    wanted = 0.0
    for first in (0, 34, 68):  # three parts of 34 targets, the last one shorter and begun earlier
        begin = {0: 0, 34: 24, 68: 56}[first]
        found = (
            model(ids[None, begin:-1])[0].log_softmax(-1).gather(1, ids[begin + 1 :, None])[:, 0]
        )
        wanted -= found[first - begin : first + 34 - begin].sum().item()
    score = score_ids(model, ids.numpy().astype(np.uint16), n_bytes=1, starts_with_end_of_text=True)
    assert score.nats == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ConfigError, match="stride"):
        score_ids(model, np.zeros(9, np.uint16), n_bytes=9, stride=2)


def test_tokens_of_probability_zero_are_counted() -> None:
    text = np.array([0, 1, 2, 0, 1, 2, 0], np.uint16)
    model = Ngram.learn(NgramConfig(vocab_size=V, order=2, smoothing="mle"), text)
    score = score_ids(model, np.array([0, 1, 1, 2, 5, 0, 1], np.uint16), n_bytes=7)
    assert (
        score.n_impossible == 2
    )  # 1 after 1, 5 after 2; after 5, which it has not seen, all goes by frequency
    assert score.perplexity == score.bits_per_byte == math.inf


def test_the_metrics_of_a_score() -> None:
    score = Score(nats=math.log(2) * 30, n_tokens=10, n_bytes=20, n_unknown=2, n_unknown_bytes=5)
    assert score.nats_per_token == pytest.approx(3 * math.log(2))
    assert score.perplexity == pytest.approx(8)
    assert score.bits_per_byte == pytest.approx(
        (30 + 5 * 8 + math.log2(4)) / 20
    )  # 1 + 4 bytes, 2 + 3, ...
    left_out = replace(score, left_out=True)
    assert left_out.bits_per_byte == pytest.approx((30 + 5 * 8 + math.log2(12 * 11 / 2)) / 20)
    assert replace(score, n_unknown_bytes=0).bits_per_byte == 30 / 20  # bytes know all
    assert Score(nats=1e6, n_tokens=1, n_bytes=1).perplexity == math.inf


def test_bad_calls_are_refused_and_the_mode_is_restored() -> None:
    model = Counting()
    for stride in (0, T + 1):
        with pytest.raises(ConfigError, match="stride"):
            score_ids(model, np.zeros(9, np.uint16), n_bytes=9, stride=stride)
    for length, n_bytes, given in ((0, 0, False), (1, 0, True), (1, 5, True)):
        with pytest.raises(DataError, match="nothing to score"):
            score_ids(
                model, np.zeros(length, np.uint16), n_bytes=n_bytes, starts_with_end_of_text=given
            )
    with pytest.raises(IndexError):
        score_ids(model, np.full(9, V, np.uint16), n_bytes=9)
    assert model.training
    assert torch.is_grad_enabled()
