"""A study file: a base recipe, axes, seeds, a budget and a question.

    question = "Does pre-norm train better than post-norm?"
    sources = ["book.txt"]
    base = "llama.toml"                       # or a table of settings
    seeds = 5                                 # or a list
    baseline = "pre"                          # arms are compared with it; without it, all pairs
    difference = 0.01                         # the smallest difference that matters

    [budget]                                  # the same for every arm: tokens, flops or seconds
    tokens = 2_000_000

    [axes]                                    # a grid: one arm for each combination
    "model.norm_placement" = ["pre", "post"]

    [arms.SwiGLU]                             # or arms by name, each with its settings
    "model.feed_forward" = "swiglu"

Every arm has every seed. The whole file is checked before anything runs: each setting of each arm
must exist and fit the others.
"""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmsmith.config import RunConfig, flatten, read_toml
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError

Budget = Literal["tokens", "flops", "seconds"]
METRICS = ("val_bits_per_byte", "val_loss", "best_val_bits_per_byte", "best_val_loss")
KEYS = {
    "question": str,
    "sources": list,
    "base": (str, dict),
    "seeds": (int, list),
    "baseline": str,
    "difference": (int, float),
    "metric": str,
    "budget": dict,
    "axes": dict,
    "arms": dict,
}


@dataclass(frozen=True)
class Arm:
    """One set of settings, by dotted name, on top of the base."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A study as its file describes it. `difference`: the smallest one that matters, in units of
    `metric`; 0 if the file names none."""

    question: str
    sources: tuple[str, ...]
    base: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    budget: Budget
    amount: float
    baseline: str | None = None
    metric: str = "val_bits_per_byte"
    difference: float = 0.0
    axes: tuple[str, ...] = ()
    path: Path = field(default=Path("study.toml"), compare=False)

    @property
    def n_runs(self) -> int:
        """Runs of the complete study."""
        return len(self.arms) * len(self.seeds)

    def settings_of(self, arm: Arm, seed: int) -> dict[str, Any]:
        """All settings of a run, by dotted name, without its length."""
        return {**self.base, **arm.settings, "train.seed": seed}


def read_study(path: Path) -> Study:
    """Reads and checks a study file. Raises ConfigError that names the file and what to correct."""
    content = _content(path)
    for key, value in content.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{path} has {key!r}, which no study has.{hint} Expected {', '.join(KEYS)}."
            )
        if not isinstance(value, KEYS[key]):  # type: ignore[arg-type]
            raise ConfigError(f"{path}: {key} = {value!r} has the wrong type.")
    base = _base(content.get("base", {}), path)
    axes = _axes(content.get("axes", {}), path)
    arms = _arms(axes, content.get("arms", {}), path)
    budget, amount = _budget(content.get("budget"), path)
    study = Study(
        question=content.get("question", ""),
        sources=tuple(map(str, content.get("sources", ()))),
        base=base,
        arms=arms,
        seeds=_seeds(content.get("seeds", 3), path),
        budget=budget,
        amount=amount,
        baseline=content.get("baseline"),
        metric=content.get("metric", METRICS[0]),
        difference=float(content.get("difference", 0.0)),
        axes=tuple(axes),
        path=path,
    )
    _check(study)
    return study


# ---- parts of the file ---------------------------------------------------------------------------


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}. Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}. Correct the file.") from error


