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
"""From parameter groups (`params`, `lr`, `weight_decay`) and the settings to an optimizer.

Its state must be tensors by parameter (`optimizer.state[p]`), which checkpoints keep.
"""

Schedule = Callable[[int, int, "ScheduleConfig"], float]
"""(step from 0, number of steps, settings) -> learning rate as a share of its peak."""

OPTIMIZERS: Registry[OptimizerFactory] = Registry(
    "optimizer",
    "lmsmith.optimizers",
    {
        "adamw": "lmsmith.optim.groups:adamw",
        "muon": "lmsmith.optim.groups:adamw",  # of the parameters that are not matrices
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
    """The optimizer. With `muon`, matrices inside blocks go to Muon, everything else to AdamW."""

    name: str = setting(
        "muon",
        "adamw or sgd for all parameters, or muon for matrices and adamw for the rest",
        choices=OPTIMIZERS.names,
    )
    learning_rate: float = setting(3e-3, "peak learning rate of AdamW or SGD")
    embedding_learning_rate: float = setting(
        0.0, "AdamW's peak for embedding tables; auto: learning_rate", zero="auto"
    )
    muon_learning_rate: float = setting(
        0.02, "Muon's peak learning rate: about the spectral norm of a step"
    )
    muon_momentum: float = setting(0.95, "Muon's Nesterov momentum")
    muon_method: Literal["newton-schulz", "polar-express"] = setting(
        "newton-schulz",
        "how Muon orthogonalizes matrices: one quintic repeated, or the best one for each "
        "iteration",
    )
    muon_iterations: int = setting(5, "iterations of that method")
    sgd_momentum: float = setting(0.9, "SGD's momentum")
    sgd_nesterov: bool = setting(True, "Nesterov momentum in SGD")
    beta1: float = setting(0.9, "AdamW's decay rate of the first moment")
    beta2: float = setting(0.95, "AdamW's decay rate of the second moment")
    eps: float = setting(1e-8, "AdamW's epsilon")
    weight_decay: float = setting(
        0.0,
        "decoupled weight decay on tensors of two or more dimensions (with muon not on embedding "
        "tables)",
    )
    clip_norm: float = setting(
        0.0, "clip the global gradient norm to this; none: no clipping", zero="none"
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
    """The learning rate as a share of its peak: a function of the step and the number of steps."""

    shape: str = setting(
        "trapezoid",
        "after warm-up: constant; linear or cosine decay to the end; trapezoid: constant, then "
        "linear cool-down; inverse-sqrt: 1/sqrt(step)",
        choices=SCHEDULES.names,
    )
    warmup_steps: int = setting(10, "steps of linear warm-up from zero")
    cooldown_fraction: float = setting(0.7, "share of the steps in a trapezoid's cool-down")
    final_fraction: float = setting(0.0, "share of the peak that the decay ends at")

    def __post_init__(self) -> None:
        if self.shape not in SCHEDULES:
            SCHEDULES.get(self.shape)
        check(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "0 or more")
        for name in ("cooldown_fraction", "final_fraction"):
            good = 0 <= getattr(self, name) <= 1
            check(good, f"schedule.{name}", getattr(self, name), "between 0 and 1")
