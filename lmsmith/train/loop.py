"""The training loop: next batch, step, hooks.

`Training` sets up a run; `go` is the loop. `step.py` has the step itself. Hooks decide when to
evaluate, save, sample and stop (`hooks/order.py` has their order). `state.py` holds what one step
passes to the next.
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
from lmsmith.data.batches.read_ahead import ReadAhead
from lmsmith.data.batches.windows import AnyBatches, tokens_read
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.ranks import LONG, Ranks
from lmsmith.models.gpt import GPT
from lmsmith.models.interface import NeuralModel
from lmsmith.models.lora import add_adapters, is_adapter
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
    """One run: call `begin` or `restore`, then `go`. `context` is the run as its hooks see it."""

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
        `peak_flops`: FLOP/s of matrix products, all ranks together. `hooks`: the user's hooks.

        With several `ranks`, each creates its Training at the same time. Raises UsageError if two
        hooks have the same name.
        """
        ranks = ranks or Ranks()
        replica = Replica(new_model(config, device, ranks), config, ranks)
        self.context = Context(
            config=config,
            corpus=corpus,
            run=run,
            console=console,
            ranks=ranks,
            device=device,
            replica=replica,
            batches=replica.objective.batches(corpus),
            guard=Guard(
                config.train.on_spike, config.train.spike_z, signed=replica.objective.signed
            ),
            state=TrainState(n_steps=config.train.steps),
            deadline=deadline,
            peak_flops=peak_flops,
        )
        self.hooks = Hooks(self.context, hooks, self.rewind)

    @property
    def state(self) -> TrainState:
        """The progress of the run: what a checkpoint holds."""
        return self.context.state

    def begin(self) -> None:
        """Starts at step 0; with `--from`, from another run's weights. Raises CheckpointError."""
        if self.context.config.train.init_from:
            weights = weights_to_begin_with(self.context.run)
            ours = self.context.model.named_parameters()
            weights |= {name: p.detach() for name, p in ours if is_adapter(name)}
            self.context.replica.load_weights(weights)
            self.state.evaluated_step = -1  # so that these weights are evaluated first

    def restore(self, *, without_hooks: Collection[str] = ()) -> bool:
        """Loads the newest complete checkpoint; returns False if there is none.

        `without_hooks`: names of hooks of the run to drop. Raises CheckpointError if there are
        checkpoints but none is complete, or if the weights are not finite; UsageError if a hook is
        missing.
        """
        names, checkpoints = self.hooks.names, self.hooks.checkpoints
        found = checkpoints.restore(self.context, names, without_hooks)
        if not self._continue_from(found):
            return False
        self.context.wall_seconds_before = self.state.wall_seconds
        return True

    def rewrite_checkpoint(self) -> None:
        """Writes the checkpoint of this step again, with a new plan or `context.about`.

        Raises StorageError.
        """
        self.hooks.checkpoints.rewrite_checkpoint(self.context)

    def rewind(self) -> bool:
        """Returns to the newest complete checkpoint while training; False if there is none."""
        if not self._continue_from(self.hooks.checkpoints.restore(self.context)):
            return False
        self.hooks.begin_at_state()
        return True

    def go(self) -> dict[str, Any]:
        """Trains to the end or until a signal, saves, and returns the summary.

        Raises TrainingError, StorageError; Stopped if a second Ctrl-C interrupts the save.
        """
        context, hooks, first_step = self.context, self.hooks, self.context.step
        context.model.train()
        objective = context.replica.objective
        objective.start(context.run, context.corpus, context.replica, context.batches, context.say)
        context.began = time.monotonic()
        rows = context.replica.rows_at_once  # read once: it shrinks if memory runs out
        with noted() as context.signals, ExitStack() as context.resources:
            batches = context.batches
            if not objective.generates:
                ahead = ReadAhead(batches, lambda n: context.replica.micro_batches(n, rows))
                batches = context.enter(ahead)
            hooks.start()
            while (finished := hooks.after_step()) is None:
                with context.took("step"):
                    self._step(batches)
            hooks.end(finished)
        return summary_of_run(context, first_step)

    def _step(self, batches: AnyBatches) -> None:
        """Makes one optimizer step, or on a spike lets the spike guard decide."""
        context, state, guard = self.context, self.context.state, self.hooks.spike_guard
        context.last, began = None, time.perf_counter()
        try:
            guard.before_step(context)
            numbers = train_step(context.replica, batches, state.step, state.n_steps, context.guard)
        except SpikeError as spike:
            guard.on_spike(context, spike)
            return
        seconds = time.perf_counter() - began
        n_targets = context.batches.n_targets(state.step)
        n_read = tokens_read(context.batches, state.step)
        context.last = LastStep(numbers, n_targets, seconds, n_read)
        state.step += 1
        state.tokens_seen += n_targets
        state.tokens_read += n_read
        state.train_seconds += seconds
        self.hooks.checkpoints.reserve_memory(context)

    def _continue_from(self, found: TrainState | None) -> bool:
        if found is None:
            return False
        self.context.state = found
        self.context.ranks.wait(LONG)  # rank 0 reads the checkpoint before the others do
        return True


def new_model(config: RunConfig, device: torch.device, ranks: Ranks) -> NeuralModel:
    """Builds a model with initial weights, on its device unless FSDP2 will shard it."""
    model = config.neural.build()
    generator = torch.Generator().manual_seed(config.train.seed)
    model.initialise(generator)
    if config.lora.rank:
        assert isinstance(model, GPT)
        add_adapters(model, config.lora, generator)
    model.to(torch.float64 if config.train.dtype == "float64" else torch.float32)
    if ranks.world == 1 or config.train.parallel == "ddp":
        model.to(device)  # under FSDP2 it may be too large for one device
    return model
