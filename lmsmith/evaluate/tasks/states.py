"""Rows of a model's state: the states of several texts, copied for several continuations each."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from lmsmith.models.attention import LayerCache, State
from lmsmith.models.gpt import GPT
from lmsmith.models.interface import NeuralModel
from lmsmith.models.rnn import RNN, RnnState


def can_select(model: NeuralModel) -> bool:
    """Whether `select` knows the states of this model."""
    return isinstance(model, GPT | RNN)


def select(state: Any, rows: Int[Tensor, " R"], capacity: int) -> Any:
    """A new state with R texts: those of `state` with the numbers `rows`, in that order.

    `capacity`: tokens that it will hold.
    """
    if isinstance(state, RnnState):
        return RnnState([tuple(part[rows] for part in layer) for layer in state.layers])
    assert isinstance(state, State)
    layers = [
        LayerCache(*(_copied(part, rows, state.position, capacity) for part in (c.keys, c.values)))
        for c in state.layers
    ]
    return State(layers, state.before[rows], state.position)


def _copied(cache: Tensor, rows: Tensor, n: int, capacity: int) -> Tensor:
    _, G, _, K = cache.shape
    copy = cache.new_empty(len(rows), G, capacity, K)
    copy[:, :, :n] = cache[rows, :, :n]
    return copy
