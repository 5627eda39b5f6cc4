"""Causal self-attention: masks and the KV cache.

Every query sees a contiguous range of keys that ends at its own position. The range starts at the
beginning of the row, at the edge of a sliding window, or at the beginning of the query's own
document if several are packed into a row. So one number per query describes any mask: the earliest
key that it sees (`Mask.first`).

On CPUs, `kernels.causal_attention` computes the result. On other devices it is PyTorch's
scaled_dot_product_attention, or, if a mask is needed and the GPU supports it, FlexAttention (Dong
et al. 2024), which skips blocks that no query sees.

Shapes: B batch, T time, D d_model, H query heads, G key-value heads, K d_head.
"""

import functools
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lmsmith.models import kernels
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.rotary import Rotary

QK_NORM_EPS = 1e-5


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017, section 3.2).

    With n_kv_head < n_head it is grouped-query attention (Ainslie et al. 2023).
    """

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.n_head, self.n_kv, self.d_head = config.n_head, config.n_kv, config.width_head
        self.dropout = config.attention_dropout
        self.window = config.window_of(layer)
        self.scale = 1 / math.sqrt(self.d_head)
        biases = config.attention_biases
        n_rows = (self.n_head + 2 * self.n_kv) * self.d_head
        self.qkv = nn.Linear(config.d_model, n_rows, bias=biases != "none")
        self.out = nn.Linear(self.n_head * self.d_head, config.d_model, bias=biases == "all")
        # Products of normalized queries and keys are at most d_head. A learned gain sets the
        # temperature: one per head, or one per number of the normalized vectors.
        kind = config.qk_gain if config.qk_norm else None
        self.qk_gain = nn.Parameter(torch.ones(self.n_head)) if kind == "head" else None
        self.over_heads, self.norm_eps = kind == "projection", config.norm_eps
        self.q_gain = self.k_gain = None
        if kind in ("dimension", "projection"):
            n_q, n_k = (self.n_head, self.n_kv) if self.over_heads else (1, 1)
            self.q_gain = nn.Parameter(torch.ones(n_q * self.d_head))
            self.k_gain = nn.Parameter(torch.ones(n_k * self.d_head))
        gated = config.has_value_embedding(layer)
        self.value_gate = nn.Linear(config.d_value_gate, self.n_kv, bias=False) if gated else None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: Rotary | None,
        cache: "LayerCache | None",
        position: int,
        layout: "Layout | None" = None,
        values: Float[Tensor, "B T GK"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Returns the attention output for the layer's input `x`.

        `cache` holds the `position` tokens read before, and is updated in place. `layout` says
        where packed documents begin. `values` are the value embeddings of the tokens.
        """
        B, T, _ = x.shape
        q, k, v = self._queries_keys_values(x, rotary, position, layout, values)
        if cache is None:
            y = self._within(q, self._for_each_head(k), self._for_each_head(v), layout)
        else:
            y = cache.attend(q, k, v, position, self.window, self.scale)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))

    def weights(
        self,
        x: Float[Tensor, "B T D"],
        rotary: "Rotary | None",
        layout: "Layout | None" = None,
    ) -> Float[Tensor, "B H T T"]:
        """The attention weights of each query (third axis) over all keys, to look at them.

        `forward` computes the same without holding all weights in memory.
        """
        q, k, _ = self._queries_keys_values(x, rotary, 0, layout, None)
        scores = self.scale * (q @ self._for_each_head(k).mT)
        mask = layout.masks.get(self.window) if layout else None
        seen = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril()
        seen = seen if mask is None else mask.dense()
        scores = scores.masked_fill(~seen, float("-inf"))
        return torch.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32))

    def _queries_keys_values(
        self,
        x: Float[Tensor, "B T D"],
        rotary: "Rotary | None",
        position: int,
        layout: "Layout | None",
        values: Float[Tensor, "B T GK"] | None,
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]]:
        """Queries, keys and values, normalized and rotated."""
        B, T, _ = x.shape
        n_qk = self.n_head + self.n_kv
        qkv = self.qkv(x).view(B, T, -1, self.d_head)  # (B, T, H + 2 G, K)
        both, v = qkv.split((n_qk, self.n_kv), dim=2)
        if self.qk_gain is not None:
            # Queries and keys are adjacent in memory, so one pass normalizes both.
            both = kernels.rms_norm(both, None, QK_NORM_EPS)
        elif self.q_gain is not None:
            q, k = both.split((self.n_head, self.n_kv), dim=2)
            both = torch.cat([self._normed(q, self.q_gain), self._normed(k, self.k_gain)], dim=2)
        if rotary is not None:
            both = rotary(both, position, layout.positions if layout else None)
        q, k = both.split((self.n_head, self.n_kv), dim=2)
        if self.qk_gain is not None:
            q = q * self.qk_gain.to(q.dtype).unsqueeze(-1)
        if self.value_gate is not None and values is not None:
            gate_input = x[..., : self.value_gate.in_features]
            gate = 2 * torch.sigmoid(self.value_gate(gate_input))  # (B, T, G)
            v = v + gate.unsqueeze(-1) * values.to(v.dtype).view(v.shape)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _normed(
        self, x: Float[Tensor, "B T H K"], gain: Float[Tensor, " n"] | None
    ) -> Float[Tensor, "B T H K"]:
        """RMS norm of each head, or of all heads together, with a gain per number."""
        if self.over_heads:
            return kernels.rms_norm(x.flatten(-2), gain, self.norm_eps).view(x.shape)
        return kernels.rms_norm(x, gain, self.norm_eps)

    def _for_each_head(self, x: Float[Tensor, "B G T K"]) -> Float[Tensor, "B H T K"]:
        return _repeated(x, self.n_head)

    def _within(self, q: Tensor, k: Tensor, v: Tensor, layout: "Layout | None") -> Tensor:
        """Attention of a row on itself, without a cache."""
        mask = layout.masks.get(self.window) if layout else None
        dropout = self.dropout if self.training else 0.0
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            N, T, K = q.size(0) * q.size(1), q.size(2), q.size(3)
            q_, k_, v_ = (x.reshape(N, T, K) for x in (q, k, v))
            first, blocks = (
                (None, None) if mask is None else (mask.first, mask.query_blocks(q.dtype))
            )
            return kernels.causal_attention(q_, k_, v_, self.scale, dropout, first, blocks).view(
                q.shape
            )
        if mask is None:
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=self.scale
            )
        if mask.blocks is not None and q.dtype != torch.float64:
            return _compiled_flex()(q, k, v, block_mask=mask.blocks, scale=self.scale)
        return F.scaled_dot_product_attention(
            q, k, v, mask.dense(), dropout_p=dropout, scale=self.scale
        )


