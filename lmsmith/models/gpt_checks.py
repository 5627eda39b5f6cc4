"""Checks settings of the Transformer in combination. Each function raises ConfigError."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmsmith.config.settings import as_toml, check
from lmsmith.errors import ConfigError

if TYPE_CHECKING:
    from lmsmith.models.gpt_config import GPTConfig

# rope_scaling -> whether it has a factor, an original context, one factor per pair, and a factor of
# queries and keys
_SCALING = {
    "none": (False, False, False, False),
    "linear": (True, False, False, False),
    "llama3": (True, True, False, False),
    "yarn": (True, True, False, True),
    "longrope": (True, True, True, True),
}


def check_heads(config: GPTConfig) -> None:
    """The widths and numbers of attention heads."""
    if not config.d_head and config.d_model % config.n_head:
        step = config.n_head * (2 if config.positions == "rope" else 1)
        near = max(step, round(config.d_model / step) * step)
        raise ConfigError(
            f"model.n_head = {config.n_head} does not divide model.d_model = {config.d_model}: all "
            f"heads must have the same width. Use model.d_model {near} or another number of "
            "heads, or set model.d_head."
        )
    if config.n_kv_head and config.n_head % config.n_kv_head:
        raise ConfigError(
            f"model.n_kv_head = {config.n_kv_head} does not divide model.n_head = {config.n_head}: "
            "each key-value head serves the same number of query heads."
        )
    if config.positions != "rope":
        return
    width = (
        f"model.d_head = {config.d_head}"
        if config.d_head
        else f"d_model {config.d_model} over n_head {config.n_head}"
    )
    if config.rope_fraction == 1 and config.width_head % 2:
        raise ConfigError(
            "model.positions = 'rope' rotates pairs of numbers, but each head is "
            f"{config.width_head} wide ({width}). Choose an even width."
        )
    if config.width_rotary % 2 or not config.width_rotary:
        raise ConfigError(
            f"model.rope_fraction = {config.rope_fraction:g} of heads that are {config.width_head} "
            f"wide ({width}) is {config.width_rotary} numbers, but RoPE rotates pairs. Choose a "
            "fraction that gives an even number above 0."
        )


def check_rope(config: GPTConfig) -> None:
    """RoPE and its scaling."""
    check(1 < config.rope_base < math.inf, "model.rope_base", config.rope_base, "above 1")
    check(1 <= config.rope_factor < math.inf, "model.rope_factor", config.rope_factor, "1 or more")
    own = config.rope_attention_factor
    check(0 <= own < math.inf, "model.rope_attention_factor", own, "auto or more than 0")
    pattern = config.rope_pattern
    check(set(pattern) <= set("RN"), "model.rope_pattern", pattern, "letters R and N")
    kind = config.rope_scaling
    factor, original, pairs, attention = _SCALING[kind]
    if (config.rope_factor > 1 and not factor) or original != (config.rope_original_context > 0):
        raise ConfigError(
            f"model.rope_scaling = {kind!r}, model.rope_factor = {config.rope_factor:g} and "
            f"model.rope_original_context = {config.rope_original_context} do not go together: "
            "linear needs a factor; llama3, yarn and longrope need a factor and an original "
            "context; none needs neither."
        )
    if own and not attention:
        raise ConfigError(
            f"model.rope_attention_factor = {own:g}, but model.rope_scaling is {kind!r}: only yarn "
            "and longrope scale queries and keys. Set model.rope_attention_factor to auto."
        )
    factors = config.rope_factors
    if (bool(factors) and not pairs) or (pairs and len(factors) != config.width_rotary // 2):
        raise ConfigError(
            f"model.rope_factors = {factors} has {len(factors)} numbers: expected "
            f"{config.width_rotary // 2 if pairs else 0} with model.rope_scaling = {kind!r}, model."
            f"rope_fraction = {config.rope_fraction:g} and heads that are {config.width_head} wide."
        )
    good = all(0 < value < math.inf for value in factors)
    check(good, "model.rope_factors", factors, "numbers above 0")
    if config.rope_original_context == 1 and pairs and not own:
        check(False, "model.rope_original_context", 1, "2 or more with longrope")
    changed = {
        "rope_scaling": (kind, "none", "stretches"),
        "rope_pattern": (pattern, "", "chooses the layers with"),
        "rope_fraction": (config.rope_fraction, 1.0, "limits"),
    }
    for name, (value, default, does) in changed.items():
        if value != default and config.positions != "rope":
            raise ConfigError(
                f"model.{name} = {value!r} {does} rotary positions, but model.positions is "
                f"{config.positions!r}. Set model.positions to 'rope' or model.{name} to "
                f"{default!r}."
            )


def check_combinations(config: GPTConfig) -> None:
    """Settings that need, or exclude, others."""
    good = set(config.window_pattern) <= set("SL")
    check(good, "model.window_pattern", config.window_pattern, "letters S and L")
    if bool(config.window) != ("S" in config.window_pattern):
        raise ConfigError(
            f"model.window = {config.window} and model.window_pattern = {config.window_pattern!r} "
            "do not go together: the window says how far the layers marked S see. Set both "
            "(such as window 256 and window_pattern SSSL) or neither."
        )
    if config.norm == "none":
        off = {"norm_gain": False, "embedding_norm": False, "norm_placement": "pre"}
        for name, value in off.items():
            if getattr(config, name) != value:
                raise ConfigError(
                    f"model.norm = 'none' turns all norms off, but model.{name} = "
                    f"{as_toml(getattr(config, name))} needs one: set model.{name} to "
                    f"{as_toml(value)} as well."
                )
    if config.qk_gain != "head" and not config.qk_norm:
        raise ConfigError(
            f"model.qk_gain = {config.qk_gain!r} is the gain of normalized queries and keys, but "
            "model.qk_norm is false. Set model.qk_norm to true or model.qk_gain to 'head'."
        )
    if config.parallel_residual and config.norm_placement == "post":
        raise ConfigError(
            "model.parallel_residual adds both sublayers to the block's input, but "
            "model.norm_placement = 'post' normalizes between them. Set model.norm_placement to "
            "'pre' or 'output', or model.parallel_residual to false."
        )
    if config.ngram_dropout and not config.ngram_tables:
        raise ConfigError(
            f"model.ngram_dropout = {config.ngram_dropout:g}, but model.ngram_tables is empty: "
            "there are no n-gram embeddings to drop. Set model.ngram_dropout to 0."
        )
    if config.parametrization == "mup" and config.tied_head:
        raise ConfigError(
            "model.parametrization = 'mup' needs an initialization and a learning rate of the head "
            "that differ from those of the embedding table, but model.tied_head is true. Set "
            "model.tied_head to false."
        )
