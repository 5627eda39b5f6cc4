"""The layers of language models on a tape, each with its gradient, batched over all leading axes.

Vectors are rows: x is (*batch, D). `dy` is the gradient of the loss with respect to the layer's
output and has its shape; the docstrings give dx as a function of dy. Everything is plain NumPy in
the precision of its inputs. `gpt2.py` implements GPT-2 in place and fast.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmsmith.reference.layers import EPS, GELU_CUBE, GELU_U
from lmsmith.reference.tape import Layer, Parameter
from lmsmith.targets import IGNORED


class Linear(Layer):
    """y = x Wᵀ + b;  dx = dy W,  dW = dyᵀ x,  db = sum dy, summed over the batch. W is (n_out,
    n_in).

    W is drawn with standard deviation 1 / sqrt(n_in); b starts at 0. Pass `weight` to share one
    (weight tying).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        rng: np.random.Generator,
        *,
        bias: bool = True,
        weight: Parameter | None = None,
    ) -> None:
        self.weight = weight or Parameter(rng.standard_normal((n_out, n_in)) / math.sqrt(n_in))
        self.bias = Parameter(np.zeros(n_out)) if bias else None

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        y = x @ self.weight.value.T
        return (y if self.bias is None else y + self.bias.value), x

    def backward(self, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray]:
        self.weight.grad += rows(dy).T @ rows(x)
        if self.bias is not None:
            self.bias.grad += rows(dy).sum(axis=0)
        return (dy @ self.weight.value,)


class Embedding(Layer):
    """Looks up row `id` of a table for each id; the gradient of a row sums over all its uses."""

    def __init__(self, n_rows: int, d_model: int, rng: np.random.Generator) -> None:
        self.table = Parameter(rng.standard_normal((n_rows, d_model)))

    def forward(self, ids: np.ndarray) -> tuple[np.ndarray, Any]:
        return self.table.value[ids], ids

    def backward(self, dy: np.ndarray, ids: np.ndarray) -> tuple[None]:
        np.add.at(self.table.grad, ids, dy)
        return (None,)


# ---- elementwise ---------------------------------------------------------------------------------