@dataclass
class LayerCache:
    """The KV cache of one layer: keys and values read so far. It grows as needed."""

    keys: Float[Tensor, "B G max K"]
    values: Float[Tensor, "B G max K"]

    def attend(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B G T K"],
        v: Float[Tensor, "B G T K"],
        position: int,
        window: int,
        scale: float,
    ) -> Float[Tensor, "B H T K"]:
        """Stores k and v at `position`. Returns attention of the new positions on themselves and
        on the positions before them.
        """
        T = q.size(2)
        k, v, n_before = self.extended(k, v, position, window)
        k, v = _repeated(k, q.size(1)), _repeated(v, q.size(1))
        seen = torch.ones(T, n_before + T, dtype=torch.bool, device=q.device).tril_(n_before)
        if window:
            seen = seen.triu_(n_before - window + 1)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if T == 1 else seen, scale=scale
        )

    def extended(
        self, k: Tensor, v: Tensor, position: int, window: int
    ) -> tuple[Tensor, Tensor, int]:
        """Stores k and v at `position`. Returns all keys and values that the new positions see, and
        how many of them come before `position`.
        """
        end = position + k.size(2)
        if end > self.keys.size(2):
            self.keys, self.values = (self._longer(old, end) for old in (self.keys, self.values))
        self.keys[:, :, position:end] = k
        self.values[:, :, position:end] = v
        low = max(0, position - window + 1) if window else 0
        return self.keys[:, :, low:end], self.values[:, :, low:end], position - low

    @staticmethod
    def _longer(old: Tensor, length: int) -> Tensor:
        """At least doubles the length, so that all copies together cost no more than the cache."""
        n_new = max(length, 2 * old.size(2)) - old.size(2)
        return torch.cat([old, old.new_zeros(*old.shape[:2], n_new, old.size(3))], dim=2)


