"""Every layer's gradients against PyTorch's autograd and against finite differences, in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmsmith.reference.modules import (
    GELU,
    Attention,
    CrossEntropy,
    ElmanCell,
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    SoftmaxCrossEntropy,
    Stack,
    Tanh,
)
from lmsmith.reference.tape import Add, Layer, Multiply, Tape

D = 6


class Weighed(Layer):
    """The sum of w y: one number to which every element of y contributes differently."""

    def forward(self, y):
        return np.sum(weights(y.shape) * y), y.shape

    def backward(self, dy, shape):
        return (dy * weights(shape),)


def weights(shape):
    return np.cos(np.arange(math.prod(shape)) * 1.7 + 0.3).reshape(shape)


def drawn(*shape):
    return np.random.default_rng(math.prod(shape) + len(shape)).normal(size=shape) * 1.5


def causal_attention(qkv, n_head):
    B, T, _ = qkv.shape
    q, k, v = (part.view(B, T, n_head, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, -1)


BATCHES = [(), (3,), (2, 5)]
ELEMENTWISE = {
    "sigmoid": (Sigmoid, torch.sigmoid),
    "tanh": (Tanh, torch.tanh),
    "silu": (SiLU, F.silu),
    "gelu": (GELU, lambda x: F.gelu(x, approximate="tanh")),
    "softmax": (Softmax, lambda x: x.softmax(-1)),
}
CASES = {  # layer, the same in torch (inputs, then the layer's parameters), inputs
    **{
        f"{name}{batch}": (make(), function, [drawn(*batch, D)])
        for name, (make, function) in ELEMENTWISE.items()
        for batch in BATCHES
    },
    **{
        f"linear{batch}": (Linear(D, 4, np.random.default_rng(0)), F.linear, [drawn(*batch, D)])
        for batch in BATCHES
    },
    "linear without bias": (
        Linear(D, 4, np.random.default_rng(0), bias=False),
        F.linear,
        [drawn(2, 5, D)],
    ),
    **{
        f"layernorm{batch}": (
            LayerNorm(D),
            lambda x, w, b: F.layer_norm(x, (D,), w, b, 1e-5),
            [drawn(*batch, D)],
        )
        for batch in BATCHES
    },
    **{
        f"rmsnorm{batch}": (
            RMSNorm(D),
            lambda x, w: F.rms_norm(x, (D,), w, 1e-5),
            [drawn(*batch, D)],
        )
        for batch in BATCHES
    },
    "embedding": (
        Embedding(5, D, np.random.default_rng(0)),
        lambda ids, table: table[ids],
        [np.array([[0, 3, 3], [4, 3, 0]])],
    ),
    "attention of 1": (Attention(1), lambda x: causal_attention(x, 1), [drawn(2, 5, 3 * D)]),
    "attention of 3": (Attention(3), lambda x: causal_attention(x, 3), [drawn(2, 5, 3 * D)]),
    "attention of one position": (
        Attention(2),
        lambda x: causal_attention(x, 2),
        [drawn(3, 1, 3 * D)],
    ),
    "elman": (
        ElmanCell(D, 4, np.random.default_rng(0)),
        lambda x, h, w_h, w_x, b: torch.sigmoid(h @ w_h.T + x @ w_x.T + b),
        [drawn(3, D), drawn(3, 4)],
    ),
    "stack": (
        Stack(),
        lambda *steps: torch.stack(steps, 1),
        [drawn(3, D), drawn(3, D) + 1, drawn(3, D) - 1],
    ),
    "add": (Add(), torch.add, [drawn(2, 5, D), drawn(5, D)]),
    "add repeated": (Add(), torch.add, [drawn(2, 1, D), drawn(1, 5, 1)]),
    "multiply": (Multiply(), torch.mul, [drawn(2, 5, D), drawn(D)]),
    "cross-entropy": (
        CrossEntropy(),
        lambda p, t: F.nll_loss(p.log().flatten(0, -2), t.flatten(), ignore_index=-1),
        [np.abs(drawn(2, 5, D)) + 0.1, np.array([[0, 5, 2, -1, 1], [-1, 3, 3, 0, 4]])],
    ),
    "softmax cross-entropy": (
        SoftmaxCrossEntropy(),
        lambda z, t: F.cross_entropy(z.flatten(0, -2), t.flatten(), ignore_index=-1),
        [drawn(2, 5, D), np.array([[0, 5, 2, -1, 1], [-1, 3, 3, 0, 4]])],
    ),
    "softmax cross-entropy of padded columns": (
        SoftmaxCrossEntropy(4),
        lambda z, t: F.cross_entropy(z[:, :4], t),
        [drawn(5, D), np.array([0, 3, 2, 3, 1])],
    ),
}


def run(layer, inputs):
    """The tape, the input variables, the output and a weighted sum of it as the loss."""
    tape = Tape()
    variables = [tape.put(x) for x in inputs]
    y = layer(*variables)
    return tape, variables, y, Weighed()(y)


@pytest.fixture
def case(request):
    """A case with gains other than one and biases other than zero."""
    layer, function, inputs = CASES[request.param]
    for i, parameter in enumerate(layer.parameters()):
        parameter.value[...] = np.sin(np.arange(parameter.value.size) + i + 0.5).reshape(
            parameter.value.shape
        )
        parameter.grad.fill(0)
    return layer, function, inputs


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_gradients_equal_torch(case):
    layer, function, inputs = case
    tape, variables, y, loss = run(layer, inputs)
    tape.backward(loss)
    theirs = [torch.tensor(x, requires_grad=x.dtype == np.float64) for x in inputs]
    learnt = [torch.tensor(parameter.value, requires_grad=True) for parameter in layer.parameters()]
    wanted = function(*theirs, *learnt)
    np.testing.assert_allclose(y.value, wanted.detach(), rtol=1e-12, atol=1e-14)
    (wanted * torch.tensor(weights(wanted.shape))).sum().backward()
    for variable, other in zip(variables, theirs, strict=True):
        if other.requires_grad:
            np.testing.assert_allclose(variable.grad, other.grad, rtol=1e-10, atol=1e-13)
        else:
            assert variable.grad is None
    for parameter, other in zip(layer.parameters(), learnt, strict=True):
        np.testing.assert_allclose(parameter.grad, other.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_gradients_equal_finite_differences(case):
    layer, _, inputs = case
    tape, variables, _, loss = run(layer, inputs)
    tape.backward(loss)
    numbers = [(v.value, v.grad) for v in variables if v.grad is not None]
    numbers += [(parameter.value, parameter.grad) for parameter in layer.parameters()]
    h = 1e-5
    for values, grads in numbers:
        grads = grads.copy()
        for at in np.ndindex(values.shape):
            was, ends = values[at], []
            for values[at] in (was + h, was - h):
                ends.append(float(run(layer, inputs)[3].value))
            values[at] = was
            assert grads[at] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-8)


def test_softmax_multiplies_with_its_jacobian():
    x = drawn(2, D)
    tape = Tape()
    variable = tape.put(x)
    loss = Weighed()(Softmax()(variable))
    tape.backward(loss)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: x.softmax(-1), torch.tensor(x[i])
        ).numpy()
        np.testing.assert_allclose(variable.grad[i], weights((2, D))[i] @ jacobian, rtol=1e-12)


def test_large_inputs_do_not_overflow():
    far = np.array([[-800.0, 0.0, 800.0]])
    for layer in (Sigmoid(), Tanh(), SiLU(), GELU(), Softmax()):
        tape, (x,), y, loss = run(layer, [far])
        tape.backward(loss)
        assert np.isfinite(y.value).all()
        assert np.isfinite(x.grad).all()
    tape, (z, _), y, loss = run(SoftmaxCrossEntropy(), [far, np.array([0])])
    tape.backward(loss)
    assert y.value == 1600
    np.testing.assert_allclose(z.grad, weights(()) * np.array([[-1, 0, 1]]), atol=1e-15)


def test_ignored_targets_do_not_count():
    nobody = np.full((2, 3), -1)
    for layer, x in (
        (SoftmaxCrossEntropy(), drawn(2, 3, D)),
        (CrossEntropy(), np.abs(drawn(2, 3, D))),
    ):
        tape, (x_, _), y, loss = run(layer, [x, nobody])
        tape.backward(loss)
        assert y.value == 0
        assert not x_.grad.any()


def test_attention_sees_no_later_position():
    x = drawn(1, 5, 3 * D)
    changed = x.copy()
    changed[0, 3:] += 1
    a, b = (run(Attention(2), [given])[2].value for given in (x, changed))
    np.testing.assert_array_equal(a[0, :3], b[0, :3])
    assert (a[0, 3:] != b[0, 3:]).all()
