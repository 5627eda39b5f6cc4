"""A text model as benchmark tasks see it."""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.evaluate.tasks.run import Subject
from lmsmith.generate.decode import continue_texts
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel


def subject_of(writer: TextModel, *, bos: bool = True) -> Subject:
    """The model with its tokenizer, begin token and greedy decoding, for `run_tasks`.

    Without `bos` no token stands before a text.
    """

    def write(prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str]) -> list[str]:
        found = continue_texts(
            writer.model,
            writer.tokenizer,
            list(prompts),
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0),
            stop=stop,
            ends=writer.ends,
        )
        return [texts[0] for texts in found]

    return Subject(writer.model, writer.tokenizer, writer.begin if bos else None, write)
