"""Log-probabilities of a prompt's own tokens, for `echo` with `logprobs`.

Evaluation harnesses use it: the log-likelihood of a text is the sum over its tokens. It runs in the
scheduler's thread, between two steps of the engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.text_model import TextModel
from lmsmith.models.interface import LOGITS_AT_ONCE, NeuralModel
from lmsmith.serve.errors import bad
from lmsmith.serve.pieces import Shown, bytes_of

LONGEST = 8192
"""Tokens of a scored prompt, for models without a context length: nothing else runs meanwhile."""


def check_length(writer: TextModel, ids: Sequence[int]) -> None:
    """Raises ApiError for a prompt that the model cannot score in one window."""
    T = writer.model.context_length
    most = LONGEST if T is None else T
    if len(ids) > most:
        raise bad(
            f"the prompt has {len(ids):,} tokens: with echo and logprobs this model reads at most "
            f"{most:,}.",
            "prompt",
            "context_length_exceeded",
        )


def score_prompt(writer: TextModel, ids: Sequence[int], n_alternatives: int) -> list[Shown]:
    """The prompt's tokens with their log-probabilities; the first one has none."""
    tokenizer = writer.tokenizer
    shown: list[Shown] = []
    offset = 0
    with inference(writer.model):
        rows = _log_softmax(writer, ids)
        for id, row in zip(ids, [None, *rows], strict=True):
            found: tuple[tuple[int, bytes, float], ...] = ()
            if row is not None and n_alternatives:
                best = row.topk(min(n_alternatives, len(row)))
                found = tuple(
                    (int(other), bytes_of(tokenizer, int(other)), float(p))
                    for p, other in zip(best.values, best.indices, strict=True)
                )
            p = None if row is None else float(row[id])
            shown.append(Shown(id, bytes_of(tokenizer, id), p, found, offset))
            offset += len(shown[-1].text)
    return shown


def _log_softmax(writer: TextModel, ids: Sequence[int]) -> Iterator[Tensor]:
    """The log-softmax after each token but the last, a row (V,) at a time."""
    model, given = writer.model, torch.tensor([list(ids)], device=writer.model.device)
    if isinstance(model, NeuralModel):
        hidden = model.hidden(given)[:, :-1]
        for part in hidden.split(max(1, LOGITS_AT_ONCE // model.vocab_size), dim=1):
            yield from model.logits(part)[0].log_softmax(-1)
        return
    state = model.new_state(1)
    for i in range(len(ids) - 1):
        yield model.next_logits(given[:, i : i + 1], state)[0].log_softmax(-1)
