"""Checks a study before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError, LmsmithError
from lmsmith.study.budget import BY_SIZE, budget_of, check_size_given, length_of, without_budget
from lmsmith.study.plan import METRICS, Arm, Study
from lmsmith.study.results import slug

LENGTHS = ("train.steps", "train.tokens", "train.minutes", "train.epochs", "train.seed")


def check(study: Study) -> None:
    """Raises ConfigError for settings that do not exist or do not fit, budgets that cannot be met,
    arms with the same config, and a study without a verdict."""
    path = study.path
    if not study.sources and not any(name.startswith("data.") for name in study.base):
        raise ConfigError(
            f"{path} names no text: add sources = [...], or name texts after the study file."
        )
    if study.metric not in METRICS:
        raise ConfigError(f"{path}: metric = {study.metric!r}: expected {' or '.join(METRICS)}.")
    for name in ("difference", "deviation"):
        if getattr(study, name) < 0:
            raise ConfigError(f"{path}: {name} = {getattr(study, name):g}: expected 0 or more.")
    if study.search:
        from lmsmith.study.search import check_search

        return check_search(study)
    if study.baseline is not None:
        study.arm(study.baseline)
    if len(study.arms) > 1 and len(study.seeds) < 2 and not study.scaling:
        raise ConfigError(
            f"{path}: one seed cannot tell a difference from noise. Set seeds = 3 or more."
        )
    _check_distinct(study)
    if study.scaling:
        from lmsmith.study.ladder import check_scaling

        check_scaling(study)


def check_lengths(study: Study, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a length or a seed among the settings of an arm or of the base."""
    for name in LENGTHS:
        if name in settings or (name in study.base and name != "train.seed"):
            raise ConfigError(
                f"{study.path} sets {name}, which the study itself sets by [budget] and seeds. "
                "Remove it."
            )


def config_of(study: Study, arm: Arm, seed: int) -> tuple[RunConfig, dict[str, Any]]:
    """The config of a run before its text is read, and the settings that `train` gets, its length
    included. Raises ConfigError that names the arm."""
    from lmsmith.train.request import asked

    where, settings = str(study.path), without_budget(study.settings_of(arm, seed))
    try:
        config, given = asked(study.sources, settings, where)
        kind, _ = budget_of(study, arm)
        if kind in BY_SIZE and not config.model.counted:
            check_size_given(config, given, f"arm {arm.name!r} of {where}", kind)
        settings |= length_of(study, arm, config)
    except LmsmithError as error:
        message = str(error)
        prefix = "" if message.startswith("arm ") else f"arm {arm.name!r} of {where}: "
        raise ConfigError(f"{prefix}{message}") from error
    return config.changed(_length(settings), where=where), settings


def _length(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in LENGTHS}


def _check_distinct(study: Study) -> None:
    """Raises ConfigError for two arms with the same config, or with the same file names."""
    slugs: dict[str, str] = {}
    configs: list[tuple[RunConfig, str]] = []
    for arm in study.arms:
        check_lengths(study, arm.settings)
        config, _ = config_of(study, arm, study.seeds[0])
        for other, name in configs:
            if other == config:
                raise ConfigError(
                    f"{study.path}: the arms {name!r} and {arm.name!r} have the same settings. "
                    "Remove one, or use `lmsmith study --a-a` to measure the noise."
                )
        configs.append((config, arm.name))
        if (short := slug(arm.name)) in slugs:
            raise ConfigError(
                f"{study.path}: the arms {slugs[short]!r} and {arm.name!r} would have the same "
                "folder. Rename one."
            )
        slugs[short] = arm.name
