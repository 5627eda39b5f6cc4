"""Which parameter goes to which optimizer, with what learning rate and decay.

| parameters | optim.name = "muon" | "adamw", "sgd" |
|---|---|---|
| matrices inside blocks | Muon, decayed | decayed |
| embedding tables (a tied head is one) | AdamW at the tables' rate | at the tables' rate, decayed |
| an untied head | AdamW, decayed | decayed |
| biases, gains | AdamW | not decayed |

GPT-2's recipe decays every tensor of two or more dimensions, tables included; modern ones leave
tables alone. SGD's decay is decoupled as AdamW's is: p shrinks by lr * decay, whatever the momentum
(Loshchilov and Hutter 2019, algorithm 1).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmsmith.config import OPTIMIZERS, OptimConfig
from lmsmith.errors import ConfigError, TrainingError
from lmsmith.models.interface import NeuralModel
from lmsmith.optim.muon import Muon, OfStack, Quintic, newton_schulz, polar_express
from lmsmith.optim.sgd import SGD


class Optimizers:
    """The optimizers of a model as one: a step, a learning rate share, a state of named tensors.

    `products` is the precision of Muon's matrix products; None: the parameters'. `over_ranks` makes
    of a function of stacked matrices one that shares them out among processes.
    """

    def __init__(
        self,
        model: NeuralModel,
        config: OptimConfig,
        products: torch.dtype | None = None,
        over_ranks: Callable[[OfStack], OfStack] | None = None,
    ) -> None:
        self.named: dict[str, Tensor] = dict(model.named_parameters())
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
        make = OPTIMIZERS.get(config.name)
        self.all: list[torch.optim.Optimizer] = [make([g for g in groups if g["params"]], config)]
        if not isinstance(self.all[0], torch.optim.Optimizer):
            raise ConfigError(
                f"optim.name = {config.name!r} made a {type(self.all[0]).__name__}: wanted a "
                "torch.optim.Optimizer. Correct the function that is registered under that name."
            )
        if matrices:
            parts = {self.named[n]: rows for n, rows in model.parts().items()}
            self.all.append(
                Muon(
                    matrices.values(),
                    lr=config.muon_learning_rate,
                    momentum=config.muon_momentum,
                    weight_decay=config.weight_decay,
                    quintics=_quintics(config),
                    dtype=products,
                    parts=parts,
                    over_ranks=over_ranks,
                )
            )
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]

    def step(self, share: float) -> None:
        """One update at `share` of each group's peak learning rate; gradients are cleared."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Gradients are gone."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that an uninterrupted run would carry on: `exp_avg/blocks.0...` and so
        on.
        """
        names = {p: n for n, p in self.named.items()}
        found = {
            f"{key}/{names[p]}": value
            for optimizer in self.all
            for p, entries in optimizer.state.items()
            for key, value in entries.items()
        }
        for name, value in found.items():
            if not torch.is_tensor(value):
                raise TrainingError(
                    f"the optimizer {type(self.all[0]).__name__} keeps a value of type "
                    f"{type(value).__name__} in its state ({name}), which a checkpoint cannot "
                    "hold: wanted tensors, such as torch.tensor(...). Correct the optimizer and "
                    "train again."
                )
        return found

    def load_state(
        self,
        tensors: Mapping[str, Tensor],
        sharded: Callable[[Tensor, Tensor], Tensor] = lambda value, p: value,
    ) -> None:
        """The inverse of `state`; copies, so that the tensors given stay as they are.

        `sharded(value, p)`: what of a whole tensor is kept here, where `p` is a shard.
        """
        owner = {p: o for o in self.all for group in o.param_groups for p in group["params"]}
        for name, value in tensors.items():
            key, _, parameter = name.partition("/")
            p = self.named[parameter]
            value = value.to(p.device, copy=True)  # fused AdamW wants its step count there as well
            owner[p].state[p][key] = sharded(value, p) if value.shape == p.shape else value


def adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=config.eps, fused=True)


def sgd(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return SGD(groups, momentum=config.sgd_momentum, nesterov=config.sgd_nesterov)


def _quintics(config: OptimConfig) -> list[Quintic]:
    method = newton_schulz if config.muon_method == "newton-schulz" else polar_express
    return method(config.muon_iterations)
