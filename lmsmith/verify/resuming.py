"""Complete small runs: resumed against uninterrupted, and the files that they leave."""

from __future__ import annotations

import io
import json
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from lmsmith.checkpoint import load_checkpoint, load_model
from lmsmith.config import RunConfig
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.evaluate.likelihood import score_ids
from lmsmith.tokens.tokenizer import CharTokenizer
from lmsmith.train.hooks import Context, Hook
from lmsmith.train.loop import Training
from lmsmith.train.stop import Stopped
from lmsmith.verify.models import T
from lmsmith.verify.registry import apart, equivalence, unequal

STEPS, EVERY, STOP = 24, 4, 14


class _Keep(Hook):
    """Copies the weights at every evaluation."""

    name = "keep"

    def __init__(self, every: int) -> None:
        self.every, self.kept = every, dict[int, dict[str, Tensor]]()

    def after_step(self, context: Context) -> None:
        self.kept[context.step] = {
            name: weight.clone() for name, weight in context.replica.weights(copy=True).items()
        }


class _Stop(Hook):
    name = "stop"

    def __init__(self, every: int) -> None:
        self.every = every

    def after_step(self, context: Context) -> None:
        context.request_stop("verify")


@contextmanager
def _place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def _corpus() -> Corpus:
    """Few random ids: the model soon memorizes them, and the validation loss rises again."""
    rng, tokenizer = np.random.default_rng(1), CharTokenizer.learn([string.ascii_lowercase], True)
    train, validation = (rng.integers(0, 26, n).astype(np.uint16) for n in (8 * T, 200))
    return Corpus(train, validation, tokenizer, Counts(len(train), 200, 200, 0, 0, ()))


def _training(run: Path, *hooks: Hook, dropout: float = 0.1) -> Training:
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": T}
    sizes |= {"vocab_size": 27, "ngram_table_size": 64, "dropout": dropout}
    settings = {f"model.{name}": value for name, value in sizes.items()} | {
        "optim.learning_rate": 0.02,
        "schedule.shape": "cosine",
        "train.dtype": "float32",
        "train.batch_size": 4,
        "train.steps": STEPS,
        "train.eval_every": EVERY,
        "train.log_every": 1,
        "train.save_every": 7,
        "train.matmul": "default",
        "train.threads": 1,
    }
    run.mkdir(exist_ok=True)
    return Training(
        RunConfig().changed(settings, where="verify"),
        _corpus(),
        run,
        Console(file=io.StringIO()),
        device=torch.device("cpu"),
        peak_flops=1e9,
        hooks=hooks,
    )


def _go(training: Training) -> None:
    """Trains to the end. A training run that gets a signal saves and returns; there is nothing to
    save here, so Ctrl-C ends the whole check.
    """
    training.go()
    if training.context.signals.signal is not None:
        raise Stopped(training.context.signals.signal)


@equivalence("resume", "stopped and resumed; uninterrupted", bound=0.0)
def resume() -> float:
    """With dropout, a decaying rate, and the best weights from before the stop."""
    with _place() as place:
        return resumed_apart(uninterrupted(place / "one"), place / "two", STOP)


def uninterrupted(run: Path) -> Path:
    """Trains in one go, and returns the run's folder."""
    _go(_training(run))
    return run


def resumed_apart(one: Path, run: Path, stop: int) -> float:
    """The difference between a run and one that stops after `stop` steps and is resumed."""
    _go(_training(run, _Stop(stop)))
    again = _training(run)
    if not again.restore(without_hooks=["stop"]):
        return float("inf")
    _go(again)
    ours, theirs = (load_checkpoint(place) for place in (one, run))
    worst = max(
        _tensors_apart(ours.tensors[group], theirs.tensors[group]) for group in ours.tensors
    )
    best = [load_model(place / "model")[0] for place in (one, run)]
    worst = max(worst, _tensors_apart(*best))
    return max(worst, unequal(*(_losses(place) for place in (one, run))))


@equivalence("best weights", "RUN/model; lowest validation loss", bound=0.0)
def best_weights() -> float:
    with _place() as place:
        keep = _Keep(EVERY)
        training = _training(place / "run", keep)
        _go(training)
        losses = {
            line["step"]: line["val_loss"]
            for line in _metrics(place / "run")
            if line["kind"] == "eval"
        }
        best = min(losses, key=lambda step: losses[step])
        saved, content = load_model(place / "run" / "model")
        if content["step"] != best or best == STEPS:
            return float("inf")
        worst = _tensors_apart(saved, keep.kept[best])
        last = keep.kept[STEPS]
        return worst if any(not torch.equal(saved[name], last[name]) for name in last) else 1.0


@equivalence("validation loss", "while training; scored afterwards", bound=1e-6)
def validation_loss() -> float:
    """Dropout is off while a run evaluates, and on again afterwards."""
    with _place() as place:
        training = _training(place / "run", dropout=0.5)
        _go(training)
        found = [line["val_loss"] for line in _metrics(place / "run") if line["kind"] == "eval"]
        model: Any = training.context.model
        if not model.training:
            return float("inf")
        model.eval()
        validation = training.context.corpus.validation
        assert isinstance(validation, np.ndarray)
        expected = score_ids(model, validation, n_bytes=200).nats_per_token
        return apart(found[-1], expected)


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _losses(run: Path) -> list[list[Any]]:
    names = ("kind", "step", "loss", "grad_norm", "learning_rate", "val_loss")
    lines = [line for line in _metrics(run) if line["kind"] in ("train", "eval")]
    return [[line.get(name) for name in names] for line in lines]


def _tensors_apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    if one.keys() != other.keys():
        return float("inf")
    return max(apart(one[name].float(), other[name].float()) for name in one)
