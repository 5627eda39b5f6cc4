"""AdamW written out (Loshchilov and Hutter 2019, algorithm 2), on one tensor at a time.

    m = beta1 m + (1 - beta1) g                  mean of the gradient
    v = beta2 v + (1 - beta2) g²                 mean of its square
    theta = theta - lr (m̂ / (sqrt(v̂) + eps) + decay theta)

m̂ = m / (1 - beta1ᵗ) and v̂ = v / (1 - beta2ᵗ) make up for both beginning at zero. The decay is
decoupled: added to g, as in Adam with an L2 penalty, it would be divided by sqrt(v̂) too, and
weights with large gradients would hardly decay.
"""

import math

import numpy as np

CHUNK = 2**16
"""Numbers worked on at once: few enough that theta, g, m, v and scratch of them stay in the
cache, step after step.
"""


def adamw(
    theta: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    scratch: np.ndarray,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of theta, m and v in place; `step` counts from 1. All contiguous and of one
    shape, but for scratch.
    """
    assert step >= 1
    root = math.sqrt(
        1 - beta2**step
    )  # m̂ / (sqrt(v̂) + eps) = m root / (sqrt(v) + eps root) / (1 - beta1ᵗ)
    rate = learning_rate * root / (1 - beta1**step)
    flat = [x.reshape(-1) for x in (theta, g, m, v)]
    for start in range(0, theta.size, CHUNK):
        theta_, g_, m_, v_ = (x[start : start + CHUNK] for x in flat)
        s = scratch[: len(g_)]
        np.subtract(g_, m_, out=s)
        s *= 1 - beta1
        m_ += s
        np.multiply(g_, g_, out=s)
        s -= v_
        s *= 1 - beta2
        v_ += s
        np.sqrt(v_, out=s)
        s += eps * root
        np.divide(m_, s, out=s)
        s *= rate
        if weight_decay:
            theta_ *= 1 - learning_rate * weight_decay
        theta_ -= s
