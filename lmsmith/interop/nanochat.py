"""Reads checkpoints of nanochat in its first layout: `model_000650.pt` beside `meta_000650.json`.

| version | layout | read |
|---|---|---|
| until January 2026 | a plain Transformer | yes |
| for some days then | the same with residual scalars | yes, without sliding windows |
| since | value embeddings; later smear gate, backout and sharper attention | no |

The first layout is ours with a normalized embedding, QK-norm, squared ReLU and a soft cap of 15. It
has no gains, so those of queries and keys are ones. Its epsilon is float32's, the default of
`torch.nn.functional.rms_norm`. RoPE rotates numbers i and i + K/2 of a head by minus the angle;
with the two numbers of a pair exchanged, that is our rotation.

Source: karpathy/nanochat, nanochat/gpt.py and checkpoint_manager.py at the commits 3a5e0bc to
a7066b8, and 92d63d4 for what is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsmith import foreign_json
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.interop.mapping import shapes_of
from lmsmith.models.gpt_config import GPTConfig

_SETTINGS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_kv_head": "n_kv_head",
    "n_embd": "d_model",
    "sequence_len": "context_length",
    "vocab_size": "vocab_size",
}
_FIXED = {
    **{"feed_forward": "relu2", "norm": "rmsnorm", "norm_gain": False, "embedding_norm": True},
    **{"norm_eps": float(torch.finfo(torch.float32).eps), "positions": "rope", "bias": False},
    **{"rope_base": 10_000.0, "qk_norm": True, "qk_gain": "dimension", "logit_softcap": 15.0},
    **{"tied_head": False, "ngram_tables": (), "value_embedding_every": 0},
}
_REASONS = {
    "value_embeds": "value embeddings with gates of 3 sigmoid over 12 inputs",
    "smear_gate": "a smear gate, which mixes in the embedding of the token before",
    "backout_lambda": "backout, which subtracts a middle layer's output before the head",
}
_PLAIN = {
    "transformer.wte.weight": "token_embedding.weight",
    "lm_head.weight": "head.weight",
    "resid_lambdas": "residual_scale",
    "x0_lambdas": "input_scale",
}
_LAYER = {
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}
_MOST = 1 << 25  # larger than any size in a model


def meta_of(path: Path) -> Path:
    """The file with the settings of the checkpoint `path`."""
    return path.with_name(path.stem.replace("model", "meta", 1) + ".json")


def is_nanochat(path: Path, content: Any) -> bool:
    """Whether `content`, which was read from `path`, is a checkpoint of nanochat."""
    if isinstance(content, Mapping) and any("resid_lambdas" in str(key) for key in content):
        return True
    return bool(files_of(path))


def files_of(path: Path) -> list[Path]:
    """The files of the checkpoint `path`; empty if it is not named like one of nanochat."""
    meta = meta_of(path)
    return [path, meta] if path.name.startswith("model_") and meta.is_file() else []


def read(path: Path, content: Any) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Converts settings and tensors to ours. Raises CheckpointError for a damaged file, ConfigError
    for a model that lmsmith's Transformer does not compute.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is not a checkpoint of nanochat: expected a dictionary.")
    weights = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in content.items()}
    found = [words for part, words in _REASONS.items() if any(part in name for name in weights)]
    if found:
        raise ConfigError(
            f"{path} is a model of nanochat that lmsmith cannot represent: it has "
            f"{'; '.join(found)}. lmsmith reads the models of nanochat that have none of them, "
            "those of 2025."
        )
    config = _config(path, weights)
    return config, _converted(config, weights, path)


def _config(path: Path, weights: Mapping[str, Any]) -> GPTConfig:
    place = meta_of(path)
    try:
        settings = foreign_json.read(place)["model_config"]
        theirs = {name: settings[name] for name in _SETTINGS}
    except OSError as error:
        raise CheckpointError(
            f"{place} cannot be read: {error.strerror or error}. It has the settings of {path}: "
            "copy both files."
        ) from error
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{place} is not one of nanochat: expected `model_config` with {', '.join(_SETTINGS)}."
        ) from error
    for name, value in theirs.items():
        if type(value) is not int or not 0 < value <= _MOST or (name == "n_layer" and value > 2048):
            raise CheckpointError(
                f"{place} has {name} = {foreign_json.shown(value)}: expected a whole number above "
                "0. Copy the file again."
            )
    pattern = settings.get("window_pattern", "L")
    if not isinstance(pattern, str) or set(pattern.upper()) != {"L"}:
        raise ConfigError(
            f"{place} has window_pattern = {foreign_json.shown(pattern)}: its length of short "
            "windows changed between versions, so lmsmith reads models without them only."
        )
    ours = _FIXED | {ours: theirs[name] for name, ours in _SETTINGS.items()}
    ours["residual_scalars"] = "resid_lambdas" in weights
    rows = getattr(weights.get("lm_head.weight"), "shape", (0,))[0]
    if rows > theirs["vocab_size"]:
        ours["vocab_multiple"] = 64  # rows that are padding
    changes = {f"model.{name}": value for name, value in ours.items()}
    try:
        return GPTConfig.of(preset("modern").changed(changes, where=str(place)).model)
    except ConfigError as error:  # it names our settings
        raise ConfigError(f"{place} has settings that no model has: {error}") from error


def _converted(config: GPTConfig, weights: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Our tensors. Raises CheckpointError with the names of those that do not fit."""
    table = {name: [ours] for ours, name in _names(config)}
    shapes = shapes_of(config)
    H, G, K, D = config.n_head, config.n_kv, config.width_head, config.d_model
    wanted = {name: shapes[ours[0]] for name, ours in table.items()}
    for i in range(config.n_layer):
        for part, n in (("q", H), ("k", G), ("v", G)):
            wanted[f"transformer.h.{i}.attn.c_{part}.weight"] = (n * K, D)
    unknown = [
        name
        for name, tensor in weights.items()
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != wanted.get(name)
    ]
    absent = [name for name in wanted if name not in weights]
    if unknown or absent:
        raise CheckpointError(
            f"the tensors in {path} do not fit {meta_of(path).name}: "
            f"{len(unknown)} unknown or of another shape ({', '.join(unknown[:4]) or 'none'}), "
            f"{len(absent)} missing ({', '.join(absent[:4]) or 'none'})."
        )
    result = {ours[0]: weights[name].contiguous() for name, ours in table.items()}
    for i in range(config.n_layer):
        q, k, v = (weights[f"transformer.h.{i}.attn.c_{part}.weight"] for part in "qkv")
        stacked = torch.cat([_turned(q, K), _turned(k, K), v])
        result[f"blocks.{i}.attention.qkv.weight"] = stacked
        for name in ("q_gain", "k_gain"):
            result[f"blocks.{i}.attention.{name}"] = stacked.new_ones(K)
    return result


def _names(config: GPTConfig) -> list[tuple[str, str]]:
    """Our names and theirs, of the tensors that are equal."""
    names = [
        (ours, theirs)
        for theirs, ours in _PLAIN.items()
        if config.residual_scalars or not theirs.endswith("lambdas")
    ]
    for i in range(config.n_layer):
        names += [
            (f"blocks.{i}.{ours}.weight", f"transformer.h.{i}.{theirs}.weight")
            for theirs, ours in _LAYER.items()
        ]
    return names


def _turned(rows: Tensor, K: int) -> Tensor:
    """Rows of heads of width K: numbers i + K/2 and i become the pair 2 i, 2 i + 1."""
    halves = rows.unflatten(0, (-1, 2, K // 2)).flip(1)
    return halves.transpose(1, 2).flatten(0, 2)
