"""Settings of reinforcement learning, and the names of its tasks and rewards."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lmsmith.config.registry import Registry
from lmsmith.config.settings import check, setting

_HERE = "lmsmith.chat.rl"

RL_TASKS: Registry[Any] = Registry(
    "RL task",
    "lmsmith.rl_tasks",
    {
        "arithmetic": f"{_HERE}.tasks:ARITHMETIC",
        "story": f"{_HERE}.tasks:STORY",
        "little_stories": f"{_HERE}.tasks:LITTLE_STORIES",
        "story_sums": f"{_HERE}.tasks:STORY_SUMS",
        "gsm8k": f"{_HERE}.tasks:GSM8K",
    },
)
"""Instances of `lmsmith.chat.rl.task.RLTask`, which make problems."""

REWARDS: Registry[Any] = Registry(
    "reward",
    "lmsmith.rewards",
    {
        name: f"{_HERE}.rewards:{name}"
        for name in (
            *("exact", "contains", "asked", "last_number", "marked_number", "digits"),
            *("number_format", "marked_format"),
        )
    },
)
"""Functions of a problem and an answer, which return a number."""


@dataclass(frozen=True)
class RLConfig:
    """Groups of sampled answers, their rewards, and the loss (`lmsmith rl`)."""

    method: Literal["grpo", "dr-grpo", "dapo", "reinforce"] = setting(
        "grpo", "the method, which sets the settings left at auto below"
    )
    rewards: tuple[str, ...] = setting(
        (), "names of rewards, each NAME or NAME=WEIGHT; none: those of the task"
    )
    data: str = setting("", "the file of problems, for tasks that read one", zero="none")
    group_size: int = setting(8, "answers per prompt; train.batch_size counts answers")
    max_tokens: int = setting(0, "most tokens per answer; auto: the task's", zero="auto")
    temperature: float = setting(1.0, "sampling temperature of the answers")
    top_k: int = setting(0, "top-k sampling: number of likeliest ids to keep", zero="all")
    top_p: float = setting(1.0, "top-p sampling: share of the probability to keep")
    min_p: float = setting(0.0, "min-p sampling: share of the largest probability an id needs")
    steps_per_rollout: int = setting(1, "optimizer steps on the same answers")
    clip_low: float = setting(0.2, "ratios below 1 minus this are clipped")
    clip_high: float = setting(
        0.0, "ratios above 1 plus this are clipped; auto: 0.2, dapo: 0.28", zero="auto"
    )
    kl_weight: float = setting(
        0.0, "weight of the KL divergence from the starting model in the loss", zero="none"
    )
    scale: Literal["auto", "group", "batch", "none"] = setting(
        "auto",
        "standard deviation that advantages are divided by; auto: group, dr-grpo and reinforce: "
        "none",
    )
    average: Literal["auto", "answer", "token", "length", "sum"] = setting(
        "auto",
        "how token losses are averaged: answer: over an answer, then over answers (grpo); token: "
        "over all tokens (dapo); length: sums over rl.max_tokens (dr-grpo); sum: sums over "
        "answers (reinforce)",
    )
    dynamic: Literal["auto", "yes", "no"] = setting(
        "auto",
        "dynamic sampling: replace groups whose rewards are equal; auto: no, dapo: yes",
    )
    overlong: Literal["auto", "keep", "mask", "penalty"] = setting(
        "auto",
        "answers that reach rl.max_tokens: keep them, mask them in the loss, or lower the reward "
        "of long answers; auto: keep, dapo: penalty",
    )
    overlong_buffer: int = setting(
        0,
        "with penalty: it grows over this many tokens before rl.max_tokens; auto: a quarter",
        zero="auto",
    )
    eval_problems: int = setting(200, "held-out problems of an evaluation, answered greedily")

    def __post_init__(self) -> None:
        check(self.group_size >= 2, "rl.group_size", self.group_size, "at least 2")
        check(self.eval_problems >= 1, "rl.eval_problems", self.eval_problems, "at least 1")
        n = self.steps_per_rollout
        check(n >= 1, "rl.steps_per_rollout", n, "at least 1")
        for name in ("max_tokens", "top_k", "overlong_buffer"):
            check(getattr(self, name) >= 0, f"rl.{name}", getattr(self, name), "0 or more")
        for name in ("kl_weight", "clip_high"):
            good = 0 <= getattr(self, name) < math.inf
            check(good, f"rl.{name}", getattr(self, name), "0 or more")
        check(0 < self.temperature < math.inf, "rl.temperature", self.temperature, "above 0")
        check(0 < self.top_p <= 1, "rl.top_p", self.top_p, "above 0 and at most 1")
        check(0 <= self.min_p <= 1, "rl.min_p", self.min_p, "between 0 and 1")
        check(0 < self.clip_low <= 1, "rl.clip_low", self.clip_low, "above 0 and at most 1")
