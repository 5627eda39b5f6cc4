"""The learning rate as a share of its peak: a pure function of the step, the number of steps and the config."""

import math

from lmsmith.config import ScheduleConfig


def learning_rate_share(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """Share of the peak for update `step` of `n_steps`, counted from 0.

    Warm-up is linear and never zero: update 0 has 1/warmup_steps. Whatever comes down then begins at the peak and comes
    to `final_fraction` at step `n_steps`, the one after the last, so that no update is wasted on a share of zero. A
    trapezoid's cool-down is no longer than the steps after warm-up.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.shape == "constant":
        return 1.0
    if config.shape == "inverse-sqrt":  # Vaswani et al. 2017, eq. 3
        warm = max(1, config.warmup_steps)
        return max(config.final_fraction, math.sqrt(warm / max(warm, step)))
    n_after = n_steps - config.warmup_steps
    n_down = min(n_after, config.cooldown_fraction * n_steps) if config.shape == "trapezoid" else n_after
    if step >= n_steps:
        share = 0.0
    else:
        share = min(1.0, (n_steps - step) / n_down) if n_down else 1.0
    if config.shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return config.final_fraction + (1 - config.final_fraction) * share
