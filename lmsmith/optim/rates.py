"""The peak learning rates of a run's parameter groups, and the one option that scales them
together.

| setting of `optim` | group |
|---|---|
| muon_learning_rate | matrices inside blocks, with Muon |
| embedding_learning_rate | embedding tables; 0: as learning_rate |
| learning_rate | everything else: with Muon head, biases and gains |

`learning_rate` without a section (`--learning-rate X`) is the peak of the main group, which is
Muon's matrices with Muon and else what `optim.learning_rate` moves. The other groups keep the ratio
to it that preset and recipe give them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from lmsmith.config import OptimConfig, RunConfig
from lmsmith.errors import ConfigError

TOGETHER = "learning_rate"
"""What the setting is called that scales all groups; it is none of RunConfig, whose rates it
sets.
"""

_MOVES = {
    "muon_learning_rate": "matrices inside blocks",
    "embedding_learning_rate": "embedding tables",
    "learning_rate": "head, biases and gains",
}


def peak_rates(config: OptimConfig) -> dict[str, float]:
    """Each group's peak learning rate, by the name of its setting, the main group first."""
    rates = {
        "learning_rate": config.learning_rate,
        "embedding_learning_rate": config.embedding_learning_rate or config.learning_rate,
    }
    return (
        {"muon_learning_rate": config.muon_learning_rate} | rates
        if config.name == "muon"
        else rates
    )


def scaled_together(
    config: RunConfig, peak: Any, fixed: Collection[str], where: str
) -> dict[str, float]:
    """The settings that make `peak` the main group's rate and keep the ratios of all others to it.

    `fixed`: settings by dotted name, of which rates stay as they are. Raises ConfigError for a peak
    that is no number above 0, and where the main group's rate is among the fixed ones.
    """
    try:
        wanted = float(peak) if not isinstance(peak, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        wanted = math.nan
    if not 0 < wanted < math.inf:
        raise ConfigError(f"{TOGETHER} = {peak!r} in {where}: wanted a number above 0.")
    main = next(iter(peak_rates(config.optim)))
    if f"optim.{main}" in fixed:
        raise ConfigError(
            f"{TOGETHER} = {wanted:g} and optim.{main} = {getattr(config.optim, main):g} both set "
            f"the peak learning "
            "rate of the main group: set one of them."
        )
    scale = wanted / getattr(config.optim, main)
    others = [
        name for name in peak_rates(config.optim) if name != main and f"optim.{name}" not in fixed
    ]
    return {f"optim.{main}": wanted} | {
        f"optim.{name}": scale * getattr(config.optim, name) for name in others
    }


_OF_ONE = {"muon": "muon_", "sgd": "sgd_"}  # optimizer -> how its own settings begin


def partial_note(
    config: OptimConfig, given: Collection[str], *, resumed: bool = False
) -> str | None:
    """What to tell who sets the rate of some of Muon's and AdamW's groups and not of the others.

    Also of settings that belong to another optimizer. `given`: settings by dotted name. `resumed`:
    where there is no option that scales all groups.
    """
    if config.name in ("adamw", "muon", "sgd"):
        others = tuple(f"optim.{own}" for name, own in _OF_ONE.items() if name != config.name)
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
    moved = [
        *ours,
        *(["embedding_learning_rate"] if follows and "embedding_learning_rate" not in ours else []),
    ]
    kept = [f"{_MOVES[name]} ({rates[name]:g})" for name in rates if name not in moved]
    return (
        f"{' and '.join(f'optim.{name}' for name in ours)}: moves "
        f"{' and '.join(_MOVES[name] for name in moved)} "
        f"alone; unchanged: {', '.join(kept)}"
        + ("" if resumed else ". --learning-rate scales all together")
    )
