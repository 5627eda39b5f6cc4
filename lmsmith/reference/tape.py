"""Reverse-mode automatic differentiation of arrays: layers with gradients, and an autograd tape.

A `Layer` is a function of arrays together with its gradient: `forward` also returns the values that
`backward` needs. Applied to variables, a layer records the call on their tape. So loops and
branches of the program are unrolled as they run, and a layer that is applied twice is on the tape
twice. A variable must exist before a layer can use it, so the order of calls is a topological order
of the graph. Walking the tape from its end visits every call after its output's gradient is
complete.

    tape = Tape()
    x = tape.put(array)
    loss = criterion(linear(x), targets)
    tape.backward(loss)     # x.grad, linear.weight.grad

Each `backward` starts the gradients of variables again from zero. Gradients of parameters
accumulate, over uses and over calls, until `zero_grad`. Gradients cannot be differentiated again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


class Parameter:
    """A learned array and the gradient of the loss with respect to it."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.grad = np.zeros_like(value)


class Tape:
    """The calls of layers in the order in which they ran. The tape knows variables by number."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.grads: dict[int, np.ndarray] = {}
        self.n_variables = 0

    def put(self, value: np.ndarray) -> Variable:
        """A variable that is not the output of a layer: inputs, ids, an initial state."""
        self.n_variables += 1
        return Variable(value, self, self.n_variables - 1)

    def backward(self, loss: Variable) -> None:
        """Computes the gradients of `loss`, a single number (backpropagation).

        Sets the gradients of all variables, and adds those of parameters to their `grad`.
        """
        assert loss.tape is self, "the loss is on another tape"
        assert loss.value.size == 1, f"the loss must be one number, not of shape {loss.value.shape}"
        self.grads = {loss.number: np.ones_like(loss.value)}
        for call in reversed(self.calls):
            if call.output not in self.grads:  # the loss does not depend on it
                continue
            by_inputs = call.layer.backward(self.grads[call.output], call.saved)
            for number, grad in zip(call.inputs, by_inputs, strict=True):
                if number is not None and grad is not None:
                    self.grads[number] = self.grads[number] + grad if number in self.grads else grad


@dataclass(frozen=True)
class Variable:
    """An array on a tape."""

    value: np.ndarray
    tape: Tape
    number: int

    @property
    def grad(self) -> np.ndarray | None:
        """The gradient from the last `backward`; None if the loss does not depend on it."""
        return self.tape.grads.get(self.number)

    def __add__(self, other: Variable) -> Variable:
        return Add()(self, other)

    def __mul__(self, other: Variable) -> Variable:
        return Multiply()(self, other)


@dataclass(frozen=True)
class Call:
    """One call of a layer: the numbers of its input variables (None for a plain array) and its
    output.
    """

    layer: Layer
    inputs: tuple[int | None, ...]
    output: int
    saved: Any


class Module:
    """Base class for anything with parameters: its own, and those of the modules it contains."""

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Each parameter with its dotted name; a shared one appears under each of its names."""
        for name, part in vars(self).items():
            for index, thing in enumerate(part) if isinstance(part, list) else [("", part)]:
                full = f"{prefix}{name}{'.' if index != '' else ''}{index}"
                if isinstance(thing, Parameter):
                    yield full, thing
                elif isinstance(thing, Module):
                    yield from thing.named_parameters(full + ".")

    def parameters(self) -> list[Parameter]:
        """Each parameter once."""
        return list(dict.fromkeys(parameter for _, parameter in self.named_parameters()))

    def zero_grad(self) -> None:
        """Sets the gradients of all parameters to zero."""
        for parameter in self.parameters():
            parameter.grad.fill(0)

    def descend(self, learning_rate: float) -> None:
        """One step of gradient descent. Resets the gradients to zero."""
        for parameter in self.parameters():
            parameter.value -= learning_rate * parameter.grad
        self.zero_grad()


class Layer(Module):
    """A function of arrays and its gradient.

    Applied to variables (and plain arrays), it returns a variable on their tape.
    """

    def forward(self, *inputs: Any) -> tuple[np.ndarray, Any]:
        """Returns the output, and whatever `backward` needs."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray | None, ...]:
        """Given the gradient of the output, returns that of each input (None if it has none), and
        adds to the gradients of the layer's parameters.
        """
        raise NotImplementedError

    def __call__(self, *inputs: Variable | np.ndarray) -> Variable:
        variables = [x if isinstance(x, Variable) else None for x in inputs]
        tapes = {id(x.tape): x.tape for x in variables if x is not None}
        assert len(tapes) == 1, "all variables must be on the same tape, and at least one is needed"
        (tape,) = tapes.values()
        y, saved = self.forward(*(x.value if isinstance(x, Variable) else x for x in inputs))
        output = tape.put(y)
        tape.calls.append(
            Call(
                self,
                tuple(x.number if x is not None else None for x in variables),
                output.number,
                saved,
            )
        )
        return output


class Add(Layer):
    """x + z. The gradient of a broadcast input is summed over the broadcast axes."""

    def forward(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, Any]:
        return x + z, (x.shape, z.shape)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray, ...]:
        return tuple(_summed_to(shape, dy) for shape in saved)


class Multiply(Layer):
    """x z, elementwise, with broadcasting."""

    def forward(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, Any]:
        return x * z, (x, z)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray, ...]:
        x, z = saved
        return _summed_to(x.shape, dy * z), _summed_to(z.shape, dy * x)


def _summed_to(shape: tuple[int, ...], dy: np.ndarray) -> np.ndarray:
    """Reduces dy to the gradient of an array of `shape` that was broadcast to dy's shape."""
    dy = dy.sum(axis=tuple(range(dy.ndim - len(shape))))
    repeated = tuple(axis for axis, n in enumerate(shape) if n == 1)
    return dy.sum(axis=repeated, keepdims=True)
