"""Rollouts: what the sampler drew from is what the trainer differentiates."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.chat.prepare import Speaker
from lmsmith.chat.rl.grpo import Clipping, advantages, policy_loss, token_weights
from lmsmith.chat.rl.policy import log_probabilities, unpacked
from lmsmith.chat.rl.rollouts import Answer, Group, Sampler, roll_out
from lmsmith.chat.rl.rows import Rows
from lmsmith.chat.rl.task import Judge, Problem, RLTask
from lmsmith.chat.rl.tasks import ARITHMETIC
from lmsmith.chat.templates import ChatTemplate, known
from lmsmith.config import MODEL_KINDS
from lmsmith.errors import DataError
from lmsmith.generate.sampling import Sampling
from lmsmith.models.interface import NeuralModel
from lmsmith.targets import IGNORED
from lmsmith.tokens.extended import with_special_tokens
from lmsmith.tokens.tokenizer import ByteTokenizer

SETTINGS = {
    "plain": Sampling(),
    "temperature": Sampling(temperature=0.7),
    "top-k": Sampling(top_k=5),
    "top-p": Sampling(top_p=0.8),
    "min-p": Sampling(min_p=0.1),
    "all": Sampling(temperature=1.4, top_k=20, top_p=0.9, min_p=0.01),
}


def a_sampler(kind: str = "gpt", sampling: Sampling | None = None, **changes: Any) -> Sampler:
    tokenizer = with_special_tokens(ByteTokenizer(end_of_text=True), known("lmsmith").tokens)
    template = ChatTemplate.named("lmsmith", tokenizer)
    sizes = {"n_layer": 2, "d_model": 32, "context_length": 64, "vocab_size": 300}
    config = MODEL_KINDS.get(kind)(**sizes | ({"n_head": 2} if kind == "gpt" else {}) | changes)
    model = config.build()
    assert isinstance(model, NeuralModel)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():  # far from uniform
            p.normal_(0, 0.3, generator=generator)
    forbidden = torch.arange(tokenizer.vocab_size, 300)
    speaker = Speaker(tokenizer, template)
    return Sampler(model, speaker, frozenset([10]), sampling or Sampling(), 8, forbidden)


def rolled(sampler: Sampler, seed: int = 3, number: int = 0, **changes: Any) -> Any:
    options: dict[str, Any] = {"n_prompts": 3, "group_size": 4} | changes
    judge = Judge.of(["digits"])
    return roll_out(sampler, ARITHMETIC, judge, seed=seed, number=number, **options)


@pytest.mark.parametrize("kind", ["gpt", "rnn"])
@pytest.mark.parametrize("name", SETTINGS)
def test_sampler_and_trainer_have_the_same_log_probabilities(name: str, kind: str) -> None:
    """Also against the definition: the sampler's own distribution at each position."""
    sampler = a_sampler(kind, SETTINGS[name])
    rows = Rows.of(rolled(sampler).groups)
    kept = rows.kept if sampler.sampling.filters else None
    model: Any = sampler.model
    temperature = sampler.sampling.temperature
    found = log_probabilities(
        model, rows.inputs, rows.targets, temperature, kept, sampler.forbidden
    )
    assert (rows.n_tokens > 1).any()
    assert float((found.detach().double() - rows.old).abs().max()) < 1e-5
    if sampler.sampling.filters:  # the distribution without truncation is another one
        other = log_probabilities(
            model, rows.inputs, rows.targets, temperature, None, sampler.forbidden
        )
        assert float((other.detach().double() - rows.old).abs().max()) > 1e-2
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_recorded_probabilities_are_those_that_generate_draws_from(name: str) -> None:
    from lmsmith.generate.sampling import Sampler as Chooser
    from lmsmith.generate.sampling import distributions

    sampler = a_sampler("gpt", SETTINGS[name])
    group = rolled(sampler).groups[0]
    model: Any = sampler.model
    for answer in group.answers:
        for n, id in enumerate(answer.ids):
            with torch.no_grad():
                logits = model(torch.tensor([[*group.prompt, *answer.ids[:n]]]))[0, -1:]
            chooser = Chooser(SETTINGS[name], torch.Generator(), sampler.forbidden)
            p = distributions(logits, [chooser])[0]
            assert math.log(p[id]) == pytest.approx(answer.log_probabilities[n], abs=1e-5)
            if answer.kept is not None:
                bits = unpacked(torch.from_numpy(answer.kept[n : n + 1]), len(p))[0]
                assert bits.tolist() == (p > 0).tolist()


def test_a_rollout_is_a_function_of_seed_and_number() -> None:
    sampler = a_sampler()
    first, again = rolled(sampler), rolled(sampler)
    assert first == again
    assert rolled(sampler, number=1) != first
    assert rolled(sampler, seed=4) != first


def test_an_answer_does_not_depend_on_the_others_of_its_batch() -> None:
    sampler = a_sampler()
    two, three = (
        sampler.answers([sampler.prompt(ARITHMETIC.problem(1, n)) for n in range(k)], 2, seed=5)
        for k in (2, 3)
    )
    assert three[:2] == two


