"""Samples groups of answers and judges them: a function of the weights, the seed and the number of
the rollout.

    rollout = roll_out(sampler, task, judge, config, seed=1, number=0)

Each prompt is read once; its G answers continue it in one running batch of our decoder. Answer k of
a rollout draws from a generator of (seed, number, k) alone, so a rollout that was interrupted gives
the same answers when it is repeated.

With dynamic sampling (Yu et al. 2025, DAPO, section 3.2), groups whose rewards are all equal have
no gradient and are replaced by those of further prompts, at most `MOST_TRIES` times as many. What
is still lacking then is filled with groups without signal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmsmith.chat.masks import prompt_ids
from lmsmith.chat.prepare import Speaker
from lmsmith.chat.rl.task import Judge, Problem, RLTask
from lmsmith.errors import DataError
from lmsmith.generate.engine import Engine, Request, Token
from lmsmith.generate.sampling import Sampling
from lmsmith.models.interface import LanguageModel

MOST_TRIES = 4
"""Prompts tried per group of a batch, with dynamic sampling."""

N_SLOTS = 128
"""Answers that are decoded at once."""


@dataclass(frozen=True)
class Answer:
    """A sampled answer. `finished`: whether it ended with an end token, and not at the limit."""

    ids: tuple[int, ...]
    text: str
    log_probabilities: tuple[float, ...]
    finished: bool
    kept: npt.NDArray[np.uint8] | None = None  # (tokens, bytes)


@dataclass(frozen=True)
class Group:
    """A problem with its prompt's ids, its answers and their rewards."""

    problem: Problem
    prompt: tuple[int, ...]
    answers: tuple[Answer, ...]
    rewards: tuple[float, ...] = ()

    @property
    def has_signal(self) -> bool:
        """Whether its rewards differ."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True)
class Sampler:
    """A model that samples answers, and how.

    `ends`: ids that end an answer. `forbidden`: ids that are never drawn.
    """

    model: LanguageModel
    speaker: Speaker
    ends: frozenset[int]
    sampling: Sampling
    max_tokens: int
    forbidden: Tensor | None = None

    def with_sampling(self, sampling: Sampling) -> Sampler:
        return dataclasses.replace(self, sampling=sampling)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        """The ids of a problem's prompt. Raises DataError if no answer fits behind it."""
        return prompt_of(problem, self.speaker, self.max_tokens, self.model.context_length)

    def answers(self, prompts: Sequence[tuple[int, ...]], n: int, seed: int) -> list[list[Answer]]:
        """n answers to each prompt. Raises CheckpointError if logits are not numbers."""
        requests = [
            Request(ids, self.max_tokens, self.sampling, seed, place * n + k, self.ends, drawn=True)
            for place, ids in enumerate(prompts)
            for k in range(n)
        ]
        drawn = decoded(self.model, requests, self.forbidden)
        found = [self._answer(tokens) for tokens in drawn]
        return [found[start : start + n] for start in range(0, len(found), n)]

    def _answer(self, tokens: Sequence[Token]) -> Answer:
        ids = [token.id for token in tokens]
        finished = tokens[-1].finished == "end"
        return Answer(
            tuple(ids),
            self.speaker.tokenizer.decode(ids[:-1] if finished else ids),
            tuple(token.drawn.log_probability for token in tokens if token.drawn),
            finished,
            kept_of(tokens),
        )


def prompt_of(
    problem: Problem, speaker: Speaker, max_tokens: int, context_length: int | None
) -> tuple[int, ...]:
    """The ids of a problem's prompt. Raises DataError if an answer of `max_tokens` does not fit
    behind it.
    """
    ids = prompt_ids(problem.messages, speaker.template, speaker.tokenizer)
    if context_length is not None and len(ids) + max_tokens > context_length:
        where = f"{problem.where}: " if problem.where else ""
        raise DataError(
            f"{where}the prompt {problem.question[:100]!r} has {len(ids):,} tokens, and an "
            f"answer may have {max_tokens:,}, but the model's context is {context_length:,}. Set "
            "a smaller --rl.max_tokens, use shorter prompts, or a model with a longer context."
        )
    return tuple(ids)


