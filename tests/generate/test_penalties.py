"""Penalties, bias and banned ids against transformers' processors and hand-written formulas."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.errors import ConfigError
from lmsmith.generate.sampling import (
    Sampler,
    Sampling,
    choose,
    distributions,
    generator_for,
    probabilities,
)

V = 50
PROMPT, DRAWN = [3, 4, 5, 5, 30], [7, 8, 7, 3, 7]


def _sampler(sampling: Sampling, seed: int = 0, index: int = 0, **how: Any) -> Sampler:
    sampler = Sampler(sampling, generator_for(seed, index), prompt_ids=PROMPT, **how)
    for id in DRAWN:
        sampler.add(id)
    return sampler


def _logits(n: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, V, generator=generator, dtype=torch.float64) * 2


def _transformers(logits: torch.Tensor, s: Sampling) -> torch.Tensor:
    """Log-probabilities after the processors that `generate` makes for the same settings."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=float(s.temperature),
        top_k=s.top_k,
        top_p=s.top_p,
        min_p=s.min_p or None,
        repetition_penalty=float(s.repetition_penalty),
        sequence_bias={(id,): float(bias) for id, bias in s.logit_bias.items()} or None,
        suppress_tokens=sorted(s.banned) or None,
    )
    config._eos_token_tensor = config._pad_token_tensor = None
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=V, n_positions=32, n_embd=4, n_layer=1, n_head=1)
    )
    text = torch.tensor([PROMPT + DRAWN]).expand(len(logits), -1)
    processors = model._get_logits_processor(config, input_ids_seq_length=len(PROMPT))
    names = [type(processor).__name__ for processor in processors]
    assert len(names) == sum(
        [
            s.temperature != 1,
            s.top_k > 0,
            s.top_p < 1,
            s.min_p > 0,
            s.repetition_penalty != 1,
            bool(s.logit_bias),
            bool(s.banned),
        ]
    ), names
    return processors(text, logits.clone()).log_softmax(dim=-1)


SETTINGS: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 9,
    "top_p": 0.8,
    "min_p": 0.04,
    "repetition_penalty": 1.3,
    "logit_bias": {3: 2.5, 40: -4.0, 7: 1.0},
    "banned": frozenset({1, 4, 41}),
}
COMBINATIONS = [{name: value} for name, value in SETTINGS.items()]
COMBINATIONS += [
    {name: SETTINGS[name] for name in random.Random(i).sample(sorted(SETTINGS), 2 + i % 6)}
    for i in range(12)
]


@pytest.mark.parametrize("chosen", COMBINATIONS, ids=lambda chosen: "+".join(sorted(chosen)))
def test_processed_scores_are_those_of_transformers(chosen: dict[str, Any]) -> None:
    sampling = Sampling(**chosen)
    logits = _logits()
    got = distributions(logits, [_sampler(sampling)] * len(logits)).log()
    expected = _transformers(logits, sampling)
    assert torch.equal(got.isneginf(), expected.isneginf())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_frequency_and_presence_penalties_follow_their_formula() -> None:
    # mu[j] -> mu[j] - c[j] alpha_frequency - [c[j] > 0] alpha_presence
    logits = _logits(1)[0]
    expected = logits.tolist()
    for id, count in {7: 3, 8: 1, 3: 1}.items():
        expected[id] -= 0.4 * count + 0.9
    sampler = _sampler(Sampling(frequency_penalty=0.4, presence_penalty=0.9))
    processed = logits.numpy().copy()
    sampler.process(processed)
    np.testing.assert_allclose(processed, expected, rtol=1e-15)


def test_all_changes_of_logits_in_their_order() -> None:
    logits = _logits(1)[0]
    sampling = Sampling(
        repetition_penalty=1.7,
        frequency_penalty=-0.3,
        presence_penalty=0.2,
        logit_bias={7: -1.5, 3: 8.0, 20: 0.25},
        banned=frozenset({8, 30}),
    )
    expected = []
    for id, x in enumerate(logits.tolist()):
        x += sampling.logit_bias.get(id, 0)
        if id in PROMPT + DRAWN:
            x = x / 1.7 if x > 0 else x * 1.7
        x -= -0.3 * DRAWN.count(id) + 0.2 * (id in DRAWN)
        expected.append(-math.inf if id in (8, 30, 48, 49) else x)
    processed = logits.numpy().copy()
    _sampler(sampling, forbidden=[48, 49]).process(processed)
    np.testing.assert_allclose(processed, expected, rtol=1e-14)


def test_a_penalty_counts_more_tokens_than_there_was_room_for() -> None:
    sampler = Sampler(Sampling(frequency_penalty=1.0), torch.Generator())
    for id in range(V):
        for _ in range(id % 3):
            sampler.add(id)
    processed = np.zeros(V)
    sampler.process(processed)
    assert processed.tolist() == [-(id % 3) for id in range(V)]


