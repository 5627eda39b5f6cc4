"""The Transformer language model: GPT-2, Llama-style and modern, as `ModelConfig` says.

    embed -> n_layer times (x + attention(norm(x)); x + feed_forward(norm(x))) -> norm -> head -> logits

It knows nothing of devices, ranks, optimisers, files or logging. `forward` gives logits; training asks for `hidden` and
lets `lmsmith.loss` apply the head in chunks, so that the logits of a whole batch are never in memory at once.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.config import ModelConfig
from lmsmith.models.layers import Attention, FeedForward, LayerCache, NgramEmbedding, Norm, Rotary, State


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attention = Norm(config, config.d_model)
        self.attention = Attention(config)
        self.norm_feed_forward = Norm(config, config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self, x: Float[Tensor, "B T D"], rotary: Rotary | None, cache: LayerCache | None, position: int
    ) -> Float[Tensor, "B T D"]:
        x = x + self._drop(self.attention(self.norm_attention(x), rotary, cache, position))
        return x + self._drop(self.feed_forward(self.norm_feed_forward(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class GPT(nn.Module):
    """A decoder-only Transformer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "the tokenizer's size must be filled in before a model is built"
        self.config = config
        rows = config.padded_vocab_size
        self.token_embedding = nn.Embedding(rows, config.d_model)
        self.position_embedding = (
            nn.Embedding(config.context_length, config.d_model) if config.positions == "learned" else None
        )
        self.ngram_embedding = NgramEmbedding(config) if config.ngram_orders else None
        self.embedding_norm = Norm(config, config.d_model, gain=False) if config.embedding_norm else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = Norm(config, config.d_model)
        self.head = None if config.tied_head else nn.Linear(config.d_model, rows, bias=False)
        self.rotary = Rotary.make(config) if config.positions == "rope" else None

    def forward(self, ids: Int[Tensor, "B T"], state: State | None = None) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position, float32; only real vocabulary, padded columns cut off."""
        logits = F.linear(self.hidden(ids, state), self.head_weight)
        logits = logits[..., : self.config.vocab_size]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def hidden(self, ids: Int[Tensor, "B T"], state: State | None = None) -> Float[Tensor, "B T D"]:
        """The last norm's output at each position, from which the head makes logits."""
        position = state.position if state else 0
        T = ids.size(1)
        assert position + T <= self.config.context_length, "more tokens than the context holds"
        x = self.token_embedding(ids)  # (B, T, D)
        if self.ngram_embedding is not None:
            before = state.before if state else self._nothing_before(ids.size(0), ids.device)
            x = x + self.ngram_embedding(ids, before)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[position : position + T]
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        for index, block in enumerate(self.blocks):
            x = block(x, self.rotary, state.layers[index] if state else None, position)
        if state is not None:
            state.position += T
            state.before = torch.cat([state.before, ids], dim=1)[:, ids.size(1) :]
        return self.final_norm(x)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output head, or the token table where the two are one."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def new_state(self, batch_size: int) -> State:
        """An empty key-value cache for `batch_size` texts of up to `context_length` tokens."""
        weight = self.token_embedding.weight
        shape = (batch_size, self.config.n_kv, self.config.context_length, self.config.d_head)
        layers = [LayerCache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.blocks]
        return State(layers, self._nothing_before(batch_size, weight.device))

    def _nothing_before(self, batch_size: int, device: torch.device) -> Int[Tensor, "B n"]:
        n = self.ngram_embedding.n_before if self.ngram_embedding is not None else 0
        return torch.full((batch_size, n), self.config.vocab_size, dtype=torch.int64, device=device)

    def n_parameters(self) -> int:
        """Learnt numbers; a tied head is counted once."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws the initial weights from `generator`, in the order of `named_parameters`.

        Gains are one; biases and n-gram tables zero. `gpt2`: all else N(0, 0.02), projections into the residual stream
        scaled by 1/sqrt(2 n_layer). `zero-projections`: those and the head zero, so that every prediction is uniform at
        first; tables N(0, 1); other matrices uniform with half the standard deviation that keeps a vector's size. A
        tied head cannot be zero: tables are then N(0, 1/d_model), which makes its first logits about one.
        """
        config = self.config
        into_residual = ("attention.out.weight", "feed_forward.down.weight")
        table_std = 1 / config.d_model if config.tied_head else 1.0
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.startswith("ngram"):
                weight.zero_()
            elif config.init == "gpt2":  # Radford et al. 2019, section 2.3
                scale = 1 / math.sqrt(2 * config.n_layer) if name.endswith(into_residual) else 1.0
                weight.normal_(0.0, 0.02 * scale, generator=generator)
            elif name.endswith(into_residual) or name.startswith("head"):
                weight.zero_()
            elif name.startswith(("token", "position")):
                weight.normal_(0.0, table_std, generator=generator)
            else:  # standard deviation 0.5 / sqrt(fan_in)
                bound = math.sqrt(3) * 0.5 / math.sqrt(weight.size(1))
                weight.uniform_(-bound, bound, generator=generator)
