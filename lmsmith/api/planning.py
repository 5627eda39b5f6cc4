"""The call plan: costs of a run before it starts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api.training import where_settings_are
from lmsmith.errors import ConfigError

if TYPE_CHECKING:
    from lmsmith.config import RunConfig
    from lmsmith.plan.devices import Device
    from lmsmith.plan.fit import Limits
    from lmsmith.plan.grade import Grade
    from lmsmith.plan.predict import Plan


def plan(
    recipe: str | os.PathLike[str] | None = None,
    *,
    preset: str | None = None,
    device: str = "h100",
    devices: int = 1,
    price: float | None = None,
    fit: str | None = None,
    budget: str | None = None,
    hours: float | None = None,
    decode_batch: int = 1,
    method: str | None = None,
    prompt_tokens: int = 0,
    answer_tokens: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Predicts parameters, FLOPs, memory, time, energy and money of a run, without building it.

        plan = lmsmith.plan(preset="gpt2", device="a100-80gb", settings={"train.batch_size": 16})
        plan.memory.n_bytes, plan.step.seconds, plan.dollars
        print(plan)

    recipe    a recipe (.toml) or a run's folder
    preset    named settings to start from
    device    an accelerator of the table, or here: this machine, measured once in ten seconds
    devices   how many of them share each batch
    price     dollars per hour and device (default: the table's)
    fit       memory of each device, such as 24GB: chooses what fits
    budget    dollars, such as 100usd: chooses size and tokens
    hours     time limit: chooses size and tokens
    decode_batch  sequences that generation decodes together
    method    dpo, ipo, simpo, kto: preference optimization, as `align` does it; grpo, dr-grpo,
              dapo, reinforce: reinforcement learning, as `rl` does it (default: the recipe's)
    prompt_tokens, answer_tokens  lengths for `method`; default: half of the context each

    `settings`: settings of the run by dotted name. `as_dict()` of the result has all numbers.
    Raises ConfigError for impossible settings, an unknown device, and limits that nothing keeps.
    """
    from lmsmith.plan.devices import device as find
    from lmsmith.plan.predict import config_for, predict
    from lmsmith.plan.tuned import predict_tuning
    from lmsmith.plan.tuning import method_of, with_method

    changes = {**({} if preset is None else {"preset": preset}), **(settings or {})}
    config, given = config_for(
        None if recipe is None else os.fspath(recipe), changes, where_settings_are()
    )
    _check_counts(devices=devices, decode_batch=decode_batch)
    limits = _limits(fit, budget, hours)
    config = config if method is None else with_method(config, method)
    _check_method(method_of(config), bool(prompt_tokens or answer_tokens), limits is not None)
    found = find(device, price, _timer)
    if method_of(config):
        lengths = {"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
        return predict_tuning(config, given, found, devices, decode_batch=decode_batch, **lengths)
    if limits is None:
        return predict(config, found, devices, batch_of_inference=decode_batch)
    if limits.n_bytes is not None:
        found = dataclasses.replace(found, memory=limits.n_bytes)
    return _chosen(config, given, found, devices, limits, decode_batch)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} = {count}: expected 1 or more.")


def _limits(fit: str | None, budget: str | None, hours: float | None) -> Limits | None:
    """What is available, or None if nothing is limited."""
    from lmsmith.plan.fit import Limits, parse_bytes, parse_dollars

    if hours is not None and not 0 < hours < float("inf"):
        raise ConfigError(f"hours = {hours:g}: expected more than 0.")
    if (fit, budget, hours) == (None, None, None):
        return None
    return Limits(
        None if fit is None else parse_bytes(fit),
        None if hours is None else 3600 * hours,
        None if budget is None else parse_dollars(budget),
    )


def _check_method(method: str, has_lengths: bool, limited: bool) -> None:
    if has_lengths and not method:
        raise ConfigError("prompt_tokens and answer_tokens need a method, such as dpo or grpo.")
    if limited and method:
        raise ConfigError(
            "fit, budget and hours choose settings for training on text only: leave them out, "
            f"or leave out method {method!r}."
        )


