"""Llama and the architectures that differ from it in a few switches.

| architecture | differences |
|---|---|
| LlamaForCausalLM | |
| MistralForCausalLM | a sliding window in all layers |
| Qwen2ForCausalLM | biases of queries, keys and values; a sliding window in some layers |
| Qwen3ForCausalLM | QK-norm with gains per dimension; a sliding window in some layers |
| SmolLM3ForCausalLM | layers without RoPE; a sliding window in some layers |
| Olmo2ForCausalLM | norms of the sublayers' outputs; QK-norm over all heads |

Source: transformers 4.57, `models/llama` and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmsmith.interop.families.gpt2 import INDIFFERENT, NOT_THERE
from lmsmith.interop.families.layers import (
    mistral_window,
    qwen_windows,
    smollm3_layers,
    written_qwen_windows,
    written_smollm3_layers,
)
from lmsmith.interop.mapping import Architecture, difference, flag
from lmsmith.interop.pieces import Piece, rotary_rows
from lmsmith.interop.rope import SIZES, WANTS
from lmsmith.models.gpt_config import GPTConfig

# ---- tensors -------------------------------------------------------------------------------------


def _pieces(config: GPTConfig) -> dict[str, list[Piece]]:
    D, V = config.d_model, config.vocab_size
    table = {
        "token_embedding.weight": [Piece("model.embed_tokens.weight", V)],
        "final_norm.weight": [Piece("model.norm.weight", D)],
    }
    names = ("input_layernorm", "post_attention_layernorm")
    if config.norm_placement == "output":
        names = ("post_attention_layernorm", "post_feedforward_layernorm")
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        table[f"{ours}.norm_attention.weight"] = [Piece(f"{theirs}.{names[0]}.weight", D)]
        table[f"{ours}.norm_feed_forward.weight"] = [Piece(f"{theirs}.{names[1]}.weight", D)]
        table |= _attention(config, i) | _feed_forward(config, i)
    if not config.tied_head:
        table["head.weight"] = [Piece("lm_head.weight", V)]
    return table


def _attention(config: GPTConfig, layer: int) -> dict[str, list[Piece]]:
    H, G, K = config.n_head, config.n_kv, config.width_head
    ours, theirs = f"blocks.{layer}.attention", f"model.layers.{layer}.self_attn"
    R = config.width_rotary if config.has_rope(layer) else 0
    table, biases = {}, config.attention_biases
    for part in ("weight",) if biases == "none" else ("weight", "bias"):
        table[f"{ours}.qkv.{part}"] = [
            Piece(f"{theirs}.q_proj.{part}", H * K, rotary_rows(H, K, R)),
            Piece(f"{theirs}.k_proj.{part}", G * K, rotary_rows(G, K, R)),
            Piece(f"{theirs}.v_proj.{part}", G * K),
        ]
    for part in ("weight", "bias") if biases == "all" else ("weight",):
        table[f"{ours}.out.{part}"] = [Piece(f"{theirs}.o_proj.{part}", config.d_model)]
    if config.qk_norm:
        n_q, n_k = (H, G) if config.qk_gain == "projection" else (1, 1)
        for name, n in (("q", n_q), ("k", n_k)):
            table[f"{ours}.{name}_gain"] = [
                Piece(f"{theirs}.{name}_norm.weight", n * K, rotary_rows(n, K, R))
            ]
    return table


def _feed_forward(config: GPTConfig, layer: int) -> dict[str, list[Piece]]:
    ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
    table, F = {}, config.width_ff
    for part in ("weight", "bias") if config.bias else ("weight",):
        table[f"{ours}.up.{part}"] = [
            Piece(f"{theirs}.gate_proj.{part}", F),
            Piece(f"{theirs}.up_proj.{part}", F),
        ]
        table[f"{ours}.down.{part}"] = [Piece(f"{theirs}.down_proj.{part}", config.d_model)]
    return table


def _complete(config: GPTConfig) -> GPTConfig:
    """All norms have gains, and attention has all biases or none."""
    full = dataclasses.replace(config, norm_gain=True)
    if config.attention_biases == "qkv":
        full = dataclasses.replace(full, attention_bias="all")
    return full


# ---- settings ------------------------------------------------------------------------------------


def _biases(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    attention = flag(found, "attention_bias", False, path)
    bias = flag(found, "mlp_bias", False, path)
    own = "all" if attention else "none"
    return {"bias": bias, "attention_bias": "auto" if attention == bias else own}


def _written_biases(config: GPTConfig) -> dict[str, Any]:
    return {"mlp_bias": config.bias, "attention_bias": config.attention_biases == "all"}


def _attention_biases(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same for architectures without biases in feed-forward layers."""
    return {"attention_bias": "all" if flag(found, "attention_bias", False, path) else "auto"}


def _written_attention_biases(config: GPTConfig) -> dict[str, Any]:
    return {"attention_bias": config.attention_biases == "all"}


def _head_width(found: Mapping[str, Any], default: int | None) -> dict[str, Any]:
    """The width of a head; "auto" if it is the automatic one."""
    d_head, wide, heads = (
        found.get(name, otherwise)
        for name, otherwise in (
            ("head_dim", default),
            ("hidden_size", None),
            ("num_attention_heads", None),
        )
    )
    if isinstance(d_head, int) and isinstance(heads, int) and d_head * heads == wide:
        d_head = 0
    return {"d_head": d_head}


# ---- architectures -------------------------------------------------------------------------------

