"""Learning rate schedules: the share of the peak rate, given the step and the number of steps.

Each schedule is a function (step, n_steps, config) -> share, registered by name in
`config/optim.py`. `learning_rate_share` adds the linear warm-up. Decaying schedules start at the
peak after warm-up. They reach `final_fraction` at step `n_steps`, one after the last, so that no
step is wasted at a rate of zero.
"""

import math

from lmsmith.config import SCHEDULES, ScheduleConfig


def learning_rate_share(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """Returns the share of the peak rate at step `step` of `n_steps`, counted from 0.

    Warm-up is linear and never zero: step 0 has 1/warmup_steps.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    return SCHEDULES.get(config.shape)(step, n_steps, config)


def constant(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """The peak throughout."""
    return 1.0


def inverse_sqrt(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """1/sqrt(step), scaled to the peak at the end of warm-up (Vaswani et al. 2017, eq. 3)."""
    warm = max(1, config.warmup_steps)
    return max(config.final_fraction, math.sqrt(warm / max(warm, step)))


def linear(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """Decays linearly from the peak to `final_fraction`."""
    return _above_final(_left(step, n_steps, n_steps - config.warmup_steps), config)


def cosine(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """Decays along half a cosine from the peak to `final_fraction`."""
    left = _left(step, n_steps, n_steps - config.warmup_steps)
    return _above_final((1 - math.cos(math.pi * left)) / 2, config)


def trapezoid(step: int, n_steps: int, config: ScheduleConfig) -> float:
    """The peak, then a linear cool-down that starts after warm-up at the earliest."""
    n_down = min(n_steps - config.warmup_steps, config.cooldown_fraction * n_steps)
    return _above_final(_left(step, n_steps, n_down), config)


def _left(step: int, n_steps: int, n_down: float | int) -> float:
    """Returns the share of the last `n_down` steps that is still ahead."""
    if step >= n_steps:
        return 0.0
    return min(1.0, (n_steps - step) / n_down) if n_down else 1.0


def _above_final(share: float, config: ScheduleConfig) -> float:
    return config.final_fraction + (1 - config.final_fraction) * share
