"""A resumed run restores everything that the rest of the run depends on.

Each test stops a run where the tested part of the state matters, and compares the rest with an
uninterrupted run.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lmsmith.train.step
from lmsmith.checkpoint import load_checkpoint, load_model
from lmsmith.evaluate.likelihood import Score
from lmsmith.optim.scaling import GradientScale
from lmsmith.train.hooks import Context, Hook
from lmsmith.train.hooks.evaluate import Evaluate
from lmsmith.train.loop import Training

Make = Callable[..., Training]
Tensors = dict[str, torch.Tensor]


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class StopAt(Hook):
    """Stops a run after `step` steps."""

    def __init__(self, step: int) -> None:
        self.every = step

    def after_step(self, context: Context) -> None:
        context.request_stop("a test")


@pytest.mark.parametrize("stop", [10, 13, 15, 17])
def test_best_weights_from_before_the_checkpoint(
    training: Make, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The best step is 10 and the run stops there or later, between two evaluations or at one."""
    losses = {5: 3.0, 10: 2.0, 15: 2.5, 20: 2.2}
    monkeypatch.setattr(
        Evaluate, "score", lambda self, context: Score(losses[context.step] * 100, 100, 100)
    )
    oracle = training(run="oracle")
    oracle.go()
    first = training(hooks=[StopAt(stop)])
    first.go()
    groups = load_checkpoint(first.context.run).tensors
    assert ("best" in groups) == (stop != 10)  # at the best step, the weights are the best ones
    again = training()
    assert again.restore(without_hooks=["StopAt"])
    assert again.state.step == stop
    assert again.go()["best_step"] == 10
    (found, content), (wanted, _) = (
        load_model(run.context.run / "model") for run in (again, oracle)
    )
    assert content["step"] == 10
    assert same(found, wanted)
    assert not same(found, again.context.replica.weights(copy=False))
    best = [load_checkpoint(run.context.run).tensors["best"] for run in (again, oracle)]
    assert same(*best)
    assert same(best[0], wanted)


def test_the_spike_guard(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spikes in a row come right before the stop; each number of the guard is restored."""
    gradient = lmsmith.train.step.gradient
    calls = itertools.count()

    def spiking(replica: Any, batches: Any, step: int) -> tuple[float, float]:
        loss, norm = gradient(replica, batches, step)
        return loss, norm * (1000 if next(calls) in (60, 61) else 1)

    monkeypatch.setattr(lmsmith.train.step, "gradient", spiking)
    changes = {"train.steps": 62, "train.eval_every": 62, "train.on_spike": "skip"}
    first = training(changes)
    first.context.guard.left_out.append(900)
    first.go()
    assert first.context.guard.n_in_a_row == 2
    again = training(changes)
    assert again.restore()
    assert again.context.guard.state() == first.context.guard.state()
    assert again.context.guard.loss.n == again.context.guard.norm.n == 60
    assert again.context.guard.loss != again.context.guard.norm


def test_the_gradient_scale(training: Make) -> None:
    """The scale of float16 and the number of steps since its last change."""
    first = training({"train.steps": 3})
    first.context.replica.scale = GradientScale(True, value=2048.0, n_good=40)
    first.go()
    again = training({"train.steps": 3})
    again.context.replica.scale = GradientScale(True)
    assert again.restore()
    assert again.context.replica.scale == GradientScale(True, value=2048.0, n_good=43)
