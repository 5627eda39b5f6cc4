"""Scalar autograd against PyTorch's and against finite differences."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.reference.scalar import MLP, Scalar, descend, dot, maximum, mean, total

# Operations on numbers a and b that Scalar and torch share. Results stay within about (0.2, 5), or
# are guarded.
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b * 0.3,
    "/": lambda a, b: a / (b * b + 1),
    "**": lambda a, b: (a * a + 0.5) ** (b * 0.2),
    "**3": lambda a, _: a**3 / (1 + a**2),
    "2**": lambda a, b: 2 ** (a - b).tanh(),
    "1/": lambda a, _: 1 / (a * a + 1),
    "1-": lambda a, _: 1 - a,
    "neg": lambda a, _: -a,
    "exp": lambda a, _: a.tanh().exp(),
    "log": lambda a, _: (a * a + 0.1).log(),
    "tanh": lambda a, _: a.tanh(),
    "relu": lambda a, _: a.relu(),
}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(-3, 3).filter(lambda x: abs(x) > 0.01), min_size=2, max_size=4),
    st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 50), st.integers(0, 50)),
        min_size=1,
        max_size=25,
    ),
)
def test_any_expression_has_torchs_gradients(numbers, steps):
    ours = [Scalar(x) for x in numbers]
    theirs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    for made in (
        ours,
        theirs,
    ):  # each step uses any two existing numbers, so most are used more than once
        for name, i, j in steps:
            made.append(STEPS[name](made[i % len(made)], made[j % len(made)]))
    end, torch_end = total(ours[-3:]), sum(theirs[-3:])
    end.backward()
    torch_end.backward()
    assert end.value == pytest.approx(torch_end.item(), rel=1e-12, abs=1e-12)
    for mine, other in zip(ours[: len(numbers)], theirs, strict=False):
        wanted = 0.0 if other.grad is None else other.grad.item()
        assert mine.grad == pytest.approx(wanted, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize(
    ("reduce", "torch_reduce"),
    [
        (total, torch.sum),
        (mean, torch.mean),
        (maximum, torch.max),
        (lambda xs: dot(xs, xs[::-1]), lambda x: x @ x.flip(0)),
        (lambda xs: dot(xs, xs), lambda x: x @ x),
    ],
)
def test_reductions(reduce, torch_reduce):
    numbers = np.random.default_rng(0).normal(size=7)
    ours = [Scalar(x) for x in numbers]
    theirs = torch.tensor(numbers, requires_grad=True)
    end, torch_end = reduce(ours) ** 2, torch_reduce(theirs) ** 2
    end.backward()
    torch_end.backward()
    assert end.value == pytest.approx(torch_end.item(), rel=1e-13)
    np.testing.assert_allclose([x.grad for x in ours], theirs.grad, rtol=1e-12)


def test_gradients_accumulate_where_a_value_is_used_more_than_once():
    x = Scalar(3.0)
    y = x * x + x
    y.backward()
    assert x.grad == 7


def test_gradients_of_leaves_add_up_over_calls_and_others_do_not():
    x = Scalar(3.0)
    square = x * x
    cube = square * x
    square.backward()
    cube.backward()
    cube.backward()
    assert x.grad == 6 + 27 + 27
    assert square.grad == 3  # d cube / d square


def test_powers_at_zero_and_one():
    for base, power, value, slope in [
        (0, 2, 0, 0),
        (0, 1, 0, 1),
        (0, 0, 1, 0),
        (0, 0.5, 0, math.inf),
        (-2, 3, -8, 12),
    ]:
        x = Scalar(base)
        y = x**power
        y.backward()
        assert (y.value, x.grad) == (value, slope)
    with pytest.raises(ValueError, match="math domain error"):
        Scalar(-1.0) ** 0.5


def test_a_chain_of_100000_does_not_overflow_the_stack():
    x = Scalar(1.0)
    y = x
    start = time.process_time()
    for _ in range(100_000):
        y = y * 1.00001
    y.backward()
    assert x.grad == pytest.approx(1.00001**100_000, rel=1e-9)
    assert time.process_time() - start < 20
    del y  # freeing it does not overflow the stack either


def test_each_number_is_visited_once():
    """Sixty doublings have 2**60 paths from the last to the first."""
    x = Scalar(1.0)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60


def test_finite_differences_of_a_network():
    net = MLP([3, 4, 2], np.random.default_rng(1))

    def loss() -> Scalar:
        out = net([0.5, -1.0, 2.0])
        return (out[0] * out[1] - 1) ** 2

    loss().backward()
    for weight in net.parameters():
        found, was, ends = weight.grad, weight.value, []
        for weight.value in (was + 1e-5, was - 1e-5):
            ends.append(loss().value)
        weight.value = was
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_the_network_learns_exclusive_or():
    net = MLP([2, 4, 1], np.random.default_rng(3))
    table = [((a, b), 2.0 * (a != b) - 1) for a in (0, 1) for b in (0, 1)]
    assert len(net.parameters()) == 2 * 4 + 4 + 4 + 1
    for _ in range(400):
        loss = mean([(net(x)[0] - y) ** 2 for x, y in table])
        loss.backward()
        descend(net.parameters(), 0.3)
    assert loss.value < 0.01
    assert all((net(x)[0].value > 0) == (y > 0) for x, y in table)
