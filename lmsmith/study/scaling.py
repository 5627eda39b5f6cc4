"""Scaling laws: fits with intervals, and predictions of larger runs.

- **Parametric** (Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", approach
  3): L(N, D) = E + A / N^alpha + B / D^beta for N parameters and D tokens, fitted by the Huber loss
  of log L from many starting points with L-BFGS. The sum of the losses is minimized, not their
  mean, and to convergence: Epoch AI (Besiroglu et al. 2024, arXiv:2404.10102) shows that the
  published numbers come from an optimizer that stopped early.
- **Power law with a floor**: L(C) = E + A / C^alpha, for ladders in one quantity.
- **isoFLOP** (Hoffmann et al. 2022, approach 2): at each compute budget a parabola in log N, whose
  minimum is the best size; a line through the minima is the exponent.

Intervals come from the bootstrap: the points are drawn with replacement, and the fit is repeated.
Arrays are (n,), float64: N in parameters, D in tokens, L in nats per token or bits per byte.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.errors import ConfigError

Floats = npt.NDArray[np.float64]

DELTA = 1e-3  # where the Huber loss of log L turns from a square to a line
STARTS = (
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),  # log A
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),  # log B
    (-1.0, -0.5, 0.0, 0.5, 1.0),  # log E
    (0.0, 0.5, 1.0, 1.5, 2.0),  # alpha
    (0.0, 0.5, 1.0, 1.5, 2.0),  # beta
)
"""The grid of starting points of Hoffmann et al. 2022, appendix D.3."""

MOST_STARTS = 16  # of the grid, those with the lowest sums; the others end in the same minima
LEAST_POINTS = 5
NAMES = ("A", "B", "E", "alpha", "beta")


@dataclass(frozen=True)
class Parametric:
    """L(N, D) = E + A / N^alpha + B / D^beta. `draws`: fits of bootstrap samples, (n, 5) in the
    order of NAMES."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    draws: Floats = field(repr=False, default_factory=lambda: np.empty((0, 5)))
    noise: float = 0.0  # standard deviation of log L around the fit

    def __call__(self, N: Any, D: Any) -> Any:
        """The predicted loss."""
        return self.E + self.A / np.power(N, self.alpha) + self.B / np.power(D, self.beta)

    @property
    def errors(self) -> dict[str, float]:
        """The bootstrap standard error of each parameter."""
        return {name: float(self.draws[:, i].std(ddof=1)) for i, name in enumerate(NAMES)}

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The percentile interval of a parameter."""
        low, high = np.quantile(self.draws[:, NAMES.index(name)], _ends(level))
        return float(low), float(high)

    def predict(
        self, N: float, D: float, level: float = 0.9, seed: int = 0
    ) -> tuple[float, float, float]:
        """The predicted loss of a run and an interval for it: the uncertainty of the fit, and the
        noise of a single run."""
        found = float(self(N, D))
        if not len(self.draws):
            return found, found, found
        draws = np.array([Parametric(*row)(N, D) for row in self.draws])
        return found, *_with_noise(draws, self.noise, level, seed)

    def optimal(self, flops: float) -> tuple[float, float]:
        """The best N and D for a compute budget C = 6 N D (Hoffmann et al. 2022, equation 4)."""
        a = self.beta / (self.alpha + self.beta)
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        N = g * (flops / 6) ** a
        return N, flops / 6 / N


def fit_parametric(
    N: Sequence[float] | Floats,
    D: Sequence[float] | Floats,
    L: Sequence[float] | Floats,
    *,
    n_draws: int = 0,
    seed: int = 0,
    starts: Sequence[Sequence[float]] = STARTS,
) -> Parametric:
    """Fits the parametric law; `n_draws` bootstrap fits give the intervals.

    Raises ConfigError for fewer points than parameters, or values that are not positive.
    """
    n, d, loss = (np.asarray(values, np.float64) for values in (N, D, L))
    _check(n, d, loss)
    grid = [np.array(start) for start in itertools.product(*starts)]
    best = _best(n, d, loss, grid)
    rng, draws = np.random.default_rng(seed), []
    for _ in range(n_draws):
        chosen = rng.integers(len(n), size=len(n))
        draws.append(_values(_best(n[chosen], d[chosen], loss[chosen], [best])))
    law = Parametric(*_values(best))
    residuals = np.log(loss) - np.log(law(n, d))
    noise = float(np.sqrt((residuals**2).sum() / max(1, len(n) - len(NAMES))))
    return replace(law, draws=np.array(draws).reshape(-1, 5), noise=noise)


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = E + A / C^alpha, with bootstrap fits as rows (A, E, alpha)."""

    A: float
    E: float
    alpha: float
    draws: Floats = field(repr=False, default_factory=lambda: np.empty((0, 3)))
    noise: float = 0.0  # standard deviation of log L around the fit

    def __call__(self, C: Any) -> Any:
        """The predicted loss."""
        return self.E + self.A / np.power(C, self.alpha)

    def predict(self, C: float, level: float = 0.9, seed: int = 0) -> tuple[float, float, float]:
        """The predicted loss of a run and an interval for it, noise of the run included."""
        found = float(self(C))
        if not len(self.draws):
            return found, found, found
        draws = np.array([PowerLaw(*row)(C) for row in self.draws])
        return found, *_with_noise(draws, self.noise, level, seed)


