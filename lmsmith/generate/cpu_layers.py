"""The parts of a Transformer for `CpuDecoder`: blocks, linear maps and norms over its buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lmsmith.generate import kernels
from lmsmith.generate.cache import SlotCache
from lmsmith.generate.int8 import PAIRS, linear_int8
from lmsmith.generate.vectors import LANES
from lmsmith.generate.weights import matrix_of
from lmsmith.models.attention import QK_NORM_EPS, Attention
from lmsmith.models.gpt import Block
from lmsmith.models.layers import Norm

if TYPE_CHECKING:
    from lmsmith.generate.cpu import CpuDecoder

Array = npt.NDArray[Any]


class Layer:
    """One Transformer block."""

    def __init__(self, decoder: CpuDecoder, block: Block, index: int) -> None:
        config, attention = decoder.config, block.attention
        self.placement, self.parallel = block.placement, block.parallel
        self.norm_attention = norm_of(decoder, block.norm_attention)
        self.norm_feed_forward = norm_of(decoder, block.norm_feed_forward)
        self.qkv = Linear(decoder, attention.qkv)
        self.out = Linear(decoder, attention.out)
        self.up = Linear(decoder, block.feed_forward.up)
        self.down = Linear(decoder, block.feed_forward.down)
        self.qk_eps = -1.0
        if config.qk_norm:
            self.qk_eps = QK_NORM_EPS if config.qk_gain == "head" else config.norm_eps
        self.over_heads = attention.over_heads
        self.gains = _qk_gains(decoder, attention)
        self.turns = decoder.turns if config.has_rope(index) else decoder.zeros(0, 0, 0)
        self.scale = decoder.number(attention.scale)
        gate = attention.value_gate
        self.gate = None if gate is None else Linear(decoder, gate)
        key = str(index)
        tables = decoder.model.value_embeddings
        self.value_table = tables[key] if key in tables else None  # noqa: SIM401 - a ModuleDict
        capacity = min(config.context_length, attention.window or config.context_length)
        self.cache = SlotCache(
            decoder.n_slots, config.n_kv, capacity, config.width_head, decoder.number
        )

    def __call__(self, d: CpuDecoder, B: int, at: Array, slots: Array, ids: Sequence[int]) -> None:
        """Reads and writes d.x."""
        if self.placement == "post":
            self._attention(d, B, at, slots, ids, d.x, d.sublayer, add=False)
            d.x[:B] += d.sublayer[:B]
            self.norm_attention(d, B, d.x, d.x)
            self._feed_forward(d, B, d.x, d.sublayer, add=False)
            d.x[:B] += d.sublayer[:B]
            self.norm_feed_forward(d, B, d.x, d.x)
        elif self.placement == "output":
            d.h[:B] = d.x[:B]
            self._attention(d, B, at, slots, ids, d.x, d.sublayer, add=False)
            self.norm_attention(d, B, d.sublayer, d.sublayer)
            d.x[:B] += d.sublayer[:B]
            self._feed_forward(d, B, d.h if self.parallel else d.x, d.sublayer, add=False)
            self.norm_feed_forward(d, B, d.sublayer, d.sublayer)
            d.x[:B] += d.sublayer[:B]
        elif self.parallel:
            self.norm_attention(d, B, d.x, d.h)
            self._attention(d, B, at, slots, ids, d.h, d.sublayer, add=False)
            self.norm_feed_forward(d, B, d.x, d.h)
            d.x[:B] += d.sublayer[:B]
            self._feed_forward(d, B, d.h, d.x, add=True)
        else:
            self.norm_attention(d, B, d.x, d.h)
            self._attention(d, B, at, slots, ids, d.h, d.x, add=True)
            self.norm_feed_forward(d, B, d.x, d.h)
            self._feed_forward(d, B, d.h, d.x, add=True)

    def _attention(
        self,
        d: CpuDecoder,
        B: int,
        at: Array,
        slots: Array,
        ids: Sequence[int],
        x: Array,
        y: Array,
        *,
        add: bool,
    ) -> None:
        cache, K = self.cache, d.config.width_head
        self.qkv(d, B, x, d.qkv)
        if self.value_table is not None and self.gate is not None:
            self.gate(d, B, x, d.gates)
            gates = 2 / (1 + np.exp(-d.gates[:B, :, None]))
            table = self.value_table(torch.tensor(list(ids))).detach().numpy()
            d.qkv[:B, -cache.G * K :] += (gates * table.reshape(B, cache.G, K)).reshape(B, -1)
        norm = (self.qk_eps, self.over_heads, self.gains)
        kernels.place(d.qkv, B, K, at, slots, self.turns, *norm, d.q, cache.keys, cache.values)
        H, most = d.config.n_head, d.n_attending
        for b in range(0, B, most):
            kernels.attend(
                *(d.q[b * H :], min(most, B - b), K, at[b:], slots[b:], self.scale),
                *(cache.keys, cache.values, d.scores, d.attended[b:]),
            )
        self.out(d, B, d.attended, y, add=add)

    def _feed_forward(self, d: CpuDecoder, B: int, x: Array, y: Array, *, add: bool) -> None:
        kind = kernels.ACTIVATIONS[d.config.feed_forward]
        self.up(d, B, x, d.up)
        kernels.activate(d.up, B, d.config.width_ff, kind, d.activated)
        self.down(d, B, d.activated, y, add=add)


class Linear:
    """A linear map, or the output head."""

    def __init__(self, decoder: CpuDecoder, module: nn.Module) -> None:
        self.matrix, self.scale = matrix_of(module, LANES)
        self.in_integers = self.matrix.dtype == np.int8 and decoder.number == np.float32
        if self.in_integers:
            self.matrix, _ = matrix_of(module, PAIRS)
            decoder.rounding.reserve(self.matrix.shape[1])
        self.bias = numbers_of(decoder, getattr(module, "bias", None))

    def __call__(self, d: CpuDecoder, B: int, x: Array, y: Array, *, add: bool = False) -> None:
        """y = map(x), or y += map(x)."""
        products = d.products if add else y
        if self.in_integers:
            vectors, steps = d.rounding.vectors, d.rounding.steps
            linear_int8(
                *(self.matrix, self.scale, self.bias, x, B, vectors, steps, products, y, add)
            )
            return
        kernels.linear(self.matrix, self.scale, self.bias, x, B, products, y, add)


class Rounding:
    """Scratch for vectors that are rounded to 16 bits, and for their steps."""

    def __init__(self, n_rows: int) -> None:
        self.vectors = np.zeros((n_rows, 0), np.int16)
        self.steps = np.zeros(n_rows, np.float32)

    def reserve(self, width: int) -> None:
        """Makes room for vectors of this width."""
        if width > self.vectors.shape[1]:
            self.vectors = np.zeros((len(self.steps), width), np.int16)


class _Norm:
    """LayerNorm or RMSNorm."""

    def __init__(self, decoder: CpuDecoder, module: Norm) -> None:
        self.kind, self.eps = kernels.NORMS[module.kind], module.eps
        self.gain = numbers_of(decoder, module.weight)
        self.bias = numbers_of(decoder, module.bias)

    def __call__(self, d: CpuDecoder, B: int, x: Array, y: Array) -> None:
        """y = norm(x); x and y may be the same."""
        if self.kind == kernels.NORMS["none"]:
            if x is not y:
                y[:B] = x[:B]
            return
        D = d.config.d_model
        kernels.norm(x, y, B, D, self.kind, self.eps, self.gain, self.bias, d.ones, d.squares)


def norm_of(decoder: CpuDecoder, module: Any) -> Any:
    return None if module is None else _Norm(decoder, module)


def _qk_gains(decoder: CpuDecoder, attention: Attention) -> Array:
    """Gains of queries and keys, (H + G, K); (0, 0) for attention without QK-norm."""
    H, G, K = attention.n_head, attention.n_kv, attention.d_head
    if attention.qk_gain is None and attention.q_gain is None:
        return decoder.zeros(0, 0)
    gains = decoder.zeros(H + G, K) + 1
    if attention.qk_gain is not None:
        gains[:H] = numbers_of(decoder, attention.qk_gain)[:, None]
    else:  # K numbers for all heads, or K for each
        gains[:H] = numbers_of(decoder, attention.q_gain).reshape(-1, K)
        gains[H:] = numbers_of(decoder, attention.k_gain).reshape(-1, K)
    return gains


def numbers_of(decoder: CpuDecoder, parameter: Tensor | None) -> Array:
    """A vector of parameters; empty for None."""
    if parameter is None:
        return decoder.zeros(0)
    return parameter.detach().numpy().astype(decoder.number)
