"""LoRA: low-rank adapters beside frozen matrices (Hu et al. 2022, "LoRA: Low-Rank Adaptation").

    add_adapters(model, config.lora, generator)     # in place; freezes all other weights
    full = merged(model.state_dict(), config.lora)  # W + scale * B A, without adapters

A fused matrix (queries, keys and values; gate and up) has one pair of A and B for each of its maps.
`lora_a` stacks the A of all adapted maps, and `lora_b` their B, in order of rows. B starts at zero,
so the model at first computes what it did.

Shapes: R rank, n maps with an adapter, N rows of these maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmsmith.config.lora import LoraConfig
from lmsmith.models.gpt import GPT

A, B = "lora_a", "lora_b"
_MAPS = {
    "attention.qkv": ("q", "k", "v"),
    "attention.out": ("out",),
    "feed_forward.up": ("gate", "up"),
    "feed_forward.down": ("down",),
}


class AdaptedLinear(nn.Linear):
    """A linear map with adapters: x W^T + scale * (x A^T) B^T."""

    def __init__(
        self, linear: nn.Linear, parts: list[int], adapted: list[bool], config: LoraConfig
    ) -> None:
        """`parts`: the rows of each map in the matrix; `adapted`: whether it has an adapter."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.parts, self.adapted = parts, adapted
        self.rank, self.scale = config.rank, config.scale
        new = linear.weight.new_zeros
        n_rows = sum(rows for rows, one in zip(parts, adapted, strict=True) if one)
        self.lora_a = nn.Parameter(new(sum(adapted) * config.rank, linear.in_features))
        self.lora_b = nn.Parameter(new(n_rows, config.rank))

    def parts_of_adapters(self) -> dict[str, list[int]]:
        """The rows of each map in `lora_a` and `lora_b`."""
        rows = [rows for rows, one in zip(self.parts, self.adapted, strict=True) if one]
        return {A: [self.rank] * len(rows), B: rows}

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        low = F.linear(x, self.lora_a).split(self.rank, dim=-1)  # n of (..., R)
        rows = [rows for rows, one in zip(self.parts, self.adapted, strict=True) if one]
        high = map(F.linear, low, self.lora_b.split(rows))
        added = [
            next(high) if one else x.new_zeros(*x.shape[:-1], rows)
            for rows, one in zip(self.parts, self.adapted, strict=True)
        ]
        return F.linear(x, self.weight, self.bias) + self.scale * torch.cat(added, dim=-1)


def add_adapters(model: GPT, config: LoraConfig, generator: torch.Generator) -> None:
    """Replaces the target matrices of each block, and freezes all weights but the adapters'.

    A is uniform as in PEFT; B is zero. With `config.embeddings` "yes", the embedding tables and the
    head stay learned.
    """
    learned = ("token_embedding", "value_embeddings", "head") if config.embeddings == "yes" else ()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(learned) if learned else False)
    known = model.parts()
    for i, block in enumerate(model.blocks):
        for name, adapted in adapted_maps(model, config).items():
            outer, _, inner = name.partition(".")
            linear = getattr(getattr(block, outer), inner)
            parts = known.get(f"blocks.{i}.{name}.weight", [linear.out_features])
            new = AdaptedLinear(linear, parts, adapted, config)
            bound = math.sqrt(1 / linear.in_features)
            with torch.no_grad():
                new.lora_a.uniform_(-bound, bound, generator=generator)
            setattr(getattr(block, outer), inner, new)


def adapted_maps(model: GPT, config: LoraConfig) -> dict[str, list[bool]]:
    """Which maps of each matrix of a block have an adapter; only matrices with at least one."""
    found = {}
    for name, maps in _MAPS.items():
        if name == "feed_forward.up" and not model.config.gated:
            maps = ("up",)
        if any(one in config.targets for one in maps):
            found[name] = [one in config.targets for one in maps]
    return found


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return name.endswith((A, B))


def merged(tensors: Mapping[str, Tensor], config: LoraConfig, model: GPT) -> dict[str, Tensor]:
    """The weights of the model without adapters that computes the same. `model` has adapters."""
    result = {name: tensor for name, tensor in tensors.items() if not is_adapter(name)}
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            weight = tensors[f"{name}.weight"]
            delta = delta_of(module, tensors[f"{name}.{A}"], tensors[f"{name}.{B}"])
            result[f"{name}.weight"] = (weight + config.scale * delta.to(weight.dtype)).detach()
    return result


def delta_of(module: AdaptedLinear, a: Tensor, b: Tensor) -> Tensor:
    """B A of all maps of a matrix, with zeros for those without an adapter."""
    kept = [rows for rows, one in zip(module.parts, module.adapted, strict=True) if one]
    products = iter(
        [high @ low for low, high in zip(a.split(module.rank), b.split(kept), strict=True)]
    )
    return torch.cat(
        [
            next(products) if one else a.new_zeros(rows, a.size(1))
            for rows, one in zip(module.parts, module.adapted, strict=True)
        ]
    )