def test_log_probabilities_are_the_models_own() -> None:
    logits = _logits(3).float()
    exact = logits.double().log_softmax(dim=-1)
    sampling = Sampling(0.5, 5, logit_bias={0: 3}, banned=frozenset({6}), n_alternatives=4)
    forbidden = [int(exact[0].argmax()), 9]
    samplers = [_sampler(sampling, index=i, forbidden=forbidden) for i in range(3)]
    for row, choice in zip(
        exact, choose(logits, samplers, with_log_probabilities=True), strict=True
    ):
        assert choice.log_probability == pytest.approx(float(row[choice.id]), abs=1e-12)
        allowed = [id for id in row.argsort(descending=True).tolist() if id not in forbidden]
        assert [id for id, _ in choice.alternatives] == allowed[:4]
        for id, log_probability in choice.alternatives:
            assert log_probability == pytest.approx(float(row[id]), abs=1e-12)
    plain = choose(logits, [_sampler(sampling, index=i) for i in range(3)])
    assert all(math.isnan(choice.log_probability) and not choice.alternatives for choice in plain)


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    sampler = Sampler(Sampling(n_alternatives=99), torch.Generator(), forbidden=[0, 0, 2])
    (choice,) = choose(torch.zeros(1, 4), [sampler], with_log_probabilities=True)
    assert choice.alternatives == (
        (1, pytest.approx(-math.log(4))),
        (3, pytest.approx(-math.log(4))),
    )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=1.4, frequency_penalty=0.5),
        Sampling(banned=frozenset({0, 7}), logit_bias={9: 3.0}),
        Sampling(0.8, 12, 0.9, 0.02, presence_penalty=1.0),
    ],
    ids=["penalties", "banned and bias", "filters"],
)
def test_frequencies_of_draws(sampling: Sampling) -> None:
    from scipy import stats  # takes a second

    logits, n = _logits(1), 4000
    sampler = _sampler(sampling, seed=3)
    p = distributions(logits, [sampler])[0]
    drawn = [choice.id for choice in choose(logits.expand(n, -1), [sampler] * n)]
    counts, expected = np.bincount(drawn, minlength=V), p.numpy() * n
    assert counts[expected == 0].sum() == 0
    frequent, rare = expected >= 5, (expected > 0) & (expected < 5)
    observed, expected = (
        np.append(x[frequent], x[rare].sum()) if rare.any() else x[frequent]
        for x in (counts, expected)
    )
    assert stats.chisquare(observed, expected).pvalue > 1e-3


numbers = st.floats(-30, 30, width=32)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(numbers, min_size=2, max_size=40),
    st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    st.integers(0, 50),
    st.floats(0.01, 1),
    st.integers(0, 2**32),
    st.data(),
)
def test_banned_ids_are_never_drawn_whatever_their_bias(
    row: list[float], temperature: float, top_k: int, top_p: float, seed: int, data: st.DataObject
) -> None:
    ids = st.integers(0, len(row) - 1)
    banned = data.draw(st.sets(ids, max_size=len(row) - 1))
    bias = data.draw(st.dictionaries(ids, st.floats(-100, 100), max_size=5))
    sampling = Sampling(temperature, top_k, top_p, logit_bias=bias, banned=frozenset(banned))
    sampler = Sampler(sampling, generator_for(seed, 0))
    assert not {choose(torch.tensor([row]), [sampler])[0].id for _ in range(5)} & banned


@settings(deadline=None, max_examples=150)
@given(st.lists(numbers, min_size=1, max_size=60), st.floats(0.001, 0.999))
def test_top_p_keeps_the_smallest_set_of_likeliest_ids(row: list[float], top_p: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    exact = logits.softmax(dim=-1)[0]
    kept = probabilities(logits, Sampling(top_p=top_p))[0] > 0
    share = float(exact[kept].sum())
    assert share >= top_p - 1e-12
    least = exact[kept].min()
    assert share - float(least) < top_p + 1e-12
    assert (logits[0][~kept] <= logits[0][kept].min()).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9), st.integers(0, 5), st.permutations(range(6)))
def test_the_draws_of_a_sequence_do_not_depend_on_the_batch(
    seed: int, index: int, order: list[int]
) -> None:
    logits = _logits(6, seed=1).float()
    kinds = [
        Sampling(),
        Sampling(0.5, n_alternatives=2),
        Sampling(top_k=3),
        Sampling(top_p=0.7),
        Sampling(0.0),
        Sampling(repetition_penalty=2.0, min_p=0.1),
    ]

    def draws(rows: list[int]) -> list[Any]:
        samplers = [_sampler(kinds[i], seed, i) for i in rows]
        found = [choose(logits[rows], samplers, with_log_probabilities=True) for _ in range(3)]
        return [step[rows.index(index)] for step in found]

    assert draws([index]) == draws(list(order))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("logit_bias", {3: math.nan}),
        ("n_alternatives", -1),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(name: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}.* = .*: expected "):
        Sampling(**{name: bad})


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(logit_bias={V: 1.0}), f"logit_bias has the id {V}, .* 0 to {V - 1}"),
        (Sampling(logit_bias={-1: 1.0}), "logit_bias has the id -1"),
        (Sampling(banned=frozenset({V + 3})), f"banned has the id {V + 3}"),
        (Sampling(banned=frozenset(range(V))), "banned: all of the vocabulary's 50 ids"),
        (Sampling(banned=frozenset(range(2, V))), "banned: all of the vocabulary's 50 ids"),
    ],
    ids=["bias", "negative bias", "banned", "all", "all but forbidden"],
)
def test_ids_that_do_not_fit_the_vocabulary_are_refused(sampling: Sampling, message: str) -> None:
    for temperature in (0.0, 1.0):
        chosen = Sampling(temperature, logit_bias=sampling.logit_bias, banned=sampling.banned)
        with pytest.raises(ConfigError, match=message):
            choose(_logits(1), [Sampler(chosen, torch.Generator(), forbidden=[0, 1])])


def test_all_tokens_with_a_probability_are_banned() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    sampler = Sampler(Sampling(banned=frozenset({0, 1})), torch.Generator())
    with pytest.raises(ConfigError, match="no token is left"):
        choose(logits, [sampler])


def test_settings_that_overflow_are_not_blamed_on_the_model() -> None:
    for sampling in (Sampling(repetition_penalty=1e-320), Sampling(frequency_penalty=-1e308)):
        with pytest.raises(ConfigError, match="make a logit infinite"):
            choose(torch.ones(1, V), [_sampler(sampling)])
