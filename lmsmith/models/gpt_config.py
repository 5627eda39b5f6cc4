"""The settings of Transformers, their parameter and FLOP counts, and default sizes for a budget.

The defaults build the model of the `modern` preset; other presets are in `config/presets.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmsmith.config.model import ModelConfig, NeuralConfig
from lmsmith.config.settings import as_toml, check, setting
from lmsmith.errors import ConfigError
from lmsmith.models.sizes import GPT_SIZES, size_for

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
        "n_head",
        zero="auto",
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
    norm_placement: Literal["pre", "post"] = setting(
        "pre",
        "position of the norms: pre: before each sublayer and the head; post: after each residual "
        "addition",
    )
    norm_gain: bool = setting(False, "learned gain in the norms")
    norm_eps: float = setting(1e-5, "epsilon of the norms, added to the variance or mean square")
    embedding_norm: bool = setting(True, "normalize the embedding before the first block")
    positions: Literal["learned", "rope", "none"] = setting(
        "rope", "position encoding: learned embeddings, rotary (RoPE), or none"
    )
    rope_base: float = setting(10_000.0, "base of RoPE's wavelengths (theta)")
    rope_scaling: Literal["none", "linear", "llama3"] = setting(
        "none",
        "RoPE scaling for a longer context: linear: stretch all wavelengths; llama3: stretch only "
        "the longer ones",
    )
    rope_factor: float = setting(1.0, "with rope_scaling: factor by which the context grows")
    rope_original_context: int = setting(
        0, "with rope_scaling llama3: context length before scaling, in tokens", zero="none"
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
        0.0, "probability of dropping a position's n-gram embeddings in training"
    )
    qk_norm: bool = setting(True, "RMS-normalize queries and keys")
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

    description: ClassVar[str] = "Transformer"
    packs_documents: ClassVar[bool] = True
    compilable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_layer", "n_head", "d_model", "ngram_table_size"):
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
        check(1 < self.rope_base < math.inf, "model.rope_base", self.rope_base, "above 1")
        check(1 <= self.rope_factor < math.inf, "model.rope_factor", self.rope_factor, "1 or more")
        check(0 < self.norm_eps < math.inf, "model.norm_eps", self.norm_eps, "above 0")
        self._check_heads()
        self._check_rope()
        self._check_combinations()

    def _check_heads(self) -> None:
        if not self.d_head and self.d_model % self.n_head:
            step = self.n_head * (2 if self.positions == "rope" else 1)
            near = max(step, round(self.d_model / step) * step)
            raise ConfigError(
                f"model.n_head = {self.n_head} does not divide model.d_model = {self.d_model}: all "
                f"heads must have the same width. Use model.d_model {near} or another number of "
                "heads, or set model.d_head."
            )
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ConfigError(
                f"model.n_kv_head = {self.n_kv_head} does not divide model.n_head = {self.n_head}: "
                "each key-value head serves the same number of query heads."
            )
        if self.positions == "rope" and self.width_head % 2:
            width = (
                f"model.d_head = {self.d_head}"
                if self.d_head
                else f"d_model {self.d_model} over n_head {self.n_head}"
            )
            raise ConfigError(
                "model.positions = 'rope' rotates pairs of numbers, but each head is "
                f"{self.width_head} wide ({width}). Choose an even width."
            )

    def _check_rope(self) -> None:
        scaled, original = self.rope_scaling != "none", self.rope_original_context > 0
        if (self.rope_factor > 1 and not scaled) or original != (self.rope_scaling == "llama3"):
            raise ConfigError(
                f"model.rope_scaling = {self.rope_scaling!r}, model.rope_factor = "
                f"{self.rope_factor:g} and model.rope_original_context = "
                f"{self.rope_original_context} do not go together: linear needs a factor, llama3 "
                "needs a factor and an original context, none needs neither."
            )
        if scaled and self.positions != "rope":
            raise ConfigError(
                f"model.rope_scaling = {self.rope_scaling!r} stretches rotary positions, but "
                f"model.positions is {self.positions!r}. Set model.positions to 'rope' or "
                "model.rope_scaling to 'none'."
            )

    def _check_combinations(self) -> None:
        good = set(self.window_pattern) <= set("SL")
        check(good, "model.window_pattern", self.window_pattern, "letters S and L")
        if bool(self.window) != ("S" in self.window_pattern):
            raise ConfigError(
                f"model.window = {self.window} and model.window_pattern = {self.window_pattern!r} "
                "do not go together: the window says how far the layers marked S see. Set both "
                "(such as window 256 and window_pattern SSSL) or neither."
            )
        if self.norm == "none":
            off = {"norm_gain": False, "embedding_norm": False, "norm_placement": "pre"}
            for name, value in off.items():
                if getattr(self, name) != value:
                    raise ConfigError(
                        f"model.norm = 'none' turns all norms off, but model.{name} = "
                        f"{as_toml(getattr(self, name))} needs one: set model.{name} to "
                        f"{as_toml(value)} as well."
                    )
        if self.ngram_dropout and not self.ngram_tables:
            raise ConfigError(
                f"model.ngram_dropout = {self.ngram_dropout:g}, but model.ngram_tables is empty: "
                "there are no n-gram embeddings to drop. Set model.ngram_dropout to 0."
            )

    @classmethod
    def of(cls, config: ModelConfig) -> GPTConfig:
        """Returns `config`, which the caller knows to be a GPTConfig."""
        assert isinstance(config, cls), config.kind
        return config

    # Derived settings.

    @property
    def has_dropout(self) -> bool:
        return bool(self.dropout or self.attention_dropout or self.ngram_dropout)

    @property
    def width_head(self) -> int:
        """Width of an attention head, with auto resolved."""
        return self.d_head or self.d_model // self.n_head

    @property
    def attention_biases(self) -> Literal["none", "qkv", "all"]:
        """The attention projections that have biases, with auto resolved."""
        if self.attention_bias == "auto":
            return "all" if self.bias else "none"
        return self.attention_bias

    @property
    def n_kv(self) -> int:
        """Key-value heads, with auto resolved."""
        return self.n_kv_head or self.n_head

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
        orders = ",".join(map(str, self.ngram_tables))
        layers, heads = (
            f"{n} {word}{'s' * (n > 1)}"
            for n, word in ((self.n_layer, "layer"), (self.n_head, "head"))
        )
        return f"{layers}, {heads}, width {self.d_model}, context {self.context_length}" + (
            f", tables of {orders}-grams" if orders else ""
        )

    # Parameter and FLOP counts.

    def matrix_parameters(self) -> int:
        """Parameters in matrix products: blocks and head, without embedding tables, norms and
        biases.

        A tied head counts, because it takes part in a matrix product; padded rows count too.
        """
        d, f = self.d_model, self.width_ff
        attention = d * 2 * (self.n_head + self.n_kv) * self.width_head
        feed_forward = (3 if self.gated else 2) * d * f
        n_gated = sum(self.has_value_embedding(layer) for layer in range(self.n_layer))
        gates = n_gated * self.n_kv * self.d_value_gate
        return self.n_layer * (attention + feed_forward) + gates + self.padded_vocab_size * d

    def train_flops_per_token(self) -> float:
        """Forward and backward FLOPs: 6 per matrix parameter, plus attention over the tokens seen.

        A product of (m, k) and (k, n) counts 2 m k n operations; look-ups, norms and activations
        count zero. Attention scores and weighted values are two products of 2 S H K operations
        forward, for H heads of width K that see S tokens. The backward pass costs twice the forward
        pass, so a layer costs 12 S H K in total. With causal attention over the whole context, S is
        T / 2 on average; with a window of w, it is w - w² / 2T. PaLM's and nanoGPT's formulas count
        the full square, twice as much.
        """
        T = self.context_length
        windows = (min(self.window_of(layer) or T, T) for layer in range(self.n_layer))
        seen = sum(window - window * window / (2 * T) for window in windows)
        return 6.0 * self.matrix_parameters() + 12.0 * seen * (self.n_head * self.width_head)

    # Default sizes for a budget.

    def default_size(
        self, budget: float, n_tokens: int, given: Collection[str]
    ) -> tuple[dict[str, Any], int | None]:
        size, context_length = size_for(GPT_SIZES, budget, n_tokens)
        d_model = self.d_model if "model.d_model" in given else size.d_model
        n_head = size.n_head
        while n_head > 1 and (d_model % n_head or d_model // n_head % 2):
            n_head -= 1
        if "model.n_head" in given and "model.d_model" not in given:
            n_head = self.n_head
            d_model = max(1, round(d_model / (2 * n_head))) * 2 * n_head
        return {
            "model.n_layer": size.n_layer,
            "model.d_model": d_model,
            "model.n_head": n_head,
            "model.context_length": context_length,
        }, size.batch_size

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
