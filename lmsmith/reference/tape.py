"""Reverse-mode differentiation of arrays: layers that know their gradient, and a tape of what was
called.

A `Layer` is a function of arrays with its gradient beside it: `forward` also returns what
`backward` needs of the call. Applied to variables, it writes the call on their tape. Loops and
branches of the program are thus unrolled onto it as they are run, and a layer that is applied twice
is on it twice. Since nothing can be put into a layer before it is made, the order of calls is a
topological order of the graph; the tape walked from its end is the reverse of one, and each call's
gradient is whole when its turn comes.

    tape = Tape()
    x = tape.put(array)
    loss = criterion(linear(x), targets)
    tape.backward(loss)     # x.grad, linear.weight.grad

Gradients of variables begin anew with each `backward`; those of parameters add up, over uses and
over calls, until `zero_grad`. First derivatives alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


class Parameter:
    """A learnt array and the gradient of the loss by it."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.grad = np.zeros_like(value)


class Tape:
    """Calls in the order in which they were made. Variables are known on it by their number."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.grads: dict[int, np.ndarray] = {}
        self.n_variables = 0

    def put(self, value: np.ndarray) -> Variable:
        """A variable that was not made by a layer: inputs, ids, an initial state."""
        self.n_variables += 1
        return Variable(value, self, self.n_variables - 1)

    def backward(self, loss: Variable) -> None:
        """Sets the gradients of `loss`, one number, by all variables, and adds those by
        parameters to their `grad`.
        """
        assert loss.tape is self, "the loss of another tape"
        assert loss.value.size == 1, f"a gradient is of one number, not of {loss.value.shape}"
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
        """The gradient of the last `backward`'s loss; None where the loss does not depend on it."""
        return self.tape.grads.get(self.number)

    def __add__(self, other: Variable) -> Variable:
        return Add()(self, other)

    def __mul__(self, other: Variable) -> Variable:
        return Multiply()(self, other)


@dataclass(frozen=True)
class Call:
    """One application of a layer: the numbers of the variables put in (None: no variable) and of
    the one made.
    """

    layer: Layer
    inputs: tuple[int | None, ...]
    output: int
    saved: Any


class Module:
    """Something with parameters: its own, and those of the modules it is made of."""

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Each parameter with its dotted name; one that is shared comes once for each of its
        names.
        """
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
        for parameter in self.parameters():
            parameter.grad.fill(0)

    def descend(self, learning_rate: float) -> None:
        """One step of gradient descent; gradients begin at zero again."""
        for parameter in self.parameters():
            parameter.value -= learning_rate * parameter.grad
        self.zero_grad()


class Layer(Module):
    """A function of arrays and its gradient. Applied to variables (and arrays) it makes a
    variable on their tape.
    """

    def forward(self, *inputs: Any) -> tuple[np.ndarray, Any]:
        """The output, and what `backward` will need."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray | None, ...]:
        """Given the gradient by the output: that by each input, None for what has none; adds to
        the parameters'.
        """
        raise NotImplementedError

    def __call__(self, *inputs: Variable | np.ndarray) -> Variable:
        variables = [x if isinstance(x, Variable) else None for x in inputs]
        tapes = {id(x.tape): x.tape for x in variables if x is not None}
        assert len(tapes) == 1, "wanted variables of one tape"
        (tape,) = tapes.values()
        y, saved = self.forward(*(x.value if isinstance(x, Variable) else x for x in inputs))
        made = tape.put(y)
        tape.calls.append(
            Call(
                self,
                tuple(x.number if x is not None else None for x in variables),
                made.number,
                saved,
            )
        )
        return made


class Add(Layer):
    """x + z; what is shared by many rows of the other is added the gradients of all of them."""

    def forward(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, Any]:
        return x + z, (x.shape, z.shape)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray, ...]:
        return tuple(_summed_to(shape, dy) for shape in saved)


class Multiply(Layer):
    """x z, elementwise."""

    def forward(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, Any]:
        return x * z, (x, z)

    def backward(self, dy: np.ndarray, saved: Any) -> tuple[np.ndarray, ...]:
        x, z = saved
        return _summed_to(x.shape, dy * z), _summed_to(z.shape, dy * x)


def _summed_to(shape: tuple[int, ...], dy: np.ndarray) -> np.ndarray:
    """The gradient by an array of `shape` that was repeated to dy's shape."""
    dy = dy.sum(axis=tuple(range(dy.ndim - len(shape))))
    repeated = tuple(axis for axis, n in enumerate(shape) if n == 1)
    return dy.sum(axis=repeated, keepdims=True)
