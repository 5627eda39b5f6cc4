"""Compute-optimal size and number of tokens, from published scaling laws.

A law is L(N, D) = E + A / N^alpha + B / D^beta: the loss of a model with N parameters after D
tokens. Training costs C = 6 N D FLOPs. For a given C, the loss is least at

    N = G (C / 6)^(beta / (alpha + beta)),   D = (C / 6) / N,
    G = (alpha A / (beta B))^(1 / (alpha + beta))        (Hoffmann et al. 2022, eq. 4)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHINCHILLA_RATIO = 20.0  # tokens per parameter: Hoffmann et al. 2022, table 3


@dataclass(frozen=True)
class Law:
    """A fitted law; losses in nats per token of its own data and tokenizer."""

    name: str
    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def loss(self, n: float, tokens: float) -> float:
        """Predicted loss of `n` parameters after `tokens` tokens."""
        return self.E + self.A / n**self.alpha + self.B / tokens**self.beta

    def best(self, compute: float) -> tuple[float, float]:
        """Parameters and tokens with the least loss for `compute` FLOPs."""
        a, b = self.alpha, self.beta
        G = (a * self.A / (b * self.B)) ** (1 / (a + b))
        n = G * (compute / 6) ** (b / (a + b))
        return n, compute / 6 / n


# Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt" (Epoch AI), 240 points.
EPOCH = Law("Epoch AI's fit of Chinchilla", 482.01, 2085.43, 1.8169, 0.3478, 0.3658)
# Hoffmann et al. 2022, eq. 10: its confidence intervals are implausibly narrow, and its optimum
# disagrees with the paper's other two methods. Kept for comparison.
HOFFMANN = Law("Chinchilla as published", 406.4, 410.7, 1.69, 0.34, 0.28)


def by_ratio(compute: float, ratio: float = CHINCHILLA_RATIO) -> tuple[float, float]:
    """Parameters and tokens for `compute` FLOPs at a fixed number of tokens per parameter."""
    n = math.sqrt(compute / (6 * ratio))
    return n, ratio * n