@dataclass(frozen=True)
class Rollout:
    """The groups of one batch. `n_tried`, `n_without_signal`: groups sampled for it, and those of
    them whose rewards were equal.
    """

    groups: tuple[Group, ...]
    n_tried: int
    n_without_signal: int

    @property
    def answers(self) -> list[Answer]:
        return [answer for group in self.groups for answer in group.answers]

    @property
    def rewards(self) -> Tensor:
        """(P, G) float64."""
        return torch.tensor([group.rewards for group in self.groups], dtype=torch.float64)


def roll_out(
    sampler: Sampler,
    task: RLTask,
    judge: Judge,
    *,
    n_prompts: int,
    group_size: int,
    seed: int,
    number: int,
    dynamic: bool = False,
) -> Rollout:
    """Rollout `number` (from 0) of a run. Raises DataError for a prompt that is too long,
    TrainingError for a reward that fails.
    """
    tries = MOST_TRIES if dynamic else 1
    kept: list[Group] = []
    spare: list[Group] = []
    n_tried = 0
    for attempt in range(tries):
        first = (number * tries + attempt) * n_prompts
        problems = [task.problem(seed, first + n) for n in range(n_prompts)]
        drawn_from = mixed_seed(seed, number, attempt)
        for group in judged(sampler, judge, problems, group_size, drawn_from):
            (kept if group.has_signal or not dynamic else spare).append(group)
        n_tried += n_prompts
        if len(kept) >= n_prompts:
            break
    groups = [*kept, *spare][:n_prompts]
    n_without = len(spare) + sum(not group.has_signal for group in kept)
    return Rollout(tuple(groups), n_tried, n_without)


def decoded(
    model: LanguageModel, requests: Sequence[Request], forbidden: Tensor | None = None
) -> list[list[Token]]:
    """The tokens of each request, all decoded in one running batch."""
    if not requests:
        return []
    engine = Engine(model, min(N_SLOTS, len(requests)), forbidden=forbidden)
    found: list[list[Token]] = [[] for _ in requests]
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for token in engine.step():
            found[token.sequence].append(token)
    return found


def random_rollout(
    model: LanguageModel, sampling: Sampling, n_prompts: int, group_size: int, n_tokens: int
) -> Rollout:
    """A rollout of random prompts with answers of `n_tokens` and random rewards, for measuring how
    long a step takes.
    """
    draw = np.random.default_rng(0)
    room = (model.context_length or 4 * n_tokens) - n_tokens
    length = max(1, min(32, room))
    groups = []
    for _ in range(n_prompts):
        prompt = tuple(draw.integers(model.vocab_size, size=length).tolist())
        requests = [
            Request(prompt, n_tokens, sampling, 0, k, drawn=True) for k in range(group_size)
        ]
        answers = [
            Answer(
                tuple(token.id for token in tokens),
                "",
                tuple(token.drawn.log_probability for token in tokens if token.drawn),
                finished=True,
                kept=kept_of(tokens),
            )
            for tokens in decoded(model, requests)
        ]
        rewards = tuple(draw.random(group_size).tolist())
        groups.append(Group(Problem.of("", ""), prompt, tuple(answers), rewards))
    return Rollout(tuple(groups), n_prompts, 0)


def kept_of(tokens: Sequence[Token]) -> npt.NDArray[np.uint8] | None:
    """The ids that truncation kept at each token, as bits; None without truncation."""
    kept = [token.drawn.kept for token in tokens if token.drawn and token.drawn.kept is not None]
    return np.stack(kept) if kept else None


def judged(
    sampler: Sampler, judge: Judge, problems: Sequence[Problem], group_size: int, seed: int
) -> list[Group]:
    """A group of answers to each problem, with rewards."""
    prompts = [sampler.prompt(problem) for problem in problems]
    found = []
    for problem, prompt, answers in zip(
        problems, prompts, sampler.answers(prompts, group_size, seed), strict=True
    ):
        rewards = tuple(judge(problem, answer.text) for answer in answers)
        found.append(Group(problem, prompt, tuple(answers), rewards))
    return found


def mixed_seed(seed: int, *key: int) -> int:
    """A seed of 63 bits from several numbers."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)
