"""`Hook`, the base class for code that runs between training steps, and its `Context`.

    class Snapshot(Hook):
        name, every, at_end = "snapshot", 100, True

        def after_step(self, context):
            context.metrics.write(kind="snapshot", step=context.step, norm=norm_of(context.model))

    lmsmith.train("book.txt", steps=1000, hooks=[Snapshot()])

A hook's call after a step belongs to that step. If a run stops between the step and the call, the
resumed run makes the call, so it equals an uninterrupted run. For the same reason, a hook that
keeps values from call to call must return them from `state_dict`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from lmsmith.checkpoint import save_model
from lmsmith.config import RunConfig, flatten
from lmsmith.data.batches.windows import AnyBatches
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.ranks import Ranks
from lmsmith.models.interface import NeuralModel
from lmsmith.tokens.files import save_tokenizer
from lmsmith.train.guard import Guard
from lmsmith.train.log import MetricsFile, Progress, say
from lmsmith.train.plan import Stopwatch
from lmsmith.train.replica import Replica
from lmsmith.train.state import TrainState
from lmsmith.train.stop import Noted, Stopped

T = TypeVar("T")


class Interrupted(Stopped):
    """A signal ended a hook's work within `Context.interruptible`; the run saves and ends."""


class Hook:
    """Runs between training steps. Override the methods you need; all of them are optional.

    name        identifies the hook in messages and checkpoints: letters, digits and underscores.
                Default: the class name
    every       number of steps between calls of `after_step`; 0: only at the end
    at_end      also calls `after_step` after the last planned step
    collective  with several ranks: True calls the hook on every rank, and all must make the same
                calls; False (default) calls it on rank 0 only, where it must not communicate
    """

    name: str = ""
    every: int = 1
    at_end: bool = False
    collective: bool = False

    def due(self, context: Context) -> bool:
        """Returns whether to call `after_step` now. Must depend only on the step."""
        at_end = self.at_end and context.is_last_step
        return at_end or (self.every > 0 and context.step % self.every == 0)

    def on_start(self, context: Context) -> None:
        """Called when training starts or resumes (after `load_state_dict`)."""

    def after_step(self, context: Context) -> None:
        """Called after a step if due. `context.step` counts the steps made so far."""

    def on_end(self, context: Context) -> None:
        """Called before the final checkpoint, however the run ends, except by an error.

        `context.finished` is "steps", "time", "target", "requested" or "signal".
        """

    def state_dict(self) -> Mapping[str, Any]:
        """Returns the state that a resumed run needs, by name: tensors, and values that JSON can
        hold.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`. Tensors are full copies on the CPU; tuples have become lists."""


@dataclass(frozen=True)
class LastStep:
    """The latest step: `numbers` has its loss (nats per token), grad_norm and learning rates;
    `n_tokens` are the targets of its loss, `n_read` all tokens that the model reads.
    """

    numbers: Mapping[str, float]
    n_tokens: int
    seconds: float
    n_read: int


@dataclass
class Context:
    """A run as its hooks see it."""

    config: RunConfig
    corpus: Corpus
    run: Path  # the run's folder
    console: Console  # prints on rank 0 only
    ranks: Ranks
    device: torch.device
    replica: Replica  # the model prepared for training: optimizers, precision, DDP or FSDP2
    batches: AnyBatches
    guard: Guard
    state: TrainState  # step, losses, best weights: what a checkpoint holds
    about: dict[str, Any] = field(default_factory=dict)  # config and legs, saved in checkpoints
    leg_start: int = 0  # the step at which the newest leg began
    deadline: float = math.inf  # time.monotonic() by which the run must have saved
    peak_flops: float = math.nan  # FLOP/s of matrix products, all ranks together
    metrics: MetricsFile = field(default_factory=lambda: MetricsFile(None))
    progress: Progress | None = None  # the live bar
    last: LastStep | None = None  # None if the spike guard skipped the step
    took: Stopwatch = field(default_factory=Stopwatch)
    finished: str = ""  # why the run ended; empty while it trains
    stop_reason: str = ""  # the reason given to `request_stop`
    interrupted: bool = False  # whether a signal ended work within `interruptible`
    signals: Noted = field(default_factory=Noted)
    events: list[str] = field(
        default_factory=list
    )  # messages to write when metrics.jsonl is opened
    resources: ExitStack = field(default_factory=ExitStack)
    began: float = field(default_factory=time.monotonic)
    wall_seconds_before: float = 0.0  # spent by earlier processes of this run

    @property
    def model(self) -> NeuralModel:
        """The model itself; under FSDP2 its parameters are shards."""
        return self.replica.model

    @property
    def step(self) -> int:
        """Steps made so far."""
        return self.state.step

    @property
    def n_steps(self) -> int:
        """Steps planned; `--minutes` corrects the plan during the run."""
        return self.state.n_steps

    @property
    def is_last_step(self) -> bool:
        """Whether the run has reached its last planned step or its target validation loss."""
        return self.step >= self.n_steps or self.state.seconds_to_target < math.inf

    def say(self, message: str) -> None:
        """Prints a line on rank 0."""
        say(self.console, message)

    def event(self, message: str) -> None:
        """Writes an event of this step to metrics.jsonl."""
        self.metrics.write(kind="event", step=self.step, message=message)

    def request_stop(self, reason: str) -> None:
        """Ends the run before the next step, with a checkpoint. Any rank may call it."""
        self.stop_reason = self.stop_reason or reason

    def weights(self) -> dict[str, Tensor]:
        """Returns the model's parameters by name, not copied; under FSDP2 their shards."""
        return self.replica.weights(copy=False)

    def save_model(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Writes RUN/NAME, a model that `generate`, `eval` and `export` accept like a run.

        `weights`: full tensors under the names of `weights()`. Call it on rank 0. Raises
        StorageError.
        """
        content = {
            "model": flatten(vars(self.config.model)),
            "data": {"documents": self.config.data.documents},
            "step": self.step,
        }
        save_tokenizer(self.corpus.tokenizer, self.run / name)
        save_model(self.run / name, weights, content)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Use it around work that changes nothing: a signal ends it, and a resumed run repeats it.

        With several ranks a signal waits, because the other ranks wait for this one.
        """
        if self.ranks.world > 1:
            yield
            return
        try:
            with self.signals.at_once():
                yield
        except Stopped as stopped:
            self.interrupted = True
            raise Interrupted(stopped.signal) from None

    def enter(self, manager: AbstractContextManager[T]) -> T:
        """Enters a context manager that is exited when training ends, also after an error."""
        return self.resources.enter_context(manager)

    def wall_seconds(self) -> float:
        """Seconds that the run has taken so far, including earlier processes."""
        return self.wall_seconds_before + time.monotonic() - self.began
