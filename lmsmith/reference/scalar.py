"""Reverse-mode automatic differentiation of scalars.

A `Scalar` is a number that remembers how it was computed: its inputs, and the partial derivative
with respect to each input, known as soon as it is computed. The chain rule gives the gradient of
the result with respect to any number in the graph. It is a sum over all results computed directly
from that number: the gradient of that result times its partial derivative. `Scalar.backward` sums
these from the result back to the inputs. It visits each number once, after everything computed from
it (Linnainmaa 1976; Griewank and Walther 2008, "Evaluating Derivatives", chapter 3).

    x, w = Scalar(2.0), Scalar(-3.0)
    y = (x * w + 1).tanh()
    y.backward()            # x.grad is now dy/dx

Every number costs a Python object: a graph of a million takes a few seconds. Gradients cannot be
differentiated again. Python numbers can take the place of scalars. Where `math` raises an error
(log of 0, exp of 1000), so do scalars.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np


class Scalar:
    """A number in a graph: its value, its inputs and, after `backward`, its gradient."""

    __slots__ = ("function", "grad", "inputs", "name", "slopes", "value")

    def __init__(
        self,
        value: float,
        name: str = "",
        *,
        function: str = "",
        inputs: tuple[Scalar, ...] = (),
        slopes: tuple[float, ...] = (),
    ) -> None:
        self.value = float(value)
        self.name = name  # for drawings
        self.function = function  # empty for a leaf
        self.inputs = inputs
        self.slopes = slopes  # d value / d input, for each input
        self.grad = 0.0

    def backward(self) -> None:
        """Backpropagates from this number.

        Adds d self / d leaf to the `grad` of every leaf. For all other numbers in the graph, `grad`
        is overwritten with the gradient of this call.
        """
        order = list(self.topological_order())
        for node in order:
            if node.inputs:
                node.grad = 0.0
        self.grad += 1.0
        for node in reversed(order):
            for input_, slope in zip(node.inputs, node.slopes, strict=True):
                input_.grad += slope * node.grad  # a sum, because a number can have several uses

    def topological_order(self) -> Iterator[Scalar]:
        """Yields this number and everything it was computed from, each once, inputs first.

        It is a loop, because recursion would overflow on deep graphs.
        """
        seen: set[Scalar] = set()
        stack = [(self, False)]
        while stack:
            node, inputs_done = stack.pop()
            if inputs_done:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((input_, False) for input_ in node.inputs if input_ not in seen)

    def __add__(self, other: Scalar | float) -> Scalar:
        other = as_scalar(other)
        return Scalar(
            self.value + other.value, function="+", inputs=(self, other), slopes=(1.0, 1.0)
        )

    def __sub__(self, other: Scalar | float) -> Scalar:
        other = as_scalar(other)
        return Scalar(
            self.value - other.value, function="-", inputs=(self, other), slopes=(1.0, -1.0)
        )

    def __mul__(self, other: Scalar | float) -> Scalar:
        other = as_scalar(other)
        return Scalar(
            self.value * other.value,
            function="*",
            inputs=(self, other),
            slopes=(other.value, self.value),
        )

    def __truediv__(self, other: Scalar | float) -> Scalar:
        other = as_scalar(other)
        ratio = self.value / other.value
        slopes = (1 / other.value, -ratio / other.value)
        return Scalar(ratio, function="/", inputs=(self, other), slopes=slopes)

    def __pow__(self, power: Scalar | float) -> Scalar:
        value = math.pow(self.value, float(power))
        slope = _slope_of_power(self.value, float(power))
        if not isinstance(power, Scalar):
            return Scalar(value, function=f"**{power:g}", inputs=(self,), slopes=(slope,))
        # 0**b is 0 for all b > 0, so its derivative by b is 0 there; log(0) is not needed.
        slope_by_power = value * math.log(self.value) if value else 0.0
        return Scalar(value, function="**", inputs=(self, power), slopes=(slope, slope_by_power))

    def __neg__(self) -> Scalar:
        return Scalar(-self.value, function="-", inputs=(self,), slopes=(-1.0,))

    def __radd__(self, other: float) -> Scalar:
        return as_scalar(other) + self

    def __rsub__(self, other: float) -> Scalar:
        return as_scalar(other) - self

    def __rmul__(self, other: float) -> Scalar:
        return as_scalar(other) * self

    def __rtruediv__(self, other: float) -> Scalar:
        return as_scalar(other) / self

    def __rpow__(self, other: float) -> Scalar:
        return as_scalar(other) ** self

    def exp(self) -> Scalar:
        value = math.exp(self.value)
        return Scalar(value, function="exp", inputs=(self,), slopes=(value,))

    def log(self) -> Scalar:
        """The natural logarithm."""
        return Scalar(
            math.log(self.value), function="log", inputs=(self,), slopes=(1 / self.value,)
        )

    def tanh(self) -> Scalar:
        value = math.tanh(self.value)
        return Scalar(value, function="tanh", inputs=(self,), slopes=(1 - value**2,))

    def relu(self) -> Scalar:
        """max(0, x). At 0, where it is not differentiable, the derivative is taken to be 0."""
        value = 0.0 if self.value <= 0 else self.value
        return Scalar(value, function="relu", inputs=(self,), slopes=(float(self.value > 0),))

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        name = f"{self.name} = " if self.name else ""
        return f"Scalar({name}{self.value:.6g}, grad {self.grad:.6g})"


def as_scalar(number: Scalar | float) -> Scalar:
    return number if isinstance(number, Scalar) else Scalar(number)


def _slope_of_power(base: float, power: float) -> float:
    """d base**power / d base; infinite at 0 for powers between 0 and 1."""
    if power == 0:
        return 0.0
    if base == 0 and power < 1:
        return math.inf
    return power * math.pow(base, power - 1)


# ---- reductions: one node for many numbers -------------------------------------------------------


def total(numbers: Sequence[Scalar]) -> Scalar:
    """The sum."""
    value = math.fsum(number.value for number in numbers)
    return Scalar(value, function="sum", inputs=tuple(numbers), slopes=(1.0,) * len(numbers))


def mean(numbers: Sequence[Scalar]) -> Scalar:
    """The mean of at least one number."""
    n = len(numbers)
    value = math.fsum(number.value for number in numbers) / n
    return Scalar(value, function="mean", inputs=tuple(numbers), slopes=(1 / n,) * n)


def maximum(numbers: Sequence[Scalar]) -> Scalar:
    """The largest of at least one number. Its gradient goes to the first number of that value."""
    values = [number.value for number in numbers]
    at = values.index(max(values))
    slopes = tuple(float(i == at) for i in range(len(values)))
    return Scalar(values[at], function="max", inputs=tuple(numbers), slopes=slopes)


def dot(xs: Sequence[Scalar], ys: Sequence[Scalar]) -> Scalar:
    """The sum of x y over pairs: one element of a matrix product."""
    values = tuple(x.value for x in xs), tuple(y.value for y in ys)
    value = math.fsum(x * y for x, y in zip(*values, strict=True))
    return Scalar(value, function="dot", inputs=(*xs, *ys), slopes=(*values[1], *values[0]))


# ---- a small neural network ----------------------------------------------------------------------


class MLP:
    """A multi-layer perceptron: `MLP([2, 16, 1], rng)` maps 2 numbers through 16 tanh units to 1
    number.

    Weights have standard deviation 1 / sqrt(inputs of the unit), so that a unit's sum has the size
    of its terms; biases start at 0.
    """

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator) -> None:
        self.weights = [
            [
                [Scalar(w / math.sqrt(n_in)) for w in rng.standard_normal(n_in).tolist()]
                for _ in range(n_out)
            ]
            for n_in, n_out in pairwise(sizes)
        ]
        self.biases = [[Scalar(0.0) for _ in range(n_out)] for n_out in sizes[1:]]

    def __call__(self, x: Sequence[Scalar | float]) -> list[Scalar]:
        h = [as_scalar(number) for number in x]
        for depth, (weights, biases) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = [dot(h, row) + bias for row, bias in zip(weights, biases, strict=True)]
            if depth < len(self.weights) - 1:
                h = [number.tanh() for number in h]
        return h

    def parameters(self) -> list[Scalar]:
        weights = [weight for layer in self.weights for row in layer for weight in row]
        return weights + [bias for layer in self.biases for bias in layer]


def descend(parameters: Sequence[Scalar], learning_rate: float) -> None:
    """One step of gradient descent. Resets the gradients to zero."""
    for parameter in parameters:
        parameter.value -= learning_rate * parameter.grad
        parameter.grad = 0.0
