"""The layers of a block, each against its formula written out plainly."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.layers import FeedForward, NgramEmbedding, Norm

SMALL = {"n_layer": 1, "n_head": 3, "d_model": 12, "context_length": 9, "vocab_size": 11}


def config(**changes: object) -> GPTConfig:
    return GPTConfig(**{**SMALL, **changes})  # type: ignore[arg-type]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The module in float64 with every parameter random, so that none is missing unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for p in module.parameters():
        p.data.normal_(0.0, 0.5, generator=generator)
    return module


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm(kind: str, gain: bool, bias: bool) -> None:
    norm = filled(Norm(config(norm=kind, norm_gain=gain, bias=bias), 12))
    x = numbers(2, 5, 12) + 1
    if kind == "layernorm":
        wanted = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
    else:
        wanted = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert (norm.weight is not None) == gain
    assert (norm.bias is not None) == (gain and bias and kind == "layernorm")  # RMSNorm has none
    wanted = wanted if norm.weight is None else wanted * norm.weight
    wanted = wanted if norm.bias is None else wanted + norm.bias
    torch.testing.assert_close(norm(x), wanted, rtol=1e-13, atol=1e-13)


def test_no_norm_is_the_identity() -> None:
    norm = Norm(config(norm="none", embedding_norm=False), 12)
    x = numbers(2, 5, 12)
    assert norm(x) is x
    assert not list(norm.parameters())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["gelu", "gelu-tanh", "silu", "relu2", "swiglu", "geglu"])
def test_feed_forward(kind: str, bias: bool) -> None:
    layer = filled(FeedForward(config(feed_forward=kind, bias=bias, d_ff=20)))
    x = numbers(2, 5, 12)
    up, down = layer.up, layer.down
    h = x @ up.weight.T + (up.bias if bias else 0)
    if kind == "swiglu":
        h = h[..., :20] / (1 + torch.exp(-h[..., :20])) * h[..., 20:]
    elif kind == "geglu":
        h = h[..., :20] / 2 * (1 + torch.erf(h[..., :20] / math.sqrt(2))) * h[..., 20:]
    elif kind == "gelu":
        h = h / 2 * (1 + torch.erf(h / math.sqrt(2)))
    elif kind == "gelu-tanh":
        h = h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    elif kind == "silu":
        h = h / (1 + torch.exp(-h))
    else:
        h = h.clamp(min=0) ** 2
    wanted = h @ down.weight.T + (down.bias if bias else 0)
    assert tuple(down.weight.shape) == (12, 20)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


def key_rows(grams: list[int], n_rows: int) -> int:
    """The table row of an n-gram, newest token first, with Python's unbounded integers."""
    key = grams[0] + 1
    for token in grams[1:]:
        key = (key * 0x9E3779B1 + token + 1) % 2**32
    mixed = (key ^ (key >> 15)) * 0x85EBCA6B % 2**32
    return (mixed ^ (mixed >> 13)) % n_rows


def test_ngram_rows_are_those_of_the_last_n_tokens() -> None:
    c = config(ngram_tables=(2, 3, 5), ngram_table_size=1000, vocab_size=100_000)
    layer = NgramEmbedding(c)
    ids = torch.randint(0, 100_000, (2, 20), generator=torch.Generator().manual_seed(0))
    before = torch.randint(0, 100_000, (2, 4), generator=torch.Generator().manual_seed(1))
    text = torch.cat([before, ids], 1).tolist()
    for order, rows in zip((2, 3, 5), layer.rows(ids, before), strict=True):
        wanted = [
            [key_rows(line[t - order + 1 : t + 1][::-1], 1000) for t in range(4, 24)]
            for line in text
        ]
        assert rows.tolist() == wanted


def test_ngram_rows_restart_at_documents() -> None:
    layer = NgramEmbedding(config(ngram_tables=(2, 3, 5), ngram_table_size=1000))
    ids, nothing = (
        torch.randint(0, 11, (1, 9), generator=torch.Generator().manual_seed(0)),
        torch.full((1, 4), 11),
    )
    positions = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]])
    found = torch.stack(layer.rows(ids, nothing, positions))
    alone = [torch.stack(layer.rows(part, nothing)) for part in ids.split((4, 1, 4), dim=1)]
    assert torch.equal(found, torch.cat(alone, 2))


def test_ngram_rows_spread_evenly() -> None:
    """Distinct trigrams of a small alphabet fill the rows like a random function: chi-square per
    degree of freedom about 1.
    """
    layer = NgramEmbedding(config(ngram_tables=(3,), ngram_table_size=512, vocab_size=64))
    grams = torch.cartesian_prod(*[torch.arange(64)] * 3)[:, None, :]  # every trigram once
    (rows,) = layer.rows(grams[:, 0, 2:], grams[:, 0, :2])
    counts = torch.bincount(rows.flatten(), minlength=512).double()
    expected = 64**3 / 512
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 511 + 5 * math.sqrt(2 * 511)


def test_ngram_embedding_adds_one_row_per_order() -> None:
    c = config(ngram_tables=(2, 4), ngram_table_size=97)
    layer = filled(NgramEmbedding(c))
    ids, nothing = torch.tensor([[3, 1, 4, 1, 5]]), torch.full((1, 3), 11)
    rows = layer.rows(ids, nothing)
    wanted = sum(table.weight[row] for table, row in zip(layer.tables, rows, strict=True))
    torch.testing.assert_close(layer(ids, nothing), wanted)
    assert layer.n_before == 3


def test_ngram_dropout_drops_each_order_of_a_position_on_its_own() -> None:
    layer = filled(NgramEmbedding(config(ngram_tables=(2, 3), ngram_dropout=0.25)))
    ids, nothing = torch.arange(3000).view(1, -1) % 11, torch.full((1, 2), 11)
    parts = [
        table(rows) for table, rows in zip(layer.tables, layer.rows(ids, nothing), strict=True)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = layer.train()(ids, nothing)
    counts = Counter[tuple[bool, bool]]()
    for kept in [(False, False), (False, True), (True, False), (True, True)]:
        wanted = sum(part / 0.75 * one for part, one in zip(parts, kept, strict=True))
        counts[kept] = int(torch.isclose(found, wanted, atol=1e-5).all(-1).sum())
    assert sum(counts.values()) == 3000
    for kept, n in counts.items():
        share = math.prod(0.75 if one else 0.25 for one in kept)
        assert n == pytest.approx(3000 * share, abs=5 * math.sqrt(3000 * share * (1 - share)))
