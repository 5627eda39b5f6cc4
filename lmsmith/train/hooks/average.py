"""Averages the weights of the last steps (Izmailov et al. 2018, "Averaging Weights Leads to Wider
Optima and Better Generalization").

At the end of training, `Evaluate` also scores the average, and keeps it as the best weights if its
validation loss is the lowest. Training itself does not see it.
"""

from __future__ import annotations

import torch

from lmsmith.train.hooks.hook import Context, Hook

EVERY = 8  # steps between two samples of the weights: neighbours are nearly equal


class Average(Hook):
    """Adds the weights to their running mean, in the last `train.average_fraction` of the steps."""

    name = "mean_weights"
    every = EVERY
    at_end = True
    collective = True

    def due(self, context: Context) -> bool:
        fraction = context.config.train.average_fraction
        started = context.step > (1 - fraction) * context.n_steps
        return fraction > 0 and started and super().due(context)

    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        state = context.state
        if state.step - state.averaged_step > EVERY:  # also an extended run starts again
            state.n_averaged = 0
        state.n_averaged += 1
        state.averaged_step = state.step
        for name, weight in context.weights().items():
            mean = state.average.setdefault(name, torch.zeros_like(weight))
            mean.lerp_(weight, 1 / state.n_averaged)
