"""Text from a model: one token after another, with the keys and values of past positions kept.

Each step reads the one new token and draws the next; the model's state holds what was read before.
A step then costs one position instead of the whole text.

**When the context is full.** A Transformer sees at most T = context_length tokens. When one more
would not fit, its window slides: the state is thrown away and the newest T // 2 tokens (at least
one) are read again as if the text began there. That costs one pass over T // 2 tokens for every T -
T // 2 + 1 new ones, about doubling the arithmetic, and the model always sees between T // 2 and T
tokens. Where the window starts depends on the length of the text so far alone, so a prompt longer
than T is read from where the window would stand had it been generated: to generate 100 tokens, and
then 100 more with the first ones as part of the prompt, sees the same windows as to generate 200.
The state of a model whose context has no bound is carried on for ever.

**Randomness.** Sample i draws from a generator made from (seed, i): it is the same text whether 1
or 100 are asked for (to the rounding of the model's own arithmetic, which may differ with the size
of a batch).

The prompt of n samples is read n times, once a row.
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from lmsmith.errors import ConfigError, UsageError
from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.sampling import Sampling, generator_for, sample
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.control import SpecialTokens, encode_text
from lmsmith.tokens.tokenizer import StreamDecoder, Tokenizer, unused_ids

_TOKENS_AT_ONCE = 1 << 14  # of a prompt: a longer one is read in pieces


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
    """Continues `prompt_ids` in n ways; each step yields the n new ids.

    Ends after `max_tokens` steps, or when all n have drawn `stop_id`; one that has drawn it goes on
    yielding it. Sample indices count from `first_index`: n = 1 with `first_index` = 3 is sample 3.
    Between steps, and when the iterator is closed, the model is in the mode it was in. Ids that no
    token of `tokenizer` has are never drawn; without a tokenizer every id of the model counts as a
    token.

    Raises UsageError for an empty prompt (a caller without one begins with the end-of-text token),
    ConfigError for numbers out of range, CheckpointError for logits that are not numbers.
    """
    sampling = sampling or Sampling()
    if n < 1 or max_tokens < 0:
        raise ConfigError(
            f"n = {n}, max_tokens = {max_tokens}: wanted n of 1 or more, max_tokens of 0 or more."
        )
    if len(prompt_ids) == 0:
        raise UsageError("the prompt is empty: give the model at least one token to begin with.")
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
    """The continuation number `index` of `prompt`, in pieces as they become certain; without the
    prompt itself.

    A piece never ends within a character, nor with what may be the beginning of a stop string. The
    text ends before the stop string that is complete first, at the end-of-text token, or after
    `max_tokens`. `prompt`: text, or the ids of it (`TextModel.encode`). `ends`: ids at which texts
    of this model end, besides the end-of-text token. Raises as `generate` does.
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
    """Continuations 0 .. n - 1 of `prompt`, computed as one batch: what `stream_text` gives for
    each index, joined.
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
    """The prompt as the beginning of a text: after `begin`, or the end-of-text token where the
    tokenizer has one.

    Without `bos` it is the prompt's own tokens alone. Raises UsageError for a prompt without a
    token where nothing stands before it.
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


def window_start(length: int, context_length: int | None) -> int:
    """Where the model begins to read a text of `length` tokens, under the sliding rule above."""
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
        if T is not None:  # else no window will ever be read again
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
    """Ids in, whole characters out, up to the end of text or a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], ends: Collection[int] = ()
    ) -> None:
        if isinstance(stop, str) or not all(stop):
            raise ConfigError(f"stop = {stop!r}: wanted strings that are not empty.")
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
        """What was held back, once nothing comes any more."""
        return "" if self._stop_found else self._cut(self._decoder.flush()) + self._held

    def _cut(self, more: str) -> str:
        text = self._held + more
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.done = self._stop_found = True
            self._held = ""
            return text[: min(found)[1]]
        # The longest end of the text that begins a stop string waits for what comes next.
        n_held = max(
            (n for stop in self._stop for n in range(len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]
