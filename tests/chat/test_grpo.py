"""Losses of policy gradients: the same numbers as the papers' formulas, written out in loops."""

import math
import random

import pytest
import torch

from lmsmith.chat.rl import grpo
from lmsmith.chat.rl.grpo import Clipping, advantages, k3, policy_loss, token_weights

G, MAX = 4, 6


def a_batch(seed: int) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Rewards (P, G), and three log-probabilities for each token of each answer."""
    draw = random.Random(seed)
    rewards = [[draw.choice([0.0, 1.0, 0.5]) for _ in range(G)] for _ in range(3)]
    tokens = [
        [[-draw.random() * 2 for _ in range(3)] for _ in range(draw.randint(1, MAX))]
        for _ in range(3 * G)
    ]
    return rewards, tokens


def loss_in_loops(
    rewards: list[list[float]],
    tokens: list[list[list[float]]],
    method: str,
    kl_weight: float,
    high: float,
) -> float:
    """The formulas of the papers, term by term."""
    n_answers, n_tokens, total, place = len(tokens), sum(map(len, tokens)), 0.0, 0
    for group in rewards:
        mean = sum(group) / G
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / (G - 1))
        for reward in group:
            a = reward - mean
            if method in ("grpo", "dapo"):
                a /= deviation + 1e-4
            of_answer = 0.0
            for log_p, old, reference in tokens[place]:
                ratio = math.exp(log_p) / math.exp(old)
                gain = min(ratio * a, max(0.8, min(1 + high, ratio)) * a)
                if method == "reinforce":
                    gain = a * log_p
                away = math.exp(reference) / math.exp(log_p)
                of_answer += -gain + kl_weight * (away - math.log(away) - 1)
            n = len(tokens[place])
            total += {
                "grpo": of_answer / n / n_answers,
                "dr-grpo": of_answer / MAX / n_answers,
                "dapo": of_answer / n_tokens,
                "reinforce": of_answer / n_answers,
            }[method]
            place += 1
    return total


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("method", ["grpo", "dr-grpo", "dapo", "reinforce"])
def test_the_loss_is_the_formula_of_the_paper(method: str, kl_weight: float) -> None:
    scale = "group" if method in ("grpo", "dapo") else "none"
    average = {"grpo": "answer", "dr-grpo": "length", "dapo": "token", "reinforce": "sum"}[method]
    high = 0.28 if method == "dapo" else 0.2
    for seed in range(20):
        rewards, tokens = a_batch(seed)
        lengths = torch.tensor([len(some) for some in tokens])
        log_p, old, reference = torch.tensor(
            [token for some in tokens for token in some], dtype=torch.float64
        ).T
        a = advantages(torch.tensor(rewards, dtype=torch.float64), scale).flatten()  # type: ignore[arg-type]
        w = token_weights(lengths, torch.ones(len(tokens), dtype=torch.bool), average, MAX)  # type: ignore[arg-type]
        loss, sums = policy_loss(
            log_p,
            old,
            a.repeat_interleave(lengths),
            w.repeat_interleave(lengths),
            Clipping(0.2, high, ratio=method != "reinforce"),
            reference,
            kl_weight,
        )
        assert loss.item() == pytest.approx(
            loss_in_loops(rewards, tokens, method, kl_weight, high), abs=1e-12
        )
        assert sums["tokens"] == len(log_p)


def test_a_group_with_equal_rewards_has_no_advantage() -> None:
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert grpo.has_signal(rewards).tolist() == [False, True]
    for scale in ("group", "batch", "none"):
        assert advantages(rewards, scale)[0].tolist() == [0.0, 0.0]  # type: ignore[arg-type]


def test_the_gradient_is_zero_where_the_ratio_is_clipped() -> None:
    log_p = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.1], requires_grad=True)
    a = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    loss, sums = policy_loss(log_p, torch.zeros(5), a, torch.ones(5), Clipping())
    loss.backward()
    assert log_p.grad is not None
    assert (log_p.grad == 0).tolist() == [True, False, False, True, False]
    assert sums["clipped"] == 2


def test_reinforce_and_the_ratio_have_the_same_gradient_on_policy() -> None:
    gradients = []
    for ratio in (True, False):
        log_p = torch.linspace(-2, -0.1, 7, requires_grad=True)
        a, w = torch.linspace(-1, 1, 7), torch.linspace(0.1, 1, 7)
        loss, _ = policy_loss(log_p, log_p.detach().clone(), a, w, Clipping(ratio=ratio))
        loss.backward()
        gradients.append(log_p.grad)
    torch.testing.assert_close(*gradients)


def test_the_expectation_of_k3_is_the_kl_divergence() -> None:
    p, q = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).double().log_softmax(1)
    exact = (p.exp() * (p - q)).sum()
    torch.testing.assert_close((p.exp() * k3(p, q)).sum(), exact)
    assert (k3(p, q) >= 0).all()


def test_the_overlong_penalty_grows_over_the_buffer() -> None:
    found = grpo.overlong_penalty(torch.tensor([1, 6, 7, 8, 9, 10]), 10, 4)
    assert found.tolist() == [0, 0, -0.25, -0.5, -0.75, -1]


def test_answers_that_do_not_count_have_no_weight() -> None:
    lengths, counted = torch.tensor([2, 4]), torch.tensor([True, False])
    for average, expected in (
        ("answer", 1 / 4),
        ("token", 1 / 2),
        ("length", 1 / 16),
        ("sum", 1 / 2),
    ):
        found = token_weights(lengths, counted, average, 8)  # type: ignore[arg-type]
        assert found.tolist() == [pytest.approx(expected), 0]
