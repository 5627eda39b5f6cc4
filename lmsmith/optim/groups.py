"""Assigns each parameter to an optimizer, a learning rate and a weight decay.

| parameters | optim.name = "muon" | "adamw", "adam", "sgd" |
|---|---|---|
| matrices inside blocks | Muon, weight decay | weight decay |
| embedding tables (also a tied head) | AdamW at the tables' rate | the tables' rate, weight decay |
| an untied head | AdamW, weight decay | weight decay |
| biases, gains | AdamW | no weight decay |

GPT-2's recipe applies weight decay to every tensor of two or more dimensions, including embedding
tables; modern recipes exclude the tables. Weight decay is decoupled in SGD as in AdamW: p shrinks
by lr * decay, independent of momentum (Loshchilov and Hutter 2019, algorithm 1). "adam" is AdamW
with L2 regularization instead.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmsmith.config import OPTIMIZERS, OptimConfig
from lmsmith.errors import ConfigError, TrainingError
from lmsmith.models.interface import NeuralModel
from lmsmith.optim.eager import Adam, AdamW
from lmsmith.optim.muon import Muon, Quintic, StackFunction, newton_schulz, polar_express
from lmsmith.optim.mup import by_width
from lmsmith.optim.sgd import SGD


class Optimizers:
    """The optimizers of a model behind one interface: step, learning rate, and state as named
    tensors.

    `products` is the dtype of Muon's matrix products; None means the parameters' dtype.
    `distribute` wraps a function of stacked matrices in one that divides the stack among ranks.
    """

    def __init__(
        self,
        model: NeuralModel,
        config: OptimConfig,
        products: torch.dtype | None = None,
        distribute: Callable[[StackFunction], StackFunction] | None = None,
    ) -> None:
        self.named: dict[str, Tensor] = {
            n: p for n, p in model.named_parameters() if p.requires_grad
        }
        muon = config.name == "muon"
        matrices = {
            n: p for n, p in self.named.items() if muon and n.startswith("blocks.") and p.dim() == 2
        }
        rest = {n: p for n, p in self.named.items() if n not in matrices}
        tables = {n: p for n, p in rest.items() if "embedding" in n}
        decayed = {n: p for n, p in rest.items() if n not in tables and p.dim() >= 2}
        plain = [p for n, p in rest.items() if n not in tables and n not in decayed]
        table_decay = 0.0 if muon else config.weight_decay
        table_rate = config.embedding_learning_rate or config.learning_rate
        groups = [
            {
                "params": list(decayed.values()),
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
            },
            {"params": list(tables.values()), "lr": table_rate, "weight_decay": table_decay},
            {"params": plain, "lr": config.learning_rate, "weight_decay": 0.0},
        ]
        groups = by_width(groups, self.named, config, model.config.width_multiplier)
        groups = [group for group in groups if group["params"]]
        self.all: list[torch.optim.Optimizer] = []
        if groups:
            self.all.append(_made(groups, config))
        if matrices:
            parts = {
                p: rows for n, rows in model.parts().items() if (p := matrices.get(n)) is not None
            }
            self.all.append(
                Muon(
                    matrices.values(),
                    lr=config.muon_learning_rate,
                    momentum=config.muon_momentum,
                    weight_decay=config.weight_decay,
                    quintics=_quintics(config),
                    dtype=products,
                    parts=parts,
                    distribute=distribute,
                )
            )
        if not self.all:
            raise ConfigError(
                "every parameter is frozen, so there is nothing to train. Name maps for adapters "
                "with lora.targets, or set lora.rank to 0."
            )
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]

    def step(self, share: float) -> None:
        """One optimizer step at `share` of each peak learning rate. Clears the gradients."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Sets all gradients to None."""
        for optimizer in self.all:  # not by `zero_grad`, which imports the compiler (`eager.py`)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Returns every tensor that a resumed run needs, by name: `exp_avg/blocks.0...` and so on.

        Raises TrainingError if an optimizer's state holds anything but tensors.
        """
        names = {p: n for n, p in self.named.items()}
        state = {
            f"{key}/{names[p]}": value
            for optimizer in self.all
            for p, entries in optimizer.state.items()
            for key, value in entries.items()
        }
        for name, value in state.items():
            if not torch.is_tensor(value):
                raise TrainingError(
                    f"the optimizer {type(self.all[0]).__name__} keeps a value of type "
                    f"{type(value).__name__} in its state ({name}), which a checkpoint cannot "
                    "hold. Its state must consist of tensors, such as torch.tensor(...): correct "
                    "the optimizer and train again."
                )
        return state

    def load_state(
        self,
        tensors: Mapping[str, Tensor],
        sharded: Callable[[Tensor, Tensor], Tensor] = lambda value, p: value,
    ) -> None:
        """The inverse of `state`. Copies the tensors.

        `sharded(value, p)` returns this rank's shard of a full tensor if `p` is sharded.
        """
        owner = {p: o for o in self.all for group in o.param_groups for p in group["params"]}
        for name, value in tensors.items():
            key, _, parameter = name.partition("/")
            p = self.named[parameter]
            # Fused AdamW needs its step count on the device too.
            value = value.to(p.device, copy=True)
            owner[p].state[p][key] = sharded(value, p) if value.shape == p.shape else value


def _made(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    found = OPTIMIZERS.get(config.name)(groups, config)
    if not isinstance(found, torch.optim.Optimizer):
        raise ConfigError(
            f"optim.name = {config.name!r} returned a {type(found).__name__}, expected a "
            "torch.optim.Optimizer. Correct the function that is registered under that name."
        )
    return found


def adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """PyTorch's fused AdamW with the betas and eps of `config`."""
    betas = (config.beta1, config.beta2)
    return AdamW(groups, betas=betas, eps=config.eps, fused=True)


def adam(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """PyTorch's fused Adam, whose weight decay is L2 regularization: wd p is added to the gradient
    before the moments (Loshchilov and Hutter 2019, algorithm 2).
    """
    betas = (config.beta1, config.beta2)
    return Adam(groups, betas=betas, eps=config.eps, fused=True)


def sgd(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with the momentum of `config`."""
    return SGD(groups, momentum=config.sgd_momentum, nesterov=config.sgd_nesterov)


def _quintics(config: OptimConfig) -> list[Quintic]:
    method = newton_schulz if config.muon_method == "newton-schulz" else polar_express
    return method(config.muon_iterations)
