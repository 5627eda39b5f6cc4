"""Benchmark tasks while training: their numbers in metrics.jsonl and the report."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

from lmsmith.config import RunConfig
from lmsmith.distributed.shard import unshard_all
from lmsmith.evaluate.tasks.run import Loaded, load_tasks, run_loaded
from lmsmith.generate.batched import without_graphs
from lmsmith.generate.subject import subject_of
from lmsmith.generate.text_model import TextModel
from lmsmith.strict_json import to_json
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.hooks.sample import full_model
from lmsmith.train.init_from import saved_special_ids
from lmsmith.train.replica import uncompiled


class Tasks(Hook):
    """Runs `train.tasks` on rank 0 with the current weights, in their own precision.

    A line of metrics.jsonl has kind "tasks" and TASK.METRIC for each number, with standard errors.
    """

    name = "tasks"
    at_end = True
    collective = True  # under FSDP2 every rank has shards of the weights

    def __init__(self, config: RunConfig) -> None:
        self.every = config.train.task_every or config.train.eval_every
        self.limit = config.train.task_limit
        self.loaded: list[Loaded] = []

    def on_start(self, context: Context) -> None:
        self.loaded = load(context.config)

    def after_step(self, context: Context) -> None:
        with context.interruptible(), context.took("tasks"):
            sharded = context.ranks.world > 1 and context.config.train.parallel == "fsdp"
            keep, shards = context.ranks.first, context.replica.weights(copy=False)
            weights = unshard_all(shards, keep=keep) if sharded else {}

            def run() -> str:
                model = full_model(context, weights) if sharded else context.model
                special = saved_special_ids(context.run)
                writer = TextModel.of(model, context.corpus.tokenizer, special)
                with uncompiled(context.config), without_graphs():
                    results = run_loaded(subject_of(writer), self.loaded, limit=self.limit)
                return to_json(
                    {
                        f"{result.task}.{name}": value
                        for result in results
                        for name, value in result.metrics.items()
                        if math.isfinite(value)
                    }
                )

            numbers: dict[str, float] = json.loads(context.ranks.on_rank_zero(run))
        context.metrics.write(kind="tasks", step=context.step, **numbers)
        shown = [f"{name} {value:.3f}" for name, value in numbers.items() if "_stderr" not in name]
        context.say(f"step {context.step:>6,}  {', '.join(shown)}")


def load(config: RunConfig) -> list[Loaded]:
    """The rows of `train.tasks`. Raises ConfigError for an unknown task, DataError."""
    train = config.train
    return _load(train.tasks, train.task_data) if train.tasks else []


@functools.lru_cache(maxsize=1)  # checked before training, and used in it
def _load(names: tuple[str, ...], folder: str) -> list[Loaded]:
    return load_tasks(names, Path(folder) if folder else None)
