"""Weights in one safetensors file, or in several with an index, as transformers writes them.

model.safetensors                                    up to `shard_size` bytes
model-00001-of-00003.safetensors, ..., and           above it
model.safetensors.index.json                         which file holds which tensor
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json
from lmsmith.weights_file import write_tensors

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
SHARD_SIZE = 5 * 10**9  # bytes, as in transformers 4
SMALLEST = 10**5  # bytes; a smaller limit is a slip, such as 5 for 5GB

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20}
_UNITS["GIB"] = 2**30


def bytes_of(size: int | str) -> int:
    """Parses a size such as "5GB", "500 MB" or "2GiB". Raises UsageError if it is not one, or too
    small.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]*)", str(size).strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise UsageError(
            f"shard size {size!r}: expected a number with a unit, such as 5GB, 500MB or 2GiB."
        )
    n_bytes = int(float(match[1]) * unit)
    if n_bytes < SMALLEST:
        raise UsageError(
            f"shard size {size!r} is {n_bytes:,} bytes: expected at least 100KB, such as 5GB."
        )
    return n_bytes


def split(tensors: Mapping[str, Tensor], shard_size: int) -> list[dict[str, Tensor]]:
    """Groups tensors, in their order, into shards of at most `shard_size` bytes. A larger tensor
    has a shard of its own.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > shard_size:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def write_weights(
    folder: Path, tensors: Mapping[str, Tensor], shard_size: int = SHARD_SIZE
) -> dict[str, dict[str, Any]]:
    """Writes the weights; returns size and SHA-256 of each file. Raises OSError."""
    shards = split(tensors, shard_size)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WEIGHTS]
    files = {
        name: write_tensors(folder / name, shard, {"format": "pt"})
        for name, shard in zip(names, shards, strict=True)
    }
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_size": sum(t.numel() * t.element_size() for t in tensors.values()),
                "total_parameters": sum(t.numel() for t in tensors.values()),
            },
            "weight_map": {
                tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
            },
        }
        (folder / INDEX).write_text(to_json(index, indent=2) + "\n", encoding="utf-8")
    return files
