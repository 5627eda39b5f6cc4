"""Text from a model: prompts in, continuations out, built on the engine.

`generate` gives ids, `stream_text` one continuation piece by piece, `continue_texts` many
continuations of many prompts in one running batch. How a full context is handled and why a sample
never depends on the others is explained in `engine.py`.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from lmsmith.errors import ConfigError, UsageError
from lmsmith.generate.engine import Engine, Request
from lmsmith.generate.sampling import Sampling
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.control import SpecialTokens, encode_text
from lmsmith.tokens.stream_decoder import StreamDecoder
from lmsmith.tokens.tokenizer import Tokenizer, unused_ids

MAX_BATCH = 32
"""Sequences that are decoded at once."""


def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    n: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop_id: int | None = None,
    first_index: int = 0,
    tokenizer: Tokenizer | None = None,
    draft: LanguageModel | None = None,
) -> Iterator[list[int]]:
    """Continues `prompt_ids` in n ways; each step yields n ids, one for each.

    Ends after `max_tokens` steps, or when all n have drawn `stop_id`; a sequence that has drawn it
    repeats it. Samples are numbered from `first_index`: n = 1 with `first_index` = 3 is sample 3.
    Ids that no token of `tokenizer` has are never drawn; without a tokenizer every id of the model
    counts as a token. `draft`: a model that proposes tokens (`engine.py`).

    Raises UsageError for an empty prompt, ConfigError for numbers out of range, CheckpointError for
    logits that are not numbers.
    """
    _check_counts(n, max_tokens)
    if len(prompt_ids) == 0:
        raise UsageError("the prompt is empty: give the model at least one token to continue.")
    engine = Engine(model, n, forbidden=unused_tokens(model, tokenizer), draft=draft)
    for index in range(first_index, first_index + n):
        engine.submit(
            Request(
                prompt_ids,
                max(1, max_tokens),
                sampling or Sampling(),
                seed,
                index,
                () if stop_id is None else (stop_id,),
            )
        )
    return _ids(engine, n, max_tokens, stop_id)


def _ids(engine: Engine, n: int, max_tokens: int, stop_id: int | None) -> Iterator[list[int]]:
    waiting: list[deque[int]] = [deque() for _ in range(n)]  # a step may give several tokens
    for _ in range(max_tokens):
        while engine.busy and not all(waiting[number] for number in engine.unfinished):
            for token in engine.step():
                waiting[token.sequence].append(token.id)
        if not any(waiting):
            return
        yield [ids.popleft() if ids else stop_id for ids in waiting]  # type: ignore[misc]


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    index: int = 0,
    ends: Collection[int] = (),
    draft: LanguageModel | None = None,
) -> Iterator[str]:
    """Yields continuation number `index` of `prompt` in pieces, without the prompt itself.

    A piece never ends inside a character or inside what may become a stop string. The text ends
    before the first complete stop string, at an end token, or after `max_tokens`. `prompt`: text,
    or its ids (`TextModel.encode`). `ends`: ids that end a text of this model, in addition to the
    end-of-text token. Raises as `generate` does, at the call.
    """
    writer = Writer(tokenizer, stop, ends)
    ids = encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt
    steps = generate(
        model,
        ids,
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        first_index=index,
        tokenizer=tokenizer,
        draft=draft,
    )
    return _pieces(writer, steps)


def continue_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_tokens: int,
    n: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    ends: Collection[int] = (),
    draft: LanguageModel | None = None,
) -> list[list[str]]:
    """Continuations 0 ... n - 1 of each prompt, in one running batch.

    Each text is what `stream_text` gives for its prompt and index, joined. Raises as it does.
    """
    _check_counts(n, max_tokens)
    writers = [Writer(tokenizer, stop, ends) for _ in range(n * len(prompts))]
    texts = [""] * len(writers)
    n_slots = max(1, min(MAX_BATCH, len(writers)))
    engine = Engine(model, n_slots, forbidden=unused_tokens(model, tokenizer), draft=draft)
    if max_tokens:
        for prompt in prompts:
            ids = encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt
            for index in range(n):
                engine.submit(
                    Request(
                        ids,
                        max_tokens,
                        sampling or Sampling(),
                        seed,
                        index,
                        writers[0].ends,
                    )
                )
    while engine.busy:
        for token in engine.step():
            writer = writers[token.sequence]
            if writer.done:
                continue
            texts[token.sequence] += writer.push(token.id)
            if writer.done and not token.finished:
                engine.cancel(token.sequence)
    texts = [text + writer.flush() for text, writer in zip(texts, writers, strict=True)]
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def continue_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    **options: Any,
) -> list[str]:
    """`continue_texts` of one prompt."""
    return continue_texts(model, tokenizer, [prompt], **options)[0]


def encode_prompt(
    tokenizer: Tokenizer,
    prompt: str,
    begin: int | None = None,
    special_tokens: SpecialTokens = "text",
    *,
    bos: bool = True,
) -> list[int]:
    """The ids of a prompt at the beginning of a text: after `begin`, or after the end-of-text token
    if the tokenizer has one.

    Without `bos` only the prompt's own tokens. Raises UsageError if there is no token at all.
    """
    ids = encode_text(tokenizer, prompt, special_tokens).tolist()
    first = (tokenizer.end_of_text if begin is None else begin) if bos else None
    if first is not None:
        return [first, *ids]
    if not ids:
        unknown = f" that this model's {tokenizer.kind} tokenizer knows" if prompt else ""
        raise UsageError(
            f"the prompt has no character{unknown}: give the model at least one to begin with."
        )
    return ids


def _check_counts(n: int, max_tokens: int) -> None:
    if n < 1:
        raise ConfigError(f"n = {n}: expected 1 or more.")
    if max_tokens < 0:
        raise ConfigError(f"max_tokens = {max_tokens}: expected 0 or more.")


def unused_tokens(model: LanguageModel, tokenizer: Tokenizer | None) -> torch.Tensor | None:
    """Ids of the model that no token has."""
    unused = None if tokenizer is None else unused_ids(tokenizer, model.vocab_size)
    return None if unused is None else torch.from_numpy(unused)


def _pieces(writer: "Writer", steps: Iterator[list[int]]) -> Iterator[str]:
    for (id,) in steps:
        if piece := writer.push(id):
            yield piece
        if writer.done:
            break
    if piece := writer.flush():
        yield piece


class Writer:
    """Ids in, complete characters out, up to an end token or a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], ends: Collection[int] = ()
    ) -> None:
        if isinstance(stop, str) or not all(stop):
            raise ConfigError(f"stop = {stop!r}: expected strings that are not empty.")
        self.done = False
        self.stop_found = False
        end = tokenizer.end_of_text
        self.ends = frozenset(ends) | (frozenset() if end is None else {end})
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""  # may be the beginning of a stop string

    @property
    def n_held(self) -> int:
        """Characters that wait, because they may begin a stop string."""
        return len(self._held)

    def push(self, id: int) -> str:
        if self.done or id in self.ends:
            self.done = True
            return ""
        return self._cut(self._decoder.push(id))

    def flush(self) -> str:
        """What was held back, once nothing comes any more."""
        return "" if self.stop_found else self._cut(self._decoder.flush()) + self._held

    def _cut(self, more: str) -> str:
        text = self._held + more
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.done = self.stop_found = True
            self._held = ""
            return text[: min(found)[1]]
        # The longest end of the text that begins a stop string waits for what comes next.
        n_held = max(
            (n for stop in self._stop for n in range(len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]
