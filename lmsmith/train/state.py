"""The training state: the data that one step passes to the next, and its form in a checkpoint.

Batches and dropout are functions of (seed, step). So a resumed run reaches the same weights, bit
for bit, from the following:

    groups of tensors   model, optimizer; best (if those are not the newest weights); average
                        (of the last steps' weights); carried (states of truncated BPTT);
                        objective (its state, if it has tensors);
                        hook_NAME for each hook with tensors
    state.json          the numbers of `TrainState`, the gradient scale, the spike guard, and
                        under "hooks" the values of each hook's state that are not tensors;
                        under "objective" those of the objective, and the latest evaluation's
                        metrics, if there are any
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lmsmith.checkpoint import Checkpoint
from lmsmith.distributed.shard import shard_like
from lmsmith.strict_json import finite
from lmsmith.train.guard import Guard
from lmsmith.train.hook_state import Stateful, pack, unpack
from lmsmith.train.objective import Objective
from lmsmith.train.replica import Replica

Groups = dict[str, dict[str, Tensor]]


@dataclass
class TrainState:
    """The progress of a run. Infinite numbers are not known yet.

    `best`: copies of the weights with the lowest validation loss (under FSDP2: of their shards);
    empty before the first evaluation. `average`: the mean of the last weights (`hooks/average.py`),
    if `train.average_fraction` is set. `hooks_done`: the last step that each of the user's hooks
    has completed.
    """

    step: int = 0  # steps made
    n_steps: int = 0  # steps planned
    evaluated_step: int = 0
    tokens_seen: int = 0  # targets
    tokens_read: int = 0  # also those that are not learned
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    best_step: int = 0
    best_val_loss: float = math.inf  # nats per token
    best_val_bits_per_byte: float = math.inf
    val_loss: float = math.inf
    val_bits_per_byte: float = math.inf
    seconds_to_target: float = math.inf
    n_corrections: int = 0  # changes of the plan under --minutes
    n_averaged: int = 0  # weights in `average`
    averaged_step: int = 0  # the step of the latest of them
    best_is_average: bool = False
    best: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    val_metrics: dict[str, float] = field(default_factory=dict)  # of the latest evaluation
    best_val_metrics: dict[str, float] = field(default_factory=dict)  # with the lowest loss
    hooks_done: dict[str, int] = field(default_factory=dict)

    @property
    def newest_are_best(self) -> bool:
        """Whether the best weights are those of the latest step."""
        return self.best_step == self.step and not self.best_is_average

    def numbers(self) -> dict[str, Any]:
        """Returns all numeric fields by name."""
        return {name: getattr(self, name) for name in _NUMBERS}

    def to_checkpoint(
        self, replica: Replica, guard: Guard, hooks: Sequence[Stateful] = ()
    ) -> tuple[Groups, dict[str, Any]]:
        """Returns groups of tensors (not copied; shards under FSDP2) and the values for state.json.

        `hooks`: the user's hooks on this rank. Raises TrainingError if a hook's `state_dict` cannot
        be saved.
        """
        groups: Groups = {
            "model": replica.weights(copy=False),
            "optimizer": replica.optimizers.state(),
        }
        if self.best and not self.newest_are_best:
            groups["best"] = self.best
        if self.average:
            groups["average"] = self.average
        if replica.carried:
            groups["carried"] = replica.carried.tensors()
        state: dict[str, Any] = finite(self.numbers())
        state["gradient_scale"] = (replica.scale.value, replica.scale.n_good)
        state["guard"] = guard.state()
        tensors, values = pack_objective(replica.objective)
        if tensors:
            groups["objective"] = tensors
        if values:
            state["objective"] = finite(values)
        if self.val_metrics:
            state["val_metrics"] = finite([self.val_metrics, self.best_val_metrics])
        if hooks:
            packed, state["hooks"] = pack(hooks, self.hooks_done, groups)
            groups |= packed
        return groups, state

    @classmethod
    def from_checkpoint(
        cls, found: Checkpoint, replica: Replica, guard: Guard, hooks: Sequence[Stateful] = ()
    ) -> TrainState:
        """Loads a checkpoint into the replica, the guard and the hooks; returns its state."""
        replica.load_weights(found.tensors["model"])
        replica.optimizers.load_state(found.tensors["optimizer"], shard_like)
        scale = found.state.get("gradient_scale", (1.0, 0))
        replica.scale.value, replica.scale.n_good = scale
        if replica.carried:
            replica.carried.load(found.tensors["carried"])
        guard.load_state(found.state["guard"])
        tensors = found.tensors.get("objective", {})  # memory-mapped, hence the copies
        replica.objective.load_state_dict(
            found.state.get("objective", {}) | {name: t.clone() for name, t in tensors.items()}
        )
        made = cls()
        if "tokens_read" not in found.state:  # a checkpoint of an earlier version
            made.tokens_read = int(found.state["tokens_seen"])
        made.val_metrics, made.best_val_metrics = found.state.get("val_metrics", ({}, {}))
        for name in _NUMBERS:
            if name in found.state:
                value = found.state[name]
                setattr(made, name, math.inf if value is None else value)
        if made.best_val_loss < math.inf:
            made.best = _copies(found.tensors.get("best"), replica)
        if average := found.tensors.get("average"):
            made.average = _copies(average, replica)
        made.hooks_done = unpack(found, hooks)
        return made


_OTHERS = ("best", "average", "val_metrics", "best_val_metrics", "hooks_done")
_NUMBERS = tuple(f.name for f in fields(TrainState) if f.name not in _OTHERS)


def pack_objective(objective: Objective) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits the objective's state into tensors and other values."""
    state = objective.state_dict()
    tensors = {name: value.detach() for name, value in state.items() if torch.is_tensor(value)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _copies(group: Mapping[str, Tensor] | None, replica: Replica) -> dict[str, Tensor]:
    """Copies of a checkpoint's group of weights, or else of the newest weights."""
    weights = replica.weights(copy=True)
    if group is None:
        return weights
    return {n: shard_like(group[n].to(p.device, copy=True), p) for n, p in weights.items()}
