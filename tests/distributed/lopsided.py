"""Runs lmsmith so that on rank 1 alone a save is due after step 5, and a signal arrives in step 9."""

import os
import signal
from typing import Any

import lmsmith.train.loop
from lmsmith.__main__ import main
from lmsmith.train.hooks.checkpoint import Checkpoints
from lmsmith.train.hooks.hook import Context

RANK = os.environ["RANK"]
train_step, due = lmsmith.train.loop.train_step, Checkpoints.due


def interrupted(*arguments: Any) -> dict[str, float]:
    if RANK == "1" and arguments[2] == 8:
        signal.raise_signal(signal.SIGTERM)
    return train_step(*arguments)


def due_on_one(hook: Checkpoints, context: Context) -> bool:
    return due(hook, context) or (RANK == "1" and context.step == 5 and hook._saved[0] != 5)


if __name__ == "__main__":
    lmsmith.train.loop.train_step = interrupted
    Checkpoints.due = due_on_one  # type: ignore[method-assign]
    main()
