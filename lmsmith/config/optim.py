"""Settings of the optimizer and of the learning-rate schedule, and their registries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.config.registry import Registry
from lmsmith.config.settings import check, setting

if TYPE_CHECKING:
    from torch.optim import Optimizer

OptimizerFactory = Callable[[list[dict[str, Any]], "OptimConfig"], "Optimizer"]
"""Builds an optimizer from parameter groups (`params`, `lr`, `weight_decay`) and the settings.

Checkpoints save `optimizer.state[p]` of each parameter p, which must consist of tensors.
"""

Schedule = Callable[[int, int, "ScheduleConfig"], float]
"""(step, counted from 0; number of steps; settings) -> learning rate, as a fraction of its peak."""

OPTIMIZERS: Registry[OptimizerFactory] = Registry(
    "optimizer",
    "lmsmith.optimizers",
    {
        "adamw": "lmsmith.optim.groups:adamw",
        "muon": "lmsmith.optim.groups:adamw",  # for the parameters that are not matrices
        "adam": "lmsmith.optim.groups:adam",
        "sgd": "lmsmith.optim.groups:sgd",
    },
)

SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    "lmsmith.schedules",
    {
        name: f"lmsmith.optim.schedule:{name.replace('-', '_')}"
        for name in ("constant", "linear", "cosine", "trapezoid", "inverse-sqrt")
    },
)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer. With `muon`, Muon trains the matrices inside blocks and AdamW the rest."""

    name: str = setting(
        "muon",
        "optimizer: adamw, sgd, or adam (L2 regularization instead of decoupled weight decay) for "
        "all parameters; muon for the matrices inside blocks, with adamw for the rest",
        choices=OPTIMIZERS.names,
    )
    learning_rate: float = setting(3e-3, "peak learning rate of AdamW, Adam or SGD")
    embedding_learning_rate: float = setting(
        0.0,
        "peak learning rate of AdamW for embedding tables; auto: optim.learning_rate",
        zero="auto",
    )
    muon_learning_rate: float = setting(
        0.02, "peak learning rate of Muon: about the spectral norm of each step's change"
    )
    muon_momentum: float = setting(0.95, "Nesterov momentum of Muon")
    muon_method: Literal["newton-schulz", "polar-express"] = setting(
        "newton-schulz",
        "how Muon orthogonalizes its steps: newton-schulz repeats one quintic polynomial; "
        "polar-express uses the optimal one for each iteration",
    )
    muon_iterations: int = setting(5, "iterations of optim.muon_method per step")
    sgd_momentum: float = setting(0.9, "momentum of SGD")
    sgd_nesterov: bool = setting(True, "use Nesterov momentum in SGD")
    beta1: float = setting(0.9, "AdamW's beta1: decay rate of the first moment")
    beta2: float = setting(0.95, "AdamW's beta2: decay rate of the second moment")
    eps: float = setting(1e-8, "AdamW's epsilon: added to the denominator")
    weight_decay: float = setting(
        0.0,
        "decoupled weight decay of parameters with two or more dimensions (with muon, not of "
        "embedding tables)",
    )
    clip_norm: float = setting(
        0.0,
        "gradient clipping: maximum norm of the gradient over all parameters; none: no clipping",
        zero="none",
    )

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            OPTIMIZERS.get(self.name)
        for name in ("learning_rate", "muon_learning_rate", "eps"):
            good = 0 < getattr(self, name) < math.inf
            check(good, f"optim.{name}", getattr(self, name), "above 0")
        for name in ("beta1", "beta2", "muon_momentum", "sgd_momentum"):
            good = 0 <= getattr(self, name) < 1
            check(good, f"optim.{name}", getattr(self, name), "at least 0 and below 1")
        for name in ("embedding_learning_rate", "weight_decay", "clip_norm"):
            good = 0 <= getattr(self, name) < math.inf
            check(good, f"optim.{name}", getattr(self, name), "0 or more")
        check(
            self.muon_iterations >= 1, "optim.muon_iterations", self.muon_iterations, "at least 1"
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule: fraction of the peak, from the step and the number of steps."""

    shape: str = setting(
        "trapezoid",
        "learning-rate schedule after warm-up: constant; linear or cosine decay; trapezoid: "
        "constant, then linear cool-down; inverse-sqrt: 1/sqrt(step)",
        choices=SCHEDULES.names,
    )
    warmup_steps: int = setting(
        10, "warm-up: steps in which the learning rate rises linearly from zero to its peak"
    )
    cooldown_fraction: float = setting(
        0.7, "length of the trapezoid schedule's cool-down, as a fraction of all steps"
    )
    final_fraction: float = setting(
        0.0, "final learning rate of a decaying schedule, as a fraction of the peak"
    )

    def __post_init__(self) -> None:
        if self.shape not in SCHEDULES:
            SCHEDULES.get(self.shape)
        check(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "0 or more")
        for name in ("cooldown_fraction", "final_fraction"):
            good = 0 <= getattr(self, name) <= 1
            check(good, f"schedule.{name}", getattr(self, name), "between 0 and 1")
