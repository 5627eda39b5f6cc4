"""Advantages and losses of policy gradients with groups of answers, as pure functions.

For each prompt, the policy samples a group of G answers; an answer's advantage is its reward minus
the mean of its group, so no value model is needed. With r = p / p_old for each token, the loss is

    sum over tokens of  w * ( -min(r A, clip(r, 1 - low, 1 + high) A) + beta * KL )

The methods differ in the divisor of A, the weight w of a token, and the range of the clipping:

    GRPO        A / std of the group    w = 1 / (N x tokens of its answer)    0.2, 0.2
    Dr. GRPO    A                       w = 1 / (N x max_tokens)              0.2, 0.2
    DAPO        A / std of the group    w = 1 / tokens of all answers         0.2, 0.28
    REINFORCE   A                       w = 1 / N                             none

(Shao et al. 2024, DeepSeekMath, eq. 3; Liu et al. 2025, "Understanding R1-Zero-Like Training",
section 3.2; Yu et al. 2025, DAPO, eq. 8; Williams 1992, with the group's mean as the baseline.)

REINFORCE needs no ratio: its loss is -A ln p, with the same gradient as r A where p = p_old. w of
1/N gives the policy gradient of the mean reward.

Shapes: P prompts, G answers each, N = P G answers, n tokens of answers, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EPSILON = 1e-4
"""Added to a standard deviation, as in TRL."""

Scale = Literal["group", "batch", "none"]
Average = Literal["answer", "token", "length", "sum"]


def advantages(rewards: Float[Tensor, "P G"], scale: Scale) -> Float[Tensor, "P G"]:
    """Rewards minus the mean of their group, divided by a standard deviation.

    `scale`: "group": that of the group (G - 1 degrees of freedom); "batch": that of all rewards;
    "none": not divided. A group whose rewards are equal has advantages of zero.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    deviation = rewards.std(1, keepdim=True) if scale == "group" else rewards.std()
    return centred / (deviation + EPSILON)


def has_signal(rewards: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Whether a group's rewards differ, so that it has a gradient."""
    return (rewards != rewards[:, :1]).any(1)


def overlong_penalty(
    n_tokens: Int[Tensor, " N"], max_tokens: int, buffer: int
) -> Float[Tensor, " N"]:
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13): 0 up to max_tokens - buffer tokens,
    then linear down to -1 at max_tokens.
    """
    over = n_tokens - (max_tokens - buffer)
    return -(over.double() / buffer).clamp(0, 1)


def token_weights(
    n_tokens: Int[Tensor, " N"],
    counted: Bool[Tensor, " N"],
    average: Average,
    max_tokens: int,
) -> Float[Tensor, " N"]:
    """The weight of each token of an answer in the loss.

    "answer": mean over the tokens of an answer, then over answers (GRPO). "token": mean over all
    tokens (DAPO). "length": sum over tokens, divided by N max_tokens (Dr. GRPO). "sum": sum over
    tokens, divided by N (REINFORCE). Answers that are not `counted` have weight 0; except in
    "token", they count in N.
    """
    N = len(n_tokens)
    if average == "answer":
        weights = 1 / (n_tokens.double() * N)
    elif average == "token":
        total = (n_tokens * counted).sum().clamp(min=1)
        weights = (1 / total.double()).expand(N)
    else:
        divisor = N * max_tokens if average == "length" else N
        weights = torch.full((N,), 1 / divisor, dtype=torch.float64)
    return weights * counted


@dataclass(frozen=True)
class Clipping:
    """The range of ratios: 1 - low to 1 + high. `ratio` False: REINFORCE, without ratios."""

    low: float = 0.2
    high: float = 0.2
    ratio: bool = True


def policy_loss(
    log_p: Float[Tensor, " n"],
    old: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    weight: Float[Tensor, " n"],
    clipping: Clipping,
    reference: Float[Tensor, " n"] | None = None,
    kl_weight: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss of some tokens, and sums over them for the metrics.

    log_p      ln p of each token under the policy that learns
    old        the same under the policy that sampled it
    reference  the same under the reference, for the KL term
    weight     from `token_weights`; the losses of several calls add up to that of the batch

    The sums are not divided: `clipped` tokens, `kl` (k3) and `tokens`.
    """
    if clipping.ratio:
        ratio = torch.exp(log_p - old)
        limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
        losses = -torch.minimum(ratio * advantage, limited * advantage)
        low = (ratio < 1 - clipping.low) & (advantage < 0)
        high = (ratio > 1 + clipping.high) & (advantage > 0)
        clipped = (low | high).sum().to(log_p.dtype)
    else:
        losses, clipped = -advantage * log_p, log_p.new_zeros(())
    kl = log_p.new_zeros(())
    if reference is not None:
        per_token = k3(log_p, reference)
        losses = losses + kl_weight * per_token
        kl = per_token.detach().sum()
    sums = {"clipped": clipped, "kl": kl, "tokens": log_p.new_tensor(len(log_p))}
    return (losses * weight).sum(), sums


def k3(log_p: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """An estimate of KL(policy || reference) from a token that the policy drew: q/p - 1 - ln(q/p),
    which is never negative (Schulman 2020, "Approximating KL Divergence"; DeepSeekMath, eq. 4).
    """
    difference = reference - log_p
    return torch.exp(difference) - 1 - difference
