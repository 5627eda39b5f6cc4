"""The settings of `[rl]` with `auto` resolved by the method, and what they do with a rollout."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lmsmith.chat.rl import grpo
from lmsmith.chat.rl.policy import log_probabilities
from lmsmith.chat.rl.rows import Rows
from lmsmith.chat.rl.task import Judge, RLTask
from lmsmith.config import RL_TASKS, RunConfig
from lmsmith.errors import ConfigError
from lmsmith.generate.sampling import Sampling
from lmsmith.models.interface import NeuralModel

_BY_METHOD: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr-grpo": {"scale": "none", "average": "length"},
    "dapo": {"average": "token", "clip_high": 0.28, "dynamic": "yes", "overlong": "penalty"},
    "reinforce": {"scale": "none", "average": "sum"},
}
_USUAL: dict[str, Any] = {
    "scale": "group",
    "average": "answer",
    "clip_high": 0.2,
    "dynamic": "no",
    "overlong": "keep",
}


@dataclass(frozen=True)
class Options:
    """What `lmsmith rl` does in each step. `forbidden`: ids that are never drawn."""

    task: RLTask
    judge: Judge
    sampling: Sampling
    max_tokens: int
    clipping: grpo.Clipping
    scale: grpo.Scale
    average: grpo.Average
    dynamic: bool
    overlong: str
    buffer: int
    kl_weight: float
    forbidden: Tensor | None = None

    def with_forbidden(self, ids: Tensor | None) -> Options:
        return dataclasses.replace(self, forbidden=ids)

    def log_probabilities(
        self, model: NeuralModel, inputs: Tensor, targets: Tensor, kept: Tensor
    ) -> Float[Tensor, " n"]:
        """ln p of the answers, under the distribution that they were sampled from."""
        return log_probabilities(
            model,
            inputs,
            targets,
            self.sampling.temperature,
            kept if kept.size(1) else None,
            None if self.forbidden is None else self.forbidden.to(inputs.device),
        )

    def weigh(self, rows: Rows, rewards: Float[Tensor, "P G"]) -> None:
        """Sets advantages and weights of answers with these rewards."""
        if self.overlong == "penalty":
            penalty = grpo.overlong_penalty(rows.n_tokens, self.max_tokens, self.buffer)
            rewards = rewards + penalty.view_as(rewards)
        rows.advantages = grpo.advantages(rewards, self.scale).flatten()
        counted = (
            rows.finished if self.overlong == "mask" else rows.finished.new_ones(len(rows.finished))
        )
        rows.weights = grpo.token_weights(rows.n_tokens, counted, self.average, self.max_tokens)


def options_of(config: RunConfig) -> Options:
    """Resolves the settings of a run, without opening files. Raises ConfigError."""
    rl = config.rl
    if len(config.data.sources) != 1:
        raise ConfigError(
            f"`lmsmith rl` needs one task, found {len(config.data.sources)}: name it with --task."
        )
    task: RLTask = RL_TASKS.get(config.data.sources[0])
    values: dict[str, Any] = {
        name: getattr(rl, name) if getattr(rl, name) not in ("auto", 0.0) else usual
        for name, usual in (_USUAL | _BY_METHOD[rl.method]).items()
    }
    ratio = rl.method != "reinforce" or rl.steps_per_rollout > 1
    max_tokens = rl.max_tokens or task.max_tokens
    buffer = rl.overlong_buffer or max(1, max_tokens // 4)
    if values["overlong"] == "penalty" and buffer > max_tokens:
        raise ConfigError(
            f"rl.overlong_buffer = {buffer}, expected at most rl.max_tokens = {max_tokens}."
        )
    return Options(
        task=task,
        judge=Judge.of(rl.rewards or task.rewards),
        sampling=Sampling(
            temperature=rl.temperature, top_k=rl.top_k, top_p=rl.top_p, min_p=rl.min_p
        ),
        max_tokens=max_tokens,
        clipping=grpo.Clipping(rl.clip_low, values["clip_high"], ratio),
        scale=values["scale"],
        average=values["average"],
        dynamic=values["dynamic"] == "yes",
        overlong=values["overlong"],
        buffer=buffer,
        kl_weight=rl.kl_weight,
    )


def opened_task(config: RunConfig) -> RLTask:
    """The task of a run, with the problems of its file. Raises ConfigError, DataError."""
    task: RLTask = RL_TASKS.get(config.data.sources[0])
    return task.opened(Path(config.rl.data) if config.rl.data else None)
