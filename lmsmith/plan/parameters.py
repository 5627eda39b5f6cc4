"""Counts the parameters of a run's model: by tensor, by group, learned or frozen.

The shapes are those of the built model (`models/gpt_costs.py`); with LoRA, the adapters are added
as `models/lora.py` adds them. Nothing is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lmsmith.config import NeuralConfig, RunConfig
from lmsmith.config.lora import LoraConfig
from lmsmith.models.gpt_config import GPTConfig

GROUPS = {
    "token_embedding": "token embedding",
    "position_embedding": "position embedding",
    "ngram_embedding": "n-gram tables",
    "value_embeddings": "value embeddings",
    "attention": "attention",
    "feed_forward": "feed-forward",
    "kernel": "recurrent layers",
    "head": "head",
}
OTHER = "norms, gains and biases"
ADAPTERS = "adapters"

# Maps in each matrix of a block, by the names of `lora.targets`.
MAPS = {
    "attention.qkv": ("q", "k", "v"),
    "attention.out": ("out",),
    "feed_forward.up": ("gate", "up"),
    "feed_forward.down": ("down",),
}


@dataclass(frozen=True)
class Parameter:
    """One tensor. `learned`: whether training changes it. `optimizer`: the one that does."""

    name: str
    shape: tuple[int, ...]
    group: str
    learned: bool
    optimizer: Literal["adamw", "muon", "sgd", "other"]

    @property
    def n(self) -> int:
        return math.prod(self.shape)


def parameters(config: RunConfig) -> list[Parameter]:
    """Every parameter of the model that `config` trains, adapters included, in the model's order.

    The model's vocabulary size must be set.
    """
    found = []
    for name, shape in _with_adapters(config):
        optimizer = config.optim.name
        if optimizer == "muon" and not (name.startswith("blocks.") and len(shape) == 2):
            optimizer = "adamw"
        found.append(
            Parameter(
                name,
                shape,
                group_of(name, shape),
                _learned(name, config.lora),
                optimizer if optimizer in ("adamw", "muon", "sgd") else "other",  # type: ignore[arg-type]
            )
        )
    return found


def group_of(name: str, shape: tuple[int, ...]) -> str:
    """The group of a parameter in tables."""
    if "lora_" in name:
        return ADAPTERS
    words = name.split(".")
    word = words[0] if words[0] != "blocks" else words[2] if len(words) > 2 else ""
    return GROUPS.get(word, OTHER) if len(shape) >= 2 else OTHER


def by_group(found: list[Parameter]) -> dict[str, int]:
    """Number of parameters in each group, in the order of their first appearance."""
    total: dict[str, int] = {}
    for parameter in found:
        total[parameter.group] = total.get(parameter.group, 0) + parameter.n
    return total


def maps_of(model: GPTConfig, matrix: str) -> dict[str, int]:
    """The rows of each map in a matrix of a block: `{"q": 768, "k": 768, "v": 768}`."""
    K = model.width_head
    names = MAPS[matrix]
    if matrix == "feed_forward.up":
        return dict.fromkeys(names if model.gated else ("up",), model.width_ff)
    if matrix == "attention.qkv":
        return {"q": model.n_head * K, "k": model.n_kv * K, "v": model.n_kv * K}
    return dict.fromkeys(names, model.d_model)


def adapted(model: GPTConfig, matrix: str, lora: LoraConfig) -> list[int]:
    """The rows of each map of the matrix that has an adapter; empty without adapters."""
    if not lora.rank:
        return []
    return [rows for name, rows in maps_of(model, matrix).items() if name in lora.targets]


def muon_maps(config: RunConfig, parameter: Parameter) -> list[int]:
    """The rows of each map of a matrix that Muon orthogonalizes by itself."""
    model, n_out = config.model, parameter.shape[0]
    stem, _, kind = parameter.name.rpartition(".")
    matrix = ".".join(stem.split(".")[2:])
    if not isinstance(model, GPTConfig) or matrix not in MAPS:
        return [n_out]
    if kind == "weight":
        return list(maps_of(model, matrix).values())
    rows = adapted(model, matrix, config.lora)
    return rows if kind == "lora_b" else [config.lora.rank] * len(rows)


def _with_adapters(config: RunConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The model's parameters, each adapter after its matrix (and the matrix's bias)."""
    model = config.model
    assert isinstance(model, NeuralConfig), model.kind
    shapes = model.parameter_shapes()
    for name, shape in shapes.items():
        yield name, shape
        stem, _, kind = name.rpartition(".")
        matrix = ".".join(stem.split(".")[2:])
        last = kind == "bias" or f"{stem}.bias" not in shapes
        if not isinstance(model, GPTConfig) or matrix not in MAPS or not last:
            continue
        rows, n_in = adapted(model, matrix, config.lora), shapes[f"{stem}.weight"][1]
        if rows:
            yield f"{stem}.lora_a", (len(rows) * config.lora.rank, n_in)
            yield f"{stem}.lora_b", (sum(rows), config.lora.rank)


def _learned(name: str, lora: LoraConfig) -> bool:
    if not lora.rank or "lora_" in name:
        return True
    tables = ("token_embedding", "value_embeddings", "head")
    return lora.embeddings == "yes" and name.startswith(tables)
