"""The parts of a block, each against its formula written out plainly."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith.config import ModelConfig
from lmsmith.models.attention import Attention, LayerCache, Rotary
from lmsmith.models.layers import FeedForward, NgramEmbedding, Norm

SMALL = {"n_layer": 1, "n_head": 3, "d_model": 12, "context_length": 9, "vocab_size": 11}


def config(**changes: object) -> ModelConfig:
    return ModelConfig(**{**SMALL, **changes})  # type: ignore[arg-type]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The module in float64, every parameter random: none is zero or one, so that none can be left out unseen."""
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
        wanted = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    else:
        wanted = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert (norm.weight is not None) == gain
    assert (norm.bias is not None) == (gain and bias and kind == "layernorm")  # RMSNorm has none
    wanted = wanted if norm.weight is None else wanted * norm.weight
    wanted = wanted if norm.bias is None else wanted + norm.bias
    torch.testing.assert_close(norm(x), wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["gelu", "gelu-tanh", "silu", "relu2", "swiglu"])
def test_feed_forward(kind: str, bias: bool) -> None:
    layer = filled(FeedForward(config(feed_forward=kind, bias=bias, d_ff=20)))
    x = numbers(2, 5, 12)
    up, down = layer.up, layer.down
    h = x @ up.weight.T + (up.bias if bias else 0)
    if kind == "swiglu":
        h = h[..., :20] / (1 + torch.exp(-h[..., :20])) * h[..., 20:]
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


def turned(x: Tensor, base: float) -> Tensor:
    """RoPE one number at a time: pair i of position t is turned by t base**(-2i/K)."""
    y = torch.empty_like(x)
    B, T, H, K = x.shape
    for b, t, h, i in np.ndindex(B, T, H, K // 2):
        angle = t * base ** (-2 * i / K)
        left, right = x[b, t, h, 2 * i], x[b, t, h, 2 * i + 1]
        y[b, t, h, 2 * i] = left * math.cos(angle) - right * math.sin(angle)
        y[b, t, h, 2 * i + 1] = right * math.cos(angle) + left * math.sin(angle)
    return y


def test_rotary() -> None:
    rotary = Rotary.make(config(rope_base=100.0))
    x = numbers(2, 9, 3, 4)
    wanted = turned(x, 100.0)
    torch.testing.assert_close(rotary(x, 0), wanted, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rotary(x[:, 4:7], 4), wanted[:, 4:7], rtol=1e-13, atol=1e-13)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary = Rotary.make(config())
    q, k = (numbers(1, 1, 1, 4, seed=seed).expand(1, 9, 1, 4) for seed in (1, 2))
    products = torch.einsum("tk,sk->ts", rotary(q, 0)[0, :, 0], rotary(k, 0)[0, :, 0])
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12)
    assert len(products.round(decimals=6).unique()) == 17


def test_rotary_keeps_its_precision_and_the_dtype() -> None:
    """A model that was run in float32 and is then run in float64 gets angles in float64 again."""
    rotary = Rotary.make(config())
    x = numbers(1, 9, 3, 4)
    assert rotary(x.float(), 0).dtype == torch.float32
    assert rotary(x.bfloat16(), 0).dtype == torch.bfloat16
    wanted = turned(x, 10_000.0)
    torch.testing.assert_close(rotary(x, 0), wanted, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rotary(x.float(), 0).double(), wanted, rtol=1e-5, atol=1e-6)