def _repeated(x: Float[Tensor, "B G T K"], n_head: int) -> Float[Tensor, "B H T K"]:
    """Repeats key-value heads, one copy per query head (grouped-query attention)."""
    n_kv = x.size(1)
    return x if n_kv == n_head else x.repeat_interleave(n_head // n_kv, dim=1)


@dataclass
class State:
    """The state of a Transformer: KV caches, tokens for n-gram tables, number of tokens read."""

    layers: list[LayerCache]
    before: Int[Tensor, "B n"]
    position: int = 0
    layout: "Layout | None" = None  # positions of the rows, if they differ

    def advance(self, ids: Int[Tensor, "B T"]) -> None:
        """Counts tokens that all layers have read."""
        self.position += ids.size(1)
        self.before = torch.cat([self.before, ids], dim=1)[:, ids.size(1) :]


@dataclass
class Mask:
    """The keys that each query sees: from `first` to its own position.

    If `first` has a single row, it applies to the whole batch.
    """

    first: Int[Tensor, "B T"]
    blocks: Any = field(default=None, repr=False)  # FlexAttention's BlockMask, if it is used
    _query_blocks: dict[torch.dtype, list[kernels.Block]] = field(default_factory=dict, repr=False)

    def query_blocks(self, dtype: torch.dtype) -> list[kernels.Block]:
        """The blocks of `kernels.causal_attention`, computed once for all layers of a pass."""
        if dtype not in self._query_blocks:
            self._query_blocks[dtype] = kernels.blocks_of(self.first.size(1), self.first, dtype)
        return self._query_blocks[dtype]

    def dense(self) -> Bool[Tensor, "B 1 T T"]:
        at = torch.arange(self.first.size(1), device=self.first.device)
        return ((at <= at.unsqueeze(1)) & (at >= self.first.unsqueeze(-1))).unsqueeze(1)


def mask_from(first: Int[Tensor, "B T"], *, flex: bool) -> Mask:
    """Returns the mask for `first`; with `flex`, including FlexAttention's block mask.

    The block mask marks which blocks of 128 x 128 are empty.
    """
    if not flex:
        return Mask(first)
    from torch.nn.attention.flex_attention import create_block_mask

    B, T = first.shape
    blocks = create_block_mask(
        lambda b, h, q, k: (k <= q) & (k >= first[b if B > 1 else 0, q]),
        *(B if B > 1 else None, None, T, T),
        device=first.device,
    )
    return Mask(first, blocks)


@dataclass
class Layout:
    """Positions and masks of one forward pass, for windows and documents; layers share it."""

    positions: Int[Tensor, "B T"] | None  # within documents; None: within the row
    # Masks by window size (0: no window). A layer without a mask sees all earlier positions.
    masks: dict[int, Mask]

    @classmethod
    def of(
        cls, config: GPTConfig, T: int, device: torch.device, documents: Tensor | None
    ) -> "Layout | None":
        """Returns the layout of a pass over rows of T tokens. None for plain causal attention.

        `documents` (B, T): adjacent tokens with the same number belong to the same document.
        """
        windows = {config.window_of(layer) for layer in range(config.n_layer)}
        if documents is None:
            windows = {window for window in windows if 0 < window < T}
            flex = bool(windows) and _flex_serves(config, device)
            masks = {window: _window_mask(window, T, device, flex) for window in windows}
            return cls(None, masks) if masks else None
        at = torch.arange(T, device=device).expand(documents.shape)
        new = torch.ones_like(documents, dtype=torch.bool)
        new[:, 1:] = documents[:, 1:] != documents[:, :-1]
        begins = torch.where(new, at, 0).cummax(dim=1).values  # (B, T)
        flex = _flex_serves(config, device)
        firsts = {
            window: begins.maximum(at - window + 1) if window else begins for window in windows
        }
        return cls(
            at - begins, {window: mask_from(first, flex=flex) for window, first in firsts.items()}
        )


@functools.lru_cache(maxsize=16)
def _window_mask(window: int, T: int, device: torch.device, flex: bool) -> Mask:
    return mask_from(
        (torch.arange(T, device=device) - window + 1).clamp(min=0).unsqueeze(0), flex=flex
    )


@functools.cache
def _flex_serves(config: GPTConfig, device: torch.device) -> bool:
    """Returns whether this model can use FlexAttention on `device`. Warns once if CUDA lacks
    something.
    """
    if device.type != "cuda":
        return False
    from torch.utils._triton import has_triton

    needs = {
        "Triton": not has_triton(),
        "model.attention_dropout 0": config.attention_dropout > 0,
        "heads at least 16 wide": config.width_head < 16,
    }
    lacking = [need for need, missing in needs.items() if missing]
    if lacking:
        logging.getLogger(__name__).warning(
            f"FlexAttention needs {lacking[0]}. Masked attention computes all scores instead, "
            "which is slower."
        )
    return not lacking


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
