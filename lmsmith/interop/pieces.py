"""Tensors of transformers as parts of ours, and checks of their names, shapes and dtypes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmsmith.errors import CheckpointError

_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NAMED = 4  # number of tensors that an error names


@dataclass(frozen=True, eq=False)
class Piece:
    """One of their tensors: `n_rows` rows of one of ours, in another order or transposed."""

    name: str
    n_rows: int
    order: Tensor | None = None
    """The row of theirs that each row of ours is."""
    transposed: bool = False

    def to_ours(self, x: Tensor) -> Tensor:
        if self.transposed:
            return x.T
        return x if self.order is None else x[self.order]

    def to_theirs(self, x: Tensor) -> Tensor:
        if self.transposed:
            return x.T
        return x if self.order is None else x[self.order.argsort()]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of their tensor, from the shape of ours."""
        shape = (self.n_rows, *ours[1:])
        return shape[::-1] if self.transposed else shape


@functools.cache
def rotary_rows(n_heads: int, K: int, R: int) -> Tensor:
    """`Piece.order` of heads of K rows, if RoPE rotates the first R: 0, R/2, 1, R/2 + 1, ..."""
    turned = torch.arange(R, device="cpu").view(2, -1).T.flatten()
    head = torch.cat([turned, torch.arange(R, K, device="cpu")])
    return (torch.arange(n_heads, device="cpu").unsqueeze(1) * K + head).flatten()


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Raises CheckpointError unless the tensors have the expected names, shapes and dtypes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unknown to this architecture": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {shapes[name]}, expected {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
        "of a dtype other than float64, float32, bfloat16 and float16 (quantized?)": [
            f"{name} {tensor.dtype}"
            for name, tensor in tensors.items()
            if tensor.dtype not in _PRECISIONS
        ],
    }
    lines = [f"{len(names)} {what}: {listed(names)}." for what, names in problems.items() if names]
    if lines:
        raise CheckpointError(
            f"the tensors in {folder} do not fit its config.json. {' '.join(lines)}"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    )
