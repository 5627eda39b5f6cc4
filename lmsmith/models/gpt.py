"""The Transformer language model: GPT-2, Llama-style or modern, depending on `GPTConfig`.

    x = embed(tokens)                             the residual stream, (B, T, D)
    for each block:
        x = x + attention(norm(x))
        x = x + feed_forward(norm(x))
    logits = head(norm(x))

This is pre-norm. With post-norm, a block computes norm(x + attention(x)), then norm(x +
feed_forward(x)), and the head has no norm of its own. Norms of the outputs give x +
norm(attention(x)), then x + norm(feed_forward(x)). With a parallel residual, the feed-forward layer
reads the block's input, as attention does, and both outputs are added to it.

The attention is in `attention.py`, norms and feed-forward layers are in `layers.py`. `interface.py`
has the code that all models share: logits from `hidden`, the probability of a text.

Shapes: B batch, T time, D d_model, G key-value heads, K d_head, V vocabulary (padded).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.models.attention import Attention, LayerCache, Layout, State
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import NeuralModel
from lmsmith.models.layers import FeedForward, NgramEmbedding, Norm
from lmsmith.models.rotary import Rotary

_INITIAL_CACHE_LENGTH = 64  # tokens


class Block(nn.Module):
    """One Transformer block: attention and feed-forward layer, each with a residual connection."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_attention = Norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.norm_feed_forward = Norm(config, config.d_model)
        self.feed_forward = FeedForward(config)
        self.placement, self.parallel = config.norm_placement, config.parallel_residual
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: Rotary | None,
        cache: LayerCache | None,
        position: int,
        layout: Layout | None = None,
        values: Float[Tensor, "B T GK"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Adds attention and feed-forward outputs to `x`. Other arguments: `Attention.forward`."""
        inputs = (rotary, cache, position, layout, values)
        if self.placement == "post":
            x = self.norm_attention(x + self._drop(self.attention(x, *inputs)))
            return self.norm_feed_forward(x + self._drop(self.feed_forward(x)))
        if self.placement == "output":
            attended = self.norm_attention(self.attention(x, *inputs))
        else:
            attended = self.attention(self.norm_attention(x), *inputs)
        after = x + self._drop(attended)
        source = x if self.parallel else after
        if self.placement == "output":
            fed = self.norm_feed_forward(self.feed_forward(source))
        else:
            fed = self.feed_forward(self.norm_feed_forward(source))
        return after + self._drop(fed)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class GPT(NeuralModel):
    """A decoder-only Transformer."""

    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "set vocab_size to the tokenizer's before building a model"
        self.config = config
        rows = config.padded_vocab_size
        self.token_embedding = nn.Embedding(rows, config.d_model)
        self.position_embedding = (
            nn.Embedding(config.context_length, config.d_model)
            if config.positions == "learned"
            else None
        )
        self.ngram_embedding = NgramEmbedding(config) if config.ngram_tables else None
        self.embedding_norm = (
            Norm(config, config.d_model, gain=False) if config.embedding_norm else None
        )
        layers = range(config.n_layer)
        self.value_embeddings = nn.ModuleDict(
            {
                str(i): nn.Embedding(rows, config.n_kv * config.width_head)
                for i in layers
                if config.has_value_embedding(i)
            }
        )
        scalars = config.residual_scalars
        self.residual_scale = nn.Parameter(torch.ones(config.n_layer)) if scalars else None
        self.input_scale = nn.Parameter(torch.zeros(config.n_layer)) if scalars else None
        self.blocks = nn.ModuleList(Block(config, i) for i in layers)
        self.final_norm = Norm(config, config.d_model) if config.norm_placement != "post" else None
        self.head = None if config.tied_head else nn.Linear(config.d_model, rows, bias=False)
        self.rotary = Rotary.make(config) if config.positions == "rope" else None

    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        state: State | None = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Returns the vector at each position from which the head computes logits.

        `state` is a KV cache: it holds the tokens before `ids` and is updated in place. `documents`
        numbers the document that each token of a row belongs to. No token sees another document,
        and positions start at 0 in each document.
        """
        position = state.position if state else 0
        T = ids.size(1)
        assert position + T <= self.config.context_length, "more tokens than context_length"
        assert state is None or documents is None, "a KV cache holds one document per row"
        layout = state.layout if state else Layout.of(self.config, T, ids.device, documents)
        embedded = self._embed(ids, state, layout.positions if layout else None)
        if self.rotary is not None:
            self.rotary.table_for(embedded)
        x = embedded
        for index, block in enumerate(self.blocks):
            if self.residual_scale is not None and self.input_scale is not None:
                x = (
                    self.residual_scale[index].to(x.dtype) * x
                    + self.input_scale[index].to(x.dtype) * embedded
                )
            key = str(index)
            values = self.value_embeddings[key](ids) if key in self.value_embeddings else None
            cache = state.layers[index] if state else None
            rotary = self.rotary if self.config.has_rope(index) else None
            x = block(x, rotary, cache, position, layout, values)
        if state is not None:
            state.advance(ids)
        return x if self.final_norm is None else self.final_norm(x)

    def _embed(
        self,
        ids: Int[Tensor, "B T"],
        state: State | None,
        positions: Int[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B T D"]:
        """Returns the residual stream before the first block. `positions`: within documents, if
        packed.
        """
        x = self.token_embedding(ids)  # (B, T, D)
        if self.ngram_embedding is not None:
            before = state.before if state else self._no_tokens_before(ids.size(0), ids.device)
            x = x + self.ngram_embedding(ids, before, positions)
        if self.position_embedding is not None:
            table = self.position_embedding.weight
            start = state.position if state else 0
            x = x + (table[start : start + ids.size(1)] if positions is None else table[positions])
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output head. With weight tying it is the token embedding table."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def new_state(self, batch_size: int) -> State:
        """Returns an empty KV cache for `batch_size` texts of up to `context_length` tokens.

        It grows with the texts. Allocated at full size, it would take 8 GB for the 131,072 tokens
        of Llama 3's smallest model.
        """
        weight = self.token_embedding.weight
        shape = (
            batch_size,
            self.config.n_kv,
            min(_INITIAL_CACHE_LENGTH, self.config.context_length),
            self.config.width_head,
        )
        layers = [LayerCache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.blocks]
        return State(layers, self._no_tokens_before(batch_size, weight.device))

    def _no_tokens_before(self, batch_size: int, device: torch.device) -> Int[Tensor, "B n"]:
        n = self.ngram_embedding.n_before if self.ngram_embedding is not None else 0
        return torch.full((batch_size, n), self.config.vocab_size, dtype=torch.int64, device=device)

    def parts(self) -> dict[str, list[int]]:
        """Rows of each map in fused query-key-value matrices, gated feed-forward matrices, and
        their adapters.
        """
        config = self.config
        heads = [config.n_head * config.width_head] + 2 * [config.n_kv * config.width_head]
        parts = {f"blocks.{i}.attention.qkv.weight": heads for i in range(config.n_layer)}
        if config.gated:
            parts |= {
                f"blocks.{i}.feed_forward.up.weight": [config.width_ff] * 2
                for i in range(config.n_layer)
            }
        for name, module in self.named_modules():
            if found := getattr(module, "parts_of_adapters", None):  # `lora.py` imports this module
                parts |= {f"{name}.{adapter}": rows for adapter, rows in found().items()}
        return parts

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws the initial weights from `generator`, in the order of `named_parameters`.

        Gains start at one; biases, n-gram tables, value embeddings, their gates and input scales at
        zero. The rest depends on `config.init`:

        - `gpt2` (Radford et al. 2019, section 2.3): N(0, 0.02); projections into the residual
          stream are divided by sqrt(2 n_layer).
        - `zero-projections`: projections into the residual stream and the head are zero, so the
          first predictions are uniform. Embedding tables are N(0, 1). Other matrices are uniform
          with standard deviation 0.5 / sqrt(fan_in), half of what preserves the size of a vector. A
          tied head cannot be zero: embedding tables are then N(0, 1/d_model), which gives first
          logits of about one.
        - `truncated-normal`: embedding tables as in `zero-projections`, linear maps of variance 2 /
          (fan_in + fan_out) (Glorot and Bengio 2010, eq. 12), all cut at three standard deviations.

        With `config.parametrization` mup, the standard deviations are those of the base width,
        scaled as `optim/mup.py` says.
        """
        config = self.config
        into_residual = ("attention.out.weight", "feed_forward.down.weight")
        zero_at_first = ("ngram", "value_embeddings", "input_scale")
        table_std = 1 / config.d_model if config.tied_head else 1.0
        parts, m = self.parts(), config.width_multiplier
        for name, weight in self.named_parameters():
            if name.startswith(zero_at_first) or name.endswith("value_gate.weight"):
                weight.zero_()  # attention computes 2 sigmoid(gate), which is 1 at a gate of 0
            elif weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            elif config.init == "gpt2":
                scale = 1 / math.sqrt(2 * config.n_layer) if name.endswith(into_residual) else 1.0
                if name.startswith("blocks."):
                    scale /= math.sqrt(m)
                elif name.startswith("head"):
                    scale /= m
                weight.normal_(0.0, 0.02 * scale, generator=generator)
            elif config.init == "truncated-normal":
                for part in weight.split(parts.get(name, [weight.size(0)])):
                    std = (
                        table_std
                        if name.startswith(("token", "position"))
                        else math.sqrt(2 / sum(part.shape))
                    )
                    if name.startswith("head"):  # at the base width, divided by m
                        std = math.sqrt(2 / (part.size(0) + part.size(1) / m)) / m
                    nn.init.trunc_normal_(part, 0.0, std, -3 * std, 3 * std, generator=generator)
            elif name.endswith(into_residual) or name.startswith("head"):
                weight.zero_()
            elif name.startswith(("token", "position")):
                weight.normal_(0.0, table_std, generator=generator)
            else:  # standard deviation 0.5 / sqrt(fan_in)
                bound = math.sqrt(3) * 0.5 / math.sqrt(weight.size(1))
                weight.uniform_(-bound, bound, generator=generator)
