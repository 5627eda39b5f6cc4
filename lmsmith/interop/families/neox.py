"""GPTNeoXForCausalLM, the architecture of Pythia. Source: transformers 4.57, `models/gpt_neox`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsmith.errors import ConfigError
from lmsmith.foreign_json import shown
from lmsmith.interop.families.gpt2 import GELUS, INDIFFERENT, NOT_THERE
from lmsmith.interop.mapping import Architecture, flag
from lmsmith.interop.pieces import Piece, rotary_rows
from lmsmith.interop.rope import SIZES, WANTS
from lmsmith.models.gpt_config import GPTConfig


@functools.cache
def _qkv_rows(H: int, K: int, R: int) -> Tensor:
    """`Piece.order` of their rows: the queries, keys and values of the first head, and so on."""
    plain = torch.arange(H * K, device="cpu")
    parts = []
    for part, rows in enumerate((rotary_rows(H, K, R), rotary_rows(H, K, R), plain)):
        head, row = rows // K, rows % K
        parts.append((head * 3 + part) * K + row)
    return torch.cat(parts)


def _pieces(config: GPTConfig) -> dict[str, list[Piece]]:
    D, F, V, K = config.d_model, config.width_ff, config.vocab_size, config.width_head
    table = {
        "token_embedding.weight": [Piece("gpt_neox.embed_in.weight", V)],
        "final_norm.weight": [Piece("gpt_neox.final_layer_norm.weight", D)],
        "final_norm.bias": [Piece("gpt_neox.final_layer_norm.bias", D)],
    }
    qkv = _qkv_rows(config.n_head, K, config.width_rotary)
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"gpt_neox.layers.{i}"
        for part in ("weight", "bias"):
            for norm, name in (
                ("norm_attention", "input_layernorm"),
                ("norm_feed_forward", "post_attention_layernorm"),
            ):
                table[f"{ours}.{norm}.{part}"] = [Piece(f"{theirs}.{name}.{part}", D)]
            if part == "weight" or config.attention_biases == "all":
                table[f"{ours}.attention.qkv.{part}"] = [
                    Piece(f"{theirs}.attention.query_key_value.{part}", 3 * D, qkv)
                ]
                table[f"{ours}.attention.out.{part}"] = [
                    Piece(f"{theirs}.attention.dense.{part}", D)
                ]
            table[f"{ours}.feed_forward.up.{part}"] = [
                Piece(f"{theirs}.mlp.dense_h_to_4h.{part}", F)
            ]
            table[f"{ours}.feed_forward.down.{part}"] = [
                Piece(f"{theirs}.mlp.dense_4h_to_h.{part}", D)
            ]
    if not config.tied_head:
        table["head.weight"] = [Piece("embed_out.weight", V)]
    return table


def _complete(config: GPTConfig) -> GPTConfig:
    full = dataclasses.replace(config, norm_gain=True, bias=True, attention_bias="auto")
    if config.attention_biases == "none":
        return dataclasses.replace(full, attention_bias="none")
    return full


def _prepared(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Their names of two RoPE settings, replaced by those of the other architectures.

    Raises ConfigError if the file has both with different values.
    """
    settings = dict(found)
    inner = found.get("rope_parameters")
    inside = inner if isinstance(inner, Mapping) else {}
    for own, usual, default in (
        ("rotary_emb_base", "rope_theta", 10_000),
        ("rotary_pct", "partial_rotary_factor", 0.25),
    ):
        value = settings.pop(own, None)
        if value is not None and found.get(usual) not in (None, value):
            raise ConfigError(
                f"{path} has {own} = {shown(value)} and {usual} = {shown(found[usual])}: remove "
                "the wrong one."
            )
        if inside.get(usual) is None:
            settings[usual] = default if value is None else value
    return settings


def _read_more(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {"attention_bias": "auto" if flag(found, "attention_bias", True, path) else "none"}


def _more(config: GPTConfig) -> dict[str, Any]:
    return {
        "attention_bias": config.attention_biases != "none",
        "rotary_pct": config.rope_fraction,
        "rotary_emb_base": config.rope_base,
    }


NEOX = Architecture(
    name="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    preset="gpt2",
    prefix="gpt_neox.",
    sizes={
        "n_layer": ("num_hidden_layers", 44),
        "n_head": ("num_attention_heads", 64),
        "d_model": ("hidden_size", 6144),
        "d_ff": ("intermediate_size", 24576),
        "vocab_size": ("vocab_size", 50432),
        "context_length": ("max_position_embeddings", 2048),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "parallel_residual": ("use_parallel_residual", True),
        "rope_fraction": ("partial_rotary_factor", 1.0),
        "tied_head": ("tie_word_embeddings", False),
        "dropout": ("hidden_dropout", 0.0),
        "attention_dropout": ("attention_dropout", 0.0),
        **SIZES,
    },
    needs=NOT_THERE
    | {
        "norm": ("layernorm",),
        "norm_gain": (True, False),
        "bias": (True, False),
        "positions": ("rope",),
    },
    mapped=INDIFFERENT | {"attention_bias"},
    activation="hidden_act",
    activations={"gelu": "gelu"} | GELUS,
    wants=WANTS,
    read_more=_read_more,
    more=_more,
    buffers=r".*attention\.(bias|masked_bias|rotary_emb\.inv_freq)",  # masks and frequencies
    pieces=_pieces,
    complete=_complete,
    head="embed_out.weight",
    prepared=_prepared,
)
