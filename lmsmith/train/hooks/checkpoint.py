"""Writes checkpoints, and the best weights so far to RUN/model for use.

All ranks take part, because each may hold shards of the tensors; rank 0 writes. A thread writes
large tensors while training continues (`lmsmith.train.save`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor

from lmsmith.checkpoint import (
    Checkpoint,
    available,
    load_checkpoint,
    save_checkpoint,
    save_model,
)
from lmsmith.config import flatten
from lmsmith.distributed.shard import unshard_all
from lmsmith.models.gpt import GPT
from lmsmith.models.lora import merged
from lmsmith.tokens.files import save_tokenizer
from lmsmith.train.adapter import save_adapter
from lmsmith.train.guard import check_not_diverged
from lmsmith.train.hook_state import check_complete, classes_in
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.init_from import saved_special_ids
from lmsmith.train.lock import check_held
from lmsmith.train.save import Groups, Saver
from lmsmith.train.state import TrainState

SAVE_SECONDS = 60.0  # time between checkpoints, unless train.save_every is set
SAVE_PAUSE = 10.0  # on slow disks, wait at least this many times the duration of a save


class Checkpoints(Hook):
    """Saves every `train.save_every` steps, or about every minute, and at the end.

    `hooks`: the user's hooks on this rank, whose state is saved too.
    """

    name = "checkpoint"
    collective = True

    def __init__(self, every: int, hooks: Sequence[Hook] = ()) -> None:
        self.every, self.hooks = every, hooks
        self._saver = Saver()
        self._last_save = 0.0
        self._saved = (-1, -1)  # step of the newest checkpoint, and of the last evaluation in it
        self._saved_model = (-1, False)
        self._special: dict[str, Any] | None = None  # `saved_special_ids`; None: not read yet
        self._reserved = False

    @property
    def write_seconds(self) -> float:
        """Seconds that writing the latest checkpoint took."""
        return self._saver.seconds

    def on_start(self, context: Context) -> None:
        self._last_save = time.monotonic()

    def due(self, context: Context) -> bool:
        """Decides by the step or this rank's clock. One rank that is due makes all ranks save."""
        self._saver.check()
        step = context.step
        if step in (0, self._saved[0]):
            return False
        if self.every:
            return step % self.every == 0
        pause = max(SAVE_SECONDS, SAVE_PAUSE * self._saver.seconds)
        return time.monotonic() - self._last_save > pause

    def after_step(self, context: Context) -> None:
        self.save(context)

    def on_end(self, context: Context) -> None:
        self.save(context, at_once=True)

    def reserve_memory(self, context: Context) -> None:
        """Allocates the copies for saves in a thread, once the optimizers have a state."""
        if context.ranks.world == 1 and not self._reserved:
            self._reserved = True
            weights, optimizer = context.replica.weights(copy=False), context.replica.optimizers
            self._saver.reserve({"model": weights, "optimizer": optimizer.state()})

    def save(self, context: Context, *, at_once: bool = False) -> None:
        """Saves what is not on disk yet. `at_once`: returns only when it is on disk.

        Raises StorageError; TrainingError if a hook's `state_dict` cannot be saved.
        """
        state = context.state
        with context.took("checkpoint"):
            state.wall_seconds = context.wall_seconds()
            groups: dict[str, dict[str, Tensor]] = {}
            values: dict[str, Any] = {}
            if self._saved != (state.step, state.evaluated_step):
                hooks = [hook for hook in self.hooks if hook.name in state.hooks_done]
                groups, values = state.to_checkpoint(context.replica, context.guard, hooks)
            model_step = state.best_step if state.best else state.step
            model = (model_step, state.best_is_average)
            if self._saved_model != model:
                # The best weights, if they are the newest, are copied once for both groups.
                older = state.best and not state.newest_are_best
                groups["use"] = state.best if older else context.replica.weights(copy=False)
            keep = context.ranks.first
            groups = {group: unshard_all(named, keep=keep) for group, named in groups.items()}
            write = self._writer(context, values, model_step)

            def save() -> str:
                self._saver.save(groups, write, at_once=at_once)
                return "saved"

            context.ranks.on_rank_zero(save)
            self._saved = (state.step, state.evaluated_step)
            self._saved_model = model
        self._last_save = time.monotonic()

    def rewrite_checkpoint(self, context: Context) -> None:
        """Writes the checkpoint of this step again, with a new plan or `context.about`.

        It holds the same hooks as before; new hooks are saved from the next checkpoint on. Raises
        StorageError.
        """
        self._saved = (-1, -1)
        self.save(context, at_once=True)

    def restore(
        self, context: Context, names: Collection[str] | None = None, without: Collection[str] = ()
    ) -> TrainState | None:
        """Loads the newest complete checkpoint into replica, guard and hooks; returns its state.

        `names`: the user's hooks of this run, None to skip their comparison; `without`: hooks to
        drop. Returns None if there is no checkpoint. Raises CheckpointError if there are some but
        none is complete, or if the weights are not finite; UsageError if a hook is missing.
        """
        found = self._newest(context)
        if names is not None:
            classes = classes_in(context.run, found)
            context.events += check_complete(classes, context.run, names, without)
        if found is None:
            return None
        state = TrainState.from_checkpoint(found, context.replica, context.guard, self.hooks)
        self._saved = (state.step, state.evaluated_step)
        return state

    def _newest(self, context: Context) -> Checkpoint | None:
        """Rank 0 chooses the checkpoint: on a shared disk, ranks might see different ones."""
        found: list[Checkpoint] = []

        def find() -> str:
            self._saver.wait()
            if available(context.run):
                found.append(load_checkpoint(context.run))
                check_not_diverged(context.run, found[0])
            return str(found[0].step if found else None)

        step = context.ranks.on_rank_zero(find)
        if step == "None":
            return None
        return found[0] if found else load_checkpoint(context.run, int(step))

    def _writer(
        self, context: Context, values: dict[str, Any], model_step: int
    ) -> Callable[[Groups], None]:
        """Returns the function that writes the tensors of this step, perhaps later in a thread."""
        run, config, tokenizer = context.run, context.config, context.corpus.tokenizer
        step, best_step = context.state.step, context.state.best_step
        about, keep = context.about, config.train.keep
        data = {"documents": config.data.documents}
        lora, model = config.lora, context.model
        content = {"model": flatten(vars(config.model)), "data": data, "step": model_step}
        if self._special is None:
            self._special = saved_special_ids(run) if config.train.init_from else {}
        content |= self._special

        def write(groups: Groups) -> None:
            check_held(run)
            checkpoint = {group: named for group, named in groups.items() if group != "use"}
            if checkpoint:
                save_checkpoint(
                    run, step, checkpoint, values, keep=keep, best_step=best_step, about=about
                )
            if "use" in groups:
                save_tokenizer(tokenizer, run / "model")
                if lora.rank:
                    assert isinstance(model, GPT)
                    save_adapter(run, groups["use"], config)
                    save_model(run / "model", merged(groups["use"], lora, model), content)
                else:
                    save_model(run / "model", groups["use"], content)

        return write
