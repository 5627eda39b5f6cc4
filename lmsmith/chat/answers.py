"""Greedy answers of a chat model to many conversations at once, for evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmsmith.chat.masks import prompt_ids
from lmsmith.chat.prepare import Speaker
from lmsmith.chat.session import ends_of
from lmsmith.evaluate.tasks.run import Reply
from lmsmith.generate.decode import continue_texts
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel


def replies(writer: TextModel, speaker: Speaker) -> Reply:
    """A function that answers conversations under the chat template.

    A prompt that leaves no room for an answer in the context is cut from the left.
    """
    ends = ends_of(writer, speaker)
    T = writer.model.context_length

    def reply(
        asked: Sequence[Sequence[Mapping[str, str]]], max_tokens: int
    ) -> list[tuple[str, int]]:
        prompts, cuts = [], []
        for messages in asked:
            some = [dict(message) for message in messages]
            ids = prompt_ids(some, speaker.template, writer.tokenizer)
            room = len(ids) if T is None else T - min(max_tokens, T // 2)
            prompts.append(ids[-room:])
            cuts.append(max(0, len(ids) - room))
        found = continue_texts(
            writer.model,
            writer.tokenizer,
            prompts,
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0),
            ends=frozenset(ends),
        )
        return [(texts[0], cut) for texts, cut in zip(found, cuts, strict=True)]

    return reply
