"""Peak learning rates of the parameter groups, and one option that scales them all.

| setting of `optim` | group |
|---|---|
| muon_learning_rate | matrices inside blocks, with Muon |
| embedding_learning_rate | embedding tables; 0: same as learning_rate |
| learning_rate | everything else: with Muon head, biases and gains |

`learning_rate` without a section (`--learning-rate X`) sets the peak of the main group: Muon's
matrices with Muon, otherwise the group of `optim.learning_rate`. The other groups keep their ratio
to it, as set by preset and recipe.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from lmsmith.config import OptimConfig, RunConfig
from lmsmith.errors import ConfigError

TOGETHER = "learning_rate"
"""The name of the setting that scales all groups. It is not a field of RunConfig; it sets
RunConfig's rates.
"""

_GROUP = {
    "muon_learning_rate": "matrices inside blocks",
    "embedding_learning_rate": "embedding tables",
    "learning_rate": "head, biases and gains",
}


def peak_rates(config: OptimConfig) -> dict[str, float]:
    """Returns each group's peak learning rate, by the name of its setting, main group first."""
    rates = {
        "learning_rate": config.learning_rate,
        "embedding_learning_rate": config.embedding_learning_rate or config.learning_rate,
    }
    return (
        {"muon_learning_rate": config.muon_learning_rate} | rates
        if config.name == "muon"
        else rates
    )


def scale_all_groups(
    config: RunConfig, peak: Any, fixed: Collection[str], where: str
) -> dict[str, float]:
    """Returns the settings that set the main group's rate to `peak` and keep all other groups'
    ratios to it.

    `fixed`: dotted names of settings whose rates stay as they are. Raises ConfigError if the peak
    is not a number above 0, or if the main group's rate is among the fixed ones.
    """
    try:
        rate = float(peak) if not isinstance(peak, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ConfigError(f"{TOGETHER} = {peak!r} in {where}: expected a number above 0.")
    main = next(iter(peak_rates(config.optim)))
    if f"optim.{main}" in fixed:
        raise ConfigError(
            f"{TOGETHER} = {rate:g} and optim.{main} = {getattr(config.optim, main):g} both set "
            "the peak learning rate of the main group: set only one of them."
        )
    scale = rate / getattr(config.optim, main)
    others = [
        name for name in peak_rates(config.optim) if name != main and f"optim.{name}" not in fixed
    ]
    return {f"optim.{main}": rate} | {
        f"optim.{name}": scale * getattr(config.optim, name) for name in others
    }


_OWN_PREFIX = {"muon": "muon_", "sgd": "sgd_"}  # optimizer -> prefix of its own settings


def note_on_rates(
    config: OptimConfig, given: Collection[str], *, resumed: bool = False
) -> str | None:
    """Returns a note for users who set the rates of some groups of Muon and AdamW but not the
    others.

    It also names settings that belong to another optimizer and have no effect. `given`: dotted
    names of the settings that were set. `resumed`: there is no option that scales all groups.
    """
    if config.name in ("adamw", "adam", "muon", "sgd"):
        others = tuple(f"optim.{own}" for name, own in _OWN_PREFIX.items() if name != config.name)
        default = OptimConfig()
        idle = [
            name
            for name in sorted(given)
            if name.startswith(others)
            and getattr(config, name[6:], None) != getattr(default, name[6:], None)
        ]
        if idle:
            return f"{' and '.join(idle)}: no effect with optim.name {config.name}"
    ours = [name for name in peak_rates(config) if f"optim.{name}" in given]
    if config.name != "muon" or not ours or {"muon_learning_rate", "learning_rate"} <= set(ours):
        return None
    rates = peak_rates(config)
    follows = "learning_rate" in ours and not config.embedding_learning_rate
    changed = [
        *ours,
        *(["embedding_learning_rate"] if follows and "embedding_learning_rate" not in ours else []),
    ]
    unchanged = [f"{_GROUP[name]} ({rates[name]:g})" for name in rates if name not in changed]
    return (
        f"{' and '.join(f'optim.{name}' for name in ours)}: changes only "
        f"{' and '.join(_GROUP[name] for name in changed)}; unchanged: {', '.join(unchanged)}"
        + ("" if resumed else ". --learning-rate scales all groups")
    )
