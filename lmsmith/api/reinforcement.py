"""The call `rl`: a tuned model learns from the rewards of its own answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.api.progress import Shown, showing
from lmsmith.api.run import Folder, Run
from lmsmith.api.training import SHORT, _changes, _ended, _where

if TYPE_CHECKING:
    from lmsmith.train.hooks.hook import Hook


def rl(
    run: Folder,
    task: str,
    *,
    out: Folder | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    method: Literal["grpo", "dr-grpo", "dapo", "reinforce"] | None = None,
    rewards: Sequence[str] | None = None,
    group_size: int | None = None,
    kl_weight: float | None = None,
    lora_rank: int | None = None,
    settings: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Shown = None,
    started: float | None = None,
) -> Run:
    """Trains a tuned model with reinforcement learning and returns the new run.

        run = lmsmith.rl("runs/chat-1", "arithmetic", minutes=10)
        print(run.summary["best_val_metrics"]["val_reward"])

    `run`: a model tuned on conversations. `task`: the name of a task, which makes prompts and whose
    rewards judge sampled answers: arithmetic, gsm8k, or one that
    `lmsmith.extend.register_rl_task` registered. For each prompt a group of answers is sampled;
    answers better than their group's mean become more likely.

    steps, minutes  length; 500 steps if none is given
    method      grpo, dr-grpo, dapo, reinforce
    rewards     NAME or NAME=WEIGHT each; default: the task's
    group_size  answers per prompt (8)
    kl_weight   weight of the KL divergence from the starting model (0)
    lora_rank   learn adapters of this rank instead of all weights

    `settings`: other settings by dotted name, such as `rl.temperature`. Other arguments are those
    of `lmsmith.train`. Raises its errors; TrainingError if a reward raises or is not finite.
    """
    started = time.monotonic() if started is None else started
    given = {name: value for name, value in locals().items() if name in SHORT}
    changes = _changes(given, settings)
    for name, value in (
        ("rl.method", method),
        ("rl.rewards", rewards),
        ("rl.group_size", group_size),
        ("rl.kl_weight", kl_weight),
        ("lora.rank", lora_rank),
    ):
        if value is not None:
            changes[name] = value
    from lmsmith.chat.rl.run import rl as start

    with showing(progress) as console:
        folder, summary = start(
            Path(run),
            task,
            changes,
            out=None if out is None else Path(out),
            console=console,
            started=started,
            hooks=hooks,
            where=_where.get(),
        )
        return _ended(folder, summary)
