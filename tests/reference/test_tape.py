"""The tape with any layers: sharing, control flow, order, names."""

import gc
import weakref

import numpy as np
import pytest
import torch

from lmsmith.reference.modules import (
    ElmanCell,
    Embedding,
    Linear,
    Sigmoid,
    SoftmaxCrossEntropy,
    Tanh,
)
from lmsmith.reference.tape import Layer, Module, Parameter, Tape

rng = np.random.default_rng


class Total(Layer):
    def forward(self, x):
        return x.sum(), x.shape

    def backward(self, dy, shape):
        return (np.full(shape, dy),)


def test_gradients_of_a_shared_parameter_add_up():
    """Weight tying: the token embedding table is used for look-ups and for the logits."""
    embedding = Embedding(7, 3, rng(0))
    head = Linear(3, 7, rng(0), bias=False, weight=embedding.table)
    ids, targets = np.array([[1, 5, 1]]), np.array([[5, 1, 2]])
    tape = Tape()
    tape.backward(SoftmaxCrossEntropy()(head(Tanh()(embedding(tape.put(ids)))), targets))
    table = torch.tensor(embedding.table.value, requires_grad=True)
    logits = torch.tanh(table[torch.tensor(ids)]) @ table.T
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).flatten()
    ).backward()
    np.testing.assert_allclose(embedding.table.grad, table.grad, rtol=1e-12)


def test_a_shared_parameter_steps_once():
    class Tied(Module):
        def __init__(self):
            self.embedding = Embedding(7, 3, rng(0))
            self.head = Linear(3, 7, rng(0), bias=False, weight=self.embedding.table)

    tied = Tied()
    assert [name for name, _ in tied.named_parameters()] == ["embedding.table", "head.weight"]
    table = tied.embedding.table
    assert tied.parameters() == [table]
    table.value[...], table.grad[...] = 1, 2
    tied.descend(0.25)
    assert (table.value == 0.5).all()


def test_a_loop_is_unrolled_as_it_runs():
    """The input decides how often the cell runs; torch unrolls the same loop."""
    cell = ElmanCell(2, 3, rng(0))
    for parameter in cell.parameters():
        parameter.value += 0.3
    for T in (1, 4):
        cell.zero_grad()
        x = rng(T).normal(size=(T, 5, 2))
        tape = Tape()
        h = tape.put(np.zeros((5, 3)))
        for t in range(T):
            h = cell(tape.put(x[t]), h)
        assert len(tape.calls) == T
        tape.backward(Total()(h))
        w_h, w_x, b = (torch.tensor(p.value, requires_grad=True) for p in cell.parameters())
        state = torch.zeros(5, 3, dtype=torch.float64)
        for t in range(T):
            state = torch.sigmoid(state @ w_h.T + torch.tensor(x[t]) @ w_x.T + b)
        state.sum().backward()
        for parameter, other in zip(cell.parameters(), (w_h, w_x, b), strict=True):
            np.testing.assert_allclose(parameter.grad, other.grad, rtol=1e-12)


def test_only_the_branch_taken_is_on_the_tape():
    linear, other = Linear(2, 2, rng(0)), Linear(2, 2, rng(1))
    tape = Tape()
    x = tape.put(np.ones((1, 2)))
    y = linear(x)
    y = y if y.value.sum() > 100 else Tanh()(y)
    unused = other(y)  # on the tape, but the loss does not depend on it
    tape.backward(Total()(y))
    assert linear.weight.grad.any()
    assert not other.weight.grad.any()
    assert unused.grad is None


def test_a_variable_used_more_than_once_gets_the_sum():
    tape = Tape()
    x = tape.put(np.array([[0.5, -2.0]]))
    y = x * x + x + Tanh()(x)
    tape.backward(Total()(y))
    np.testing.assert_allclose(x.grad, 2 * x.value + 1 + 1 - np.tanh(x.value) ** 2, rtol=1e-14)


def test_gradients_of_parameters_add_up_over_calls_and_those_of_variables_do_not():
    linear = Linear(2, 1, rng(0))
    tape = Tape()
    x = tape.put(np.ones((1, 2)))
    loss = Total()(linear(x))
    tape.backward(loss)
    once, dx = linear.weight.grad.copy(), x.grad.copy()
    tape.backward(loss)
    np.testing.assert_array_equal(linear.weight.grad, 2 * once)
    np.testing.assert_array_equal(x.grad, dx)
    linear.zero_grad()
    assert not linear.weight.grad.any()


def test_accumulation_does_not_modify_a_returned_gradient():
    """x + x returns the same gradient array twice; adding in place would count it wrongly."""
    tape = Tape()
    x = tape.put(np.ones(3))
    y = x + x
    z = y + x
    tape.backward(Total()(z))
    np.testing.assert_array_equal(y.grad, 1)
    np.testing.assert_array_equal(x.grad, 3)


def test_names_and_descent():
    class Net(Module):
        def __init__(self):
            self.layers = [Linear(2, 3, rng(0)), Sigmoid(), Linear(3, 1, rng(0), bias=False)]
            self.gain = Parameter(np.ones(1))

    net = Net()
    assert [name for name, _ in net.named_parameters()] == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.2.weight",
        "gain",
    ]
    net.gain.grad += 2
    net.descend(0.25)
    assert net.gain.value == 0.5
    assert net.gain.grad == 0


def test_two_tapes_do_not_mix():
    with pytest.raises(AssertionError, match="same tape"):
        _ = Tape().put(np.ones(2)) + Tape().put(np.ones(2))
    with pytest.raises(AssertionError, match="another tape"):
        Tape().backward(Tape().put(np.ones(1)))
    tape = Tape()
    with pytest.raises(AssertionError, match="must be one number"):
        tape.backward(tape.put(np.ones(2)))


def test_a_tape_is_freed_with_its_last_variable():
    """There is no reference cycle: memory is freed at once, without the garbage collector."""
    gc.disable()
    try:
        tape = Tape()
        loss = Total()(Linear(2, 2, rng(0))(tape.put(np.ones((1, 2)))))
        tape.backward(loss)
        there = weakref.ref(tape)
        del tape, loss
        assert there() is None
    finally:
        gc.enable()
