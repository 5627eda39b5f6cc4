"""Sends metrics to TensorBoard and Weights & Biases, in addition to metrics.jsonl.

A tracker receives each line of metrics.jsonl. TensorBoard's event files are in RUN/tensorboard.
Weights & Biases writes to RUN/wandb and uploads, unless WANDB_MODE is "offline" (`wandb sync`
uploads later).
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lmsmith import atomic
from lmsmith.config import RunConfig, flatten
from lmsmith.errors import ConfigError

Tracker = Callable[[dict[str, Any]], None]
"""Receives the values of one line of metrics.jsonl."""


def check_installed(names: Sequence[str]) -> None:
    """Call it before a run starts. Raises ConfigError for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.track = {name!r}, but the package {name} is not installed. Run `pip "
                f"install 'lmsmith[track]'`, or leave train.track out; metrics.jsonl has all "
                "numbers."
            )


@contextmanager
def trackers(
    names: Sequence[str], run: Path, config: RunConfig, step: int
) -> Iterator[list[Tracker]]:
    """Opens the trackers of a run that continues after `step`; closes them at the end."""
    with ExitStack() as stack:
        makers = {"tensorboard": _tensorboard, "wandb": _wandb}
        yield [stack.enter_context(makers[name](run, config, step)) for name in names]


@contextmanager
def _tensorboard(run: Path, config: RunConfig, step: int) -> Iterator[Tracker]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard"), purge_step=step + 1) as writer:

        def track(values: dict[str, Any]) -> None:
            if values["kind"] == "event":
                writer.add_text("event", values["message"], values["step"])
            for name, value in _numbers(values):
                writer.add_scalar(name, value, values["step"])

        yield track


@contextmanager
def _wandb(run: Path, config: RunConfig, step: int) -> Iterator[Tracker]:
    import wandb

    made = wandb.init(
        project="lmsmith",
        name=run.name,
        id=_id(run),
        resume="allow",
        dir=str(run),
        config=flatten(
            {"train": vars(config.train), "model": vars(config.model), "optim": vars(config.optim)}
        ),
    )

    def track(values: dict[str, Any]) -> None:
        made.log(dict(_numbers(values)), step=values["step"])

    try:
        yield track
    finally:
        made.finish()


def _id(run: Path) -> str:
    """Returns the run's id at Weights & Biases, created once: run names such as `runs/book-1` may
    be reused.
    """
    path = run / "wandb-id"
    if not path.exists():
        atomic.write(path, f"{run.name}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8")


def _numbers(values: dict[str, Any]) -> list[tuple[str, float]]:
    """Numbers of a line, named `train/loss`, `eval/val_loss`, ..."""
    kind = values["kind"]
    return [
        (f"{kind}/{k}", float(v))
        for k, v in values.items()
        if isinstance(v, int | float) and k != "step"
    ]