_SIZES: dict[str, tuple[str, Any]] = {
    "n_layer": ("num_hidden_layers", 32),
    "n_head": ("num_attention_heads", 32),
    "n_kv_head": ("num_key_value_heads", None),
    "d_model": ("hidden_size", 4096),
    "d_head": ("head_dim", None),
    "d_ff": ("intermediate_size", 11008),
    "vocab_size": ("vocab_size", 32000),
    "context_length": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied_head": ("tie_word_embeddings", False),
    "attention_dropout": ("attention_dropout", 0.0),
    **SIZES,
}
_WINDOWS = frozenset(("window", "window_pattern"))

Read = Callable[[Mapping[str, Any], Path], dict[str, Any]]
Write = Callable[[GPTConfig], dict[str, Any]]


def _like_llama(
    name: str,
    model_type: str,
    defaults: Mapping[str, Any],
    *,
    read: tuple[Read, ...],
    write: tuple[Write, ...],
    needs: Mapping[str, tuple[Any, ...]] | None = None,
    mapped: frozenset[str] = frozenset(),
    wants: Mapping[str, tuple[Any, ...]] | None = None,
    also: Callable[[GPTConfig], list[str]] = lambda config: [],
    complete: Callable[[GPTConfig], GPTConfig] = _complete,
) -> Architecture:
    """`defaults`: theirs of `sizes`, by our names, where they differ from Llama's."""
    sizes = {ours: (theirs, defaults.get(ours, usual)) for ours, (theirs, usual) in _SIZES.items()}
    usual = {theirs: default for theirs, default in sizes.values() if default is not None}

    def read_more(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
        known = usual | dict(found)
        settings = _head_width(known, defaults.get("d_head"))
        for part in read:
            settings |= part(known, path)
        return settings

    def more(config: GPTConfig) -> dict[str, Any]:
        return {key: value for part in write for key, value in part(config).items()}

    return Architecture(
        name=name,
        model_type=model_type,
        preset="llama",
        prefix="model.",
        sizes=sizes,
        needs=NOT_THERE
        | {"norm": ("rmsnorm",), "norm_gain": (True, False), "positions": ("rope",)}
        | dict(needs or {}),
        mapped=INDIFFERENT | {"dropout"} | mapped,
        activation="hidden_act",
        activations={"silu": "swiglu", "swish": "swiglu"},
        wants=WANTS | dict(wants or {}),
        read_more=read_more,
        more=more,
        buffers=r".*rotary_emb\.inv_freq",  # the frequencies, which the settings determine
        pieces=_pieces,
        complete=complete,
        also=also,
    )


def _no_padding(config: GPTConfig) -> dict[str, Any]:
    """Without this line, the padding token has the id that it has in their own vocabulary."""
    return {"pad_token_id": None}


def _unscaled(config: GPTConfig) -> list[str]:
    if config.rope_scaling == "none":
        return []
    return [difference("rope_scaling", config.rope_scaling, ("none",))]


def _all_layers_slide(config: GPTConfig) -> list[str]:
    if config.window_pattern in ("", "S"):
        return []
    return [difference("window_pattern", config.window_pattern, ("", "S"))]


LLAMA = _like_llama(
    "LlamaForCausalLM",
    "llama",
    {},
    read=(_biases,),
    write=(_written_biases,),
    mapped=frozenset(("bias", "attention_bias")),
)
MISTRAL = _like_llama(
    "MistralForCausalLM",
    "mistral",
    {"n_kv_head": 8, "d_ff": 14336, "context_length": 4096 * 32},
    read=(mistral_window,),
    write=(lambda config: {"sliding_window": config.window or None},),
    mapped=_WINDOWS,
    also=_all_layers_slide,
)
QWEN2 = _like_llama(
    "Qwen2ForCausalLM",
    "qwen2",
    {"n_kv_head": 32, "d_ff": 22016, "vocab_size": 151936, "context_length": 32768},
    needs={"attention_bias": ("qkv",)},
    read=(qwen_windows,),
    write=(written_qwen_windows,),
    mapped=_WINDOWS,
    complete=lambda config: dataclasses.replace(config, norm_gain=True),
)
QWEN3 = _like_llama(
    "Qwen3ForCausalLM",
    "qwen3",
    {
        "n_kv_head": 32,
        "d_head": 128,
        "d_ff": 22016,
        "vocab_size": 151936,
        "context_length": 32768,
    },
    needs={"qk_norm": (True,), "qk_gain": ("dimension",)},
    read=(_attention_biases, qwen_windows),
    write=(_written_attention_biases, written_qwen_windows),
    mapped=_WINDOWS | {"attention_bias"},
)
SMOLLM3 = _like_llama(
    "SmolLM3ForCausalLM",
    "smollm3",
    {
        "n_layer": 36,
        "n_head": 16,
        "n_kv_head": 4,
        "d_model": 2048,
        "vocab_size": 128256,
        "context_length": 32768,
        "rope_base": 2_000_000.0,
        "tied_head": True,
    },
    read=(_biases, smollm3_layers),
    write=(_written_biases, written_smollm3_layers, _no_padding),
    mapped=_WINDOWS | {"bias", "attention_bias", "rope_pattern"},
)
OLMO2 = _like_llama(
    "Olmo2ForCausalLM",
    "olmo2",
    {"vocab_size": 50304, "norm_eps": 1e-5},
    needs={"norm_placement": ("output",), "qk_norm": (True,), "qk_gain": ("projection",)},
    read=(_attention_biases,),
    write=(_written_attention_biases, _no_padding),
    mapped=frozenset(("attention_bias",)),
    wants={"rope_scaling.rope_type": ("none",)},  # transformers 4 rejects all kinds but two
    also=_unscaled,
)
