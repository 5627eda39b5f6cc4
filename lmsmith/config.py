"""Every setting of a run: frozen dataclasses, TOML in and out.

A setting is declared once, as a field with its type, default and meaning. The command line (`--model.n_layer 6`),
recipes (`[model] n_layer = 6`), the run's `config.toml` and the logs all use that one name. Values are checked where
they are made: a `ModelConfig` that exists can be built.

This module knows nothing of torch; `lmsmith --help` reads it.
"""

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w

from lmsmith.errors import ConfigError


def setting(default: Any, meaning: str) -> Any:
    """A dataclass field with its meaning, which `--help` shows."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class ModelConfig:
    """The model. Sizes are counts and widths; `0` means 'derived', as the meaning says.

    `kind` says what is built, and which of the settings mean something to it (`settings_of`); the others must be left
    as they are.
    """

    kind: Literal["gpt", "rnn", "ngram"] = setting("gpt", "Transformer, recurrent network or counts; --preset says it")
    size: int = setting(
        0, "one dial: n_layer; width (64 a layer), heads, context, batch and learning rate follow; 0: each by itself"
    )
    n_layer: int = setting(6, "number of blocks")
    n_head: int = setting(6, "query heads a layer")
    n_kv_head: int = setting(0, "key and value heads a layer; 0: as many as n_head")
    d_model: int = setting(384, "width of the residual stream")
    d_ff: int = setting(0, "width of the feed-forward; 0: 4 d_model (gated: 8/3 d_model, up to a multiple of 64)")
    vocab_size: int = setting(0, "number of token ids; 0: the tokenizer's")
    vocab_multiple: int = setting(1, "pad the embedding table to a multiple of this; padded ids are never predicted")
    context_length: int = setting(256, "tokens the model sees at once")
    ngram_orders: tuple[int, ...] = setting((), "also embed the last n tokens, hashed, for each n here: 2,3,4")
    ngram_table_size: int = setting(8192, "rows of each n-gram table; more n-grams than rows share rows")
    norm: Literal["layernorm", "rmsnorm", "none"] = setting("rmsnorm", "normalisation of the residual stream")
    norm_placement: Literal["pre", "post"] = setting(
        "pre", "pre: before each sublayer and the head; post: after each sublayer and its addition"
    )
    norm_gain: bool = setting(False, "norms have a learnt gain")
    norm_eps: float = setting(1e-5, "added to the variance or mean square before its root is taken")
    embedding_norm: bool = setting(True, "normalise the embedding before the first block")
    positions: Literal["learned", "rope", "none"] = setting("rope", "how positions are told apart")
    rope_base: float = setting(10_000.0, "base of the rotary wavelengths")
    rope_scaling: Literal["none", "linear", "llama3"] = setting(
        "none", "rotary wavelengths stretched for a longer context; linear: all; llama3: the longer ones alone"
    )
    rope_factor: float = setting(1.0, "(rope_scaling) so many times as long")
    rope_original_context: int = setting(0, "(rope_scaling llama3) tokens of context before the stretching")
    feed_forward: Literal["gelu", "gelu-tanh", "silu", "relu2", "swiglu", "geglu"] = setting(
        "relu2", "feed-forward activation; swiglu and geglu are gated"
    )
    bias: bool = setting(False, "biases in linear layers and layer norms")
    tied_head: bool = setting(False, "output head shares the token table")
    dropout: float = setting(0.0, "probability of dropping an activation of the residual stream in training")
    attention_dropout: float = setting(0.0, "probability of dropping an attention weight in training")
    ngram_dropout: float = setting(0.0, "probability of leaving a position's n-grams out in training")
    qk_norm: bool = setting(True, "RMS-normalise queries and keys")
    window: int = setting(0, "tokens that a layer of sliding-window attention sees, its own included; 0: no such layer")
    window_pattern: str = setting(
        "", "S: sliding window, L: the whole context, a letter a layer, repeated over the layers: SSSL"
    )
    value_embedding_every: int = setting(
        0, "each n-th layer, counted from the last, adds token-indexed vectors to its values, by learnt gates; 0: none"
    )
    residual_scalars: bool = setting(False, "each layer starts from a x + b embedding, with a and b learnt")
    logit_softcap: float = setting(15.0, "logits are cap * tanh(logits / cap); 0: none")
    init: Literal["gpt2", "truncated-normal", "zero-projections"] = setting(
        "zero-projections",
        "gpt2: N(0, 0.02), residual projections over sqrt(2 n_layer); truncated-normal: variance 2/(fan_in + fan_out), "
        "cut at three sigma; zero-projections: residual projections and head zero",
    )
    cell: Literal["elman", "gru", "lstm"] = setting("lstm", "(rnn) how a layer's state follows from the one before")
    activation: Literal["tanh", "sigmoid"] = setting("tanh", "(rnn) of Elman's hidden units")
    ngram_order: int = setting(5, "(ngram) n: tokens counted together, the predicted one among them")
    smoothing: Literal["kneser-ney", "add-k", "mle"] = setting(
        "kneser-ney", "(ngram) interpolated modified Kneser-Ney, add-k, or maximum likelihood"
    )
    add_k: float = setting(0.1, "(ngram) added to every count by add-k")

    def __post_init__(self) -> None:
        self._check_kind()
        for name in ("n_layer", "n_head", "d_model", "context_length", "vocab_multiple"):
            _check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        for name in (
            "n_kv_head",
            "d_ff",
            "vocab_size",
            "size",
            "window",
            "value_embedding_every",
            "rope_original_context",
        ):
            _check(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 (derived) or more")
        good = all(2 <= n <= 8 for n in self.ngram_orders) and list(self.ngram_orders) == sorted(set(self.ngram_orders))
        _check(good, "model.ngram_orders", self.ngram_orders, "orders from 2 to 8, each once, ascending")
        _check(self.ngram_table_size >= 1, "model.ngram_table_size", self.ngram_table_size, "at least 1")
        for name in ("dropout", "attention_dropout", "ngram_dropout"):
            _check(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "at least 0 and below 1")
        _check(0 <= self.logit_softcap < math.inf, "model.logit_softcap", self.logit_softcap, "0 (none) or more")
        _check(1 < self.rope_base < math.inf, "model.rope_base", self.rope_base, "above 1")
        _check(1 <= self.rope_factor < math.inf, "model.rope_factor", self.rope_factor, "1 or more")
        _check(0 < self.norm_eps < math.inf, "model.norm_eps", self.norm_eps, "above 0")
        _check(1 <= self.ngram_order <= 255, "model.ngram_order", self.ngram_order, "1 to 255")
        _check(0 < self.add_k < math.inf, "model.add_k", self.add_k, "above 0 (to add nothing: smoothing mle)")
        if self.kind == "gpt":
            self._check_transformer()

    def _check_kind(self) -> None:
        """Refuses settings of another kind."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in settings_of(self.kind):
                raise ConfigError(
                    f"model.{field.name} = {_as_toml(value)} means nothing to a model of kind {self.kind}. Leave it "
                    "out, or choose another --preset."
                )

    def _check_transformer(self) -> None:
        if self.d_model % self.n_head:
            near = _nearest_multiple(self.d_model, self.n_head * (2 if self.positions == "rope" else 1))
            raise ConfigError(
                f"model.n_head = {self.n_head} does not divide model.d_model = {self.d_model}: each head needs the "
                f"same whole width. Use model.d_model {near} or another number of heads."
            )
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ConfigError(
                f"model.n_kv_head = {self.n_kv_head} does not divide model.n_head = {self.n_head}: each key-value head "
                "serves a whole number of query heads."
            )
        if self.positions == "rope" and self.d_head % 2:
            raise ConfigError(
                f"model.positions = 'rope' turns pairs of numbers, but each head is {self.d_head} wide (d_model "
                f"{self.d_model} over n_head {self.n_head}). Choose an even width."
            )
        scaled, original = self.rope_scaling != "none", self.rope_original_context > 0
        if (self.rope_factor > 1 and not scaled) or original != (self.rope_scaling == "llama3"):
            raise ConfigError(
                f"model.rope_scaling = {self.rope_scaling!r}, model.rope_factor = {self.rope_factor:g} and "
                f"model.rope_original_context = {self.rope_original_context} do not go together: linear has a factor, "
                "llama3 a factor and an original context, none neither."
            )
        if scaled and self.positions != "rope":
            raise ConfigError(
                f"model.rope_scaling = {self.rope_scaling!r} stretches rotary positions, and model.positions is "
                f"{self.positions!r}: set one of the two."
            )
        _check(set(self.window_pattern) <= set("SL"), "model.window_pattern", self.window_pattern, "letters S and L")
        if bool(self.window) != ("S" in self.window_pattern):
            raise ConfigError(
                f"model.window = {self.window} and model.window_pattern = {self.window_pattern!r} do not go together: "
                "the window says how far the layers marked S see. Set both, as in window 256, window_pattern SSSL, or "
                "neither."
            )
        if self.norm == "none":
            for name, off in (("norm_gain", False), ("embedding_norm", False), ("norm_placement", "pre")):
                if getattr(self, name) != off:
                    raise ConfigError(
                        f"model.norm = 'none' leaves nothing that model.{name} = {_as_toml(getattr(self, name))} could "
                        f"be said of: set model.{name} to {_as_toml(off)} as well."
                    )
        if self.ngram_dropout and not self.ngram_orders:
            raise ConfigError(
                f"model.ngram_dropout = {self.ngram_dropout:g}, but model.ngram_orders is empty: there are no n-grams "
                "to leave out. Set it to 0."
            )

    @property
    def has_dropout(self) -> bool:
        return bool(self.dropout or self.attention_dropout or self.ngram_dropout)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    @property
    def n_kv(self) -> int:
        """Key-value heads, with 0 resolved."""
        return self.n_kv_head or self.n_head

    @property
    def width_ff(self) -> int:
        """Feed-forward width, with 0 resolved."""
        if self.d_ff:
            return self.d_ff
        return -(-8 * self.d_model // 3 // 64) * 64 if self.gated else 4 * self.d_model

    @property
    def gated(self) -> bool:
        """The feed-forward multiplies two linear maps of its input."""
        return self.feed_forward in ("swiglu", "geglu")

    def window_of(self, layer: int) -> int:
        """How many tokens this layer sees, its own included; 0: all."""
        pattern = self.window_pattern or "L"
        return self.window if pattern[layer % len(pattern)] == "S" else 0

    def has_value_embedding(self, layer: int) -> bool:
        every = self.value_embedding_every
        return bool(every) and (self.n_layer - 1 - layer) % every == 0

    @property
    def d_value_gate(self) -> int:
        """So many numbers of a layer's input decide how much of a token's value embedding is added."""
        return min(32, self.d_model)

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


_NGRAM_ALONE = {"ngram_order", "smoothing", "add_k"}
_RNN_ALONE = {"cell", "activation"}
_RNN_TOO = {"n_layer", "d_model", "vocab_multiple", "context_length", "tied_head", "dropout", "logit_softcap"}


def settings_of(kind: str) -> set[str]:
    """The settings of ModelConfig that mean something to a kind of model."""
    if kind == "ngram":
        return {"kind", "vocab_size"} | _NGRAM_ALONE
    if kind == "rnn":
        return {"kind", "vocab_size"} | _RNN_ALONE | _RNN_TOO
    return {field.name for field in dataclasses.fields(ModelConfig)} - _NGRAM_ALONE - _RNN_ALONE


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser. With `muon`, matrices inside blocks go to Muon and everything else to AdamW."""

    name: Literal["adamw", "muon", "sgd"] = setting(
        "muon", "adamw or sgd for all, or muon for matrices and adamw for the rest"
    )
    learning_rate: float = setting(3e-3, "AdamW's or SGD's peak learning rate")
    table_learning_rate: float = setting(0.0, "AdamW's peak for embedding tables; 0: learning_rate")
    muon_learning_rate: float = setting(0.02, "Muon's peak learning rate: about the spectral norm of an update")
    muon_momentum: float = setting(0.95, "Muon's Nesterov momentum")
    muon_method: Literal["newton-schulz", "polar-express"] = setting(
        "newton-schulz",
        "how Muon makes matrices orthogonal: one quintic repeated, or the best one for each turn",
    )
    muon_iterations: int = setting(5, "iterations of that")
    sgd_momentum: float = setting(0.9, "SGD's momentum; 0: none")
    sgd_nesterov: bool = setting(True, "SGD's momentum looks ahead")
    beta1: float = setting(0.9, "AdamW's decay of the first moment")
    beta2: float = setting(0.95, "AdamW's decay of the second moment")
    eps: float = setting(1e-8, "AdamW's epsilon")
    weight_decay: float = setting(
        0.0, "decoupled weight decay, on tensors of two or more dimensions alone (with muon not on embedding tables)"
    )
    clip_norm: float = setting(0.0, "global gradient norm is clipped to this; 0: no clipping")

    def __post_init__(self) -> None:
        for name in ("learning_rate", "muon_learning_rate", "eps"):
            _check(0 < getattr(self, name) < math.inf, f"optim.{name}", getattr(self, name), "above 0")
        for name in ("beta1", "beta2", "muon_momentum", "sgd_momentum"):
            _check(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "at least 0 and below 1")
        for name in ("table_learning_rate", "weight_decay", "clip_norm"):
            _check(0 <= getattr(self, name) < math.inf, f"optim.{name}", getattr(self, name), "0 or more")
        _check(self.muon_iterations >= 1, "optim.muon_iterations", self.muon_iterations, "at least 1")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate as a share of its peak: a pure function of the step and the number of steps."""

    shape: Literal["constant", "linear", "cosine", "trapezoid", "inverse-sqrt"] = setting(
        "trapezoid",
        "after warm-up: constant; linear or cosine down to the end; constant, then linear cool-down (warm-up, stable, "
        "decay); or as 1/sqrt(step)",
    )
    warmup_steps: int = setting(10, "steps of linear warm-up from zero")
    cooldown_fraction: float = setting(0.7, "share of the steps in which a trapezoid comes down")
    final_fraction: float = setting(0.0, "share of the peak that the learning rate comes down to at the end")

    def __post_init__(self) -> None:
        _check(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "0 or more")
        for name in ("cooldown_fraction", "final_fraction"):
            _check(0 <= getattr(self, name) <= 1, f"schedule.{name}", getattr(self, name), "between 0 and 1")


@dataclass(frozen=True)
class DataSource:
    """One of several sources that are mixed: a `[[data.source]]` of a recipe."""

    path: str = setting("", "a file, folder or glob of text, or a folder of token shards")
    weight: float = setting(1.0, "share of the training rows that are from it, relative to the other weights")

    def __post_init__(self) -> None:
        _check(bool(self.path), "data.source.path", repr(self.path), "a file, folder or glob")
        _check(0 < self.weight < math.inf, "data.source.weight", self.weight, "above 0")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is read."""

    sources: tuple[str, ...] = setting((), "files, folders or globs")
    source: tuple[DataSource, ...] = setting(
        (), "in a recipe, instead of sources: [[data.source]], with path and weight"
    )
    text_field: str = setting("text", "field of .jsonl and column of .parquet that holds the text")
    encoding: str = setting("auto", "auto: UTF-8, or UTF-16/32 by byte-order mark; or any encoding Python knows")
    errors: Literal["strict", "replace"] = setting("strict", "undecodable bytes stop, or become U+FFFD and are counted")
    documents: Literal["stream", "packed", "rows"] = setting(
        "stream",
        "stream: windows of the whole text; packed: the same, no token sees another document; rows: a document (in a "
        "text of one: a line) a row, cut or padded to the context",
    )
    validation_fraction: float = setting(0.0, "share of the text held out; 0: a tenth, at most 250,000 characters")
    validation_tokens: int = setting(0, "of a folder of shards: validate on the first N tokens held out; 0: all")

    def __post_init__(self) -> None:
        _check(0 <= self.validation_fraction < 1, "data.validation_fraction", self.validation_fraction, "0 to below 1")
        _check(self.validation_tokens >= 0, "data.validation_tokens", self.validation_tokens, "0 (all) or more")
        if self.sources and self.source:
            raise ConfigError(
                f"data.sources = {', '.join(self.sources)} and {len(self.source)} [[data.source]] both say what to "
                "train on: use one of them, the latter to mix sources by weight."
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """All that is trained on, mixed by weight or not."""
        return self.sources or tuple(source.path for source in self.source)


@dataclass(frozen=True)
class TrainConfig:
    """One run's length, batch, rhythm and machine."""

    steps: int = setting(0, "number of updates; 0: from --minutes or --tokens")
    minutes: float = setting(
        0.0, "the whole command ends within this; 0: 10, unless --steps or --tokens say the length"
    )
    tokens: int = setting(0, "number of training tokens; 0: from --steps or --minutes")
    batch_size: int = setting(32, "sequences an update")
    batch_tokens: int = setting(
        0, "tokens an update, instead of batch_size: as many sequences as come nearest; 0: none"
    )
    batch_start: int = setting(0, "sequences of the first update, growing to batch_size; 0: batch_size from the start")
    batch_ramp: float = setting(0.5, "(batch_start) share of the steps over which the batch grows, linearly")
    micro_batch_size: int = setting(0, "sequences at once; the rest by accumulation; 0: the whole batch")
    carry_state: bool = setting(
        False, "(rnn) each sequence goes on where the batch before ended it, with its state, not its gradient"
    )
    start_from: str = setting("", "a run, trained here or imported, whose weights and tokenizer this one begins with")
    seed: int = setting(1, "initial weights, data order and dropout follow from it")
    eval_every: int = setting(0, "steps between evaluations on the whole validation split; 0: about ten a run")
    save_every: int = setting(0, "steps between checkpoints; 0: about every minute")
    log_every: int = setting(0, "steps between lines of metrics; 0: about two hundred a run")
    keep: int = setting(2, "checkpoints kept (the best is kept as well)")
    track: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        (), "what is also told the numbers of metrics.jsonl: tensorboard, wandb"
    )
    on_spike: Literal["no", "stop", "skip", "rewind"] = setting(
        "no", "where loss or gradient norm leap: stop with a record; leave that update out; or go back and leave it out"
    )
    spike_z: float = setting(6.0, "a leap is so many standard deviations above the running mean of the logarithm")
    stop_at_val_loss: float = setting(0.0, "stop at the first evaluation at or below this; 0: never")
    engine: Literal["torch", "reference"] = setting(
        "torch", "who computes gradients and updates: PyTorch; or for GPT-2, NumPy, by hand"
    )
    device: str = setting("auto", "auto: cuda, mps or cpu, in that order")
    threads: int = setting(0, "CPU threads; 0: OMP_NUM_THREADS if it is set, else one a core")
    yield_cores: Literal["auto", "yes", "no"] = setting(
        "auto",
        "use fewer threads while other programs keep cores busy, if the numbers stay the same bit by bit; auto: unless "
        "threads or OMP_NUM_THREADS are set",
    )
    dtype: Literal["auto", "float32", "tf32", "bfloat16", "float16", "float64"] = setting(
        "auto", "precision of the matrix products; auto: bfloat16 where it is faster, measured"
    )
    compile: Literal["auto", "yes", "no"] = setting(
        "auto", "torch.compile of the blocks; auto: where it pays in the time"
    )
    recompute: bool = setting(
        False, "keep no activations inside blocks but make them again for the gradient: less memory"
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp", "under torchrun, each process holds: the whole model, or (fsdp) a share of it"
    )
    matmul: Literal["auto", "default", "onednn"] = setting(
        "auto", "library for float32 matrix products on CPUs; auto: the faster, measured"
    )

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        _check(self.keep >= 1, "train.keep", self.keep, "at least 1")
        for name in (
            "steps",
            "minutes",
            "tokens",
            "batch_tokens",
            "batch_start",
            "micro_batch_size",
            "eval_every",
            "save_every",
            "log_every",
            "threads",
        ):
            _check(0 <= getattr(self, name) < math.inf, f"train.{name}", getattr(self, name), "0 or more")
        _check(0 < self.batch_ramp <= 1, "train.batch_ramp", self.batch_ramp, "above 0 and at most 1")
        _check(0 < self.spike_z < math.inf, "train.spike_z", self.spike_z, "above 0")
        good = 0 <= self.stop_at_val_loss < math.inf
        _check(good, "train.stop_at_val_loss", self.stop_at_val_loss, "0 (never) or more")
        # PyTorch's generators on CPUs take 32 bits of a seed: of larger ones, some would give the same weights.
        _check(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 4,294,967,295")

    def rows_of(self, step: int) -> int:
        """Sequences of update `step` (from 0): while the batch grows, a multiple of what divides its start and end.

        Processes that can share those two can share all between; how many they are changes nothing.
        """
        n_growing = math.ceil(self.batch_ramp * self.steps)
        if not self.batch_start or step >= n_growing:
            return self.batch_size
        unit = math.gcd(self.batch_start, self.batch_size)
        return self.batch_start + (self.batch_size - self.batch_start) * step // n_growing // unit * unit


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `config.toml` in a run folder is this, resolved: all that is needed to repeat it."""

    preset: str = setting("modern", "the named starting point the other settings were changed from")
    tokenizer: str = setting("auto", "auto, byte, char, word, bpe:SIZE, gpt2, or a tokenizer folder")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        kind = self.model.kind
        if kind != "rnn" and self.train.carry_state:
            raise ConfigError(f"train.carry_state carries the state of recurrent networks, and model.kind is {kind}.")
        if kind == "rnn" and self.train.parallel == "fsdp":
            raise ConfigError(
                "train.parallel = 'fsdp' shards weights that PyTorch's recurrent kernels want whole: set it to ddp."
            )

    def changed(self, changes: Mapping[str, Any], *, where: str) -> Self:
        """A copy with dotted settings replaced: `{"model.n_layer": 6}`. Text is parsed by the setting's type.

        All changes are made at once, so settings that only fit together can be changed together. `where` says in errors
        whence they come ("the command line", a recipe's path). Raises ConfigError.
        """
        known = dict(settings(type(self)))
        sections: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in known:
                raise ConfigError(f"unknown setting {name!r} in {where}.{_nearest(name, known)}")
            parsed = _parse(name, known[name].kind, value, where)
            section, _, key = name.rpartition(".")
            (sections.setdefault(section, {}) if section else top)[key] = parsed
        parts = {name: dataclasses.replace(getattr(self, name), **values) for name, values in sections.items()}
        return dataclasses.replace(self, **top, **parts)

    def to_toml(self) -> str:
        """All settings, of the model those that mean something to its kind."""
        sections = dataclasses.asdict(self)
        of_kind = settings_of(self.model.kind)
        return tomli_w.dumps(sections | {"model": {k: v for k, v in sections["model"].items() if k in of_kind}})


@dataclass(frozen=True)
class Setting:
    """One leaf of RunConfig, as the command line and `docs/` need it."""

    name: str
    kind: Any
    default: Any
    meaning: str

    @property
    def choices(self) -> tuple[str, ...]:
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()


CHANGEABLE = {
    *("train.micro_batch_size", "train.recompute", "train.parallel"),
    *("train.threads", "train.yield_cores"),
    *("train.save_every", "train.keep", "train.track", "train.on_spike", "train.spike_z"),
}
"""What a run may be resumed with: it changes speed, memory and what is kept, or is a way past a spike; not the plan."""


def settings(config: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every setting by dotted name, in declaration order."""
    kinds = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name = prefix + field.name
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from settings(kinds[field.name], name + ".")
        else:
            yield name, Setting(name, kinds[field.name], field.default, field.metadata["meaning"])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"n_layer": 6}}` -> `{"model.n_layer": 6}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def read_toml(path: Path) -> dict[str, Any]:
    """Dotted settings of a TOML file. Raises ConfigError for a file that is missing or is not TOML."""
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8-sig")))  # editors on Windows write a mark first
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error


