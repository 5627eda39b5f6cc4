"""Truncated backpropagation through time against a manual loop, and its resume to the same weights."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TEXT

import lmsmith.train.loop
from lmsmith.checkpoint import load_checkpoint
from lmsmith.config import RunConfig
from lmsmith.data.batches.packing import batches_of
from lmsmith.data.batches.streams import Streams
from lmsmith.data.corpus import Corpus
from lmsmith.errors import ConfigError, TrainingError
from lmsmith.models.rnn import RNN
from lmsmith.tokens.tokenizer import CharTokenizer
from lmsmith.train.guard import Guard, SpikeError
from lmsmith.train.loop import Training
from lmsmith.train.replay import replay

Make = Callable[..., Training]

CARRY: dict[str, Any] = {
    "model.kind": "rnn",
    "model.cell": "lstm",
    "model.n_layer": 2,
    "model.d_model": 16,
    "model.context_length": 16,
    "model.vocab_size": CharTokenizer.learn([TEXT], False).vocab_size,
    "optim.name": "adamw",
    "train.truncated_bptt": True,
}
SGD: dict[str, Any] = {
    "optim.name": "sgd",
    "optim.learning_rate": 0.5,
    "optim.sgd_momentum": 0.0,
    "optim.sgd_nesterov": False,
    "schedule.shape": "constant",
    "schedule.warmup_steps": 0,
    "train.dtype": "float64",
}


@pytest.fixture
def corpus(corpus: Corpus) -> Corpus:
    """So little text that it soon repeats."""
    return replace(corpus, train=corpus.train[: len(corpus.train) // 4])


def losses_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize(("cell", "micro"), [("elman", 0), ("gru", 0), ("lstm", 2)])
def test_steps_equal_those_of_a_manual_loop(
    training: Make, corpus: Corpus, cell: str, micro: int
) -> None:
    T = 50
    changes = {
        "model.cell": cell,
        "model.context_length": T,
        "train.micro_batch_size": micro,
        "train.eval_every": 20,
    }
    run = training(CARRY | SGD | changes)
    model = RNN(run.context.config.model).double()
    model.load_state_dict({name: p.clone() for name, p in run.context.model.state_dict().items()})
    batches = run.context.batches
    assert isinstance(batches, Streams)
    assert 2 * batches.n_steps < 20, "the text repeats twice"
    run.go()
    wanted, state = [], model.new_state(4)
    for step in range(20):
        epoch, place = divmod(step, batches.n_steps)
        begin = _first(corpus, batches, epoch) + place * T
        rows = [
            corpus.train[begin + r * batches.n_steps * T :][: T + 1].astype(np.int64)
            for r in range(4)
        ]
        ids = torch.from_numpy(np.stack(rows))
        state = state.detach() if place else model.new_state(4)
        loss = F.cross_entropy(model(ids[:, :-1], state).flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.5 * p.grad  # type: ignore[operator]
        wanted.append(loss.item())
    assert losses_of(run.context.run) == pytest.approx(wanted, rel=1e-9)
    assert wanted[-1] < wanted[0]
    for p, q in zip(run.context.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def _first(corpus: Corpus, batches: Streams, epoch: int) -> int:
    """Where in the text an epoch starts, found by its first row."""
    row = batches.rows(epoch * batches.n_steps).inputs[0]
    found = np.lib.stride_tricks.sliding_window_view(corpus.train, len(row))
    return next(i for i in range(batches.T) if np.array_equal(found[i], row))


@pytest.mark.parametrize("call", [3, 11])
def test_a_killed_run_reaches_the_same_weights(
    training: Make, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    changes = CARRY | {
        "model.context_length": 24,
        "train.save_every": 4,
        "train.micro_batch_size": 2,
    }
    oracle = training(changes, run="oracle")
    oracle.go()
    train_step, n_calls = lmsmith.train.loop.train_step, 0

    def signalled(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            signal.raise_signal(signal.SIGTERM)
        return train_step(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(lmsmith.train.loop, "train_step", signalled)
        assert training(changes).go()["finished"] == "signal"
    saved = load_checkpoint(oracle.context.run.parent / "run").tensors["carried"]
    assert set(saved) == {
        f"{row}/{i}" for row in (0, 2) for i in range(4)
    }  # two micro-batches, h and c of two layers
    assert all(tensor.shape == (2, 16) and tensor.abs().sum() > 0 for tensor in saved.values())
    again = training(changes)
    assert again.restore()
    again.go()
    assert losses_of(again.context.run) == losses_of(oracle.context.run)
    weights = again.context.replica.weights(copy=False)
    assert all(
        torch.equal(p, weights[name])
        for name, p in oracle.context.replica.weights(copy=False).items()
    )


def test_a_rejected_step_is_repeated_from_the_same_state(
    training: Make, monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    changes = CARRY | {"model.context_length": 24, "train.steps": 9, "train.eval_every": 9}
    oracle = training(changes, run="oracle")
    oracle.go()
    judge = Guard.judge

    def strict(self: Guard, step: int, loss: float, norm: float) -> None:
        if step == 6:
            raise SpikeError("too much", "stop", loss, norm)
        judge(self, step, loss, norm)

    run = training(changes)
    with monkeypatch.context() as patched:
        patched.setattr(Guard, "judge", strict)
        with pytest.raises(TrainingError, match="Step 6 is saved"):
            run.go()
    monkeypatch.setattr("lmsmith.train.replay.open_run", lambda place: (run.context.config, corpus))
    assert replay(run.context.run / "spikes" / "step-00000007").same
    again = training(changes)
    assert again.restore()
    again.go()
    assert losses_of(again.context.run) == losses_of(oracle.context.run)


def test_without_it_windows_start_with_empty_states(training: Make) -> None:
    run = training(CARRY | {"train.truncated_bptt": False})
    assert run.context.replica.carried is None
    run.go()
    assert "carried" not in load_checkpoint(run.context.run).tensors
    assert math.isfinite(run.state.val_loss)


def test_separate_documents_are_refused(config: RunConfig, corpus: Corpus) -> None:
    apart = config.changed(CARRY | {"data.documents": "rows"}, where="a test")
    with pytest.raises(ConfigError, match=r"train\.truncated_bptt"):
        batches_of(apart, corpus.train, corpus.tokenizer)
