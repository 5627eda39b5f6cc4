"""PyTorch's optimizers without the import of torch.compile's compiler.

PyTorch wraps some methods of its optimizers, so that torch.compile does not trace them. A wrapper
imports the compiler (torch._dynamo, with SymPy) at its first call, even if nothing is ever
compiled: about a second, and 70 MB of memory. The classes here call the wrapped functions
themselves. The numbers are the same.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

_add_param_group: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)
_adam_step: Any = inspect.unwrap(torch.optim.Adam.step)


class Eager(torch.optim.Optimizer):
    """Base class of optimizers whose `step` is not wrapped."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as `torch.optim.Optimizer` does."""
        _add_param_group(self, param_group)


class Adam(Eager, torch.optim.Adam):
    """`torch.optim.Adam`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One optimizer step."""
        _adam_step(self)


class AdamW(Eager, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One optimizer step."""
        _adam_step(self)
