"""Scaling studies: fits a law to a ladder of sizes, and predicts a held-out larger run.

    [scaling]
    fit = "power-law"          # loss over training FLOPs; or "parametric": over N and D
    held_out = "6 layers"      # this arm is not in the fit: predicted, then trained

    [scaling]
    fit = "isoflop"            # arms of several sizes at several `budget.flops`

The prediction is printed and stored before the held-out arm starts. Compute is that of the config:
training FLOPs per token, attention included, times tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lmsmith.config import RunConfig, read_toml
from lmsmith.errors import ConfigError, TrainingError
from lmsmith.study.check import config_of
from lmsmith.study.plan import Arm, Study
from lmsmith.study.results import Place, Result
from lmsmith.study.scaling import best_size, exponent, fit_parametric, fit_power_law

FITS = ("power-law", "parametric", "isoflop")
LEAST_ARMS = {"power-law": 4, "parametric": 5, "isoflop": 3}
LEVEL = 0.9
N_DRAWS = 100


@dataclass(frozen=True)
class Prediction:
    """What a law says about a held-out arm, and what its runs gave, if they have ended.

    `law`: the parameters of the fit. `low` and `high`: the interval of a single run, at `level`.
    """

    fit: str
    law: dict[str, float]
    arm: str = ""
    compute: float = 0.0
    loss: float = 0.0
    low: float = 0.0
    high: float = 0.0
    level: float = LEVEL
    actual: tuple[float, ...] = ()
    largest: float = 0.0  # compute of the largest run of the ladder
    points: tuple[tuple[float, float], ...] = ()  # compute and loss of the runs of the fit

    @property
    def error(self) -> float:
        """Prediction / mean of the actual losses - 1."""
        return self.loss / (sum(self.actual) / len(self.actual)) - 1

    @property
    def n_inside(self) -> int:
        """The number of held-out runs inside the interval."""
        return sum(self.low <= loss <= self.high for loss in self.actual)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        more = {"error": self.error, "n_inside": self.n_inside} if self.actual else {}
        return {**asdict(self), **more}

    def __str__(self) -> str:
        law = ", ".join(f"{name} {value:.4g}" for name, value in self.law.items())
        if not self.arm:
            return f"{self.fit} fit: {law}"
        said = (
            f"{self.fit} fit ({law}) predicts {self.loss:.4f} for {self.arm} "
            f"({self.level:.0%} interval {self.low:.4f} to {self.high:.4f}), at "
            f"{self.compute / self.largest:.3g} times the compute of the largest run of the fit"
        )
        if not self.actual:
            return said
        mean, n = sum(self.actual) / len(self.actual), len(self.actual)
        return (
            f"{said}. It gave {mean:.4f}: the error is {self.error:+.2%}, and {self.n_inside} of "
            f"{n} run{'s' * (n > 1)} {'are' if n > 1 else 'is' if self.n_inside else 'are'} inside "
            "the interval"
        )


def check_scaling(study: Study) -> None:
    """Raises ConfigError for a table [scaling] that no ladder can follow."""
    path, given = study.path, study.scaling
    if unknown := set(given) - {"fit", "held_out"}:
        raise ConfigError(
            f"{path}: [scaling] has {', '.join(sorted(unknown))}: expected fit and held_out."
        )
    fit = given.get("fit", FITS[0])
    if fit not in FITS:
        raise ConfigError(f"{path}: scaling.fit = {fit!r}: expected one of {', '.join(FITS)}.")
    held_out = held_out_arm(study)
    n_points = (len(study.arms) - (held_out is not None)) * len(study.seeds)
    if n_points < LEAST_ARMS[fit]:
        raise ConfigError(
            f"{path}: the {fit} fit needs {LEAST_ARMS[fit]} runs or more, and there are "
            f"{n_points} besides the held-out one. Add sizes or seeds."
        )
    if study.budget == "seconds" and held_out is not None:
        raise ConfigError(
            f"{path}: a budget in seconds does not say how many tokens the held-out arm sees, so "
            "its loss cannot be predicted. Use tokens, flops or tokens_per_parameter."
        )
    if fit == "isoflop" and not any("budget.flops" in arm.settings for arm in study.arms):
        raise ConfigError(
            f'{path}: an isoflop ladder needs several budgets: add the axis "budget.flops".'
        )


def held_out_arm(study: Study) -> Arm | None:
    """The arm that the fit does not see."""
    name = study.scaling.get("held_out")
    return study.arm(str(name)) if name is not None else None


def fit_ladder(study: Study, place: Place, results: Sequence[Result]) -> Prediction:
    """Fits the law to the runs that finished, and predicts the held-out arm if there is one.

    Raises TrainingError if too few runs finished.
    """
    held_out, fit = held_out_arm(study), study.scaling.get("fit", FITS[0])
    runs = [
        result
        for result in results
        if result.value is not None and (held_out is None or result.arm != held_out.name)
    ]
    if len(runs) < LEAST_ARMS[fit]:
        raise TrainingError(
            f"only {len(runs)} runs of the ladder finished, and the {fit} fit needs "
            f"{LEAST_ARMS[fit]}: see the errors in {place.out / 'errors'}."
        )
    models = [_config(study, place, run).neural for run in runs]
    compute = [m.train_flops_per_token() * run.tokens for m, run in zip(models, runs, strict=True)]
    losses = [float(run.value) for run in runs if run.value is not None]
    if fit == "isoflop":
        return _isoflop(study, runs, losses)
    if fit == "parametric":
        sizes, tokens = [run.n_params for run in runs], [run.tokens for run in runs]
        parametric = fit_parametric(sizes, tokens, losses, n_draws=N_DRAWS)
        names = ("A", "B", "E", "alpha", "beta")
        found = Prediction(fit, {name: float(getattr(parametric, name)) for name in names})
    else:
        power = fit_power_law(compute, losses, n_draws=N_DRAWS)
        found = Prediction(fit, {"A": power.A, "E": power.E, "alpha": power.alpha})
    found = replace(found, points=tuple(zip(compute, losses, strict=True)), largest=max(compute))
    if held_out is None:
        return found
    config, settings = config_of(study, held_out, study.seeds[0])
    vocabulary = {"model.vocab_size": models[0].vocab_size}
    model = config.changed(vocabulary, where=str(study.path)).neural
    n_tokens = float(settings["train.tokens"])
    flops = model.train_flops_per_token() * n_tokens
    loss, low, high = (
        parametric.predict(model.n_parameters(), n_tokens, LEVEL)
        if fit == "parametric"
        else power.predict(flops, LEVEL)
    )
    return replace(found, arm=held_out.name, compute=flops, loss=loss, low=low, high=high)


def graded(prediction: Prediction, results: Sequence[Result]) -> Prediction:
    """Adds what the held-out runs gave."""
    found = [result.value for result in results if result.arm == prediction.arm]
    return replace(prediction, actual=tuple(value for value in found if value is not None))


def _isoflop(study: Study, runs: Sequence[Result], losses: Sequence[float]) -> Prediction:
    """The exponent a of the best size, N ~ C^a, from a parabola at each budget."""
    budgets: dict[float, list[tuple[int, float]]] = {}
    for run, loss in zip(runs, losses, strict=True):
        flops = study.arm(run.arm).settings.get("budget.flops", study.amount)
        budgets.setdefault(float(flops), []).append((run.n_params, loss))
    best = {
        flops: best_size([n for n, _ in points], [loss for _, loss in points])
        for flops, points in budgets.items()
    }
    law = {f"best N at {flops:.3g} FLOPs": size for flops, (size, _) in best.items()}
    if len(best) > 1:
        law["exponent"] = exponent(list(best), [size for size, _ in best.values()])[0]
    return Prediction("isoflop", law)


def _config(study: Study, place: Place, run: Result) -> RunConfig:
    """The config with which a run trained."""
    path = place.run(study.arm(run.arm), run.seed) / "config.toml"
    return RunConfig().changed(read_toml(path), where=str(path))
