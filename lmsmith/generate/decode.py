"""Generates text token by token, with a KV cache (or the state of a recurrent network).

Each step feeds the newest token and samples the next one. The model's state holds the previous
tokens, so a step costs one position instead of the full text.

**When the context is full.** A Transformer sees at most T = context_length tokens. When one more
would not fit, the window slides: the cache is discarded and the newest T // 2 tokens (at least one)
are read again, as if the text began there. This costs a pass over T // 2 tokens for every
T - T // 2 + 1 new ones, about twice the computation, and the model always sees T // 2 to T tokens.
The start of the window depends only on the length of the text so far, also for a prompt longer than
T. So generating 100 tokens, and then 100 more with the first ones in the prompt, sees the same
windows as generating 200. A model with unbounded context keeps its state indefinitely.

**Randomness.** Sample i uses a generator seeded by (seed, i): it is the same text whether 1 or 100
samples are generated, up to rounding, which may depend on the batch size.

For n samples the prompt is read n times, once per row.
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from lmsmith.errors import ConfigError, UsageError
from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.sampling import Sampling, generator_for, sample
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.control import SpecialTokens, encode_text
from lmsmith.tokens.tokenizer import StreamDecoder, Tokenizer, unused_ids

_TOKENS_AT_ONCE = 1 << 14  # a longer prompt is read in pieces of this many tokens


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
) -> Iterator[list[int]]:
    """Generates n continuations of `prompt_ids`; each step yields their n new ids.

    Ends after `max_tokens` steps, or when all n have sampled `stop_id`; a continuation that has
    sampled it repeats it. Sample indices start at `first_index`: n = 1 with `first_index` = 3 is
    sample 3. Between steps, and when the iterator is closed, the model is in its previous mode
    (training or evaluation). Ids without a token in `tokenizer` are never sampled; without a
    tokenizer, all ids of the model may be.

    Raises UsageError for an empty prompt (use the end-of-text token instead), ConfigError for
    numbers out of range, CheckpointError for logits that are not finite.
    """
    sampling = sampling or Sampling()
    if n < 1 or max_tokens < 0:
        raise ConfigError(
            f"n = {n}, max_tokens = {max_tokens}: expected n of at least 1 and max_tokens of at "
            "least 0."
        )
    if len(prompt_ids) == 0:
        raise UsageError("the prompt is empty: give at least one token.")
    generators = [generator_for(seed, first_index + i) for i in range(n)]
    unused = None if tokenizer is None else unused_ids(tokenizer, model.vocab_size)
    forbidden = None if unused is None else torch.from_numpy(unused)
    return _steps(model, prompt_ids, max_tokens, sampling, generators, stop_id, forbidden)


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
) -> Iterator[str]:
    """Yields sample `index` of the continuation of `prompt`, without the prompt, in pieces as soon
    as they are final.

    A piece never ends within a character or with a possible beginning of a stop string. The text
    ends before the stop string that is completed first, at the end-of-text token, or after
    `max_tokens`. `prompt`: text, or its ids (`TextModel.encode`). `ends`: ids that end a text,
    besides the end-of-text token. Raises as `generate` does.
    """
    writer = _Writer(tokenizer, stop, ends)
    steps = generate(
        model,
        encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        first_index=index,
        tokenizer=tokenizer,
    )
    return _pieces(writer, steps)


def continue_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_tokens: int,
    n: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    ends: Collection[int] = (),
) -> list[str]:
    """Samples 0 to n - 1 of the continuation of `prompt`, computed as one batch. Each is the joined
    text that `stream_text` yields for its index.
    """
    writers = [_Writer(tokenizer, stop, ends) for _ in range(n)]
    texts = [""] * n
    for ids in generate(
        model,
        encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt,
        max_tokens=max_tokens,
        n=n,
        sampling=sampling,
        seed=seed,
        tokenizer=tokenizer,
    ):
        for i, (writer, id) in enumerate(zip(writers, ids, strict=True)):
            texts[i] += writer.push(id)
        if all(writer.done for writer in writers):
            break
    return [text + writer.flush() for text, writer in zip(texts, writers, strict=True)]


def encode_prompt(
    tokenizer: Tokenizer,
    prompt: str,
    begin: int | None = None,
    special_tokens: SpecialTokens = "text",
    *,
    bos: bool = True,
) -> list[int]:
    """Encodes a prompt after `begin`, or after the end-of-text token if the tokenizer has one.

    `bos=False`: only the prompt's own tokens. Raises UsageError if there are no ids.
    """
    ids = encode_text(tokenizer, prompt, special_tokens).tolist()
    first = (tokenizer.end_of_text if begin is None else begin) if bos else None
    if first is not None:
        return [first, *ids]
    if not ids:
        unknown = f" that this model's {tokenizer.kind} tokenizer knows" if prompt else ""
        raise UsageError(f"the prompt has no character{unknown}: give at least one.")
    return ids


def window_start(length: int, context_length: int | None) -> int:
    """The start of the window for a text of `length` tokens, under the sliding rule above."""
    if context_length is None:
        return 0
    hop = context_length + 1 - max(1, context_length // 2)
    return max(0, -(-(length - context_length) // hop) * hop)


def _steps(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    stop_id: int | None,
    forbidden: torch.Tensor | None,
) -> Iterator[list[int]]:
    assert all(0 <= id < model.vocab_size for id in prompt_ids)
    T, n = model.context_length, len(generators)
    prompt_length = len(prompt_ids)
    window = torch.tensor(prompt_ids).expand(n, -1)
    unread, start, state = window, -1, None
    stopped = torch.zeros(n, dtype=torch.bool)
    for length in range(prompt_length, prompt_length + max_tokens):
        with inference(model):
            if window_start(length, T) != start:
                start = window_start(length, T)
                unread = window = window[:, start - length :]
                state = model.new_state(n)
            for piece in unread.to(model.device).split(max(1, _TOKENS_AT_ONCE // n), dim=1):
                logits = model.next_logits(piece, state)
        ids = sample(logits, sampling, generators, forbidden)
        if stop_id is not None:
            ids[stopped] = stop_id
            stopped |= ids == stop_id
        unread = ids[:, None]
        if T is not None:  # with unbounded context, no window is read again
            window = torch.cat([window, unread], dim=1)
        yield ids.tolist()
        if stopped.all():
            return


def _pieces(writer: "_Writer", steps: Iterator[list[int]]) -> Iterator[str]:
    for (id,) in steps:
        if piece := writer.push(id):
            yield piece
        if writer.done:
            break
    if piece := writer.flush():
        yield piece


class _Writer:
    """Converts ids to complete characters, up to the end of the text or a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], ends: Collection[int] = ()
    ) -> None:
        if isinstance(stop, str) or not all(stop):
            raise ConfigError(f"stop = {stop!r}: expected a list of strings that are not empty.")
        self.done = False
        self._stop_found = False
        self._ends = {tokenizer.end_of_text, *ends}
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""  # may be the beginning of a stop string

    def push(self, id: int) -> str:
        if self.done or id in self._ends:
            self.done = True
            return ""
        return self._cut(self._decoder.push(id))

    def flush(self) -> str:
        """The remaining text, once there are no more ids."""
        return "" if self._stop_found else self._cut(self._decoder.flush()) + self._held

    def _cut(self, more: str) -> str:
        text = self._held + more
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.done = self._stop_found = True
            self._held = ""
            return text[: min(found)[1]]
        # Holds back the longest suffix that may be the beginning of a stop string.
        n_held = max(
            (n for stop in self._stop for n in range(len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]