def _parse(name: str, kind: Any, value: Any, where: str) -> Any:
    """`value` (text from the command line, or a TOML value) as the setting's type. Raises ConfigError."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        found, wanted = value if value in inner else None, "one of " + ", ".join(inner)
    elif origin is tuple:
        if value == "none":  # as help shows an empty one
            return ()
        parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if isinstance(parts, list | tuple):
            return tuple(_parse(name, inner[0], part, where) for part in parts)
        found, wanted = None, "a list"
    elif dataclasses.is_dataclass(kind):
        found, wanted = _as_table(name, kind, value, where), "a table, as in [[data.source]]"
    else:
        found = {bool: _as_bool, int: _as_int, float: _as_float, str: _as_text}[kind](value)
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    if found is None:
        raise ConfigError(f"{name} = {value!r} in {where}: wanted {wanted}.")
    return found


def _as_table(name: str, kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind) or not isinstance(value, Mapping):
        return value if isinstance(value, kind) else None
    known = {f"{name}.{leaf}": setting for leaf, setting in settings(kind)}
    for key in value:
        if f"{name}.{key}" not in known:
            raise ConfigError(f"unknown setting '{name}.{key}' in {where}.{_nearest(f'{name}.{key}', known)}")
    return kind(
        **{key: _parse(f"{name}.{key}", known[f"{name}.{key}"].kind, part, where) for key, part in value.items()}
    )


def _as_bool(value: Any) -> bool | None:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return words.get(value.lower()) if isinstance(value, str) else value if isinstance(value, bool) else None


def _as_int(value: Any) -> int | None:
    """12, "12", 12.0 and "1.2e1" are 12. Whole text goes by int(), which is exact where float() would round."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = _as_float(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole else None


def _as_float(value: Any) -> float | None:
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _check(good: bool, name: str, found: Any, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name} = {found}: wanted {wanted}.")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the setting that was meant: the same or a like word in another section, or a like name as a whole."""
    word = name.rpartition(".")[2]
    whose = {full.rpartition(".")[2]: full for full in reversed(list(known))}
    likest = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(word, whose, n=1)
    near = whose[word] if word in whose else whose.get(likest[0], likest[0]) if likest else None
    return f" Did you mean {near!r}?" if near else " `lmsmith train --help` lists them all."


def _nearest_multiple(number: int, of: int) -> int:
    return max(of, round(number / of) * of)