def fit_power_law(
    C: Sequence[float] | Floats, L: Sequence[float] | Floats, *, n_draws: int = 0, seed: int = 0
) -> PowerLaw:
    """Fits a power law with a floor by the Huber loss of log L. Raises ConfigError as above.

    The bootstrap draws residuals, not points: a ladder has few points, and without its ends a fit
    would say nothing about what lies beyond them.
    """
    c, loss = (np.asarray(values, np.float64) for values in (C, L))
    _check(c, c, loss, least=4)
    scale = float(np.exp(np.log(c).mean()))  # so that A and alpha are nearly uncorrelated
    first = _best_law(c / scale, loss, None)
    residuals = np.log(loss) - np.log(_law(first, c / scale))
    spread = residuals * math.sqrt(len(c) / max(1, len(c) - 3))
    rng, draws = np.random.default_rng(seed), []
    for _ in range(n_draws):
        noisy = _law(first, c / scale) * np.exp(rng.choice(spread, len(c)))
        draws.append(_unscaled(_best_law(c / scale, noisy, first), scale))
    A, E, alpha = _unscaled(first, scale)
    return PowerLaw(A, E, alpha, np.array(draws).reshape(-1, 3), float(spread.std()))


def best_size(N: Sequence[float] | Floats, L: Sequence[float] | Floats) -> tuple[float, float]:
    """The size with the lowest loss at one budget, and that loss: a parabola of L in log N.

    Raises ConfigError if the runs do not enclose a minimum.
    """
    x, y = np.log(np.asarray(N, np.float64)), np.asarray(L, np.float64)
    if len(x) < 3:
        raise ConfigError(f"a parabola needs at least 3 sizes at a budget, and there are {len(x)}.")
    a, b, c = np.polyfit(x, y, 2)
    if a <= 0 or not x.min() <= -b / (2 * a) <= x.max():
        raise ConfigError(
            "the losses at this budget have no minimum between the smallest and the largest size: "
            "add smaller or larger models."
        )
    return float(np.exp(-b / (2 * a))), float(c - b * b / (4 * a))


def exponent(C: Sequence[float] | Floats, N: Sequence[float] | Floats) -> tuple[float, float]:
    """Fits N = exp(b) C^a by least squares of logarithms; returns a and b."""
    a, b = np.polyfit(np.log(np.asarray(C, np.float64)), np.log(np.asarray(N, np.float64)), 1)
    return float(a), float(b)


