"""Stochastic gradient descent with momentum (Polyak 1964; Sutskever et al. 2013 for Nesterov's)
and decoupled decay.
"""

from collections.abc import Iterable
from typing import Any

import torch


class SGD(torch.optim.Optimizer):
    """v = momentum v + g, p = (1 - lr decay) p - lr v; with `nesterov` p moves by lr (g + momentum
    v).

    PyTorch's own adds the decay to g before the momentum, where a learning rate that changes
    changes the decay with it.
    """

    def __init__(self, params: Iterable[Any], *, momentum: float, nesterov: bool) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})
        self.momentum, self.nesterov = momentum, nesterov

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            if self.momentum:
                for p in params:
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                moving = [self.state[p]["momentum"] for p in params]
                torch._foreach_mul_(moving, self.momentum)
                torch._foreach_add_(moving, grads)
                grads = (
                    list(torch._foreach_add(grads, moving, alpha=self.momentum))
                    if self.nesterov
                    else moving
                )
            torch._foreach_add_(params, grads, alpha=-group["lr"])
