"""Keeps recurrent states between batches for truncated backpropagation through time (BPTT).

There is one state per micro-batch. Gradients do not flow back into earlier batches. Checkpoints
include the states; otherwise a resumed run would start with empty ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lmsmith.models.rnn import RNN, RnnState


class RecurrentStates:
    """States kept between steps. `model` must be on its device."""

    def __init__(self, model: RNN) -> None:
        self.model = model
        self.states: dict[int, RnnState] = {}  # key: first row of the micro-batch
        self._begun: dict[int, RnnState] = {}  # the states before the latest batch

    def before(self, part: tuple[int, int], continues: bool) -> RnnState:
        """Returns the state with which rows `part` begin: their last state in the previous batch,
        or an empty state unless `continues`.

        The model updates it in place while reading, which leaves it ready for the next batch.
        """
        first, last = part
        found = self.states[first].detach() if continues else self.model.new_state(last - first)
        self.states[first] = found
        self._begun[first] = RnnState(list(found.layers))
        return found

    def undo(self) -> None:
        """Restores the states before the latest batch, whose step was not applied."""
        self.states = dict(self._begun)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the states as tensors for a checkpoint, named "first row/number"."""
        return {
            f"{first}/{number}": tensor.detach()
            for first, state in self.states.items()
            for number, tensor in enumerate(state.tensors())
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the states from `tensors`."""
        found: dict[int, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            first, number = map(int, name.split("/"))
            found.setdefault(first, {})[number] = tensor
        for first, parts in found.items():
            rows = len(parts[0])
            state = self.model.new_state(rows)
            with torch.no_grad():
                for number, place in enumerate(state.tensors()):
                    place.copy_(parts[number])
            self.states[first] = state
