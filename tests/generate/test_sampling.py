"""Draws against exact probabilities, filters against their definitions spelt out in plain
Python.
"""

import math
import random

import pytest
import torch

from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.generate.sampling import Sampling, generator_for, probabilities, sample


def _plain(logits: list[float], s: Sampling) -> list[float]:
    """The module's definition, one id at a time."""
    top = max(logits)
    p = {i: math.exp((x - top) / s.temperature) for i, x in enumerate(logits)}
    likeliest_first = sorted(p, key=lambda i: (-p[i], i))
    if s.top_k:
        likeliest_first = likeliest_first[: s.top_k]
    if s.top_p < 1:
        total, mass, kept = sum(p[i] for i in likeliest_first), 0.0, []
        for i in likeliest_first:
            kept.append(i)
            mass += p[i] / total
            if mass >= s.top_p:
                break
        likeliest_first = kept
    kept = [i for i in likeliest_first if p[i] >= s.min_p * p[likeliest_first[0]]]
    total = sum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=4),
        Sampling(top_p=0.8),
        Sampling(min_p=0.2),
        Sampling(temperature=1.3, top_k=7, top_p=0.9, min_p=0.05),
    ],
    ids=str,
)
def test_filters_and_draws_follow_the_definition(sampling: Sampling) -> None:
    from scipy import stats  # takes a second

    torch.manual_seed(0)
    logits = torch.randn(6, 12) * 1.5
    exact = torch.tensor([_plain(row, sampling) for row in logits.double().tolist()])
    torch.testing.assert_close(probabilities(logits, sampling).float(), exact, atol=1e-7, rtol=1e-6)

    n = 20_000
    generator = generator_for(seed=5, index=0)
    drawn = sample(logits[:1].expand(n, -1), sampling, [generator] * n)
    counts, expected = torch.bincount(drawn, minlength=12).double(), exact[0].double() * n
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], expected[possible] / expected.sum() * n).pvalue > 1e-3


def test_random_filters_on_random_rows_with_ties() -> None:
    choose = random.Random(1)
    for _ in range(300):
        logits = [choose.choice([-3.0, 0.0, 0.5, 1.0, 2.0]) for _ in range(choose.randint(1, 9))]
        sampling = Sampling(
            temperature=choose.choice([0.5, 1.0, 2.0]),
            top_k=choose.choice([0, 1, 2, 5, 20]),
            top_p=choose.choice([1.0, 0.93, 0.51, 1e-9]),
            min_p=choose.choice([0.0, 0.11, 1.0]),
        )
        got = probabilities(torch.tensor([logits]), sampling)[0].tolist()
        assert got == pytest.approx(_plain(logits, sampling), abs=1e-12), (logits, sampling)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.7, 4, 0.8, 0.05), Sampling(temperature=0)], ids=str
)
def test_forbidden_ids_are_as_if_the_model_had_none(sampling: Sampling) -> None:
    torch.manual_seed(1)
    logits, forbidden = torch.randn(40, 12, dtype=torch.float64), [0, 3, 4, 11]
    logits[:, forbidden] += 5  # the likeliest, if they were allowed
    allowed = [i for i in range(12) if i not in forbidden]
    before = logits.clone()
    generators = [generator_for(seed=2, index=i) for i in range(40)]
    drawn = sample(logits, sampling, generators, torch.tensor(forbidden))
    generators = [generator_for(seed=2, index=i) for i in range(40)]
    assert drawn.tolist() == [
        allowed[i] for i in sample(logits[:, allowed], sampling, generators).tolist()
    ]
    assert torch.equal(logits, before)  # a model may hand out its own tensor
    if sampling.temperature:
        p = probabilities(logits, sampling, torch.tensor(forbidden))
        torch.testing.assert_close(p[:, allowed], probabilities(logits[:, allowed], sampling))
        assert not p[:, forbidden].any()


def test_the_edges() -> None:
    row = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    everything = probabilities(row, Sampling())
    assert torch.equal(probabilities(row, Sampling(top_k=100)), everything)
    assert torch.equal(probabilities(row, Sampling(top_p=1.0, min_p=0.0)), everything)
    assert probabilities(row, Sampling(top_k=1)).tolist() == [
        [0, 1, 0, 0]
    ]  # of equal ones the lower id
    assert probabilities(row, Sampling(top_p=1e-12)).tolist() == [[0, 1, 0, 0]]  # at least one
    assert probabilities(row, Sampling(min_p=1.0)).tolist() == [[0, 0.5, 0.5, 0]]
    for tiny in (1e-30, 1e-300, 5e-324):
        assert probabilities(row, Sampling(temperature=tiny)).tolist() == [[0, 0.5, 0.5, 0]]
    equal = probabilities(torch.zeros(2, 1000), Sampling(top_p=0.25))
    assert (equal > 0).nonzero()[:, 1].tolist() == [*range(250)] * 2
    assert sample(row, Sampling(temperature=0), [torch.Generator()]).tolist() == [1]
    assert probabilities(torch.tensor([[7.0]]), Sampling(top_k=3, top_p=0.1)).tolist() == [[1]]
    forbidden = torch.tensor([[0.0, -torch.inf, 0.0]])
    assert probabilities(forbidden, Sampling()).tolist() == [[0.5, 0, 0.5]]


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53, 0.5])
def test_an_id_of_probability_zero_is_never_drawn(
    u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([u], dtype=torch.float64))
    torch.manual_seed(3)
    for _ in range(200):
        logits = torch.randn(1, 30)
        logits[:, :3] = logits[:, -3:] = -torch.inf
        (id,) = sample(logits, Sampling(), [torch.Generator()]).tolist()
        assert 3 <= id < 27


def test_a_generator_belongs_to_its_seed_and_index() -> None:
    def first(seed: int, index: int) -> float:
        return torch.rand(1, generator=generator_for(seed, index)).item()

    assert first(1, 2) == first(1, 2)
    assert len({first(seed, index) for seed in range(20) for index in range(20)}) == 400


def test_bad_settings_are_refused_by_name() -> None:
    bad = {
        "temperature": (-0.1, math.nan, math.inf),
        "top_k": (-1,),
        "top_p": (0.0, 1.01),
        "min_p": (-0.1, math.nan),
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ConfigError, match=name):
                Sampling(**{name: value})


def test_a_negative_seed_and_broken_logits_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        generator_for(-1, 0)
    for bad in (math.nan, math.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(CheckpointError, match="not numbers"):
                sample(
                    torch.tensor([[0.0, 1.0], [0.0, bad]]),
                    Sampling(temperature=temperature),
                    [torch.Generator()] * 2,
                )
