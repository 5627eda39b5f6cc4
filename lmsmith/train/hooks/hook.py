"""`Hook`, the base class of whatever runs between training steps, and the `Context` it is given.

    class Snapshot(Hook):
        name, every, at_end = "snapshot", 100, True

        def after_step(self, context):
            context.metrics.write(kind="snapshot", step=context.step, norm=norm_of(context.model))

    lmsmith.train("book.txt", steps=1000, hooks=[Snapshot()])

A hook's call after a step belongs to that step. A run that was stopped between the step and the
call makes the call when it is resumed, so that a resumed run equals an undisturbed one. For the
same reason a hook that carries something from call to call must hand it out in `state_dict`.
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
    """A signal ended a hook's work within `Context.interruptible`: the run saves and ends."""


class Hook:
    """Runs between training steps. Override what you need; every method may be left as it is.

    name        identifies the hook in messages and in checkpoints; the class's name if empty.
                Letters, digits and underscores
    every       call `after_step` after every so many steps; 0: only at the end
    at_end      call it after the last planned step, too
    collective  under several ranks: True calls the hook on every rank, and all calls must agree;
                False (the default) calls it on rank 0 alone, where it must not talk to the others
    """

    name: str = ""
    every: int = 1
    at_end: bool = False
    collective: bool = False

    def due(self, context: Context) -> bool:
        """Whether `after_step` is to be called now. Must be a function of the step."""
        at_end = self.at_end and context.is_last_step
        return at_end or (self.every > 0 and context.step % self.every == 0)

    def on_start(self, context: Context) -> None:
        """Called when training starts, and when it is resumed (after `load_state_dict`)."""

    def after_step(self, context: Context) -> None:
        """Called after a step, where it is due. `context.step` counts the steps made so far."""

    def on_end(self, context: Context) -> None:
        """Called before the final checkpoint, however the run ends, unless an error ends it.

        `context.finished` says why: "steps", "time", "target", "requested" or "signal".
        """

    def state_dict(self) -> Mapping[str, Any]:
        """What a resumed run must know: tensors, and values that JSON can hold, by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse. Tensors are copies on the CPU, whole even under FSDP2; tuples are lists."""


@dataclass(frozen=True)
class LastStep:
    """The step just made: `numbers` are its loss (nats per token), grad_norm and learning rates."""

    numbers: Mapping[str, float]
    n_tokens: int
    seconds: float


@dataclass
class Context:
    """A run as its hooks see it."""

    config: RunConfig
    corpus: Corpus
    run: Path  # the run's folder
    console: Console  # quiet on all ranks but the first
    ranks: Ranks
    device: torch.device
    replica: Replica  # the model prepared for training: optimizers, precision, DDP or FSDP2
    batches: AnyBatches
    guard: Guard
    state: TrainState  # step, losses, best weights: what a checkpoint holds
    about: dict[str, Any] = field(default_factory=dict)  # in checkpoints: the config and the legs
    leg_start: int = 0  # the step at which the newest leg began
    deadline: float = math.inf  # time.monotonic() by which the run must have saved
    peak_flops: float = math.nan  # of matrix products in a second, on all ranks together
    metrics: MetricsFile = field(default_factory=lambda: MetricsFile(None))
    progress: Progress | None = None  # the live bar
    last: LastStep | None = None  # None where the spike guard left the step out
    took: Stopwatch = field(default_factory=Stopwatch)
    finished: str = ""  # why the run ended; empty while it trains
    stop_reason: str = ""  # of `request_stop`
    interrupted: bool = False  # by a signal, within `interruptible`
    signals: Noted = field(default_factory=Noted)
    events: list[str] = field(default_factory=list)  # to be written once metrics.jsonl is open
    resources: ExitStack = field(default_factory=ExitStack)
    began: float = field(default_factory=time.monotonic)
    wall_seconds_before: float = 0.0  # of this run, in earlier processes

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
        """Steps planned; under `--minutes` the plan is corrected on the way."""
        return self.state.n_steps

    @property
    def is_last_step(self) -> bool:
        """Whether the planned end is reached: the last step, or the target validation loss."""
        return self.step >= self.n_steps or self.state.seconds_to_target < math.inf

    def say(self, message: str) -> None:
        """Prints a line on rank 0."""
        say(self.console, message)

    def event(self, message: str) -> None:
        """Writes an event of this step to metrics.jsonl."""
        self.metrics.write(kind="event", step=self.step, message=message)

    def request_stop(self, reason: str) -> None:
        """Ends the run before the next step, with a checkpoint; any rank may ask for it."""
        self.stop_reason = self.stop_reason or reason

    def weights(self) -> dict[str, Tensor]:
        """The model's parameters by name, not copied; shards of them under FSDP2."""
        return self.replica.weights(copy=False)

    def save_model(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Writes RUN/NAME, a model that `generate`, `eval` and `export` take like a run.

        `weights`: whole tensors with the names of `weights()`. Call it on rank 0. Raises
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
        """Around work that changes nothing: a signal ends it at once, and a resumed run repeats it.

        Under several ranks a signal waits, because the others wait for this rank.
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
        """Enters a context manager that is left when training ends, by an error, too."""
        return self.resources.enter_context(manager)

    def wall_seconds(self) -> float:
        """Seconds that the run has taken so far, earlier processes included."""
        return self.wall_seconds_before + time.monotonic() - self.began
