"""GPT-2 one number at a time: the model of `gpt2.py` built from scalars, lists and loops.

It is for reading, and it is the slowest and simplest of the four implementations that are compared
with each other. A model of a few thousand parameters with a batch of a dozen tokens creates some
ten thousand scalars, in a fraction of a second.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lmsmith.reference.blocks import Sizes
from lmsmith.reference.layers import EPS, GELU_CUBE, GELU_U
from lmsmith.reference.scalar import Scalar, dot, maximum, mean, total
from lmsmith.targets import IGNORED

Vector = list[Scalar]


def scalars(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts every number of the 16 tensors to a Scalar: object arrays of the same shapes."""
    return {name: np.vectorize(Scalar, otypes=[object])(values) for name, values in params.items()}


def gradients(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradients of arrays of scalars."""
    return {
        name: np.vectorize(lambda x: x.grad, otypes=[float])(values)
        for name, values in params.items()
    }


def gpt2_loss(
    params: Mapping[str, np.ndarray], sizes: Sizes, inputs: np.ndarray, targets: np.ndarray
) -> Scalar:
    """The mean loss in nats per token; inputs and targets (B, T). Targets of -1 do not count."""
    losses = []
    for ids, goals in zip(inputs.tolist(), targets.tolist(), strict=True):
        for x, goal in zip(_hidden(params, sizes, ids), goals, strict=True):
            if goal != IGNORED:
                logits = [dot(x, row) for row in params["wte"][: sizes.vocab_size].tolist()]
                losses.append(-_log_softmax(logits)[goal])
    return mean(losses)


def _hidden(params: Mapping[str, np.ndarray], sizes: Sizes, ids: Sequence[int]) -> list[Vector]:
    """The output of the final norm at each position of one text."""
    of = {name: values.tolist() for name, values in params.items()}
    xs = [_add(of["wte"][token], of["wpe"][at]) for at, token in enumerate(ids)]
    for layer in range(sizes.n_layer):
        w = {
            name: values[layer]
            for name, values in of.items()
            if name[:3] not in ("wte", "wpe", "lnf")
        }
        qkv = [_linear(_layernorm(x, w["ln1w"], w["ln1b"]), w["qkvw"], w["qkvb"]) for x in xs]
        attended = [_attention(qkv[: at + 1], sizes) for at in range(len(xs))]
        xs = [
            _add(x, _linear(y, w["attprojw"], w["attprojb"]))
            for x, y in zip(xs, attended, strict=True)
        ]
        for at, x in enumerate(xs):
            h = _linear(_layernorm(x, w["ln2w"], w["ln2b"]), w["fcw"], w["fcb"])
            xs[at] = _add(x, _linear([_gelu(number) for number in h], w["fcprojw"], w["fcprojb"]))
    return [_layernorm(x, of["lnfw"], of["lnfb"]) for x in xs]


def _attention(qkv: Sequence[Vector], sizes: Sizes) -> Vector:
    """The attention output at the last of these positions, heads side by side."""
    D, K = sizes.d_model, sizes.d_head
    y = []
    for start in range(0, D, K):
        q = qkv[-1][start : start + K]
        keys = [at[D + start : D + start + K] for at in qkv]
        values = [at[2 * D + start : 2 * D + start + K] for at in qkv]
        weights = [score.exp() for score in _log_softmax([dot(q, k) / math.sqrt(K) for k in keys])]
        y += [dot(weights, column) for column in zip(*values, strict=True)]
    return y


def _linear(x: Vector, w: Sequence[Vector], b: Vector) -> Vector:
    return [dot(x, row) + bias for row, bias in zip(w, b, strict=True)]


def _layernorm(x: Vector, w: Vector, b: Vector) -> Vector:
    average = mean(x)
    centred = [number - average for number in x]
    rstd = (dot(centred, centred) / len(x) + EPS) ** -0.5
    return [number * rstd * gain + bias for number, gain, bias in zip(centred, w, b, strict=True)]


def _gelu(x: Scalar) -> Scalar:
    return x * (1 + (GELU_U * (x + GELU_CUBE * x**3)).tanh()) / 2


def _log_softmax(xs: Vector) -> Vector:
    largest = maximum(xs)
    shifted = [x - largest for x in xs]
    log_total = total([x.exp() for x in shifted]).log()
    return [x - log_total for x in shifted]


def _add(xs: Vector, ys: Vector) -> Vector:
    return [x + y for x, y in zip(xs, ys, strict=True)]
