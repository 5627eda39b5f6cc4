"""Attention against a plain implementation head by head, for every kernel and every mask."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith.models import kernels
from lmsmith.models.attention import Attention, LayerCache, Layout, Rotary, mask_from
from lmsmith.models.gpt_config import GPTConfig

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


def turned(x: Tensor, base: float) -> Tensor:
    """RoPE one number at a time: pair i of position t is rotated by t base**(-2i/K)."""
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


def test_rotary_by_real_numbers_as_compilers_and_gpus_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = numbers(2, 9, 3, 4)
    found = Rotary.make(config(rope_base=100.0))(x, 0)
    torch.testing.assert_close(found, turned(x, 100.0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("scaling", ["linear", "llama3"])
def test_rotary_with_rope_scaling(scaling: Any) -> None:
    """Each frequency separately, by how many turns it makes within the original context."""
    original = 40 if scaling == "llama3" else 0
    scaled = config(
        d_model=36, rope_scaling=scaling, rope_factor=8.0, rope_original_context=original
    )
    found = torch.angle(Rotary.make(scaled).turns[1, 0]).tolist()
    regions = set()
    for frequency, stretched in zip((10_000.0 ** (-i / 6) for i in range(6)), found, strict=True):
        n_turns = original * frequency / (2 * math.pi)
        region = (
            "all" if scaling == "linear" or n_turns < 1 else "none" if n_turns > 4 else "between"
        )
        kept = {"all": 0.0, "none": 1.0}.get(region, (n_turns - 1) / 3)
        assert stretched == pytest.approx(frequency * ((1 - kept) / 8 + kept), rel=1e-12)
        regions.add(region)
    assert regions == ({"all"} if scaling == "linear" else {"all", "between", "none"})


def test_rotary_products_depend_only_on_the_distance() -> None:
    rotary = Rotary.make(config())
    q, k = (numbers(1, 1, 1, 4, seed=seed).expand(1, 9, 1, 4) for seed in (1, 2))
    products = torch.einsum("tk,sk->ts", rotary(q, 0)[0, :, 0], rotary(k, 0)[0, :, 0])
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(
            diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12
        )
    assert len(products.round(decimals=6).unique()) == 17


def test_rotary_keeps_its_precision_and_the_dtype() -> None:
    """A model that ran in float32 and then runs in float64 gets float64 angles again."""
    rotary = Rotary.make(config())
    x = numbers(1, 9, 3, 4)
    assert rotary(x.float(), 0).dtype == torch.float32
    assert rotary(x.bfloat16(), 0).dtype == torch.bfloat16
    wanted = turned(x, 10_000.0)
    torch.testing.assert_close(rotary(x, 0), wanted, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rotary(x.float(), 0).double(), wanted, rtol=1e-5, atol=1e-6)


def may_see(T: int, window: int = 0, documents: Tensor | None = None) -> Tensor:
    """Pair by pair, (B, T, T): a query sees at most `window` keys, up to itself, of its own
    document.
    """
    B = 1 if documents is None else len(documents)
    seen = torch.zeros(B, T, T, dtype=torch.bool)
    for b, q, k in np.ndindex(B, T, T):
        seen[b, q, k] = k <= q and (not window or q - k < window)
        if documents is not None:
            seen[b, q, k] &= bool((documents[b, k : q + 1] == documents[b, q]).all())
    return seen


def plain_attention(
    layer: Attention,
    x: Tensor,
    c: GPTConfig,
    rope: bool,
    seen: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Attention head by head. `seen` (B, T, T) is the mask; without it, the causal mask."""
    T, K = x.size(1), c.width_head
    rows = x @ layer.qkv.weight.T + (layer.qkv.bias if c.bias else 0)
    heads = [rows[..., i * K : (i + 1) * K] for i in range(c.n_head + 2 * c.n_kv)]
    queries, keys, valued = (
        heads[: c.n_head],
        heads[c.n_head : c.n_head + c.n_kv],
        heads[c.n_head + c.n_kv :],
    )
    if values is not None:
        gates = 2 / (1 + torch.exp(-x[..., : c.d_value_gate] @ layer.value_gate.weight.T))
        valued = [
            v + gates[..., [g]] * values[..., g * K : (g + 1) * K] for g, v in enumerate(valued)
        ]
    seen = may_see(T) if seen is None else seen
    found = []
    for h in range(c.n_head):
        q, k, v = queries[h], keys[h * c.n_kv // c.n_head], valued[h * c.n_kv // c.n_head]
        if c.qk_norm:
            q, k = (z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() for z in (q, k))
        if rope:
            q, k = (turned(z.unsqueeze(2), c.rope_base).squeeze(2) for z in (q, k))
        if c.qk_norm:
            q = q * layer.qk_gain[h]
        scores = (q @ k.mT / math.sqrt(K)).masked_fill(~seen, -math.inf)
        found.append(torch.softmax(scores, -1) @ v)
    return torch.cat(found, -1) @ layer.out.weight.T + (layer.out.bias if c.bias else 0)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("n_kv_head", [0, 1, 2])
@pytest.mark.parametrize("rope", [False, True])
def test_attention(rope: bool, n_kv_head: int, qk_norm: bool, norm: str) -> None:
    c = config(
        n_head=4,
        d_model=16,
        n_kv_head=n_kv_head,
        qk_norm=qk_norm,
        norm=norm,
        bias=norm == "layernorm",
        rope_base=50.0,
    )
    layer = filled(Attention(c))
    rotary = Rotary.make(c) if rope else None
    x = numbers(2, 7, 16)
    wanted = plain_attention(layer, x, c, rope)
    torch.testing.assert_close(layer(x, rotary, None, 0), wanted, rtol=1e-12, atol=1e-12)
    shape = (2, c.n_kv, c.context_length, c.width_head)
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
    weights = layer(torch.eye(4, 12, dtype=torch.float64)[None], None, None, 0)[
        0, 3, :4
    ]  # the first head's
    odds = (weights.max() / weights.min()).log()
    assert 0 < float(odds.detach()) <= 2 * math.sqrt(c.width_head) + 1e-9


def test_attention_dropout_only_in_training() -> None:
    layer = filled(Attention(config(attention_dropout=0.5)))
    x = numbers(1, 9, 12)
    without = plain_attention(layer, x, config(), rope=False)
    torch.testing.assert_close(layer.eval()(x, None, None, 0), without, rtol=1e-12, atol=1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (layer.train()(x, None, None, 0) for _ in range(2))
    assert not torch.allclose(first, second)


def test_functional_reference_agrees_with_torch() -> None:
    """Checks the plain attention above against PyTorch's."""
    c = config(qk_norm=False)
    layer = filled(Attention(c))
    x = numbers(2, 7, 12)
    q, k, v = (z.view(2, 7, 3, 4).transpose(1, 2) for z in (x @ layer.qkv.weight.T).split(12, -1))
    y = (
        F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 7, 12)
        @ layer.out.weight.T
    )
    torch.testing.assert_close(plain_attention(layer, x, c, rope=False), y, rtol=1e-12, atol=1e-12)


# Masks

DOCUMENTS = torch.tensor(
    [[0, 0, 0, 1, 1, 2, 2, 2, 2], [3, 4, 4, 4, 4, 4, 4, 7, 3]]
)  # numbers may jump and come back
WINDOWS = [0, 1, 2, 4, 9, 50]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("packed", [False, True])
def test_masks_equal_the_rule_pair_by_pair(window: int, packed: bool) -> None:
    c = config(window=window, window_pattern="S" if window else "")
    layout = Layout.of(c, 9, torch.device("cpu"), DOCUMENTS if packed else None)
    seen = may_see(9, window, DOCUMENTS if packed else None)
    if not packed and not 0 < window < 9:
        assert layout is None  # nothing to mask: the plain path
    else:
        assert layout is not None
        assert torch.equal(layout.masks[window].dense().squeeze(1), seen)
    if packed:
        assert layout.positions.tolist() == [
            [0, 1, 2, 0, 1, 0, 1, 2, 3],
            [0, 0, 1, 2, 3, 4, 5, 0, 0],
        ]


@pytest.mark.parametrize("block", [2, 3, 128])
@pytest.mark.parametrize("n_kv_head", [0, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_masked_attention(
    window: int, packed: bool, n_kv_head: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient, for documents that begin within, at and between blocks."""
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", block)
    c = config(
        n_head=4,
        d_model=16,
        n_kv_head=n_kv_head,
        window=window,
        window_pattern="S" if window else "",
    )
    layer, x = filled(Attention(c)), numbers(2, 9, 16).requires_grad_()
    documents = DOCUMENTS if packed else None
    layout = Layout.of(c, 9, x.device, documents)
    wanted = plain_attention(layer, x, c, False, may_see(9, window, documents))
    found = layer(x, None, None, 0, layout)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    direction, inputs = numbers(2, 9, 16, seed=7), [x, *layer.parameters()]
    pairs = zip(
        *(torch.autograd.grad((y * direction).sum(), inputs) for y in (found, wanted)), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 4, 9, 50])
@pytest.mark.parametrize("cuts", [(3, 1, 5), (1,) * 9, (9,), (1, 8)])
def test_windows_from_the_cache(window: int, cuts: tuple[int, ...]) -> None:
    c = config(window=window, window_pattern="S")
    layer, x, rotary = filled(Attention(c)), numbers(2, 9, 12), Rotary.make(c)
    cache = LayerCache(*(torch.full((2, 3, 9, 4), math.nan).double() for _ in range(2)))
    with torch.no_grad():
        wanted = plain_attention(layer, x, c, True, may_see(9, window))
        starts = np.cumsum([0, *cuts])
        parts = [
            layer(part, rotary, cache, int(at))
            for at, part in zip(starts, x.split(cuts, 1), strict=False)
        ]
    torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=1e-12, atol=1e-12)


def test_rotary_at_given_positions() -> None:
    rotary, x = Rotary.make(config(rope_base=100.0)), numbers(2, 9, 3, 4)
    whole = turned(x[:, :1].expand(2, 9, 3, 4), 100.0)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 8, 2, 3]] * 2)
    found = rotary(x[:, :1].expand(2, 9, 3, 4), 0, positions)
    torch.testing.assert_close(found, whole[:, positions[0]], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("n_kv_head", [0, 1, 2])
def test_value_embeddings_are_added_by_gates(n_kv_head: int) -> None:
    c = config(n_head=4, d_model=40, n_kv_head=n_kv_head, value_embedding_every=1)
    layer, x = filled(Attention(c)), numbers(2, 7, 40)
    values = numbers(2, 7, c.n_kv * c.width_head, seed=5)
    assert tuple(layer.value_gate.weight.shape) == (c.n_kv, 32)
    wanted = plain_attention(layer, x, c, False, values=values)
    torch.testing.assert_close(
        layer(x, None, None, 0, None, values), wanted, rtol=1e-12, atol=1e-12
    )
    cache = LayerCache(*(torch.zeros(2, c.n_kv, 9, 10, dtype=torch.float64) for _ in range(2)))
    with torch.no_grad():
        parts = [
            layer(x[:, a:b], None, cache, a, None, values[:, a:b])
            for a, b in ((0, 3), (3, 4), (4, 7))
        ]
    torch.testing.assert_close(torch.cat(parts, 1), wanted.detach(), rtol=1e-12, atol=1e-12)


UNCOMPILED = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile:UserWarning"
)


@UNCOMPILED
@pytest.mark.parametrize("window", WINDOWS)
def test_the_mask_for_flex_attention(window: int) -> None:
    """FlexAttention, uncompiled on a CPU (so without a gradient), gives the same values for the
    mask.
    """
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    c = config(window=window, window_pattern="S" if window else "")
    layout = Layout.of(c, 9, torch.device("cpu"), DOCUMENTS)
    assert layout is not None
    mask = layout.masks[window]
    q, k, v = (numbers(2, 3, 9, 16, seed=seed).float() for seed in (1, 2, 3))
    found = flex.flex_attention(
        q, k, v, block_mask=mask_from(mask.first, flex=True).blocks, scale=0.3
    )
    wanted = F.scaled_dot_product_attention(q, k, v, mask.dense(), scale=0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    flat = [x.reshape(6, 9, 16) for x in (q, k, v)]
    ours = kernels.causal_attention(*flat, 0.3, 0.0, mask.first).view(q.shape)
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-6)


@UNCOMPILED
def test_a_window_alone_is_one_mask_for_all_rows() -> None:
    layout = Layout.of(config(window=3, window_pattern="S"), 9, torch.device("cpu"), None)
    assert layout is not None
    assert layout.positions is None
    assert tuple(layout.masks[3].first.shape) == (1, 9)
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q, k, v = (numbers(2, 3, 9, 16, seed=seed).float() for seed in (1, 2, 3))
    found = flex.flex_attention(
        q, k, v, block_mask=mask_from(layout.masks[3].first, flex=True).blocks, scale=0.3
    )
    wanted = F.scaled_dot_product_attention(q, k, v, may_see(9, 3).unsqueeze(1), scale=0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 40, 200])
@pytest.mark.parametrize("packed", [False, True])
def test_masked_attention_on_a_gpu(packed: bool, window: int, dtype: torch.dtype) -> None:
    """Compiled FlexAttention against the CPU kernel in float64, in value and gradient."""
    c = GPTConfig(
        n_layer=1,
        n_head=4,
        n_kv_head=2,
        d_model=128,
        context_length=300,
        window=window,
        window_pattern="S" * (window > 0),
    )
    layer, x = filled(Attention(c)), numbers(3, 300, 128)
    documents = (numbers(3, 300, seed=8) > 1.5).cumsum(1) if packed else None
    direction = numbers(3, 300, 128, seed=7)

    def value_and_gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
        there = [t.to(device, dtype) for t in (x, direction)]
        there[0].requires_grad_()
        layer.to(device, dtype)
        layout = Layout.of(
            c, 300, there[0].device, None if documents is None else documents.to(device)
        )
        y = layer(there[0], Rotary.make(c), None, 0, layout)
        return [y, *torch.autograd.grad((y * there[1]).sum(), [there[0], *layer.parameters()])]

    wanted = value_and_gradients("cpu", torch.float64)
    tolerance = 2e-3 if dtype == torch.float32 else 0.05
    for found, exact in zip(value_and_gradients("cuda", dtype), wanted, strict=True):
        assert float((found.cpu().double() - exact).norm()) <= tolerance * float(exact.norm())