def _base(base: str | Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of the base: a recipe beside the study file, or a table."""
    if isinstance(base, str):
        recipe = path.parent / base
        return read_toml(recipe if recipe.exists() else Path(base))
    return dict(flatten(base))


def _axes(axes: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    """Setting -> its values. Quoted dotted names and nested tables are the same."""
    found: dict[str, list[Any]] = dict(flatten(axes))
    for name, values in found.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{path}: the axis {name!r} is {values!r}: expected a list of one or more values."
            )
    return found


def _arms(
    axes: Mapping[str, Sequence[Any]], named: Mapping[str, Any], path: Path
) -> tuple[Arm, ...]:
    """The grid of the axes, and the named arms; their product, if there are both."""
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    arms = {name: dict(flatten(settings)) for name, settings in named.items()}
    if not axes and not arms:
        raise ConfigError(f"{path} has no axes and no arms: there is nothing to compare.")
    found = [
        Arm(_name(name, point), {**settings, **point})
        for name, settings in (arms or {"": {}}).items()
        for point in grid
    ]
    seen: dict[str, str] = {}
    for arm in found:
        content = repr(sorted(arm.settings.items(), key=lambda item: item[0]))
        if content in seen:
            raise ConfigError(
                f"{path}: the arms {seen[content]!r} and {arm.name!r} have the same settings. "
                "Remove one, or use `lmsmith study --a-a` to measure the noise."
            )
        seen[content] = arm.name
    return tuple(found)


def _name(name: str, point: Mapping[str, Any]) -> str:
    """A short name: the last part of each setting and its value."""
    parts = [f"{key.rsplit('.', 1)[-1]}={_shown(value)}" for key, value in point.items()]
    return " ".join(filter(None, [name, *parts]))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seeds(seeds: int | Sequence[Any], path: Path) -> tuple[int, ...]:
    found = list(range(1, seeds + 1)) if isinstance(seeds, int) else list(seeds)
    good = all(isinstance(seed, int) and seed >= 0 for seed in found)
    if not found or not good or len(set(found)) < len(found):
        raise ConfigError(f"{path}: seeds = {seeds!r}: expected a number, or different numbers.")
    return tuple(found)


def _budget(budget: Mapping[str, Any] | None, path: Path) -> tuple[Budget, float]:
    kinds: tuple[Budget, ...] = ("tokens", "flops", "seconds")
    if not budget or len(budget) != 1 or next(iter(budget)) not in kinds:
        raise ConfigError(
            f"{path}: [budget] is {dict(budget or {})}: expected one of tokens, flops and seconds, "
            "so that all arms have the same."
        )
    ((kind, amount),) = budget.items()
    if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
        raise ConfigError(f"{path}: budget.{kind} = {amount!r}: expected a number above 0.")
    return kind, float(amount)  # type: ignore[return-value]


def _check(study: Study) -> None:
    """Raises ConfigError for settings that do not exist or do not fit, and for a study without a
    verdict."""
    path = study.path
    if not study.sources and not any("data." in name for name in study.base):
        raise ConfigError(f"{path} names no text: add sources = [...].")
    if study.metric not in METRICS:
        raise ConfigError(f"{path}: metric = {study.metric!r}: expected {' or '.join(METRICS)}.")
    names = [arm.name for arm in study.arms]
    if study.baseline is not None and study.baseline not in names:
        near = difflib.get_close_matches(study.baseline, names, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{path}: the baseline {study.baseline!r} is no arm.{hint} The arms are "
            f"{'; '.join(names)}."
        )
    if len(study.arms) > 1 and len(study.seeds) < 2:
        raise ConfigError(
            f"{path}: one seed cannot tell a difference from noise. Set seeds = 3 or more."
        )
    lengths = ("train.steps", "train.tokens", "train.minutes", "train.epochs", "train.seed")
    for arm in study.arms:
        settings = study.settings_of(arm, study.seeds[0])
        for name in lengths:
            if name in arm.settings or (name in study.base and name != "train.seed"):
                raise ConfigError(
                    f"{path} sets {name}, which the study itself sets by [budget] and seeds. Leave "
                    "it out."
                )
        try:
            config_of(settings, str(path))
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name!r} of {path}: {error}") from error


def config_of(settings: Mapping[str, Any], where: str) -> RunConfig:
    """The config of a run before its text is read. Raises ConfigError, with the nearest name of an
    unknown setting."""
    named = {name: value for name, value in settings.items() if name == "preset"}
    start = preset(RunConfig().changed(named, where=where).preset)
    if "model.kind" in settings:
        start = start.changed({"model.kind": settings["model.kind"]}, where=where)
    others = {name: value for name, value in settings.items() if name != "learning_rate"}
    return start.changed(others, where=where)
