"""Continuous batching: sequences join and leave a running batch.

    engine = Engine(model, n_slots=16)
    number = engine.submit(Request(ids, max_tokens=100))
    while engine.busy:
        for token in engine.step():
            ...                                 # token.sequence is a number that submit returned

Waiting requests take free slots. Each step then reads a part of the prompts that are not read yet,
and the last token of all running sequences, in one pass of the model if the decoder can. It gives
one token to every sequence that runs, and to those whose prompt is complete (with drafts: at least
one). So a long prompt delays running sequences by a part of it at a time, and a short one that
arrives beside it gets its first token at once. Equal prompts are read once. A sequence leaves at
one of its end tokens, after `max_tokens`, or when it is cancelled, and its slot is free for the
next step.

**A full context.** A Transformer sees at most T = context_length tokens. When one more would not
fit, the window slides: the newest T // 2 tokens (at least one) are read again as if the text began
there. That costs one prefill of T // 2 tokens for every T - T // 2 + 1 new ones, about twice the
arithmetic, and the model always sees between T // 2 and T tokens. The start of the window depends
only on the length of the text, so a prompt longer than T is read from where the window would start
if the text had been generated: generating 100 tokens, and then 100 more from the longer prompt,
sees the same windows as generating 200. Models without a bounded context never slide.

**Drafts.** With a `draft` model, cheap and with the same tokenizer (an n-gram model), each step
proposes DRAFT_TOKENS tokens per sequence, and the model reads them all in one pass. A proposed
token is kept if it is the one that the sequence draws at that place anyway, from the model's own
distribution with its own random number; the first that is not ends the step. So drafts change the
speed and never the text, to the last bit. (Speculative decoding, Leviathan et al. 2023, with the
acceptance rule for a deterministic draft.)

**Randomness** is a function of the request's (seed, index). On a CPU, a sequence is the same alone
and beside others, to the last bit, because decoders compute each slot independently of the others.
On a GPU, the last bits of its logits can depend on the number of rows (`batched.py`), so a draw
between two nearly equal tokens can too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lmsmith.errors import ConfigError, UsageError
from lmsmith.generate.decoders import Decoder, Prompt, decoder_for
from lmsmith.generate.draft import DRAFT_TOKENS, MAX_ROWS, Drafter
from lmsmith.generate.sampling import (
    Choice,
    Constraint,
    Drawn,
    Sampler,
    Sampling,
    choose,
    generator_for,
)
from lmsmith.models.interface import LanguageModel


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it."""

    ids: Sequence[int]  # at least one
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    index: int = 0  # of the sample: the same seed has any number of samples
    ends: Collection[int] = ()  # ids that end the sequence
    log_probabilities: bool = False
    drawn: bool = False  # report the distribution that each token was drawn from
    constraint: Constraint | None = None  # of this sequence alone


@dataclass(frozen=True)
class Token:
    """One token of a sequence."""

    sequence: int
    id: int
    log_probability: float  # under the model, before sampling settings; NaN if not asked for
    alternatives: tuple[tuple[int, float], ...]  # likeliest ids with their log-probabilities
    finished: str  # "", or why the sequence ends: "end" (an end token), "length"
    drawn: Drawn | None = None  # if asked for


@dataclass
class _Sequence:
    number: int
    request: Request
    tokens: list[int]
    sampler: Sampler
    slot: int = -1
    start: int = 0  # of the window
    prompt: Prompt | None = None  # while it is being read

    @property
    def n_new(self) -> int:
        return len(self.tokens) - len(self.request.ids)


