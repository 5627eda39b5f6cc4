"""The learning rate as a share of its peak: a pure function of the step, the number of steps and the config."""

import math

from lmsmith.config import ScheduleConfig


def learning_rate_share(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """Share of the peak for update `step` of `n_steps`, counted from 0.

    Warm-up is linear and never zero: update 0 has 1/warmup_steps. The last update has the share `final_fraction` of
    its shape's end, approached as if the update after the last would reach it.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = (n_steps - step) / max(1, n_steps - config.warmup_steps)  # 1 after warm-up, 1/n at the last update
    left = min(1.0, max(0.0, left))
    if config.shape == "constant":
        return 1.0
    if config.shape == "linear":
        share = left
    elif config.shape == "cosine":
        share = (1 + math.cos(math.pi * (1 - left))) / 2
    else:
        cooldown = config.cooldown_fraction * n_steps
        share = min(1.0, max(0, n_steps - step) / cooldown) if cooldown else 1.0
    return config.final_fraction + (1 - config.final_fraction) * share
