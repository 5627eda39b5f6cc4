"""AdamW written out (Loshchilov and Hutter 2019, algorithm 2), for one tensor at a time.

    m = beta1 m + (1 - beta1) g                  mean of the gradient
    v = beta2 v + (1 - beta2) g²                 mean of its square
    theta = theta - lr (m̂ / (sqrt(v̂) + eps) + decay theta)

m̂ = m / (1 - beta1ᵗ) and v̂ = v / (1 - beta2ᵗ) correct the bias from starting at zero. Weight decay
is decoupled. If it were added to g, as in Adam with an L2 penalty, it would also be divided by
sqrt(v̂), and weights with large gradients would hardly decay.
"""

import math

import numpy as np

CHUNK = 2**16
"""Elements processed at a time: theta, g, m, v and scratch of this size stay in the cache."""


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
    """Updates theta, m and v in place. `step` counts from 1.

    theta, g, m and v are contiguous and of the same shape; `scratch` has at least CHUNK elements or
    as many as theta.
    """
    assert step >= 1
    # m̂ / (sqrt(v̂) + eps) = m root / (sqrt(v) + eps root) / (1 - beta1ᵗ)
    root = math.sqrt(1 - beta2**step)
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
