"""The settings of Transformers, and default sizes for a budget.

The defaults build the model of the `modern` preset; other presets are in `config/presets.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmsmith.config.model import ModelConfig, NeuralConfig
from lmsmith.config.settings import check, setting
from lmsmith.models import gpt_costs
from lmsmith.models.gpt_checks import check_combinations, check_heads, check_rope
from lmsmith.models.sizes import (
    GPT_SIZES,
    LONG_RUN,
    LONG_TEXT,
    SMALL_VOCABULARY,
    SMALL_WIDTH,
    TIMES_AS_MANY_ROWS,
    size_for,
    with_long_context,
)

if TYPE_CHECKING:
    from lmsmith.models.gpt import GPT


@dataclass(frozen=True)
class GPTConfig(NeuralConfig):
    """A Transformer: GPT-2, Llama-style or modern, depending on the settings."""

    kind: str = setting("gpt", "model architecture; --preset sets it")
    size: int = setting(
        0,
        "model size as one number: sets n_layer, width (64 per layer), heads, context, batch and "
        "learning rate; none: each is set separately",
        zero="none",
    )
    n_layer: int = setting(6, "number of blocks")
    n_head: int = setting(6, "query heads per layer")
    n_kv_head: int = setting(
        0,
        "key and value heads per layer; fewer than n_head: grouped-query attention (GQA); auto: "
        "n_head / n_head_per_kv",
        zero="auto",
    )
    n_head_per_kv: int = setting(
        1,
        "with n_kv_head auto: query heads per key-value head; the next smaller divisor of n_head "
        "if it does not divide n_head",
    )
    d_model: int = setting(384, "width of the residual stream")
    d_head: int = setting(0, "width of an attention head; auto: d_model / n_head", zero="auto")
    d_ff: int = setting(
        0,
        "width of the feed-forward layer; auto: 4 d_model (gated: 8/3 d_model, rounded up to a "
        "multiple of 64)",
        zero="auto",
    )
    ngram_tables: tuple[int, ...] = setting(
        (),
        "n-gram embeddings: also embed the hash of the last n tokens, for each n in a list: 2,3,4",
    )
    ngram_table_size: int = setting(
        8192, "rows of each n-gram table; n-grams with the same hash share a row"
    )
    norm: Literal["layernorm", "rmsnorm", "none"] = setting(
        "rmsnorm", "normalization of the residual stream: LayerNorm, RMSNorm or none"
    )
    norm_placement: Literal["pre", "post", "output"] = setting(
        "pre",
        "position of the norms: pre: before each sublayer and the head; post: after each residual "
        "addition; output: after each sublayer, before its addition (OLMo 2), and before the head",
    )
    parallel_residual: bool = setting(
        False, "attention and feed-forward layer read the same input (GPT-NeoX)"
    )
    norm_gain: bool = setting(False, "learned gain in the norms")
    norm_eps: float = setting(1e-5, "epsilon of the norms, added to the variance or mean square")
    embedding_norm: bool = setting(True, "normalize the embedding before the first block")
    positions: Literal["learned", "rope", "none"] = setting(
        "rope", "position encoding: learned embeddings, rotary (RoPE), or none"
    )
    rope_base: float = setting(10_000.0, "base of RoPE's wavelengths (theta)")
    rope_fraction: float = setting(
        1.0, "fraction of each head's dimensions that RoPE rotates, starting with the first"
    )
    rope_pattern: str = setting(
        "", "one letter per layer, repeated: R: RoPE, N: no positions (NoPE); such as RRRN"
    )
    rope_scaling: Literal["none", "linear", "llama3", "yarn", "longrope"] = setting(
        "none",
        "RoPE scaling for a longer context: linear: stretch all wavelengths; llama3, yarn: stretch "
        "only the longer ones; longrope: stretch each by its own factor",
    )
    rope_factor: float = setting(1.0, "with rope_scaling: factor by which the context grows")
    rope_factors: tuple[float, ...] = setting(
        (), "with rope_scaling longrope: one factor per rotated pair of a head"
    )
    rope_original_context: int = setting(
        0,
        "with rope_scaling llama3, yarn, longrope: context length before scaling, in tokens",
        zero="none",
    )
    rope_attention_factor: float = setting(
        0.0,
        "with rope_scaling yarn, longrope: factor of rotated queries and keys; auto: the paper's "
        "value",
        zero="auto",
    )
    feed_forward: Literal["gelu", "gelu-tanh", "silu", "relu2", "swiglu", "geglu"] = setting(
        "relu2", "feed-forward activation; swiglu and geglu are gated"
    )
    bias: bool = setting(False, "biases in linear layers and layer norms")
    attention_bias: Literal["auto", "none", "qkv", "all"] = setting(
        "auto", "biases in attention; auto: as model.bias; qkv: only for queries, keys and values"
    )
    tied_head: bool = setting(False, "weight tying: the output head is the token embedding table")
    dropout: float = setting(0.0, "dropout probability on the residual stream")
    attention_dropout: float = setting(0.0, "dropout probability on attention weights")
    ngram_dropout: float = setting(
        0.0, "dropout probability of each n-gram embedding of a position, in training"
    )
    qk_norm: bool = setting(True, "RMS-normalize queries and keys")
    qk_gain: Literal["head", "dimension", "projection"] = setting(
        "head",
        "learned gain with qk_norm; head: one number per query head; dimension: one per number of "
        "a head, for queries and for keys (Qwen 3); projection: the same, all heads normalized "
        "together (OLMo 2)",
    )
    window: int = setting(
        0,
        "sliding-window attention: number of tokens that a query sees, including its own; none: no "
        "sliding window",
        zero="none",
    )
    window_pattern: str = setting(
        "", "pattern of layers, repeated: S: sliding window; L: full context; for example SSSL"
    )
    value_embedding_every: int = setting(
        0,
        "value embeddings: every n-th layer, counted from the last, adds gated token embeddings to "
        "its values; none: no layer",
        zero="none",
    )
    residual_scalars: bool = setting(
        False,
        "input of each layer: a x + b embedding, where x is the residual stream and a, b are "
        "learned; no: x",
    )
    logit_softcap: float = setting(
        15.0,
        "logit soft-capping: replace the logits by cap * tanh(logits / cap); none: no cap",
        zero="none",
    )
    init: Literal["gpt2", "truncated-normal", "zero-projections"] = setting(
        "zero-projections",
        "initial weights: gpt2: N(0, 0.02), residual projections divided by sqrt(2 n_layer); "
        "truncated-normal: variance 2/(fan_in + fan_out), cut at three standard deviations; "
        "zero-projections: residual projections and head zero",
    )
    parametrization: Literal["standard", "mup"] = setting(
        "standard",
        "how initial weights and learning rates depend on the width; mup: the maximal update "
        "parametrization, with which learning rates found at a small width hold at a large one",
    )
    base_width: int = setting(
        128, "with parametrization mup: the d_model at which it equals the standard one"
    )

    description: ClassVar[str] = "Transformer"
    packs_documents: ClassVar[bool] = True
    compilable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("n_layer", "n_head", "n_head_per_kv", "d_model", "ngram_table_size", "base_width")
        for name in sizes:
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        automatic = ("n_kv_head", "d_head", "d_ff")
        optional = ("size", "window", "value_embedding_every", "rope_original_context")
        for name in (*automatic, *optional):
            word = "auto" if name in automatic else "none"
            value = getattr(self, name)
            check(value >= 0, f"model.{name}", value, f"{word}, or 1 or more")
        orders = self.ngram_tables
        good = all(2 <= n <= 8 for n in orders) and list(orders) == sorted(set(orders))
        check(good, "model.ngram_tables", orders, "orders from 2 to 8, each once, ascending")
        for name in ("dropout", "attention_dropout", "ngram_dropout"):
            good = 0 <= getattr(self, name) < 1
            check(good, f"model.{name}", getattr(self, name), "at least 0 and below 1")
        check(0 < self.norm_eps < math.inf, "model.norm_eps", self.norm_eps, "above 0")
        share = self.rope_fraction
        check(0 < share <= 1, "model.rope_fraction", share, "above 0, at most 1")
        check_heads(self)
        check_rope(self)
        check_combinations(self)

    @classmethod
    def of(cls, config: ModelConfig) -> GPTConfig:
        """Returns `config`, which the caller knows to be a GPTConfig."""
        assert isinstance(config, cls), config.kind
        return config

    # Derived settings.

    @property
    def width_multiplier(self) -> float:
        return self.d_model / self.base_width if self.parametrization == "mup" else 1.0

    @property
    def has_dropout(self) -> bool:
        return bool(self.dropout or self.attention_dropout or self.ngram_dropout)

    @property
    def width_head(self) -> int:
        """Width of an attention head, with auto resolved."""
        return self.d_head or self.d_model // self.n_head

    @property
    def width_rotary(self) -> int:
        """How many numbers of a head RoPE rotates, rounded down."""
        return int(self.width_head * self.rope_fraction)

    def has_rope(self, layer: int) -> bool:
        """Whether this layer rotates its queries and keys."""
        pattern = self.rope_pattern or "R"
        return self.positions == "rope" and pattern[layer % len(pattern)] == "R"

    @property
    def attention_biases(self) -> Literal["none", "qkv", "all"]:
        """The attention projections that have biases, with auto resolved."""
        if self.attention_bias == "auto":
            return "all" if self.bias else "none"
        return self.attention_bias

    @property
    def n_kv(self) -> int:
        """Key-value heads, with auto resolved."""
        if self.n_kv_head:
            return self.n_kv_head
        most = min(self.n_head_per_kv, self.n_head)
        return self.n_head // next(n for n in range(most, 0, -1) if self.n_head % n == 0)

    @property
    def width_ff(self) -> int:
        """Feed-forward width, with auto resolved."""
        if self.d_ff:
            return self.d_ff
        return -(-8 * self.d_model // 3 // 64) * 64 if self.gated else 4 * self.d_model

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies two linear maps of its input."""
        return self.feed_forward in ("swiglu", "geglu")

    def window_of(self, layer: int) -> int:
        """Returns the number of tokens that a query of this layer sees, including its own; 0: the
        full context.
        """
        pattern = self.window_pattern or "L"
        return self.window if pattern[layer % len(pattern)] == "S" else 0

    def has_value_embedding(self, layer: int) -> bool:
        """Returns whether this layer adds token embeddings to its values."""
        every = self.value_embedding_every
        return bool(every) and (self.n_layer - 1 - layer) % every == 0

    @property
    def d_value_gate(self) -> int:
        """Width of the part of a layer's input from which the gate of its value embedding is
        computed.
        """
        return min(32, self.d_model)

    def build(self) -> GPT:
        from lmsmith.models.gpt import GPT

        return GPT(self)

    def in_brief(self) -> str:
        return f"Transformer, {self.n_layer} layer{'s' * (self.n_layer > 1)} of {self.d_model}"

    def describe(self) -> str:
        def counted(n: int, word: str) -> str:
            return f"{n} {word}{'s' * (n > 1)}"

        parts = [counted(self.n_layer, "layer"), counted(self.n_head, "head")]
        parts += [f"width {self.d_model}", f"context {self.context_length}"]
        if self.ngram_tables:
            parts.append(f"tables of {','.join(map(str, self.ngram_tables))}-grams")
        if n_layers := sum(map(self.has_value_embedding, range(self.n_layer))):
            parts.append(f"value embeddings in {counted(n_layers, 'layer')}")
        return ", ".join(parts)

    # Parameter and FLOP counts.

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return gpt_costs.shapes(self)

    def matrix_parameters(self) -> int:
        """Parameters in matrix products: blocks and head, without embedding tables, norms and
        biases.

        A tied head counts, because it takes part in a matrix product; padded rows count too.
        """
        weights = (product for product in gpt_costs.products(self) if product.weight)
        return int(sum(product.flops for product in weights)) // 2

    def train_flops_per_token(self) -> float:
        """Forward and backward FLOPs: 6 per matrix parameter, plus attention over the tokens seen.

        The backward pass costs twice the forward pass. `gpt_costs.py` lists the products and the
        ways to count attention; this is the `causal` one. PaLM's and nanoGPT's formulas count the
        full square, twice as much.
        """
        return 3.0 * sum(product.flops for product in gpt_costs.products(self, "causal"))

    # Default sizes for a budget.

    def default_size(
        self, budget: float, n_tokens: int, given: Collection[str]
    ) -> tuple[dict[str, Any], int | None]:
        size, context_length = size_for(GPT_SIZES, budget, n_tokens)
        batch_size = size.batch_size
        if budget > LONG_RUN and 0 < self.vocab_size <= SMALL_VOCABULARY:
            context_length, batch_size = with_long_context(size, n_tokens)
        d_model = self.d_model if "model.d_model" in given else size.d_model
        n_head = size.n_head
        while n_head > 1 and (d_model % n_head or d_model // n_head % 2):
            n_head -= 1
        if "model.n_head" in given and "model.d_model" not in given:
            n_head = self.n_head
            d_model = max(1, round(d_model / (2 * n_head))) * 2 * n_head
        chosen = {
            "model.n_layer": size.n_layer,
            "model.d_model": d_model,
            "model.n_head": n_head,
            "model.context_length": context_length,
        }
        if self.ngram_tables and n_tokens >= LONG_TEXT and d_model <= SMALL_WIDTH:
            chosen["model.ngram_table_size"] = TIMES_AS_MANY_ROWS * self.ngram_table_size
        return chosen, batch_size

    def fitting(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """If only one of d_model and n_head is given: a value for the other that fits."""
        named = {"model.d_model", "model.n_head"} & set(given)
        if len(named) != 1:
            return {}
        (name,) = named
        try:
            number = int(given[name])
        except (TypeError, ValueError):  # `changed` reports the error
            return {}
        if name == "model.n_head":
            return {"model.d_model": 64 * max(1, number)}
        return {"model.n_head": max([h for h in range(1, 7) if number % (2 * h) == 0], default=1)}
