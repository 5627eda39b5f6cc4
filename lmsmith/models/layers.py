"""The parts of a Transformer block: linear maps, norms, positions, attention, feed-forward, the key-value cache.

Each part is chosen by `ModelConfig`; `gpt.py` puts them together. Shapes: B batch, T time, D d_model, H heads,
K d_head, F d_ff. Nothing here knows of optimisers, ranks or files.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.config import ModelConfig
from lmsmith.models import kernels

QK_NORM_EPS = 1e-5


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, with or without gain and bias."""

    def __init__(self, config: ModelConfig, width: int, *, gain: bool | None = None) -> None:
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        gain = config.norm_gain if gain is None else gain
        self.weight = nn.Parameter(torch.ones(width)) if gain else None
        self.bias = nn.Parameter(torch.zeros(width)) if gain and config.bias and self.kind == "layernorm" else None

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        if self.kind == "layernorm":
            return F.layer_norm(x, (x.size(-1),), self.weight, self.bias, self.eps)
        return kernels.rms_norm(x, self.weight, self.eps)


class NgramEmbedding(nn.Module):
    """Embeds the last n tokens at every position by hashing them into a table: an n-gram model at the input.

    A table look-up costs no matrix product, so it gives a small model at once what it would take layers and many
    tokens to learn: what usually follows these two, three or four tokens. (Bigram tables in the modded-nanogpt
    speedrun; hashed n-grams in Huang et al. 2025, "Over-Tokenized Transformer".) Positions before the start count as
    one special token. Tables start at zero: the model begins as if they were not there.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.orders = config.ngram_orders
        self.n_rows = config.ngram_table_size
        self.dropout = config.ngram_dropout
        self.tables = nn.ModuleList(nn.Embedding(self.n_rows, config.d_model) for _ in self.orders)

    def forward(self, ids: Int[Tensor, "B T"], before: Int[Tensor, "B n"]) -> Float[Tensor, "B T D"]:
        """`before`: the tokens just before `ids`, `vocab_size` where there are none."""
        rows = self.rows(ids, before)
        total = self.tables[0](rows[0])
        for table, row in zip(self.tables[1:], rows[1:], strict=True):
            total = total + table(row)
        if self.dropout and self.training:  # a position is told all of its n-grams or none
            total = total * F.dropout(total.new_ones(*ids.shape, 1), self.dropout)
        return total

    def rows(self, ids: Int[Tensor, "B T"], before: Int[Tensor, "B n"]) -> list[Int[Tensor, "B T"]]:
        """For each order, the table row of the n-gram ending at each position (multiplicative hashing, mod 2**32)."""
        T = ids.size(1)
        padded = torch.cat([before, ids], dim=1)
        key = ids + 1
        found = []
        for back in range(1, max(self.orders)):
            start = padded.size(1) - T - back
            key = (key * 0x9E3779B1 + padded[:, start : start + T] + 1) & 0xFFFFFFFF
            if back + 1 in self.orders:
                mixed = (key ^ (key >> 15)) * 0x85EBCA6B & 0xFFFFFFFF
                found.append((mixed ^ (mixed >> 13)) % self.n_rows)
        return found

    @property
    def n_before(self) -> int:
        return max(self.orders) - 1


@dataclass
class LayerCache:
    """Keys and values of the positions already read, in one layer."""

    keys: Float[Tensor, "B H max K"]
    values: Float[Tensor, "B H max K"]


@dataclass
class State:
    """What a model carries from one call to the next: `position` tokens have been read."""

    layers: list[LayerCache]
    before: Int[Tensor, "B n"]
    position: int = 0


@dataclass
class Rotary:
    """Rotary positions (Su et al. 2021, RoFormer): pairs of neighbouring numbers turned by position times frequency."""

    turns: Tensor = field(repr=False)  # complex128 (context_length, 1, K/2)
    _near: Tensor | None = field(default=None, repr=False)  # the same where, and as precise as, it was last needed

    @classmethod
    def make(cls, config: ModelConfig) -> "Rotary":
        frequency = config.rope_base ** (-torch.arange(0, config.d_head, 2, dtype=torch.float64) / config.d_head)
        angle = torch.outer(torch.arange(config.context_length, dtype=torch.float64), frequency)
        return cls(torch.polar(torch.ones_like(angle), angle).unsqueeze(1))

    def __call__(self, x: Float[Tensor, "B T H K"], start: int) -> Float[Tensor, "B T H K"]:
        wide = x if x.dtype == torch.float64 else x.float()
        kind = torch.complex128 if wide.dtype == torch.float64 else torch.complex64
        if self._near is None or self._near.device != x.device or self._near.dtype != kind:
            self._near = self.turns.to(kind).to(x.device)
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        turned = pairs * self._near[start : start + x.size(1)]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017, section 3.2), with grouped queries if n_kv_head < n_head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv, self.d_head = config.n_head, config.n_kv, config.d_head
        self.dropout = config.attention_dropout
        self.scale = 1 / math.sqrt(config.d_head)
        self.qkv = nn.Linear(config.d_model, (self.n_head + 2 * self.n_kv) * self.d_head, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        # Normalised queries and keys have products of at most d_head; a learnt factor sets the temperature.
        self.qk_gain = nn.Parameter(torch.ones(self.n_head)) if config.qk_norm else None

    def forward(
        self, x: Float[Tensor, "B T D"], rotary: Rotary | None, cache: LayerCache | None, position: int
    ) -> Float[Tensor, "B T D"]:
        B, T, _ = x.shape
        n_qk = self.n_head + self.n_kv
        both, v = self.qkv(x).view(B, T, -1, self.d_head).split((n_qk, self.n_kv), dim=2)  # (B, T, H, K)
        if self.qk_gain is not None:  # queries and keys are adjacent in memory: normalised in one pass
            both = kernels.rms_norm(both, None, QK_NORM_EPS)
        if rotary is not None:
            both = rotary(both, position)
        q, k = both.split((self.n_head, self.n_kv), dim=2)
        if self.qk_gain is not None:
            q = q * self.qk_gain.to(q.dtype).unsqueeze(-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, K)
        if cache is None:
            y = self._within(q, self._for_each_head(k), self._for_each_head(v))
        else:
            cache.keys[:, :, position : position + T] = k
            cache.values[:, :, position : position + T] = v
            k, v = cache.keys[:, :, : position + T], cache.values[:, :, : position + T]
            y = self._from_cache(q, self._for_each_head(k), self._for_each_head(v), position)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))

    def _for_each_head(self, x: Float[Tensor, "B G T K"]) -> Float[Tensor, "B H T K"]:
        return x if self.n_kv == self.n_head else x.repeat_interleave(self.n_head // self.n_kv, dim=1)

    def _within(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a whole window on itself."""
        dropout = self.dropout if self.training else 0.0
        if q.device.type == "cpu":
            N, T, K = q.size(0) * q.size(1), q.size(2), q.size(3)
            q_, k_, v_ = (x.reshape(N, T, K) for x in (q, k, v))
            return kernels.causal_attention(q_, k_, v_, self.scale, dropout).view(q.shape)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=self.scale)

    def _from_cache(self, q: Tensor, k: Tensor, v: Tensor, position: int) -> Tensor:
        """Attention of new positions on all positions so far."""
        T = q.size(2)
        seen = torch.ones(T, position + T, dtype=torch.bool, device=q.device).tril_(position)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if T == 1 else seen, scale=self.scale)


class FeedForward(nn.Module):
    """Position-wise feed-forward: down(activation(up(x))), or gated (Shazeer 2020, eq. 6) for swiglu."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.feed_forward
        self.gated = self.kind == "swiglu"
        width = config.width_ff
        self.up = nn.Linear(config.d_model, 2 * width if self.gated else width, bias=config.bias)
        self.down = nn.Linear(width, config.d_model, bias=config.bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        h = self.up(x)
        if self.gated:
            gate, h = h.chunk(2, dim=-1)
            h = F.silu(gate) * h
        elif self.kind == "relu2":
            h = kernels.relu2(h)
        elif self.kind == "gelu-tanh":
            h = kernels.gelu_tanh(h)
        elif self.kind == "gelu":
            h = F.gelu(h)
        else:
            h = F.silu(h)
        return self.down(h)
