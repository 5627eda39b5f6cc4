"""A model's settings and tensors in GGUF files, both ways.

`gguf_architectures.py` has the tables of names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.foreign_json import shown
from lmsmith.interop import architectures
from lmsmith.interop.gguf_architectures import ARCHITECTURES, NARROWER, Piece, columns
from lmsmith.interop.gguf_file import GgufFile
from lmsmith.interop.mapping import derived, difference
from lmsmith.interop.pieces import listed
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.rotary import Rotary

ROPE_FACTORS = "rope_freqs.weight"  # llama3's scaling: what each frequency is divided by
_ORIGINAL_CONTEXTS = [1 << n for n in range(5, 21)]
_LARGEST = {  # larger than any model's
    **{"block_count": 2048, "embedding_length": 1 << 20, "feed_forward_length": 1 << 24},
    **{"context_length": 1 << 25, "attention.head_count": 1 << 16},
    **{"attention.head_count_kv": 1 << 16, "attention.key_length": 1 << 16},
}


# ---- their settings -> ours ----------------------------------------------------------------------


def pieces_of(file: GgufFile, config: GPTConfig) -> dict[str, list[Piece]]:
    """The parts in the file of each of our tensors. `config` is what `read_config` returned."""
    return ARCHITECTURES[_name(file)].pieces(config)


def shapes(pieces: Mapping[str, list[Piece]], config: GPTConfig) -> dict[str, Tensor]:
    """The tensors of a file, by our names, without their values: float32 on the meta device."""
    return {
        ours: torch.empty(sum(part.n_rows for part in parts), *columns(ours, config), device="meta")
        for ours, parts in pieces.items()
    }


def read_tensor(file: GgufFile, pieces: list[Piece], out: Tensor) -> None:
    """Reads one of our tensors into `out`, float32. Raises CheckpointError if the file cannot be
    read.
    """
    start = 0
    for piece in pieces:
        rows = out[start : start + piece.n_rows]
        file.load(piece.name, rows.numpy())
        if piece.halves:
            rows.copy_(piece.to_ours(rows))
        start += piece.n_rows


def read_config(file: GgufFile) -> GPTConfig:
    """The settings of a file's model, which its tensors fit: a model of these settings needs no
    more memory than the file's tensors.

    Raises ConfigError for a model that ours does not compute, CheckpointError for tensors that do
    not fit the settings.
    """
    name = _name(file)
    architecture = ARCHITECTURES[name]
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
    ours |= {"n_head_per_kv": 1}  # also without attention.head_count_kv
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
    result |= _rope_scaling(file, name, found)
    if ROPE_FACTORS in file.tensors:
        result |= _llama3_scaling(file, float(ours.get("rope_base", 10_000.0)), d_head)
    return result


def _rope_scaling(file: GgufFile, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The RoPE scaling that the metadata names: none, linear or yarn."""
    kind = found.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(
            f"{file.path} has {name}.rope.scaling.type = {shown(kind)}, which lmsmith's model "
            "does not compute: expected none, linear or yarn."
        )
    key = "rope.scaling.factor"
    factor = _number(file, name, key, found.get(key, 1.0))
    if kind == "none" or factor == 1:
        return {}
    scaling = {"rope_scaling": kind, "rope_factor": factor}
    if kind == "linear":
        return scaling
    if ROPE_FACTORS in file.tensors:
        raise ConfigError(
            f"{file.path} has both yarn scaling and {ROPE_FACTORS}: lmsmith's model has one kind "
            "of RoPE scaling."
        )
    key = "rope.scaling.original_context_length"
    context = found.get(key, found.get("context_length"))  # the default in llama.cpp
    return scaling | {"rope_original_context": _number(file, name, key, context)}


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
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"{file.path} has general.architecture = {shown(_plain(name))}, which lmsmith has no "
            f"model for: expected {', '.join(ARCHITECTURES)}."
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
        piece.name: (piece.n_rows, *columns(ours, config))
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
    found = [f"{len(names)} {what}: {listed(names)}." for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"The tensors in {file.path} do not fit its metadata. {' '.join(found)}"
        )


# ---- our settings -> theirs ----------------------------------------------------------------------


def architecture_for(config: Any) -> str:
    """The architecture that computes what a config says. Raises ConfigError, with reasons."""
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"llama.cpp has no counterpart to a model of kind {config.kind}: export a Transformer."
        )
    reasons = {
        "llama": architectures.LLAMA.differences(config),
        "qwen3": architectures.QWEN3.differences(config),
        "gpt2": architectures.GPT2.differences(config),
    }
    if config.feed_forward in ("gelu", "silu"):
        reasons["gpt2"].append(difference("feed_forward", config.feed_forward, ["gelu-tanh"]))
    # llama.cpp supports less than transformers does.
    plain = derived(config)
    for name, allowed in NARROWER.items():
        for setting, values in allowed.items():
            if getattr(plain, setting) not in values:
                reasons[name].append(difference(setting, getattr(plain, setting), values))
    nearest = min(reasons, key=lambda name: len(reasons[name]))
    if reasons[nearest]:
        raise ConfigError(
            f"This model has no counterpart in llama.cpp. The nearest there is {nearest}, and it "
            f"does not support {'; '.join(reasons[nearest])}. Models of `--preset gpt2`, `--preset "
            "llama` and `--preset qwen3` can be exported."
        )
    return nearest


def completed(
    name: str, config: GPTConfig, tensors: Mapping[str, Tensor]
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The same model with all tensors that the architecture needs: gains of one, and for gpt2
    biases and learned positions of zero.
    """
    if name == "gpt2":
        return architectures.GPT2.completed(config, tensors)
    full = dataclasses.replace(config, norm_gain=True)
    example = tensors["token_embedding.weight"]
    return full, {
        ours: tensors[ours] if ours in tensors else example.new_ones(pieces[0].n_rows)
        for ours, pieces in ARCHITECTURES[name].pieces(full).items()
    }


def metadata(name: str, config: GPTConfig) -> Iterator[tuple[str, int | float | str]]:
    """The metadata that says what the model is: integers are uint32, floats float32."""
    resolved = dataclasses.replace(
        config, d_ff=config.width_ff, n_kv_head=config.n_kv, d_head=config.width_head
    )
    for setting, key in ARCHITECTURES[name].sizes.items():
        yield f"{name}.{key}", getattr(resolved, setting)
    yield f"{name}.vocab_size", config.vocab_size
    if name != "gpt2":
        yield f"{name}.rope.dimension_count", config.width_head
        yield f"{name}.attention.value_length", config.width_head
        if config.rope_scaling in ("linear", "yarn"):
            yield f"{name}.rope.scaling.type", config.rope_scaling
            yield f"{name}.rope.scaling.factor", config.rope_factor
        if config.rope_scaling == "yarn":
            original = config.rope_original_context
            yield f"{name}.rope.scaling.original_context_length", original


def to_theirs(
    name: str, config: GPTConfig, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors by their names in the file. Padding of the vocabulary is cut off."""
    for ours, pieces in ARCHITECTURES[name].pieces(config).items():
        start = 0
        for piece in pieces:
            yield piece.name, piece.to_theirs(tensors[ours][start : start + piece.n_rows])
            start += piece.n_rows
    if config.rope_scaling == "llama3":
        factors = _factors(
            config.rope_base, config.width_head, config.rope_factor, config.rope_original_context
        )
        yield ROPE_FACTORS, torch.from_numpy(factors).float()