def test_changed_weights_are_read_at_the_next_rollout() -> None:
    """Decoders keep copies of some weights; a new rollout must not use old ones."""
    sampler = a_sampler()
    before = rolled(sampler)
    model: Any = sampler.model
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05
    after = rolled(sampler)
    assert before != after
    rows = Rows.of(after.groups)
    found = log_probabilities(model, rows.inputs, rows.targets, 1.0, None, sampler.forbidden)
    assert float((found.detach().double() - rows.old).abs().max()) < 1e-5


def test_rows_have_the_answers_and_nothing_else() -> None:
    rollout = rolled(a_sampler())
    rows = Rows.of(rollout.groups, pad=7)
    for row, answer in enumerate(rollout.answers):
        group = rollout.groups[row // 4]
        assert rows.targets[row][rows.targets[row] != IGNORED].tolist() == list(answer.ids)
        ids = [*group.prompt, *answer.ids][:-1]
        assert rows.inputs[row, : len(ids)].tolist() == ids
        assert (rows.inputs[row, len(ids) :] == 7).all()
    parts = [rows.part(start, end) for start, end in ((0, 5), (5, 10), (10, 12))]
    for name in ("inputs", "old", "kept", "n_tokens"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(rows, name))


class Even(RLTask):
    """Half of the problems have rewards that differ."""

    name = "even"

    def problem(self, seed: int, index: int, *, held_out: bool = False) -> Problem:
        return Problem.of(f"{index}", index % 2)


def test_one_step_makes_the_rewarded_answer_and_its_end_more_likely() -> None:
    """The policy gradient of two answers, the first of them right, with a small step of SGD."""
    sampler = a_sampler()
    tokenizer, prompt = sampler.speaker.tokenizer, sampler.prompt(ARITHMETIC.problem(0, 0))
    answers = tuple(
        Answer((*(int(i) for i in tokenizer.encode(text)), 10), text, (0.0,) * 3, finished=True)
        for text in ("46", "47")
    )
    rows = Rows.of([Group(ARITHMETIC.problem(0, 0), prompt, answers, (1.0, 0.0))])
    model: Any = sampler.model

    def log_p() -> torch.Tensor:
        return log_probabilities(model, rows.inputs, rows.targets, 1.0, None, sampler.forbidden)

    before = log_p()
    assert len(before) == 6  # two digits and the end of each answer
    advantage = advantages(torch.tensor([[1.0, 0.0]]), "group").flatten()
    weight = token_weights(rows.n_tokens, torch.ones(2, dtype=torch.bool), "sum", 8)
    arguments = rows.per_token(advantage), rows.per_token(weight).float()
    loss, _ = policy_loss(before, before.detach(), *arguments, Clipping())
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-6 * p.grad
        change = log_p() - before
    right, wrong = change[:3].sum(), change[3:].sum()
    assert float(right - wrong) > 0
    assert float(change[2] - change[5]) != 0  # the end token has a gradient, too


def test_dynamic_sampling_replaces_groups_without_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, n = a_sampler(), [0]

    def half(problem: Problem, answer: str) -> float:
        n[0] += 1
        return float(n[0] % 2 == 0 and problem.truth == 1)

    judge = Judge((("half", 1.0, half),))
    options: dict[str, Any] = {"n_prompts": 4, "group_size": 2, "seed": 1, "number": 0}
    plain = roll_out(sampler, Even(), judge, **options)
    assert [group.has_signal for group in plain.groups] == [False, True] * 2
    assert (plain.n_tried, plain.n_without_signal) == (4, 2)
    dynamic = roll_out(sampler, Even(), judge, dynamic=True, **options)
    assert all(group.has_signal for group in dynamic.groups)
    assert (dynamic.n_tried, dynamic.n_without_signal) == (8, 4)
    nothing = Judge((("zero", 1.0, lambda problem, answer: 0.0),))
    none = roll_out(sampler, Even(), nothing, dynamic=True, **options)
    assert len(none.groups) == 4
    assert (none.n_tried, none.n_without_signal) == (16, 16)


def test_a_prompt_that_is_too_long_is_named() -> None:
    sampler = dataclasses.replace(a_sampler(), max_tokens=60)
    with pytest.raises(
        DataError, match=r"'What is \d+ \+ \d+\?' has \d+ tokens, and an answer may"
    ):
        rolled(sampler)


def test_problems_are_functions_of_their_number_and_sides_are_apart(tmp_path: Path) -> None:
    train = {ARITHMETIC.problem(1, n).question for n in range(2000)}
    held_out = {ARITHMETIC.problem(1, n, held_out=True).question for n in range(500)}
    assert not train & held_out
    assert ARITHMETIC.problem(1, 5) == ARITHMETIC.problem(1, 5) != ARITHMETIC.problem(2, 5)
    for n in range(50):
        problem = ARITHMETIC.problem(1, n)
        numbers = problem.question.removeprefix("What is ").removesuffix("?").split(" + ")
        assert str(sum(map(int, numbers))) == problem.truth
