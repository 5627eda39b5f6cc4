"""The training loop: next batch, step, hooks.

`Training` puts a run together; `go` is the loop. The step itself is `step.py`; when to evaluate,
save, sample and stop is up to the hooks (`hooks/order.py` has their order); what one step hands to
the next is in `state.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lmsmith.config import RunConfig
from lmsmith.data.batches.packing import batches_of
from lmsmith.data.batches.read_ahead import ReadAhead
from lmsmith.data.batches.windows import AnyBatches
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.ranks import LONG, Ranks
from lmsmith.models.interface import NeuralModel
from lmsmith.train.guard import Guard, SpikeError
from lmsmith.train.hooks.hook import Context, Hook, LastStep
from lmsmith.train.hooks.order import Hooks
from lmsmith.train.init_from import weights_to_begin_with
from lmsmith.train.replica import Replica
from lmsmith.train.state import TrainState
from lmsmith.train.step import train_step
from lmsmith.train.stop import noted
from lmsmith.train.summary import summary_of_run


class Training:
    """One run: `begin` or `restore` it, then `go`. `context` is the run as its hooks see it."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run: Path,
        console: Console,
        *,
        device: torch.device,
        peak_flops: float,
        deadline: float = math.inf,
        ranks: Ranks | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """`deadline`: time.monotonic() by which the last checkpoint must be written.

        `peak_flops`: matrix products a second of all ranks. `hooks`: the user's own. Under several
        `ranks` each makes a Training at the same time. Raises UsageError where two hooks have one
        name.
        """
        ranks = ranks or Ranks()
        self.context = Context(
            config=config,
            corpus=corpus,
            run=run,
            console=console,
            ranks=ranks,
            device=device,
            replica=Replica(new_model(config, device, ranks), config, ranks),
            batches=batches_of(config, corpus.train, corpus.tokenizer),
            guard=Guard(config.train.on_spike, config.train.spike_z),
            state=TrainState(n_steps=config.train.steps),
            deadline=deadline,
            peak_flops=peak_flops,
        )
        self.hooks = Hooks(self.context, hooks, self.rewind)

    @property
    def state(self) -> TrainState:
        """How far the run is."""
        return self.context.state

    def begin(self) -> None:
        """Starts at step 0, with `--from` from the other run's weights. Raises CheckpointError."""
        if self.context.config.train.init_from:
            self.context.replica.load_weights(weights_to_begin_with(self.context.run))
            self.state.evaluated_step = -1  # those weights are scored first

    def restore(self, *, without_hooks: Collection[str] = ()) -> bool:
        """Continues from the newest whole checkpoint; False where there is none.

        `without_hooks`: names of hooks that the run had and gives up. Raises CheckpointError where
        there are checkpoints and none is whole, or where its weights are not finite; UsageError
        where a hook is missing.
        """
        names, checkpoints = self.hooks.names, self.hooks.checkpoints
        found = checkpoints.restore(self.context, names, without_hooks)
        if not self._continue_from(found):
            return False
        self.context.wall_seconds_before = self.state.wall_seconds
        return True

    def save_anew(self) -> None:
        """Writes the checkpoint of this step again, with another plan or `context.about`.

        Raises StorageError.
        """
        self.hooks.checkpoints.save_anew(self.context)

    def rewind(self) -> bool:
        """Goes back, while training, to the newest whole checkpoint; False if there is none."""
        if not self._continue_from(self.hooks.checkpoints.restore(self.context)):
            return False
        self.hooks.begin_at_state()
        return True

    def go(self) -> dict[str, Any]:
        """Trains to the end or to a signal, saves, and returns the summary.

        Raises TrainingError, StorageError; Stopped where a second Ctrl-C did not wait for the save.
        """
        context, hooks, first_step = self.context, self.hooks, self.context.step
        context.model.train()
        context.began = time.monotonic()
        rows = context.replica.rows_at_once  # as it is now: where memory runs out it shrinks
        with noted() as context.signals, ExitStack() as context.resources:
            ahead = ReadAhead(context.batches, lambda n: context.replica.micro_batches(n, rows))
            batches = context.enter(ahead)
            hooks.start()
            while (finished := hooks.after_step()) is None:
                with context.took("step"):
                    self._step(batches)
            hooks.end(finished)
        return summary_of_run(context, first_step)

    def _step(self, batches: AnyBatches) -> None:
        """One optimizer step; or, where it would do harm, what the spike guard does instead."""
        context, state, guard = self.context, self.context.state, self.hooks.spike_guard
        context.last, began = None, time.perf_counter()
        try:
            guard.before_step(context)
            numbers = train_step(context.replica, batches, state.step, state.n_steps, context.guard)
        except SpikeError as spike:
            guard.on_spike(context, spike)
            return
        seconds = time.perf_counter() - began
        context.last = LastStep(numbers, context.batches.n_counted(state.step), seconds)
        state.step += 1
        state.tokens_seen += context.last.n_tokens
        state.train_seconds += seconds
        self.hooks.checkpoints.reserve_memory(context)

    def _continue_from(self, found: TrainState | None) -> bool:
        if found is None:
            return False
        self.context.state = found
        self.context.ranks.wait(LONG)  # rank 0 has read it before the others began to
        return True


def new_model(config: RunConfig, device: torch.device, ranks: Ranks) -> NeuralModel:
    """A model with its initial weights, on its device unless FSDP2 will shard it."""
    model = config.neural.build()
    model.initialise(torch.Generator().manual_seed(config.train.seed))
    model.to(torch.float64 if config.train.dtype == "float64" else torch.float32)
    if ranks.world == 1 or config.train.parallel == "ddp":
        model.to(device)  # under FSDP2 it may be too large for one device
    return model