# ---- parts ---------------------------------------------------------------------------------------


def _objective(x: Floats, n: Floats, d: Floats, log_l: Floats) -> tuple[float, Floats]:
    """The sum of Huber losses of log L, and its gradient in (log A, log B, log E, alpha, beta)."""
    a, b, e, alpha, beta = x
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])  # logarithms
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    shares /= total
    residual = top + np.log(total) - log_l
    small = np.abs(residual) <= DELTA
    loss = np.where(small, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2))
    slope = np.clip(residual, -DELTA, DELTA)
    in_a, in_b, in_e = shares * slope
    gradient = [in_a.sum(), in_b.sum(), in_e.sum(), -(in_a * n).sum(), -(in_b * d).sum()]
    return float(loss.sum()), np.array(gradient)


def _best(n: Floats, d: Floats, loss: Floats, starts: Sequence[Floats]) -> Floats:
    minimize, given = _minimizer(), (np.log(n), np.log(d), np.log(loss))
    starts = sorted(starts, key=lambda start: _objective(start, *given)[0])[:MOST_STARTS]
    # The sum is small, so the default tolerances would stop too early.
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-12}
    found = [
        minimize(_objective, start, args=given, jac=True, method="L-BFGS-B", options=options)
        for start in starts
    ]
    best: Floats = min(found, key=lambda one: one.fun).x
    return best


def _values(x: Floats) -> tuple[float, float, float, float, float]:
    a, b, e, alpha, beta = map(float, x)
    return math.exp(a), math.exp(b), math.exp(e), alpha, beta


def _law(x: Floats, c: Floats) -> Floats:
    log_a, log_e, alpha = x
    return np.asarray(np.exp(log_e) + np.exp(log_a) * c**-alpha)


def _best_law(c: Floats, loss: Floats, start: Floats | None) -> Floats:
    def objective(x: Floats) -> float:
        residual = np.abs(np.log(_law(x, c)) - np.log(loss))
        huber = np.where(residual <= DELTA, residual**2 / 2, DELTA * (residual - DELTA / 2))
        return float(1e4 * huber.sum())

    low = float(loss.min())
    starts = (
        [start]
        if start is not None
        else [
            np.array([math.log(low * part), math.log(low * (1 - part)), alpha])
            for part in (0.02, 0.1, 0.3, 0.6)
            for alpha in (0.05, 0.2, 0.5, 1.0)
        ]
    )
    options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-10, "fatol": 1e-14}
    found = [_minimizer()(objective, one, method="Nelder-Mead", options=options) for one in starts]
    best: Floats = min(found, key=lambda one: one.fun).x
    return best


def _unscaled(x: Floats, scale: float) -> tuple[float, float, float]:
    log_a, log_e, alpha = map(float, x)
    return math.exp(log_a) * scale**alpha, math.exp(log_e), alpha


def _with_noise(draws: Floats, noise: float, level: float, seed: int) -> tuple[float, float]:
    """The interval of predictions to which the noise of a run is added."""
    rng = np.random.default_rng(seed)
    repeated = np.repeat(draws, 20)  # so that the noise is drawn often enough
    low, high = np.quantile(repeated * np.exp(rng.normal(0, noise, len(repeated))), _ends(level))
    return float(low), float(high)


def _ends(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def _check(n: Floats, d: Floats, loss: Floats, least: int = LEAST_POINTS) -> None:
    if not len(n) == len(d) == len(loss) or len(n) < least:
        raise ConfigError(
            f"a fit needs at least {least} runs with size, tokens and loss; there are {len(n)}."
        )
    for name, values in (("sizes", n), ("tokens", d), ("losses", loss)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ConfigError(f"the {name} of a fit must be positive and finite numbers.")


def _minimizer() -> Any:
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ConfigError(
            "scaling fits need scipy, which is not installed: `pip install 'lmsmith[study]'`."
        ) from error
    return minimize
