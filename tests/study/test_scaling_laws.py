"""Scaling fits: parameters of generated data are found again, with honest intervals."""

import numpy as np
import pytest

from lmsmith.errors import ConfigError
from lmsmith.study.scaling import (
    STARTS,
    Parametric,
    best_size,
    exponent,
    fit_parametric,
    fit_power_law,
)

EPOCH_AI = Parametric(482.01, 2085.43, 1.8169, 0.3478, 0.3658)  # Besiroglu et al. 2024, table 1
FEW = ((0.0, 10.0, 20.0), (0.0, 10.0, 20.0), (-1.0, 0.5), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0))


def runs(seed: int, noise: float, n: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes and tokens in the range of Hoffmann et al. 2022, and losses by Epoch AI's law."""
    rng = np.random.default_rng(seed)
    N, C = 10 ** rng.uniform(7.6, 10.2, n), 10 ** rng.uniform(18.5, 22, n)
    D = C / 6 / N
    return N, D, EPOCH_AI(N, D) * np.exp(rng.normal(0, noise, n))


def test_exact_data_give_the_parameters_to_1e_3() -> None:
    found = fit_parametric(*runs(1, 0.0), starts=FEW)
    for name in ("A", "B", "E", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(EPOCH_AI, name), rel=1e-3), name


def test_the_optimum_is_the_minimum_at_the_budget() -> None:
    N, D = EPOCH_AI.optimal(5.76e23)
    assert pytest.approx(5.76e23) == 6 * N * D
    others = N * np.linspace(0.5, 2, 2001)
    losses = EPOCH_AI(others, 5.76e23 / 6 / others)
    assert others[losses.argmin()] == pytest.approx(N, rel=2e-3)
    assert pytest.approx(20, rel=0.35) == D / N  # Chinchilla's 20 tokens per parameter, about


@pytest.mark.slow
def test_intervals_cover_over_200_draws() -> None:
    """95 % intervals of alpha and E hold the truth in 88 to 99 % of 200 generated data sets."""
    inside = {"alpha": 0, "E": 0}
    for seed in range(200):
        truth = np.log([EPOCH_AI.A, EPOCH_AI.B, EPOCH_AI.E]).tolist()
        starts = [[value] for value in (*truth, EPOCH_AI.alpha, EPOCH_AI.beta)]
        found = fit_parametric(*runs(seed, 0.005), starts=starts, n_draws=60, seed=seed)
        for name in inside:
            low, high = found.interval(name)
            inside[name] += low <= getattr(EPOCH_AI, name) <= high
    assert all(0.88 <= n / 200 <= 0.99 for n in inside.values()), inside


@pytest.mark.parametrize(
    ("n_ladders", "least"), [(6, 4), pytest.param(40, 32, marks=pytest.mark.slow)]
)
def test_a_power_law_predicts_a_larger_run_with_its_interval(n_ladders: int, least: int) -> None:
    """Held-out runs at eight times the compute: within 1 %, and in the 90 % interval in most
    ladders."""
    C, inside, errors = 2.0 ** np.arange(0, 10), 0, []
    for seed in range(n_ladders):
        rng = np.random.default_rng(seed)
        L = (1.2 + 0.9 * C**-0.3) * np.exp(rng.normal(0, 0.002, len(C)))
        law = fit_power_law(C, L, n_draws=60 if n_ladders > 6 else 25, seed=seed)
        truth = (1.2 + 0.9 * (8 * C[-1]) ** -0.3) * np.exp(rng.normal(0, 0.002))
        found, low, high = law.predict(8 * C[-1])
        inside += low <= truth <= high
        errors.append(abs(found / truth - 1))
    assert np.median(errors) < 0.01
    assert inside >= least


def test_a_parametric_prediction_includes_the_noise_of_a_run() -> None:
    """Its 90 % interval holds about 90 % of new runs, which the uncertainty of the fit alone would
    not."""
    N, D, L = runs(2, 0.01)
    truth = np.log([EPOCH_AI.A, EPOCH_AI.B, EPOCH_AI.E]).tolist()
    starts = [[value] for value in (*truth, EPOCH_AI.alpha, EPOCH_AI.beta)]
    law = fit_parametric(N, D, L, starts=starts, n_draws=20)
    assert law.noise == pytest.approx(0.01, rel=0.15)
    _, low, high = law.predict(1e9, 2e10)
    new = EPOCH_AI(1e9, 2e10) * np.exp(np.random.default_rng(3).normal(0, 0.01, 4000))
    assert 0.86 <= ((low <= new) & (new <= high)).mean() <= 0.95


def test_isoflop() -> None:
    budgets = np.array([1e18, 1e19, 1e20, 1e21])
    best = []
    for C in budgets:
        optimum, _ = EPOCH_AI.optimal(C)
        N = optimum * np.array([0.6, 0.8, 1, 1.25, 1.6])
        best.append(best_size(N, EPOCH_AI(N, C / 6 / N))[0])
    a, _ = exponent(budgets, best)
    assert a == pytest.approx(EPOCH_AI.beta / (EPOCH_AI.alpha + EPOCH_AI.beta), abs=0.01)


def test_bad_points() -> None:
    with pytest.raises(ConfigError, match=r"at least 5 runs .* there are 2"):
        fit_parametric([1e6, 2e6], [1e6, 1e6], [3.0, 2.9])
    with pytest.raises(ConfigError, match="the losses of a fit must be positive and finite"):
        fit_parametric([1e6] * 6, [1e6] * 6, [3.0, 2.9, 1, np.nan, 2, 2], starts=FEW)
    with pytest.raises(ConfigError, match="no minimum between"):
        best_size([1e6, 2e6, 4e6], [3.0, 2.5, 2.2])
    assert len(STARTS) == 5
