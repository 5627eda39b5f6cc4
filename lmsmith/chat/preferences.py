"""Losses of preference training, as pure functions of log-probabilities.

    dpo     -ln sigmoid(beta h)             Rafailov et al. 2023, "Direct Preference Optimization"
    ipo     (h - 1 / (2 beta))^2            Azar et al. 2023, "A General Theoretical Paradigm ..."
    simpo   -ln sigmoid(beta m - gamma)     Meng et al. 2024, "SimPO"
    kto     1 - sigmoid(+-(r - z))          Ethayarajh et al. 2024, "KTO", eq. 8

h is how much more the policy prefers the chosen answer than the reference does:

    h = ln policy(chosen) - ln policy(rejected) - ln reference(chosen) + ln reference(rejected)

In IPO all log-probabilities are means over the answer's tokens, as in TRL. m is the difference of
the policy's mean log-probabilities; SimPO has no reference. KTO has single answers, desirable or
not: r = beta (ln policy - ln reference) is an answer's reward, and z = beta KL is the mean reward
of answers to other prompts, at least 0, and has no gradient.

With label smoothing e, DPO's and SimPO's loss is (1 - e) loss(h) + e loss(-h) (Mitchell 2023,
"A note on DPO with noisy preferences").

Shapes: B pairs, or single answers in KTO.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Losses(NamedTuple):
    """The loss of each pair, and the implicit rewards of its answers, without gradients."""

    loss: Float[Tensor, " B"]
    chosen: Float[Tensor, " B"]
    rejected: Float[Tensor, " B"]


def dpo(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    reference_chosen: Float[Tensor, " B"],
    reference_rejected: Float[Tensor, " B"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Losses:
    """DPO's loss. Arguments: log-probabilities of the answers, summed over their tokens (nats)."""
    rewards = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
    loss = _smoothed(rewards[0] - rewards[1], label_smoothing)
    return Losses(loss, rewards[0].detach(), rewards[1].detach())


def ipo(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    reference_chosen: Float[Tensor, " B"],
    reference_rejected: Float[Tensor, " B"],
    *,
    beta: float,
) -> Losses:
    """IPO's loss. Arguments: mean log-probabilities of the answers' tokens (nats per token)."""
    ratios = chosen - reference_chosen, rejected - reference_rejected
    loss = (ratios[0] - ratios[1] - 1 / (2 * beta)).square()
    return Losses(loss, beta * ratios[0].detach(), beta * ratios[1].detach())


def simpo(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Losses:
    """SimPO's loss. Arguments: mean log-probabilities of the answers' tokens (nats per token)."""
    loss = _smoothed(beta * (chosen - rejected) - gamma, label_smoothing)
    return Losses(loss, beta * chosen.detach(), beta * rejected.detach())


def kto(
    answer: Float[Tensor, " B"],
    reference: Float[Tensor, " B"],
    desirable: Bool[Tensor, " B"],
    kl: Float[Tensor, ""],
    *,
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """KTO's loss of each answer, and its reward, without gradient.

    `answer`, `reference`: summed log-probabilities (nats). `kl`: `kto_kl` of the full batch.
    `weights`: of desirable and undesirable answers.
    """
    rewards = beta * (answer - reference)
    towards = rewards - beta * kl.detach()
    sign = torch.where(desirable, 1.0, -1.0).to(towards.dtype)
    weight = torch.where(desirable, weights[0], weights[1]).to(towards.dtype)
    return weight * (1 - torch.sigmoid(sign * towards)), rewards.detach()


def kto_kl(other: Float[Tensor, " B"], reference_other: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Estimates KL(policy, reference) from answers to other prompts; at least 0."""
    return (other - reference_other).mean().clamp(min=0).detach()


def row_sums(
    log_p: Float[Tensor, " N"], rows: Int[Tensor, " N"], n_rows: int
) -> Float[Tensor, " R"]:
    """Adds up log-probabilities of tokens by the row they belong to."""
    return log_p.new_zeros(n_rows).index_add(0, rows, log_p)


def _smoothed(logit: Float[Tensor, " B"], smoothing: float) -> Float[Tensor, " B"]:
    loss = -(1 - smoothing) * F.logsigmoid(logit)
    return loss - smoothing * F.logsigmoid(-logit) if smoothing else loss
