"""What reads tokens for the engine: one interface, whatever the model.

A decoder has slots. A slot holds what a model remembers of one sequence: a KV cache, the state of a
recurrent network, or the last tokens of an n-gram model.

`CpuDecoder` (`cpu.py`) is compiled, for Transformers on the CPU. `BatchedDecoder` (`batched.py`) is
for Transformers on CUDA. `StateDecoder` serves every other `LanguageModel` through its state, one
sequence after the other, so a sequence does not depend on its neighbours there either.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.weights import arithmetic
from lmsmith.models.gpt import GPT
from lmsmith.models.interface import LanguageModel

PIECE = 1 << 14
"""Tokens of a prompt that are read at once."""


class Decoder(Protocol):
    """Reads tokens into slots and gives logits. Logits are valid until the next call."""

    n_slots: int

    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """Reads a prompt into a slot, in place of what was there.

        The prompt has 1 to `context_length` tokens.
        """

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "B V"]:
        """Reads one more token in each of B slots."""

    def copy(self, source: int, target: int) -> None:
        """Makes slot `target` equal to slot `source`."""

    def free(self, slot: int) -> None:
        """Empties a slot and gives its memory back."""


def decoder_for(
    model: LanguageModel, n_slots: int, n_rows: int = 0, prefix_bytes: int = 0
) -> Decoder:
    """The fastest decoder for a model. `n_rows`, `prefix_bytes`: as for `CpuDecoder`; decoders
    without such a feature ignore them.
    """
    if isinstance(model, GPT) and model.device.type == "cpu" and arithmetic(model):
        from lmsmith.generate.cpu import CpuDecoder

        return CpuDecoder(model, n_slots, n_rows, prefix_bytes)
    if isinstance(model, GPT) and model.device.type == "cuda":
        from lmsmith.generate.batched import BatchedDecoder

        return BatchedDecoder(model, n_slots, prefix_bytes)
    return StateDecoder(model, n_slots)


class StateDecoder:
    """A decoder for any language model, through `new_state` and `next_logits`."""

    def __init__(self, model: LanguageModel, n_slots: int) -> None:
        self.model, self.n_slots = model, n_slots
        self.states: list[Any] = [None] * n_slots

    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, " V"]:
        assert ids
        self.states[slot] = self.model.new_state(1)
        with inference(self.model):
            for piece in torch.tensor([list(ids)], device=self.model.device).split(PIECE, dim=1):
                logits = self.model.next_logits(piece, self.states[slot])
        return logits[0]

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "B V"]:
        device = self.model.device
        with inference(self.model):
            rows = [
                self.model.next_logits(torch.tensor([[id]], device=device), self.states[slot])
                for slot, id in zip(slots, ids, strict=True)
            ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def copy(self, source: int, target: int) -> None:
        self.states[target] = copy.deepcopy(self.states[source])

    def free(self, slot: int) -> None:
        self.states[slot] = None
