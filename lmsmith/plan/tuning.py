"""FLOPs of preference optimization and reinforcement learning, beside those of training.

    DPO    the policy is trained on both answers of a pair; the reference model reads both
    GRPO   a group of answers to each prompt is generated (the rollout, with a KV cache); policy and
           reference model read them for their log-probabilities, and the policy is trained on them

F is a forward pass over a token, 3 F training on it. Generating a token costs F: the KV cache keeps
what earlier tokens computed. The reference model's weights need memory, but no gradients or state.
With LoRA the reference is the model without its adapters: no memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmsmith.config import RunConfig
from lmsmith.plan.flops import flops
from lmsmith.plan.parameters import parameters


@dataclass(frozen=True)
class Tuning:
    """FLOPs of a step by part, and bytes of the reference model."""

    parts: dict[str, float]
    reference_bytes: float

    @property
    def flops(self) -> float:
        return sum(self.parts.values())


def dpo(config: RunConfig, n_pairs: int, tokens_per_answer: int) -> Tuning:
    """A step on `n_pairs` pairs of answers, prompts included in their tokens."""
    found, n = flops(config), 2 * n_pairs * tokens_per_answer
    parts = {"policy": n * found.per_token, "reference": n * found.forward}
    return Tuning(parts, _reference(config))


def grpo(
    config: RunConfig,
    n_prompts: int,
    group_size: int,
    *,
    prompt_tokens: int,
    answer_tokens: int,
    n_updates: int = 1,
    reference: bool = True,
) -> Tuning:
    """A step on `group_size` answers to each of `n_prompts` prompts, trained on `n_updates` times.

    `reference`: with a KL penalty to a reference model.
    """
    found = flops(config)
    answers = n_prompts * group_size
    read = answers * (prompt_tokens + answer_tokens)
    parts = {
        "rollout": found.forward * (n_prompts * prompt_tokens + answers * answer_tokens),
        "old log-probabilities": found.forward * read,
        "policy": n_updates * found.per_token * read,
    }
    if reference:
        parts["reference"] = found.forward * read
    return Tuning(parts, _reference(config) if reference else 0.0)


def _reference(config: RunConfig) -> float:
    if config.lora.rank:
        return 0.0
    return 4.0 * sum(parameter.n for parameter in parameters(config))
