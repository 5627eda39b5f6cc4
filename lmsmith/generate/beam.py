"""Beam search: looks for the most probable continuation instead of drawing one.

    for beam in beam_search(decoder, prompt_ids, n_beams=4, max_tokens=50, ends={end_of_text}):
        print(beam.score, tokenizer.decode(beam.ids))

Each step extends the `n_beams` best unfinished sequences by every token and keeps the best of all
extensions. A sequence is finished at an end token or at `max_tokens`. Finished sequences are
compared by

    score = log-probability / length ** length_penalty

where the length counts the generated tokens with the end token. A penalty above 0 favours longer
sequences (a log-probability is negative), below 0 shorter ones; 0 compares plain
log-probabilities.

The rules, and so the results, are those of transformers' `generate(num_beams=...)`: only the
`n_beams` best extensions of a step may finish, and the search ends when `n_beams` sequences are
finished and no unfinished one can do better. `early_stopping` says what "can" means, as in
transformers:

    False    the best unfinished sequence is not better at its present length (a heuristic: with a
             penalty above 0 a longer one could still win)
    True     as soon as `n_beams` sequences are finished
    "never"  not even if it reached `max_tokens` at no further cost; no better one is missed

The prompt is read once. A beam that continues keeps its slot of the decoder; others are copied.
Nothing is random: of equal extensions, those of the better beam come first, then lower ids.
Log-probabilities are the model's own, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from lmsmith.errors import ConfigError, UsageError
from lmsmith.generate import filters
from lmsmith.generate.engine import window_start
from lmsmith.generate.sampling import broken_logits, cpu_rows

if TYPE_CHECKING:
    from lmsmith.generate.decoders import Decoder


@dataclass(frozen=True)
class Beam:
    """A sequence that beam search found.

    ids              the generated tokens, with the end token if there is one
    log_probability  of all of them
    score            what beams are compared by
    ended            whether it ends with an end token; otherwise it has `max_tokens` tokens
    """

    ids: tuple[int, ...]
    log_probability: float
    score: float
    ended: bool


@dataclass(frozen=True)
class _Running:
    ids: tuple[int, ...]
    log_probability: float
    slot: int  # of the sequence, or of the one that it extends


def beam_search(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    *,
    n_beams: int,
    max_tokens: int,
    n_best: int = 1,
    length_penalty: float = 1.0,
    ends: Collection[int] = (),
    forbidden: Collection[int] = (),
    early_stopping: bool | Literal["never"] = False,
    context_length: int | None = None,
) -> list[Beam]:
    """The `n_best` best continuations that beam search finds, best first; fewer if there are fewer.

    decoder         with at least `n_beams` slots, which are emptied
    ends            ids at which a sequence ends
    forbidden       ids that are never generated: banned ones, and those that no token has
    context_length  of the model; a longer text is read through the window that slides as in
                    `decode.py`. None: no limit

    Raises UsageError for an empty prompt, ConfigError for numbers out of range or if all tokens are
    forbidden, CheckpointError for broken logits.
    """
    _check("n_beams", 1 <= n_beams <= decoder.n_slots, n_beams, f"1 to {decoder.n_slots}")
    _check("max_tokens", max_tokens >= 1, max_tokens, "1 or more")
    _check("n_best", 1 <= n_best <= n_beams, n_best, f"1 to the number of beams, {n_beams}")
    _check("length_penalty", -10 <= length_penalty <= 10, length_penalty, "-10 to 10")
    _check_stopping(early_stopping)
    if not len(prompt_ids):
        raise UsageError("the prompt is empty: give the model at least one token to begin with.")
    n_kept = max(2, 1 + len(set(ends))) * n_beams
    reader = _Reader(decoder, list(prompt_ids), n_beams, n_kept, forbidden, context_length)
    finished, running = list[Beam](), [_Running((), 0.0, 0)]
    try:
        for n in range(1, max_tokens + 1):
            extensions = reader.extensions(running)[:n_kept]
            done = [n == max_tokens or e.ids[-1] in ends for e in extensions]
            finished += [
                _beam(e, n, length_penalty, ends)
                for e, d in zip(extensions[:n_beams], done, strict=False)
                if d
            ]
            finished = sorted(finished, key=lambda beam: -beam.score)[:n_beams]
            running = [e for e, d in zip(extensions, done, strict=True) if not d][:n_beams]
            length = max_tokens if early_stopping == "never" and length_penalty > 0 else n
            if not running or (
                len(finished) == n_beams
                and (
                    early_stopping is True
                    or _score(running[0], length, length_penalty) <= finished[-1].score
                )
            ):
                break
            running = reader.give_slots(running)
    finally:
        reader.free()
    if not finished:
        raise ConfigError("every token that the model gives a probability is forbidden.")
    return finished[:n_best]


def _beam(e: _Running, n: int, length_penalty: float, ends: Collection[int]) -> Beam:
    return Beam(e.ids, e.log_probability, _score(e, n, length_penalty), e.ids[-1] in ends)


def _score(e: _Running, length: int, length_penalty: float) -> float:
    return e.log_probability / length**length_penalty


def _check_stopping(found: object) -> None:
    _check("early_stopping", found in (True, False, "never"), found, 'True, False or "never"')


def _check(name: str, good: bool, found: object, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} = {found}: expected {expected}.")


class _Reader:
    """Reads the beams through the decoder."""

    def __init__(
        self,
        decoder: Decoder,
        prompt: list[int],
        n_beams: int,
        n_kept: int,
        forbidden: Collection[int],
        context_length: int | None,
    ) -> None:
        self.decoder, self.prompt, self.n_beams, self.n_kept = decoder, prompt, n_beams, n_kept
        self.forbidden = np.array(sorted({int(id) for id in forbidden}), np.int64)
        self.context_length = context_length
        self.start = -1  # of the window; nothing is read yet
        self.scratch: filters.Scratch | None = None

    def extensions(self, running: Sequence[_Running]) -> list[_Running]:
        """The best extensions of all beams by a token, best first."""
        length = len(self.prompt) + len(running[0].ids)
        start = window_start(length, self.context_length)
        found: list[_Running] = []
        if start != self.start:
            self.start = start
            for beam in running:
                text = [*self.prompt, *beam.ids][start:]
                logits = self.decoder.prefill(beam.slot, text)
                found += self._of_one(beam, cpu_rows(logits[None])[0])
        else:
            logits = self.decoder.step(
                [beam.slot for beam in running], [beam.ids[-1] for beam in running]
            )
            for beam, row in zip(running, cpu_rows(logits), strict=True):
                found += self._of_one(beam, row)
        return sorted(found, key=lambda extension: -extension.log_probability)

    def _of_one(self, beam: _Running, row: npt.NDArray[Any]) -> list[_Running]:
        """The best extensions of one beam, best first."""
        if self.scratch is None:
            self.scratch = filters.Scratch(len(row))
        z, work = self.scratch.z, self.scratch.work
        z[:] = row
        log_total = filters.log_normalizer(z, work)
        if not math.isfinite(log_total):
            raise broken_logits()
        z[self.forbidden] = -np.inf
        ids = filters.largest(z, work, min(self.n_kept, len(z)))
        ids = ids[np.argsort(-z[ids], kind="stable")]
        return [
            _Running(
                (*beam.ids, int(id)), beam.log_probability + float(z[id] - log_total), beam.slot
            )
            for id in ids
            if z[id] > -np.inf
        ]

    def give_slots(self, running: Sequence[_Running]) -> list[_Running]:
        """Gives each beam a slot of its own: the first extension of a beam keeps its slot, the
        others get copies of it.
        """
        free = sorted(set(range(self.n_beams)) - {beam.slot for beam in running})
        taken: set[int] = set()
        placed = []
        for beam in running:
            slot = beam.slot
            if slot in taken:
                slot = free.pop(0)
                self.decoder.copy(beam.slot, slot)
            taken.add(slot)
            placed.append(_Running(beam.ids, beam.log_probability, slot))
        return placed

    def free(self) -> None:
        for slot in range(self.n_beams):
            self.decoder.free(slot)
