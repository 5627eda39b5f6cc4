"""SGD with momentum (Polyak 1964; Nesterov's: Sutskever et al. 2013) and decoupled weight decay."""

from collections.abc import Iterable
from typing import Any

import torch

from lmsmith.optim.eager import Eager


class SGD(Eager):
    """v = momentum v + g, p = (1 - lr decay) p - lr v.

    With `nesterov`, p changes by -lr (g + momentum v) instead. PyTorch's own SGD adds the decay to
    g before the momentum, so a changing learning rate also changes the decay of earlier steps.
    """

    def __init__(self, params: Iterable[Any], *, momentum: float, nesterov: bool) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})
        self.momentum, self.nesterov = momentum, nesterov

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One optimizer step."""
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
                velocities = [self.state[p]["momentum"] for p in params]
                torch._foreach_mul_(velocities, self.momentum)
                torch._foreach_add_(velocities, grads)
                grads = (
                    list(torch._foreach_add(grads, velocities, alpha=self.momentum))
                    if self.nesterov
                    else velocities
                )
            torch._foreach_add_(params, grads, alpha=-group["lr"])
