"""Architectures of llama.cpp that our Transformer computes: settings and tensor names, both ways.

| in the file | ours | written | read |
|---|---|---|---|
| llama | `--preset llama`: RMSNorm, rotary positions, SwiGLU | yes | yes |
| gpt2 | `--preset gpt2`: LayerNorm, learned positions, GELU | yes | yes |
| qwen2 | Llama with biases on queries, keys and values | as llama | yes |

Matrices have the same form as ours, (out, in). Two things differ:

- Our queries, keys and values are one matrix, and so are the two halves of SwiGLU. llama's are
  several tensors.
- Rotary pairs: ours are neighbours 2i and 2i + 1, and so are those of llama.cpp's llama. Its qwen2
  rotates number i with number i + K/2, as transformers does: rows are reordered.

llama.cpp's QK-norm (qwen3) has one gain per number of a head, shared by all heads. Ours has one
gain per head, which that cannot represent.

Source: llama.cpp, `src/llama-arch.cpp`, `src/llama-model.cpp` and `src/models/`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.foreign_json import shown
from lmsmith.interop import architectures
from lmsmith.interop.gguf_file import GgufFile
from lmsmith.models.attention import Rotary
from lmsmith.models.gpt_config import GPTConfig

ROPE_FACTORS = "rope_freqs.weight"  # llama3's scaling: what each frequency is divided by
_ORIGINAL_CONTEXTS = [1 << n for n in range(5, 21)]
_LARGEST = {  # larger than any model's
    **{"block_count": 2048, "embedding_length": 1 << 20, "feed_forward_length": 1 << 24},
    **{"context_length": 1 << 25, "attention.head_count": 1 << 16},
    **{"attention.head_count_kv": 1 << 16, "attention.key_length": 1 << 16},
}


@dataclass(frozen=True)
class Piece:
    """One tensor of the file: `n_rows` rows of one of ours. `halves`: rotary pairs i, i + K/2."""

    name: str
    n_rows: int
    halves: bool = False


@dataclass(frozen=True)
class _Architecture:
    """`sizes`: our settings -> theirs. `neutral`: their other settings that may be there, and the
    values with which they change nothing; None: any value.
    """

    preset: str
    sizes: Mapping[str, str]
    neutral: Mapping[str, Any]
    pieces: Callable[[GPTConfig], dict[str, list[Piece]]]


# ---- their settings -> ours ----------------------------------------------------------------------


def read_tensors(
    file: GgufFile, config: GPTConfig, into: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of a file, by our names, in float32: in new memory, or in the parameters `into`.

    `config` is what `read_config` returned. Raises CheckpointError for a file that cannot be read.
    """
    table = _ARCHITECTURES[_name(file)].pieces(config)
    tensors = {}
    for ours, pieces in table.items():
        n_rows = sum(piece.n_rows for piece in pieces)
        whole = into[ours] if into else torch.empty(n_rows, *_columns(ours, config))
        start = 0
        for piece in pieces:
            rows = whole[start : start + piece.n_rows]
            file.load(piece.name, rows.numpy())
            if piece.halves:
                K = config.width_head
                rows.copy_(rows.unflatten(0, (-1, 2, K // 2)).transpose(1, 2).flatten(0, 2))
            start += piece.n_rows
        tensors[ours] = whole
    return tensors


def read_config(file: GgufFile) -> GPTConfig:
    """The settings of a file's model, which its tensors fit: a model of these settings needs no
    more memory than the file's tensors.

    Raises ConfigError for a model that ours does not compute, CheckpointError for tensors that do
    not fit the settings.
    """
    name = _name(file)
    architecture = _ARCHITECTURES[name]
    found = {
        key.removeprefix(f"{name}."): _plain(value)
        for key, value in file.metadata.items()
        if key.startswith(f"{name}.")
    }
    known = {*architecture.sizes.values(), *architecture.neutral}
    for key, value in found.items():
        allowed = architecture.neutral.get(key)
        if key not in known or (allowed is not None and value not in allowed):
            raise ConfigError(
                f"{file.path} has {name}.{key} = {shown(value)}, which lmsmith's model does not "
                f"compute{f': expected {allowed[0]}' if allowed else ''}."
            )
    ours: dict[str, Any] = {
        setting: _number(file, name, key, found[key])
        for setting, key in architecture.sizes.items()
        if key in found
    }
    for setting in ("context_length", "d_model", "n_layer", "d_ff", "n_head", "norm_eps"):
        if setting not in ours:
            key = architecture.sizes[setting]
            raise CheckpointError(f"{file.path} has no {name}.{key}: it is not complete.")
    ours["vocab_size"] = _rows(file, "token_embd.weight")
    ours["tied_head"] = "output.weight" not in file.tensors
    if name == "gpt2":
        ours["bias"] = True
    else:
        ours |= _llama_settings(file, name, ours, found)
    settings = {f"model.{setting}": value for setting, value in ours.items()}
    base = preset(architecture.preset)
    try:
        config = GPTConfig.of(base.changed(settings, where=str(file.path)).model)
    except ConfigError as error:  # it names our settings, and not always the file
        raise ConfigError(f"{file.path} has settings that no model has: {error}") from error
    _check_tensors(file, config, architecture.pieces(config))
    return config


def _llama_settings(
    file: GgufFile, name: str, ours: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Biases, width of the heads and rotary scaling."""
    attention = {
        part: f"blk.0.attn_{part}.bias" in file.tensors for part in ("q", "k", "v", "output")
    }
    if len({attention[part] for part in "qkv"}) > 1 or (attention["output"] and not attention["q"]):
        raise ConfigError(
            f"{file.path} has biases on some of attention's queries, keys, values and output "
            "only; lmsmith's model has them on none, on the first three, or on all."
        )
    biases = "all" if attention["output"] else "qkv" if attention["q"] else "none"
    bias = "blk.0.ffn_up.bias" in file.tensors
    result: dict[str, Any] = {"bias": bias}
    result["attention_bias"] = "auto" if biases == ("all" if bias else "none") else biases
    n_head, d_model = ours["n_head"], ours["d_model"]
    d_head = ours.get("d_head") or d_model // max(n_head, 1)
    result["d_head"] = 0 if d_head * n_head == d_model else d_head
    for key in ("attention.value_length", "rope.dimension_count"):
        if found.get(key, d_head) != d_head:
            raise ConfigError(
                f"{file.path} has {name}.{key} = {shown(found[key])} and heads of {d_head}: "
                "lmsmith's model has one width for queries, keys and values, and rotates all of it."
            )
    kind = found.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ConfigError(
            f"{file.path} has {name}.rope.scaling.type = {shown(kind)}, which lmsmith's model "
            "does not compute: expected none or linear."
        )
    factor = found.get("rope.scaling.factor", 1.0)
    if kind == "linear" and factor != 1:
        result |= {"rope_scaling": "linear", "rope_factor": _number(file, name, "factor", factor)}
    if ROPE_FACTORS in file.tensors:
        result |= _llama3_scaling(file, float(ours.get("rope_base", 10_000.0)), d_head)
    return result


def _llama3_scaling(file: GgufFile, base: float, d_head: int) -> dict[str, Any]:
    """The settings of Llama 3's rotary scaling that give the factors in the file."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.shape == (d_head // 2,) and math.isfinite(base) and base > 1:
        factors = file.load(ROPE_FACTORS)
        largest = float(factors.max())
        for original in _ORIGINAL_CONTEXTS:
            wanted = _factors(base, d_head, largest, original)
            if largest >= 1 and np.allclose(factors, wanted, rtol=1e-5):
                return {
                    "rope_scaling": "llama3",
                    "rope_factor": largest,
                    "rope_original_context": original,
                }
    raise ConfigError(
        f"{file.path} has {ROPE_FACTORS} with factors that are not those of Llama 3's rotary "
        "scaling, the only ones that lmsmith's model computes."
    )


def _factors(base: float, d_head: int, factor: float, original: int) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by, (K/2,)."""
    config = GPTConfig(
        n_head=1,
        d_model=d_head,
        context_length=2,
        rope_base=base,
        rope_scaling="llama3",
        rope_factor=factor,
        rope_original_context=original,
    )
    plain = dataclasses.replace(
        config, rope_scaling="none", rope_factor=1.0, rope_original_context=0
    )
    angles = [Rotary.make(one).turns[1, 0].angle() for one in (plain, config)]
    return (angles[0] / angles[1]).numpy()


def _name(file: GgufFile) -> str:
    name = file.metadata.get("general.architecture")
    if name not in _ARCHITECTURES:
        raise ConfigError(
            f"{file.path} has general.architecture = {shown(_plain(name))}, which lmsmith has no "
            f"model for: expected {', '.join(_ARCHITECTURES)}."
        )
    return str(name)


def _number(file: GgufFile, name: str, key: str, value: Any) -> Any:
    """A number as our settings have it: floats without the digits that float32 added."""
    most = _LARGEST.get(key, 1e15)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ConfigError(
            f"{file.path} has {name}.{key} = {shown(value)}: expected a number from 0 to "
            f"{most:,.0f}."
        )
    return value if isinstance(value, int) else float(str(np.float32(value)))


def _rows(file: GgufFile, name: str) -> int:
    if name not in file.tensors:
        raise CheckpointError(f"{file.path} has no tensor {name}: it is not complete.")
    return file.tensors[name].shape[0]


def _plain(value: Any) -> Any:
    """A value without NumPy's types: one number per layer, all equal, is that number."""
    if not isinstance(value, np.ndarray):
        return value
    several = value.tolist()
    return several[0] if several and several.count(several[0]) == len(several) else several


def _check_tensors(file: GgufFile, config: GPTConfig, table: Mapping[str, list[Piece]]) -> None:
    """Raises CheckpointError with the names of tensors that are missing, unknown or of another
    shape.
    """
    wanted = {
        piece.name: (piece.n_rows, *_columns(ours, config))
        for ours, pieces in table.items()
        for piece in pieces
    }
    known = {*wanted, ROPE_FACTORS} if config.rope_scaling == "llama3" else wanted.keys()
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    problems = {
        "missing": [name for name in wanted if name not in shapes],
        "unknown to this architecture": [name for name in shapes if name not in known],
        "of another shape": [
            f"{name} {shapes[name]}, expected {shape}"
            for name, shape in wanted.items()
            if shapes.get(name, shape) != shape
        ],
    }
    found = [
        f"{len(names)} {what}: {architectures.listed(names)}."
        for what, names in problems.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"The tensors in {file.path} do not fit its metadata. {' '.join(found)}"
        )


def _columns(ours: str, config: GPTConfig) -> tuple[int, ...]:
    """The sizes of one of our parameters after its rows."""
    if ours.endswith(".bias") or "norm" in ours:
        return ()
    if ours.endswith("feed_forward.down.weight"):
        return (config.width_ff,)
    if ours.endswith("attention.out.weight"):
        return (config.n_head * config.width_head,)
    return (config.d_model,)


# ---- our settings -> theirs ----------------------------------------------------------------------


def architecture_for(config: Any) -> str:
    """The architecture that computes what a config says. Raises ConfigError, with reasons."""
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"llama.cpp has no counterpart to a model of kind {config.kind}: export a Transformer."
        )
    reasons = {
        "llama": architectures.LLAMA.differences(config),
        "gpt2": architectures.GPT2.differences(config),
    }
    if config.feed_forward in ("gelu", "silu"):
        reasons["gpt2"].append(
            architectures.difference("feed_forward", config.feed_forward, ["gelu-tanh"])
        )
    nearest = min(reasons, key=lambda name: len(reasons[name]))
    if reasons[nearest]:
        raise ConfigError(
            f"This model has no counterpart in llama.cpp. The nearest there is {nearest}, and it "
            f"has no {'; no '.join(reasons[nearest])}. Models as `--preset gpt2` and `--preset "
            "llama` build them can be exported."
        )
    return nearest


def completed(
    name: str, config: GPTConfig, tensors: Mapping[str, Tensor]
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The same model with all tensors that the architecture needs: gains of one, and for gpt2
    biases and learned positions of zero.
    """
    if name == "gpt2":
        return architectures.completed(config, tensors)
    full = dataclasses.replace(config, norm_gain=True)
    example = tensors["token_embedding.weight"]
    return full, {
        ours: tensors[ours] if ours in tensors else example.new_ones(pieces[0].n_rows)
        for ours, pieces in _llama(full).items()
    }


def metadata(name: str, config: GPTConfig) -> Iterator[tuple[str, int | float | str]]:
    """The metadata that says what the model is: integers are uint32, floats float32."""
    resolved = dataclasses.replace(
        config, d_ff=config.width_ff, n_kv_head=config.n_kv, d_head=config.width_head
    )
    for setting, key in _ARCHITECTURES[name].sizes.items():
        yield f"{name}.{key}", getattr(resolved, setting)
    yield f"{name}.vocab_size", config.vocab_size
    if name == "llama":
        yield "llama.rope.dimension_count", config.width_head
        yield "llama.attention.value_length", config.width_head
        if config.rope_scaling == "linear":
            yield "llama.rope.scaling.type", "linear"
            yield "llama.rope.scaling.factor", config.rope_factor


def to_theirs(
    name: str, config: GPTConfig, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors by their names in the file. Padding of the vocabulary is cut off."""
    for ours, pieces in _ARCHITECTURES[name].pieces(config).items():
        start = 0
        for piece in pieces:
            yield piece.name, tensors[ours][start : start + piece.n_rows]
            start += piece.n_rows
    if config.rope_scaling == "llama3":
        factors = _factors(
            config.rope_base, config.width_head, config.rope_factor, config.rope_original_context
        )
        yield ROPE_FACTORS, torch.from_numpy(factors).float()


# ---- tensors -------------------------------------------------------------------------------------


def _llama(config: GPTConfig, halves: bool = False) -> dict[str, list[Piece]]:
    D, F, K = config.d_model, config.width_ff, config.width_head
    biases = config.attention_biases
    table = _ends(config, ("weight",))
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"blk.{i}"
        table[f"{ours}.norm_attention.weight"] = [Piece(f"{theirs}.attn_norm.weight", D)]
        table[f"{ours}.norm_feed_forward.weight"] = [Piece(f"{theirs}.ffn_norm.weight", D)]
        for part in ("weight",) if biases == "none" else ("weight", "bias"):
            table[f"{ours}.attention.qkv.{part}"] = [
                Piece(f"{theirs}.attn_q.{part}", config.n_head * K, halves),
                Piece(f"{theirs}.attn_k.{part}", config.n_kv * K, halves),
                Piece(f"{theirs}.attn_v.{part}", config.n_kv * K),
            ]
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
    **{"expert_count": (0,), "expert_used_count": (0,)},
    **{"use_parallel_residual": (False,), "tensor_data_layout": None},
}
_ARCHITECTURES = {
    "llama": _Architecture("llama", _LLAMA_SIZES, _LLAMA_NEUTRAL, _llama),
    "gpt2": _Architecture(
        "gpt2",
        _SIZES | {"norm_eps": "attention.layer_norm_epsilon"},
        {"vocab_size": None, "attention.head_count_kv": None},
        _gpt2,
    ),
    "qwen2": _Architecture(
        "llama", _LLAMA_SIZES, _LLAMA_NEUTRAL, lambda config: _llama(config, halves=True)
    ),
}
