"""The mean of the last weights. The oracles: the mean of weights that a hook copied, the loss that
`score_ids` gives a saved model, and an uninterrupted run.
"""

import io
import json
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lmsmith
import lmsmith.train.loop
from lmsmith.checkpoint import load_checkpoint, load_model
from lmsmith.train.hooks import Context, Hook
from lmsmith.train.loop import Training

Make = Callable[..., Training]
SLOW = {"train.steps": 40, "optim.muon_learning_rate": 1e-4, "optim.learning_rate": 1e-4}
NOISY = {
    "train.steps": 64,
    "schedule.shape": "constant",
    "optim.muon_learning_rate": 0.2,
    "optim.learning_rate": 0.03,
    "train.average_fraction": 0.5,
}


class Copies(Hook):
    """The weights after each step."""

    name = "copies"
    at_end = True

    def __init__(self) -> None:
        self.of: dict[int, dict[str, np.ndarray[Any, Any]]] = {}

    def after_step(self, context: Context) -> None:
        self.of[context.step] = {n: p.double().numpy() for n, p in context.weights().items()}
        self.of[context.step] = {n: p.copy() for n, p in self.of[context.step].items()}

    def mean(self, *steps: int) -> dict[str, np.ndarray[Any, Any]]:
        return {n: np.mean([self.of[step][n] for step in steps], 0) for n in self.of[steps[0]]}


def test_the_best_weights_are_the_mean_of_the_last_ones(training: Make, said: io.StringIO) -> None:
    copies = Copies()
    run = training(NOISY, hooks=[copies])
    summary = run.go()
    wanted = copies.mean(40, 48, 56, 64)  # the multiples of 8 after step 32
    for name, p in load_model(run.context.run / "model")[0].items():
        assert torch.allclose(p.double(), torch.from_numpy(wanted[name]), atol=1e-6), name
    assert summary["best_is_average"]
    assert summary["best_val_loss"] < summary["val_loss"]
    assert "with the mean of the last 4 weights, 8 steps apart: the best so far" in said.getvalue()
    events = (run.context.run / "metrics.jsonl").read_text().splitlines()
    assert any("mean of the last 4" in json.loads(line).get("message", "") for line in events)


def test_the_loss_is_that_of_the_saved_model(training: Make) -> None:
    run = training(NOISY)
    summary = run.go()
    corpus = run.context.corpus
    text = corpus.tokenizer.decode(corpus.validation)
    found = lmsmith.load(run.context.run).score(text)
    assert found.nats_per_token == pytest.approx(summary["best_val_loss"], rel=1e-5)


def test_training_does_not_see_the_mean(training: Make) -> None:
    with_mean, without = (
        training(NOISY, run="one"),
        training(NOISY | {"train.average_fraction": 0.0}, run="other"),
    )
    assert with_mean.go()["val_loss"] == without.go()["val_loss"]
    weights = without.context.weights()
    for name, weight in with_mean.context.weights().items():
        assert torch.equal(weight, weights[name]), name
    assert "average" not in load_checkpoint(without.context.run).tensors


def test_newer_weights_stay_the_best_if_the_mean_is_worse(
    training: Make, said: io.StringIO
) -> None:
    run = training(SLOW | {"schedule.shape": "constant", "train.average_fraction": 1.0})
    summary = run.go()
    assert not summary["best_is_average"]
    assert summary["best_val_loss"] == summary["val_loss"]
    assert "with the mean of the last 5 weights, 8 steps apart: not the best" in said.getvalue()
    saved = load_model(run.context.run / "model")[0]
    for name, weight in run.context.weights().items():
        assert torch.equal(saved[name], weight), name


@pytest.mark.parametrize("where", ["train_step", "evaluation", "evaluation of the mean"])
def test_a_stopped_run_resumes_to_the_same_mean(
    training: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Signals at step 51, in the evaluation at step 48, and in that of the mean at step 64."""
    changes = NOISY | {"train.eval_every": 16}
    whole, first = training(changes, run="whole"), training(changes)
    whole.go()
    owner: Any = lmsmith.train.loop if where == "train_step" else first.hooks.evaluate
    name = "train_step" if where == "train_step" else "score"
    original, n_calls = getattr(owner, name), 0
    stop_at = {"train_step": 51, "evaluation": 3, "evaluation of the mean": 5}[where]

    def signalled(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, signalled)
        assert first.go()["finished"] == "signal"
    second = training(changes)
    assert second.restore()
    assert second.go()["finished"] == "steps"
    assert second.state.best_is_average == whole.state.best_is_average
    assert second.state.best_val_loss == whole.state.best_val_loss
    for group in ("model", "best", "average"):
        found = load_checkpoint(second.context.run).tensors[group]
        for tensor_name, tensor in load_checkpoint(whole.context.run).tensors[group].items():
            assert torch.equal(found[tensor_name], tensor), (group, tensor_name)
