"""Layers of the model against their definitions, written with loops over single positions.

These are independent of the model's own code: the KV cache, packed batches and decoding are
compared with the model, so a mistake in the model itself would go unnoticed there.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lmsmith.models.attention import Attention, Layout
from lmsmith.models.layers import FeedForward, Norm
from lmsmith.models.rotary import Rotary
from lmsmith.verify.models import T, device, small_model
from lmsmith.verify.registry import apart, equivalence


@equivalence("attention", "RoPE, groups, windows; loops", bound=1e-12, cuda=1e-11)
def attention() -> float:
    """Each query on its own, with every key that it may see."""
    worst = 0.0
    for window in (0, 5):
        model = small_model("llama", window=window, window_pattern="S" if window else "")
        layer = model.blocks[0].attention
        assert isinstance(layer, Attention)
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(2, T, 24, generator=generator, dtype=torch.float64).to(device())
        layout = Layout.of(model.config, T, x.device, None)
        with torch.no_grad():
            found = layer(x, Rotary.make(model.config), None, 0, layout)
        for row in range(2):
            expected = _attention_by_loops(layer, _numbers(x[row]), model.config.rope_base)
            worst = max(worst, apart(found[row], expected))
    return worst


@equivalence("norms", "LayerNorm, RMSNorm; definitions", bound=1e-12, cuda=1e-11)
def norms() -> float:
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    layer, root = (
        Norm(small_model(name).config, 24, gain=True).double() for name in ("gpt2", "llama")
    )
    for p in (*layer.parameters(), *root.parameters()):
        p.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(p)))
    y, x, layer, root = x.numpy(), x.to(device()), layer.to(device()), root.to(device())
    centred = y - y.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + layer.eps)
    worst = apart(layer(x), expected * _numbers(layer.weight) + _numbers(layer.bias))
    expected = y / np.sqrt((y**2).mean(1, keepdims=True) + root.eps)
    return max(worst, apart(root(x), expected * _numbers(root.weight)))


@equivalence("feed-forward", "SwiGLU, GELU; definitions", bound=1e-12, cuda=1e-11)
def feed_forward() -> float:
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    worst = 0.0
    for name in ("llama", "gpt2"):
        layer = small_model(name).blocks[0].feed_forward
        assert isinstance(layer, FeedForward)
        up, down = _numbers(layer.up.weight), _numbers(layer.down.weight)
        h = x.numpy() @ up.T
        if name == "llama":
            gate, h = np.split(h, 2, axis=-1)
            expected = (gate / (1 + np.exp(-gate)) * h) @ down.T
        else:
            h = h + _numbers(layer.up.bias)
            h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            expected = h @ down.T + _numbers(layer.down.bias)
        worst = max(worst, apart(layer(x.to(device())), expected))
    return worst


def _numbers(x: torch.Tensor | None) -> np.ndarray:
    assert x is not None
    return np.asarray(x.detach().cpu())


def _attention_by_loops(layer: Attention, x: np.ndarray, base: float) -> np.ndarray:
    """Vaswani et al. 2017, equation 1, one query at a time, with RoPE (Su et al. 2021)."""
    H, G, K = layer.n_head, layer.n_kv, layer.d_head
    weight, out = (_numbers(w) for w in (layer.qkv.weight, layer.out.weight))
    qkv = (x @ weight.T).reshape(len(x), H + 2 * G, K)
    result = np.zeros((len(x), H, K))
    for t in range(len(x)):
        for h in range(H):
            g = h // (H // G)  # query heads in groups of neighbours
            first = max(0, t - layer.window + 1) if layer.window else 0
            q = _rotated(qkv[t, h], t, base)
            scores = np.array(
                [q @ _rotated(qkv[s, H + g], s, base) / math.sqrt(K) for s in range(first, t + 1)]
            )
            p = np.exp(scores - scores.max())
            p /= p.sum()
            result[t, h] = sum(p[s - first] * qkv[s, H + G + g] for s in range(first, t + 1))
    return np.asarray(result.reshape(len(x), H * K) @ out.T)


def _rotated(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """Rotates pairs of adjacent numbers by position * base^(-2i/K)."""
    y = x.copy()
    for i in range(0, len(x), 2):
        angle = position * base ** (-i / len(x))
        a, b = x[i], x[i + 1]
        y[i] = a * math.cos(angle) - b * math.sin(angle)
        y[i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return y