def _chosen(
    config: RunConfig,
    given: set[str],
    device: Device,
    devices: int,
    limits: Limits,
    decode_batch: int,
) -> Plan:
    """The plan of the settings that `limits` leave, with a note of those that were chosen."""
    from lmsmith.plan.fit import fit
    from lmsmith.plan.predict import predict

    choice = fit(config, given, device, devices, limits)
    result = predict(choice.config, device, devices, batch_of_inference=decode_batch)
    if choice.chosen:
        options = " ".join(f"--{name} {_typed(value)}" for name, value in choice.chosen.items())
        result.notes.insert(0, f"chosen: {options}")
    return result


def sweep(
    name: str, values: Sequence[str], recipe: str | None = None, **options: Any
) -> list[tuple[str, Plan]]:
    """A plan for each value of one setting: `sweep("context_length", ["1024", "4096"])`.

    `name`: dotted, or without its section. Other arguments: as in `plan`. Raises ConfigError for an
    unknown setting.
    """
    full = setting_named(name)
    given = dict(options.pop("settings", None) or {})
    return [
        (f"{name}={value}", plan(recipe, **options, settings={**given, full: value}))
        for value in values
    ]


def setting_named(name: str) -> str:
    """The dotted name of a setting, from `context_length` or `model.context_length`."""
    from lmsmith.config import settings as every
    from lmsmith.config.settings import nearest

    known = dict(every())
    if name in known:
        return name
    found = [full for full in known if full.rpartition(".")[2] == name]
    if not found:
        hint = nearest(name, known)
        raise ConfigError(f"there is no setting {name!r} to sweep.{hint}")
    if len(found) > 1:
        raise ConfigError(
            f"{name!r} names several settings: {', '.join(found)}. Sweep one of them."
        )
    return found[0]


def plans_file(plans: Sequence[tuple[str, Plan]], out: str | os.PathLike[str]) -> Path:
    """Writes the plans with stacked bars, as PNG if `out` ends in .png, else as HTML; returns its
    path.

    Raises UsageError or StorageError if `out` cannot be written, UsageError for PNG without
    matplotlib.
    """
    from lmsmith import atomic

    path = Path(out)
    check_plans_file(path)
    if path.suffix.lower() == ".png":
        from lmsmith.report.plan_picture import plans_picture

        atomic.write(path, plans_picture(plans))
    else:
        from lmsmith.report.plans import plans_page

        atomic.write(path, plans_page(plans))
    return path


def check_plans_file(out: Path) -> None:
    """Raises UsageError or StorageError if `plans_file` cannot write `out`."""
    from lmsmith.report.comparison import check_output_path

    if out.suffix.lower() == ".png":
        from lmsmith.report.plan_picture import BEGINNING

        check_output_path(out, BEGINNING)
    else:
        check_output_path(out)


def _timer(config: RunConfig) -> float:
    """Seconds of a step on this machine."""
    from lmsmith.machine.limits import n_cores, omp_threads
    from lmsmith.train.ladder import seconds_of_step

    return seconds_of_step(config, omp_threads() or n_cores())


def grades() -> Iterator[Grade]:
    """Trains configs on this machine, in processes of their own, and yields each prediction with
    what was measured. Measures the machine again before each group of configs. Raises TrainingError
    if a process fails.
    """
    from lmsmith.plan.calibrate import calibration
    from lmsmith.plan.devices import of_machine
    from lmsmith.plan.grade import GROUP, cases, grade
    from lmsmith.plan.here import measured

    chosen = cases()
    for start in range(0, len(chosen), GROUP):
        here = measured(calibration(_timer), again=True, keep=False)
        yield from grade(chosen[start : start + GROUP], of_machine(here))


def _typed(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