class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x));  dx = dy y (1 - y)."""

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        y = sigmoid(x)
        return y, y

    def backward(self, dy: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
        return (dy * y * (1 - y),)


class Tanh(Layer):
    """y = tanh(x);  dx = dy (1 - y²)."""

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        y = np.tanh(x)
        return y, y

    def backward(self, dy: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
        return (dy * (1 - y**2),)


class SiLU(Layer):
    """y = x s with s = sigmoid(x) (Hendrycks and Gimpel 2016);  dx = dy (s + y (1 - s))."""

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        s = sigmoid(x)
        return x * s, (x * s, s)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray]:
        y, s = saved
        return (dy * (s + y * (1 - s)),)


class GELU(Layer):
    """y = x (1 + t) / 2, t = tanh(u), u = sqrt(2/pi) (x + 0.044715 x³); dx = dy ((1 + t) / 2 + x (1
    - t²) u' / 2).

    (Hendrycks and Gimpel 2016, the approximation that GPT-2 uses.)
    """

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        t = np.tanh(GELU_U * (x + GELU_CUBE * x**3))
        return x * (1 + t) / 2, (x, t)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray]:
        x, t = saved
        slope = GELU_U * (1 + 3 * GELU_CUBE * x**2)
        return (dy * ((1 + t) / 2 + x * (1 - t**2) * slope / 2),)


# ---- over the last axis --------------------------------------------------------------------------


class LayerNorm(Layer):
    """n = (x - mean) / sqrt(variance + 1e-5),  y = n w + b (Ba et al. 2016).

    With dn = dy w:  dx = (dn - mean(dn) - n mean(dn n)) / sqrt(variance + 1e-5).
    """

    def __init__(self, width: int) -> None:
        self.weight = Parameter(np.ones(width))
        self.bias = Parameter(np.zeros(width))

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        centred = x - mean(x)
        rstd = 1 / np.sqrt(mean(centred**2) + EPS)
        n = centred * rstd
        return n * self.weight.value + self.bias.value, (n, rstd)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray]:
        n, rstd = saved
        self.weight.grad += rows(dy * n).sum(axis=0)
        self.bias.grad += rows(dy).sum(axis=0)
        dn = dy * self.weight.value
        return (rstd * (dn - mean(dn) - n * mean(dn * n)),)


class RMSNorm(Layer):
    """n = x / sqrt(mean(x²) + 1e-5),  y = n w (Zhang and Sennrich 2019).

    With dn = dy w:  dx = (dn - n mean(dn n)) / sqrt(mean(x²) + 1e-5).
    """

    def __init__(self, width: int) -> None:
        self.weight = Parameter(np.ones(width))

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        rstd = 1 / np.sqrt(mean(x**2) + EPS)
        n = x * rstd
        return n * self.weight.value, (n, rstd)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray]:
        n, rstd = saved
        self.weight.grad += rows(dy * n).sum(axis=0)
        dn = dy * self.weight.value
        return (rstd * (dn - n * mean(dn * n)),)


class Softmax(Layer):
    """p = exp(x) / sum exp(x);  dx = J dy with the Jacobian J = diag(p) - p pᵀ.

    The backward pass computes J and multiplies with it, as in the formula. That can be avoided: J
    dy = p dy - p (p · dy), which needs n numbers per row instead of n². Attention, below, does so.
    """

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        p = softmax(x)
        return p, p

    def backward(self, dy: np.ndarray, p: np.ndarray) -> tuple[np.ndarray]:
        jacobian = (
            p[..., :, None] * np.eye(p.shape[-1], dtype=p.dtype) - p[..., :, None] * p[..., None, :]
        )
        return ((jacobian @ dy[..., None])[..., 0],)


# ---- losses: the mean over targets that are not IGNORED, in nats ---------------------------------


class CrossEntropy(Layer):
    """loss = mean of -log p[target];  dp = -1 / (n p[target]) at the n targets that count.

    p (*batch, V) are probabilities, targets (*batch).
    """

    def forward(self, p: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, Any]:
        counted = targets != IGNORED
        n = max(1, int(counted.sum()))
        chosen = np.take_along_axis(p, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return -np.log(np.where(counted, chosen, 1)).sum() / n, (p, targets, counted / n)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray, None]:
        p, targets, share = saved
        at = np.maximum(targets, 0)[..., None]
        dp = np.zeros_like(p)
        np.put_along_axis(
            dp, at, -dy * share[..., None] / np.take_along_axis(p, at, axis=-1), axis=-1
        )
        return dp, None


class SoftmaxCrossEntropy(Layer):
    """loss = mean of log(sum exp z) - z[target];  dz = (p - [target]) / n, with p = softmax(z).

    z (*batch, V) are logits. Combining softmax and cross-entropy avoids overflow and the Jacobian.
    Columns from `n_classes` on are never predicted.
    """

    def __init__(self, n_classes: int | None = None) -> None:
        self.n_classes = n_classes

    def forward(self, z: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, Any]:
        counted = targets != IGNORED
        n = max(1, int(counted.sum()))
        real = z[..., : self.n_classes]
        shifted = real - real.max(axis=-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        at = np.maximum(targets, 0)[..., None]
        loss = -(np.take_along_axis(log_p, at, axis=-1)[..., 0] * counted).sum() / n
        return loss, (z.shape, np.exp(log_p), at, counted[..., None] / n)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray, None]:
        shape, p, at, share = saved
        dz = np.zeros(shape, p.dtype)
        dz[..., : self.n_classes] = p
        np.put_along_axis(dz, at, np.take_along_axis(p, at, axis=-1) - 1, axis=-1)
        return dy * share * dz, None


# ---- over time -----------------------------------------------------------------------------------


class Attention(Layer):
    """Causal self-attention with `n_head` heads: (B, T, 3 D) -> (B, T, D).

    (Vaswani et al. 2017, section 3.2.) The input holds queries, keys and values side by side. For
    each head of width K, with causal scores s = q kᵀ / sqrt(K) and weights p = softmax(s): y = p v;
    dv = pᵀ dy,  dp = dy vᵀ,  ds = p (dp - sum(p dp)),  dq = ds k / sqrt(K), dk = dsᵀ q / sqrt(K).
    """

    def __init__(self, n_head: int) -> None:
        self.n_head = n_head

    def forward(self, qkv: np.ndarray) -> tuple[np.ndarray, Any]:
        q, k, v = (self._heads(part) for part in np.split(qkv, 3, axis=-1))  # each (B, H, T, K)
        T, K = q.shape[-2:]
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(K)
        later = np.triu(np.ones((T, T), dtype=bool), 1)
        p = softmax(np.where(later, -np.inf, scores))
        return self._together(p @ v), (q, k, v, p)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray]:
        q, k, v, p = saved
        dy = self._heads(dy)
        dv = p.swapaxes(-1, -2) @ dy
        dp = dy @ v.swapaxes(-1, -2)
        ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) / math.sqrt(q.shape[-1])
        dq, dk = ds @ k, ds.swapaxes(-1, -2) @ q
        return (np.concatenate([self._together(part) for part in (dq, dk, dv)], axis=-1),)

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """(B, T, D) -> (B, H, T, K)."""
        return x.reshape(*x.shape[:2], self.n_head, -1).swapaxes(1, 2)

    def _together(self, x: np.ndarray) -> np.ndarray:
        """(B, H, T, K) -> (B, T, D)."""
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


class ElmanCell(Layer):
    """One step of an Elman network (Elman 1990): h' = sigmoid(h W_hᵀ + x W_xᵀ + b).

    x (B, n_in), h (B, n_hidden). With da = dy h' (1 - h'):  dh = da W_h,  dx = da W_x,  dW_h = daᵀ
    h, dW_x = daᵀ x,  db = sum da. The tape holds one call of the cell per time step, and their
    gradients add up: backpropagation through time.
    """

    def __init__(self, n_in: int, n_hidden: int, rng: np.random.Generator) -> None:
        self.w_h = Parameter(rng.standard_normal((n_hidden, n_hidden)) / math.sqrt(n_hidden))
        self.w_x = Parameter(rng.standard_normal((n_hidden, n_in)) / math.sqrt(n_in))
        self.bias = Parameter(np.zeros(n_hidden))

    def forward(self, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, Any]:
        y = sigmoid(h @ self.w_h.value.T + x @ self.w_x.value.T + self.bias.value)
        return y, (x, h, y)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray, np.ndarray]:
        x, h, y = saved
        da = dy * y * (1 - y)
        self.w_h.grad += da.T @ h
        self.w_x.grad += da.T @ x
        self.bias.grad += da.sum(axis=0)
        return da @ self.w_x.value, da @ self.w_h.value


class Stack(Layer):
    """Stacks T arrays (B, D), one per time step, into (B, T, D)."""

    def forward(self, *steps: np.ndarray) -> tuple[np.ndarray, Any]:
        return np.stack(steps, axis=1), None

    def backward(self, dy: np.ndarray, _: None) -> tuple[np.ndarray, ...]:
        return tuple(dy.swapaxes(0, 1))


# ---- functions -----------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2  # the same function; exp(-x) would overflow


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=-1, keepdims=True)


def rows(x: np.ndarray) -> np.ndarray:
    """Flattens all leading axes: (*batch, D) -> (N, D)."""
    return x.reshape(-1, x.shape[-1])