def plain_attention(layer: Attention, x: Tensor, c: ModelConfig, rope: bool) -> Tensor:
    """Attention head by head, with no fused parts but the weight they share."""
    T, K = x.size(1), c.d_head
    rows = x @ layer.qkv.weight.T + (layer.qkv.bias if c.bias else 0)
    heads = [rows[..., i * K : (i + 1) * K] for i in range(c.n_head + 2 * c.n_kv)]
    queries, keys, values = heads[: c.n_head], heads[c.n_head : c.n_head + c.n_kv], heads[c.n_head + c.n_kv :]
    found = []
    for h in range(c.n_head):
        q, k, v = queries[h], keys[h * c.n_kv // c.n_head], values[h * c.n_kv // c.n_head]
        if c.qk_norm:
            q, k = (z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() for z in (q, k))
        if rope:
            q, k = (turned(z.unsqueeze(2), c.rope_base).squeeze(2) for z in (q, k))
        if c.qk_norm:
            q = q * layer.qk_gain[h]
        scores = q @ k.mT / math.sqrt(K)
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
        found.append(torch.softmax(scores, -1) @ v)
    return torch.cat(found, -1) @ layer.out.weight.T + (layer.out.bias if c.bias else 0)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("n_kv_head", [0, 1, 2])
@pytest.mark.parametrize("rope", [False, True])
def test_attention(rope: bool, n_kv_head: int, qk_norm: bool, norm: str) -> None:
    c = config(
        n_head=4, d_model=16, n_kv_head=n_kv_head, qk_norm=qk_norm, norm=norm, bias=norm == "layernorm", rope_base=50.0
    )
    layer = filled(Attention(c))
    rotary = Rotary.make(c) if rope else None
    x = numbers(2, 7, 16)
    wanted = plain_attention(layer, x, c, rope)
    torch.testing.assert_close(layer(x, rotary, None, 0), wanted, rtol=1e-12, atol=1e-12)
    shape = (2, c.n_kv, c.context_length, c.d_head)
    cache = LayerCache(torch.full(shape, math.nan).double(), torch.full(shape, math.nan).double())
    with torch.no_grad():
        parts = [layer(x[:, a:b], rotary, cache, a) for a, b in ((0, 3), (3, 4), (4, 7))]
    torch.testing.assert_close(torch.cat(parts, 1), wanted.detach(), rtol=1e-12, atol=1e-12)


def test_fewer_key_value_heads_are_full_attention_with_repeated_ones() -> None:
    few, full = config(n_head=4, d_model=16, n_kv_head=2), config(n_head=4, d_model=16)
    a, b = filled(Attention(few)), filled(Attention(full))
    with torch.no_grad():
        q, k, v = a.qkv.weight.split((16, 8, 8))
        repeat = [w.view(2, 4, 16).repeat_interleave(2, 0).reshape(16, 16) for w in (k, v)]
        b.qkv.weight.copy_(torch.cat([q, *repeat]))
        b.out.weight.copy_(a.out.weight)
        b.qk_gain.copy_(a.qk_gain)
    x, rotary = numbers(2, 7, 16), Rotary.make(full)
    torch.testing.assert_close(a(x, rotary, None, 0), b(x, rotary, None, 0), rtol=1e-13, atol=1e-13)


def test_normalised_products_are_bounded_by_the_head_width() -> None:
    c = config(qk_norm=True)
    layer = filled(Attention(c))
    with torch.no_grad():
        layer.qkv.weight.mul_(1e6)
        layer.qk_gain.fill_(1.0)
        layer.qkv.weight[2 * 12 :].copy_(torch.eye(12))
        layer.out.weight.copy_(torch.eye(12))
    weights = layer(torch.eye(4, 12, dtype=torch.float64)[None], None, None, 0)[0, 3, :4]  # the first head's
    odds = (weights.max() / weights.min()).log()
    assert 0 < float(odds.detach()) <= 2 * math.sqrt(c.d_head) + 1e-9


def test_attention_dropout_is_for_training_alone() -> None:
    layer = filled(Attention(config(attention_dropout=0.5)))
    x = numbers(1, 9, 12)
    without = plain_attention(layer, x, config(), rope=False)
    torch.testing.assert_close(layer.eval()(x, None, None, 0), without, rtol=1e-12, atol=1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (layer.train()(x, None, None, 0) for _ in range(2))
    assert not torch.allclose(first, second)


def key_rows(grams: list[int], n_rows: int) -> int:
    """The table row of an n-gram, newest token first, in Python's unbounded integers."""
    key = grams[0] + 1
    for token in grams[1:]:
        key = (key * 0x9E3779B1 + token + 1) % 2**32
    mixed = (key ^ (key >> 15)) * 0x85EBCA6B % 2**32
    return (mixed ^ (mixed >> 13)) % n_rows


def test_ngram_rows_are_those_of_the_last_n_tokens() -> None:
    c = config(ngram_orders=(2, 3, 5), ngram_table_size=1000, vocab_size=100_000)
    layer = NgramEmbedding(c)
    ids = torch.randint(0, 100_000, (2, 20), generator=torch.Generator().manual_seed(0))
    before = torch.randint(0, 100_000, (2, 4), generator=torch.Generator().manual_seed(1))
    text = torch.cat([before, ids], 1).tolist()
    for order, rows in zip((2, 3, 5), layer.rows(ids, before), strict=True):
        wanted = [[key_rows(line[t - order + 1 : t + 1][::-1], 1000) for t in range(4, 24)] for line in text]
        assert rows.tolist() == wanted


def test_ngram_rows_spread_evenly() -> None:
    """Distinct trigrams of a small alphabet fill the rows as a random function would: chi-square per degree about 1."""
    layer = NgramEmbedding(config(ngram_orders=(3,), ngram_table_size=512, vocab_size=64))
    grams = torch.cartesian_prod(*[torch.arange(64)] * 3)[:, None, :]  # every trigram once
    (rows,) = layer.rows(grams[:, 0, 2:], grams[:, 0, :2])
    counts = torch.bincount(rows.flatten(), minlength=512).double()
    expected = 64**3 / 512
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 511 + 5 * math.sqrt(2 * 511)


def test_ngram_embedding_adds_one_row_an_order() -> None:
    c = config(ngram_orders=(2, 4), ngram_table_size=97)
    layer = filled(NgramEmbedding(c))
    ids, nothing = torch.tensor([[3, 1, 4, 1, 5]]), torch.full((1, 3), 11)
    rows = layer.rows(ids, nothing)
    wanted = sum(table.weight[row] for table, row in zip(layer.tables, rows, strict=True))
    torch.testing.assert_close(layer(ids, nothing), wanted)
    assert layer.n_before == 3


def test_ngram_dropout_leaves_out_whole_positions() -> None:
    layer = filled(NgramEmbedding(config(ngram_orders=(2, 3), ngram_dropout=0.25)))
    ids, nothing = torch.arange(3000).view(1, -1) % 11, torch.full((1, 2), 11)
    full = layer.eval()(ids, nothing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = layer.train()(ids, nothing)
    gone = (found == 0).all(-1)
    torch.testing.assert_close(found[~gone], full[~gone] / 0.75)
    assert Counter(gone.flatten().tolist())[True] == pytest.approx(750, abs=5 * math.sqrt(3000 * 0.25 * 0.75))


def test_functional_reference_agrees_with_torch() -> None:
    """The plain attention above is itself held against PyTorch's."""
    c = config(qk_norm=False)
    layer = filled(Attention(c))
    x = numbers(2, 7, 12)
    q, k, v = (z.view(2, 7, 3, 4).transpose(1, 2) for z in (x @ layer.qkv.weight.T).split(12, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 7, 12) @ layer.out.weight.T
    torch.testing.assert_close(plain_attention(layer, x, c, rope=False), y, rtol=1e-12, atol=1e-12)
