"""The loss of a chat model on the assistant's tokens of held-out conversations.

Conversations are masked with the model's own chat template and cut to its context, as `tune` does,
so the loss on the conversations that `tune` holds out is its validation loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmsmith.chat.conversations import Conversations as Files
from lmsmith.chat.prepare import Speaker, joined, masked_to_fit, n_learned_bytes
from lmsmith.evaluate.likelihood import Score, checked, score_ids
from lmsmith.models.interface import LanguageModel


def score_conversations(
    model: LanguageModel, speaker: Speaker, sources: Sequence[str], *, skip_bad: bool = False
) -> Score:
    """The score of the assistant's tokens in files of conversations, with notes about the files.

    Raises DataError for files that cannot be read and for conversations that the template refuses;
    with `skip_bad` they are skipped and counted.
    """
    files = Files(sources, skip_bad=skip_bad)
    every = list(files)
    length = model.context_length or 1 << 30
    found, notes = masked_to_fit(every, length, speaker, "evaluated", skip_bad=skip_bad)
    side = joined(found, speaker.tokenizer)
    n_bytes, n_unknown, n_unknown_bytes = n_learned_bytes(found, speaker.tokenizer)
    score = score_ids(
        model,
        side,
        n_bytes=max(1, n_bytes + n_unknown_bytes),
        n_unknown=n_unknown,
        n_unknown_bytes=n_unknown_bytes,
        left_out=speaker.tokenizer.skips_unknown,
        starts_with_end_of_text=True,
    )
    return checked(dataclasses.replace(score, notes=(*files.notes(), *notes)))
