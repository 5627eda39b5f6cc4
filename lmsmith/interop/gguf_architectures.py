"""The architectures of llama.cpp that our Transformer computes, as tables of settings and tensors.

| in the file | ours | written | read |
|---|---|---|---|
| llama | `--preset llama`: RMSNorm, rotary positions, SwiGLU | yes | yes |
| gpt2 | `--preset gpt2`: LayerNorm, learned positions, GELU | yes | yes |
| qwen2 | Llama with biases on queries, keys and values | as llama | yes |
| qwen3 | `--preset qwen3`: Llama with QK-norm, gains per dimension of a head | yes | yes |

Matrices have the same form as ours, (out, in). Two things differ:

- Our queries, keys and values are one matrix, and so are the two halves of SwiGLU. llama's are
  several tensors.
- RoPE pairs: ours are neighbours 2i and 2i + 1, and so are those of llama.cpp's llama. Its qwen2
  and qwen3 rotate number i with number i + K/2, as transformers does: rows are reordered.

Source: llama.cpp, `src/llama-arch.cpp`, `src/llama-model.cpp` and `src/models/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmsmith.models.gpt_config import GPTConfig


@dataclass(frozen=True)
class Piece:
    """One tensor of the file: `n_rows` rows of one of ours."""

    name: str
    n_rows: int
    halves: int = 0
    """The width K of a head, if the file's RoPE rotates rows i and i + K/2 of it; else 0."""

    def to_ours(self, rows: Tensor) -> Tensor:
        if not self.halves:
            return rows
        return rows.unflatten(0, (-1, 2, self.halves // 2)).transpose(1, 2).flatten(0, 2)

    def to_theirs(self, rows: Tensor) -> Tensor:
        if not self.halves:
            return rows
        return rows.unflatten(0, (-1, self.halves // 2, 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Architecture:
    """`sizes`: our settings -> theirs. `neutral`: their other settings that may be there, and the
    values with which they change nothing; None: any value.
    """

    preset: str
    sizes: Mapping[str, str]
    neutral: Mapping[str, Any]
    pieces: Callable[[GPTConfig], dict[str, list[Piece]]]


def columns(ours: str, config: GPTConfig) -> tuple[int, ...]:
    """The sizes of one of our parameters after its rows."""
    if ours.endswith((".bias", "_gain")) or "norm" in ours:
        return ()
    if ours.endswith("feed_forward.down.weight"):
        return (config.width_ff,)
    if ours.endswith("attention.out.weight"):
        return (config.n_head * config.width_head,)
    return (config.d_model,)


# ---- tensors -------------------------------------------------------------------------------------


def _llama(config: GPTConfig, halves: bool = False) -> dict[str, list[Piece]]:
    """`halves`: RoPE rotates rows i and i + K/2 of a head, not neighbours."""
    D, F, K = config.d_model, config.width_ff, config.width_head
    biases, turned = config.attention_biases, K if halves else 0
    table = _ends(config, ("weight",))
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"blk.{i}"
        table[f"{ours}.norm_attention.weight"] = [Piece(f"{theirs}.attn_norm.weight", D)]
        table[f"{ours}.norm_feed_forward.weight"] = [Piece(f"{theirs}.ffn_norm.weight", D)]
        for part in ("weight",) if biases == "none" else ("weight", "bias"):
            table[f"{ours}.attention.qkv.{part}"] = [
                Piece(f"{theirs}.attn_q.{part}", config.n_head * K, turned),
                Piece(f"{theirs}.attn_k.{part}", config.n_kv * K, turned),
                Piece(f"{theirs}.attn_v.{part}", config.n_kv * K),
            ]
        for name in "qk" if config.qk_norm else "":
            gain = Piece(f"{theirs}.attn_{name}_norm.weight", K, turned)
            table[f"{ours}.attention.{name}_gain"] = [gain]
        for part in ("weight", "bias") if biases == "all" else ("weight",):
            table[f"{ours}.attention.out.{part}"] = [Piece(f"{theirs}.attn_output.{part}", D)]
        for part in ("weight", "bias") if config.bias else ("weight",):
            table[f"{ours}.feed_forward.up.{part}"] = [
                Piece(f"{theirs}.ffn_gate.{part}", F),
                Piece(f"{theirs}.ffn_up.{part}", F),
            ]
            table[f"{ours}.feed_forward.down.{part}"] = [Piece(f"{theirs}.ffn_down.{part}", D)]
    return table


def _gpt2(config: GPTConfig) -> dict[str, list[Piece]]:
    D, F = config.d_model, config.width_ff
    table = _ends(config, ("weight", "bias"))
    table["position_embedding.weight"] = [Piece("position_embd.weight", config.context_length)]
    for i in range(config.n_layer):
        for part in ("weight", "bias"):
            for ours, theirs, n_rows in (
                ("norm_attention", "attn_norm", D),
                ("attention.qkv", "attn_qkv", 3 * D),
                ("attention.out", "attn_output", D),
                ("norm_feed_forward", "ffn_norm", D),
                ("feed_forward.up", "ffn_up", F),
                ("feed_forward.down", "ffn_down", D),
            ):
                table[f"blocks.{i}.{ours}.{part}"] = [Piece(f"blk.{i}.{theirs}.{part}", n_rows)]
    return table


def _ends(config: GPTConfig, parts: tuple[str, ...]) -> dict[str, list[Piece]]:
    """The tensors before and after the blocks."""
    V, D = config.vocab_size, config.d_model
    table = {"token_embedding.weight": [Piece("token_embd.weight", V)]}
    table |= {f"final_norm.{part}": [Piece(f"output_norm.{part}", D)] for part in parts}
    if not config.tied_head:
        table["head.weight"] = [Piece("output.weight", V)]
    return table


_SIZES = {
    "context_length": "context_length",
    "d_model": "embedding_length",
    "n_layer": "block_count",
    "d_ff": "feed_forward_length",
    "n_head": "attention.head_count",
}
_LLAMA_SIZES = _SIZES | {
    "n_kv_head": "attention.head_count_kv",
    "d_head": "attention.key_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_base": "rope.freq_base",
}
_LLAMA_NEUTRAL = {
    **{"vocab_size": None, "rope.dimension_count": None, "attention.value_length": None},
    **{"rope.scaling.type": None, "rope.scaling.factor": None},
    **{"rope.scaling.original_context_length": None, "rope.scaling.finetuned": None},
    **{"rope.scaling.yarn_beta_fast": (32,), "rope.scaling.yarn_beta_slow": (1,)},
    **{"rope.scaling.yarn_ext_factor": (1,), "rope.scaling.yarn_attn_factor": (1,)},
    **{"rope.scaling.attn_factor": (1,)},
    **{"expert_count": (0,), "expert_used_count": (0,)},
    **{"use_parallel_residual": (False,), "tensor_data_layout": None},
}
ARCHITECTURES = {
    "llama": Architecture("llama", _LLAMA_SIZES, _LLAMA_NEUTRAL, _llama),
    "gpt2": Architecture(
        "gpt2",
        _SIZES | {"norm_eps": "attention.layer_norm_epsilon"},
        {"vocab_size": None, "attention.head_count_kv": None},
        _gpt2,
    ),
    "qwen2": Architecture(
        "llama", _LLAMA_SIZES, _LLAMA_NEUTRAL, lambda config: _llama(config, halves=True)
    ),
    "qwen3": Architecture(
        "qwen3", _LLAMA_SIZES, _LLAMA_NEUTRAL, lambda config: _llama(config, halves=True)
    ),
}

_SCALING = ("none", "linear", "yarn")
NARROWER: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"rope_scaling": (*_SCALING, "llama3"), "rope_attention_factor": (0.0,)},
    "qwen3": {
        "rope_scaling": _SCALING,
        "rope_attention_factor": (0.0,),
        "window": (0,),
        "attention_bias": ("auto",),
    },
    "gpt2": {},
}
"""Values of our settings that llama.cpp computes, where transformers computes more."""
