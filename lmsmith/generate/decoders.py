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
from dataclasses import dataclass
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

PROMPT_TOKENS = 2048
"""Tokens of prompts that one call of `read` reads one after the other, or one longer prompt."""


@dataclass(eq=False)
class Prompt:
    """A prompt that is being read into a slot. Decoders have subclasses with more state."""

    slot: int
    ids: Sequence[int]
    done: bool = False


class Decoder(Protocol):
    """Reads tokens into slots and gives logits. Logits are valid until the next call."""

    n_slots: int

    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """Reads a prompt into a slot, in place of what was there.

        The prompt has 1 to `context_length` tokens.
        """

    def open(self, slot: int, ids: Sequence[int]) -> Prompt:
        """Empties a slot, to read a prompt into it with `read`."""

    def read(
        self, prompts: Sequence[Any], slots: Sequence[int], ids: Sequence[int]
    ) -> Float[Tensor, "B V"]:
        """Reads some or all tokens that the prompts lack, the first prompts first, and one more
        token in each of the slots.

        Gives the logits after each prompt that is `done` now, then those of the slots. The call is
        short, so that running sequences do not wait long for a prompt.
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


class ReadsInTurn:
    """The prompts of a decoder that reads whole prompts, one after the other, by `prefill`."""

    def open(self: Decoder, slot: int, ids: Sequence[int]) -> Prompt:
        self.free(slot)
        return Prompt(slot, ids)

    def read(
        self: Decoder, prompts: Sequence[Prompt], slots: Sequence[int], ids: Sequence[int]
    ) -> Float[Tensor, "B V"]:
        """Equal prompts are read once."""
        rows: list[Tensor] = []
        n_tokens = 0
        for i, prompt in enumerate(prompts):
            if n_tokens >= PROMPT_TOKENS:
                break
            same = next((k for k in range(i) if prompts[k].ids == prompt.ids), None)
            if same is not None:
                self.copy(prompts[same].slot, prompt.slot)
                rows.append(rows[same])
            else:
                rows.append(self.prefill(prompt.slot, prompt.ids)[None].clone())
                n_tokens += len(prompt.ids)
            prompt.done = True
        if slots:
            rows.append(self.step(slots, ids))
        return rows[0] if len(rows) == 1 else torch.cat(rows)


class StateDecoder(ReadsInTurn):
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