class Engine:
    """Runs any number of requests on a model, up to `n_slots` at a time."""

    def __init__(
        self,
        model: LanguageModel,
        n_slots: int = 16,
        *,
        forbidden: Tensor | None = None,
        draft: LanguageModel | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        """`forbidden`: ids that are never drawn. `draft`: proposes tokens. `prefix_bytes`: memory
        for prefixes that prompts share (`prefix.py`); it changes the speed and never the text.

        Raises UsageError for a draft that the model cannot use.
        """
        self.model = model
        rows = min(MAX_ROWS, n_slots * (1 + DRAFT_TOKENS)) if draft else 0
        self.decoder: Decoder = decoder_for(model, n_slots, rows, prefix_bytes)
        self._drafter = Drafter.of(draft, self.decoder, model) if draft else None
        self._forbidden = forbidden
        self._free = list(reversed(range(n_slots)))
        self._waiting: deque[_Sequence] = deque()
        self._reading: list[_Sequence] = []  # have a slot; their prompt is not complete yet
        self._running: list[_Sequence] = []
        self._next_number = 0

    @property
    def busy(self) -> bool:
        """Whether a sequence is running or waiting."""
        return bool(self._running or self._reading or self._waiting)

    @property
    def reads_prompts(self) -> bool:
        """Whether the next step reads a part of a prompt, as far as is known now."""
        return bool(self._reading or self._waiting)

    @property
    def unfinished(self) -> list[int]:
        """The numbers of the sequences that are running or waiting."""
        return [s.number for s in (*self._running, *self._reading, *self._waiting)]

    @property
    def n_tokens_found(self) -> int:
        """Tokens of prompts that were not read again: found in the prefix cache or in a slot."""
        prefixes = getattr(self.decoder, "prefixes", None)
        n = prefixes.n_tokens_found if prefixes else 0
        return n + getattr(self.decoder, "n_tokens_copied", 0)

    def submit(self, request: Request) -> int:
        """Adds a request to the queue and returns the number of its sequence.

        Raises UsageError for an empty prompt, ConfigError for a number out of range.
        """
        if request.max_tokens < 1:
            raise ConfigError(f"max_tokens = {request.max_tokens}: expected 1 or more.")
        if not len(request.ids):
            raise UsageError("the prompt is empty: give the model at least one token to continue.")
        assert all(0 <= id < self.model.vocab_size for id in request.ids)
        generator = generator_for(request.seed, request.index)
        sampler = Sampler(
            request.sampling, generator, self._forbidden, request.ids, request.constraint
        )
        sequence = _Sequence(self._next_number, request, list(request.ids), sampler)
        self._next_number += 1
        self._waiting.append(sequence)
        return sequence.number

    def cancel(self, number: int) -> None:
        """Drops a sequence. A number that has finished is no error."""
        for sequences in (self._running, self._reading):
            for sequence in sequences:
                if sequence.number == number:
                    sequences.remove(sequence)
                    self._free_slot(sequence)
                    return
        self._waiting = deque(s for s in self._waiting if s.number != number)

    def step(self) -> list[Token]:
        """One token for each sequence whose prompt is complete. Empty if there is none, and as long
        as the first parts of long prompts are read.
        """
        before = list(self._running)
        alone = before and not self._waiting and not self._reading
        if self._drafter and alone and self._can_draft(before):
            return self._step_with_drafts(before, self._drafter)
        self._admit()
        self._slide()
        running = list(self._running)
        if not running and not self._reading:
            return []
        logits = self.decoder.read(
            [s.prompt for s in self._reading],
            [s.slot for s in running],
            [s.tokens[-1] for s in running],
        )
        new = [s for s in self._reading if s.prompt and s.prompt.done]
        sequences = new + running
        if not sequences:
            return []
        for sequence in new:
            sequence.prompt = None
        self._reading = [s for s in self._reading if s.prompt]
        self._running += new
        choices = choose(
            logits,
            [sequence.sampler for sequence in sequences],
            with_log_probabilities=any(s.request.log_probabilities for s in sequences),
            with_drawn=any(s.request.drawn for s in sequences),
        )
        return [self._take(*pair) for pair in zip(sequences, choices, strict=True)]

    def _take(self, sequence: _Sequence, choice: Choice) -> Token:
        """Adds a drawn token to its sequence."""
        sequence.tokens.append(choice.id)
        sequence.sampler.add(choice.id)
        finished = self._finished(sequence, choice.id)
        if finished:
            self._leave(sequence)
        return Token(
            sequence.number,
            choice.id,
            choice.log_probability,
            choice.alternatives,
            finished,
            choice.drawn,
        )

    def _can_draft(self, sequences: list[_Sequence]) -> bool:
        """Whether all sequences and their drafts fit into one pass, and no window slides in it."""
        T = self.model.context_length
        assert T is not None
        room = min(T - (len(s.tokens) - s.start) for s in sequences)
        return room > DRAFT_TOKENS and len(sequences) * (1 + DRAFT_TOKENS) <= MAX_ROWS

    def _step_with_drafts(self, sequences: list[_Sequence], drafter: Drafter) -> list[Token]:
        slots: list[int] = []
        ids: list[int] = []
        drafts = [drafter.propose(s.tokens) for s in sequences]
        for sequence, draft in zip(sequences, drafts, strict=True):
            slots += [sequence.slot] * (1 + len(draft))
            ids += [sequence.tokens[-1], *draft]
        logits = self.decoder.step(slots, ids)
        tokens: list[Token] = []
        row = 0
        for sequence, draft in zip(sequences, drafts, strict=True):
            for i, expected in enumerate([*draft, None]):
                choice = choose(
                    logits[row + i : row + i + 1],
                    [sequence.sampler],
                    with_log_probabilities=sequence.request.log_probabilities,
                    with_drawn=sequence.request.drawn,
                )[0]
                tokens.append(self._take(sequence, choice))
                if tokens[-1].finished or choice.id != expected:
                    break
            if not tokens[-1].finished:
                drafter.rewind(sequence.slot, len(draft) - i)
            row += 1 + len(draft)
        return tokens

    def _admit(self) -> None:
        """Gives free slots to waiting sequences."""
        while self._free and self._waiting:
            sequence = self._waiting.popleft()
            sequence.slot = self._free.pop()
            self._open(sequence)

    def _slide(self) -> None:
        """Running sequences whose window slides read it again, like a prompt."""
        T = self.model.context_length
        for sequence in list(self._running):
            if window_start(len(sequence.tokens), T) != sequence.start:
                self._running.remove(sequence)
                self._open(sequence)

    def _open(self, sequence: _Sequence) -> None:
        """Begins to read a sequence's window from its start."""
        sequence.start = window_start(len(sequence.tokens), self.model.context_length)
        ids = sequence.tokens[sequence.start :]
        sequence.prompt = self.decoder.open(sequence.slot, ids)
        self._reading.append(sequence)

    def _finished(self, sequence: _Sequence, id: int) -> str:
        if id in sequence.request.ends:
            return "end"
        return "length" if sequence.n_new >= sequence.request.max_tokens else ""

    def _leave(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._free_slot(sequence)

    def _free_slot(self, sequence: _Sequence) -> None:
        self.decoder.free(sequence.slot)
        self._free.append(sequence.slot)


def window_start(length: int, context_length: int | None) -> int:
    """Where the model begins to read a text of `length` tokens, under the sliding rule above."""
    if context_length is None:
        return 0
    hop = context_length + 1 - max(1, context_length // 2)
    return max(0, -(-(length - context_length) // hop) * hop)
