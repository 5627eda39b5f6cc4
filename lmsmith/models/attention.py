"""Causal self-attention: who sees whom, where tokens stand, and the key-value cache.

Every query sees keys up to its own position. How far back is what differs: to the beginning; over a
sliding window; to the beginning of its own document where several are packed into a row. All three
are one number a query, the earliest key that it sees (`Mask.first`).

What computes it: on CPUs `kernels.causal_attention`; elsewhere PyTorch's
scaled_dot_product_attention, and where a mask is needed FlexAttention (Dong et al. 2024), which
skips what no query sees, on the GPUs that have it.

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

QK_NORM_EPS = 1e-5
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0  # turns in the original context


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017, section 3.2), with grouped queries if
    n_kv_head < n_head.
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
        # Normalised queries and keys have products of at most d_head; a learnt factor sets the
        # temperature.
        self.qk_gain = nn.Parameter(torch.ones(self.n_head)) if config.qk_norm else None
        gated = config.has_value_embedding(layer)
        self.value_gate = nn.Linear(config.d_value_gate, self.n_kv, bias=False) if gated else None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: "Rotary | None",
        cache: "LayerCache | None",
        position: int,
        layout: "Layout | None" = None,
        values: Float[Tensor, "B T GK"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """`position`: tokens read before, which `cache` holds. `values`: value embeddings of the
        tokens.
        """
        B, T, _ = x.shape
        n_qk = self.n_head + self.n_kv
        both, v = (
            self.qkv(x).view(B, T, -1, self.d_head).split((n_qk, self.n_kv), dim=2)
        )  # (B, T, H, K)
        if (
            self.qk_gain is not None
        ):  # queries and keys are adjacent in memory: normalised in one pass
            both = kernels.rms_norm(both, None, QK_NORM_EPS)
        if rotary is not None:
            both = rotary(both, position, layout.positions if layout else None)
        q, k = both.split((self.n_head, self.n_kv), dim=2)
        if self.qk_gain is not None:
            q = q * self.qk_gain.to(q.dtype).unsqueeze(-1)
        if self.value_gate is not None and values is not None:
            gate = 2 * torch.sigmoid(
                self.value_gate(x[..., : self.value_gate.in_features])
            )  # (B, T, G)
            v = v + gate.unsqueeze(-1) * values.to(v.dtype).view(v.shape)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, K)
        if cache is None:
            y = self._within(q, self._for_each_head(k), self._for_each_head(v), layout)
        else:
            k, v, n_before = cache.extended(k, v, position, self.window)
            y = self._from_cache(q, self._for_each_head(k), self._for_each_head(v), n_before)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))

    def _for_each_head(self, x: Float[Tensor, "B G T K"]) -> Float[Tensor, "B H T K"]:
        return (
            x if self.n_kv == self.n_head else x.repeat_interleave(self.n_head // self.n_kv, dim=1)
        )

    def _within(self, q: Tensor, k: Tensor, v: Tensor, layout: "Layout | None") -> Tensor:
        """Attention of a whole window of text on itself."""
        mask = layout.masks.get(self.window) if layout else None
        dropout = self.dropout if self.training else 0.0
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            N, T, K = q.size(0) * q.size(1), q.size(2), q.size(3)
            q_, k_, v_ = (x.reshape(N, T, K) for x in (q, k, v))
            first = None if mask is None else mask.first
            return kernels.causal_attention(q_, k_, v_, self.scale, dropout, first).view(q.shape)
        if mask is None:
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=self.scale
            )
        if mask.blocks is not None and q.dtype != torch.float64:
            return _compiled_flex()(q, k, v, block_mask=mask.blocks, scale=self.scale)
        return F.scaled_dot_product_attention(
            q, k, v, mask.dense(), dropout_p=dropout, scale=self.scale
        )

    def _from_cache(self, q: Tensor, k: Tensor, v: Tensor, n_before: int) -> Tensor:
        """Attention of new positions on themselves and the `n_before` positions before them."""
        T = q.size(2)
        seen = torch.ones(T, n_before + T, dtype=torch.bool, device=q.device).tril_(n_before)
        if self.window:
            seen = seen.triu_(n_before - self.window + 1)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if T == 1 else seen, scale=self.scale
        )


@dataclass
class LayerCache:
    """Keys and values of the positions already read, in one layer; room is made when it is
    needed.
    """

    keys: Float[Tensor, "B G max K"]
    values: Float[Tensor, "B G max K"]

    def extended(
        self, k: Tensor, v: Tensor, position: int, window: int
    ) -> tuple[Tensor, Tensor, int]:
        """Takes in what was read at `position`; gives all that it sees, and how many of these
        come before it.
        """
        end = position + k.size(2)
        if end > self.keys.size(2):
            self.keys, self.values = (self._longer(old, end) for old in (self.keys, self.values))
        self.keys[:, :, position:end] = k
        self.values[:, :, position:end] = v
        low = max(0, position - window + 1) if window else 0
        return self.keys[:, :, low:end], self.values[:, :, low:end], position - low

    @staticmethod
    def _longer(old: Tensor, wanted: int) -> Tensor:
        """At least twice as long, so that all copies together are no more than the text itself."""
        n_new = max(wanted, 2 * old.size(2)) - old.size(2)
        return torch.cat([old, old.new_zeros(*old.shape[:2], n_new, old.size(3))], dim=2)


@dataclass
class State:
    """What a model carries from one call to the next: `position` tokens have been read."""

    layers: list[LayerCache]
    before: Int[Tensor, "B n"]
    position: int = 0


@dataclass
class Rotary:
    """Rotary positions (Su et al. 2021, RoFormer): pairs of neighbouring numbers turned by position
    times frequency.

    For a context longer than a model was first trained on, frequencies are divided by a factor: all
    of them (`linear`, Chen et al. 2023, "Extending Context Window ... via Positional
    Interpolation"), or as in Llama 3.1 (`llama3`) those of less than one turn in the original
    context wholly, those of more than four not at all, between the two in part.
    """

    turns: Tensor = field(repr=False)  # complex128 (context_length, 1, K/2)
    _near: Tensor | None = field(
        default=None, repr=False
    )  # as real numbers (context_length, 1, K/2, 2), at hand

    @classmethod
    def make(cls, config: GPTConfig) -> "Rotary":
        K = config.width_head
        frequency = config.rope_base ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
        if config.rope_scaling == "linear":
            frequency = frequency / config.rope_factor
        elif config.rope_scaling == "llama3":
            n_turns = config.rope_original_context * frequency / (2 * math.pi)
            kept = ((n_turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)).clamp(0, 1)
            frequency = frequency * (kept + (1 - kept) / config.rope_factor)
        angle = torch.outer(torch.arange(config.context_length, dtype=torch.float64), frequency)
        return cls(torch.polar(torch.ones_like(angle), angle).unsqueeze(1))

    def __call__(
        self, x: Float[Tensor, "B T H K"], start: int, positions: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T H K"]:
        """Tokens stand at `start`, `start` + 1 ... or at `positions`."""
        wide = x if x.dtype == torch.float64 else x.float()
        near = self.at_hand(wide)
        near = near[start : start + x.size(1)] if positions is None else near[positions]
        pairs = wide.unflatten(-1, (-1, 2))
        if (
            x.device.type == "cpu" and not torch.compiler.is_compiling()
        ):  # one pass; compilers want real numbers
            turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(near))
        else:
            (a, b), (cos, sin) = pairs.unbind(-1), near.unbind(-1)
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
        return turned.flatten(-2).to(x.dtype)

    def at_hand(self, x: Tensor) -> Tensor:
        """Cosines and sines where `x` is, and as precise. To be called before compiled blocks,
        which keep nothing.
        """
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self._near is None or self._near.device != x.device or self._near.dtype != kind:
            self._near = torch.view_as_real(self.turns).to(x.device, kind)
        return self._near


@dataclass
class Mask:
    """What each query sees: the keys from `first` up to its own position. A single row holds for
    the whole batch.
    """

    first: Int[Tensor, "B T"]
    blocks: Any = field(
        default=None, repr=False
    )  # the same for FlexAttention, where that is to be used

    def dense(self) -> Bool[Tensor, "B 1 T T"]:
        at = torch.arange(self.first.size(1), device=self.first.device)
        return ((at <= at.unsqueeze(1)) & (at >= self.first.unsqueeze(-1))).unsqueeze(1)


def mask_from(first: Int[Tensor, "B T"], *, flex: bool) -> Mask:
    """`flex`: with FlexAttention's mask, which says which blocks of 128 x 128 are empty."""
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
    """Where tokens stand and what they see, where that is not the plain thing; shared by all
    layers of one pass.
    """

    positions: Int[Tensor, "B T"] | None  # within their documents; None: in the row
    masks: dict[
        int, Mask
    ]  # by the layer's window, 0 being none; where there is none, all before is seen

    @classmethod
    def of(
        cls, config: GPTConfig, T: int, device: torch.device, documents: Tensor | None
    ) -> "Layout | None":
        """`documents` (B, T): equal numbers next to each other are one document. None for the
        plain thing.
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
    """Whether FlexAttention is there for this model; where it could be and is not, that is said,
    once.
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
            f"FlexAttention needs {lacking[0]}: masked attention multiplies with all keys "
            f"instead, which is slower."
        )
    return not lacking


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
