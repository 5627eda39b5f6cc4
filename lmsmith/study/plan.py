"""A study file: a base recipe, axes, seeds, a budget and a question.

    question = "Does pre-norm train better than post-norm?"
    sources = ["book.txt"]
    base = "llama.toml"                       # or a table of settings
    seeds = 5                                 # or a list
    baseline = "norm_placement=pre"           # compared with each arm; without it: all pairs
    difference = 0.01                         # the smallest difference that matters
    deviation = 0.005                         # of the differences, if known from an earlier study

    [budget]                                  # tokens, flops, seconds, or tokens_per_parameter
    tokens = 2_000_000

    [axes]                                    # a grid: one arm for each combination
    "model.norm_placement" = ["pre", "post"]

    [arms.SwiGLU]                             # or arms by name, each with its settings
    "model.feed_forward" = "swiglu"

    [scaling]                                 # optional: fit a law to the arms (`ladder.py`)
    [search]                                  # optional: ranges instead of a grid (`search.py`)

Every arm has every seed. The whole file is checked before anything runs (`check.py`): each setting
of each arm must exist and fit the others.
"""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lmsmith.config import flatten, read_toml
from lmsmith.errors import ConfigError

Budget = Literal["tokens", "flops", "seconds", "tokens_per_parameter"]
BUDGETS: tuple[Budget, ...] = ("tokens", "flops", "seconds", "tokens_per_parameter")
METRICS = ("val_bits_per_byte", "val_loss", "best_val_bits_per_byte", "best_val_loss")
KEYS = {
    "question": str,
    "sources": list,
    "base": (str, dict),
    "seeds": (int, list),
    "baseline": str,
    "difference": (int, float),
    "deviation": (int, float),
    "metric": str,
    "budget": dict,
    "axes": dict,
    "arms": dict,
    "scaling": dict,
    "search": dict,
}
SEED_STEP = 10_000  # between the seeds of the arms of an A/A study


@dataclass(frozen=True)
class Arm:
    """One set of settings, by dotted name, on top of the base. `seed_shift` is added to the seeds;
    only A/A studies use it."""

    name: str
    settings: Mapping[str, Any] = field(compare=False)
    seed_shift: int = 0


@dataclass(frozen=True)
class Study:
    """A study as its file describes it. `difference` and `deviation`: the smallest difference that
    matters, and the standard deviation of paired differences, in units of `metric`; 0 if the file
    names none. `scaling` and `search`: these tables of the file."""

    question: str
    sources: tuple[str, ...]
    base: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    budget: Budget
    amount: float
    baseline: str | None = None
    metric: str = METRICS[0]
    difference: float = 0.0
    deviation: float = 0.0
    axes: tuple[str, ...] = ()
    scaling: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    path: Path = field(default=Path("study.toml"), compare=False)

    @property
    def n_runs(self) -> int:
        """Runs of the complete study."""
        return len(self.arms) * len(self.seeds)

    @property
    def n_comparisons(self) -> int:
        """Pairs of arms with a verdict; 0 for a scaling study, whose arms differ in size."""
        n = len(self.arms)
        if self.scaling:
            return 0
        return n - 1 if self.baseline is not None else n * (n - 1) // 2

    def settings_of(self, arm: Arm, seed: int) -> dict[str, Any]:
        """All settings of a run, by dotted name, without its length."""
        return {**self.base, **arm.settings, "train.seed": seed + arm.seed_shift}

    def arm(self, name: str) -> Arm:
        """The arm of this name. Raises ConfigError, with the nearest name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = [arm.name for arm in self.arms]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{self.path}: {name!r} is no arm.{hint} The arms are {'; '.join(names)}."
        )


def read_study(path: Path, sources: Sequence[str] = ()) -> Study:
    """Reads a study file. `sources` replace the file's own texts.

    Raises ConfigError that names the file and what to correct.
    """
    from lmsmith.study.check import check

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
    search = {"space": {}, **content["search"]} if "search" in content else {}
    scaling = {"fit": "power-law", **content["scaling"]} if "scaling" in content else {}
    budget, amount = _budget(content.get("budget"), path)
    study = Study(
        question=content.get("question", ""),
        sources=tuple(_placed(str(text), path) for text in sources or content.get("sources", ())),
        base=base,
        arms=() if search else _arms(axes, content.get("arms", {}), path),
        seeds=_seeds(content.get("seeds", 3), path),
        budget=budget,
        amount=amount,
        baseline=content.get("baseline"),
        metric=content.get("metric", METRICS[0]),
        difference=float(content.get("difference", 0.0)),
        deviation=float(content.get("deviation", 0.0)),
        axes=tuple(axes),
        scaling=scaling,
        search=search,
        path=path,
    )
    check(study)
    return study


def against_itself(study: Study, n_arms: int = 2) -> Study:
    """The A/A study: arms with the settings of the baseline, or of the first arm, which differ only
    in their seeds. Every difference that it shows is a false one."""
    arm = study.arm(study.baseline) if study.baseline is not None else study.arms[0]
    arms = tuple(Arm(f"A{i + 1}", arm.settings, i * SEED_STEP) for i in range(n_arms))
    return replace(
        study, question=f"A/A: {arm.name} against itself", arms=arms, baseline=None, scaling={}
    )


# ---- parts of the file ---------------------------------------------------------------------------


def _placed(source: str, path: Path) -> str:
    """The absolute path of a text, in the working directory or else beside the study file. Other
    names are those of corpora."""
    for found in (Path(source), path.parent / source):
        if found.exists():
            return str(found.resolve())
    return source


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
        if any(isinstance(value, dict) for value in values):
            raise ConfigError(
                f"{path}: the axis {name!r} has tables as values: expected values of one setting. "
                "Name combinations of settings in [arms]. With [axes] too, each arm is run at each "
                "point of the grid."
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
    return tuple(found)


def _name(name: str, point: Mapping[str, Any]) -> str:
    """A short name: the last part of each setting and its value."""
    parts = [f"{key.rsplit('.', 1)[-1]}={_shown(value)}" for key, value in point.items()]
    return " ".join(filter(None, [name, *parts]))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, str):
        return Path(value).name or "none"  # the last part of a path
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seeds(seeds: int | Sequence[Any], path: Path) -> tuple[int, ...]:
    found = list(range(1, seeds + 1)) if isinstance(seeds, int) else list(seeds)
    good = all(isinstance(seed, int) and seed >= 0 for seed in found)
    if not found or not good or len(set(found)) < len(found):
        raise ConfigError(f"{path}: seeds = {seeds!r}: expected a number, or different numbers.")
    return tuple(found)


def _budget(budget: Mapping[str, Any] | None, path: Path) -> tuple[Budget, float]:
    if not budget or len(budget) != 1 or next(iter(budget)) not in BUDGETS:
        raise ConfigError(
            f"{path}: [budget] is {dict(budget or {})}: expected one of tokens, flops, seconds and "
            "tokens_per_parameter, so that all arms have the same."
        )
    ((kind, amount),) = budget.items()
    if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
        raise ConfigError(f"{path}: budget.{kind} = {amount!r}: expected a number above 0.")
    return kind, float(amount)  # type: ignore[return-value]
