"""A new optimizer: Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms").

It uses only the sign of a momentum, so every weight moves by the learning rate. Use about a
third of AdamW's rate.

    LMSMITH_EXTENSIONS=examples/lion.py lmsmith train book.txt --optim.name lion
"""

from typing import Any

import torch

from lmsmith.extend import OptimConfig, register_optimizer


class Lion(torch.optim.Optimizer):
    """`beta1` averages momentum and gradient for a step, `beta2` updates the momentum."""

    def __init__(self, groups: list[dict[str, Any]], beta1: float, beta2: float) -> None:
        super().__init__(groups, {"lr": 1e-4, "weight_decay": 0.0})
        self.beta1, self.beta2 = beta1, beta2

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(p)
                momentum = state["exp_avg"]
                direction = torch.lerp(p.grad, momentum, self.beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"])
                momentum.lerp_(p.grad, 1 - self.beta2)


def lion(groups: list[dict[str, Any]], config: OptimConfig) -> Lion:
    return Lion(groups, config.beta1, config.beta2)


register_optimizer("lion", lion)
