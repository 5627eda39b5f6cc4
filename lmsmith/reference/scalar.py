"""Reverse-mode automatic differentiation, one number at a time.

A `Scalar` is a number that remembers what it was made of: which scalars went in, and by how much it
grows with each of them (its partial derivatives, known the moment it is made). The chain rule says
what the end of such a graph grows by with each number in it: the sum, over all that was made
directly of that number, of (gradient of what was made) times (its partial derivative).
`Scalar.backward` adds these up from the end to the beginning, each number once, after all that was
made of it (Linnainmaa 1976; Griewank and Walther 2008, "Evaluating Derivatives", chapter 3).

    x, w = Scalar(2.0), Scalar(-3.0)
    y = (x * w + 1).tanh()
    y.backward()            # x.grad is now dy/dx

Every number costs a Python object: a graph of a million takes a few seconds. First derivatives
alone. Numbers of Python may stand where a scalar is wanted. What `math` refuses (log of 0, exp of
1000) is refused here with its error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np


class Scalar:
    """A number in a graph: its value, what it was made of, and (after `backward`) the gradient
    of the end by it.
    """

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
        self.function = function  # empty for a leaf: a number that was given, not made
        self.inputs = inputs
        self.slopes = slopes  # d value / d input, for each input
        self.grad = 0.0

    def backward(self) -> None:
        """Adds d self / d leaf to the `grad` of every leaf; of all else in the graph, `grad` is
        that of this call.
        """
        order = list(self.topological_order())
        for node in order:
            if node.inputs:
                node.grad = 0.0
        self.grad += 1.0
        for node in reversed(order):
            for given, slope in zip(node.inputs, node.slopes, strict=True):
                given.grad += slope * node.grad  # adds up where a number is used more than once

    def topological_order(self) -> Iterator[Scalar]:
        """All that this number was made of and itself, each once, after its inputs. A loop:
        graphs are deep.
        """
        seen: set[Scalar] = set()
        waiting = [(self, False)]
        while waiting:
            node, inputs_done = waiting.pop()
            if inputs_done:
                yield node
            elif node not in seen:
                seen.add(node)
                waiting.append((node, True))
                waiting.extend((given, False) for given in node.inputs if given not in seen)

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
        # 0 to the b is 0 for all b > 0: there it does not grow with b, and its logarithm is not
        # asked for.
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
        """max(0, x). At 0, where it has no derivative, 0 is taken."""
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


# ---- reductions: many numbers to one, in one node ------------------------------------------------


def total(numbers: Sequence[Scalar]) -> Scalar:
    """Their sum."""
    value = math.fsum(number.value for number in numbers)
    return Scalar(value, function="sum", inputs=tuple(numbers), slopes=(1.0,) * len(numbers))


def mean(numbers: Sequence[Scalar]) -> Scalar:
    """Their average, of at least one."""
    n = len(numbers)
    value = math.fsum(number.value for number in numbers) / n
    return Scalar(value, function="mean", inputs=tuple(numbers), slopes=(1 / n,) * n)


def maximum(numbers: Sequence[Scalar]) -> Scalar:
    """The largest, of at least one. It grows with that number alone; of equal ones, with the
    first.
    """
    values = [number.value for number in numbers]
    at = values.index(max(values))
    slopes = tuple(float(i == at) for i in range(len(values)))
    return Scalar(values[at], function="max", inputs=tuple(numbers), slopes=slopes)


def dot(xs: Sequence[Scalar], ys: Sequence[Scalar]) -> Scalar:
    """The sum of x y over pairs: one entry of a matrix product."""
    values = tuple(x.value for x in xs), tuple(y.value for y in ys)
    value = math.fsum(x * y for x, y in zip(*values, strict=True))
    return Scalar(value, function="dot", inputs=(*xs, *ys), slopes=(*values[1], *values[0]))


# ---- a small network that learns -----------------------------------------------------------------


class MLP:
    """A multi-layer perceptron: `MLP([2, 16, 1], rng)` takes 2 numbers through 16 tanh units to 1
    number.

    Weights are drawn with a standard deviation of 1 / sqrt(inputs of the unit), so that sums are of
    the size of their terms; biases begin at 0.
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
    """One step of gradient descent; gradients begin at zero again."""
    for parameter in parameters:
        parameter.value -= learning_rate * parameter.grad
        parameter.grad = 0.0
