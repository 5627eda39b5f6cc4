"""The states that truncated backpropagation through time hands from one batch to the next, one a
micro-batch.

What a state has seen counts, how it came about does not: its gradient ends where the batch begins.
The states are part of a checkpoint, for without them a resumed run would begin with empty ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lmsmith.models.rnn import RNN, RnnState


class Carried:
    """Kept between steps. `model` must be on its device."""

    def __init__(self, model: RNN) -> None:
        self.model = model
        self.states: dict[int, RnnState] = {}  # by the first row of the micro-batch
        self._begun: dict[int, RnnState] = {}  # what the latest batch was read on from

    def before(self, part: tuple[int, int], goes_on: bool) -> RnnState:
        """What the model reads rows `part` on from: where they ended in the batch before, or
        nothing, if they begin.

        The model changes it as it reads, and so leaves it for the next batch.
        """
        first, last = part
        found = self.states[first].detach() if goes_on else self.model.new_state(last - first)
        self.states[first] = found
        self._begun[first] = RnnState(list(found.layers))
        return found

    def undo(self) -> None:
        """The latest batch was not read: its step was not applied, and will be made again."""
        self.states = dict(self._begun)

    def tensors(self) -> dict[str, Tensor]:
        """Of a checkpoint."""
        return {
            f"{first}/{number}": tensor.detach()
            for first, state in self.states.items()
            for number, tensor in enumerate(state.tensors())
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
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
