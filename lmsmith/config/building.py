"""Builds a model whose weights are given, for the config classes of models. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)

ALIGNMENT = 64
"""Bytes, as PyTorch allocates. Products can have other last bits if a matrix begins elsewhere."""

_DRAWS = {
    getattr(nn.init, f"{name}_")
    for name in (
        *("uniform", "normal", "trunc_normal", "orthogonal"),
        *("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"),
    )
} | {Tensor.uniform_, Tensor.normal_}


class WithoutDraws(TorchFunctionMode):
    """A context in which modules do not draw the initial values of their parameters.

    Memory that is never written takes no space, so the built model takes almost none until its
    parameters are replaced. Draws for tensors that are not parameters are made as always.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)


def with_weights(build: Callable[[], M], tensors: Mapping[str, Tensor]) -> M:
    """Builds a module whose parameters and buffers are `tensors`, converted to the module's
    precision. A tensor of that precision is not copied.

    Raises RuntimeError if names or shapes differ.
    """
    with WithoutDraws():
        model = build()
    own = model.state_dict()
    given = {name: _placed(t, own[name].dtype) if name in own else t for name, t in tensors.items()}
    model.load_state_dict(given, assign=True)
    return model


def _placed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    placed = tensor.to(dtype).contiguous()
    return placed.clone() if placed.data_ptr() % ALIGNMENT else placed
