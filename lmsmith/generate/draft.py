"""Drafts: tokens that a cheap model proposes, for the engine to read several at once.

An n-gram model of the same tokenizer proposes its most likely continuation. Reading a few tokens of
one sequence costs hardly more than reading one, because the weights are read from memory once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmsmith.errors import UsageError
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.decoders import Decoder
from lmsmith.models.interface import LanguageModel
from lmsmith.models.ngram import Ngram

DRAFT_TOKENS = 3
MAX_ROWS = 16
"""Tokens that one pass reads at most: with more sequences than that allows, nothing is drafted."""


class Drafter:
    """Proposes tokens for the sequences of one decoder."""

    def __init__(self, model: Ngram, decoder: CpuDecoder) -> None:
        self.model, self.decoder = model, decoder
        self.context = max(1, model.config.order - 1)

    @classmethod
    def of(cls, draft: LanguageModel, decoder: Decoder, model: LanguageModel) -> Drafter:
        """Raises UsageError where drafts do not work: another vocabulary, another kind of draft, or
        a model that cannot take tokens back.
        """
        if not isinstance(draft, Ngram):
            raise UsageError(
                "the draft model must be an n-gram model: train one with --preset ngram."
            )
        if draft.vocab_size != model.vocab_size:
            raise UsageError(
                f"the draft model has {draft.vocab_size:,} tokens and the model "
                f"{model.vocab_size:,}: they must have the same tokenizer. Train the draft with "
                "`--tokenizer` set to the model's tokens folder."
            )
        if not isinstance(decoder, CpuDecoder) or decoder.config.window:
            raise UsageError(
                "drafts work for Transformers on the CPU in float32 or float64, without sliding "
                "windows; this model is another one. Generate without a draft."
            )
        return cls(draft, decoder)

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """The most likely next DRAFT_TOKENS tokens."""
        context = list(tokens[-self.context :])
        state = self.model.new_state(1)
        draft: list[int] = []
        for _ in range(DRAFT_TOKENS):
            logits = self.model.next_logits(torch.tensor([context]), state)
            context = [int(logits.argmax())]
            draft += context
        return draft

    def rewind(self, slot: int, n: int) -> None:
        """Forgets the last n proposed tokens."""
        self.decoder.rewind(slot, n)
