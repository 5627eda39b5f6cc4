"""Transformer layers that work on each position separately: norms, feed-forward, n-gram embeddings.

`GPTConfig` chooses each of them; `gpt.py` combines them with `attention.py`. Shapes: B batch, T
time, D d_model, F d_ff.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.models import kernels
from lmsmith.models.gpt_config import GPTConfig


class Norm(nn.Module):
    """LayerNorm, RMSNorm or the identity over the last axis, with optional gain and bias."""

    def __init__(self, config: GPTConfig, width: int, *, gain: bool | None = None) -> None:
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        gain = config.norm_gain if gain is None else gain
        self.weight = nn.Parameter(torch.ones(width)) if gain else None
        self.bias = (
            nn.Parameter(torch.zeros(width))
            if gain and config.bias and self.kind == "layernorm"
            else None
        )

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        if self.kind == "none":
            return x
        if self.kind == "layernorm":
            return kernels.layer_norm(x, self.weight, self.bias, self.eps)
        return kernels.rms_norm(x, self.weight, self.eps)


class NgramEmbedding(nn.Module):
    """Embeds the last n tokens at every position with a hashed table: an n-gram model at the input.

    A table look-up costs no matrix product. It gives a small model short-range statistics (which
    token usually follows these two, three or four) that would otherwise take layers and many tokens
    to learn. Bigram tables appear in the modded-nanogpt speedrun, hashed n-grams in Huang et al.
    2025, "Over-Tokenized Transformer". Positions before the start of a text count as one special
    token. Tables start at zero, so that at first the model behaves as if they were absent.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.orders, self.nothing = config.ngram_tables, config.vocab_size
        self.n_rows = config.ngram_table_size
        self.dropout = config.ngram_dropout
        self.tables = nn.ModuleList(nn.Embedding(self.n_rows, config.d_model) for _ in self.orders)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        before: Int[Tensor, "B n"],
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Returns the sum of the embeddings of all orders.

        `before`: the tokens just before `ids`; `vocab_size` stands for "no token". `positions`:
        each token's position in its document; an n-gram never reaches into the document before.
        """
        rows = self.rows(ids, before, positions)
        found = [table(row) for table, row in zip(self.tables, rows, strict=True)]
        if self.dropout and self.training:
            # Each order on its own: positions learn to do without their longest n-grams, which are
            # those that memorize the text.
            kept = F.dropout(found[0].new_ones(len(found), *ids.shape, 1), self.dropout)
            found = [x * mask for x, mask in zip(found, kept, strict=True)]
        total = found[0]
        for x in found[1:]:
            total = total + x
        return total

    def rows(
        self,
        ids: Int[Tensor, "B T"],
        before: Int[Tensor, "B n"],
        positions: Int[Tensor, "B T"] | None = None,
    ) -> list[Int[Tensor, "B T"]]:
        """For each order, the table row of the n-gram that ends at each position.

        The hash is multiplicative, modulo 2**32.
        """
        T = ids.size(1)
        padded = torch.cat([before, ids], dim=1)
        key = ids + 1
        rows = []
        for back in range(1, max(self.orders)):
            start = padded.size(1) - T - back
            earlier = padded[:, start : start + T]
            if positions is not None:
                earlier = earlier.where(positions >= back, self.nothing)
            key = (key * 0x9E3779B1 + earlier + 1) & 0xFFFFFFFF
            if back + 1 in self.orders:
                mixed = (key ^ (key >> 15)) * 0x85EBCA6B & 0xFFFFFFFF
                rows.append((mixed ^ (mixed >> 13)) % self.n_rows)
        return rows

    @property
    def n_before(self) -> int:
        """The number of earlier tokens that an n-gram needs."""
        return max(self.orders) - 1


class FeedForward(nn.Module):
    """Position-wise feed-forward layer: down(activation(up(x))).

    swiglu and geglu are gated (Shazeer 2020, eq. 5 and 6).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.kind = config.feed_forward
        width = config.width_ff
        self.up = nn.Linear(config.d_model, 2 * width if config.gated else width, bias=config.bias)
        self.down = nn.Linear(width, config.d_model, bias=config.bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        h = self.up(x)
        if self.kind in ("swiglu", "geglu"):
            gate, h = h.chunk(2, dim=-1)
            h = (F.silu(gate) if self.kind == "swiglu" else F.gelu(gate)) * h
        elif self.kind == "relu2":
            h = kernels.relu2(h)
        elif self.kind == "gelu-tanh":
            h = kernels.gelu_tanh(h)
        elif self.kind == "gelu":
            h = F.gelu(h)
        else:
            h = F.silu(h)
        return self.down(h)
