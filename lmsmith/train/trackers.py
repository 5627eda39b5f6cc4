"""Numbers on their way to TensorBoard and Weights & Biases, beside metrics.jsonl, which has them
always.

A tracker takes what is written to metrics.jsonl. TensorBoard's event files lie in RUN/tensorboard;
Weights & Biases writes to RUN/wandb and sends it on unless WANDB_MODE is "offline" (`wandb sync`
sends it later).
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
"""Takes what a line of metrics.jsonl holds."""


def check_installed(names: Sequence[str]) -> None:
    """Before a run begins. Raises ConfigError for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.track = {name!r}, and the package {name} is not installed: `pip install "
                f"'lmsmith[track]'`, or "
                "leave it out; metrics.jsonl has all numbers."
            )


@contextmanager
def trackers(
    names: Sequence[str], run: Path, config: RunConfig, step: int
) -> Iterator[list[Tracker]]:
    """The trackers asked for, of a run that goes on after `step`; closed at the end."""
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
    """What the run is known by there: its own, made once, for names such as `runs/book-1` come
    again.
    """
    place = run / "wandb-id"
    if not place.exists():
        atomic.write(place, f"{run.name}-{secrets.token_hex(4)}")
    return place.read_text(encoding="utf-8")


def _numbers(values: dict[str, Any]) -> list[tuple[str, float]]:
    """`train/loss`, `eval/val_loss`, ..."""
    kind = values["kind"]
    return [
        (f"{kind}/{k}", float(v))
        for k, v in values.items()
        if isinstance(v, int | float) and k != "step"
    ]
